//! The record's bytes in the shared store.
//!
//! Every record has the same length and every field its place, little-endian, so that equal records
//! are equal bytes and decoding needs no bounds of its own. The store is untrusted: another module
//! with the same `vm_id` can write there, and an Envoy that was updated in place holds what an
//! older version left. Magic, schema and checksum tell such bytes apart, and a value that no
//! machine could have written is refused; the reader then goes on with the record it saw last.
//!
//! ```text
//! magic "PBRK" | schema u8 | state u8 | origin u8 | zero u8
//! consecutive trips generation probe_successes last_probe           u32 each
//! revision since until touched clean_since watched_since
//! unused opinion_seen force_seen held_until                     u64 each
//! 8 probes: id u32, expires u64
//! window: bucket_ns u64, head u64, 10 buckets: total failed slow    u32 each
//! xxHash64 of everything before                                     u64
//! ```
//! Unused is what an earlier release kept there; it is written as zero and not read.

use std::fmt;

use pintle_contract::Now;
use xxhash_rust::xxh64::xxh64;

use crate::machine::MAX_TRIPS;
use crate::policy::MAX_PROBES;
use crate::policy::MAX_TIMEOUT;
use crate::record::{Origin, Probe, Record, State};
use crate::window::{BUCKETS, Counts, Window};

const MAGIC: [u8; 4] = *b"PBRK";
const SCHEMA: u8 = 1;
const HEAD: usize = 8;
const CHECKSUM: usize = 8;
const UNUSED: u64 = 0;

/// Bytes of every encoded record.
pub const RECORD_BYTES: usize =
    HEAD + 5 * 4 + 10 * 8 + MAX_PROBES * 12 + 2 * 8 + BUCKETS * 12 + CHECKSUM;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// There are none: nobody has written this breaker yet.
    Empty,
    /// The wrong number of them, or another magic.
    NotARecord,
    /// Another schema version.
    Schema(u8),
    /// They were altered.
    Checksum,
    /// A value that no machine could have written.
    Value,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no bytes"),
            Self::NotARecord => f.write_str("not a breaker record"),
            Self::Schema(found) => write!(f, "schema {found}, known is {SCHEMA}"),
            Self::Checksum => f.write_str("wrong checksum"),
            Self::Value => f.write_str("an impossible value"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl Record {
    /// The record's bytes, appended to `out`, which is cleared first: [`RECORD_BYTES`] of them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(RECORD_BYTES);
        out.extend(MAGIC);
        out.extend([SCHEMA, state_tag(self.state), origin_tag(self.origin), 0]);
        for word in
            [self.consecutive, self.trips, self.generation, self.probe_successes, self.last_probe]
        {
            out.extend(word.to_le_bytes());
        }
        for long in [
            self.revision,
            self.since.0,
            self.until.0,
            self.touched.0,
            self.clean_since.0,
            self.watched_since.0,
            UNUSED,
            self.opinion_seen.0,
            self.force_seen,
            self.held_until.0,
        ] {
            out.extend(long.to_le_bytes());
        }
        for probe in &self.probes {
            out.extend(probe.id.to_le_bytes());
            out.extend(probe.expires.0.to_le_bytes());
        }
        out.extend(self.window.bucket_ns.to_le_bytes());
        out.extend(self.window.head.to_le_bytes());
        for counts in &self.window.buckets {
            for word in [counts.total, counts.failed, counts.slow] {
                out.extend(word.to_le_bytes());
            }
        }
        let sum = xxh64(out, 0);
        out.extend(sum.to_le_bytes());
    }

    /// The record that `bytes` encode.
    ///
    /// # Errors
    ///
    /// For all bytes that [`Self::encode`] does not produce.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        if bytes.len() != RECORD_BYTES || !bytes.starts_with(&MAGIC) {
            return Err(DecodeError::NotARecord);
        }
        let (body, sum) =
            bytes.split_at_checked(RECORD_BYTES - CHECKSUM).ok_or(DecodeError::NotARecord)?;
        let mut reader = Reader(body);
        let _magic: [u8; 4] = reader.take()?;
        let [schema, state, origin, zero] = reader.take()?;
        if schema != SCHEMA {
            return Err(DecodeError::Schema(schema));
        }
        if xxh64(body, 0).to_le_bytes() != *sum {
            return Err(DecodeError::Checksum);
        }
        if zero != 0 {
            return Err(DecodeError::Value);
        }
        // Struct fields are evaluated in the order written here, which is the order of the bytes.
        let record = Self {
            state: state_of(state)?,
            origin: origin_of(origin)?,
            consecutive: reader.word()?,
            trips: reader.word()?,
            generation: reader.word()?,
            probe_successes: reader.word()?,
            last_probe: reader.word()?,
            revision: reader.long()?,
            since: reader.time()?,
            until: reader.time()?,
            touched: reader.time()?,
            clean_since: reader.time()?,
            watched_since: reader.time()?,
            opinion_seen: reader.skip()?.time()?,
            force_seen: reader.long()?,
            held_until: reader.time()?,
            probes: reader.probes()?,
            window: reader.window()?,
        };
        if record.is_possible() { Ok(record) } else { Err(DecodeError::Value) }
    }

    /// What holds for every record that a machine wrote, and keeps one that somebody else wrote
    /// from wedging the breaker.
    fn is_possible(&self) -> bool {
        let slots = self.state == State::HalfOpen || self.probes_out() == 0;
        let free = self.probes.iter().all(|probe| probe.id != 0 || probe.expires == Now(0));
        let past = [self.since, self.clean_since, self.watched_since];
        let failures = self.state == State::Closed || (self.consecutive == 0 && !self.is_watched());
        let short =
            self.probes.iter().all(|probe| probe.expires.since(self.touched) <= MAX_TIMEOUT);
        let trips = self.trips <= MAX_TRIPS;
        slots && free && failures && trips && short && past.iter().all(|time| *time <= self.touched)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(DecodeError::NotARecord)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn word(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }

    /// Past the unused.
    fn skip(&mut self) -> Result<&mut Self, DecodeError> {
        self.long().map(|_| self)
    }

    fn time(&mut self) -> Result<Now, DecodeError> {
        self.long().map(Now)
    }

    fn probes(&mut self) -> Result<[Probe; MAX_PROBES], DecodeError> {
        let mut probes = [Probe::default(); MAX_PROBES];
        for probe in &mut probes {
            *probe = Probe { id: self.word()?, expires: self.time()? };
        }
        Ok(probes)
    }

    fn window(&mut self) -> Result<Window, DecodeError> {
        let bucket_ns = self.long()?;
        let head = self.long()?;
        let mut buckets = [Counts::default(); BUCKETS];
        for bucket in &mut buckets {
            *bucket = Counts { total: self.word()?, failed: self.word()?, slow: self.word()? };
        }
        Ok(Window { bucket_ns, head, buckets })
    }
}

const fn state_tag(state: State) -> u8 {
    match state {
        State::Closed => 0,
        State::Open => 1,
        State::HalfOpen => 2,
    }
}

const fn state_of(tag: u8) -> Result<State, DecodeError> {
    match tag {
        0 => Ok(State::Closed),
        1 => Ok(State::Open),
        2 => Ok(State::HalfOpen),
        _ => Err(DecodeError::Value),
    }
}

const fn origin_tag(origin: Origin) -> u8 {
    match origin {
        Origin::Fleet => 0,
        Origin::Advised => 1,
        Origin::Own => 2,
        Origin::Forced => 3,
    }
}

const fn origin_of(tag: u8) -> Result<Origin, DecodeError> {
    match tag {
        0 => Ok(Origin::Fleet),
        1 => Ok(Origin::Advised),
        2 => Ok(Origin::Own),
        3 => Ok(Origin::Forced),
        _ => Err(DecodeError::Value),
    }
}

#[cfg(test)]
mod tests;
