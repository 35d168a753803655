//! Which addresses an endpoint may have.
//!
//! A registry that anybody can write to must not turn the proxy into a way to reach its own
//! machine, the cloud's metadata service or a neighbour on the link. Some ranges are refused
//! whatever anyone configures; loopback and private ones are the operator's to name. The agent
//! checks before it publishes, and the filter checks again, because what it reads came through
//! shared data.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Why an address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressError {
    /// `0.0.0.0/8` or `::`.
    Unspecified,
    /// `224.0.0.0/4`, `ff00::/8` or the broadcast address.
    Multicast,
    /// `169.254.0.0/16` or `fe80::/10`.
    LinkLocal,
    /// An address at which a cloud serves its credentials.
    Metadata,
    /// An IPv4 address inside an IPv6 one (NAT64, 6to4, IPv4-compatible), which the network would
    /// translate back.
    Embedded,
    /// Reserved (`240.0.0.0/4`).
    Reserved,
    /// Loopback or private, and no allowed range holds it.
    NotAllowed,
}

impl AddressError {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::Embedded => "embedded",
            Self::Reserved => "reserved",
            Self::NotAllowed => "not_allowed",
        }
    }
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "the unspecified address",
            Self::Multicast => "a multicast or broadcast address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Embedded => "an IPv4 address embedded in an IPv6 one",
            Self::Reserved => "a reserved address",
            Self::NotAllowed => "a loopback or private address outside of the allowed ranges",
        })
    }
}

impl std::error::Error for AddressError {}

/// A range of addresses, `address/bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

/// The text was not `address/bits`, or bits beyond the prefix were set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseCidrError;

impl fmt::Display for ParseCidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a range is an IP address, a slash and a prefix length, like 10.0.0.0/8")
    }
}

impl std::error::Error for ParseCidrError {}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let (address, bits) = text.split_once('/').ok_or(ParseCidrError)?;
        let address: IpAddr = address.parse().map_err(|_| ParseCidrError)?;
        let bits: u8 = bits.parse().map_err(|_| ParseCidrError)?;
        let range = Self { address, bits };
        let widest = if address.is_ipv4() { 32 } else { 128 };
        if bits > widest || range.mask(address) != address {
            return Err(ParseCidrError);
        }
        Ok(range)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Cidr {
    fn mask(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits.min(32))).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits.min(128))).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        }
    }

    /// Whether the range holds `address`. A v4 range never holds a v6 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.mask(address) == self.address
    }
}

/// What the operator allows beyond public addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Loopback and private addresses are good only inside one of these.
    pub allow: Vec<Cidr>,
}

impl Default for AddressPolicy {
    /// Private networks (RFC 1918, RFC 6598, RFC 4193), not loopback.
    fn default() -> Self {
        let v4 = |a, b, bits| Cidr { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), bits };
        Self {
            allow: vec![
                v4(10, 0, 8),
                v4(172, 16, 12),
                v4(192, 168, 16),
                v4(100, 64, 10),
                Cidr { address: IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), bits: 7 },
            ],
        }
    }
}

impl AddressPolicy {
    /// Allows everything that is not refused always: for the second check, behind an agent that
    /// knows the operator's ranges.
    #[must_use]
    pub fn trusting() -> Self {
        let all = |address| Cidr { address, bits: 0 };
        Self {
            allow: vec![
                all(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                all(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            ],
        }
    }

    /// The canonical form of an address that an endpoint may have.
    ///
    /// # Errors
    /// The range it was refused for.
    pub fn check(&self, address: IpAddr) -> Result<IpAddr, AddressError> {
        let address = address.to_canonical();
        match address {
            IpAddr::V4(v4) => refuse_v4(v4)?,
            IpAddr::V6(v6) => refuse_v6(v6)?,
        }
        let local = match address {
            IpAddr::V4(v4) => {
                v4.is_loopback() || v4.is_private() || (v4.to_bits() >> 22) == (0x6440_0000 >> 22)
            }
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
        };
        if local && !self.allow.iter().any(|range| range.contains(address)) {
            return Err(AddressError::NotAllowed);
        }
        Ok(address)
    }
}

fn refuse_v4(v4: Ipv4Addr) -> Result<(), AddressError> {
    let first = v4.to_bits() >> 24;
    if first == 0 {
        Err(AddressError::Unspecified)
    } else if v4 == Ipv4Addr::new(169, 254, 169, 254) || v4 == Ipv4Addr::new(100, 100, 100, 200) {
        Err(AddressError::Metadata)
    } else if v4.is_link_local() {
        Err(AddressError::LinkLocal)
    } else if v4.is_multicast() || v4.is_broadcast() {
        Err(AddressError::Multicast)
    } else if first >= 240 {
        Err(AddressError::Reserved)
    } else {
        Ok(())
    }
}

fn refuse_v6(v6: Ipv6Addr) -> Result<(), AddressError> {
    let bits = v6.to_bits();
    if v6.is_unspecified() {
        Err(AddressError::Unspecified)
    } else if v6.is_loopback() {
        Ok(())
    } else if v6.is_multicast() {
        Err(AddressError::Multicast)
    } else if v6.is_unicast_link_local() || bits >> 118 == 0xfec0 >> 6 {
        Err(AddressError::LinkLocal)
    } else if bits >> 96 == 0xfd00_0ec2 {
        Err(AddressError::Metadata)
    } else if bits >> 96 == 0x0064_ff9b          // NAT64, RFC 6052
        || bits >> 80 == 0x0064_ff9b_0001        // local NAT64, RFC 8215
        || bits >> 112 == 0x2002                 // 6to4
        || bits >> 96 == 0x2001_0000             // Teredo
        || bits >> 32 == 0                       // IPv4-compatible
        || bits >> 32 == 0xffff_0000
    // SIIT, RFC 2765
    {
        Err(AddressError::Embedded)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_always_stays_refused_when_everything_is_allowed() {
        use AddressError as E;
        let table: &[(&str, Result<&str, E>)] = &[
            ("192.0.2.7", Ok("192.0.2.7")),
            ("10.1.2.3", Ok("10.1.2.3")),
            ("127.0.0.1", Ok("127.0.0.1")),
            ("::1", Ok("::1")),
            ("::ffff:10.1.2.3", Ok("10.1.2.3")),
            ("2001:db8::1", Ok("2001:db8::1")),
            ("0.0.0.0", Err(E::Unspecified)),
            ("0.1.2.3", Err(E::Unspecified)),
            ("::", Err(E::Unspecified)),
            ("169.254.0.1", Err(E::LinkLocal)),
            ("169.254.169.254", Err(E::Metadata)),
            ("::ffff:169.254.169.254", Err(E::Metadata)),
            ("100.100.100.200", Err(E::Metadata)),
            ("fd00:ec2::254", Err(E::Metadata)),
            ("fe80::1", Err(E::LinkLocal)),
            ("fec0::1", Err(E::LinkLocal)),
            ("224.0.0.1", Err(E::Multicast)),
            ("255.255.255.255", Err(E::Multicast)),
            ("ff02::1", Err(E::Multicast)),
            ("240.0.0.1", Err(E::Reserved)),
            ("64:ff9b::a9fe:a9fe", Err(E::Embedded)),
            ("2002:a9fe:a9fe::1", Err(E::Embedded)),
            ("::a9fe:a9fe", Err(E::Embedded)),
            ("2001::1", Err(E::Embedded)),
        ];
        for (text, expect) in table {
            let got = AddressPolicy::trusting().check(text.parse().unwrap());
            assert_eq!(got, expect.map(|e| e.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn loopback_and_private_need_the_operator() {
        let none = AddressPolicy { allow: Vec::new() };
        for text in
            ["127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.9.9", "100.64.0.1", "::1", "fd12::1"]
        {
            assert_eq!(none.check(text.parse().unwrap()), Err(AddressError::NotAllowed), "{text}");
        }
        assert!(none.check("192.0.2.1".parse().unwrap()).is_ok());
        let default = AddressPolicy::default();
        assert!(default.check("10.9.8.7".parse().unwrap()).is_ok());
        assert!(default.check("127.0.0.1".parse().unwrap()).is_err());
        let loopback = AddressPolicy { allow: vec!["127.0.0.0/8".parse().unwrap()] };
        assert!(loopback.check("127.0.0.1".parse().unwrap()).is_ok());
        assert!(loopback.check("10.9.8.7".parse().unwrap()).is_err());
    }

    #[test]
    fn a_range_is_refused_when_bits_beyond_its_prefix_are_set() {
        assert!("10.0.0.1/8".parse::<Cidr>().is_err());
        assert!("10.0.0.0/33".parse::<Cidr>().is_err());
        assert!("10.0.0.0".parse::<Cidr>().is_err());
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains("1.2.3.4".parse().unwrap()));
    }
}
