//! The bytes of the stream, of shared data and of the queues.

use std::fmt::Debug;
use std::net::IpAddr;

use pintle_contract::{
    AddressPolicy, Cidr, Down, Index, Lease, Loads, MAX_ENDPOINTS, MAX_POLICY, Message, Note,
    Schema, Slot, Up, Version, is_name,
};
use xxhash_rust::xxh64::xxh64;

/// Every kind of message, and one that is none.
const KINDS: [u8; 19] = [1, 2, 3, 4, 16, 17, 18, 19, 20, 32, 33, 34, 35, 48, 49, 50, 51, 99, 21];

/// A frame that is right as far as its payload is: bytes alone never get past the checksum.
pub(crate) fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"PNTL".to_vec();
    let schema = match kind {
        20 => Schema::Two,
        21 => Schema::Three,
        _ => Schema::One,
    };
    bytes.extend_from_slice(&[schema as u8, kind]);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    let checksum = xxh64(&bytes, 0);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(crate) fn frames(data: &[u8]) {
    decode_all(data);
    if let Some((kind, payload)) = data.split_first() {
        let bytes = framed(KINDS[usize::from(*kind) % KINDS.len()], payload);
        decode_all(&bytes);
        if let Ok(Note::Forward(inner)) = Note::decode(&bytes) {
            decode_all(&inner);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        read_text(text);
    }
    if let Some(bytes) = data.first_chunk::<16>() {
        check_address(IpAddr::from(*bytes));
    }
    if let Some(bytes) = data.first_chunk::<4>() {
        check_address(IpAddr::from(*bytes));
    }
}

fn decode_all(bytes: &[u8]) {
    let taken = [
        decode(bytes, |down: &Down| down.encode_for(Schema::of(bytes)))
            .inspect(check_down)
            .is_some(),
        decode(bytes, |up: &Up| up.encode_for(Schema::of(bytes))).is_some(),
        decode(bytes, Note::encode).is_some(),
        decode(bytes, Lease::encode).is_some(),
        decode(bytes, Index::encode).is_some(),
        decode(bytes, Loads::encode).is_some(),
        decode_slot(bytes).is_some(),
    ];
    assert!(taken.iter().filter(|taken| **taken).count() <= 1, "bytes with two meanings");
}

/// A value has one encoding, so what decodes encodes to what it was.
fn decode<T: Message + Debug>(bytes: &[u8], encode: impl FnOnce(&T) -> Vec<u8>) -> Option<T> {
    match T::decode(bytes) {
        Ok(message) => {
            assert_eq!(encode(&message), bytes, "{message:?}");
            Some(message)
        }
        Err(error) => {
            assert!(!error.reason().is_empty() && !error.to_string().is_empty());
            None
        }
    }
}

/// Of a slot as 0.1 wrote it, the load is left out.
fn decode_slot(bytes: &[u8]) -> Option<Slot> {
    let slot = Slot::decode(bytes).ok()?;
    assert_eq!(Slot::decode(&slot.encode()), Ok(slot));
    Some(slot)
}

fn check_down(down: &Down) {
    if let Down::Table(table) = down {
        assert!(is_name(&table.service));
        assert!(table.policy.len() <= MAX_POLICY && table.endpoints.len() <= MAX_ENDPOINTS);
        assert!(table.endpoints.is_sorted_by(|a, b| a.id < b.id));
        for endpoint in &table.endpoints {
            assert_eq!(endpoint.check(), Ok(()));
            check_address(endpoint.address);
        }
    }
}

fn read_text(text: &str) {
    if let Ok(range) = text.parse::<Cidr>() {
        assert_eq!(range.to_string().parse(), Ok(range));
        let address = text.split('/').next().and_then(|address| address.parse().ok());
        assert!(address.is_some_and(|address| range.contains(address)));
    }
    if let Ok(version) = text.parse::<Version>() {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
}

/// No operator's list lets in what is refused always, in whichever form it comes.
fn check_address(address: IpAddr) {
    let Ok(good) = AddressPolicy::trusting().check(address) else { return };
    assert_eq!(good, address.to_canonical());
    assert_eq!(AddressPolicy::trusting().check(good), Ok(good));
    let refused = match good {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            a == 0 || a >= 224 || [a, b] == [169, 254] || [a, b, c, d] == [100, 100, 100, 200]
        }
        IpAddr::V6(v6) => {
            let [a, b, ..] = v6.segments();
            v6.is_unspecified()
                || v6.is_multicast()
                || a & 0xff80 == 0xfe80
                || [a, b] == [0xfd00, 0x0ec2]
                || v6.to_ipv4_mapped().is_some()
        }
    };
    assert!(!refused, "{good} is let in");
    let none = AddressPolicy { allow: Vec::new() };
    let local = match good {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    };
    assert!(!local || none.check(address).is_err(), "{good} is let in by nobody's word");
}
