//! JSON that is nearly right.
//!
//! Random text is refused at its first character and random JSON at its first key. So a target has
//! a document in which everything is said that can be, and the input decides what of it is left out
//! or said otherwise.

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value};

/// Words that mean something somewhere, or nearly do.
const WORDS: [&str; 48] = [
    "",
    "a",
    "orders",
    "orders-1",
    "off",
    "any",
    "default",
    "none",
    "10.0.7.4",
    "127.0.0.1",
    "169.254.169.254",
    "::ffff:10.1.2.3",
    "fd00:ec2::254",
    "0x7f.1",
    "10.0.0.0/8",
    "1.5",
    "80",
    "healthy",
    "draining",
    "0s",
    "1s",
    "90s",
    "10m",
    "24h",
    "25h",
    "100ms",
    "1h 30m",
    "500-599",
    "404",
    "599-400",
    "enforce",
    "maglev",
    "ring_hash",
    "p2c",
    "murmur2",
    "per_attempt",
    "restart",
    "egress",
    "xray",
    "datadog",
    "baggage",
    "x-user",
    ":path",
    "a*b",
    "*",
    "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "0001-01-01T00:00:00Z",
];

/// Numbers at which something changes.
const NUMBERS: [f64; 24] = [
    -1.0,
    0.0,
    0.01,
    0.1,
    0.5,
    1.0,
    2.0,
    3.0,
    7.0,
    16.0,
    17.0,
    50.0,
    99.0,
    100.0,
    101.0,
    500.0,
    1_024.0,
    65_535.0,
    65_536.0,
    65_537.0,
    1_000_000.0,
    1_000_001.0,
    8_388_608.0,
    1e300,
];

/// `whole` with parts left out or replaced, as the bytes say; when they are used up the rest stays.
pub(crate) fn vary(whole: &Value, u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match (u.arbitrary::<u8>()?, whole) {
        (0xe0.., _) => other(u)?,
        (_, Value::Object(entries)) => {
            let mut kept = Map::new();
            for (key, value) in entries {
                if u.arbitrary::<u8>()? < 0xc0 {
                    kept.insert(key.clone(), vary(value, u)?);
                }
            }
            Value::Object(kept)
        }
        (_, Value::Array(items)) => {
            let mut kept = Vec::new();
            for item in items {
                for _ in 0..[1, 1, 0, 1, 2][usize::from(u.arbitrary::<u8>()? % 5)] {
                    kept.push(vary(item, u)?);
                }
            }
            Value::Array(kept)
        }
        (_, scalar) => scalar.clone(),
    })
}

/// Anything.
pub(crate) fn other(u: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match u.arbitrary::<u8>()? % 9 {
        0 => Value::Null,
        1 => u.arbitrary::<bool>()?.into(),
        2 => u.arbitrary::<i64>()?.into(),
        3 => u.arbitrary::<u8>()?.into(),
        4 => {
            let number = NUMBERS[usize::from(u.arbitrary::<u8>()?) % NUMBERS.len()];
            if number.fract() == 0.0 && number.abs() < 1e9 {
                (number as i64).into()
            } else {
                number.into()
            }
        }
        5 | 6 => WORDS[usize::from(u.arbitrary::<u8>()?) % WORDS.len()].into(),
        7 => u.arbitrary::<&str>()?.into(),
        _ => {
            let levels = u.arbitrary::<u8>()? % 24;
            (0..levels).fold(Value::Null, |inner, level| match level % 2 {
                0 => Value::Array(vec![inner]),
                _ => Value::Object(Map::from_iter([("a".to_owned(), inner)])),
            })
        }
    })
}
