use std::time::{Duration, Instant};

/// How long a wait goes on for something that is to happen.
///
/// A look counts for at most a quarter of the budget, however long it took: what is waited for had
/// no more time than the waiting test when the whole machine stood still.
#[derive(Debug)]
pub struct Patience {
    budget: Duration,
    spent: Duration,
    last: Instant,
}

impl Patience {
    /// A wait that begins now.
    pub fn new(budget: Duration) -> Self {
        Self { budget, spent: Duration::ZERO, last: Instant::now() }
    }

    /// Waits until it is time for the next look; false when there should be none.
    pub async fn lasts(&mut self) -> bool {
        pause().await;
        self.spent += self.last.elapsed().min(self.budget / 4);
        self.last = Instant::now();
        self.spent < self.budget
    }
}

/// One step of a wait: the time between two looks.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
