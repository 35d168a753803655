//! `format: custom`: a key's pattern and JSON pointers, and the frameworks that need no more.
//!
//! Beside the key's parts `name`, `id`, `address`, `host` and `port`, which are used as such, parts
//! are metadata. What a field's pointer finds counts before the key's part of the same name.

use std::collections::BTreeMap;

use pintle_contract::MAX_WEIGHT;
use pintle_settings::{Section, Settings};
use serde_json::{Map, Value, json};

use super::pattern::{Parts, Pattern};
use super::{Format, Found, MAX_FOUND, Refusal, Weight, Written, address, fields};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A JSON document.
    Json,
    /// A URL's query, `weight=5&state=inactive`: an object of texts; may be empty.
    Query,
    /// Plain text, which the empty pointer points at.
    Text,
}

/// Where the fields are: RFC 6901 pointers into the value, or into each of `nodes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    name: Option<String>,
    id: Option<String>,
    /// `ip:port`, or the address alone beside a `port`.
    address: Option<String>,
    host: Option<String>,
    port: Option<String>,
    /// A list of URLs, of which those with the source's `scheme` count.
    urls: Option<String>,
    /// A list of instances in one value; the other pointers are into each.
    nodes: Option<String>,
    /// Without it the metadata's `weight`.
    weight: Option<String>,
    /// An object.
    metadata: Option<String>,
    /// A list of texts.
    tags: Option<String>,
    /// What means unhealthy: by pointer, the values.
    unhealthy: BTreeMap<String, Vec<Value>>,
}

fn is_pointer(text: &str) -> bool {
    text.is_empty() || text.starts_with('/')
}

impl Settings for Fields {
    fn read(keys: &mut Section) -> Self {
        let mut pointer = |key| {
            keys.parse(key, "a JSON pointer such as /address", |value| {
                value.as_str().filter(|text| is_pointer(text)).map(ToOwned::to_owned)
            })
        };
        Self {
            name: pointer("name"),
            id: pointer("id"),
            address: pointer("address"),
            host: pointer("host"),
            port: pointer("port"),
            urls: pointer("urls"),
            nodes: pointer("nodes"),
            weight: pointer("weight"),
            metadata: pointer("metadata"),
            tags: pointer("tags"),
            unhealthy: unhealthy(keys).unwrap_or_default(),
        }
    }
}

fn unhealthy(keys: &mut Section) -> Option<BTreeMap<String, Vec<Value>>> {
    let accepts = "an object of JSON pointers, each with a list of values";
    keys.parse("unhealthy", accepts, |value| {
        let each = value.as_object()?.iter().map(|(pointer, values)| {
            let values = values.as_array()?.clone();
            is_pointer(pointer).then(|| (pointer.clone(), values))
        });
        each.collect()
    })
}

/// A preset, or what the configuration says of a format of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    key: String,
    value: Shape,
    fields: Fields,
    weight_default: u32,
    /// What zero and less stand for.
    weight_zero: u32,
}

impl Settings for Description {
    fn read(keys: &mut Section) -> Self {
        let key = keys.required("key", "a pattern such as \"{name}/{id}\"", |key| {
            Some((key.as_str()?.to_owned(), Pattern::new(key.as_str()?)?))
        });
        let words = [("json", Shape::Json), ("query", Shape::Query), ("text", Shape::Text)];
        let value = keys.word("value", &words, Shape::Json);
        let fields: Fields = keys.section("fields").unwrap_or_default();
        let has = |part: &str| key.as_ref().is_some_and(|(_, pattern)| pattern.has(part));
        let host = fields.host.is_some() || has("host");
        let port = fields.port.is_some() || has("port");
        let address = fields.address.is_some() || has("address");
        let found = fields.urls.is_some() || address || (host && port) || key.is_none();
        keys.ensure(found, "fields", "with an address, a host and a port, or urls");
        Self {
            key: key.map(|(key, _)| key).unwrap_or_default(),
            value,
            fields,
            weight_default: keys.whole("weight_default", 0..=MAX_WEIGHT, 1),
            weight_zero: keys.whole("weight_zero", 0..=MAX_WEIGHT, 0),
        }
    }
}

/// The frameworks that need no code, as a user would describe them.
const PRESETS: &str = include_str!("presets.yaml");

impl Description {
    /// A framework's.
    pub(super) fn preset(name: &str) -> Option<Self> {
        let mut keys = preset(name)?;
        keys.remove("prefix");
        pintle_settings::read(name, keys.into()).ok()
    }
}

/// Where a framework writes unless told otherwise.
pub(super) fn preset_prefix(name: &str) -> Option<String> {
    preset(name)?.get("prefix")?.as_str().map(ToOwned::to_owned)
}

fn preset(name: &str) -> Option<Map<String, Value>> {
    let mut all: BTreeMap<String, Map<String, Value>> = serde_yaml_ng::from_str(PRESETS).ok()?;
    all.remove(name)
}

#[derive(Debug)]
pub(super) struct Custom {
    pattern: Pattern,
    is: Description,
    scheme: String,
}

impl Custom {
    /// `None` where the key is no pattern.
    pub(super) fn new(is: Description, scheme: &str) -> Option<Self> {
        Some(Self { pattern: Pattern::new(&is.key)?, is, scheme: scheme.to_owned() })
    }

    fn document(&self, value: &[u8]) -> Result<Value, Refusal> {
        let text = || std::str::from_utf8(value).map_err(|_| Refusal::Value("text"));
        Ok(match self.is.value {
            Shape::Json => fields::json(value)?,
            Shape::Text => text()?.trim().into(),
            Shape::Query => {
                let pairs = text()?.trim().split('&').filter(|pair| !pair.is_empty());
                let pairs = pairs.map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (unescape(key), Value::from(unescape(value)))
                });
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        })
    }

    fn found(&self, node: &Value, parts: &Parts) -> Vec<Found> {
        let of = &self.is.fields;
        let part = |name: &str| parts.iter().find(|(part, _)| part == name).map(|(_, text)| text);
        let pointed = |pointer: &Option<String>| fields::point(node, pointer.as_deref()?);
        let text = |pointer: &Option<String>, name: &str| {
            let in_value = pointed(pointer).and_then(fields::text).map(String::into_bytes);
            in_value.or_else(|| part(name).cloned()).unwrap_or_default()
        };
        let plain = |pointer: &Option<String>, name: &str| {
            String::from_utf8_lossy(&text(pointer, name)).into_owned()
        };
        let (host, port) = (plain(&of.host, "host"), plain(&of.port, "port"));
        let whole = plain(&of.address, "address");
        let addresses: Vec<String> = if let Some(Value::Array(urls)) = pointed(&of.urls) {
            let matching = urls.iter().filter_map(Value::as_str).filter_map(|url| {
                let (scheme, authority, _) = address::split_url(url)?;
                scheme.eq_ignore_ascii_case(&self.scheme).then(|| authority.to_owned())
            });
            matching.take(MAX_FOUND).collect()
        } else if port.is_empty() {
            vec![whole]
        } else {
            vec![address::join(if host.is_empty() { &whole } else { &host }, &port)]
        };
        let mut metadata = fields::labels(pointed(&of.metadata));
        let used = ["name", "id", "address", "host", "port"];
        for (name, text) in parts.iter().filter(|(name, _)| !used.contains(&name.as_str())) {
            metadata.push((name.clone(), String::from_utf8_lossy(text).into_owned()));
        }
        let said = pointed(&of.weight).cloned();
        let weight = Weight {
            said: said.unwrap_or_else(|| fields::label(&metadata, "weight")),
            default: self.is.weight_default,
            zero: self.is.weight_zero,
        };
        let unhealthy = of.unhealthy.iter().any(|(pointer, values)| {
            let is = fields::point(node, pointer);
            is.is_some_and(|is| values.iter().any(|value| same(is, value)))
        });
        let tags = match pointed(&of.tags) {
            Some(Value::Array(list)) => list.iter().filter_map(fields::text).collect(),
            _ => Vec::new(),
        };
        let each = addresses.into_iter().map(|address| Found {
            name: text(&of.name, "name"),
            id: text(&of.id, "id"),
            address,
            weight: weight.clone(),
            unhealthy,
            metadata: metadata.clone(),
            tags: Vec::clone(&tags),
        });
        each.collect()
    }
}

impl Format for Custom {
    fn recognises(&self, key: &[u8], value: &[u8]) -> bool {
        let Some(parts) = self.pattern.parts(key) else { return false };
        let Ok(document) = self.document(value) else { return false };
        let nodes = self.is.fields.nodes.as_ref().map(|nodes| fields::point(&document, nodes));
        match nodes {
            None => self.found(&document, &parts).iter().all(|found| !found.address.is_empty()),
            Some(nodes) => nodes.is_some_and(Value::is_array),
        }
    }

    fn schemes(&self, value: &[u8]) -> Vec<String> {
        let Ok(document) = self.document(value) else { return Vec::new() };
        let of = &self.is.fields;
        let nodes = match &of.nodes {
            Some(nodes) => fields::point(&document, nodes).and_then(Value::as_array),
            None => None,
        };
        let nodes = nodes.map_or(std::slice::from_ref(&document), Vec::as_slice);
        let lists = nodes.iter().filter_map(|node| fields::point(node, of.urls.as_deref()?));
        let urls = lists.filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        urls.filter_map(address::split_url).map(|(scheme, ..)| scheme.to_owned()).collect()
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let Some(parts) = self.pattern.parts(key) else {
            return Ok(Vec::new());
        };
        let document = self.document(value)?;
        let Some(nodes) = &self.is.fields.nodes else {
            return Ok(self.found(&document, &parts));
        };
        let nodes = fields::point(&document, nodes).and_then(Value::as_array);
        let nodes = nodes.ok_or(Refusal::Value("one with a list of nodes"))?;
        let found = nodes.iter().take(MAX_FOUND).flat_map(|node| self.found(node, &parts));
        Ok(found.take(MAX_FOUND).collect())
    }

    fn write(&self, it: &Written<'_>) -> Option<(String, String)> {
        let (ip, port) = (it.address.ip().to_string(), it.address.port());
        let address = it.address.to_string();
        let key = self.pattern.fill(|part| match part {
            "name" => Some(it.name.to_owned()),
            "id" => Some(it.id.to_owned()),
            "address" => Some(address.clone()),
            "host" => Some(ip.clone()),
            "port" => Some(port.to_string()),
            "network" => Some(it.metadata.get(part).cloned().unwrap_or_else(|| "tcp".into())),
            other => it.metadata.get(other).cloned(),
        })?;
        let of = &self.is.fields;
        let mut node = Value::Null;
        let mut metadata = it.labels();
        if of.weight.is_none()
            && let Some(weight) = it.metadata.get("weight")
        {
            metadata.insert("weight".to_owned(), weight.clone().into());
        }
        let url = Value::from(vec![format!("{}://{address}", it.scheme)]);
        let alone = of.port.is_some() && of.host.is_none();
        for (pointer, value) in [
            (&of.metadata, metadata.into()),
            (&of.name, it.name.into()),
            (&of.id, it.id.into()),
            (&of.address, if alone { ip.clone() } else { address.clone() }.into()),
            (&of.host, ip.into()),
            (&of.port, port.into()),
            (&of.urls, url),
            (&of.weight, it.weight().map_or(Value::Null, Value::from)),
        ] {
            if let Some(pointer) = pointer {
                set(&mut node, pointer, value)?;
            }
        }
        if !it.healthy {
            // Where no value says so, an instance that is ill is not to be found.
            let (pointer, value) = of.unhealthy.iter().find_map(|(p, v)| Some((p, v.first()?)))?;
            set(&mut node, pointer, value.clone())?;
        }
        if let Some(nodes) = &of.nodes {
            let mut whole = json!({ "name": it.name });
            set(&mut whole, nodes, vec![node].into())?;
            node = whole;
        }
        let value = match (self.is.value, node) {
            (Shape::Json, node) => node.to_string(),
            (Shape::Text, node) => node.as_str().unwrap_or_default().to_owned(),
            (Shape::Query, Value::Object(pairs)) => {
                let pairs = pairs.iter().filter_map(|(key, value)| {
                    Some(format!("{}={}", escape(key), escape(&fields::text(value)?)))
                });
                pairs.collect::<Vec<_>>().join("&")
            }
            (Shape::Query, _) => String::new(),
        };
        Some((key, value))
    }
}

/// Equal, or equal as text: `0`, `"0"` and `false`, `"false"`.
fn same(is: &Value, value: &Value) -> bool {
    is == value
        || match (fields::text(is), fields::text(value)) {
            (Some(is), Some(value)) => is.eq_ignore_ascii_case(&value),
            _ => false,
        }
}

/// Puts a value where the pointer points; objects are made on the way. The empty pointer is the
/// whole, into which an object is merged.
fn set(root: &mut Value, pointer: &str, value: Value) -> Option<()> {
    if value.is_null() {
        return Some(());
    }
    let mut here = root;
    for token in pointer.split('/').skip(1) {
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        let token = token.replace("~1", "/").replace("~0", "~");
        here = here.as_object_mut()?.entry(token).or_insert(Value::Null);
    }
    match (here, value) {
        (Value::Object(into), Value::Object(from)) => into.extend(from),
        (here, value) => *here = value,
    }
    Some(())
}

/// `application/x-www-form-urlencoded`, as Go's `url.ParseQuery` reads it.
fn unescape(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0usize;
    while let Some(byte) = bytes.get(at) {
        let pair = (digit(bytes.get(at.saturating_add(1))), digit(bytes.get(at.saturating_add(2))));
        let (byte, width) = match (byte, pair) {
            (b'+', _) => (b' ', 1),
            (b'%', (Some(high), Some(low))) => (u8::try_from(high << 4 | low).unwrap_or(b'?'), 3),
            (byte, _) => (*byte, 1),
        };
        out.push(byte);
        at = at.saturating_add(width);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn escape(text: &str) -> String {
    let each = text.bytes().map(|byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    });
    each.collect()
}
