//! A request on its way through the filter.
//!
//! The state is shared by the handle that the test holds and the VM's context, so that what the
//! filter does is seen at once and what the test sets is read by the next callback. Which maps a
//! guest may reach depends on the callback it is in, and that is kept here too: the request's
//! headers are in reach in request callbacks (and while the request is paused) and in `on_log`,
//! nowhere else.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::abi::Action;
use crate::headers::Headers;
use crate::outcome::Outcome;
use crate::property::{Value, join};

/// A reply that the filter sent itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// The HTTP status that the filter asked for. A gRPC client gets 200 and a status in the
    /// headers.
    pub status: u32,
    /// The response code's details, as the filter gave them.
    pub details: String,
    /// The body; the message of a gRPC reply.
    pub body: Vec<u8>,
    /// The headers that the filter added.
    pub headers: Headers,
    /// The gRPC status; `None` when the filter left it to Envoy (-1).
    pub grpc_status: Option<u32>,
}

/// A request that is about to be made.
#[derive(Clone, Debug)]
pub struct RequestBuilder {
    pub(crate) headers: Headers,
    pub(crate) properties: BTreeMap<Vec<u8>, Value>,
    pub(crate) end_of_stream: bool,
}

impl RequestBuilder {
    /// A request of that method for that authority and path, without a body.
    pub fn new(method: &str, authority: &str, path: &str) -> Self {
        let headers = Headers::from([
            (":method", method),
            (":scheme", "http"),
            (":authority", authority),
            (":path", path),
        ]);
        Self::from(headers)
    }

    /// `GET`.
    pub fn get(authority: &str, path: &str) -> Self {
        Self::new("GET", authority, path)
    }

    /// A gRPC request: `POST /service/method`, with its content type and a body to come.
    pub fn grpc(authority: &str, path: &str) -> Self {
        let mut request =
            Self::new("POST", authority, path).header("content-type", "application/grpc");
        request.end_of_stream = false;
        request
    }

    /// Adds a header. Names of any case and values of any bytes.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.add(name, value);
        self
    }

    /// Sets a property of this request, over everything that Envoy would answer.
    #[must_use]
    pub fn property(mut self, path: &[&str], value: impl Into<Value>) -> Self {
        self.properties.insert(join(path), value.into());
        self
    }

    /// The cluster that the route chose: `xds.cluster_name`.
    #[must_use]
    pub fn cluster(self, name: &str) -> Self {
        self.property(&["xds", "cluster_name"], name)
    }

    /// The request has a body.
    #[must_use]
    pub fn with_body(mut self) -> Self {
        self.end_of_stream = false;
        self
    }
}

impl From<Headers> for RequestBuilder {
    fn from(headers: Headers) -> Self {
        Self { headers, properties: BTreeMap::new(), end_of_stream: true }
    }
}

impl<K: AsRef<[u8]>, V: AsRef<[u8]>, const N: usize> From<[(K, V); N]> for RequestBuilder {
    fn from(headers: [(K, V); N]) -> Self {
        Headers::from(headers).into()
    }
}

impl From<&Self> for RequestBuilder {
    fn from(request: &Self) -> Self {
        request.clone()
    }
}

/// What is known of a request, for the test and for the VM.
pub(crate) struct StreamState {
    pub(crate) request_headers: Headers,
    pub(crate) request_trailers: Headers,
    pub(crate) response_headers: Headers,
    pub(crate) response_trailers: Headers,
    pub(crate) request_body: Vec<u8>,
    pub(crate) response_body: Vec<u8>,
    pub(crate) properties: BTreeMap<Vec<u8>, Value>,
    pub(crate) filter_state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) local_reply: Option<LocalReply>,
    pub(crate) action: Action,
    pub(crate) reach: Reach,
    pub(crate) started: u64,
    pub(crate) started_wall: u64,
    pub(crate) connection_id: u64,
    pub(crate) route_cache_clears: u32,
    pub(crate) reset: bool,
    pub(crate) skipped: bool,
    /// Whether the response's headers have passed.
    pub(crate) answered: bool,
    pub(crate) finished: bool,
}

/// What the guest can reach now.
#[derive(Clone, Copy, Default)]
pub(crate) struct Reach {
    pub(crate) request_headers: bool,
    pub(crate) request_trailers: bool,
    pub(crate) response_headers: bool,
    pub(crate) response_trailers: bool,
    pub(crate) request_body: bool,
    pub(crate) response_body: bool,
    /// In `on_log` all header maps can be read and none can be written.
    pub(crate) log: bool,
}

impl StreamState {
    pub(crate) fn new(request: RequestBuilder, started: u64, wall: u64, connection: u64) -> Self {
        Self {
            request_headers: request.headers,
            request_trailers: Headers::new(),
            response_headers: Headers::new(),
            response_trailers: Headers::new(),
            request_body: Vec::new(),
            response_body: Vec::new(),
            properties: request.properties,
            filter_state: BTreeMap::new(),
            outcome: None,
            local_reply: None,
            action: Action::Continue,
            reach: Reach::default(),
            started,
            started_wall: wall,
            connection_id: connection,
            route_cache_clears: 0,
            reset: false,
            skipped: false,
            answered: false,
            finished: false,
        }
    }

    /// Envoy's answer for a filter whose VM is dead.
    pub(crate) fn fail(&mut self) {
        self.action = Action::Pause;
        self.local_reply = Some(LocalReply {
            status: 503,
            details: "wasm_fail_stream".into(),
            body: Vec::new(),
            headers: Headers::new(),
            grpc_status: None,
        });
    }
}

pub(crate) type StreamRef = Rc<RefCell<StreamState>>;

/// A request that the filter has seen. A handle: clones are the same request.
#[derive(Clone)]
pub struct Request {
    pub(crate) state: StreamRef,
    pub(crate) worker: usize,
    pub(crate) vm: u64,
    pub(crate) context: u32,
}

impl Request {
    /// Whether the request goes on or waits; a paused one may be continued later by the filter.
    pub fn action(&self) -> Action {
        self.state.borrow().action
    }

    /// Whether the request goes on to an upstream.
    pub fn continues(&self) -> bool {
        self.action() == Action::Continue && self.local_reply().is_none()
    }

    /// The reply of the filter; also the 503 of Envoy when the filter's VM is dead, whose details
    /// are `wasm_fail_stream`.
    pub fn local_reply(&self) -> Option<LocalReply> {
        self.state.borrow().local_reply.clone()
    }

    /// Whether the filter was left out, its VM being dead and the policy
    /// [`FailurePolicy::Open`](crate::FailurePolicy::Open).
    pub fn skipped(&self) -> bool {
        self.state.borrow().skipped
    }

    /// Whether the filter closed the stream (`proxy_close_stream`).
    pub fn was_reset(&self) -> bool {
        self.state.borrow().reset
    }

    /// The request's headers as they go on.
    pub fn headers(&self) -> Ref<'_, Headers> {
        Ref::map(self.state.borrow(), |s| &s.request_headers)
    }

    /// The first value of a request header, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers().text(name)
    }

    /// A filter-state value: `wasm.x` for a property `x` that a filter set, or a name that
    /// `set_envoy_filter_state` was given.
    pub fn filter_state(&self, name: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        self.state.borrow().filter_state.get(name.as_ref()).cloned()
    }

    /// Sets a filter-state value, as a filter before this one could.
    pub fn set_filter_state(&self, name: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) {
        self.state.borrow_mut().filter_state.insert(name.as_ref().to_vec(), value.into());
    }

    /// The names of all filter-state values, in order.
    pub fn filter_state_names(&self) -> Vec<String> {
        let state = self.state.borrow();
        state.filter_state.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect()
    }

    /// Sets a property from now on, over everything that Envoy would answer.
    pub fn set_property(&self, path: &[&str], value: impl Into<Value>) {
        self.state.borrow_mut().properties.insert(join(path), value.into());
    }

    /// How often the route's cache was cleared: by each write to the request's headers, and by
    /// `clear_route_cache`.
    pub fn route_cache_clears(&self) -> u32 {
        self.state.borrow().route_cache_clears
    }

    /// The request's body after the filter.
    pub fn body(&self) -> Vec<u8> {
        self.state.borrow().request_body.clone()
    }

    /// The worker that serves it.
    pub fn worker(&self) -> usize {
        self.worker
    }
}
