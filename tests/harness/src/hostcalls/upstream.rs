//! Calls to the side: HTTP, unary gRPC, gRPC streams.
//!
//! They always belong to the root context, whoever makes them, and so do their callbacks. gRPC
//! tokens are one count for both kinds, odd for calls and even for streams.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Call, Done, Fail};
use crate::abi::{Status, decode_pairs};
use crate::headers::Headers;
use crate::upstream::{Call as Record, CallKey, Kind};

fn pairs(call: &mut Call<'_>, at: u32, len: u32) -> Result<Headers, Status> {
    let bytes = call.read(at, len)?;
    Ok(decode_pairs(&bytes).unwrap_or_default().into_iter().collect())
}

fn record(call: &Call<'_>, kind: Kind, cluster: String, millis: u32) -> Record {
    let guest = call.guest();
    let timeout = (millis > 0).then(|| Duration::from_millis(u64::from(millis)));
    let now = guest.world.borrow().clock.elapsed;
    let key = CallKey { vm: guest.vm, root: guest.root_id(), http: kind == Kind::Http, token: 0 };
    Record {
        key,
        kind,
        thread: guest.thread,
        cluster,
        service: String::new(),
        method: String::new(),
        headers: Headers::new(),
        body: Vec::new(),
        trailers: Headers::new(),
        timeout,
        deadline: timeout.map(|t| now.saturating_add(t.as_nanos() as u64)),
        inbox: VecDeque::new(),
        responded: false,
        half_closed: false,
        server_done: false,
        cancelled: false,
    }
}

/// Gives the call its token and opens it.
fn open(call: &mut Call<'_>, mut record: Record) -> Result<u32, Fail> {
    let root = call.guest_mut().root_mut().ok_or(Status::BadArgument)?;
    let token = match record.kind {
        Kind::Http => {
            root.next_http_token += 1;
            root.next_http_token - 1
        }
        kind => {
            let odd = kind == Kind::Unary;
            let mut token = root.next_grpc_token;
            token += u32::from((token % 2 == 1) != odd);
            root.next_grpc_token = token + 1;
            token
        }
    };
    record.key.token = token;
    if record.kind == Kind::Stream && call.guest().callback == "proxy_on_grpc_close" {
        // Seen on a real Envoy: a hot loop while the server is down, and a crash at shutdown.
        let what = "proxy_on_grpc_close opened a gRPC stream".to_owned();
        call.world().violations.push(what);
    }
    let mut world = call.world();
    let events = world.upstreams.open(record)?;
    world.events.extend(events);
    Ok(token)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's signature")]
pub(super) fn http_call(
    call: &mut Call<'_>,
    upstream: u32,
    upstream_len: u32,
    headers: u32,
    headers_len: u32,
    body: u32,
    body_len: u32,
    trailers: u32,
    trailers_len: u32,
    millis: u32,
    to: u32,
) -> Done {
    let cluster = call.read_text(upstream, upstream_len)?;
    let headers = pairs(call, headers, headers_len)?;
    let body = call.read(body, body_len)?;
    let trailers = pairs(call, trailers, trailers_len)?;
    // Envoy writes the token first, to see that it can.
    call.write_u32(to, 0)?;
    let complete = [":path", ":method", ":authority"].iter().all(|n| headers.get(n).is_some());
    if !complete || i32::try_from(millis).is_err() {
        return Err(Status::BadArgument.into());
    }
    let mut record = record(call, Kind::Http, cluster, millis);
    (record.headers, record.body, record.trailers) = (headers, body, trailers);
    let token = open(call, record)?;
    Ok(call.write_u32(to, token)?)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's signature")]
pub(super) fn grpc_call(
    call: &mut Call<'_>,
    upstream: u32,
    upstream_len: u32,
    service: u32,
    service_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    message: u32,
    message_len: u32,
    millis: u32,
    to: u32,
) -> Done {
    let cluster = call.read_text(upstream, upstream_len)?;
    let mut record = record(call, Kind::Unary, cluster, millis);
    record.service = call.read_text(service, service_len)?;
    record.method = call.read_text(method, method_len)?;
    record.headers = pairs(call, metadata, metadata_len)?;
    record.body = call.read(message, message_len)?;
    let token = open(call, record)?;
    Ok(call.write_u32(to, token)?)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's signature")]
pub(super) fn grpc_stream(
    call: &mut Call<'_>,
    upstream: u32,
    upstream_len: u32,
    service: u32,
    service_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    to: u32,
) -> Done {
    let cluster = call.read_text(upstream, upstream_len)?;
    let mut record = record(call, Kind::Stream, cluster, 0);
    record.service = call.read_text(service, service_len)?;
    record.method = call.read_text(method, method_len)?;
    record.headers = pairs(call, metadata, metadata_len)?;
    let token = open(call, record)?;
    Ok(call.write_u32(to, token)?)
}

fn key(call: &Call<'_>, token: u32) -> CallKey {
    let guest = call.guest();
    CallKey { vm: guest.vm, root: guest.root_id(), http: false, token }
}

pub(super) fn grpc_send(call: &mut Call<'_>, token: u32, at: u32, len: u32, end: u32) -> Done {
    let message = call.read(at, len)?;
    if token % 2 == 1 {
        return Err(Status::BadArgument.into());
    }
    let key = key(call, token);
    let record = call.world().upstreams.open.get(&key).cloned().ok_or(Status::NotFound)?;
    let mut record = record.borrow_mut();
    if record.half_closed {
        let what = format!("{} sent on a stream that it had closed", call.guest().callback);
        call.world().violations.push(what);
        return Ok(());
    }
    // To a server that is gone the message is lost, and the guest learns it by the close on its
    // way.
    if !record.server_done {
        record.inbox.push_back(message);
    }
    record.half_closed = end != 0;
    Ok(())
}

pub(super) fn grpc_cancel(call: &mut Call<'_>, token: u32) -> Done {
    let key = key(call, token);
    Ok(call.world().upstreams.cancel(key)?)
}

pub(super) fn grpc_close(call: &mut Call<'_>, token: u32) -> Done {
    let key = key(call, token);
    if token % 2 == 1 {
        return Ok(call.world().upstreams.cancel(key)?);
    }
    let record = call.world().upstreams.open.get(&key).cloned().ok_or(Status::NotFound)?;
    record.borrow_mut().half_closed = true;
    Ok(())
}
