//! The clusters that filters call from the side: gRPC streams, unary gRPC calls and HTTP calls.
//!
//! The test plays the server. A call of the guest becomes a record that both ends hold; what the
//! server does to it becomes events on their way to the VM that called, and what the guest does is
//! seen by the server at once. The order of callbacks and the statuses are those of a real Envoy:
//! opening a stream to a server that is down succeeds and fails a moment later with 14, a server
//! that dies under an answered stream gives 13, a cluster that does not exist gives ParseFailure to
//! gRPC and BadArgument to HTTP, and an answered unary call has no close.

mod grpc;
mod http;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

pub use grpc::{ServerStream, UnaryCall};
pub use http::HttpCall;

use crate::abi::Status;
use crate::headers::Headers;
use crate::vm::Thread;
use crate::world::{Event, World};

/// Envoy's asynchronous HTTP client buffers at most 32 MiB of a response's body.
const MAX_HTTP_BODY: usize = 32 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Stream,
    Unary,
    Http,
}

/// Which call of which VM. HTTP and gRPC count their tokens apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct CallKey {
    pub(crate) vm: u64,
    pub(crate) root: u32,
    pub(crate) http: bool,
    pub(crate) token: u32,
}

/// What the VM will be told.
pub(crate) enum UpstreamEvent {
    InitialMetadata(Headers),
    Message(Vec<u8>),
    TrailingMetadata(Headers),
    Close { status: u32, message: String },
    HttpResponse { headers: Headers, body: Vec<u8>, trailers: Headers },
    HttpFailure,
}

/// One call, held by both ends.
pub(crate) struct Call {
    pub(crate) key: CallKey,
    pub(crate) kind: Kind,
    pub(crate) thread: Thread,
    pub(crate) cluster: String,
    pub(crate) service: String,
    pub(crate) method: String,
    /// Initial metadata of gRPC, headers of HTTP.
    pub(crate) headers: Headers,
    /// The message of a unary call, the body of HTTP.
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Headers,
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<u64>,
    /// Messages of the guest on a stream that the server has not taken.
    pub(crate) inbox: VecDeque<Vec<u8>>,
    /// The server has begun to answer.
    pub(crate) responded: bool,
    /// The guest has said that it sends no more.
    pub(crate) half_closed: bool,
    /// The server's end is done: nothing more will be told to the guest.
    pub(crate) server_done: bool,
    /// The guest's end is gone: cancelled, or its VM was replaced.
    pub(crate) cancelled: bool,
}

pub(crate) type CallRef = Rc<RefCell<Call>>;

pub(crate) struct ClusterState {
    pub(crate) up: bool,
    pub(crate) max_requests: usize,
    /// Opened and not yet taken by the server.
    pub(crate) waiting: VecDeque<CallRef>,
    pub(crate) opened: u64,
}

#[derive(Default)]
pub(crate) struct Upstreams {
    pub(crate) clusters: BTreeMap<String, ClusterState>,
    pub(crate) open: HashMap<CallKey, CallRef>,
}

impl Upstreams {
    pub(crate) fn add(&mut self, name: &str) {
        self.clusters.entry(name.to_owned()).or_insert_with(|| ClusterState {
            up: true,
            max_requests: 1024,
            waiting: VecDeque::new(),
            opened: 0,
        });
    }

    /// Begins a call; the events that follow at once when the server is down.
    pub(crate) fn open(&mut self, call: Call) -> Result<Vec<Event>, Status> {
        let active = self.open.values().filter(|c| c.borrow().cluster == call.cluster).count();
        let missing =
            if call.kind == Kind::Http { Status::BadArgument } else { Status::ParseFailure };
        let cluster = self.clusters.get_mut(&call.cluster).ok_or(missing)?;
        if active >= cluster.max_requests {
            return Err(Status::InternalFailure);
        }
        cluster.opened += 1;
        let up = cluster.up;
        let call = Rc::new(RefCell::new(call));
        self.open.insert(call.borrow().key, Rc::clone(&call));
        if up {
            cluster.waiting.push_back(call);
            return Ok(Vec::new());
        }
        Ok(unreachable(&mut call.borrow_mut()))
    }

    /// The guest gives a call up.
    pub(crate) fn cancel(&mut self, key: CallKey) -> Result<(), Status> {
        let call = self.open.remove(&key).ok_or(Status::NotFound)?;
        call.borrow_mut().cancelled = true;
        Ok(())
    }

    /// A VM is gone, and its calls with it.
    pub(crate) fn forget_vm(&mut self, vm: u64) {
        self.forget(|key| key.vm == vm);
    }

    /// A root context is gone, and its calls with it.
    pub(crate) fn forget_root(&mut self, vm: u64, root: u32) {
        self.forget(|key| key.vm == vm && key.root == root);
    }

    fn forget(&mut self, gone: impl Fn(&CallKey) -> bool) {
        self.open.retain(|key, call| {
            let stays = !gone(key);
            if !stays {
                call.borrow_mut().cancelled = true;
            }
            stays
        });
    }

    /// The earliest deadline of a call that waits for its answer.
    pub(crate) fn next_deadline(&self) -> Option<(u64, CallKey)> {
        let deadlines = self.open.values().filter_map(|call| {
            let call = call.borrow();
            let waits = !call.server_done;
            call.deadline.filter(|_| waits).map(|at| (at, call.key))
        });
        deadlines.min()
    }

    /// A call's time is up.
    pub(crate) fn expire(&mut self, key: CallKey) -> Vec<Event> {
        let Some(call) = self.open.get(&key) else {
            return Vec::new();
        };
        let call = &mut *call.borrow_mut();
        call.server_done = true;
        match call.kind {
            Kind::Http => vec![local_http(call, 504, "upstream request timeout")],
            Kind::Unary | Kind::Stream => {
                let (status, message) = (14, "upstream request timeout".into());
                vec![Event::Upstream {
                    key: call.key,
                    what: UpstreamEvent::Close { status, message },
                }]
            }
        }
    }
}

/// The events of a call to a server that cannot be reached.
fn unreachable(call: &mut Call) -> Vec<Event> {
    const REASON: &str = "upstream connect error or disconnect/reset before headers. reset reason: \
                          remote connection failure";
    call.server_done = true;
    match call.kind {
        Kind::Http => vec![local_http(call, 503, REASON)],
        Kind::Unary => {
            vec![event(call, UpstreamEvent::Close { status: 14, message: REASON.into() })]
        }
        Kind::Stream => early_failure(call, REASON),
    }
}

/// A stream that fails before the server answered: Envoy's own reply has its trailers in its
/// headers.
fn early_failure(call: &Call, reason: &str) -> Vec<Event> {
    let trailers = Headers::from([
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("grpc-message", reason),
    ]);
    vec![
        event(call, UpstreamEvent::InitialMetadata(Headers::new())),
        event(call, UpstreamEvent::TrailingMetadata(trailers)),
        event(call, UpstreamEvent::Close { status: 14, message: reason.into() }),
    ]
}

fn local_http(call: &Call, code: u32, body: &str) -> Event {
    let headers = Headers::from([
        (":status", code.to_string()),
        ("content-length", body.len().to_string()),
        ("content-type", "text/plain".into()),
    ]);
    let (body, trailers) = (body.as_bytes().to_vec(), Headers::new());
    event(call, UpstreamEvent::HttpResponse { headers, body, trailers })
}

fn event(call: &Call, what: UpstreamEvent) -> Event {
    Event::Upstream { key: call.key, what }
}

/// A cluster, from its servers' side.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) name: String,
}

impl Cluster {
    /// The server goes: what is open breaks, and what is opened from now on fails a moment later.
    pub fn down(&self) {
        let mut world = self.world.borrow_mut();
        let World { upstreams, events, .. } = &mut *world;
        if let Some(cluster) = upstreams.clusters.get_mut(&self.name) {
            cluster.up = false;
            cluster.waiting.clear();
        }
        let mut open: Vec<_> =
            upstreams.open.values().filter(|c| c.borrow().cluster == self.name).collect();
        open.sort_by_key(|c| c.borrow().key);
        for call in open {
            let call = &mut *call.borrow_mut();
            if !call.server_done {
                events.extend(broken(call));
            }
        }
    }

    /// The server is back.
    pub fn up(&self) {
        if let Some(cluster) = self.world.borrow_mut().upstreams.clusters.get_mut(&self.name) {
            cluster.up = true;
        }
    }

    /// The cluster's circuit breaker: with so many calls open, a further one fails at once with
    /// InternalFailure. Envoy's default is 1024.
    pub fn max_requests(&self, max: usize) {
        if let Some(cluster) = self.world.borrow_mut().upstreams.clusters.get_mut(&self.name) {
            cluster.max_requests = max;
        }
    }

    /// How many calls and streams were ever opened, those that failed included.
    pub fn opened(&self) -> u64 {
        self.world.borrow().upstreams.clusters.get(&self.name).map_or(0, |c| c.opened)
    }

    /// How many calls and streams are open now.
    pub fn active(&self) -> usize {
        let world = self.world.borrow();
        world.upstreams.open.values().filter(|c| c.borrow().cluster == self.name).count()
    }

    /// The next stream that a VM opened and nobody accepted. One that the guest has given up
    /// meanwhile (the canary's, say) is given too; see [`ServerStream::is_open`].
    pub fn accept(&self) -> Option<ServerStream> {
        self.take(Kind::Stream).map(|call| ServerStream { world: Rc::clone(&self.world), call })
    }

    /// The next unary gRPC call that nobody took.
    pub fn next_call(&self) -> Option<UnaryCall> {
        self.take(Kind::Unary).map(|call| UnaryCall { world: Rc::clone(&self.world), call })
    }

    /// The next HTTP call that nobody took.
    pub fn next_http_call(&self) -> Option<HttpCall> {
        self.take(Kind::Http).map(|call| HttpCall { world: Rc::clone(&self.world), call })
    }

    fn take(&self, kind: Kind) -> Option<CallRef> {
        let mut world = self.world.borrow_mut();
        let waiting = &mut world.upstreams.clusters.get_mut(&self.name)?.waiting;
        let at = waiting.iter().position(|call| call.borrow().kind == kind)?;
        waiting.remove(at)
    }
}

/// The events of a connection that breaks under a call.
fn broken(call: &mut Call) -> Vec<Event> {
    const BEFORE: &str = "upstream_reset_before_response_started{connection_termination}";
    const AFTER: &str = "upstream_reset_after_response_started{connection_termination}";
    call.server_done = true;
    match call.kind {
        Kind::Http => vec![local_http(call, 503, BEFORE)],
        Kind::Unary => {
            vec![event(call, UpstreamEvent::Close { status: 14, message: BEFORE.into() })]
        }
        Kind::Stream if !call.responded => early_failure(call, BEFORE),
        Kind::Stream => vec![
            event(call, UpstreamEvent::TrailingMetadata(Headers::new())),
            event(call, UpstreamEvent::Close { status: 13, message: AFTER.into() }),
        ],
    }
}
