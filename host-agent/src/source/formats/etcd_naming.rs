//! gRPC's naming in etcd (`client/v3/naming/endpoints`), and jupiter's, which adds to its metadata.
//!
//! `{target}/{anything}` -> `{"Op":0,"Addr":"10.0.0.5:8080","Metadata":null}`. The lease is the
//! caller's and may be none; the metadata is any JSON.

use serde_json::{Value, json};

use super::{Format, Found, Refusal, Weight, Written, fields, split_last};

#[derive(Debug)]
pub(super) struct EtcdNaming {
    /// jupiter's instances weigh 100 where nothing is said.
    pub(super) jupiter: bool,
}

impl Format for EtcdNaming {
    fn recognises(&self, _: &[u8], value: &[u8]) -> bool {
        fields::object(value).is_ok_and(|fields| {
            fields::has(&fields, &["Addr"])
                && (fields::has(&fields, &["Op"]) || fields.keys().any(|key| key == "Metadata"))
        })
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let (name, id) = split_last(key);
        if id.is_empty() {
            return Ok(Vec::new());
        }
        let said = fields::object(value)?;
        let metadata = fields::get(&said, "Metadata");
        let mut labels = fields::labels(metadata);
        // What is no object has no names; one that is a text or a number is still worth keeping.
        if let Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) = metadata {
            labels.extend(fields::text(value).map(|text| ("metadata".to_owned(), text)));
        }
        let unhealthy = metadata.and_then(Value::as_object).is_some_and(|metadata| {
            fields::is_false(metadata, "enable") || fields::is_false(metadata, "healthy")
        });
        let default = if self.jupiter { 100 } else { 1 };
        Ok(vec![Found {
            name: name.to_vec(),
            id: id.to_vec(),
            address: fields::must(&said, "Addr")?,
            weight: Weight { said: fields::label(&labels, "weight"), default, zero: 0 },
            unhealthy,
            metadata: labels,
            tags: Vec::new(),
        }])
    }

    fn write(&self, instance: &Written<'_>) -> Option<(String, String)> {
        let mut metadata = instance.labels();
        if let Some(weight) = instance.weight() {
            metadata.insert("weight".to_owned(), weight.into());
        }
        if self.jupiter {
            metadata.insert("enable".to_owned(), true.into());
            metadata.insert("healthy".to_owned(), instance.healthy.into());
        } else if !instance.healthy {
            return None;
        }
        let metadata = if metadata.is_empty() { Value::Null } else { metadata.into() };
        let value = json!({"Op": 0, "Addr": instance.address.to_string(), "Metadata": metadata});
        Some((format!("{}/{}", instance.name, instance.id), value.to_string()))
    }
}
