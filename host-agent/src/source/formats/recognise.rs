//! What a key and a value look like, for people who have not said which format they have.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::config::FormatName;
use super::go_zero::GoZero;
use super::goframe::GoFrame;
use super::kratos::Kratos;
use super::{Format as _, Refusal, address, fields, split_last};

/// What something looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guess {
    /// Our own form.
    Own,
    /// Another framework's.
    Format(FormatName),
}

impl fmt::Display for Guess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("pintle"),
            Self::Format(format) => f.write_str(format.as_str()),
        }
    }
}

/// Whether a value has the fields of our own form, at the price of a search for two words.
pub(super) fn is_own(value: &[u8]) -> bool {
    let has = |word: &[u8]| value.windows(word.len()).any(|window| window == word);
    has(b"\"health\"") && has(b"\"address\"")
}

/// The format that key and value look like; the key is what comes after the prefix, or the whole.
#[must_use]
pub fn recognise(key: &[u8], value: &[u8]) -> Option<Guess> {
    if is_own(value) {
        return Some(Guess::Own);
    }
    let by_value = fields::object(value).ok().and_then(|said| by_fields(&said, value));
    by_value.or_else(|| by_key(key, value)).map(Guess::Format)
}

fn by_fields(said: &serde_json::Map<String, Value>, value: &[u8]) -> Option<FormatName> {
    let has = |names: &[&str]| fields::has(said, names);
    let kratos = Kratos { scheme: String::new() };
    let is_node =
        |node: &Value| node.as_object().is_some_and(|node| fields::has(node, &["address"]));
    let nodes = fields::get(said, "nodes").and_then(Value::as_array);
    let metadata = fields::get(said, "Metadata").and_then(Value::as_object);
    let address = fields::get(said, "address").and_then(Value::as_str);
    Some(match () {
        () if kratos.recognises(b"", value) => FormatName::Kratos,
        () if nodes.is_some_and(|nodes| nodes.iter().any(is_node)) => FormatName::GoMicro,
        () if has(&["ServiceName", "Host", "Port"]) => FormatName::Dubbo,
        () if has(&["appName", "host", "port"]) => FormatName::Shenyu,
        () if has(&["network", "address"]) => FormatName::Kitex,
        () if has(&["Addr"]) => match metadata {
            Some(metadata) if fields::has(metadata, &["enable", "healthy"]) => FormatName::Jupiter,
            _ => FormatName::Grpc,
        },
        () if has(&["name", "id"]) && address.is_some_and(|a| address::parse(a).is_ok()) => {
            FormatName::Trpc
        }
        () if has(&["host"]) && ["port", "ttl", "priority"].iter().any(|name| has(&[name])) => {
            FormatName::Skydns
        }
        () => return None,
    })
}

fn by_key(key: &[u8], value: &[u8]) -> Option<FormatName> {
    let is_address = |text: &str| matches!(address::parse(text), Ok(_) | Err(Refusal::HostName(_)));
    if GoZero.recognises(key, value) {
        return Some(FormatName::GoZero);
    }
    let last = std::str::from_utf8(split_last(key).1).ok()?;
    let is_rpcx =
        last.split_once('@').is_some_and(|(network, at)| !network.is_empty() && is_address(at));
    if is_rpcx {
        return Some(FormatName::Rpcx);
    }
    // Its five segments are the key's last, whatever the prefix was.
    let starts = key.iter().rev().enumerate().filter(|(_, byte)| **byte == b'/').nth(4);
    let tail = starts.and_then(|(at, _)| key.get(key.len().saturating_sub(at)..)).unwrap_or(key);
    GoFrame.recognises(tail, value).then_some(FormatName::GoFrame)
}

/// What the keys of a prefix look like where it is not what its sources read: one sentence a
/// format. `pairs` are keys without the prefix, and values; `formats` are those of its sources.
pub fn survey<'a>(
    prefix: &[u8],
    own: bool,
    formats: &[FormatName],
    pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Vec<String> {
    let mut counts: BTreeMap<Guess, usize> = BTreeMap::new();
    let mut all = 0usize;
    for (key, value) in pairs {
        all = all.saturating_add(1);
        let Some(guess) = recognise(key, value) else { continue };
        let known = formats.iter().any(|format| guess.is(*format) || *format == FormatName::Custom)
            || (own && guess == Guess::Own);
        if !known {
            *counts.entry(guess).or_default() += 1;
        }
    }
    let prefix = pintle_state::show(prefix);
    let lines = counts.into_iter().map(|(guess, count)| {
        let todo = match guess {
            Guess::Own => "set `etcd.services` to it".to_owned(),
            Guess::Format(format) => format!("set `format: {format}`"),
        };
        format!("{count} of {all} keys under {prefix} look like {guess}: {todo}")
    });
    lines.collect()
}

impl Guess {
    /// Whether a source of this format reads it.
    pub(super) fn is(self, format: FormatName) -> bool {
        use FormatName::{Grpc, Hertz, Jupiter, Kitex};
        match self {
            Self::Own => false,
            Self::Format(Grpc | Jupiter) => matches!(format, Grpc | Jupiter),
            Self::Format(Kitex | Hertz) => matches!(format, Kitex | Hertz),
            Self::Format(is) => is == format,
        }
    }
}
