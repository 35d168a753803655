//! Endpoints that their registrations call unhealthy now, and whether to believe it.
//!
//! A put that makes most of a service unhealthy at once is more often one mistake than many
//! illnesses, and has the effect of a mass removal: so it is met in the same way. Fewer than most
//! are believed; of most, whoever stops answering, and all of them once a person has confirmed it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::trials::Trials;
use crate::update::{Moment, Protection};

/// An endpoint whose word is not believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doubted {
    pub(crate) since_wall: SystemTime,
    /// Whether it was found to be one of too many.
    held: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Illnesses {
    doubted: BTreeMap<SocketAddr, Doubted>,
    /// When others were believed, within the window.
    believed: VecDeque<Duration>,
}

impl Illnesses {
    /// A healthy endpoint is called unhealthy.
    pub(crate) fn begin(&mut self, address: SocketAddr, now: Moment) {
        let doubted = Doubted { since_wall: now.wall, held: false };
        self.doubted.entry(address).or_insert(doubted);
    }

    /// It is called something else, or it is gone.
    pub(crate) fn end(&mut self, address: SocketAddr) -> bool {
        self.doubted.remove(&address).is_some()
    }

    pub(crate) fn is_doubted(&self, address: SocketAddr) -> bool {
        self.doubted.contains_key(&address)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.doubted.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Doubted)> {
        self.doubted.iter().map(|(address, doubted)| (*address, doubted))
    }

    /// Believes those that may be; whether any were, and how many are held from now on. `healthy`:
    /// how many endpoints are called healthy by their registrations.
    pub(crate) fn settle(
        &mut self,
        trials: &Trials,
        now: Moment,
        healthy: usize,
        rules: &Protection,
        anybody_answers: bool,
    ) -> (bool, usize) {
        let old = |at: &Duration| now.mono.saturating_sub(*at) >= rules.window;
        while self.believed.front().is_some_and(old) {
            self.believed.pop_front();
        }
        let before = self.doubted.len();
        let ill = before.saturating_add(self.believed.len());
        let most = ill >= 2 && ill > healthy;
        let believed = &mut self.believed;
        let mut held = 0usize;
        self.doubted.retain(|address, doubted| {
            let dead = trials.refuses(*address) || (trials.is_silent(*address) && anybody_answers);
            let stays = rules.enabled && !dead && (doubted.held || most);
            if !stays {
                believed.push_back(now.mono);
            } else if !doubted.held {
                doubted.held = true;
                held = held.saturating_add(1);
            }
            stays
        });
        (self.doubted.len() < before, held)
    }

    /// All are believed; whether there were any.
    pub(crate) fn release(&mut self) -> usize {
        let count = self.doubted.len();
        self.doubted.clear();
        count
    }
}
