use pintle_contract::{Force, ForceAction, Opinion};
use proptest::prelude::*;

use super::*;
use crate::classify::{FailureKind, Outcome};
use crate::machine::{Context, Input};
use crate::policy::{Fleet, Policy};

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = vec![1, 2, 3];
    record.encode(&mut bytes);
    bytes
}

/// A record that a machine has written, after any history.
fn histories() -> impl Strategy<Value = Record> {
    prop::collection::vec((0u8..9, 0u64..20_000, any::<u32>()), 0..60).prop_map(|steps| {
        let policy = Policy { fleet: Fleet::Enforce, ..Policy::unconfigured() };
        let mut record = Record::default();
        let mut now = Now::from_millis(1_700_000_000_000);
        for (kind, millis, random) in steps {
            now = Now(now.0 + millis * 1_000_000);
            let last_resort = random % 2 == 0;
            let context = Context { policy: &policy, opinion: None, last_resort, now, random };
            let until = Now::from_millis(now.as_millis() + millis);
            let failure = Outcome::Failure(FailureKind::Reset);
            let soft = Outcome::Soft { retry_after: Some(std::time::Duration::from_secs(9999)) };
            let action = [ForceAction::Open, ForceAction::Close, ForceAction::Clear];
            let input = match kind {
                0 | 1 => Input::Answer(failure),
                2 => Input::Answer(soft),
                3 => Input::Answer(Outcome::Success { slow: false }),
                4 => {
                    let _ = record.try_probe(&context);
                    Input::Tick
                }
                5 => Input::Probe { id: record.last_probe, outcome: failure, at: now },
                6 => Input::Tick,
                7 => Input::Opinion(Opinion { expires_at: until, reporters: 1 }),
                _ => {
                    Input::Force(Force { action: action[random as usize % 3], until, stamp: now.0 })
                }
            };
            record.apply(input, &context);
        }
        record
    })
}

#[test]
fn the_layout_is_what_the_header_says() {
    let bytes = encoded(&Record::default());
    assert_eq!(bytes.len(), RECORD_BYTES);
    assert_eq!(RECORD_BYTES, 348);
    assert_eq!(&bytes[..8], b"PBRK\x01\x00\x02\x00");
    assert!(bytes[8..RECORD_BYTES - 8].iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_no_record_is_told_apart() {
    let good = encoded(&Record::default());
    let resum = |mut bytes: Vec<u8>| {
        let sum = xxh64(&bytes[..RECORD_BYTES - 8], 0);
        bytes[RECORD_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(Record::decode(&[]), Err(DecodeError::Empty));
    for cut in 1..RECORD_BYTES {
        assert_eq!(Record::decode(&good[..cut]), Err(DecodeError::NotARecord), "cut at {cut}");
    }
    assert_eq!(Record::decode(&with(0, b'X')), Err(DecodeError::NotARecord));
    assert_eq!(Record::decode(&with(4, 2)), Err(DecodeError::Schema(2)));
    for (at, byte) in good.iter().enumerate().skip(5) {
        let flipped = with(at, byte ^ 0x40);
        assert_eq!(Record::decode(&flipped), Err(DecodeError::Checksum), "byte {at}");
    }
    assert_eq!(Record::decode(&resum(with(5, 3))), Err(DecodeError::Value), "state 3");
    assert_eq!(Record::decode(&resum(with(6, 4))), Err(DecodeError::Value), "origin 4");
    assert_eq!(Record::decode(&resum(with(7, 1))), Err(DecodeError::Value), "the zero byte");
}

#[test]
fn a_record_that_would_wedge_the_breaker_is_refused() {
    let now = Now::from_millis(1_000_000);
    let half = Record { state: State::HalfOpen, touched: now, ..Record::default() };
    let mut for_ever = half.clone();
    for_ever.probes[0] = Probe { id: 1, expires: Now(u64::MAX) };
    assert_eq!(Record::decode(&encoded(&for_ever)), Err(DecodeError::Value));

    let from_the_future = Record { since: Now(now.0 + 1), ..half.clone() };
    assert_eq!(Record::decode(&encoded(&from_the_future)), Err(DecodeError::Value));

    let worst_of_all = Record { trips: MAX_TRIPS + 1, ..half.clone() };
    assert_eq!(Record::decode(&encoded(&worst_of_all)), Err(DecodeError::Value));

    let mut probe_while_closed = Record { state: State::Closed, ..half };
    probe_while_closed.probes[0] = Probe { id: 1, expires: now };
    assert_eq!(Record::decode(&encoded(&probe_while_closed)), Err(DecodeError::Value));
}

proptest! {
    #[test]
    fn what_a_machine_wrote_comes_back(record in histories()) {
        let bytes = encoded(&record);
        prop_assert_eq!(bytes.len(), RECORD_BYTES);
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
    }

    #[test]
    fn no_bytes_trap(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Record::decode(&bytes);
    }

    /// Bytes with the right frame around anything: decoding, and then using what was decoded.
    #[test]
    fn no_framed_bytes_trap(body in prop::collection::vec(any::<u8>(), RECORD_BYTES), now: u64) {
        let mut bytes = body;
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = SCHEMA;
        bytes[5] %= 3;
        bytes[6] %= 4;
        bytes[7] = 0;
        let unused = HEAD + 5 * 4 + 6 * 8;
        bytes[unused..unused + 8].fill(0);
        let sum = xxh64(&bytes[..RECORD_BYTES - 8], 0);
        bytes[RECORD_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(mut record) = Record::decode(&bytes) {
            prop_assert_eq!(encoded(&record), bytes, "equal records are equal bytes");
            drive(&mut record, Now(now));
        }
    }

    /// Any field values at all, as an attacker with the codec could write them.
    #[test]
    fn no_record_traps(
        words: [u32; 5], longs: [u64; 9], slots: [(u32, u64); 8],
        bucket_ns: u64, head: u64, counts: [u32; 3], tags in (0u8..3, 0u8..4), now: u64,
    ) {
        let [consecutive, trips, generation, probe_successes, last_probe] = words;
        let [revision, since, until, touched, clean_since, watched, opinion, force, held] = longs;
        let [total, failed, slow] = counts;
        let mut record = Record {
            state: state_of(tags.0).unwrap(),
            origin: origin_of(tags.1).unwrap(),
            consecutive, trips, generation, revision,
            since: Now(since), until: Now(until), touched: Now(touched),
            clean_since: Now(clean_since), watched_since: Now(watched),
            opinion_seen: Now(opinion), force_seen: force, held_until: Now(held),
            probe_successes, last_probe,
            probes: slots.map(|(id, expires)| Probe { id, expires: Now(expires) }),
            window: Window { bucket_ns, head, buckets: [Counts { total, failed, slow }; BUCKETS] },
        };
        let _ = Record::decode(&encoded(&record));
        drive(&mut record, Now(now));
    }
}

fn drive(record: &mut Record, now: Now) {
    let policy = Policy { fleet: Fleet::Enforce, ..Policy::unconfigured() };
    let opinion = Some(Opinion { expires_at: Now(u64::MAX), reporters: 1 });
    let context = Context { policy: &policy, opinion, last_resort: false, now, random: u32::MAX };
    let failure = Outcome::Failure(FailureKind::Reset);
    let _ = (record.verdict(&policy, now), record.severity(), record.counts(&policy, now));
    let id = record.probes[0].id;
    let _ = record.clone().try_probe(&context);
    for input in [
        Input::Probe { id, outcome: failure, at: now },
        Input::Answer(failure),
        Input::Answer(Outcome::Success { slow: true }),
        Input::Answer(Outcome::Soft { retry_after: Some(std::time::Duration::MAX) }),
        Input::Opinion(Opinion { expires_at: Now(u64::MAX), reporters: u32::MAX }),
        Input::Force(Force { action: ForceAction::Close, until: Now(u64::MAX), stamp: u64::MAX }),
        Input::Tick,
    ] {
        record.apply(input, &context);
    }
}
