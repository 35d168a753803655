//! Logging, time, ticks, contexts, and the request's way.

use super::{Call, Done};
use crate::abi::{Action, LogLevel, Status, decode_pairs};
use crate::headers::Headers;
use crate::stream::LocalReply;

pub(super) fn log(call: &mut Call<'_>, level: u32, at: u32, len: u32) -> Done {
    let level = LogLevel::from_code(level).ok_or(Status::BadArgument)?;
    let enabled = level >= call.guest().setup.log_level;
    let message = call.read_text(at, len)?;
    let thread = call.guest().thread;
    if enabled {
        call.world().log(thread, level, message);
    }
    Ok(())
}

pub(super) fn get_log_level(call: &mut Call<'_>, to: u32) -> Done {
    let level = call.guest().setup.log_level as u32;
    Ok(call.write_u32(to, level)?)
}

pub(super) fn get_status(call: &mut Call<'_>, code: u32, at: u32, len: u32) -> Done {
    let (status, message) = call.guest().incoming.status.clone();
    call.write_u32(code, status)?;
    call.give(message.as_bytes(), at, len)
}

pub(super) fn set_tick_period(call: &mut Call<'_>, millis: u32) -> Done {
    let now = call.world().clock.elapsed;
    let root = call.guest_mut().root_mut().ok_or(Status::BadArgument)?;
    root.tick_nanos = u64::from(millis) * 1_000_000;
    root.next_tick = (millis > 0).then(|| now.saturating_add(root.tick_nanos));
    Ok(())
}

pub(super) fn get_current_time(call: &mut Call<'_>, to: u32) -> Done {
    let now = call.world().clock.read_wall();
    Ok(call.write_u64(to, now)?)
}

pub(super) fn set_effective_context(call: &mut Call<'_>, context: u32) -> Done {
    let guest = call.guest_mut();
    let known = guest.streams.contains_key(&context) || guest.roots.iter().any(|r| r.id == context);
    if !known {
        return Err(Status::BadArgument.into());
    }
    guest.effective = context;
    Ok(())
}

/// Only for a context whose `proxy_on_done` asked to wait, which Envoy grants to root contexts
/// alone; this host never takes one down, so there is none.
pub(super) fn done(_: &mut Call<'_>) -> Done {
    Err(Status::NotFound.into())
}

#[expect(clippy::too_many_arguments, reason = "the ABI's signature")]
pub(super) fn send_local_response(
    call: &mut Call<'_>,
    code: u32,
    details: u32,
    details_len: u32,
    body: u32,
    body_len: u32,
    headers: u32,
    headers_len: u32,
    grpc_status: u32,
) -> Done {
    let details = call.read_text(details, details_len)?;
    let body = call.read(body, body_len)?;
    let headers = call.read(headers, headers_len)?;
    let headers: Headers = decode_pairs(&headers).unwrap_or_default().into_iter().collect();
    // A root context has no stream to answer: Envoy says Ok and does nothing.
    let Some(stream) = call.guest().stream() else {
        return Ok(());
    };
    let callback = call.guest().callback;
    let mut stream = stream.borrow_mut();
    if stream.local_reply.is_some() || stream.finished || stream.reach.log {
        let what = format!("{callback} sent a local reply to a request that had its response");
        call.world().violations.push(what);
        return Ok(());
    }
    stream.action = Action::Pause;
    stream.local_reply = Some(LocalReply {
        status: code,
        details,
        body,
        headers,
        grpc_status: (grpc_status != u32::MAX).then_some(grpc_status),
    });
    Ok(())
}

pub(super) fn continue_stream(call: &mut Call<'_>, kind: u32) -> Done {
    if kind > 1 {
        return Err(Status::BadArgument.into());
    }
    let Some(stream) = call.guest().stream() else {
        return Ok(());
    };
    let mut stream = stream.borrow_mut();
    if kind == 0 && stream.local_reply.is_some() {
        let callback = call.guest().callback;
        let what = format!("{callback} continued a request after its local reply");
        call.world().violations.push(what);
        return Ok(());
    }
    if kind == 0 {
        stream.action = Action::Continue;
    }
    // The maps go out of reach at once, within the same callback.
    stream.reach.request_headers = false;
    stream.reach.request_trailers = false;
    stream.reach.request_body = false;
    Ok(())
}

pub(super) fn close_stream(call: &mut Call<'_>, kind: u32) -> Done {
    if kind > 3 {
        return Err(Status::BadArgument.into());
    }
    if let Some(stream) = call.guest().stream() {
        let mut stream = stream.borrow_mut();
        stream.reset = true;
        stream.action = Action::Pause;
    }
    Ok(())
}
