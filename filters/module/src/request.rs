//! One request: *read* what it says, *decide* in memory, *apply* to it; and when it is done, read how
//! it went and remember.
//!
//! Host calls of a request that goes well, with every part on:
//!
//! | when | call | count |
//! |---|---|---|
//! | headers | clock, all headers, the service's name | 3 |
//! | | the list (header or filter state) | 1 |
//! | | each trace header that changes | 0 to 3 |
//! | log | clock, code, flags, attempts, upstream service time | 5 |
//!
//! No shared data, no log line, no metric. With `trace` alone 1 where a context comes along, or 4 where the
//! trace begins here, and none at the end; one more for the first request that is not like the one before; a
//! clock more with spans; a service named by its second source costs one more. What costs more is rare: a
//! failure (its breaker's record), a probe, a sampled span, a hash key from the connection.
//!
//! Envoy's own work pushes this code out of the caches from one request to the next, so that what a request
//! costs here is how much of it is touched. Parts that not every configuration needs are kept out of line.

use std::rc::Rc;
use std::time::Duration;

use pintle_balance::{Choice, Picks, Request, RequestView, Sample, Sticky, Ticket, Want, Wants};
use pintle_breaker::classify::{
    flag, overdue, parse_grpc_timeout, parse_retry_after, parse_timeout_ms,
};
use pintle_breaker::{Outcome, Report};
use pintle_contract::{METHODS, Now};
use pintle_hostcalls::streams::Action;
use pintle_hostcalls::{self as host, Pairs};
use pintle_policy::{Config, Select, Source, Unknown, Via};
use pintle_trace::{Attempt, Decision, Direction, Edit, Kept, Ratio, Span, Spans};

mod end;
mod naming;
mod span;

use naming::{View, service_name};

use crate::counters::Count;
use crate::keys;
use crate::worker::{Shared, Worker};

/// Attempts on a span, at most: those that the exporter would write.
const MAX_ATTEMPTS: usize = 16;

/// A request on its way.
pub(crate) struct Exchange {
    worker: Shared,
    started: Now,
    method: u8,
    grpc: bool,
    /// The client's own.
    deadline: Option<Duration>,
    sent: Option<Sent>,
    trace: Option<pintle_trace::Context>,
    /// For the span, if there will be one.
    kept: Kept,
    decided: Decided,
}

/// A service that has a table: its name, and where it is among all, as long as none of them goes.
struct Known {
    name: Rc<str>,
    at: usize,
}

/// A request that an endpoint was chosen for.
struct Sent {
    /// Of the first in the list, in the balancer's books.
    ticket: Option<Ticket>,
    /// The list that Envoy got.
    list: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Names the endpoint whatever happens to the table.
    key: u64,
    breaker: pintle_breaker::Ticket,
}

/// What goes onto the span.
#[derive(Default)]
struct Decided {
    service: Option<Rc<str>>,
    candidates: Option<u32>,
    outcome: pintle_trace::Outcome,
    reason: &'static str,
}

/// What to do with the request's choice of endpoint.
enum Verdict {
    /// This list, in Envoy's form.
    Send(String),
    /// Envoy's own choice.
    Leave,
    /// 503 here, with these seconds in `retry-after`.
    Refuse(&'static str, u64),
}

/// A cookie or header for the response, which its route adds from filter state.
struct Pinned {
    state: &'static str,
    value: String,
}

impl Exchange {
    pub(crate) fn new(worker: Shared) -> Self {
        Self {
            worker,
            started: Now(0),
            method: 0,
            grpc: false,
            deadline: None,
            sent: None,
            trace: None,
            kept: Kept::default(),
            decided: Decided::default(),
        }
    }
}

impl Exchange {
    /// The headers are there.
    pub(crate) fn arrive(&mut self) -> Action {
        let shared = self.worker.clone();
        let Ok(mut worker) = shared.try_borrow_mut() else { return Action::Continue };
        let config = worker.config.clone();
        if config.select.is_some() || config.exports() {
            self.started = host::now();
        }
        if self.begin(&mut worker, &config) {
            return Action::Continue;
        }
        let Ok(headers) = host::request_headers() else {
            worker.counters.add(Count::HostError);
            return Action::Continue;
        };
        let known = !worker.services.is_empty() || config.traces_by_service();
        let named = (known || config.select.is_some())
            .then(|| service_name(&config.sources, &headers))
            .flatten();
        let service = named.as_deref().and_then(|name| worker.services.get_full(name));
        let service = service.map(|(at, name, _)| Known { name: name.clone(), at });
        self.propagate(&mut worker, service.as_ref(), named.as_deref(), &headers);
        config.select.as_ref().map_or(Action::Continue, |select| {
            let verdict = self.choose(&mut worker, select, service, &headers);
            self.apply(&mut worker, select, &headers, &verdict)
        })
    }

    /// Whether there is anything to do when it is over.
    pub(crate) fn ends(&self) -> bool {
        self.sent.is_some() || self.trace.is_some_and(|trace| trace.is_recorded())
    }

    /// It is over.
    pub(crate) fn leave(&mut self) {
        let shared = self.worker.clone();
        let Ok(mut worker) = shared.try_borrow_mut() else { return };
        self.finish(&mut worker);
    }
}

impl Drop for Exchange {
    /// What goes without having been logged must not leave a request in flight behind.
    fn drop(&mut self) {
        if let Some(sent) = self.sent.take()
            && let Ok(mut worker) = self.worker.try_borrow_mut()
            && let Some(name) = &self.decided.service
            && let Some(service) = worker.services.get_mut(name)
        {
            service.ended();
            if let Some(ticket) = sent.ticket {
                service.balancer.abandoned(ticket, host::now(), None);
            }
        }
    }
}

// === The way in ===

impl Exchange {
    /// The short way for trace alone: a request without any trace header begins a trace whatever its
    /// other headers say, so they are not read, unless a span will tell of them. Whether this was it.
    ///
    /// To ask for a header that is there costs nearly what all of them do, so nobody asks as long as
    /// requests bring one.
    fn begin(&mut self, worker: &mut Worker, config: &Config) -> bool {
        let Some(trace) = &config.trace else { return config.select.is_none() };
        let policy = config.default_policy.trace;
        let probes = trace.probes();
        if config.select.is_some()
            || config.traces_by_service()
            || !worker.services.is_empty()
            || worker.traced
            || probes.is_empty()
            || (policy.ratio == Ratio::ALWAYS && trace.participates(&policy))
            || !probes.iter().all(|name| host::lacks_request_header(name.as_bytes()))
        {
            return false;
        }
        let context = edit(worker, trace, &policy, std::iter::empty());
        if context.is_recorded() {
            match host::request_headers() {
                Ok(headers) => {
                    self.kept = Kept::new(headers.iter(), &worker.edits);
                    self.read(&headers);
                }
                Err(_) => worker.counters.add(Count::HostError),
            }
        }
        self.trace = Some(context);
        true
    }

    fn propagate(
        &mut self,
        worker: &mut Worker,
        service: Option<&Known>,
        named: Option<&str>,
        headers: &Pairs,
    ) {
        let config = worker.config.clone();
        let Some(trace) = &config.trace else { return };
        let policy = service
            .and_then(|known| worker.service(known.at))
            .map_or_else(|| config.trace_policy(named), |service| service.policy.trace);
        let context = edit(worker, trace, &policy, headers.iter());
        worker.traced = !context.new_root || context.link.is_some();
        if context.is_recorded() {
            self.kept = Kept::new(headers.iter(), &worker.edits);
            self.read(headers);
        }
        self.trace = Some(context);
    }

    #[inline(never)]
    fn choose(
        &mut self,
        worker: &mut Worker,
        select: &Select,
        service: Option<Known>,
        headers: &Pairs,
    ) -> Verdict {
        let Some(known) = service else {
            worker.counters.add(Count::UnknownService);
            self.decided.outcome = pintle_trace::Outcome::Fallback;
            self.decided.reason = "no table";
            return match select.unknown {
                Unknown::Pass => Verdict::Leave,
                Unknown::Reject => {
                    self.decided.outcome = pintle_trace::Outcome::LocalReply;
                    Verdict::Refuse("no-table", 1)
                }
            };
        };
        self.decided.service = Some(known.name.clone());
        self.read(headers);
        let mut picks = Picks::new();
        let pinned = self.pick(worker, &known, headers, &mut picks);
        let verdict = self.book(worker, &known, select, &picks);
        if let Some(pinned) = pinned
            && host::set_filter_state(pinned.state.as_bytes(), pinned.value.as_bytes()).is_err()
        {
            worker.counters.add(Count::HostError);
        }
        verdict
    }

    fn read(&mut self, headers: &Pairs) {
        for (name, value) in headers.iter() {
            match name {
                b":method" => {
                    let known = METHODS.iter().position(|method| method.as_bytes() == value);
                    let other = METHODS.len().saturating_sub(1);
                    self.method = u8::try_from(known.unwrap_or(other)).unwrap_or_default();
                }
                b"content-type" => self.grpc = is_grpc(value),
                b"grpc-timeout" => self.limit(parse_grpc_timeout(value)),
                b"x-envoy-expected-rq-timeout-ms" | b"x-envoy-upstream-rq-timeout-ms" => {
                    self.limit(parse_timeout_ms(value));
                }
                _ => {}
            }
        }
    }

    fn limit(&mut self, deadline: Option<Duration>) {
        self.deadline = self.deadline.into_iter().chain(deadline).min();
    }

    /// Asks the balancer, and the breaker where the balancer would send a probe.
    fn pick(
        &mut self,
        worker: &mut Worker,
        known: &Known,
        headers: &Pairs,
        picks: &mut Picks,
    ) -> Option<Pinned> {
        let now = self.started;
        let service = worker.service(known.at)?;
        let rules = service.policy.clone();
        let policy = &rules.select;
        let view = View::read(policy, headers);
        let key = pintle_balance::hash_key(policy, &view, &mut worker.dice);
        let mut wants = Wants::read(policy, &view);
        for (selector, value) in &view.route {
            wants.push(Want { selector: *selector, value });
        }
        let pin = policy.sticky.as_ref().and_then(|sticky| pintle_balance::pin(sticky, &view));
        let mut request = Request {
            hash: key.hash,
            pinned: pin,
            subset: wants.as_slice(),
            may_probe: worker.config.breaker,
        };
        let mut probe = None;
        loop {
            let (_, service) = worker.services.get_index_mut(known.at)?;
            let choice = service.balancer.pick(&request, now, &mut worker.dice, picks);
            self.note(worker, known, choice);
            if !picks.probe() {
                break;
            }
            let first = picks.first()?;
            probe = worker.sync_breaker(&known.name, first, true, now);
            if probe.is_some() || picks.lose_probe() {
                break;
            }
            // Another worker holds the probe and there was nothing else: the same without it.
            request.may_probe = false;
        }
        self.list(worker, known, picks, probe);

        if let Some(cookie) = key.set_cookie {
            return Some(Pinned { state: "pintle_set_cookie", value: cookie });
        }
        let service = worker.service(known.at)?;
        let pin = service.balancer.pin_of(picks.first()?)?;
        match policy.sticky.as_ref()? {
            _ if picks.pinned() => None,
            Sticky::Cookie(cookie) => {
                Some(Pinned { state: "pintle_set_cookie", value: cookie.set(&pin.to_string()) })
            }
            Sticky::Header(_) => Some(Pinned { state: "pintle_pin", value: pin.to_string() }),
        }
    }

    fn note(&mut self, worker: &mut Worker, known: &Known, choice: Choice) {
        match choice {
            Choice::Eligible { candidates } => {
                self.decided.candidates = Some(candidates);
                self.decided.outcome = pintle_trace::Outcome::Chosen;
            }
            Choice::Panic { candidates } => {
                self.decided.candidates = Some(candidates);
                self.decided.outcome = pintle_trace::Outcome::Panic;
                self.decided.reason = "too few endpoints are eligible";
                worker.counters.add(Count::Panic);
                if let Some((_, service)) = worker.services.get_index_mut(known.at) {
                    service.panicked();
                }
            }
            Choice::None(_) => {
                self.decided.candidates = Some(0);
                self.decided.outcome = pintle_trace::Outcome::LocalReply;
                self.decided.reason = "no endpoint is eligible";
            }
        }
    }

    /// Remembers the list for the log.
    fn list(
        &mut self,
        worker: &Worker,
        known: &Known,
        picks: &Picks,
        probe: Option<pintle_breaker::Ticket>,
    ) {
        let Some(service) = worker.service(known.at) else { return };
        // By filter state one address is named, and every attempt goes there.
        let via = worker.config.select.as_ref().map(|select| select.via);
        let one = picks.as_slice().first().filter(|_| via == Some(Via::OriginalDst));
        let entries = picks.as_slice().iter().enumerate().filter_map(|(position, &index)| {
            let index = usize::try_from(*one.unwrap_or(&index)).ok()?;
            let key = service.balancer.key_of(index)?;
            let ordinary = || service.mirror(index).map(|mirror| mirror.record().ticket());
            let breaker = probe.filter(|_| position == 0).or_else(ordinary)?;
            Some(Entry { key, breaker })
        });
        let list: Vec<Entry> = entries.collect();
        self.sent = (!list.is_empty()).then_some(Sent { ticket: None, list });
    }

    /// Books the request with the balancer and writes the list in Envoy's form.
    fn book(
        &mut self,
        worker: &mut Worker,
        known: &Known,
        select: &Select,
        picks: &Picks,
    ) -> Verdict {
        let Some((_, service)) = worker.services.get_index_mut(known.at) else {
            return Verdict::Leave;
        };
        let (Some(first), Some(sent)) = (picks.first(), &mut self.sent) else {
            service.refused();
            let wait = service.retry_after(self.started);
            worker.counters.add(Count::NoEndpoint);
            return Verdict::Refuse("no-endpoint", wait);
        };
        sent.ticket = service.balancer.started(first, self.started);
        service.sent();
        let mut text = String::with_capacity(72);
        for index in picks.as_slice() {
            let address = usize::try_from(*index).map_or("", |index| service.address(index));
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(address);
            if select.via == Via::OriginalDst {
                break;
            }
        }
        Verdict::Send(text)
    }

    #[inline(never)]
    fn apply(
        &mut self,
        worker: &mut Worker,
        select: &Select,
        headers: &Pairs,
        verdict: &Verdict,
    ) -> Action {
        let header = select.header.as_bytes();
        let spoofed = headers.get(header).is_some();
        if spoofed {
            worker.counters.add(Count::SpoofedHeader);
        }
        let done = match (verdict, select.via) {
            (Verdict::Send(list), Via::OverrideHost) => {
                host::set_request_header(header, list.as_bytes())
            }
            (Verdict::Send(address), Via::OriginalDst) => set_original_dst(address),
            (Verdict::Leave, _) if spoofed => host::remove_request_header(header),
            (Verdict::Leave, _) => Ok(()),
            (Verdict::Refuse(reason, wait), _) => return refuse(worker, reason, *wait),
        };
        if done.is_err() {
            worker.counters.add(Count::HostError);
        }
        Action::Continue
    }
}

/// Decides the request's context and changes its headers accordingly.
fn edit<'a>(
    worker: &mut Worker,
    trace: &pintle_trace::Config,
    policy: &pintle_trace::Policy,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> pintle_trace::Context {
    let Worker { dice, edits, counters, .. } = worker;
    let context = pintle_trace::propagate(trace, policy, headers, dice, edits);
    for edit in edits.iter() {
        let done = match edit {
            Edit::Set { name, value } => host::set_request_header(name.as_bytes(), value),
            Edit::Remove { name } => host::remove_request_header(name.as_bytes()),
        };
        if done.is_err() {
            counters.add(Count::HostError);
        }
    }
    context
}

/// Whether this content type is gRPC; gRPC-Web, whose status stands in the body, is none.
fn is_grpc(value: &[u8]) -> bool {
    let rest = value.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Filter state that `ORIGINAL_DST` clusters read; no header, so nothing a client could send.
fn set_original_dst(address: &str) -> host::Result<()> {
    const KEY: &[u8] = b"envoy.network.transport_socket.original_dst_address";
    // SetEnvoyFilterStateArguments {path = 1, value = 2, span = 3 (0: the filter chain)}.
    let mut arguments = Vec::with_capacity(96);
    for (tag, text) in [(0x0a, KEY), (0x12, address.as_bytes())] {
        arguments.push(tag);
        arguments.push(u8::try_from(text.len()).unwrap_or_default());
        arguments.extend_from_slice(text);
    }
    arguments.extend_from_slice(&[0x18, 0]);
    host::call_foreign_function("set_envoy_filter_state", &arguments).map(drop)
}

fn refuse(worker: &mut Worker, reason: &'static str, wait: u64) -> Action {
    const UNAVAILABLE: i32 = 14;
    let wait = wait.to_string();
    let headers: [(&[u8], &[u8]); 2] =
        [(b"retry-after", wait.as_bytes()), (b"x-pintle-reason", reason.as_bytes())];
    match host::send_local_response(503, "pintle", &headers, b"", UNAVAILABLE) {
        Ok(()) => Action::Pause,
        Err(_) => {
            worker.counters.add(Count::HostError);
            Action::Continue
        }
    }
}
