//! GoFrame: `/service/{deployment}/{namespace}/{name}/{version}/{ip:port[,ip:port...]}` ->
//! metadata.
//!
//! The addresses are the key's last segment, and the value is metadata alone, of any type:
//! `{"insecure":true,"protocol":"http"}`, under a lease of 10 s.

use super::{Format, Found, MAX_FOUND, Refusal, Weight, Written, address, fields};

#[derive(Debug)]
pub(super) struct GoFrame;

impl Format for GoFrame {
    fn recognises(&self, key: &[u8], value: &[u8]) -> bool {
        parts(key).is_some_and(|[.., addresses]| {
            let mut each = addresses.split(',');
            each.all(|text| matches!(address::parse(text), Ok(_) | Err(Refusal::HostName(_))))
        }) && (value.is_empty() || fields::object(value).is_ok())
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let Some([deployment, namespace, name, version, addresses]) = parts(key) else {
            return Ok(Vec::new());
        };
        let said = match value {
            [] => serde_json::Value::Null,
            value => fields::object(value)?.into(),
        };
        let mut metadata = fields::labels(Some(&said));
        for (key, value) in
            [("deployment", deployment), ("namespace", namespace), ("version", version)]
        {
            metadata.push((key.to_owned(), value.to_owned()));
        }
        let weight = Weight { said: fields::label(&metadata, "weight"), ..Weight::default() };
        let each = addresses.split(',').filter(|text| !text.is_empty()).take(MAX_FOUND);
        let found = each.map(|address| Found {
            name: name.into(),
            address: address.to_owned(),
            weight: weight.clone(),
            metadata: metadata.clone(),
            ..Found::default()
        });
        Ok(found.collect())
    }

    fn write(&self, instance: &Written<'_>) -> Option<(String, String)> {
        let mut metadata = instance.labels();
        let mut part = |key: &str, default: &str| {
            let said = metadata.remove(key);
            said.as_ref().and_then(|v| v.as_str()).unwrap_or(default).to_owned()
        };
        let key = format!(
            "{}/{}/{}/{}/{}",
            part("deployment", "default"),
            part("namespace", "default"),
            instance.name,
            part("version", "latest"),
            instance.address
        );
        if let Some(weight) = instance.weight() {
            metadata.insert("weight".to_owned(), weight.into());
        }
        instance.healthy.then(|| (key, serde_json::Value::from(metadata).to_string()))
    }
}

fn parts(key: &[u8]) -> Option<[&str; 5]> {
    let parts: Vec<&str> = std::str::from_utf8(key).ok()?.split('/').collect();
    parts.try_into().ok().filter(|parts: &[&str; 5]| parts.iter().all(|part| !part.is_empty()))
}
