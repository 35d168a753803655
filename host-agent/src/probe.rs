//! The task that finds out whether endpoints that are about to go still answer.
//!
//! The state says whom to try ([`State::take_trials`](pintle_state::State::take_trials)) and
//! decides what an answer means; here connections are opened, and closed at once. Every trial that
//! is taken gives one result, so that the publisher knows how many are on their way.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use pintle_state::{Trial, Tried, Update};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::updates::Updates;

/// Trials on their way, at most: few enough for the descriptors of a small machine. Those beyond
/// are tried later.
pub(crate) const MAX_TRIALS: usize = 128;
/// An endpoint that is not connected by then is silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// The task, to be spawned. The channel takes [`MAX_TRIALS`].
pub(crate) fn start(
    updates: Updates,
    shutdown: CancellationToken,
) -> (mpsc::Sender<Trial>, impl Future<Output = ()> + use<>) {
    let (sender, trials) = mpsc::channel(MAX_TRIALS);
    (sender, run(trials, updates, shutdown))
}

async fn run(mut trials: mpsc::Receiver<Trial>, updates: Updates, shutdown: CancellationToken) {
    let mut running: JoinSet<(Trial, Tried)> = JoinSet::new();
    loop {
        let mut results = Vec::new();
        tokio::select! {
            () = shutdown.cancelled() => return,
            trial = trials.recv() => {
                let Some(trial) = trial else { return };
                running.spawn(async move {
                    let tried = connect(trial.address).await;
                    (trial, tried)
                });
            }
            Some(ended) = running.join_next() => results.extend(ended),
        }
        while let Some(ended) = running.try_join_next() {
            results.extend(ended);
        }
        // A decision costs what is held, not what is told: until one is made, results gather for
        // the next, and at most one of them stands between an update and its effect.
        if !results.is_empty() && updates.apply(Update::Trials(results)).await.is_err() {
            return;
        }
    }
}

/// Linux reports a host without a neighbour entry as unreachable after a second or more; that is as
/// silent as one whose packets are dropped.
async fn connect(address: SocketAddr) -> Tried {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_connected)) => Tried::Accepted,
        Err(_) => Tried::Silent,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => Tried::Refused,
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => Tried::Silent,
            // Accepted, and reset at once.
            ErrorKind::ConnectionReset => Tried::Accepted,
            _ => Tried::Failed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_accepts_and_a_closed_port_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connect(address).await, Tried::Accepted);
        drop(listener);
        assert_eq!(connect(address).await, Tried::Refused);
    }
}
