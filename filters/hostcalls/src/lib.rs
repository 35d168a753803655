//! THE BOUNDARY: the only crate that makes proxy-wasm host calls. It decides nothing.
//!
//! Every status is a value: a call gives what it was asked for or the [`Status`] that the host
//! answered, whatever number that is. No header, property or message becomes a `String`: clients
//! send bytes. Nothing here panics, because a panic is a trap, and a trap takes the VM with every
//! stream in it.
//!
//! The SDK (`proxy-wasm`) dispatches the callbacks of root contexts, [`streams`] those of requests.
//! Two calls are made through it, because only it can tie the answer's token to a context:
//! [`open_grpc_stream`] and [`grpc_call`]. Its wrappers panic on unlisted statuses, so
//! `filters/artifact` folds those two imports after linking.
//!
//! `unsafe` is confined to this crate: to the calls themselves, and to taking over memory that the
//! host had the SDK's `proxy_on_memory_allocate` make.

#![expect(unsafe_code, reason = "the ABI is raw pointers; this crate exists to contain them")]

mod abi;
mod header_map;
mod small;
pub mod streams;

use std::time::Duration;

pub use header_map::HeaderMap;
use pintle_contract::Now;

/// What the host answered instead of OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    /// No such key, property, queue or cluster.
    pub const NOT_FOUND: Self = Self(1);
    /// The call does not fit the moment: headers outside of their callbacks, an unknown token.
    pub const BAD_ARGUMENT: Self = Self(2);
    /// An unknown cluster, for the gRPC calls.
    pub const PARSE_FAILURE: Self = Self(4);
    /// The queue is empty.
    pub const EMPTY: Self = Self(7);
    /// Somebody else wrote the key in between.
    pub const CAS_MISMATCH: Self = Self(8);
    /// The host failed, or the capability is denied.
    pub const INTERNAL_FAILURE: Self = Self(10);
}

/// The value, or the host's status.
pub type Result<T> = std::result::Result<T, Status>;

const fn check(status: u32) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Status(status)) }
}

/// Makes a call that returns a block of memory, and takes the block over.
fn take(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>> {
    let mut data = std::ptr::null_mut();
    let mut size = 0usize;
    check(call(&raw mut data, &raw mut size))?;
    if data.is_null() || size == 0 {
        // A zero-sized block was never allocated; there is nothing to free.
        return Ok(Vec::new());
    }
    // SAFETY: the host got `data` from this module's `proxy_on_memory_allocate(size)`, a boxed
    // slice of exactly `size` bytes of the global allocator, filled it, and keeps no reference.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

// === Clock, log, ticks ===

/// The host's wall clock, to the nanosecond; the epoch if the host refuses.
#[must_use]
pub fn now() -> Now {
    let mut time = 0u64;
    // SAFETY: one out-pointer to a live u64.
    let status = unsafe { abi::proxy_get_current_time_nanoseconds(&raw mut time) };
    if status == 0 { Now(time) } else { Now(0) }
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For whoever debugs this module.
    Debug = 1,
    /// A state changed as it should.
    Info = 2,
    /// Something is degraded.
    Warn = 3,
    /// Something is refused or lost.
    Error = 4,
}

/// Writes a line to Envoy's log.
pub fn log(level: Level, message: &str) {
    // SAFETY: pointer and length of a live str. A log that cannot be written has nobody to tell.
    let _ = unsafe { abi::proxy_log(level as u32, message.as_ptr(), message.len()) };
}

/// Asks for ticks, at most one a `period` (whole milliseconds, at least 1).
///
/// # Errors
/// The host's status.
pub fn set_tick_period(period: Duration) -> Result<()> {
    let millis = u32::try_from(period.as_millis()).unwrap_or(u32::MAX).max(1);
    // SAFETY: numbers only.
    check(unsafe { abi::proxy_set_tick_period_milliseconds(millis) })
}

// === Configuration and messages ===

fn buffer(which: u32, size: usize) -> Result<Vec<u8>> {
    // SAFETY: out-pointers to live locals of `take`.
    take(|data, len| unsafe { abi::proxy_get_buffer_bytes(which, 0, size, data, len) })
}

/// The plugin's configuration; `size` as `on_configure` was told.
///
/// # Errors
/// The host's status.
pub fn plugin_configuration(size: usize) -> Result<Vec<u8>> {
    buffer(7, size)
}

/// The message that arrived on a gRPC stream or call; `size` as the callback was told.
///
/// # Errors
/// The host's status.
pub fn grpc_message(size: usize) -> Result<Vec<u8>> {
    buffer(5, size)
}

// === Headers ===

const REQUEST: u32 = 0;
const RESPONSE: u32 = 2;
const RESPONSE_TRAILERS: u32 = 3;

fn header(map: u32, name: &[u8]) -> Result<Vec<u8>> {
    // SAFETY: pointer and length of a live slice, out-pointers of `take`.
    take(|data, size| unsafe {
        abi::proxy_get_header_map_value(map, name.as_ptr(), name.len(), data, size)
    })
}

/// All request headers in order, duplicates apart. In the request's callbacks only.
///
/// # Errors
/// The host's status; [`Status::BAD_ARGUMENT`] elsewhere.
pub fn request_headers() -> Result<HeaderMap> {
    // SAFETY: out-pointers of `take`.
    take(|data, size| unsafe { abi::proxy_get_header_map_pairs(REQUEST, data, size) })
        .map(HeaderMap::new)
}

/// The first value of a request header. In the request's callbacks only.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if the header is absent.
pub fn request_header(name: &[u8]) -> Result<Vec<u8>> {
    header(REQUEST, name)
}

/// Whether the request has no such header; `false` also where the host does not say. An absent
/// header costs a fraction of one that is there, since nothing is handed over.
#[must_use]
pub fn lacks_request_header(name: &[u8]) -> bool {
    header(REQUEST, name).is_err_and(|status| status == Status::NOT_FOUND)
}

/// The first value of a response header. While the response's headers pass only.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if the header is absent.
pub fn response_header(name: &[u8]) -> Result<Vec<u8>> {
    header(RESPONSE, name)
}

/// The first value of a response trailer. While the response's trailers pass only.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if the trailer is absent.
pub fn response_trailer(name: &[u8]) -> Result<Vec<u8>> {
    header(RESPONSE_TRAILERS, name)
}

/// Makes `value` the only value of a request header.
///
/// # Errors
/// The host's status.
pub fn set_request_header(name: &[u8], value: &[u8]) -> Result<()> {
    set_header(REQUEST, name, value)
}

/// Makes `value` the only value of a response header. While the response's headers pass only.
///
/// # Errors
/// The host's status.
pub fn set_response_header(name: &[u8], value: &[u8]) -> Result<()> {
    set_header(RESPONSE, name, value)
}

/// Removes every value of a request header.
///
/// # Errors
/// The host's status.
pub fn remove_request_header(name: &[u8]) -> Result<()> {
    remove_header(REQUEST, name)
}

/// Removes every value of a response header. While the response's headers pass only.
///
/// # Errors
/// The host's status.
pub fn remove_response_header(name: &[u8]) -> Result<()> {
    remove_header(RESPONSE, name)
}

fn set_header(map: u32, name: &[u8], value: &[u8]) -> Result<()> {
    // SAFETY: pointers and lengths of live slices.
    check(unsafe {
        abi::proxy_replace_header_map_value(
            map,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

fn remove_header(map: u32, name: &[u8]) -> Result<()> {
    // SAFETY: pointer and length of a live slice.
    check(unsafe { abi::proxy_remove_header_map_value(map, name.as_ptr(), name.len()) })
}

/// Answers the request here. At most once a request, and the callback must pause afterwards.
///
/// `details` is Envoy's response code detail; `grpc_status` is used when the request was gRPC, -1
/// for none.
///
/// # Errors
/// The host's status.
pub fn send_local_response(
    status: u32,
    details: &str,
    headers: &[(&[u8], &[u8])],
    body: &[u8],
    grpc_status: i32,
) -> Result<()> {
    let headers = header_map::serialize(headers);
    // SAFETY: pointers and lengths of live slices.
    check(unsafe {
        abi::proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    })
}

// === Properties and filter state ===

/// A property's raw bytes; the parts of `path` are joined by NUL.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if there is no such value now.
pub fn property(path: &[u8]) -> Result<Vec<u8>> {
    // SAFETY: pointer and length of a live slice, out-pointers of `take`.
    take(|data, size| unsafe { abi::proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

/// An integer property (Envoy writes eight little-endian bytes).
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] also for a value of another size.
pub fn property_u64(path: &[u8]) -> Result<u64> {
    let bytes = property(path)?;
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| Status::NOT_FOUND)
}

/// Writes the filter state `wasm.{name}` of this request.
///
/// # Errors
/// The host's status.
pub fn set_filter_state(name: &[u8], value: &[u8]) -> Result<()> {
    // SAFETY: pointers and lengths of live slices.
    check(unsafe {
        abi::proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Calls one of Envoy's foreign functions and returns its result.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if there is no such function.
pub fn call_foreign_function(name: &str, arguments: &[u8]) -> Result<Vec<u8>> {
    // SAFETY: pointers and lengths of live slices, out-pointers of `take`.
    take(|data, size| unsafe {
        abi::proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            arguments.as_ptr(),
            arguments.len(),
            data,
            size,
        )
    })
}

// === Shared data and queues ===

/// Which write of a key was read; a write with it fails when another came in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(u32);

impl Cas {
    /// Grows with every write of any value in the process, until it wraps.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// A shared value and its [`Cas`]. An empty value stands for a deleted one.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if nobody has written the key.
pub fn shared_data(key: &[u8]) -> Result<(Vec<u8>, Cas)> {
    let mut cas = 0u32;
    // SAFETY: pointer and length of a live slice, out-pointers of `take` and to a live u32.
    let value = take(|data, size| unsafe {
        abi::proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas)
    })?;
    Ok((value, Cas(cas)))
}

/// Writes a shared value; with a [`Cas`] only if nobody wrote since.
///
/// On a key that nobody has written the host ignores the CAS; write an empty value first and read
/// it back where creation must be exclusive.
///
/// # Errors
/// The host's status; [`Status::CAS_MISMATCH`] if somebody wrote in between.
pub fn set_shared_data(key: &[u8], value: &[u8], cas: Option<Cas>) -> Result<()> {
    // SAFETY: pointers and lengths of live slices.
    check(unsafe {
        abi::proxy_set_shared_data(
            key.as_ptr(),
            key.len(),
            value.as_ptr(),
            value.len(),
            cas.map_or(0, |cas| cas.0),
        )
    })
}

/// A shared queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue(pub u32);

/// Makes this VM the one that `name` wakes. A later registration elsewhere takes that over.
///
/// # Errors
/// The host's status.
pub fn register_queue(name: &[u8]) -> Result<Queue> {
    let mut id = 0u32;
    // SAFETY: pointer and length of a live slice, out-pointer to a live u32.
    check(unsafe { abi::proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut id) })?;
    Ok(Queue(id))
}

/// Finds a queue that some VM with `vm_id` registered.
///
/// # Errors
/// The host's status; [`Status::NOT_FOUND`] if none has.
pub fn resolve_queue(vm_id: &[u8], name: &[u8]) -> Result<Queue> {
    let mut id = 0u32;
    // SAFETY: pointers and lengths of live slices, out-pointer to a live u32.
    check(unsafe {
        abi::proxy_resolve_shared_queue(
            vm_id.as_ptr(),
            vm_id.len(),
            name.as_ptr(),
            name.len(),
            &raw mut id,
        )
    })?;
    Ok(Queue(id))
}

/// Puts a message at the end of a queue and wakes its VM.
///
/// # Errors
/// The host's status.
pub fn enqueue(queue: Queue, message: &[u8]) -> Result<()> {
    // SAFETY: pointer and length of a live slice.
    check(unsafe { abi::proxy_enqueue_shared_queue(queue.0, message.as_ptr(), message.len()) })
}

/// Takes the first message of a queue, if there is one.
///
/// # Errors
/// The host's status.
pub fn dequeue(queue: Queue) -> Result<Option<Vec<u8>>> {
    // SAFETY: out-pointers of `take`.
    let taken = take(|data, size| unsafe { abi::proxy_dequeue_shared_queue(queue.0, data, size) });
    match taken {
        Ok(message) => Ok(Some(message)),
        Err(Status::EMPTY) => Ok(None),
        Err(status) => Err(status),
    }
}

// === gRPC ===

/// A gRPC stream or call of this context.
pub type Token = u32;

/// Opens a stream to `cluster`, with `metadata`; its messages come to the calling root context.
///
/// # Errors
/// The host's status; [`Status::PARSE_FAILURE`] if there is no such cluster.
pub fn open_grpc_stream(
    cluster: &str,
    service: &str,
    method: &str,
    metadata: Vec<(&str, &[u8])>,
) -> Result<Token> {
    proxy_wasm::hostcalls::open_grpc_stream(cluster, service, method, metadata)
        .map_err(|status| Status(status as u32))
}

/// Sends one message on a stream.
///
/// # Errors
/// The host's status; [`Status::BAD_ARGUMENT`] if the stream is not open.
pub fn send_grpc_message(token: Token, message: &[u8]) -> Result<()> {
    // SAFETY: pointer and length of a live slice.
    check(unsafe { abi::proxy_grpc_send(token, message.as_ptr(), message.len(), 0) })
}

/// Ends a stream or call without waiting.
///
/// # Errors
/// The host's status.
pub fn cancel_grpc(token: Token) -> Result<()> {
    // SAFETY: numbers only.
    check(unsafe { abi::proxy_grpc_cancel(token) })
}

/// Calls a unary method of `cluster`; the answer comes to the calling root context.
///
/// # Errors
/// The host's status; [`Status::PARSE_FAILURE`] if there is no such cluster.
pub fn grpc_call(
    cluster: &str,
    service: &str,
    method: &str,
    metadata: Vec<(&str, &[u8])>,
    message: &[u8],
    timeout: Duration,
) -> Result<Token> {
    proxy_wasm::hostcalls::dispatch_grpc_call(
        cluster,
        service,
        method,
        metadata,
        Some(message),
        timeout,
    )
    .map_err(|status| Status(status as u32))
}

// === Metrics ===

/// A metric of Envoy's, shared by name over workers and VMs, never freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric(u32);

/// Kinds of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter = 0,
    /// Goes both ways.
    Gauge = 1,
}

impl Metric {
    /// Finds or makes the metric called `name`. Envoy gives a new id each time: keep this one.
    ///
    /// # Errors
    /// The host's status.
    pub fn define(kind: MetricKind, name: &str) -> Result<Self> {
        let mut id = 0u32;
        // SAFETY: pointer and length of a live str, out-pointer to a live u32.
        check(unsafe {
            abi::proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id)
        })?;
        Ok(Self(id))
    }

    /// Adds `offset`. A gauge wraps below zero.
    ///
    /// # Errors
    /// The host's status; [`Status::BAD_ARGUMENT`] for a negative offset to a counter.
    pub fn increment(self, offset: i64) -> Result<()> {
        // SAFETY: numbers only.
        check(unsafe { abi::proxy_increment_metric(self.0, offset) })
    }

    /// Sets a gauge.
    ///
    /// # Errors
    /// The host's status.
    pub fn set(self, value: u64) -> Result<()> {
        // SAFETY: numbers only.
        check(unsafe { abi::proxy_record_metric(self.0, value) })
    }
}
