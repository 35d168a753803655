//! Properties, filter state, and foreign functions.
//!
//! A property that the guest sets becomes the filter-state value `wasm.<name>`, whatever its name;
//! setting `cluster` or `upstream.address` has no other effect. The foreign function
//! `set_envoy_filter_state` writes a value under its own name, but only under a name that Envoy has
//! a factory for.

use std::net::SocketAddr;

use super::{Call, Done};
use crate::abi::Status;
use crate::property::{derive, is_global};

pub(super) fn get_property(
    call: &mut Call<'_>,
    path: u32,
    path_len: u32,
    to: u32,
    to_len: u32,
) -> Done {
    let path = call.read(path, path_len)?;
    // Envoy's parser of paths takes a closing NUL as the end.
    let path = path.strip_suffix(b"\0").unwrap_or(&path);
    let value = find(call, path).ok_or(Status::NotFound)?;
    call.give(&value, to, to_len)
}

fn find(call: &Call<'_>, path: &[u8]) -> Option<Vec<u8>> {
    let guest = call.guest();
    let stream = guest.stream();
    if let Some(stream) = &stream
        && let Some(value) = stream.borrow().properties.get(path)
    {
        return Some(value.to_bytes());
    }
    if (stream.is_some() || is_global(path))
        && let Some(value) = guest.setup.properties.get(path)
    {
        return Some(value.to_bytes());
    }
    match path {
        b"plugin_name" => return Some(guest.setup.plugin_name.clone().into_bytes()),
        b"plugin_root_id" => return Some(guest.setup.root_id.clone().into_bytes()),
        b"plugin_vm_id" => return Some(guest.setup.vm_id.clone().into_bytes()),
        _ => {}
    }
    derive(&stream?.borrow(), path).map(|value| value.to_bytes())
}

pub(super) fn set_property(
    call: &mut Call<'_>,
    path: u32,
    path_len: u32,
    value: u32,
    value_len: u32,
) -> Done {
    let (path, value) = (call.read(path, path_len)?, call.read(value, value_len)?);
    let stream = call.guest().stream().ok_or(Status::NotFound)?;
    let key = [b"wasm.", path.as_slice()].concat();
    stream.borrow_mut().filter_state.insert(key, value);
    Ok(())
}

pub(super) fn call_foreign_function(
    call: &mut Call<'_>,
    name: u32,
    name_len: u32,
    arguments: u32,
    arguments_len: u32,
    to: u32,
    to_len: u32,
) -> Done {
    let name = call.read_text(name, name_len)?;
    let arguments = call.read(arguments, arguments_len)?;
    let custom = call.guest().setup.foreign_functions.get(&name).cloned();
    let (answer, result) = match (custom, name.as_str()) {
        (Some(function), _) => match function(&arguments) {
            Ok(result) => (Ok(()), result),
            Err(status) => (Err(status), Vec::new()),
        },
        (None, "set_envoy_filter_state") => (set_filter_state(call, &arguments), Vec::new()),
        (None, "clear_route_cache") => {
            if let Some(stream) = call.guest().stream() {
                stream.borrow_mut().route_cache_clears += 1;
            }
            (Ok(()), Vec::new())
        }
        (None, "declare_property") => (Ok(()), Vec::new()),
        (None, _) => return Err(Status::NotFound.into()),
    };
    // Pointer and size are written even when the function failed; either may be null.
    let at = call.allocate(&result)?;
    if to != 0 {
        call.write_u32(to, at)?;
    }
    if to_len != 0 {
        call.write_u32(to_len, result.len() as u32)?;
    }
    Ok(answer?)
}

/// The names that have a factory in Envoy 1.40 and make sense for a request.
pub(crate) const FILTER_STATE_OBJECTS: [&str; 11] = [
    "envoy.string",
    "envoy.hashable_string",
    "envoy.network.application_protocols",
    "envoy.network.transport_socket.original_dst_address",
    "envoy.network.upstream_server_name",
    "envoy.network.upstream_subject_alt_names",
    "envoy.ratelimit.hits_addend",
    "envoy.tcp_proxy.cluster",
    "envoy.tcp_proxy.disable_tunneling",
    "envoy.upstream.dynamic_host",
    "envoy.upstream.dynamic_port",
];

/// `SetEnvoyFilterStateArguments {1: path, 2: value, 3: span}`.
fn set_filter_state(call: &Call<'_>, arguments: &[u8]) -> Result<(), Status> {
    let (path, value) = parse_arguments(arguments).ok_or(Status::BadArgument)?;
    let guest = call.guest();
    let name = String::from_utf8_lossy(&path).into_owned();
    if !guest.setup.filter_state_objects.contains(&name) {
        return Err(Status::NotFound);
    }
    let text = String::from_utf8_lossy(&value);
    let valid = match name.as_str() {
        "envoy.network.transport_socket.original_dst_address" => text.parse::<SocketAddr>().is_ok(),
        "envoy.upstream.dynamic_port" => text.parse::<u16>().is_ok(),
        _ => true,
    };
    if !valid {
        return Err(Status::BadArgument);
    }
    let stream = guest.stream().ok_or(Status::NotFound)?;
    stream.borrow_mut().filter_state.insert(path, value);
    Ok(())
}

/// The two strings of the message; unknown fields are skipped, as protobuf wants it.
fn parse_arguments(mut bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut path, mut value) = (Vec::new(), Vec::new());
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match tag & 7 {
            0 => drop(varint(&mut bytes)?),
            1 => bytes = bytes.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (field, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                match tag >> 3 {
                    1 => path = field.to_vec(),
                    2 => value = field.to_vec(),
                    _ => {}
                }
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some((path, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_of_the_foreign_function_are_protobuf() {
        let bytes = b"\x0a\x03abc\x12\x02de\x18\x00";
        assert_eq!(parse_arguments(bytes), Some((b"abc".to_vec(), b"de".to_vec())));
        for cut in [1, 2, 4, 6, 8, 10] {
            assert_eq!(parse_arguments(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
