//! What this agent's proxies report of their breakers: told to its other proxies at once, through
//! the state and without NATS, and handed on to the fleet.
//!
//! The state keeps it as an opinion like another agent's, so that a proxy that starts, or starts
//! again, finds what is open in its first tables. The one that reported it has it there as well and
//! has acted on it already: an opinion acts once, and ends with the open state.

use pintle_contract::Now;
use pintle_state::Update;
use pintle_state::event::{ENDING_TTL, Event, Origin};
use tokio::sync::mpsc;

use super::Context;
use super::jetstream::outgoing::draft;
use crate::link::Reported;

/// Relays until shutdown; what was reported by then is handed on.
pub(super) async fn run(
    context: Context,
    agent: String,
    mut reported: mpsc::Receiver<Reported>,
    fleet: Option<mpsc::Sender<Reported>>,
) {
    loop {
        let next = tokio::select! {
            biased;
            next = reported.recv() => next,
            () = context.shutdown.cancelled() => None,
        };
        let Some(next) = next else { return };
        if !next.transition.observed {
            continue;
        }
        let update = Update::Reported(opinion(&agent, &next));
        if context.updates.send(update).await.is_err() {
            return;
        }
        // Without NATS there is no fleet to tell.
        if let Some(fleet) = &fleet
            && fleet.send(next).await.is_err()
        {
            return;
        }
    }
}

fn opinion(agent: &str, reported: &Reported) -> Event {
    let draft = draft(agent, reported);
    Event {
        id: draft.id,
        source: draft.source,
        target: draft.target,
        action: draft.action,
        ttl: draft.ttl.unwrap_or(ENDING_TTL),
        happened: Now(reported.transition.at.0),
        origin: Origin::default(),
    }
}
