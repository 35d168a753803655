//! The streams of this VM: by which root's configuration each is served, and those whose end
//! matters.
//!
//! What Envoy does not say: that a root is gone (`filters/hostcalls/src/streams.rs` has why). An
//! old root is one that has stopped ticking while a newer one goes on, so every root ticks, be it
//! once in [`IDLE`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use pintle_hostcalls as host;
use pintle_hostcalls::streams::{self as contexts, Action, Streams};

use crate::boundary::Proxy as _;
use crate::request::{Exchange, RequestId};
use crate::wasm::Wasm;
use crate::worker::Shared;

/// Streams whose end is waited for, at most.
const MAX_OPEN: usize = 65_536;
/// Requests that wait for a table, at most; more go on without it.
const MAX_WAITING: usize = 1_024;
/// Buckets of [`Open`].
const BUCKETS: usize = 64;
/// Without a tick for so long a root counts as gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one tick to the next of a root that has nothing to do.
pub(crate) const IDLE: Duration = Duration::from_secs(10);

/// For [`pintle_hostcalls::streams::serve`].
pub(crate) const STREAMS: Streams = Streams { headers, head, trailers, end, attempt };

struct Root {
    id: u32,
    worker: Shared,
    /// At the last look.
    ticks: u64,
}

thread_local! {
    static ROOTS: RefCell<Vec<Root>> = const { RefCell::new(Vec::new()) };
    static OPEN: RefCell<Open> = const { RefCell::new(Open::EMPTY) };
    /// Those that wait for a table. They are nowhere else.
    static WAITING: RefCell<BTreeMap<u32, Box<Exchange<Wasm>>>> =
        const { RefCell::new(BTreeMap::new()) };
    /// Callbacks that were dropped since a worker last counted them.
    static DROPPED: Cell<u64> = const { Cell::new(0) };
}

/// Streams and their requests.
type Bucket = Vec<(u32, Box<Exchange<Wasm>>)>;

/// The requests whose streams are open. Envoy numbers streams in a row, so that they spread evenly
/// over buckets that are searched from end to end: little code, and memory that is in use anyway.
struct Open {
    buckets: [Bucket; BUCKETS],
    count: usize,
    /// Those whose attempts are logged.
    ids: BTreeSet<(RequestId, u32)>,
}

impl Open {
    const EMPTY: Self =
        Self { buckets: [const { Vec::new() }; BUCKETS], count: 0, ids: BTreeSet::new() };

    fn bucket(&mut self, stream: u32) -> Option<&mut Bucket> {
        self.buckets.get_mut(usize::try_from(stream).ok()? % BUCKETS)
    }

    /// Keeps `exchange`. Of too many the oldest in its bucket gives way, as if its client had left.
    fn insert(
        &mut self,
        stream: u32,
        exchange: Box<Exchange<Wasm>>,
    ) -> Option<Box<Exchange<Wasm>>> {
        self.ids.extend(exchange.id().map(|id| (id, stream)));
        self.bucket(stream)?.push((stream, exchange));
        self.count = self.count.saturating_add(1);
        if self.count <= MAX_OPEN {
            return None;
        }
        let age = |(other, _): &&(u32, _)| stream.wrapping_sub(*other);
        let oldest = self.bucket(stream)?.iter().max_by_key(age)?.0;
        self.remove(oldest)
    }

    fn get_mut(&mut self, stream: u32) -> Option<&mut Exchange<Wasm>> {
        let mut requests = self.bucket(stream)?.iter_mut();
        requests.find(|(other, _)| *other == stream).map(|(_, exchange)| &mut **exchange)
    }

    fn remove(&mut self, stream: u32) -> Option<Box<Exchange<Wasm>>> {
        let bucket = self.bucket(stream)?;
        let at = bucket.iter().position(|(other, _)| *other == stream)?;
        let (_, exchange) = bucket.swap_remove(at);
        self.count = self.count.saturating_sub(1);
        if let Some(id) = exchange.id() {
            self.ids.remove(&(id, stream));
        }
        Some(exchange)
    }

    /// The one request of this id that may have gone to `address`; `None` where there are several.
    fn find(&mut self, id: RequestId, address: SocketAddr) -> Option<&mut Exchange<Wasm>> {
        let streams: Vec<u32> =
            self.ids.range((id, 0)..=(id, u32::MAX)).map(|(_, stream)| *stream).collect();
        let mut fit = streams.into_iter().filter(|stream| {
            self.get_mut(*stream).is_some_and(|exchange| exchange.may_go_to(address))
        });
        let (one, another) = (fit.next()?, fit.next());
        drop(fit);
        if another.is_some() { None } else { self.get_mut(one) }
    }
}

/// A root was configured.
pub(crate) fn add_root(id: u32, worker: Shared) {
    let _ = ROOTS.try_with(|roots| {
        if let Ok(mut roots) = roots.try_borrow_mut() {
            roots.retain(|root| root.id != id);
            roots.push(Root { id, worker, ticks: 0 });
        }
    });
}

/// What a root knows, if it was configured and still ticks.
pub(crate) fn worker(root: u32) -> Option<Shared> {
    ROOTS.with(|roots| {
        let roots = roots.try_borrow().ok()?;
        roots.iter().find(|r| r.id == root).map(|r| Rc::clone(&r.worker))
    })
}

/// After `root`'s tick number `ticks`, one in each `period`: the newest root looks for those that
/// have stopped.
pub(crate) fn sweep(root: u32, ticks: u64, period: Duration) {
    let looks = PATIENCE.as_millis().checked_div(period.as_millis()).unwrap_or(1);
    if !u128::from(ticks).is_multiple_of(looks) {
        return;
    }
    let gone = ROOTS.with(|roots| {
        let mut roots = roots.try_borrow_mut().ok()?;
        if roots.last().is_none_or(|newest| newest.id != root) {
            return None;
        }
        let stopped = |other: &mut Root| {
            let now = other.worker.try_borrow().map_or(other.ticks, |worker| worker.ticks());
            let before = std::mem::replace(&mut other.ticks, now);
            now > 0 && now == before && other.id != root
        };
        Some(roots.extract_if(.., stopped).collect::<Vec<_>>())
    });
    // Here, where nothing is borrowed: a worker's end may be that of its streams.
    drop(gone);
}

/// A callback came in the middle of another one of the same worker.
pub(crate) fn drop_callback() {
    DROPPED.set(DROPPED.get().saturating_add(1));
}

/// How many callbacks were dropped since this was last asked.
pub(crate) fn take_dropped() -> u64 {
    DROPPED.replace(0)
}

fn headers(stream: u32, root: u32) -> Action {
    let Some(worker) = worker(root) else { return Action::Continue };
    let mut exchange = Exchange::new(Wasm, worker);
    let Some(action) = exchange.on_request_headers() else {
        drop_callback();
        return Action::Continue;
    };
    if exchange.waits() {
        return wait(stream, Box::new(exchange));
    }
    if exchange.has_end() {
        keep(stream, Box::new(exchange));
    }
    action
}

/// Remembers a request whose end matters.
fn keep(stream: u32, exchange: Box<Exchange<Wasm>>) {
    let evicted = OPEN.with(|open| open.try_borrow_mut().ok()?.insert(stream, exchange));
    drop(evicted);
}

/// Lets a request wait, or go on where too many do.
#[cold]
#[inline(never)]
fn wait(stream: u32, exchange: Box<Exchange<Wasm>>) -> Action {
    let back = WAITING.with(|waiting| match waiting.try_borrow_mut() {
        Ok(mut waiting) if waiting.len() < MAX_WAITING => {
            waiting.insert(stream, exchange);
            None
        }
        _ => Some(exchange),
    });
    back.map_or(Action::Pause, |exchange| again(stream, exchange))
}

/// Decides on a request that has waited.
fn again(stream: u32, mut exchange: Box<Exchange<Wasm>>) -> Action {
    let action = exchange.on_request_headers().unwrap_or(Action::Continue);
    if exchange.has_end() {
        keep(stream, exchange);
    }
    action
}

/// At the end of a callback of `root`: requests that need not wait for a table any longer go on.
/// Those of other roots, too, which may have stopped.
pub(crate) fn resume(root: u32) {
    let due: Vec<_> = WAITING.with(|waiting| match waiting.try_borrow_mut() {
        Ok(mut waiting) if !waiting.is_empty() => {
            let now = host::now();
            waiting.extract_if(.., |_, exchange| exchange.is_due(now)).collect()
        }
        _ => Vec::new(),
    });
    if due.is_empty() {
        return;
    }
    for (stream, exchange) in due {
        if contexts::enter(stream).is_err() {
            continue;
        }
        if again(stream, exchange) == Action::Continue {
            // Refused only for a stream that is gone.
            let _ = contexts::go_on();
        }
    }
    let _ = contexts::enter(root);
}

/// Calls `act` with the request of an open stream; what it says of a busy worker is counted.
fn with(stream: u32, act: impl FnOnce(&mut Exchange<Wasm>) -> Option<()>) {
    let done = OPEN.with(|open| {
        let mut open = open.try_borrow_mut().ok()?;
        open.get_mut(stream).map_or(Some(()), act)
    });
    if done.is_none() {
        drop_callback();
    }
}

fn head(stream: u32) {
    with(stream, Exchange::on_response_headers);
}

fn trailers(stream: u32) {
    with(stream, |exchange| {
        exchange.on_response_trailers();
        Some(())
    });
}

fn end(stream: u32) {
    let ended = OPEN.with(|open| open.try_borrow_mut().ok()?.remove(stream));
    let Some(mut exchange) = ended else {
        let left = WAITING.with(|waiting| waiting.try_borrow_mut().ok()?.remove(&stream));
        return drop(left);
    };
    if exchange.on_end().is_none() {
        drop_callback();
    }
}

/// The router has logged an attempt of some request. Without a request that waits for it, which is
/// the rule where no policy asks for the log, that costs no host call.
fn attempt() {
    if OPEN.with(|open| open.try_borrow().is_ok_and(|open| open.ids.is_empty())) {
        return;
    }
    let Some(id) = Wasm.request_header("x-request-id") else { return };
    let Some(address) = Wasm.upstream_address() else { return };
    let parsed = std::str::from_utf8(&address).ok().and_then(|text| text.parse().ok());
    let Some(parsed) = parsed else { return };
    let done = OPEN.with(|open| {
        let mut open = open.try_borrow_mut().ok()?;
        let found = open.find(RequestId::of(&id), parsed);
        found.map_or(Some(()), |exchange| exchange.attempted(&address))
    });
    if done.is_none() {
        drop_callback();
    }
}
