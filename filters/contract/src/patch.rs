//! What changed of a table: one endpoint of ten thousand is told in its own size, not in theirs.
//!
//! A patch leads from one version of a table to another. It is of schema 2, on the stream and
//! between workers; the tables themselves are of both schemas.

use std::collections::BTreeMap;

use crate::frame::{TABLE, frame, unframe};
use crate::wire::{DecodeError, Reader, Wire};
use crate::{Endpoint, MAX_ENDPOINTS, MAX_FRAME, Schema, Table, Version};

/// The share of a table that a patch may change, as a divisor.
const SHARE: usize = 8;

/// The endpoints of a table that are not as in the table before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// etcd's name of the service.
    pub service: String,
    /// The table that it changes.
    pub from: Version,
    /// The table that comes of it.
    pub version: Version,
    /// New and changed ones, sorted by id, ids unique.
    pub endpoints: Vec<Endpoint>,
    /// The ids of those that went, sorted, unique, none of them in `endpoints`.
    pub gone: Vec<String>,
}

impl Patch {
    /// Endpoints of a table that is changed by patches, at least: of fewer the whole one is as
    /// quick.
    pub const LARGE: usize = 64;

    /// What leads from one table to the other. `None` where that is best told whole: small tables,
    /// another policy, more than an eighth of the endpoints.
    #[must_use]
    pub fn between(old: &Table, new: &Table) -> Option<Self> {
        if new.endpoints.len() < Self::LARGE
            || old.policy != new.policy
            || old.service != new.service
        {
            return None;
        }
        let most = new.endpoints.len() / SHARE;
        let (mut endpoints, mut gone) = (Vec::new(), Vec::new());
        let mut before = old.endpoints.iter().peekable();
        for endpoint in &new.endpoints {
            while let Some(went) = before.next_if(|old| old.id < endpoint.id) {
                gone.push(went.id.clone());
            }
            if before.next_if(|old| old.id == endpoint.id) != Some(endpoint) {
                endpoints.push(endpoint.clone());
            }
            if endpoints.len().saturating_add(gone.len()) > most {
                return None;
            }
        }
        gone.extend(before.map(|went| went.id.clone()));
        let few = endpoints.len().saturating_add(gone.len()) <= most;
        let (service, version) = (new.service.clone(), new.version);
        few.then_some(Self { service, from: old.version, version, endpoints, gone })
    }

    /// This one and the one that comes after it, as one. `None` where that one is of another table.
    #[must_use]
    pub fn then(self, next: &Self) -> Option<Self> {
        if self.service != next.service || self.version != next.from {
            return None;
        }
        let there = |endpoint: &Endpoint| (endpoint.id.clone(), Some(endpoint.clone()));
        let gone = |id: &String| (id.clone(), None);
        let mut all: BTreeMap<String, Option<Endpoint>> = self.gone.iter().map(gone).collect();
        all.extend(
            self.endpoints.into_iter().map(|endpoint| (endpoint.id.clone(), Some(endpoint))),
        );
        all.extend(next.gone.iter().map(gone));
        all.extend(next.endpoints.iter().map(there));
        let (mut endpoints, mut gone) = (Vec::new(), Vec::new());
        for (id, endpoint) in all {
            match endpoint {
                Some(endpoint) => endpoints.push(endpoint),
                None => gone.push(id),
            }
        }
        Some(Self {
            service: self.service,
            from: self.from,
            version: next.version,
            endpoints,
            gone,
        })
    }

    /// Whether it leads from the table of this version to the newest: from where it begins, or from
    /// one that it went over.
    #[must_use]
    pub fn leads_from(&self, held: Version) -> bool {
        held.epoch == self.version.epoch && self.from <= held && held < self.version
    }

    /// The frame of the table that comes of the frame of the one before. Its other endpoints are
    /// copied, not read.
    ///
    /// # Errors
    /// What the frame lacks, or [`DecodeError::Invalid`] where it is of another service or version.
    pub fn apply(&self, whole: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let (TABLE, mut reader) = unframe(whole)? else {
            return Err(DecodeError::Invalid("table"));
        };
        if String::take(&mut reader)? != self.service {
            return Err(DecodeError::Invalid("service"));
        }
        if Version::take(&mut reader)? != self.from {
            return Err(DecodeError::Invalid("version"));
        }
        let policy = String::take(&mut reader)?;
        let mut count = 0usize;
        let mut entries = Vec::with_capacity(whole.len().saturating_add(256));
        let mut changed = self.endpoints.iter().peekable();
        for _ in 0..reader.length()? {
            let (id, bytes) = skip(&mut reader)?;
            while let Some(new) = changed.next_if(|new| new.id.as_str() < id) {
                new.put(&mut entries);
                count = count.saturating_add(1);
            }
            if let Some(new) = changed.next_if(|new| new.id == id) {
                new.put(&mut entries);
            } else if self.gone.binary_search_by(|gone| gone.as_str().cmp(id)).is_ok() {
                continue;
            } else {
                entries.extend_from_slice(bytes);
            }
            count = count.saturating_add(1);
        }
        reader.finish()?;
        for new in changed {
            new.put(&mut entries);
            count = count.saturating_add(1);
        }
        let whole = frame(Schema::One, TABLE, |out| {
            self.service.put(out);
            self.version.put(out);
            policy.put(out);
            (count as u64).put(out);
            out.extend_from_slice(&entries);
        });
        if count > MAX_ENDPOINTS || whole.len() > MAX_FRAME {
            return Err(DecodeError::TooLong);
        }
        Ok(whole)
    }
}

/// The next endpoint's id and bytes.
fn skip<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, &'a [u8]), DecodeError> {
    let start = reader.rest();
    let id = std::str::from_utf8(reader.text()?).map_err(|_| DecodeError::Text)?;
    std::net::IpAddr::take(reader)?;
    u16::take(reader)?;
    u32::take(reader)?;
    u8::take(reader)?;
    reader.text()?;
    u64::take(reader)?;
    for _ in 0..reader.length()? {
        reader.text()?;
    }
    for _ in 0..reader.length()? {
        reader.text()?;
        reader.text()?;
    }
    <Option<crate::Opinion> as Wire>::take(reader)?;
    <Option<crate::Force> as Wire>::take(reader)?;
    let length = start.len().saturating_sub(reader.rest().len());
    Ok((id, start.get(..length).ok_or(DecodeError::Truncated)?))
}

impl Wire for Patch {
    fn put(&self, out: &mut Vec<u8>) {
        self.service.put(out);
        self.from.put(out);
        self.version.put(out);
        self.endpoints.put(out);
        self.gone.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let patch = Self {
            service: Wire::take(reader)?,
            from: Wire::take(reader)?,
            version: Wire::take(reader)?,
            endpoints: Wire::take(reader)?,
            gone: Wire::take(reader)?,
        };
        if !crate::is_name(&patch.service) {
            return Err(DecodeError::Invalid("service"));
        }
        if patch.version <= patch.from {
            return Err(DecodeError::Invalid("version"));
        }
        if patch.endpoints.len().max(patch.gone.len()) > MAX_ENDPOINTS {
            return Err(DecodeError::TooLong);
        }
        let sorted = patch.endpoints.is_sorted_by(|a, b| a.id < b.id);
        let comes_back =
            |id: &String| patch.endpoints.binary_search_by(|endpoint| endpoint.id.cmp(id)).is_ok();
        if !sorted || !patch.gone.is_sorted_by(|a, b| a < b) || patch.gone.iter().any(comes_back) {
            return Err(DecodeError::Invalid("order of endpoints"));
        }
        Ok(patch)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{Down, Force, ForceAction, Message as _, Now, Opinion};

    fn endpoint(number: u32, weight: u32) -> Endpoint {
        let [_, b, c, d] = number.to_be_bytes();
        let at = match number % 3 {
            0 => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, number as u16], 80)),
            _ => SocketAddr::from(([10, b, c, d], 80)),
        };
        let opinion = Opinion { expires_at: Now(u64::MAX), reporters: number };
        let force = Force { action: ForceAction::Open, until: Now(7), stamp: 1 << 40 };
        Endpoint {
            weight,
            zone: "zone-a".into(),
            tags: (0..number % 3).map(|tag| format!("t{tag}")).collect(),
            metadata: [("version".into(), format!("v{number}"))].into(),
            opinion: (number % 4 == 1).then_some(opinion),
            force: (number % 5 == 2).then_some(force),
            ..Endpoint::new(format!("e-{number:05}"), at)
        }
    }

    fn table(sequence: u64, endpoints: Vec<Endpoint>) -> Table {
        let version = Version { epoch: 1, sequence };
        Table { service: "orders".into(), version, endpoints, policy: "{}".into() }
    }

    #[test]
    fn what_is_between_two_tables_makes_the_one_of_the_other() {
        let old = table(1, (0..400).map(|number| endpoint(number * 2, 1)).collect());
        let mut all = old.endpoints.clone();
        all[3] = endpoint(6, 9);
        all.remove(399);
        all.remove(200);
        all.remove(0);
        all.insert(100, endpoint(203, 1));
        all.push(endpoint(900, 1));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let new = table(2, all);
        let patch = Patch::between(&old, &new).unwrap();
        assert_eq!((patch.endpoints.len(), patch.gone.len()), (3, 3));
        let frame = Down::Patch(patch.clone()).encode();
        assert_eq!(Down::decode(&frame), Ok(Down::Patch(patch.clone())));
        let whole = patch.apply(&Down::Table(old.clone()).encode()).unwrap();
        assert_eq!(whole, Down::Table(new.clone()).encode(), "byte for byte");
        // Only from where it leads from.
        assert_eq!(patch.apply(&whole), Err(DecodeError::Invalid("version")));
        for cut in 0..64 {
            assert!(patch.apply(&whole[..whole.len() - cut * 7 - 1]).is_err());
        }
    }

    #[test]
    fn two_patches_are_one_from_every_table_on_the_way() {
        let tables: Vec<Table> = [
            (1, vec![0, 1, 2, 3, 4]),
            (2, vec![1, 2, 3, 4, 9]),
            (3, vec![0, 1, 2, 4, 5, 9]),
            (4, vec![0, 1, 2, 4, 9]),
        ]
        .into_iter()
        .map(|(sequence, mine)| {
            let weight = |number| if number == 2 { sequence as u32 } else { 1 };
            let mine = mine.into_iter().map(|number| endpoint(number, weight(number)));
            table(sequence, mine.chain((100..300).map(|number| endpoint(number, 1))).collect())
        })
        .collect();
        let steps = tables.windows(2).map(|two| Patch::between(&two[0], &two[1]).unwrap());
        let whole = steps.reduce(|before, next| before.then(&next).unwrap()).unwrap();
        assert_eq!(
            Down::decode(&Down::Patch(whole.clone()).encode()),
            Ok(Down::Patch(whole.clone()))
        );
        let newest = Down::Table(tables[3].clone()).encode();
        assert_eq!(whole.apply(&Down::Table(tables[0].clone()).encode()), Ok(newest.clone()));
        for held in &tables[..3] {
            assert!(whole.leads_from(held.version));
            // From where it says that it leads from, for the sake of its own check.
            let from = Patch { from: held.version, ..whole.clone() };
            assert_eq!(from.apply(&Down::Table(held.clone()).encode()), Ok(newest.clone()));
        }
        assert!(!whole.leads_from(tables[3].version));
        assert_eq!(whole.clone().then(&whole), None, "of another table");
    }

    #[test]
    fn much_is_told_whole() {
        let old = table(1, (0..100).map(|number| endpoint(number, 1)).collect());
        let many = (0..100).map(|number| endpoint(number, 1 + number % 2)).collect();
        assert_eq!(Patch::between(&old, &table(2, many)), None);
        let policy = Table { policy: String::new(), ..table(2, old.endpoints.clone()) };
        assert_eq!(Patch::between(&old, &policy), None);
        let small = table(2, old.endpoints[..10].to_vec());
        assert_eq!(Patch::between(&table(1, old.endpoints[..11].to_vec()), &small), None);
    }
}
