//! go-kratos: `/microservices/{name}/{id}`, an address for each scheme in one value.
//!
//! `{"id":"u","name":"hello","version":"v1","metadata":{"weight":"10"}, "endpoints":["http://10.0.0.5:8000?isSecure=false","grpc://10.0.0.5:9000"]}`,
//! under a lease of 15 s. A weight of nothing is 100 (`selector/node/direct`).

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Format, Found, MAX_FOUND, Refusal, Weight, Written, address, fields, split_last};

#[derive(Debug)]
pub(super) struct Kratos {
    pub(super) scheme: String,
}

impl Format for Kratos {
    fn recognises(&self, _: &[u8], value: &[u8]) -> bool {
        fields::object(value).is_ok_and(|said| {
            let urls = fields::get(&said, "endpoints").and_then(Value::as_array);
            let url = |url: &Value| url.as_str().is_some_and(|url| url.contains("://"));
            fields::has(&said, &["name"]) && urls.is_some_and(|urls| urls.iter().any(url))
        })
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let (name, id) = split_last(key);
        if id.is_empty() {
            return Ok(Vec::new());
        }
        let said = fields::object(value)?;
        let Some(Value::Array(urls)) = fields::get(&said, "endpoints") else {
            return Err(pintle_state::entry::Reject::Missing("endpoints").into());
        };
        let mut metadata = fields::labels(fields::get(&said, "metadata"));
        let version = fields::get(&said, "version").and_then(fields::text);
        metadata.extend(version.filter(|v| !v.is_empty()).map(|v| ("version".to_owned(), v)));
        let weight = Weight { said: fields::label(&metadata, "weight"), default: 100, zero: 0 };
        let matching = urls.iter().filter_map(Value::as_str).filter_map(|url| {
            let (scheme, authority, query) = address::split_url(url)?;
            named(scheme, query).eq_ignore_ascii_case(&self.scheme).then_some(authority)
        });
        let found = matching.take(MAX_FOUND).map(|authority| Found {
            name: name.to_vec(),
            id: id.to_vec(),
            address: authority.to_owned(),
            weight: weight.clone(),
            metadata: metadata.clone(),
            ..Found::default()
        });
        Ok(found.collect())
    }

    fn schemes(&self, value: &[u8]) -> Vec<String> {
        let Ok(said) = fields::object(value) else { return Vec::new() };
        let urls = fields::get(&said, "endpoints").and_then(Value::as_array).into_iter().flatten();
        let urls = urls.filter_map(Value::as_str).filter_map(address::split_url);
        urls.map(|(scheme, _, query)| named(scheme, query).into_owned()).collect()
    }

    fn write(&self, instance: &Written<'_>) -> Option<(String, String)> {
        let mut metadata = instance.labels();
        let version = metadata.remove("version").unwrap_or_else(|| "".into());
        if let Some(weight) = instance.weight() {
            metadata.insert("weight".to_owned(), weight.to_string().into());
        }
        let value = json!({
            "id": instance.id,
            "name": instance.name,
            "version": version,
            "metadata": metadata,
            "endpoints": [format!("{}://{}", instance.scheme, instance.address)],
        });
        let key = format!("{}/{}", instance.name, instance.id);
        instance.healthy.then(|| (key, value.to_string()))
    }
}

/// The scheme of a URL as a source names it: `isSecure=true` is how older ones wrote its secure
/// sister.
fn named<'a>(scheme: &'a str, query: &str) -> Cow<'a, str> {
    let secure = query.split('&').any(|pair| pair == "isSecure=true");
    if secure && !scheme.ends_with('s') { format!("{scheme}s").into() } else { scheme.into() }
}
