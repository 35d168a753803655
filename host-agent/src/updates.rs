//! The way of an update to the task that owns the state, and of its outcome back.

use pintle_state::{Changes, Update};
use tokio::sync::{mpsc, oneshot};

/// Orders that wait. Small, so that a flood is felt by its sender and not by everybody's latency.
const ORDERS: usize = 64;

/// The state's task is gone: the agent is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Gone;

/// An update on its way, and who waits for what became of it.
pub(crate) struct Order {
    pub(crate) update: Update,
    pub(crate) done: Option<oneshot::Sender<Changes>>,
}

/// Where updates go.
#[derive(Clone, Debug)]
pub struct Updates(mpsc::Sender<Order>);

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").finish_non_exhaustive()
    }
}

impl Updates {
    /// To whoever has the other end.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, inbox) = mpsc::channel(ORDERS);
        (Self(orders), inbox)
    }

    /// Goes nowhere.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Hands an update over; waits while the task is behind.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn send(&self, update: Update) -> Result<(), Gone> {
        self.0.send(Order { update, done: None }).await.map_err(|_| Gone)
    }

    /// Hands an update over and waits until it is applied.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn apply(&self, update: Update) -> Result<Changes, Gone> {
        let (done, changes) = oneshot::channel();
        let order = Order { update, done: Some(done) };
        self.0.send(order).await.map_err(|_| Gone)?;
        changes.await.map_err(|_| Gone)
    }

    /// Confirms the removals held of a service (`pintle release`); how many endpoints went.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn release(&self, service: &str) -> Result<usize, Gone> {
        let update = Update::Release { service: service.to_owned() };
        self.apply(update).await.map(|changes| changes.released)
    }
}
