//! Services from a file: the registry of a machine without etcd.
//!
//! ```yaml
//! services:
//!   orders:
//!     policy: {select: {strategy: round_robin}}  # optional, as under /pintle/policies/
//!     endpoints:
//!       - {id: orders-1, address: 10.0.0.1, port: 8080}
//!       - {id: orders-2, address: 10.0.0.2, port: 8080, health: healthy,
//!          metadata: {weight: "2", zone: a}, tags: [canary]}
//! ```
//! JSON is YAML, so one reader takes both. An endpoint is made into the very value that a registry
//! would hold and goes through the same checks. The file is looked at twice a second and compared
//! by content: simpler than watching, right on every file system, and a rename over it is just
//! other content. A file that cannot be read or parsed changes nothing; the last good one counts.

use std::path::Path;
use std::time::Duration;

use pintle_state::{Told, Update, show};
use serde_json::{Map, Value, json};
use tokio::time::{sleep, timeout};

use super::Context;

/// Bytes of the file, at most: 100,000 endpoints of a few hundred each.
const MAX_FILE: u64 = 64 << 20;

const READ_WITHIN: Duration = Duration::from_secs(20);

/// Why a file gives no services.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The file can't be read.
    #[error("{0}")]
    Read(String),
    /// Reading it took longer than 20 s.
    #[error("reading it takes too long")]
    Late,
    /// The file is longer than 64 MiB.
    #[error("larger than {MAX_FILE} bytes")]
    TooLarge,
    /// The text is neither YAML nor JSON.
    #[error("{0}")]
    Yaml(String),
    /// What must be a map is something else.
    #[error("{0} is not a map")]
    NotAMap(String),
    /// A service's endpoints are no list.
    #[error("{0}: endpoints is not a list")]
    NotAList(String),
    /// An endpoint of this service has no id.
    #[error("{0}: an endpoint without an id")]
    NoId(String),
    /// Two endpoints of a service have one id.
    #[error("{service}: two endpoints with the id {id}")]
    Twice {
        /// The service.
        service: String,
        /// The id.
        id: String,
    },
    /// A key that means nothing here.
    #[error("{place}: {key} is not known; accepted: {accepted}")]
    UnknownKey {
        /// Where it stands.
        place: String,
        /// The key.
        key: String,
        /// The keys that mean something.
        accepted: String,
    },
}

/// Reads the file for ever.
pub(crate) async fn run(context: Context) {
    let work = async {
        let mut last: Option<Result<String, FileError>> = None;
        loop {
            let config = context.config.borrow().file.clone().unwrap_or_default();
            // A file system that hangs is no reason to say nothing.
            let text = timeout(READ_WITHIN, read(&config.path)).await;
            let text = text.unwrap_or(Err(FileError::Late));
            if text.is_ok() {
                context.board.change(|sources| sources.file.hear());
            }
            if last.as_ref() != Some(&text) {
                let parsed = text.clone().and_then(|text| parse(&text));
                let error = parsed.as_ref().err().map(ToString::to_string);
                context.board.change(|sources| {
                    let file = &mut sources.file;
                    file.endpoint = config.path.display().to_string();
                    file.connected = error.is_none();
                    file.error.clone_from(&error);
                    if error.is_none() {
                        file.position = file.position.saturating_add(1);
                        file.connects = file.connects.saturating_add(1);
                    }
                });
                let update = match parsed {
                    Ok(services) => Update::file(services),
                    Err(error) => {
                        tracing::warn!(path = %config.path.display(), %error, "file not usable");
                        Update::Refused {
                            source: "file",
                            key: config.path.display().to_string(),
                            reason: "file",
                            detail: error.to_string(),
                        }
                    }
                };
                if context.updates.send(update).await.is_err() {
                    return;
                }
                last = Some(text);
            }
            sleep(config.poll).await;
        }
    };
    tokio::select! {
        () = context.shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn read(path: &Path) -> Result<String, FileError> {
    let unreadable = |error: std::io::Error| FileError::Read(error.to_string());
    let size = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
    if size > MAX_FILE {
        return Err(FileError::TooLarge);
    }
    tokio::fs::read_to_string(path).await.map_err(unreadable)
}

/// Reads the text of a file of services.
///
/// # Errors
/// [`FileError`]: what is wrong with the whole; a single bad endpoint is not an error here.
pub fn parse(text: &str) -> Result<Vec<Told>, FileError> {
    let whole: Value = serde_yaml_ng::from_str(text)
        .map_err(|error| FileError::Yaml(show(error.to_string().as_bytes())))?;
    let top = object(&whole, "the file")?;
    only(top, "the file", &["services"])?;
    let services = match top.get("services") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(services) => object(services, "services")?,
    };
    services.iter().map(|(name, service)| read_service(name, service)).collect()
}

fn read_service(name: &str, service: &Value) -> Result<Told, FileError> {
    let shown = || show(name.as_bytes());
    let fields = object(service, name)?;
    only(fields, name, &["policy", "endpoints"])?;
    let policy = match fields.get("policy") {
        None | Some(Value::Null) => None,
        Some(policy) => Some(policy.to_string().into_bytes()),
    };
    let list = match fields.get("endpoints") {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(FileError::NotAList(shown())),
    };
    let mut endpoints = Vec::with_capacity(list.len());
    for endpoint in list {
        let mut value = object(endpoint, "an endpoint")?.clone();
        let id = value
            .get("id")
            .and_then(Value::as_str)
            .ok_or_else(|| FileError::NoId(shown()))?
            .to_owned();
        if endpoints.iter().any(|(other, _)| *other == id) {
            return Err(FileError::Twice { service: shown(), id: show(id.as_bytes()) });
        }
        value.insert("name".into(), name.into());
        value.entry("health").or_insert_with(|| json!("healthy"));
        endpoints.push((id, Value::Object(value).to_string().into_bytes()));
    }
    Ok(Told { name: name.to_owned(), policy, endpoints })
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, FileError> {
    value.as_object().ok_or_else(|| FileError::NotAMap(show(what.as_bytes())))
}

fn only(fields: &Map<String, Value>, what: &str, known: &[&str]) -> Result<(), FileError> {
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(FileError::UnknownKey {
            place: show(what.as_bytes()),
            key: show(key.as_bytes()),
            accepted: known.join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "services:\n  orders:\n    policy: {a: 1}\n    endpoints:\n      - {id: o-1, address: 10.0.0.1, port: 80}\n";
        let json = r#"{"services":{"orders":{"policy":{"a":1},"endpoints":[{"id":"o-1","address":"10.0.0.1","port":80}]}}}"#;
        let services = parse(yaml).unwrap();
        assert_eq!(services, parse(json).unwrap());
        assert_eq!(services[0].endpoints[0].0, "o-1");
        assert_eq!(services[0].policy.as_deref(), Some(br#"{"a":1}"#.as_slice()));
    }

    #[test]
    fn what_is_not_a_file_of_services_is_refused_whole() {
        for text in [
            "",
            "[]",
            "services: 3",
            "services: {orders: 3}",
            "services: {orders: {endpoints: 3}}",
            "services: {orders: {endpoints: [{address: 10.0.0.1}]}}",
            "services: {orders: {endpoints: [{id: a}, {id: a}]}}",
            "services: {orders: {endpoint: []}}",
            "service: {}",
            "{",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("services: {}").unwrap(), Vec::new());
    }
}
