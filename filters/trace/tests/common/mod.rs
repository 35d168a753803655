//! A request that goes through [`propagate`] and what comes out, applied as Envoy applies it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use pintle_trace::{Config, Context, Edit, Edits, Policy, is_field_value, propagate};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// The example of the specification.
pub const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub const PARENT: &str = "b7ad6b7169203331";

pub fn config(json: &str) -> Config {
    pintle_settings::read("trace", serde_json::from_str(json).unwrap()).unwrap()
}

pub fn policy(json: &str) -> Policy {
    pintle_settings::read("trace", serde_json::from_str(json).unwrap()).unwrap()
}

/// Headers after the edits, lower-case names.
#[derive(Debug)]
pub struct Sent {
    pub context: Context,
    pub headers: Vec<(String, Vec<u8>)>,
    pub edits: usize,
}

impl Sent {
    /// The only value of a header; `None` if it is not there.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(n, _)| n == name);
        let value = all.next().map(|(_, v)| std::str::from_utf8(v).unwrap());
        assert!(all.next().is_none(), "{name} came out twice: {self:?}");
        value
    }

    /// `traceparent`, cut at its dashes.
    pub fn traceparent(&self) -> [&str; 4] {
        let value = self.get("traceparent").unwrap();
        value.split('-').collect::<Vec<_>>().try_into().unwrap()
    }
}

/// With an exporter, so that the proxy participates.
pub const PARTICIPATING: &str = r#"{"participate": true}"#;
/// Without one, so that it forwards.
pub const FORWARDING: &str = r#"{}"#;

pub fn send_bytes(config: &Config, policy: &Policy, headers: &[(&[u8], &[u8])]) -> Sent {
    let mut edits = Edits::new();
    let mut rng = StdRng::seed_from_u64(1);
    let context = propagate(config, policy, headers.iter().copied(), &mut rng, &mut edits);
    let mut out: Vec<(String, Vec<u8>)> = headers
        .iter()
        .map(|(n, v)| (String::from_utf8_lossy(n).to_ascii_lowercase(), v.to_vec()))
        .collect();
    for edit in edits.iter() {
        match edit {
            Edit::Remove { name } => out.retain(|(n, _)| n != name),
            Edit::Set { name, value } => {
                assert!(is_field_value(value), "{name}: {value:?}");
                out.retain(|(n, _)| n != name);
                out.push((name.into(), value.to_vec()));
            }
        }
    }
    Sent { context, headers: out, edits: edits.len() }
}

pub fn send(json: &str, headers: &[(&str, &str)]) -> Sent {
    let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    send_bytes(&config(json), &policy("{}"), &headers)
}
