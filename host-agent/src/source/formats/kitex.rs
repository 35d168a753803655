//! kitex and hertz (`registry-etcd`): `kitex/registry-etcd/{service}/{ip:port}`.
//!
//! `{"network":"tcp","address":"10.0.0.5:8888","weight":10,"tags":{"k":"v"}}`, under a lease of 60
//! s. A weight of nothing or less is 10. kitex writes IPv6 without brackets into its key, hertz
//! with them; a name may contain slashes.

use serde_json::json;

use super::{Format, Found, Refusal, Weight, Written, fields, split_last};

/// What both call `DefaultWeight`.
const WEIGHT: u32 = 10;

#[derive(Debug)]
pub(super) struct Kitex;

impl Format for Kitex {
    fn recognises(&self, _: &[u8], value: &[u8]) -> bool {
        fields::object(value).is_ok_and(|said| fields::has(&said, &["network", "address"]))
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let (name, id) = split_last(key);
        if name.is_empty() || id.is_empty() {
            return Ok(Vec::new());
        }
        let said = fields::object(value)?;
        let network = fields::get(&said, "network").and_then(fields::text).unwrap_or_default();
        if network.starts_with("unix") {
            return Err(Refusal::Value("an instance that is reached by TCP"));
        }
        Ok(vec![Found {
            name: name.to_vec(),
            id: id.to_vec(),
            address: fields::must(&said, "address")?,
            weight: Weight {
                said: fields::get(&said, "weight").cloned().unwrap_or_default(),
                default: WEIGHT,
                zero: WEIGHT,
            },
            metadata: fields::labels(fields::get(&said, "tags")),
            ..Found::default()
        }])
    }

    fn write(&self, instance: &Written<'_>) -> Option<(String, String)> {
        let value = json!({
            "network": "tcp",
            "address": instance.address.to_string(),
            "weight": instance.weight().unwrap_or(WEIGHT),
            "tags": instance.labels(),
        });
        let key = format!("{}/{}", instance.name, instance.address);
        instance.healthy.then(|| (key, value.to_string()))
    }
}
