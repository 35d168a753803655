//! `etcd.sources`: which prefix is in which format.

use std::fmt;

use clap::ValueEnum;
use pintle_settings::{Invalid, Section, Settings};
use serde_json::Value;

use super::Format;
use super::custom::{Custom, Description, preset_prefix};
use super::dubbo::Dubbo;
use super::etcd_naming::EtcdNaming;
use super::go_zero::GoZero;
use super::goframe::GoFrame;
use super::kitex::Kitex;
use super::kratos::Kratos;

/// Bytes of a prefix, at most.
const MAX_PREFIX: usize = 256;

/// A format by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
#[expect(missing_docs, reason = "the names are the frameworks'")]
pub enum FormatName {
    #[value(aliases = ["grpc-naming", "etcd-naming"])]
    Grpc,
    Jupiter,
    #[value(alias = "gozero")]
    GoZero,
    #[value(alias = "go-kratos")]
    Kratos,
    Kitex,
    Hertz,
    Dubbo,
    #[value(name = "goframe", aliases = ["go-frame", "gf"])]
    GoFrame,
    GoMicro,
    #[value(alias = "rpcx-etcd")]
    Rpcx,
    #[value(alias = "trpc-go")]
    Trpc,
    Shenyu,
    #[value(alias = "coredns")]
    Skydns,
    Custom,
}

impl FormatName {
    /// Those whose framework has a prefix of its own.
    pub(crate) const WITH_PREFIX: [Self; 9] = [
        Self::Jupiter,
        Self::Kratos,
        Self::Kitex,
        Self::Hertz,
        Self::GoFrame,
        Self::GoMicro,
        Self::Trpc,
        Self::Shenyu,
        Self::Skydns,
    ];

    /// The format that a key names.
    pub(crate) fn named(keys: &mut Section, key: &'static str) -> Option<Self> {
        let names: Vec<&str> = Self::value_variants().iter().map(|it| it.as_str()).collect();
        keys.parse(key, format!("one of {}", names.join(", ")), |value| {
            Self::from_str(value.as_str()?, true).ok()
        })
    }

    /// As the configuration spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Jupiter => "jupiter",
            Self::GoZero => "go-zero",
            Self::Kratos => "kratos",
            Self::Kitex => "kitex",
            Self::Hertz => "hertz",
            Self::Dubbo => "dubbo",
            Self::GoFrame => "goframe",
            Self::GoMicro => "go-micro",
            Self::Rpcx => "rpcx",
            Self::Trpc => "trpc",
            Self::Shenyu => "shenyu",
            Self::Skydns => "skydns",
            Self::Custom => "custom",
        }
    }

    /// Where the framework writes unless told otherwise.
    #[must_use]
    pub fn prefix(self) -> Option<String> {
        let own = match self {
            Self::Jupiter => "grpc:",
            Self::Kratos => "/microservices/",
            Self::Kitex => "kitex/registry-etcd/",
            Self::Hertz => "hertz/registry-etcd/",
            Self::Dubbo => "/services/",
            Self::GoFrame => "/service/",
            _ => return preset_prefix(self.as_str()),
        };
        Some(own.to_owned())
    }
}

impl fmt::Display for FormatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// How its keys and values are read.
    pub format: FormatName,
    /// What its keys begin with; the framework's own where it has one. One that ends within a name
    /// is that whole name: `foo` takes `foo/a`, not `foobar/a`.
    pub prefix: Option<Vec<u8>>,
    /// What a service is called here: `{name}`, or any key of the metadata in braces.
    pub name: String,
    /// Which of an instance's URLs counts.
    pub scheme: String,
    /// The metadata key that is the zone.
    pub zone: String,
    /// The metadata key that is the region.
    pub region: String,
    /// What a `custom` format is.
    pub(super) custom: Option<Description>,
}

impl Settings for SourceConfig {
    fn read(keys: &mut Section) -> Self {
        let named = FormatName::named(keys, "format");
        keys.ensure(named.is_some(), "format", "the name of a format");
        let new = Self::new(named.unwrap_or(FormatName::Custom));
        let mut text = |key, default| keys.text(key, 1..=128, default);
        let (name, scheme) = (text("name", new.name), text("scheme", new.scheme));
        let (zone, region) = (text("zone", new.zone), text("region", new.region));
        let source = Self { prefix: prefix(keys), name, scheme, zone, region, ..new };
        let accepts = "given, since this format has no prefix of its own";
        keys.ensure(named.is_none() || !source.prefix().is_empty(), "prefix", accepts);
        // The keys of a description are unknown ones to every other format.
        let custom = (named == Some(FormatName::Custom)).then(|| Description::read(keys));
        Self { custom, ..source }
    }
}

/// A prefix of any bytes: text, or a list of numbers.
pub(crate) fn prefix(keys: &mut Section) -> Option<Vec<u8>> {
    let byte = |value: &Value| u8::try_from(value.as_u64()?).ok();
    keys.parse("prefix", "1 to 256 bytes, as text or as a list of numbers", |value| {
        let bytes: Vec<u8> = match value {
            Value::String(text) => text.clone().into_bytes(),
            Value::Array(list) => list.iter().map(byte).collect::<Option<_>>()?,
            _ => return None,
        };
        (1..=MAX_PREFIX).contains(&bytes.len()).then_some(bytes)
    })
}

impl SourceConfig {
    /// A source with nothing said but its format.
    #[must_use]
    pub fn new(format: FormatName) -> Self {
        Self {
            format,
            prefix: None,
            name: "{name}".to_owned(),
            scheme: "http".to_owned(),
            zone: "zone".to_owned(),
            region: "region".to_owned(),
            custom: None,
        }
    }

    /// The bytes that its keys begin with. One that ends within a name is followed by a slash.
    #[must_use]
    pub fn prefix(&self) -> Vec<u8> {
        let own = || self.format.prefix().unwrap_or_default().into_bytes();
        let mut prefix = self.prefix.clone().unwrap_or_else(own);
        let in_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if prefix.last().is_some_and(in_name) {
            prefix.push(b'/');
        }
        prefix
    }

    /// The service's name where the key has none: the prefix's last segment.
    pub(super) fn last_of_prefix(&self) -> Vec<u8> {
        let prefix = self.prefix();
        let mut segments = prefix.split(|byte| *byte == b'/');
        segments.rfind(|segment| !segment.is_empty()).unwrap_or_default().to_vec()
    }

    /// The reader of the format; `None` where a custom key is no pattern.
    pub(super) fn format(&self) -> Option<Box<dyn Format>> {
        Some(match self.format {
            FormatName::Grpc => Box::new(EtcdNaming { jupiter: false }),
            FormatName::Jupiter => Box::new(EtcdNaming { jupiter: true }),
            FormatName::GoZero => Box::new(GoZero),
            FormatName::Kratos => Box::new(Kratos { scheme: self.scheme.clone() }),
            FormatName::Kitex | FormatName::Hertz => Box::new(Kitex),
            FormatName::Dubbo => Box::new(Dubbo),
            FormatName::GoFrame => Box::new(GoFrame),
            FormatName::Custom => Box::new(Custom::new(self.custom.clone()?, &self.scheme)?),
            preset => Box::new(Custom::new(Description::preset(preset.as_str())?, &self.scheme)?),
        })
    }
}

/// Whether the prefixes of the sources are apart from each other and from those of our own form.
///
/// # Errors
/// The first source that lies within another, or around it.
pub(crate) fn sources_apart(
    sources: &[SourceConfig],
    services: &str,
    policies: &str,
) -> Result<(), Invalid> {
    let mut taken = vec![
        ("etcd.services".to_owned(), services.as_bytes().to_vec()),
        ("etcd.policies".to_owned(), policies.as_bytes().to_vec()),
    ];
    for (at, source) in sources.iter().enumerate() {
        let field = format!("etcd.sources[{at}]");
        let prefix = source.prefix();
        let nested = |other: &[u8]| {
            let within = other.starts_with(&prefix) || prefix.starts_with(other);
            within && (other != prefix || prefix == policies.as_bytes())
        };
        if let Some((other, _)) = taken.iter().find(|(_, other)| nested(other)) {
            let accepts = format!("a prefix that neither holds that of {other} nor lies in it");
            return Err(Invalid::new(format!("{field}.prefix"), accepts));
        }
        taken.push((field, prefix));
    }
    Ok(())
}
