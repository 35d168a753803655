//! What becomes of requests, here and in the other workers.

use std::time::Duration;

use pintle_contract::{MAX_ENDPOINTS, Now};

use super::Balancer;
use crate::clock::Clock;
use crate::load;
use crate::told::{self, LoadEntry};
use crate::types::{Sample, Ticket};

impl Balancer {
    /// A request was sent there.
    pub fn started(&mut self, index: usize, now: Now) -> Option<Ticket> {
        let (site, load) = (self.sites.get(index)?, self.field.loads.get_mut(index)?);
        load.started(now);
        self.news.note(index);
        self.active = self.active.saturating_add(1);
        let (generation, key, crowd) = (self.generation, site.key, load.active());
        let ticket = Ticket { index: index as u32, generation, key, crowd };
        if self.is_limited() {
            self.mark(index);
        }
        Some(ticket)
    }

    /// The head of its response came, or it failed before one did. From here on the request costs
    /// nothing where waiting requests are compared, however long its body streams; it is in flight
    /// until [`Self::ended`], which must follow exactly once.
    pub fn answered(&mut self, ticket: Ticket, now: Now, sample: Sample) {
        self.field.tick(now);
        if let Some(index) = self.resolve(ticket) {
            self.field.loads.get_mut(index).into_iter().for_each(|load| load.answered(now));
            self.sampled(index, now, sample);
            self.learn_limit(index, ticket, sample.latency, sample.failed);
        }
    }

    /// The exchange is over whose head was told by [`Self::answered`].
    pub fn ended(&mut self, ticket: Ticket) {
        let index = self.resolve(ticket);
        if let Some(index) = index
            && let Some(load) = self.field.loads.get_mut(index)
        {
            load.ended();
            self.active = self.active.saturating_sub(1);
            if self.is_limited() {
                self.mark(index);
            }
        }
    }

    /// [`Self::answered`] and [`Self::ended`] in one, where nothing was told at the head.
    pub fn finished(&mut self, ticket: Ticket, now: Now, sample: Sample) {
        self.answered(ticket, now, sample);
        self.ended(ticket);
    }

    /// Nobody waited for the head: the client went away after `waited`, when that is known. Stands
    /// in place of [`Self::finished`].
    pub fn abandoned(&mut self, ticket: Ticket, now: Now, waited: Option<Duration>) {
        self.field.tick(now);
        let index = self.resolve(ticket);
        if let Some(index) = index
            && let Some(load) = self.field.loads.get_mut(index)
            && let Some(past) = self.field.histories.get_mut(index)
        {
            load.given_up();
            if let Some(waited) = waited {
                load::observe_at_least(load, past, &self.field.clock, &self.field.service, waited);
            }
            self.learn_limit(index, ticket, waited, true);
        }
        self.ended(ticket);
    }

    /// What became of an attempt that was not [`Self::started`], one that Envoy retried; or,
    /// without a latency, of a response that failed after its head.
    pub fn observed(&mut self, index: usize, now: Now, sample: Sample) {
        self.field.tick(now);
        self.news.note(index);
        self.sampled(index, now, sample);
    }

    fn sampled(&mut self, index: usize, now: Now, sample: Sample) {
        self.field.observe(index, sample.latency, sample.failed);
        if let Some(wish) = sample.retry_after
            && let Some(load) = self.field.loads.get_mut(index)
            && let Some(past) = self.field.histories.get_mut(index)
        {
            load::leave_alone(load, past, &self.field.clock, now.after(wish).0);
        }
    }

    /// Where the ticket's endpoint stands now; `None` when it left, or left and came back.
    #[must_use]
    pub fn resolve(&self, ticket: Ticket) -> Option<usize> {
        if ticket.generation == self.generation {
            return Some(ticket.index as usize);
        }
        let index = self.by_key(ticket.key)?;
        let born = self.sites.get(index)?.born;
        // Serial-number comparison: generations may wrap.
        (ticket.generation.wrapping_sub(born) < 1 << 31).then_some(index)
    }

    /// What this worker has to tell the others, as of `now`, with the index of each, in no order:
    /// endpoints with requests in flight, or sampled within a second. With `all` those sampled
    /// within the decay time, for who has come or missed it.
    pub fn local_load(
        &mut self,
        now: Now,
        all: bool,
    ) -> impl Iterator<Item = (usize, LoadEntry)> + '_ {
        let clock = Clock { now: now.0, ..self.field.clock };
        let Self { news, field, sites, .. } = self;
        let [recent, decay] = [false, true].map(|all| told::since(&clock, all));
        if all {
            // What is fresh is news, however short the decay time is.
            let older = decay.min(recent);
            news.age(|at| field.is_news(at, older, now), |at| field.is_news(at, recent, now));
        }
        let since = if all { decay } else { recent };
        let (news, field) = (&*news, &*field);
        let told = news.iter(all).filter(move |&at| field.is_news(at, since, now));
        told.filter_map(move |at| {
            let (load, past) = (field.loads.get(at)?, field.histories.get(at)?);
            Some((at, told::tell(load, past, sites.get(at)?.key, &clock)))
        })
    }

    /// What an answer takes there, µs, where one came within the decay time or is waited for.
    #[must_use]
    pub fn latency_us(&self, index: usize, now: Now) -> Option<u32> {
        let clock = Clock { now: now.0, ..self.field.clock };
        let load = self.field.loads.get(index)?;
        let is_news = self.field.is_news(index, told::since(&clock, true), now);
        is_news.then_some(told::micros(load))
    }

    /// What `worker` knows. Replaces what it told before: an endpoint it no longer names
    /// has nothing in flight there.
    pub fn set_remote_load(&mut self, worker: u32, entries: &[LoadEntry], now: Now) {
        self.field.tick(now);
        let entries = entries.get(..MAX_ENDPOINTS).unwrap_or(entries);
        if self.workers.told(worker, entries) {
            self.field.service.middle.seed(entries.iter().map(|entry| entry.latency_us));
            let recent = told::since(&self.field.clock, false);
            for entry in entries {
                if let Some(i) = self.by_key(entry.key) {
                    self.field.hear(i, entry);
                    if self.field.is_news(i, recent, now) {
                        self.news.note(i);
                    } else {
                        self.news.note_old(i);
                    }
                }
            }
            self.field.many = self.workers.len() > 1;
            self.spread_told();
        }
    }

    /// Forgets what a vanished worker had in flight; what it taught of latencies decays by itself.
    pub fn remove_worker(&mut self, worker: u32) {
        if self.workers.remove(worker) {
            self.field.many = self.workers.len() > 1;
            self.spread_told();
        }
    }

    /// Counts the other workers' requests, after the table changed.
    pub(super) fn spread_remote(&mut self) {
        self.elsewhere = (0..u32::MAX).take(self.field.loads.len()).collect();
        self.active = self.field.loads.iter().map(|l| u64::from(l.active())).sum();
        self.spread_told();
    }

    /// The same after one of them told of its own: where none had any and none has, nothing is
    /// done.
    fn spread_told(&mut self) {
        for at in self.elsewhere.drain(..) {
            if let Some(load) = self.field.loads.get_mut(at as usize) {
                self.active = self.active.saturating_sub(load.elsewhere.into());
                (load.elsewhere, load.sharers) = (0, 0);
            }
        }
        for remote in self.workers.all() {
            let at = self.by_key.partition_point(|&(k, _)| k < remote.key);
            if let Some(&(_, i)) = self.by_key.get(at).filter(|&&(k, _)| k == remote.key)
                && let Some(load) = self.field.loads.get_mut(i as usize)
            {
                self.active = self.active.saturating_add(remote.in_flight.into());
                load.elsewhere = load.elsewhere.saturating_add(remote.in_flight);
                load.sharers = load.sharers.saturating_add(1);
                self.elsewhere.push(i);
            }
        }
        if self.is_limited() {
            (0..self.sites.len()).for_each(|index| self.mark(index));
        }
    }
}
