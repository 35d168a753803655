//! Requests, past the SDK's dispatcher.
//!
//! Each crossing from Envoy into the module costs two to four hundredths of a plain request, to
//! which come the maps and boxes in which the SDK keeps a context for each stream. Most requests
//! need neither: what is not worth remembering is not stored, and what is goes with
//! `proxy_on_delete`, which is the last that Envoy says of a stream, and what it says of every one:
//! HTTP/3 has no `proxy_on_log` but for aborted streams (seen on 1.36.4 and 1.40.0). So the SDK
//! never hears of streams; it keeps the root contexts. `filters/artifact` gives these functions the
//! names of the SDK's.
//!
//! What is in reach, as seen on 1.40.0: the request's headers in `headers` alone, the response's in
//! `head`, its trailers in `trailers`; the properties of the stream (code, flags, attempts, the
//! upstream's address) everywhere, but `response.grpc_status` at the end knows no trailers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::{Result, abi, check};

/// What to do with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the next filter.
    Continue = 0,
    /// It waits, for the local response that has been sent or for [`go_on`].
    Pause = 1,
}

/// What is called for each stream; `stream` and `root` are Envoy's numbers of contexts.
#[derive(Clone, Copy)]
pub struct Streams {
    /// The request's headers are there.
    pub headers: fn(stream: u32, root: u32) -> Action,
    /// The response's headers pass, an endpoint's or a reply of Envoy's own.
    pub head: fn(stream: u32),
    /// The response's trailers pass.
    pub trailers: fn(stream: u32),
    /// The stream is over. It may be one that never had headers.
    pub end: fn(stream: u32),
    /// An access logger of this module has a line to write, of an attempt if it is the router's.
    pub attempt: fn(),
}

thread_local! {
    static STREAMS: Cell<Option<Streams>> = const { Cell::new(None) };
    /// The stream that was created last, and its root: Envoy goes on with its headers at once.
    static NEWEST: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
    /// Root contexts.
    static ROOTS: RefCell<BTreeSet<u32>> = const { RefCell::new(BTreeSet::new()) };
}

/// Sets what is called; once, in the module's `main`.
pub fn serve(streams: Streams) {
    STREAMS.set(Some(streams));
}

/// Makes a stream, or a root, the one that host calls act for until the callback ends.
///
/// # Errors
/// The host's status; [`crate::Status::BAD_ARGUMENT`] for one that is gone.
pub fn enter(context: u32) -> Result<()> {
    // SAFETY: numbers only.
    check(unsafe { abi::pintle_set_effective_context(context) })
}

/// Lets a request go on that was paused, of the stream that was entered. Its headers are out of
/// reach then.
///
/// # Errors
/// The host's status.
pub fn go_on() -> Result<()> {
    // SAFETY: numbers only; 0 is the request's direction.
    check(unsafe { abi::proxy_continue_stream(0) })
}

unsafe extern "C" {
    /// The SDK's.
    fn proxy_on_context_create(context: u32, root: u32);
}

#[unsafe(no_mangle)]
extern "C" fn pintle_on_context_create(context: u32, root: u32) {
    if root == 0 {
        with_roots(|roots| roots.insert(context));
        // SAFETY: numbers only; the SDK's function takes them as they are.
        unsafe { proxy_on_context_create(context, root) }
    } else {
        NEWEST.set((context, root));
    }
}

#[unsafe(no_mangle)]
extern "C" fn pintle_on_request_headers(stream: u32, _headers: u32, _end: u32) -> u32 {
    match (STREAMS.get(), NEWEST.get()) {
        (Some(streams), (newest, root)) if newest == stream => {
            (streams.headers)(stream, root) as u32
        }
        _ => Action::Continue as u32,
    }
}

#[unsafe(no_mangle)]
extern "C" fn pintle_on_response_headers(stream: u32, _headers: u32, _end: u32) -> u32 {
    if let Some(streams) = STREAMS.get() {
        (streams.head)(stream);
    }
    Action::Continue as u32
}

#[unsafe(no_mangle)]
extern "C" fn pintle_on_response_trailers(stream: u32, _trailers: u32) -> u32 {
    if let Some(streams) = STREAMS.get() {
        (streams.trailers)(stream);
    }
    Action::Continue as u32
}

/// Comes for streams, whose end `end` is, and on a root context for the lines of an access logger.
#[unsafe(no_mangle)]
extern "C" fn pintle_on_log(context: u32) {
    let root = with_roots(|roots| roots.contains(&context));
    if let Some(streams) = STREAMS.get().filter(|_| root) {
        (streams.attempt)();
    }
}

/// Comes for root contexts, too, of which `end` knows nothing.
#[unsafe(no_mangle)]
extern "C" fn pintle_on_delete(stream: u32) {
    with_roots(|roots| roots.remove(&stream));
    if let Some(streams) = STREAMS.get() {
        (streams.end)(stream);
    }
}

/// Asks or changes the root contexts; false where they are in use, which they never are.
fn with_roots(act: impl FnOnce(&mut BTreeSet<u32>) -> bool) -> bool {
    ROOTS.with(|roots| roots.try_borrow_mut().is_ok_and(|mut roots| act(&mut roots)))
}
