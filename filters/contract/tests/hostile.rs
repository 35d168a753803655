//! Any bytes decode to a value or to a typed error, and every value reads back as itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail like tests")]

use std::net::{IpAddr, SocketAddr};

use pintle_contract::{
    DecodeError, Down, Endpoint, Health, Index, Lease, Loads, MAX_FRAME, Message, Note, Now, Slot,
    Table, Up, Version,
};
use proptest::prelude::*;

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let health =
        prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy), Just(Health::Draining)];
    let labels = prop::collection::btree_map("[a-z]{1,8}", "\\PC{0,20}", 0..4);
    let address = prop_oneof![
        any::<u16>().prop_map(|low| IpAddr::from([10, 0, (low >> 8) as u8, low as u8])),
        any::<u16>().prop_map(|low| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, low])),
    ];
    ("[a-z0-9]{1,12}", address, 1u16.., 0u32..=1_000_000, health, any::<u64>(), labels).prop_map(
        |(id, address, port, weight, health, at, labels)| {
            let mut endpoint = Endpoint::new(id, SocketAddr::new(address, port));
            endpoint.weight = weight;
            endpoint.health = health;
            endpoint.registered_at = Now(at);
            endpoint.tags = labels.keys().cloned().collect();
            endpoint.metadata = labels.into_iter().collect();
            endpoint
        },
    )
}

fn table() -> impl Strategy<Value = Table> {
    let endpoints = prop::collection::vec(endpoint(), 0..20);
    ("[a-z]{1,10}", any::<(u64, u64)>(), endpoints, "\\PC{0,40}").prop_map(
        |(service, (epoch, sequence), mut endpoints, policy)| {
            endpoints.sort_by(|a, b| a.id.cmp(&b.id));
            endpoints.dedup_by(|a, b| a.id == b.id);
            Table { service, version: Version { epoch, sequence }, endpoints, policy }
        },
    )
}

fn decode_all(bytes: &[u8]) {
    let _ = Down::decode(bytes);
    let _ = Up::decode(bytes);
    let _ = Note::decode(bytes);
    let _ = Lease::decode(bytes);
    let _ = Index::decode(bytes);
    let _ = Slot::decode(bytes);
    let _ = Loads::decode(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all(&bytes);
    }

    /// Random bytes never get past the checksum, so the payload is made hostile and framed rightly.
    #[test]
    fn any_payload_behind_a_right_frame_decodes_or_is_refused(
        kind in prop::sample::select(vec![1u8, 2, 3, 4, 5, 16, 17, 18, 19, 20, 32, 33, 34, 48, 49, 50, 99]),
        payload in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        decode_all(&framed(kind, &payload));
    }

    #[test]
    fn a_table_reads_back_as_itself_and_has_one_encoding(table in table()) {
        let down = Down::Table(table);
        let bytes = down.encode();
        let read = Down::decode(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&down));
        prop_assert_eq!(read.unwrap().encode(), bytes);
    }

    #[test]
    fn a_cut_or_flipped_table_is_refused(table in table(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let bytes = Down::Table(table).encode();
        let at = at.index(bytes.len());
        prop_assert!(Down::decode(&bytes[..at]).is_err());
        let mut flipped = bytes;
        flipped[at] ^= 1 << bit;
        prop_assert!(Down::decode(&flipped).is_err());
    }
}

fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"PNTL".to_vec();
    bytes.extend_from_slice(&[if kind == 20 { 2 } else { 1 }, kind]);
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(payload);
    let checksum = xxhash_rust::xxh64::xxh64(&bytes, 0);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn each_way_to_be_wrong_has_its_name() {
    let good = Down::Heartbeat(Version { epoch: 1, sequence: 2 }).encode();
    let mut magic = good.clone();
    magic[0] = b'X';
    let mut schema = good.clone();
    schema[4] = 9;
    let end = schema.len() - 8;
    let checksum = xxhash_rust::xxh64::xxh64(&schema[..end], 0);
    schema[end..].copy_from_slice(&checksum.to_le_bytes());
    let mut length = good.clone();
    length[6] = 200;
    let mut long = vec![0; MAX_FRAME + 1];
    long[..4].copy_from_slice(b"PNTL");
    let table = [
        ("nothing", Vec::new(), DecodeError::Truncated),
        ("magic", magic, DecodeError::Magic),
        ("schema", schema, DecodeError::Schema(9)),
        ("length", length, DecodeError::Length),
        (
            "checksum",
            [&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat(),
            DecodeError::Checksum,
        ),
        ("kind", framed(99, &[]), DecodeError::Kind(99)),
        ("another's kind", framed(16, &[]), DecodeError::Kind(16)),
        ("trailing", framed(4, &[1, 2, 3]), DecodeError::Trailing),
        ("cut payload", framed(4, &[1]), DecodeError::Truncated),
        ("two encodings of a number", framed(4, &[0x81, 0x00, 2]), DecodeError::Invalid("integer")),
        (
            "a huge count",
            framed(1, b"\x01a\x00\x00\x00\xff\xff\xff\xff\x0f"),
            DecodeError::Truncated,
        ),
        ("too long", long, DecodeError::TooLong),
        ("text", framed(2, b"\x01\xff\x00\x00"), DecodeError::Text),
    ];
    for (name, bytes, expect) in table {
        assert_eq!(Down::decode(&bytes), Err(expect), "{name}");
    }
}

#[test]
fn a_field_out_of_range_is_named() {
    let good = || Endpoint::new("a", SocketAddr::from(([10, 0, 0, 1], 80)));
    let with = |change: fn(&mut Endpoint)| {
        let mut endpoint = good();
        change(&mut endpoint);
        endpoint
    };
    let table = [
        ("id", with(|e| e.id = "a/b".to_owned())),
        ("id", with(|e| e.id = String::new())),
        ("id", with(|e| e.id = "..".to_owned())),
        ("address", with(|e| e.address = "169.254.169.254".parse().unwrap())),
        ("address", with(|e| e.address = "::ffff:10.0.0.1".parse().unwrap())),
        ("port", with(|e| e.port = 0)),
        ("weight", with(|e| e.weight = 1_000_001)),
        ("zone", with(|e| e.zone = "z".repeat(4097))),
        ("tags", with(|e| e.tags = ["b".to_owned(), "a".to_owned()].into())),
        (
            "metadata",
            with(|e| e.metadata = [("a".into(), "1".into()), ("a".into(), "2".into())].into()),
        ),
    ];
    for (field, endpoint) in table {
        let table = Table {
            service: "s".to_owned(),
            version: Version::default(),
            endpoints: vec![endpoint],
            policy: String::new(),
        };
        let bytes = Down::Table(table).encode();
        assert_eq!(Down::decode(&bytes), Err(DecodeError::Invalid(field)));
    }
    let twice = Table {
        service: "s".to_owned(),
        version: Version::default(),
        endpoints: vec![good(), good()],
        policy: String::new(),
    };
    assert_eq!(
        Down::decode(&Down::Table(twice).encode()),
        Err(DecodeError::Invalid("order of endpoints"))
    );
}
