//! The choice of endpoints for a request whose service has a table.

use pintle_balance::{Balancer, Choice, Nothing, Picks, Policy, Request, Sticky, Want, Wants};
use pintle_hostcalls::{self as host, Level};
use pintle_policy::{Select, Via};

use super::question::Question;
use super::{Entry, Exchange, Known, Refusal, Routing, Sent};
use crate::boundary::Proxy;
use crate::counters::Count;
use crate::service::Service;
use crate::worker::Local;

/// What `retry-after` says where every endpoint is full, in seconds: the shortest there is.
const FULL_WAIT: u64 = 1;

/// A cookie or header for the response, which its route adds from filter state.
struct Pinned {
    state: &'static str,
    value: String,
}

impl<P: Proxy> Exchange<P> {
    pub(super) fn choose(
        &mut self,
        local: &mut Local,
        known: &Known,
        select: &Select,
        headers: &P::Headers,
    ) -> Routing {
        let mut picks = Picks::new();
        let Some((choice, pinned)) = self.pick(local, known, headers, &mut picks) else {
            return Routing::Unlisted;
        };
        let routing = self.send(local, known, select, choice, &picks);
        if let Some(pinned) = pinned
            && self.proxy.set_filter_state(pinned.state, &pinned.value).is_err()
        {
            local.counters.add(Count::HostError);
        }
        routing
    }

    /// Asks the balancer, and the breaker where the balancer would send a probe. `None` where the
    /// choice is Envoy's.
    fn pick(
        &mut self,
        local: &mut Local,
        known: &Known,
        headers: &P::Headers,
        picks: &mut Picks,
    ) -> Option<(Choice, Option<Pinned>)> {
        let now = self.started;
        let policy = local.services.at(known.at)?.policy.clone();
        let shadow = policy.switches.shadow;
        let policy = &policy.select;
        let question = Question::read(policy, &self.proxy, headers);
        let key = pintle_balance::hash_key(policy, &question, &mut local.rng);
        let mut wants = Wants::read(policy, &question);
        for (selector, value) in &question.metadata {
            wants.push(Want { selector: *selector, value });
        }
        let pin = policy.sticky.as_ref().and_then(|sticky| pintle_balance::pin(sticky, &question));
        let mut request = Request {
            hash: key.hash,
            pinned: pin,
            subset: wants.as_slice(),
            may_probe: local.config.breaker && !shadow,
        };
        let mut probe = None;
        let choice = loop {
            let service = local.services.at_mut(known.at)?;
            let choice = service.balancer.pick(&request, now, &mut local.rng, picks);
            if let Some(answer) = &mut self.answer {
                answer.explain(service, &known.name, &request, choice, picks);
            }
            if shadow {
                self.shadow(local, known, choice, picks);
                return None;
            }
            self.record_choice(local, known, choice);
            if picks.failover_missed() {
                self.miss_failover(local, known);
            }
            if request.hash.is_some() {
                count_tables(local, known, picks);
            }
            let Some(first) = picks.first().filter(|_| picks.probe()) else { break choice };
            probe = local.claim_probe(&known.name, first, now);
            if probe.is_some() || picks.lose_probe() {
                break choice;
            }
            // Another worker holds the probe and there was nothing else: the same without it.
            request.may_probe = false;
        };
        self.keep_list(local, known, picks, probe);
        let cookie = key.set_cookie.map(|value| Pinned { state: "pintle_set_cookie", value });
        let balancer = &local.services.at(known.at)?.balancer;
        Some((choice, cookie.or_else(|| new_pin(policy, balancer, picks))))
    }

    fn record_choice(&mut self, local: &mut Local, known: &Known, choice: Choice) {
        match choice {
            Choice::Eligible { candidates } => {
                self.decided.candidates = Some(candidates);
                self.decided.outcome = pintle_trace::Outcome::Chosen;
            }
            Choice::Panic { candidates } => {
                self.decided.candidates = Some(candidates);
                self.decided.outcome = pintle_trace::Outcome::Panic;
                self.decided.reason = "too few endpoints are eligible";
                local.counters.add(Count::Panic);
                if let Some(service) = local.services.at_mut(known.at) {
                    service.counts.panic();
                }
            }
            Choice::None(nothing) => {
                self.decided.candidates = Some(0);
                self.decided.outcome = pintle_trace::Outcome::LocalReply;
                self.decided.reason = match nothing {
                    Nothing::Full => "every endpoint is full",
                    _ => "no endpoint is eligible",
                };
            }
        }
    }

    #[cold]
    fn miss_failover(&mut self, local: &mut Local, known: &Known) {
        const REASON: &str = "nobody eligible matches the failover";
        local.counters.add(Count::FailoverMissed);
        if self.decided.reason.is_empty() {
            self.decided.reason = REASON;
        }
        if local.services.at_mut(known.at).is_some_and(Service::is_first_miss) {
            let name = &known.name;
            host::log(Level::Warn, &format!("pintle: failover of {name} is not applied: {REASON}"));
        }
    }

    /// Keeps the list until the end.
    fn keep_list(
        &mut self,
        local: &Local,
        known: &Known,
        picks: &Picks,
        probe: Option<pintle_breaker::Ticket>,
    ) {
        let Some(service) = local.services.at(known.at) else { return };
        // By filter state one address is named, and every attempt goes there.
        let via = local.config.select.as_ref().map(|select| select.via);
        let one = picks.as_slice().first().filter(|_| via == Some(Via::OriginalDst));
        let entries = picks.as_slice().iter().enumerate().filter_map(|(position, &index)| {
            let index = usize::try_from(*one.unwrap_or(&index)).ok()?;
            let key = service.balancer.key_of(index)?;
            let ordinary = || service.ticket(index);
            let breaker = probe.filter(|_| position == 0).or_else(ordinary)?;
            Some(Entry { key, at: index, breaker })
        });
        let list: Vec<Entry> = entries.collect();
        self.sent = (!list.is_empty()).then_some(Sent {
            ticket: None,
            list,
            head: None,
            logged: Vec::new(),
        });
    }

    /// Counts the request as in flight at the first of the list, and writes the list in Envoy's
    /// form.
    fn send(
        &mut self,
        local: &mut Local,
        known: &Known,
        select: &Select,
        choice: Choice,
        picks: &Picks,
    ) -> Routing {
        let Some(service) = local.services.at_mut(known.at) else { return Routing::Unlisted };
        if choice == Choice::None(Nothing::Full) {
            local.counters.add(Count::Full);
            return Routing::Refused(Refusal::Full, FULL_WAIT);
        }
        let (Some(first), Some(sent)) = (picks.first(), &mut self.sent) else {
            service.counts.refuse();
            let wait = service.retry_after(self.started);
            local.counters.add(Count::NoEndpoint);
            return Routing::Refused(Refusal::NoEndpoint, wait);
        };
        sent.ticket = service.balancer.started(first, self.started);
        service.counts.start();
        local.list.clear();
        for index in picks.as_slice() {
            let address = usize::try_from(*index).map_or("", |index| service.address(index));
            if !local.list.is_empty() {
                local.list.push(',');
            }
            local.list.push_str(address);
            if select.via == Via::OriginalDst {
                break;
            }
        }
        Routing::Listed
    }
}

/// Counts a request with a hash that went by p2c, and a ring or table that was refused.
fn count_tables(local: &mut Local, known: &Known, picks: &Picks) {
    local.counters.add_many(Count::Unplaced, picks.table_missed().into());
    let Some(service) = local.services.at_mut(known.at) else { return };
    if picks.table_missed() {
        service.counts.misplace();
    }
    let Some(over) = service.balancer.take_refused() else { return };
    local.counters.add(Count::OverBudget);
    if service.is_first_refusal() {
        let (name, strategy) = (&known.name, service.policy.select.strategy.name());
        host::log(Level::Warn, &format!("pintle: {strategy} of {name} refused: {over}"));
    }
}

/// What the response has to pin, where the session has no endpoint yet or has left its own.
fn new_pin(policy: &Policy, balancer: &Balancer, picks: &Picks) -> Option<Pinned> {
    let pin = balancer.pin_of(picks.first()?)?;
    match policy.sticky.as_ref()? {
        _ if picks.pinned() || picks.strays() => None,
        Sticky::Cookie(cookie) => {
            Some(Pinned { state: "pintle_set_cookie", value: cookie.set(&pin.to_string()) })
        }
        Sticky::Header(_) => Some(Pinned { state: "pintle_pin", value: pin.to_string() }),
    }
}
