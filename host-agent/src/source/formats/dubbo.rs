//! dubbo's applications: `/services/{app}/{host:port}`, which is our own default prefix.
//!
//! `{"ID":"10.0.0.5:20000","ServiceName":"shop","Host":"10.0.0.5","Port":20000,"Weight":0,"Enable":true, "Healthy":true,"Metadata":{..}}`,
//! under a lease of 30 s; Java's begins its fields with lower-case letters and takes 60 s. A weight
//! of nothing or less is 100.

use serde_json::{Value, json};

use super::{Format, Found, Refusal, Weight, Written, address, fields, split_last};

/// `DefaultWeight` of both languages.
const WEIGHT: u32 = 100;

#[derive(Debug)]
pub(super) struct Dubbo;

impl Format for Dubbo {
    fn recognises(&self, _: &[u8], value: &[u8]) -> bool {
        fields::object(value).is_ok_and(|said| fields::has(&said, &["ServiceName", "Host", "Port"]))
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let (name, id) = split_last(key);
        if name.is_empty() || id.is_empty() {
            return Ok(Vec::new());
        }
        let said = fields::object(value)?;
        let (host, port) = (fields::must(&said, "Host")?, fields::must(&said, "Port")?);
        let metadata = fields::get(&said, "Metadata");
        let mut labels = fields::labels(metadata);
        let tag = fields::get(&said, "Tag").and_then(fields::text).filter(|tag| !tag.is_empty());
        labels.extend(tag.map(|tag| ("tag".to_owned(), tag)));
        let weight = fields::get(&said, "Weight").cloned();
        Ok(vec![Found {
            name: name.to_vec(),
            id: id.to_vec(),
            address: address::join(&host, &port),
            weight: Weight {
                said: weight.unwrap_or_else(|| fields::label(&labels, "weight")),
                default: WEIGHT,
                zero: WEIGHT,
            },
            unhealthy: fields::is_false(&said, "Enable") || fields::is_false(&said, "Healthy"),
            metadata: labels,
            tags: Vec::new(),
        }])
    }

    fn write(&self, instance: &Written<'_>) -> Option<(String, String)> {
        let mut metadata = instance.labels();
        let tag = metadata.remove("tag").unwrap_or_else(|| Value::from(""));
        let value = json!({
            "ID": instance.address.to_string(),
            "ServiceName": instance.name,
            "Host": instance.address.ip().to_string(),
            "Port": instance.address.port(),
            "Weight": instance.weight().unwrap_or(0),
            "Enable": true,
            "Healthy": instance.healthy,
            "Metadata": metadata,
            "Tag": tag,
        });
        Some((format!("{}/{}", instance.name, instance.address), value.to_string()))
    }
}
