//! Sessions that stay where they are.
//!
//! The pin that a client carries is a hash of the service's name and the endpoint's id: it says
//! nothing of the address, and a forged one selects at most an endpoint that is registered anyway.
//! It is not a secret: who knows an id can compute its pin. A session stays with a draining
//! endpoint, because draining exists for exactly that; it leaves an unhealthy one and one whose
//! breaker is open.

use std::fmt;
use std::str::FromStr;

use pintle_contract::Health;
use xxhash_rust::xxh64::xxh64;

use crate::hash::{RequestView, cookie_value};
use crate::policy::{Cookie, Policy, Sticky};
use crate::verdict::Verdict;

/// What a session carries: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(pub(crate) u64);

/// The text was not 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsePinError;

impl Pin {
    pub(crate) fn of(service: &str, id: &str) -> Self {
        Self(xxh64(id.as_bytes(), xxh64(service.as_bytes(), 0x7069_6e00)))
    }

    /// The pin that the request carries, where the policy keeps it.
    #[must_use]
    pub fn read(policy: &Policy, request: &impl RequestView) -> Option<Self> {
        match policy.sticky.as_ref()? {
            Sticky::Header(name) => Self::parse(request.header(name)?),
            Sticky::Cookie(Cookie { name, .. }) => {
                Self::parse(cookie_value(request.header("cookie")?, name.as_bytes())?)
            }
        }
    }

    /// From a header's or a cookie's bytes. To write it: [`fmt::Display`], and [`Cookie::set`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        text.parse().ok()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for ParsePinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pin is 16 hexadecimal digits")
    }
}

impl std::error::Error for ParsePinError {}

impl FromStr for Pin {
    type Err = ParsePinError;

    fn from_str(text: &str) -> Result<Self, ParsePinError> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParsePinError);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| ParsePinError)
    }
}

/// The pin that a request carries, where the policy says to look for it.
#[must_use]
pub fn pin(sticky: &Sticky, request: &impl RequestView) -> Option<Pin> {
    match sticky {
        Sticky::Cookie(cookie) => {
            Pin::parse(cookie_value(request.header("cookie")?, cookie.name.as_bytes())?)
        }
        Sticky::Header(name) => Pin::parse(request.header(name)?),
    }
}

/// Whether a session may stay. Weight 0 takes nothing outside panic, pinned or not.
pub(crate) fn may_stay(health: Health, verdict: Verdict, weighs: bool) -> bool {
    weighs && health != Health::Unhealthy && verdict == Verdict::Pass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_survives_its_text() {
        let pin = Pin::of("orders", "a-1");
        assert_eq!(Pin::parse(pin.to_string().as_bytes()), Some(pin));
        assert_ne!(pin, Pin::of("users", "a-1"));
    }

    #[test]
    fn what_is_not_sixteen_digits_is_no_pin() {
        for text in ["", "0", "+000000000000001", "00000000000000000", "000000000000000g"] {
            assert_eq!(Pin::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Pin::parse(&[0xff; 16]), None);
    }
}
