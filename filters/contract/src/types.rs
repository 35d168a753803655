//! What the agent tells the filters: one [`Table`] per service, each with its own [`Version`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::{AddressPolicy, DecodeError, MAX_LABEL, MAX_LABELS, MAX_WEIGHT, Now};

/// `epoch.sequence`: which life of the agent's state, and the how-manieth change in it.
///
/// The agent never reuses an epoch and never lowers a sequence within one, whatever etcd's revision
/// does, so a reader may compare versions as a whole and refuse to go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Grows with every start of an agent (milliseconds since the Unix epoch at its start).
    pub epoch: u64,
    /// Grows by one with every published change.
    pub sequence: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.sequence)
    }
}

/// The text was not two decimal numbers joined by a full stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseVersionError;

impl fmt::Display for ParseVersionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a version is two decimal numbers joined by a full stop")
    }
}

impl std::error::Error for ParseVersionError {}

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, ParseVersionError> {
        let (epoch, sequence) = text.split_once('.').ok_or(ParseVersionError)?;
        Ok(Self {
            epoch: epoch.parse().map_err(|_| ParseVersionError)?,
            sequence: sequence.parse().map_err(|_| ParseVersionError)?,
        })
    }
}

/// What the registry, and the events laid over it, say of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Takes traffic.
    #[default]
    Healthy,
    /// Takes none, unless the service is in panic.
    Unhealthy,
    /// Takes nothing new; keeps the sessions pinned to it.
    Draining,
}

/// What the rest of the fleet says of an endpoint's breaker, until it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// The opinion counts until then.
    pub expires_at: Now,
    /// How many other proxies hold it open; at least 1.
    pub reporters: u32,
}

/// What an operator ordered for an endpoint's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Force {
    /// What to do.
    pub action: ForceAction,
    /// `Open` and `Close` hold until then.
    pub until: Now,
    /// Tells one order from the next, so that `Clear` acts once.
    pub stamp: u64,
}

/// The kinds of [`Force`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForceAction {
    /// Hold the breaker open.
    Open,
    /// Hold the breaker closed.
    Close,
    /// Forget what the breaker has counted, once.
    Clear,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The registry's id: the identity, whatever the attributes do. 1 to 253 of `[A-Za-z0-9._:-]`
    /// and `%XX`.
    pub id: String,
    /// An IP literal; v4-mapped v6 is canonicalised to v4.
    pub address: IpAddr,
    /// 1 to 65,535.
    pub port: u16,
    /// Share of traffic relative to its neighbours, 0 to 1,000,000; 0 takes none outside panic.
    pub weight: u32,
    /// As registered, with the overlays applied.
    pub health: Health,
    /// Where it runs; empty when not said.
    pub zone: String,
    /// When it registered; slow start counts from here. Zero when not said.
    pub registered_at: Now,
    /// Sorted, without duplicates. Shared by all copies, as the metadata is: together they may be
    /// 512 KiB.
    pub tags: Arc<[String]>,
    /// Sorted by key, keys unique; without the keys that became fields (`weight`, `zone`).
    pub metadata: Arc<[(String, String)]>,
    /// What the fleet says of it.
    pub opinion: Option<Opinion>,
    /// What an operator ordered for it.
    pub force: Option<Force>,
}

impl Endpoint {
    /// An endpoint with nothing said but where it is: weight 1, healthy.
    #[must_use]
    pub fn new(id: impl Into<String>, at: SocketAddr) -> Self {
        Self {
            id: id.into(),
            address: at.ip().to_canonical(),
            port: at.port(),
            weight: 1,
            health: Health::Healthy,
            zone: String::new(),
            registered_at: Now(0),
            tags: Arc::default(),
            metadata: Arc::default(),
            opinion: None,
            force: None,
        }
    }

    /// Whether every field is within its bounds.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] with the field's name.
    pub fn check(&self) -> Result<(), DecodeError> {
        let invalid = |field| Err(DecodeError::Invalid(field));
        if !crate::is_name(&self.id) {
            return invalid("id");
        }
        if AddressPolicy::trusting().check(self.address) != Ok(self.address) {
            return invalid("address");
        }
        if self.port == 0 {
            return invalid("port");
        }
        if self.weight > MAX_WEIGHT {
            return invalid("weight");
        }
        if self.zone.len() > MAX_LABEL {
            return invalid("zone");
        }
        if self.tags.len() > MAX_LABELS
            || self.tags.iter().any(|tag| tag.len() > MAX_LABEL)
            || !self.tags.is_sorted_by(|a, b| a < b)
        {
            return invalid("tags");
        }
        if self.metadata.len() > MAX_LABELS
            || self.metadata.iter().any(|(k, v)| k.len() > MAX_LABEL || v.len() > MAX_LABEL)
            || !self.metadata.is_sorted_by(|(a, _), (b, _)| a < b)
        {
            return invalid("metadata");
        }
        Ok(())
    }

    /// Address and port together.
    #[must_use]
    pub const fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// Everything the filters know of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// etcd's name of the service. 1 to 253 of `[A-Za-z0-9._:-]` and `%XX`.
    pub service: String,
    /// When this table last changed.
    pub version: Version,
    /// Sorted by id, ids unique; at most [`crate::MAX_ENDPOINTS`].
    pub endpoints: Vec<Endpoint>,
    /// JSON of the service's policy as the agent merged it (a JSON merge patch over the plugin's
    /// own configuration); empty when there is none. At most 64 KiB.
    pub policy: String,
}
