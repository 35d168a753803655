//! The events in JetStream.
use pintle_state::{PolicyCheck, SavedStream};
use tokio::sync::mpsc;

use super::Context;
use crate::link::Reported;

pub(crate) async fn run(
    context: Context,
    _resume: SavedStream,
    _check: PolicyCheck,
    _reported: mpsc::Receiver<Reported>,
) {
    context.shutdown.cancelled().await;
}
