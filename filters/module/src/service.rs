//! One service as this VM knows it: its table, who is eligible, and what was counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::LazyLock;

use pintle_balance::{Balancer, Demand, Hold, LoadEntry, Memory, Moves, Verdict};
use pintle_breaker::{Mirror, Need, State, Ticket};
use pintle_contract::{
    BreakerState, Endpoint, EndpointReport, Force, Load, Now, Opinion, Patch, ServiceReport, Table,
    Version,
};
use pintle_policy::Policy;

mod counts;
mod looks;

use counts::Counts;
use looks::Looks;

/// The fleet, for the balancer a worker like any other; no worker has this number.
const FLEET: u32 = u32::MAX;
/// The failure score, in thousandths, of an endpoint that the fleet advises against. With the
/// default penalty it costs six times as much, and so only looks go there; one that fails decides.
const ADVISED_MILLI: u32 = 100;
/// Endpoints whose counts are kept after they have gone, at most; of more, all are forgotten.
const MAX_REMOVED: usize = 100;

/// One service.
pub(crate) struct Service {
    pub(crate) version: Version,
    /// Shared, because a request reads it while the service changes.
    pub(crate) policy: Rc<Policy>,
    pub(crate) balancer: Balancer,
    pub(crate) counts: Counts,
    pub(crate) looks: Looks,
    /// By index, as the balancer's.
    members: Vec<Member>,
    /// Requests and failures of endpoints that are gone: what is reported of one that comes back
    /// goes on from there.
    removed: BTreeMap<String, (u64, u64)>,
    /// Indices whose breaker is not closed, or was not when last looked at.
    tripped: BTreeSet<usize>,
    /// Indices whose breaker time or the table may change: of thousands that never failed, or did
    /// long ago, ticks look at none.
    watched: BTreeSet<usize>,
    /// Whether nobody is eligible and panic is off, so that whoever is open is tried before its
    /// time. Of the service, not of a subset: the others' requests would carry its probes.
    last_resort: bool,
    /// Whether a failover that was not applied has been told since the table came.
    told_miss: bool,
    /// Whether a ring or table that was refused has been.
    told_over: bool,
    /// What the endpoints hold of the budget.
    hold: Option<Hold>,
    /// Whether there was no load to tell, and no request has come since.
    at_rest: bool,
}

/// The breaker of an endpoint of which nothing was ever observed or said.
static UNTOUCHED: LazyLock<Mirror> = LazyLock::new(Mirror::default);

/// An endpoint beside its load, which the balancer keeps.
#[derive(Default)]
struct Member {
    /// Made when there is something to keep: it is five times as large as all the rest.
    breaker: Option<Box<Mirror>>,
    at: Option<SocketAddr>,
    /// `ip:port`, as Envoy wants to read it.
    address: String,
    opinion: Option<Opinion>,
    force: Option<Force>,
    requests: u64,
    failures: u64,
    /// Requests, failures, requests in flight and state, as last reported.
    reported: (u64, u64, u32, BreakerState),
}

impl Member {
    fn follow(&mut self, endpoint: &Endpoint) {
        let at = endpoint.socket_addr();
        if self.at != Some(at) {
            self.at = Some(at);
            self.address = at.to_string();
        }
        self.opinion = endpoint.opinion;
        self.force = endpoint.force;
    }

    fn breaker(&self) -> &Mirror {
        self.breaker.as_deref().unwrap_or(&UNTOUCHED)
    }

    fn breaker_mut(&mut self) -> &mut Mirror {
        self.breaker.get_or_insert_default()
    }

    fn is_watched(&self) -> bool {
        !self.breaker().is_at_rest() || self.opinion.is_some() || self.force.is_some()
    }

    fn is_closed(&self) -> bool {
        self.breaker().record().state() == State::Closed
    }
}

impl Service {
    /// A service whose table is about to come.
    pub(crate) fn new(policy: Policy, balancer: Balancer) -> Self {
        Self {
            version: Version::default(),
            policy: Rc::new(policy),
            balancer,
            counts: Counts::default(),
            looks: Looks::default(),
            members: Vec::new(),
            removed: BTreeMap::new(),
            tripped: BTreeSet::new(),
            watched: BTreeSet::new(),
            last_resort: false,
            told_miss: false,
            told_over: false,
            hold: None,
            at_rest: false,
        }
    }

    /// Bytes that a table's endpoints come to here, apart from what is built of them.
    pub(crate) fn bytes(table: &Table) -> u64 {
        Demand::bytes(&table.endpoints)
    }

    /// Takes a new table, and a new policy if there is one. What was learned of an endpoint stays
    /// with its id. Returns the indices that are new.
    pub(crate) fn update(
        &mut self,
        table: &Table,
        policy: Option<Policy>,
        hold: Hold,
        zone: &str,
        now: Now,
    ) -> Vec<usize> {
        self.hold = Some(hold);
        if let Some(policy) = policy {
            self.policy = Rc::new(policy);
        }
        let moves = self.balancer.moves_to(&table.endpoints);
        let ids = moves.new_ones().filter_map(|at| table.endpoints.get(at));
        self.carry(&moves, ids.map(|endpoint| endpoint.id.as_str()));
        self.balancer.update(&self.policy.select, &table.endpoints, zone, now);
        self.version = table.version;
        self.told_miss = false;
        self.told_over = false;
        for (index, endpoint) in table.endpoints.iter().enumerate() {
            self.follow(index, endpoint);
        }
        self.counts.touch();
        moves.new_ones().collect()
    }

    /// Takes what changed of the table; returns the indices that are new. `None`: it takes the
    /// whole table, and nothing has changed.
    pub(crate) fn amend(
        &mut self,
        patch: &Patch,
        memory: &Memory,
        zone: &str,
        now: Now,
    ) -> Option<Vec<usize>> {
        let moves = self.balancer.moves_by(patch)?;
        let new = patch.endpoints.iter().filter(|it| self.balancer.index_of(&it.id).is_none());
        let new: Vec<&str> = new.map(|endpoint| endpoint.id.as_str()).collect();
        if !moves.is_none() {
            let come = new.iter().map(|id| Demand::of_endpoint(id)).sum::<u64>();
            let gone = moves.gone().filter_map(|at| self.balancer.id_of(at));
            let gone = gone.map(Demand::of_endpoint).sum();
            let bytes = self.hold.as_ref().map_or(0, Hold::bytes);
            self.hold = Some(memory.take(bytes.saturating_add(come).saturating_sub(gone)).ok()?);
        }
        self.carry(&moves, new.into_iter());
        self.balancer.amend_by(patch, &moves, zone, now);
        for endpoint in &patch.endpoints {
            if let Some(index) = self.balancer.index_of(&endpoint.id) {
                self.follow(index, endpoint);
                self.watched.insert(index);
            }
        }
        self.version = patch.version;
        self.counts.touch();
        Some(moves.new_ones().collect())
    }

    /// What is kept of endpoints by their indices, before the balancer's change; `new`: the ids of
    /// those that have come, in their order.
    fn carry<'a>(&mut self, moves: &Moves, new: impl Iterator<Item = &'a str>) {
        if self.removed.len().saturating_add(moves.gone().len()) > MAX_REMOVED {
            self.removed.clear();
        }
        let counts = moves.gone().filter_map(|at| {
            let member = self.members.get(at).filter(|member| member.requests > 0)?;
            let id = self.balancer.id_of(at)?;
            Some((id.to_owned(), (member.requests, member.failures)))
        });
        self.removed.extend(counts.take(MAX_REMOVED));
        let new = new.map(|id| {
            let (requests, failures) = self.removed.remove(id).unwrap_or_default();
            Member { requests, failures, ..Member::default() }
        });
        self.members = moves.carry(std::mem::take(&mut self.members), new);
        for set in [&mut self.tripped, &mut self.watched] {
            *set = set.iter().filter_map(|&at| moves.to(at)).collect();
        }
    }

    /// What the table says of an endpoint.
    fn follow(&mut self, index: usize, endpoint: &Endpoint) {
        let Some(member) = self.members.get_mut(index) else { return };
        member.follow(endpoint);
        if member.is_watched() {
            self.watched.insert(index);
        }
    }

    /// The endpoint's address and port; empty without such an endpoint.
    pub(crate) fn address(&self, index: usize) -> &str {
        self.members.get(index).map_or("", |member| member.address.as_str())
    }

    /// Whether the failover was not applied for the first time under this table.
    pub(crate) const fn is_first_miss(&mut self) -> bool {
        !std::mem::replace(&mut self.told_miss, true)
    }

    /// Whether a ring or table was refused for the first time under this table of endpoints.
    pub(crate) const fn is_first_refusal(&mut self) -> bool {
        !std::mem::replace(&mut self.told_over, true)
    }

    // === Breakers ===

    pub(crate) fn breaker(&self, index: usize) -> Option<&Mirror> {
        self.members.get(index).map(Member::breaker)
    }

    /// The ticket of an ordinary request that is sent now.
    #[inline]
    pub(crate) fn ticket(&self, index: usize) -> Option<Ticket> {
        let breaker = self.members.get(index)?.breaker.as_ref();
        Some(breaker.map_or_else(Ticket::default, |breaker| breaker.record().ticket()))
    }

    pub(crate) fn breaker_mut(&mut self, index: usize) -> Option<&mut Mirror> {
        self.members.get_mut(index).map(Member::breaker_mut)
    }

    pub(crate) fn breaker_state(&self, index: usize) -> BreakerState {
        match self.breaker(index).map(|breaker| breaker.record().state()) {
            None | Some(State::Closed) => BreakerState::Closed,
            Some(State::Open) => BreakerState::Open,
            Some(State::HalfOpen) => BreakerState::HalfOpen,
        }
    }

    /// Something is about to be known of an endpoint's breaker.
    pub(crate) fn watch(&mut self, index: usize) {
        self.watched.insert(index);
    }

    fn watched(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.watched.iter().filter_map(|&index| Some((index, self.members.get(index)?)))
    }

    /// The ids of the endpoints whose breakers are not closed, or not for long.
    pub(crate) fn unquiet(&self) -> impl Iterator<Item = &str> {
        let all = self.members.iter().enumerate();
        let unquiet = all.filter(|(_, member)| !member.breaker().record().is_quiet());
        unquiet.filter_map(|(index, _)| self.balancer.id_of(index))
    }

    /// The endpoints whose breakers need the shared record now: orders and opinions that came with
    /// the table, counts to be brought in, probes that may have expired.
    ///
    /// Every breaker is told what the table says, also when that is nothing: an opinion that was
    /// taken back must not count for as long as it would have.
    pub(crate) fn need_sync(&mut self, now: Now) -> Vec<usize> {
        let Self { policy, members, watched, .. } = self;
        let mut due = Vec::new();
        watched.retain(|&index| {
            let Some(member) = members.get_mut(index).filter(|it| it.is_watched()) else {
                return false;
            };
            let (opinion, force) = (member.opinion, member.force);
            let need = member.breaker_mut().overlay(opinion, force, &policy.breaker, now);
            due.extend((need == Need::Sync).then_some(index));
            member.is_watched()
        });
        due
    }

    /// Raises the cost of the endpoints that the fleet advises against; to be called with every
    /// tick, because the score decays. What is advised against everywhere costs no more than
    /// elsewhere.
    pub(crate) fn apply_advice(&mut self, now: Now) {
        let policy = &self.policy.breaker;
        let advised = self.watched().filter(|(_, m)| m.breaker().is_advised(policy, now));
        let entry = |(index, _)| {
            let key = self.balancer.key_of(index)?;
            Some(LoadEntry { key, failures_milli: ADVISED_MILLI, ..LoadEntry::default() })
        };
        let entries: Vec<LoadEntry> = advised.filter_map(entry).collect();
        if !entries.is_empty() {
            self.balancer.set_remote_load(FLEET, &entries, now);
        }
    }

    /// Gives the balancer the breakers' verdicts; to be called after any breaker changed, and once
    /// a tick while one is not closed.
    pub(crate) fn update_verdicts(&mut self, changed: Option<usize>, now: Now) {
        self.tripped.extend(changed);
        self.set_verdicts(now);
        let last_resort = !self.tripped.is_empty()
            && self.policy.select.panic_percent == 0
            && !self.balancer.has_open();
        if std::mem::replace(&mut self.last_resort, last_resort) != last_resort {
            self.set_verdicts(now);
        }
        let members = &self.members;
        self.tripped.retain(|&index| members.get(index).is_some_and(|member| !member.is_closed()));
    }

    /// Only so many open ones count as the policy lets; the others pass, or get their probe. So who
    /// is eligible does not depend on the last resort.
    fn set_verdicts(&mut self, now: Now) {
        if self.tripped.is_empty() {
            return;
        }
        let open = |&index: &usize| {
            let severity = self.breaker(index)?.record().severity()?;
            Some((severity, u32::try_from(index).ok()?))
        };
        let mut honoured: Vec<_> = self.tripped.iter().filter_map(open).collect();
        let share = self.policy.breaker.max_ejection_percent;
        pintle_breaker::honour(&mut honoured, self.members.len(), share);
        for &index in &self.tripped {
            let Some(member) = self.members.get(index) else { continue };
            // Sorted by index.
            let at = u32::try_from(index).unwrap_or(u32::MAX);
            let counts = honoured.binary_search_by_key(&at, |&(_, at)| at).is_ok();
            let verdict = if counts {
                self.verdict(member.breaker(), now)
            } else {
                member.breaker().record().verdict(&self.policy.breaker, now)
            };
            let verdict = match verdict {
                pintle_breaker::Verdict::Pass => Verdict::Pass,
                pintle_breaker::Verdict::ProbeOwed => Verdict::Probe,
                pintle_breaker::Verdict::Blocked { .. } if counts => Verdict::Blocked,
                pintle_breaker::Verdict::Blocked { .. } => Verdict::Pass,
            };
            self.balancer.set_verdict(index, verdict);
        }
    }

    fn verdict(&self, breaker: &Mirror, now: Now) -> pintle_breaker::Verdict {
        let policy = &self.policy.breaker;
        if self.last_resort {
            breaker.record().verdict_as_last_resort(policy, now)
        } else {
            breaker.record().verdict(policy, now)
        }
    }

    /// Whether a probe is to be claimed before its time.
    pub(crate) const fn is_last_resort(&self) -> bool {
        self.last_resort
    }

    /// What a local answer says in `retry-after`, in seconds.
    pub(crate) fn retry_after(&self, now: Now) -> u64 {
        let verdicts = self.members.iter().map(|member| self.verdict(member.breaker(), now));
        let open = verdicts.filter(|v| matches!(v, pintle_breaker::Verdict::Blocked { .. }));
        let limit = self.policy.breaker.retry_after;
        pintle_breaker::retry_after(open, now, limit).as_secs()
    }

    // === Load and counts ===

    /// Counts an attempt of an endpoint's.
    pub(crate) fn count_attempt(&mut self, index: usize, failed: bool) {
        if let Some(member) = self.members.get_mut(index) {
            member.requests = member.requests.saturating_add(1);
            member.failures = member.failures.saturating_add(u64::from(failed));
        }
    }

    /// Counts a failure of an attempt that was counted as good.
    pub(crate) fn count_failure(&mut self, index: usize) {
        if let Some(member) = self.members.get_mut(index) {
            member.failures = member.failures.saturating_add(1);
        }
        self.counts.touch();
    }

    /// What this worker tells the others of the load, with `all` what is older than a second, too;
    /// `None` when there is nothing to tell.
    pub(crate) fn load(&mut self, now: Now, all: bool) -> Option<Vec<Load>> {
        self.at_rest &= !self.counts.is_changed();
        if self.at_rest {
            return None;
        }
        let entry = |(_, e): (usize, LoadEntry)| Load {
            endpoint: e.key,
            in_flight: e.in_flight,
            waiting: e.waiting,
            latency_us: e.latency_us,
            failures_milli: e.failures_milli,
            sampled_at: e.sampled_at,
            retry_at: e.retry_at,
        };
        let load: Vec<Load> = self.balancer.local_load(now, all).map(entry).collect();
        self.at_rest = all && load.is_empty();
        (!self.at_rest).then_some(load)
    }

    /// What another worker told of the load.
    pub(crate) fn set_remote_load(&mut self, worker: u32, load: &[Load], now: Now) {
        let entry = |load: &Load| LoadEntry {
            key: load.endpoint,
            in_flight: load.in_flight,
            waiting: load.waiting,
            latency_us: load.latency_us,
            failures_milli: load.failures_milli,
            sampled_at: load.sampled_at,
            retry_at: load.retry_at,
        };
        let entries: Vec<LoadEntry> = load.iter().map(entry).collect();
        self.balancer.set_remote_load(worker, &entries, now);
    }

    /// The report since the VM started; `None` when nothing changed and `all` is not asked for.
    pub(crate) fn report(&mut self, service: &str, all: bool, now: Now) -> Option<ServiceReport> {
        if !self.counts.take_changed() && !all {
            return None;
        }
        let mut endpoints = Vec::new();
        for index in 0..self.members.len() {
            let state = self.breaker_state(index);
            let (in_flight, _) = self.balancer.in_flight(index);
            let (Some(member), Some(id)) =
                (self.members.get_mut(index), self.balancer.id_of(index))
            else {
                continue;
            };
            let current = (member.requests, member.failures, in_flight, state);
            let asked = all && (member.requests > 0 || state != BreakerState::Closed);
            if !asked && current == member.reported {
                continue;
            }
            member.reported = current;
            endpoints.push(EndpointReport {
                id: id.to_owned(),
                requests: member.requests,
                failures: member.failures,
                in_flight,
                latency_us: self.balancer.latency_us(index, now).unwrap_or_default().into(),
                state,
            });
        }
        Some(self.counts.report(service, endpoints))
    }
}
