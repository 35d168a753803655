//! Header maps and buffers.
//!
//! Maps 0 to 3 belong to the request and are in reach in its callbacks only; 4 to 7 belong to an
//! upstream's answer and are in reach in the callback that brings it. Out of reach is BadArgument,
//! but an empty list for the call that reads a whole map: that is how Envoy does it.

use super::{Call, Done, Fail};
use crate::abi::{Status, decode_pairs, encode_pairs};
use crate::headers::Headers;
use crate::stream::StreamState;

const MAPS: u32 = 8;
const BUFFERS: u32 = 9;

/// Lets `f` read a map; `None` when it is out of reach.
fn with_map<R>(
    call: &Call<'_>,
    map: u32,
    f: impl FnOnce(&Headers) -> R,
) -> Result<Option<R>, Status> {
    if map >= MAPS {
        return Err(Status::BadArgument);
    }
    let guest = call.guest();
    let incoming = &guest.incoming;
    let upstream = match map {
        4 => incoming.initial_metadata.as_ref(),
        5 => incoming.trailing_metadata.as_ref(),
        6 => incoming.http.as_ref().map(|(headers, _, _)| headers),
        7 => incoming.http.as_ref().map(|(_, _, trailers)| trailers),
        _ => {
            let Some(stream) = guest.stream() else {
                return Ok(None);
            };
            let stream = stream.borrow();
            let (reach, headers) = of_stream(&stream, map);
            // The access log never has the request's trailers.
            let reach = reach || (stream.reach.log && map != 1);
            return Ok(reach.then(|| f(headers)));
        }
    };
    Ok(upstream.map(f))
}

fn of_stream(stream: &StreamState, map: u32) -> (bool, &Headers) {
    match map {
        0 => (stream.reach.request_headers, &stream.request_headers),
        1 => (stream.reach.request_trailers, &stream.request_trailers),
        2 => (stream.reach.response_headers, &stream.response_headers),
        _ => (stream.reach.response_trailers, &stream.response_trailers),
    }
}

/// Lets `f` change a map of the request, if it is in reach for that.
fn change(call: &Call<'_>, map: u32, f: impl FnOnce(&mut Headers)) -> Done {
    if map >= MAPS {
        return Err(Status::BadArgument.into());
    }
    let stream = call.guest().stream().ok_or(Status::BadArgument)?;
    let stream = &mut *stream.borrow_mut();
    let (reach, headers) = match map {
        0 => (stream.reach.request_headers, &mut stream.request_headers),
        1 => (stream.reach.request_trailers, &mut stream.request_trailers),
        2 => (stream.reach.response_headers, &mut stream.response_headers),
        3 => (stream.reach.response_trailers, &mut stream.response_trailers),
        _ => return Err(Status::BadArgument.into()),
    };
    if !reach {
        return Err(Status::BadArgument.into());
    }
    f(headers);
    stream.route_cache_clears += u32::from(map == 0);
    Ok(())
}

pub(super) fn get_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    to: u32,
    to_len: u32,
) -> Done {
    let key = call.read(key, key_len)?;
    let value = with_map(call, map, |h| h.get(&key).map(<[u8]>::to_vec))?;
    let value = value.ok_or(Status::BadArgument)?.ok_or(Status::NotFound)?;
    call.give(&value, to, to_len)
}

pub(super) fn add_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
) -> Done {
    let (key, value) = (call.read(key, key_len)?, call.read(value, value_len)?);
    change(call, map, |h| h.add(&key, &value))
}

pub(super) fn replace_value(
    call: &mut Call<'_>,
    map: u32,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
) -> Done {
    let (key, value) = (call.read(key, key_len)?, call.read(value, value_len)?);
    change(call, map, |h| h.set(&key, &value))
}

pub(super) fn remove_value(call: &mut Call<'_>, map: u32, key: u32, key_len: u32) -> Done {
    let key = call.read(key, key_len)?;
    change(call, map, |h| h.remove(&key))
}

pub(super) fn get_pairs(call: &mut Call<'_>, map: u32, to: u32, to_len: u32) -> Done {
    let pairs =
        with_map(call, map, |h| if h.is_empty() { None } else { Some(encode_pairs(h.iter())) })?;
    call.give(&pairs.flatten().unwrap_or_default(), to, to_len)
}

pub(super) fn set_pairs(call: &mut Call<'_>, map: u32, at: u32, len: u32) -> Done {
    let bytes = call.read(at, len)?;
    let pairs: Headers = decode_pairs(&bytes).unwrap_or_default().into_iter().collect();
    change(call, map, |h| *h = pairs)
}

pub(super) fn get_size(call: &mut Call<'_>, map: u32, to: u32) -> Done {
    let size = with_map(call, map, Headers::byte_size)?.ok_or(Status::BadArgument)?;
    Ok(call.write_u32(to, size as u32)?)
}

/// The buffer's bytes; `None` for one that does not exist here.
fn buffer(call: &Call<'_>, kind: u32) -> Result<Option<Vec<u8>>, Fail> {
    if kind >= BUFFERS {
        return Err(Status::BadArgument.into());
    }
    let guest = call.guest();
    let body = |request: bool| {
        let stream = guest.stream()?;
        let stream = stream.borrow();
        // A body out of reach is an empty buffer in Envoy, not a missing one.
        Some(match request {
            true if stream.reach.request_body => stream.request_body.clone(),
            false if stream.reach.response_body => stream.response_body.clone(),
            _ => Vec::new(),
        })
    };
    Ok(match kind {
        0 => body(true),
        1 => body(false),
        4 => guest.incoming.http.as_ref().map(|(_, body, _)| body.clone()),
        5 => Some(guest.incoming.message.clone().unwrap_or_default()),
        6 => Some(guest.setup.vm_configuration.clone()),
        7 => guest.incoming.configuration.as_ref().map(|c| c.to_vec()),
        8 => Some(Vec::new()),
        _ => None,
    })
}

pub(super) fn get_buffer(
    call: &mut Call<'_>,
    kind: u32,
    from: u32,
    len: u32,
    to: u32,
    to_len: u32,
) -> Done {
    let bytes = buffer(call, kind)?.ok_or(Status::NotFound)?;
    let end = from.checked_add(len).ok_or(Status::BadArgument)? as usize;
    let end = end.min(bytes.len());
    let part = bytes.get(from as usize..end).ok_or(Status::BadArgument)?;
    // Nothing to read: Ok, and the guest's pointers keep what they were.
    if part.is_empty() {
        return Ok(());
    }
    call.give(part, to, to_len)
}

pub(super) fn get_buffer_status(call: &mut Call<'_>, kind: u32, len: u32, flags: u32) -> Done {
    let bytes = buffer(call, kind)?.ok_or(Status::NotFound)?;
    call.write_u32(len, bytes.len() as u32)?;
    Ok(call.write_u32(flags, 0)?)
}

pub(super) fn set_buffer(
    call: &mut Call<'_>,
    kind: u32,
    from: u32,
    len: u32,
    value: u32,
    value_len: u32,
) -> Done {
    if kind >= BUFFERS {
        return Err(Status::BadArgument.into());
    }
    let value = call.read(value, value_len)?;
    let stream = call.guest().stream().ok_or(Status::NotFound)?;
    let stream = &mut *stream.borrow_mut();
    let body = match kind {
        0 if stream.reach.request_body => &mut stream.request_body,
        1 if stream.reach.response_body => &mut stream.response_body,
        _ => return Err(Status::BadArgument.into()),
    };
    // Envoy can put in front, replace all, or append; nothing else.
    match (from as usize, len as usize) {
        (0, 0) => drop(body.splice(..0, value)),
        (0, len) if len >= body.len() => *body = value,
        (from, _) if from > 0 && from >= body.len() => body.extend(value),
        _ => return Err(Status::BadArgument.into()),
    }
    Ok(())
}
