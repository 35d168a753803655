//! The frame around every message: magic, schema, kind, length, payload, checksum.
//!
//! ```text
//!  0    4        5      6       10            10+n        18+n
//!  "PNTL" schema kind   length  payload       xxHash64 of all before
//! ```
//! Schema 1 is that of 0.1. Of schema 2 are reports in whole, patches of tables, and heartbeats and
//! ends of starts by which an agent says that it reads reports in whole; of schema 3 what a module
//! wants, and heartbeats and ends by which an agent says that it sends nothing else. Everything
//! else is of schema 1, so that modules and agents of all can read it. Length and checksum are
//! little-endian. The checksum finds accidents and torn writes, not forgeries: authenticity is the
//! socket's (and the vm_id's) to give.

use xxhash_rust::xxh64::xxh64;

use crate::wire::{DecodeError, Reader, Wire, wire_enum, wire_struct};
use crate::{
    Applied, Endpoint, Force, ForceAction, Health, Hello, Index, Lease, Loads, MAX_ENDPOINTS,
    MAX_FRAME, MAX_POLICY, Now, Opinion, Patch, Report, Slot, Table, Transition, Version, Want,
};

const MAGIC: [u8; 4] = *b"PNTL";
pub(crate) const TABLE: u8 = 1;
const REMOVE: u8 = 2;
const INITIAL_END: u8 = 3;
const HEARTBEAT: u8 = 4;
const PATCH: u8 = 5;
const WHOLE_REPORT: u8 = 20;
const WANT: u8 = 21;
const HEADER: usize = 10;
const CHECKSUM: usize = 8;

/// What the peer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Schema {
    /// That of 0.1, and of whoever has not said more.
    #[default]
    One = 1,
    /// Reports in whole, and patches.
    Two = 2,
    /// This build's: services that are wanted. An agent speaks it where it sends no others.
    Three = 3,
}

impl Schema {
    /// The header of a stream in which a module says the newest schema that it reads.
    pub const HEADER: &'static str = "x-pintle-schema";

    /// The newest schema that this build and a peer which reads `said` have in common.
    #[must_use]
    pub const fn in_common(said: u8) -> Self {
        match said {
            0 | 1 => Self::One,
            2 => Self::Two,
            _ => Self::Three,
        }
    }

    /// Of a frame that was decoded.
    #[must_use]
    pub fn of(frame: &[u8]) -> Self {
        Self::in_common(frame.get(4).copied().unwrap_or_default())
    }
}

/// Agent to filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// A service's table, whole.
    Table(Table),
    /// What changed of a service's table.
    Patch(Patch),
    /// The service is gone.
    Remove(Removed),
    /// Everything known at the start of the stream has been sent.
    InitialEnd(Initial),
    /// The agent is alive; its newest version.
    Heartbeat(Version),
}

/// The end of a stream's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initial {
    /// The newest version at that moment.
    pub version: Version,
    /// Whether every service has been sent, so that one that was not mentioned is gone. Otherwise
    /// only what changed since [`Hello::have`] was.
    pub full: bool,
}
wire_struct!(Initial { version, full });

/// A service that is no longer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its name.
    pub service: String,
    /// When it went.
    pub version: Version,
}
wire_struct!(Removed { service, version });

/// Filters to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    /// First on every stream.
    Hello(Hello),
    /// A worker has taken a version over.
    Applied(Applied),
    /// A breaker changed its state.
    Transition(Transition),
    /// Counts, at most once a second and worker.
    Report(Report),
    /// Which services are to be told, to an agent that does not tell all.
    Want(Want),
}

/// Worker to worker, through a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The service's table in shared data has changed or gone.
    Table(String),
    /// The breaker record of (service, endpoint id) in shared data has changed.
    Breaker((String, String)),
    /// For the leader: an encoded [`Up`] to send on.
    Forward(Vec<u8>),
    /// The index has this version; for a worker that has just been noticed.
    Index(Version),
}

/// A message with a frame of its own.
pub trait Message: Sized {
    /// The message in its frame.
    fn encode(&self) -> Vec<u8>;

    /// Reads exactly one message.
    ///
    /// # Errors
    /// Whatever the bytes are, a [`DecodeError`] says why they are not this message.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError>;
}

pub(crate) fn frame(schema: Schema, kind: u8, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[schema as u8, kind, 0, 0, 0, 0]);
    put(&mut out);
    let length = u32::try_from(out.len().saturating_sub(HEADER)).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(6..HEADER) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let checksum = xxh64(&out, 0);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The kind and a reader of the payload, once magic, schema, length and checksum are right.
pub(crate) fn unframe(bytes: &[u8]) -> Result<(u8, Reader<'_>), DecodeError> {
    if bytes.len() > MAX_FRAME {
        return Err(DecodeError::TooLong);
    }
    let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(DecodeError::Truncated)?;
    let [m0, m1, m2, m3, schema, kind, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(DecodeError::Magic);
    }
    // One message has one encoding, so each kind is of one schema but for the two that say a
    // peer's.
    let known = match kind {
        INITIAL_END | HEARTBEAT => (Schema::One as u8..=Schema::Three as u8).contains(&schema),
        WHOLE_REPORT | PATCH => schema == Schema::Two as u8,
        WANT => schema == Schema::Three as u8,
        _ => schema == Schema::One as u8,
    };
    let (payload, checksum) = rest.split_last_chunk::<CHECKSUM>().ok_or(DecodeError::Truncated)?;
    if u32::try_from(payload.len()) != Ok(u32::from_le_bytes([l0, l1, l2, l3])) {
        return Err(DecodeError::Length);
    }
    let covered = bytes.len().saturating_sub(CHECKSUM);
    let covered = bytes.get(..covered).ok_or(DecodeError::Truncated)?;
    if xxh64(covered, 0) != u64::from_le_bytes(*checksum) {
        return Err(DecodeError::Checksum);
    }
    // Last, so that it means a frame of another build and not any bytes.
    if !known {
        return Err(DecodeError::Schema(schema));
    }
    Ok((kind, Reader::new(payload)))
}

macro_rules! message_enum {
    ($name:ident { $($variant:ident = $kind:literal),* $(,)? }) => {
        impl Message for $name {
            fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$variant(inner) => frame(Schema::One, $kind, |out| inner.put(out))),*
                }
            }

            fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                let (kind, mut reader) = unframe(bytes)?;
                let message = match kind {
                    $($kind => Self::$variant(Wire::take(&mut reader)?),)*
                    other => return Err(DecodeError::Kind(other)),
                };
                reader.finish()?;
                Ok(message)
            }
        }
    };
}
message_enum!(Note { Table = 32, Breaker = 33, Forward = 34, Index = 35 });

impl Down {
    /// Service and version of a table's frame, whose policy and endpoints are not read.
    ///
    /// # Errors
    /// Why the frame is none, or not of a table.
    pub fn table_head(bytes: &[u8]) -> Result<(String, Version), DecodeError> {
        match unframe(bytes)? {
            (TABLE, mut reader) => Ok((Wire::take(&mut reader)?, Wire::take(&mut reader)?)),
            (other, _) => Err(DecodeError::Kind(other)),
        }
    }

    /// The message for a module that reads `schema`; a patch is for those of schema 2 alone. What
    /// goes into shared data, where modules of both read it, is the same in both.
    #[must_use]
    pub fn encode_for(&self, schema: Schema) -> Vec<u8> {
        match self {
            Self::InitialEnd(initial) => frame(schema, INITIAL_END, |out| initial.put(out)),
            Self::Heartbeat(version) => frame(schema, HEARTBEAT, |out| version.put(out)),
            Self::Table(table) => frame(Schema::One, TABLE, |out| table.put(out)),
            Self::Remove(removed) => frame(Schema::One, REMOVE, |out| removed.put(out)),
            Self::Patch(patch) => frame(Schema::Two, PATCH, |out| patch.put(out)),
        }
    }
}

impl Message for Down {
    fn encode(&self) -> Vec<u8> {
        self.encode_for(Schema::One)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (kind, mut reader) = unframe(bytes)?;
        let message = match kind {
            TABLE => Self::Table(Wire::take(&mut reader)?),
            REMOVE => Self::Remove(Wire::take(&mut reader)?),
            INITIAL_END => Self::InitialEnd(Wire::take(&mut reader)?),
            HEARTBEAT => Self::Heartbeat(Wire::take(&mut reader)?),
            PATCH => Self::Patch(Wire::take(&mut reader)?),
            other => return Err(DecodeError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

impl Up {
    /// The message for an agent that reads `schema`: of schema 1 a report lacks what 0.1 does not
    /// count. What is wanted is for those of schema 3 alone.
    #[must_use]
    pub fn encode_for(&self, schema: Schema) -> Vec<u8> {
        match self {
            Self::Hello(hello) => frame(Schema::One, 16, |out| hello.put(out)),
            Self::Applied(applied) => frame(Schema::One, 17, |out| applied.put(out)),
            Self::Transition(transition) => frame(Schema::One, 18, |out| transition.put(out)),
            Self::Report(report) => match schema {
                Schema::One => frame(schema, 19, |out| report.put(out)),
                _ => frame(Schema::Two, WHOLE_REPORT, |out| report.put_whole(out)),
            },
            Self::Want(want) => frame(Schema::Three, WANT, |out| want.put(out)),
        }
    }
}

impl Message for Up {
    fn encode(&self) -> Vec<u8> {
        self.encode_for(Schema::Three)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (kind, mut reader) = unframe(bytes)?;
        let message = match kind {
            16 => Self::Hello(Wire::take(&mut reader)?),
            17 => Self::Applied(Wire::take(&mut reader)?),
            18 => Self::Transition(Wire::take(&mut reader)?),
            19 => Self::Report(Wire::take(&mut reader)?),
            WHOLE_REPORT => Self::Report(Report::take_whole(&mut reader)?),
            WANT => Self::Want(Wire::take(&mut reader)?),
            other => return Err(DecodeError::Kind(other)),
        };
        reader.finish()?;
        Ok(message)
    }
}

macro_rules! message_struct {
    ($($name:ident = $kind:literal),*) => {$(
        impl Message for $name {
            fn encode(&self) -> Vec<u8> {
                frame(Schema::One, $kind, |out| self.put(out))
            }

            fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                let (kind, mut reader) = unframe(bytes)?;
                if kind != $kind {
                    return Err(DecodeError::Kind(kind));
                }
                let message = Wire::take(&mut reader)?;
                reader.finish()?;
                Ok(message)
            }
        }
    )*};
}
message_struct!(Lease = 48, Index = 49, Slot = 50, Loads = 51);

// === impl Wire for the table and what is in it ===

wire_struct!(Version { epoch, sequence });
wire_enum!(Health, "health" { Healthy = 0, Unhealthy = 1, Draining = 2 });
wire_enum!(ForceAction, "force" { Open = 0, Close = 1, Clear = 2 });
wire_struct!(Opinion { expires_at, reporters });
wire_struct!(Force { action, until, stamp });

impl Wire for Now {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        u64::take(reader).map(Self)
    }
}

impl Wire for Endpoint {
    fn put(&self, out: &mut Vec<u8>) {
        self.id.put(out);
        self.address.put(out);
        self.port.put(out);
        self.weight.put(out);
        self.health.put(out);
        self.zone.put(out);
        self.registered_at.put(out);
        self.tags.put(out);
        self.metadata.put(out);
        self.opinion.put(out);
        self.force.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let endpoint = Self {
            id: Wire::take(reader)?,
            address: Wire::take(reader)?,
            port: Wire::take(reader)?,
            weight: Wire::take(reader)?,
            health: Wire::take(reader)?,
            zone: Wire::take(reader)?,
            registered_at: Wire::take(reader)?,
            tags: Wire::take(reader)?,
            metadata: Wire::take(reader)?,
            opinion: Wire::take(reader)?,
            force: Wire::take(reader)?,
        };
        endpoint.check()?;
        Ok(endpoint)
    }
}

impl Wire for Table {
    fn put(&self, out: &mut Vec<u8>) {
        self.service.put(out);
        self.version.put(out);
        self.policy.put(out);
        self.endpoints.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let service = String::take(reader)?;
        let version = Version::take(reader)?;
        let policy = String::take(reader)?;
        let endpoints = Vec::<Endpoint>::take(reader)?;
        if !crate::is_name(&service) {
            return Err(DecodeError::Invalid("service"));
        }
        if policy.len() > MAX_POLICY || endpoints.len() > MAX_ENDPOINTS {
            return Err(DecodeError::TooLong);
        }
        if !endpoints.is_sorted_by(|a, b| a.id < b.id) {
            return Err(DecodeError::Invalid("order of endpoints"));
        }
        Ok(Self { service, version, endpoints, policy })
    }
}
