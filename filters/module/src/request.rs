//! One request: *read* what it says, *decide* in memory, *apply* to it; when the head of its
//! response passes, take that for the answer; and when it is done, read how it ended and remember.
//!
//! Host calls of a request that goes well, with every part on:
//!
//! | when | call | count |
//! |---|---|---|
//! | headers | clock, all headers, the service's name | 3 |
//! | | the list (header or filter state) | 1 |
//! | | each trace header that changes | 0 to 3 |
//! | head | clock, status, attempts | 3 |
//! | end | flags | 1 |
//!
//! No shared data, no log line, no metric. With `trace` alone 1 where a context comes along, or 4
//! where the trace begins here, and none at the end; one more for the first request that is not
//! like the one before; a clock more with spans; a service named by its second source costs one
//! more; a gRPC call three, which ask for its status and for `retry-after`. What costs more is
//! rare: a failure (its breaker's record), a probe, a sampled span, a hash key from the connection.
//!
//! Envoy's own work pushes this code out of the caches from one request to the next, so that what a
//! request costs here is how much of it is touched. Parts that not every configuration needs are
//! kept out of line.

use std::rc::Rc;

use pintle_balance::Ticket;
use pintle_breaker::{Logged, Outcome, Retries};
use pintle_contract::Now;
use pintle_hostcalls::streams::Action;
use pintle_policy::{Config, Select, Unknown, Via};
use pintle_trace::{Edit, Kept, Ratio};

mod attempt;
mod charge;
mod choice;
mod debug;
mod end;
mod head;
mod question;
mod said;
mod shadow;
mod span;
mod wait;

pub(crate) use attempt::RequestId;
use debug::Answer;
use head::Head;
use question::{Named, named};
use said::Said;
use shadow::Shadow;
use wait::Wait;

use crate::boundary::{Headers, LocalResponse, Proxy};
use crate::counters::Count;
use crate::worker::{Local, Shared};

/// A request on its way.
pub(crate) struct Exchange<P: Proxy> {
    proxy: P,
    worker: Shared,
    started: Now,
    said: Said,
    id: Option<RequestId>,
    sent: Option<Sent>,
    /// The table that it waits for.
    wait: Option<Box<Wait>>,
    /// Where the choice is only compared with Envoy's.
    shadow: Option<Shadow>,
    /// What is told of the choice, where anybody may ask.
    answer: Option<Box<Answer>>,
    trace: Option<pintle_trace::Context>,
    /// For the span, if there will be one.
    kept: Kept,
    decided: Decided,
    /// The gRPC status of the response's headers or trailers.
    grpc_status: Option<u32>,
}

/// A service that has a table: its name, and where it was among all when the request came.
#[derive(Clone)]
struct Known {
    name: Rc<str>,
    at: usize,
}

/// A request that endpoints were chosen for.
struct Sent {
    /// Of the first in the list, at the balancer's; until the balancer has been told that it is
    /// over.
    ticket: Option<Ticket>,
    /// The list that Envoy got.
    list: Vec<Entry>,
    /// The head of an endpoint's response, once it has passed.
    head: Option<Head>,
    /// The attempts that the router has logged, until they are charged.
    logged: Vec<Logged>,
}

/// One entry of the list.
#[derive(Clone, Copy)]
struct Entry {
    /// Names the endpoint whatever happens to the table.
    key: u64,
    /// Where it was in the table when it was chosen.
    at: usize,
    breaker: pintle_breaker::Ticket,
}

/// What goes onto the span.
#[derive(Default)]
struct Decided {
    service: Option<Known>,
    candidates: Option<u32>,
    outcome: pintle_trace::Outcome,
    reason: &'static str,
}

/// Where the request goes.
enum Routing {
    /// To the endpoints of [`Local::list`].
    Listed,
    /// Where Envoy chooses.
    Unlisted,
    /// Nowhere: 503, with these seconds in `retry-after`.
    Refused(Refusal, u64),
}

/// Why a request is answered here.
#[derive(Clone, Copy)]
enum Refusal {
    /// Its service has no table.
    NoTable,
    /// No endpoint is eligible.
    NoEndpoint,
    /// Every endpoint is full.
    Full,
}

impl Refusal {
    /// What `x-pintle-reason` says.
    const fn reason(self) -> &'static [u8] {
        match self {
            Self::NoTable => b"no-table",
            Self::NoEndpoint => b"no-endpoint",
            Self::Full => b"full",
        }
    }

    /// What a gRPC client gets: `UNAVAILABLE` or, of what is only full, `RESOURCE_EXHAUSTED`.
    const fn grpc_status(self) -> i32 {
        match self {
            Self::NoTable | Self::NoEndpoint => 14,
            Self::Full => 8,
        }
    }
}

impl Sent {
    /// Whether the balancer was told that the first in the list has answered, or has failed to.
    fn is_answered(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.outcome != Outcome::Ignored)
    }
}

impl<P: Proxy> Exchange<P> {
    pub(crate) fn new(proxy: P, worker: Shared) -> Self {
        Self {
            proxy,
            worker,
            started: Now(0),
            said: Said::default(),
            id: None,
            sent: None,
            wait: None,
            shadow: None,
            answer: None,
            trace: None,
            kept: Kept::default(),
            decided: Decided::default(),
            grpc_status: None,
        }
    }

    /// The request's headers pass. `None` where the worker is in the middle of something else.
    pub(crate) fn on_request_headers(&mut self) -> Option<Action> {
        let shared = self.worker.clone();
        let mut worker = shared.try_borrow_mut().ok()?;
        let action = self.decide(&mut worker.local);
        worker.deliver();
        Some(action)
    }

    /// Whether there is anything to do when it is over.
    pub(crate) fn has_end(&self) -> bool {
        self.sent.is_some() || self.answer.is_some() || self.is_recorded()
    }

    fn is_recorded(&self) -> bool {
        self.trace.is_some_and(|trace| trace.is_recorded())
    }

    /// The response's headers pass. `None` where the worker is in the middle of something else.
    pub(crate) fn on_response_headers(&mut self) -> Option<()> {
        if self.said.grpc {
            self.grpc_status = grpc_status(self.proxy.response_header("grpc-status"));
        }
        if let Some(answer) = &self.answer {
            answer.write(&self.proxy, &self.decided);
        }
        if self.sent.is_none() {
            return Some(());
        }
        let shared = self.worker.clone();
        let mut worker = shared.try_borrow_mut().ok()?;
        self.answered(&mut worker.local);
        worker.deliver();
        Some(())
    }

    /// The response's trailers pass.
    pub(crate) fn on_response_trailers(&mut self) {
        if self.said.grpc {
            let trailer = grpc_status(self.proxy.response_trailer("grpc-status"));
            self.grpc_status = trailer.or(self.grpc_status);
        }
    }

    /// The stream is over. `None` where the worker is in the middle of something else.
    pub(crate) fn on_end(&mut self) -> Option<()> {
        let shared = self.worker.clone();
        let mut worker = shared.try_borrow_mut().ok()?;
        self.finish(&mut worker.local);
        worker.deliver();
        Some(())
    }
}

impl<P: Proxy> Drop for Exchange<P> {
    /// What goes without an end must not leave a request in flight behind.
    fn drop(&mut self) {
        if let Some(sent) = self.sent.take()
            && let Ok(mut worker) = self.worker.try_borrow_mut()
            && let Some(at) = self.service_at(&worker.local)
            && let Some(service) = worker.local.services.at_mut(at)
        {
            service.counts.end();
            match sent.ticket {
                Some(ticket) if sent.is_answered() => service.balancer.ended(ticket),
                Some(ticket) => service.balancer.abandoned(ticket, self.proxy.now(), None),
                None => {}
            }
        }
    }
}

// === The way in ===

impl<P: Proxy> Exchange<P> {
    fn decide(&mut self, local: &mut Local) -> Action {
        let config = Rc::clone(&local.config);
        if config.select.is_some() || config.exports() {
            self.started = self.proxy.now();
            local.clock = self.started;
        }
        if self.begin_trace_unread(local, &config) {
            return Action::Continue;
        }
        let Some(headers) = self.proxy.request_headers() else {
            local.counters.add(Count::HostError);
            return Action::Continue;
        };
        let known = local.has_services() || config.traces_by_service();
        let named = (known || config.select.is_some())
            .then(|| named(&config.sources, &self.proxy, &headers))
            .flatten();
        let name = named.as_ref().map(|named| named.name.as_str());
        let service = name.and_then(|name| local.find(name));
        let service = service.map(|(at, name)| Known { name, at });
        if service.is_none()
            && local.wants.is_open()
            && self.await_table(local, config.select.as_ref(), named.as_ref())
        {
            return Action::Pause;
        }
        if config.debug.is_some() {
            self.answer = Answer::begin(&config, local, &self.proxy, &headers).map(Box::new);
        }
        self.hear(local, service.as_ref(), name, &headers);
        config.select.as_ref().map_or(Action::Continue, |select| {
            let routing = match service {
                Some(known) => self.route(local, select, &known, &headers),
                None => self.route_unknown(local, select, named.as_ref()),
            };
            self.apply(local, select, &routing)
        })
    }

    /// The short way for trace alone: a request without any trace header begins a trace whatever
    /// its other headers say, so they are not read, unless a span will tell of them. Whether it was
    /// taken.
    ///
    /// To ask for a header that is there costs nearly what all of them do, so nobody asks as long
    /// as requests bring one.
    fn begin_trace_unread(&mut self, local: &mut Local, config: &Config) -> bool {
        let Some(trace) = &config.trace else { return config.select.is_none() };
        let policy = config.default_policy.trace;
        let probes = trace.probes();
        if config.select.is_some()
            || config.traces_by_service()
            || local.has_services()
            || local.tracer.continued
            || config.debug.is_some()
            || probes.is_empty()
            || (policy.ratio == Ratio::ALWAYS && trace.participates(&policy))
            || !probes.iter().all(|name| self.proxy.lacks_request_header(name))
        {
            return false;
        }
        let context = self.edit(local, trace, &policy, std::iter::empty());
        if context.is_recorded() {
            match self.proxy.request_headers() {
                Some(headers) => {
                    self.kept = Kept::new(headers.iter(), &local.tracer.edits);
                    let said = |(name, value)| self.said.hear(None, name, value);
                    headers.iter().for_each(said);
                }
                None => local.counters.add(Count::HostError),
            }
        }
        self.trace = Some(context);
        true
    }

    /// Hears the headers in one walk, and propagates the trace that they bring.
    fn hear(
        &mut self,
        local: &mut Local,
        service: Option<&Known>,
        named: Option<&str>,
        headers: &P::Headers,
    ) {
        let config = Rc::clone(&local.config);
        let list = config.select.as_ref().map(|select| select.header.as_bytes());
        let mut said = Said::default();
        let heard = headers.iter().inspect(|(name, value)| said.hear(list, name, value));
        match &config.trace {
            Some(trace) => {
                let policy = service
                    .and_then(|known| local.services.at(known.at))
                    .map_or_else(|| config.trace_policy(named), |service| service.policy.trace);
                let context = self.edit(local, trace, &policy, heard);
                local.tracer.continued = !context.new_root || context.link.is_some();
                self.trace = Some(context);
            }
            None => heard.for_each(drop),
        }
        self.said = said;
        if self.is_recorded() {
            self.kept = Kept::new(headers.iter(), &local.tracer.edits);
        }
    }

    /// Decides the request's trace context and changes its headers accordingly.
    fn edit<'a>(
        &self,
        local: &mut Local,
        trace: &pintle_trace::Config,
        policy: &pintle_trace::Policy,
        headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> pintle_trace::Context {
        let Local { rng, tracer, counters, .. } = local;
        let context = pintle_trace::propagate(trace, policy, headers, rng, &mut tracer.edits);
        for edit in tracer.edits.iter() {
            let done = match edit {
                Edit::Set { name, value } => self.proxy.set_request_header(name, value),
                Edit::Remove { name } => self.proxy.remove_request_header(name),
            };
            if done.is_err() {
                counters.add(Count::HostError);
            }
        }
        context
    }

    #[inline(never)]
    fn route(
        &mut self,
        local: &mut Local,
        select: &Select,
        known: &Known,
        headers: &P::Headers,
    ) -> Routing {
        self.decided.service = Some(known.clone());
        if local.services.at(known.at).is_some_and(|service| service.policy.switches.bypass) {
            local.counters.add(Count::Bypassed);
            self.decided.outcome = pintle_trace::Outcome::Fallback;
            self.decided.reason = "bypass";
            return Routing::Unlisted;
        }
        let retries = local.services.at(known.at).map(|service| service.policy.breaker.retries);
        if retries == Some(Retries::Logged) {
            self.id = headers.get(b"x-request-id").map(RequestId::of);
        }
        self.choose(local, known, select, headers)
    }

    /// Of a service without a table, or of what is for no service of ours: another cluster, a
    /// redirect, an answer of the route's own.
    #[inline(never)]
    fn route_unknown(
        &mut self,
        local: &mut Local,
        select: &Select,
        named: Option<&Named>,
    ) -> Routing {
        local.counters.add(Count::UnknownService);
        self.decided.outcome = pintle_trace::Outcome::Fallback;
        self.decided.reason = "no table";
        let claimed = named.is_some_and(|named| named.claimed);
        // Where the route answers itself, Envoy has no cluster.
        let routed = || self.proxy.cluster().is_some_and(|cluster| !cluster.is_empty());
        if select.unknown == Unknown::Pass || !claimed || !routed() {
            return Routing::Unlisted;
        }
        self.decided.outcome = pintle_trace::Outcome::LocalReply;
        Routing::Refused(Refusal::NoTable, 1)
    }

    #[inline(never)]
    fn apply(&self, local: &mut Local, select: &Select, routing: &Routing) -> Action {
        let spoofed = self.said.spoofed;
        if spoofed {
            local.counters.add(Count::SpoofedHeader);
        }
        let done = match (routing, select.via) {
            (Routing::Listed, Via::OverrideHost) => {
                self.proxy.set_request_header(&select.header, local.list.as_bytes())
            }
            (Routing::Listed, Via::OriginalDst) => self.proxy.set_original_destination(&local.list),
            (Routing::Unlisted, _) if spoofed => self.proxy.remove_request_header(&select.header),
            (Routing::Unlisted, _) => Ok(()),
            (Routing::Refused(reason, wait), _) => return self.refuse(local, *reason, *wait),
        };
        if done.is_err() {
            local.counters.add(Count::HostError);
        }
        Action::Continue
    }

    fn refuse(&self, local: &mut Local, why: Refusal, wait: u64) -> Action {
        let wait = wait.to_string();
        let mut headers: Vec<(&[u8], &[u8])> =
            vec![(b"retry-after", wait.as_bytes()), (b"x-pintle-reason", why.reason())];
        let told = self.answer.as_ref().and_then(|answer| answer.text(&self.decided));
        headers.extend(told.as_ref().map(|(name, text)| (name.as_bytes(), text.as_bytes())));
        let grpc_status = why.grpc_status();
        let response = LocalResponse { status: 503, grpc_status, headers: &headers };
        match self.proxy.respond(&response) {
            Ok(()) => Action::Pause,
            Err(_) => {
                local.counters.add(Count::HostError);
                Action::Continue
            }
        }
    }
}

fn grpc_status(value: Option<Vec<u8>>) -> Option<u32> {
    std::str::from_utf8(&value?).ok()?.parse().ok()
}
