//! Who may be chosen, and what is known of them.
//!
//! Eligibility changes rarely and is asked for on every request, so it is kept by counting: each
//! change adjusts the sums of the decks ([`crate::deck`]) that hold the endpoint, nothing is
//! scanned.

use std::time::Duration;

use pintle_contract::{Now, nanos};

use crate::clock::Clock;
use crate::history::{History, NEXT_LOOK};
use crate::load::{self, Load};
use crate::looks::Looks;
use crate::policy::Policy;
use crate::service::Service;
use crate::state::State;
use crate::told::{LoadEntry, hear, is_news};
use crate::types::Picks;

/// What a strategy sees of the endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) loads: Vec<Load>,
    /// Apart from the loads, because few picks look at them.
    pub(crate) histories: Vec<History>,
    /// Beside the loads, because most draws look at nothing else: ten thousand are as many bytes.
    pub(crate) states: Vec<State>,
    /// Effective weights.
    pub(crate) grains: Vec<u64>,
    /// Stands at the time of the pick.
    pub(crate) clock: Clock,
    pub(crate) service: Service,
    pub(crate) looks: Looks,
    /// Whether more than two workers ask these endpoints. Two that know nothing of each other's
    /// turns still ask everybody within three; more do not.
    pub(crate) many: bool,
    pub(crate) policy: Policy,
    /// The worst that may be chosen; in a panic anybody.
    pub(crate) worst: State,
}

impl Field {
    /// Of nobody.
    pub(crate) fn new(policy: &Policy, now: Now) -> Self {
        Self {
            loads: Vec::new(),
            histories: Vec::new(),
            states: Vec::new(),
            grains: Vec::new(),
            clock: Clock::new(policy.ewma_decay, policy.failure_penalty, now),
            service: Service::default(),
            looks: Looks::default(),
            many: false,
            policy: policy.clone(),
            worst: State::Open,
        }
    }

    /// Whether health and breaker are ignored.
    #[inline]
    pub(crate) fn panics(&self) -> bool {
        self.worst != State::Open
    }

    pub(crate) fn set_panic(&mut self, panic: bool) {
        self.worst = if panic { State::Shut } else { State::Open };
    }

    #[inline]
    pub(crate) fn load(&self, index: u32) -> Option<&Load> {
        self.loads.get(index as usize)
    }

    #[inline]
    pub(crate) fn was_asked(&self, index: u32) -> bool {
        self.many && self.load(index).is_some_and(|load| load.asked)
    }

    /// Whether another worker has asked it meanwhile; it counts once.
    pub(crate) fn take_asked(&mut self, index: u32) -> bool {
        let load = self.loads.get_mut(index as usize);
        load.is_some_and(|load| std::mem::take(&mut load.asked)) && self.many
    }

    /// What a request weighs at the lighter of both.
    pub(crate) fn request(&self, a: u32, b: u32) -> f64 {
        let weighs = |index| self.load(index).map_or(1.0, |load| f64::from(load.inverse_weight));
        weighs(a).max(weighs(b))
    }

    /// How long nobody has asked it, as far as known, in ns by weight.
    pub(crate) fn unasked(&self, index: u32) -> f64 {
        let known = self.load(index).zip(self.histories.get(index as usize));
        known.map_or(0.0, |(load, past)| {
            let asked_at = past.sampled_at.max(past.asked_at);
            self.clock.now.saturating_sub(asked_at) as f64 / f64::from(load.inverse_weight)
        })
    }

    pub(crate) fn state(&self, index: u32) -> State {
        self.states.get(index as usize).copied().unwrap_or(State::Shut)
    }

    #[inline]
    pub(crate) fn open(&self, index: u32) -> bool {
        self.states.get(index as usize).is_some_and(|&state| state <= self.worst)
    }

    /// Whether it is eligible, and new to the list.
    #[inline(always)]
    pub(crate) fn fits(&self, taken: &Picks, also: u32, index: u32) -> bool {
        self.open(index) && also != index && !taken.contains(index)
    }

    /// Ranks from here on are those of ill endpoints.
    pub(crate) const ILL: f64 = 1e12;

    /// The lower, the sooner a request goes there: the requests that wait per weight or, for one
    /// that is clearly ill, [`Self::ILL`] and its cost.
    #[inline]
    pub(crate) fn rank(&self, index: u32) -> f64 {
        match self.load(index) {
            Some(load) if !load.is_suspect(&self.clock, &self.service.middle) => load.queue(),
            _ => self.rank_of_suspect(index),
        }
    }

    #[cold]
    #[inline(never)]
    fn rank_of_suspect(&self, index: u32) -> f64 {
        let Some((load, past)) = self.load(index).zip(self.histories.get(index as usize)) else {
            return f64::INFINITY;
        };
        let time = self.time(load, past);
        if time > self.service.middle.limit() {
            Self::ILL + f64::from(time) * (load.queue() + 1.0)
        } else {
            load.queue() * f64::from(self.service.slowness(time))
        }
    }

    fn time(&self, load: &Load, past: &History) -> f32 {
        let factor = past.factor(&self.clock);
        load.time(past, &self.clock, &self.service.middle, factor)
    }

    /// Whether it is clearly ill beside the middle of its service.
    pub(crate) fn is_ill(&self, index: u32) -> bool {
        self.rank(index) >= Self::ILL
    }

    /// Whether a request may look at this ill endpoint now; then it counts as done.
    #[cold]
    #[inline(never)]
    pub(crate) fn look(&mut self, index: u32) -> bool {
        let now = self.clock.now;
        let at = index as usize;
        let (Some(load), Some(past)) = (self.loads.get(at), self.histories.get_mut(at)) else {
            return false;
        };
        let may =
            self.looks.may(now, self.loads.len()) && past.may_look(now, load.silence(&self.clock));
        if may {
            self.looks.spend(now);
            past.look_at = now.saturating_add(NEXT_LOOK);
        }
        may
    }

    /// Moves on to `now`.
    #[inline]
    pub(crate) fn tick(&mut self, now: Now) {
        if self.clock.tick(now) {
            self.step_back(now.0);
        }
    }

    /// No stamp stays in the future.
    #[cold]
    #[inline(never)]
    fn step_back(&mut self, now: u64) {
        self.loads.iter_mut().for_each(|load| load.step_back(now));
        self.histories.iter_mut().for_each(|past| past.step_back(now));
    }

    /// Books what became of a request at `index`.
    pub(crate) fn observe(&mut self, index: usize, latency: Option<Duration>, failed: bool) {
        let was_ill = self.is_ill(index as u32);
        let (Some(load), Some(past)) = (self.loads.get_mut(index), self.histories.get_mut(index))
        else {
            return;
        };
        let limit = self.service.middle.limit();
        let slow = latency.is_some_and(|latency| nanos(latency) as f32 > limit);
        load::observe(load, past, &self.clock, &self.service, (latency, failed));
        if !failed && latency.is_some() {
            if !slow {
                self.service.meanwhile.answered(self.clock.now, limit as u64);
            }
            self.service.middle.answered(load.latency(&self.service.middle));
        }
        let bad = failed || slow;
        let now = self.clock.now;
        if was_ill && !bad && !past.is_advised(now) {
            self.looks.refund(past.find_well(now));
        }
        let is_ill = self.is_ill(index as u32);
        if bad && is_ill {
            let past = self.histories.get_mut(index).into_iter();
            past.for_each(|past| past.put_off(was_ill, failed, now));
        }
        self.service.learn((was_ill, is_ill), failed, slow);
    }

    /// Whether it is worth telling of, where what was sampled since then is.
    pub(crate) fn is_news(&self, index: usize, since: u64, now: Now) -> bool {
        let known = self.loads.get(index).zip(self.histories.get(index));
        known.is_some_and(|(load, past)| is_news(load, past, since, now))
    }

    /// Folds in what another worker knew.
    pub(crate) fn hear(&mut self, index: usize, entry: &LoadEntry) {
        if let Some(load) = self.loads.get_mut(index)
            && let Some(past) = self.histories.get_mut(index)
        {
            hear(load, past, &self.clock, &self.service.middle, entry);
        }
    }

    /// `(active + 1)^bias / weight`.
    #[inline]
    pub(crate) fn burden(&self, index: u32) -> f64 {
        let bias = self.policy.active_request_bias;
        self.load(index).map_or(f64::INFINITY, |load| load.burden(bias))
    }

    pub(crate) fn grains(&self, index: u32) -> u64 {
        let grains = self.grains.get(index as usize).copied().unwrap_or(0);
        // Weight 0 takes part in a panic, with the least share.
        if self.panics() { grains.max(crate::slow_start::GRAINS) } else { grains }
    }

    pub(crate) const fn choices(&self) -> usize {
        self.policy.choice_count as usize
    }
}
