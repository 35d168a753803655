//! Addresses as frameworks write them.

use std::net::{IpAddr, SocketAddr};

use super::Refusal;

/// Splits `host:port` at its last colon, and takes brackets off.
fn split_host(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Some((bare.unwrap_or(host), port))
}

/// Reads `ip:port`. An IPv6 address may lack its brackets, as in kitex' keys: its port comes after
/// the last colon.
///
/// # Errors
/// [`Refusal::HostName`] where a name stands in place of the address, else [`Refusal::Address`].
pub(super) fn parse(text: &str) -> Result<SocketAddr, Refusal> {
    let text = text.trim();
    let malformed = || Refusal::Address(pintle_state::show(text.as_bytes()));
    let (host, port) = split_host(text).ok_or_else(malformed)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(malformed)?;
    match host.parse::<IpAddr>() {
        Ok(address) => Ok((address, port).into()),
        Err(_) if is_host_name(host) => Err(Refusal::HostName(pintle_state::show(host.as_bytes()))),
        Err(_) => Err(malformed()),
    }
}

/// RFC 1123 and the underscores that people use; digits and dots alone are a broken address.
fn is_host_name(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && host.bytes().any(|b| b.is_ascii_alphabetic())
}

/// Host and port that stand apart, joined.
pub(super) fn join(host: &str, port: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.contains(':') { format!("[{bare}]:{port}") } else { format!("{bare}:{port}") }
}

/// A URL's scheme, authority and query.
pub(super) fn split_url(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or(rest);
    Some((scheme, authority.rsplit('@').next().unwrap_or(authority), query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_brackets_and_a_name_is_called_one() {
        for (text, expect) in [
            ("10.0.0.5:8080", Some("10.0.0.5:8080")),
            (" 10.0.0.5:8080\n", Some("10.0.0.5:8080")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
            ("2001:db8::1:80", Some("[2001:db8::1]:80")),
            ("10.0.0.5", None),
            ("10.0.0.5:0", None),
            ("10.0.0.5:http", None),
            ("10.0.0:80", None),
            ("10.0.0.5:80:80", None),
            (":8080", None),
            ("[fe80::1%eth0]:80", None),
            ("", None),
        ] {
            let expect = expect.map(|text| text.parse().unwrap());
            assert_eq!(parse(text).ok(), expect, "{text}");
        }
        for text in ["localhost:80", "orders-0.orders.svc:8080", "10-0-0-1.pod:1"] {
            assert!(matches!(parse(text), Err(Refusal::HostName(_))), "{text}");
        }
    }
}
