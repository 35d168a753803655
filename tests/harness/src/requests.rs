//! Requests: their callbacks, in Envoy's order.
//!
//! A request begins with its headers on one worker and ends with its outcome, any time later:
//! response headers and trailers, then `on_log` of the filter and of the access logger, then done
//! and delete. A VM that died in between gets none of it, and the client gets 503.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::abi::Action;
use crate::builder::FailurePolicy;
use crate::envoy::{Envoy, Slot};
use crate::headers::Headers;
use crate::outcome::{Outcome, Response};
use crate::property::grpc_of_http;
use crate::stream::{LocalReply, Reach, Request, RequestBuilder, StreamRef, StreamState};
use crate::vm::Called;
use Responded::{Died, Lives};

/// What became of the VM that saw a response's headers.
#[derive(PartialEq, Eq)]
enum Responded {
    Lives,
    Died,
}

/// One worker of an Envoy, to make requests on.
pub struct Worker<'a> {
    envoy: &'a mut Envoy,
    worker: usize,
}

impl Worker<'_> {
    /// A request: a context is created and gets the request's headers. A dead VM is made anew
    /// first, if the failure policy says so.
    pub fn request(&mut self, request: impl Into<RequestBuilder>) -> Request {
        let request = request.into();
        let end_of_stream = request.end_of_stream;
        let mut handle = self.begin(request);
        if !self.envoy.revive(self.worker + 1) {
            let mut state = handle.state.borrow_mut();
            match self.envoy.setup.failure_policy {
                FailurePolicy::Open => state.skipped = true,
                FailurePolicy::Closed | FailurePolicy::Reload(_) => state.fail(),
            }
            drop(state);
            return handle;
        }
        create(&mut self.envoy.slots[self.worker + 1], &mut handle);
        let (context, count) = {
            let mut state = handle.state.borrow_mut();
            state.reach.request_headers = true;
            (handle.context, state.request_headers.len() as u32)
        };
        let vm = &mut self.envoy.slots[self.worker + 1].vm;
        let callback = vm.callbacks.request_headers.clone();
        let params = (context, count, u32::from(end_of_stream));
        let called = vm.call(context, "proxy_on_request_headers", callback, params);
        settle_action(&handle.state, called, |reach, live| reach.request_headers = live);
        handle
    }

    /// A request that Envoy answers before any filter (headers too large): the filter gets `on_log`
    /// alone, without request headers.
    pub fn reject(&mut self, outcome: Outcome) -> Response {
        let mut handle = self.begin(Headers::new().into());
        if self.envoy.revive(self.worker + 1) {
            create(&mut self.envoy.slots[self.worker + 1], &mut handle);
        }
        let response = self.envoy.apply(&handle, outcome);
        self.envoy.log_and_delete(&handle);
        response
    }

    fn begin(&mut self, request: RequestBuilder) -> Request {
        let mut world = self.envoy.world.borrow_mut();
        let connection = world.next_connection_id;
        world.next_connection_id += 1;
        let (started, wall) = (world.clock.elapsed, world.clock.wall());
        let state = StreamState::new(request, started, wall, connection);
        Request { state: Rc::new(RefCell::new(state)), worker: self.worker, vm: 0, context: 0 }
    }
}

/// Creates the stream's context in the VM.
fn create(slot: &mut Slot, handle: &mut Request) {
    let root = slot.root;
    let context = slot.vm.new_context();
    (handle.vm, handle.context) = (slot.vm.id, context);
    slot.vm.guest_mut().streams.insert(context, (root, Rc::clone(&handle.state)));
    let create = slot.vm.callbacks.context_create.clone();
    slot.vm.call(context, "proxy_on_context_create", create, (context, root));
}

/// What a header callback's answer means: the map stays in reach while the stream is paused.
fn settle_action(state: &StreamRef, called: Called<u32>, reach: impl Fn(&mut Reach, bool)) {
    let mut state = state.borrow_mut();
    match called {
        Called::Absent | Called::Value(0) if state.local_reply.is_none() && !state.reset => {
            state.action = Action::Continue;
            reach(&mut state.reach, false);
        }
        Called::Absent | Called::Value(_) => {
            state.action = Action::Pause;
        }
        Called::Dead => {
            // 503 under every failure policy, unless the filter had answered before.
            if state.local_reply.is_none() {
                state.fail();
            }
            state.reach = Reach::default();
        }
    }
}

impl Envoy {
    /// A worker, counted from 0.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn worker(&mut self, worker: usize) -> Worker<'_> {
        assert!(worker < self.workers(), "this Envoy has {} workers", self.workers());
        Worker { envoy: self, worker }
    }

    /// A part of the request's body; the guest may change it.
    pub fn request_body(
        &mut self,
        request: &Request,
        part: impl Into<Vec<u8>>,
        end_of_stream: bool,
    ) -> Action {
        let size = {
            let mut state = request.state.borrow_mut();
            state.request_body = part.into();
            state.reach.request_body = true;
            state.request_body.len() as u32
        };
        let Some(vm) = self.vm_of(request) else {
            return Action::Continue;
        };
        let callback = vm.callbacks.request_body.clone();
        let params = (request.context, size, u32::from(end_of_stream));
        let called = vm.call(request.context, "proxy_on_request_body", callback, params);
        settle_action(&request.state, called, |reach, live| reach.request_body = live);
        request.action()
    }

    /// The request's trailers.
    pub fn request_trailers(&mut self, request: &Request, trailers: impl Into<Headers>) -> Action {
        let count = {
            let mut state = request.state.borrow_mut();
            state.request_trailers = trailers.into();
            state.reach.request_trailers = true;
            state.request_trailers.len() as u32
        };
        let Some(vm) = self.vm_of(request) else {
            return Action::Continue;
        };
        let callback = vm.callbacks.request_trailers.clone();
        let params = (request.context, count);
        let called = vm.call(request.context, "proxy_on_request_trailers", callback, params);
        settle_action(&request.state, called, |reach, live| reach.request_trailers = live);
        request.action()
    }

    /// A part of the response's body, as it goes on after the guest; before
    /// [`finish`](Self::finish).
    pub fn response_body(
        &mut self,
        request: &Request,
        part: impl Into<Vec<u8>>,
        end_of_stream: bool,
    ) -> Vec<u8> {
        let size = {
            let mut state = request.state.borrow_mut();
            state.response_body = part.into();
            state.reach.response_body = true;
            state.response_body.len() as u32
        };
        if let Some(vm) = self.vm_of(request) {
            let callback = vm.callbacks.response_body.clone();
            let params = (request.context, size, u32::from(end_of_stream));
            vm.call(request.context, "proxy_on_response_body", callback, params);
        }
        let mut state = request.state.borrow_mut();
        state.reach.response_body = false;
        std::mem::take(&mut state.response_body)
    }

    /// The head of the response passes, and its body goes on until [`finish`](Self::finish), which
    /// calls no response headers again. `outcome` is as it looks then: flags come with the end.
    pub fn head(&mut self, request: &Request, outcome: Outcome) {
        self.apply(request, Outcome { flags: 0, ..outcome });
        self.respond(request);
    }

    /// The response's headers; `None` where there are none, or nobody to see them.
    fn respond(&mut self, request: &Request) -> Option<Responded> {
        let vm = self.vm_of(request)?;
        let (headers, trailers) = {
            let mut state = request.state.borrow_mut();
            state.reach.request_headers = false;
            state.reach.response_headers = true;
            state.answered = true;
            (state.response_headers.len() as u32, state.response_trailers.len() as u32)
        };
        if headers > 0 {
            let callback = vm.callbacks.response_headers.clone();
            let params = (request.context, headers, u32::from(trailers == 0));
            vm.call(request.context, "proxy_on_response_headers", callback, params);
        }
        let dead = vm.dead;
        request.state.borrow_mut().reach.response_headers = false;
        Some(if dead { Died } else { Lives })
    }

    /// Ends a request: response callbacks, `on_log` of the filter and of the access logger, done,
    /// delete. When the filter answered itself, `outcome` is not asked, but for the duration: the
    /// reply is what there is. A request that is finished already is left alone.
    pub fn finish(&mut self, request: Request, outcome: Outcome) -> Response {
        let mut response = self.apply(&request, outcome);
        let replied = request.local_reply().is_some();
        let before = request.state.borrow().answered;
        if !before && self.respond(&request) == Some(Died) {
            // The response had not begun: the client gets Envoy's own.
            request.state.borrow_mut().fail();
            response = self.apply(&request, Outcome::default());
            self.log_and_delete(&request);
            return response;
        }
        if let Some(vm) = self.vm_of(&request) {
            let context = request.context;
            let trailers = request.state.borrow().response_trailers.len() as u32;
            if trailers > 0 {
                request.state.borrow_mut().reach.response_trailers = true;
                let callback = vm.callbacks.response_trailers.clone();
                vm.call(context, "proxy_on_response_trailers", callback, (context, trailers));
                request.state.borrow_mut().reach.response_trailers = false;
            }
            let state = request.state.borrow();
            response.headers.clone_from(&state.response_headers);
            response.trailers.clone_from(&state.response_trailers);
            if let (false, Some(reply)) = (replied, &state.local_reply) {
                // The filter put its own reply in the place of the response.
                response = of_reply(reply, state.request_headers.is_grpc());
            }
        }
        self.log_and_delete(&request);
        response
    }

    /// Logs one attempt of a request, as the router's `upstream_log` with a Wasm access logger
    /// does: the logger's `on_log` with the attempt's own outcome, before the request's own end.
    pub fn log_attempt(&mut self, request: &Request, mut attempt: Outcome) {
        // An attempt knows neither how many there are nor why it ended.
        (attempt.attempt_count, attempt.details) = (0, None);
        let headers = attempt.response_headers();
        let swap = |outcome: Option<Outcome>, headers: Headers| {
            let mut state = request.state.borrow_mut();
            state.response_headers = headers;
            std::mem::replace(&mut state.outcome, outcome)
        };
        let before = swap(Some(attempt), headers);
        if self.revive(request.worker + 1) {
            self.access_log(request);
        }
        swap(before, Headers::new());
    }

    /// The VM that the request was begun in, if it lives.
    fn vm_of(&mut self, request: &Request) -> Option<&mut crate::vm::Vm> {
        let vm = &mut self.slots[request.worker + 1].vm;
        (vm.id == request.vm && !vm.dead && !request.state.borrow().finished).then_some(vm)
    }

    /// Writes the outcome into the request's state; what the client gets if nobody changes it.
    fn apply(&mut self, request: &Request, mut outcome: Outcome) -> Response {
        let alive = self.vm_of(request).is_some();
        let now = self.world.borrow().clock.elapsed;
        let mut state = request.state.borrow_mut();
        let reached = request.vm != 0 && !state.skipped;
        if reached && !alive && state.local_reply.is_none() && !state.finished {
            // The response arrives at a VM that has died meanwhile.
            state.fail();
        }
        let duration = Duration::from_nanos(now.saturating_sub(state.started));
        let duration = outcome.duration.unwrap_or(duration);
        let mut body = Vec::new();
        if let Some(reply) = &state.local_reply {
            let response = of_reply(reply, state.request_headers.is_grpc());
            outcome = Outcome {
                response_code: response.status,
                details: Some(reply.details.clone()),
                ..Outcome::default()
            };
            body = response.body;
            state.response_headers = response.headers;
            state.response_trailers = Headers::new();
        } else {
            state.response_headers = outcome.response_headers();
            state.response_trailers = outcome.trailers.clone();
        }
        outcome.duration = Some(duration);
        let status = outcome.response_code;
        state.outcome = Some(outcome);
        Response {
            status,
            headers: state.response_headers.clone(),
            body,
            trailers: state.response_trailers.clone(),
        }
    }

    fn log_and_delete(&mut self, request: &Request) {
        if request.state.borrow().finished {
            return;
        }
        let context = request.context;
        request.state.borrow_mut().reach = Reach { log: true, ..Reach::default() };
        if let Some(vm) = self.vm_of(request) {
            let log = vm.callbacks.log.clone();
            vm.call(context, "proxy_on_log", log, (context,));
        }
        // The logger is asked whatever became of the filter, and its VM is made anew for it if it
        // may.
        if self.setup.logger_configuration.is_some() && self.revive(request.worker + 1) {
            self.access_log(request);
        }
        {
            let mut state = request.state.borrow_mut();
            state.reach = Reach::default();
            // What is derived from them, such as the gRPC status, is as out of reach as they are.
            (state.response_headers, state.response_trailers) = Default::default();
        }
        if let Some(vm) = self.vm_of(request) {
            let done = vm.callbacks.done.clone();
            vm.call(context, "proxy_on_done", done, (context,));
            let delete = vm.callbacks.delete.clone();
            vm.call(context, "proxy_on_delete", delete, (context,));
            vm.guest_mut().streams.remove(&context);
        }
        request.state.borrow_mut().finished = true;
    }

    /// `proxy_on_log` of the access logger, on its root context.
    fn access_log(&mut self, request: &Request) {
        let Slot { vm, logger, .. } = &mut self.slots[request.worker + 1];
        let Some(logger) = *logger else { return };
        let reach = Reach { log: true, ..Reach::default() };
        let before = std::mem::replace(&mut request.state.borrow_mut().reach, reach);
        set_logged(vm, logger, Some(Rc::clone(&request.state)));
        let log = vm.callbacks.log.clone();
        vm.call(logger, "proxy_on_log", log, (logger,));
        set_logged(vm, logger, None);
        request.state.borrow_mut().reach = before;
    }
}

fn set_logged(vm: &mut crate::vm::Vm, logger: u32, stream: Option<StreamRef>) {
    if let Some(root) = vm.guest_mut().roots.iter_mut().find(|r| r.id == logger) {
        root.logs = stream;
    }
}

/// What the client gets for a local reply: a gRPC client gets it as trailers in the headers.
fn of_reply(reply: &LocalReply, grpc: bool) -> Response {
    let mut headers = Headers::new();
    let (status, body) = if grpc {
        let grpc_status = reply.grpc_status.unwrap_or(grpc_of_http(reply.status));
        headers.add(":status", "200");
        headers.add("content-type", "application/grpc");
        headers.add("grpc-status", grpc_status.to_string());
        if !reply.body.is_empty() {
            headers.add("grpc-message", &reply.body);
        }
        (200, Vec::new())
    } else {
        headers.add(":status", reply.status.to_string());
        if !reply.body.is_empty() {
            headers.add("content-length", reply.body.len().to_string());
            headers.add("content-type", "text/plain");
        }
        (reply.status, reply.body.clone())
    };
    reply.headers.iter().for_each(|(name, value)| headers.add(name, value));
    Response { status: Some(status), headers, body, trailers: Headers::new() }
}
