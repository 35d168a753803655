//! What a frame from the agent changes.
//!
//! Within a stream, versions only grow; what is older than what is held is refused and counted. A
//! stream that sends everything ends its start with `full`, and whatever it did not mention is
//! gone.

use std::collections::{BTreeMap, BTreeSet};

use pintle_contract::{DecodeError, Down, Index, MAX_FRAME, Message, Patch, Table, Version};

/// Services that one Envoy holds, at most. Beyond, a frame is refused.
const MAX_SERVICES: usize = 20_000;

/// What the leader has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Store the frame, as it came, as this table's service's, and wake the workers for it.
    Store(Table),
    /// Bring the table's frame up to this patch, and wake the workers for it.
    Amend(Patch),
    /// A patch is of a table that is not held: everything has to be asked for anew, after
    /// [`Inbox::forget`].
    Lost(String),
    /// Store nothing in its place, and wake the workers for it.
    Remove(String),
    /// There is no such service, which was not held: whoever asked for it need not wait.
    Absent(String),
    /// Everything up to this version is here.
    Complete(Version),
}

/// Why a frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not decode.
    Malformed(DecodeError),
    /// It is older than what is held.
    Older,
    /// There are too many services.
    Full,
}

impl Refused {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed(error) => error.reason(),
            Self::Older => "older",
            Self::Full => "full",
        }
    }
}

/// Which tables shared data holds, and what the running stream has mentioned.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    services: BTreeMap<String, Version>,
    version: Version,
    /// While the stream's start has not ended: what it has mentioned.
    mentioned: Option<BTreeSet<String>>,
}

impl Inbox {
    /// Takes over what another leader has left in shared data.
    #[must_use]
    pub fn resume(index: Index) -> Self {
        Self {
            version: index.version,
            services: index.services.into_iter().collect(),
            mentioned: None,
        }
    }

    /// What to write back for the next leader and for new VMs.
    #[must_use]
    pub fn index(&self) -> Index {
        Index {
            version: self.version,
            services: self
                .services
                .iter()
                .map(|(name, version)| (name.clone(), *version))
                .collect(),
        }
    }

    /// The newest version that is held.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// A stream begins.
    pub fn begin(&mut self) {
        self.mentioned = Some(BTreeSet::new());
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// Why it was refused; nothing has changed then.
    pub fn frame(&mut self, bytes: &[u8]) -> Result<Vec<Effect>, Refused> {
        if bytes.len() > MAX_FRAME {
            return Err(Refused::Malformed(DecodeError::TooLong));
        }
        match Down::decode(bytes).map_err(Refused::Malformed)? {
            Down::Table(table) => {
                // Also of one that is refused: the service is there.
                self.mention(&table.service);
                let known = self.services.get(&table.service);
                if known.is_some_and(|held| table.version < *held) {
                    return Err(Refused::Older);
                }
                if known.is_none() && self.services.len() >= MAX_SERVICES {
                    return Err(Refused::Full);
                }
                let unchanged = known == Some(&table.version);
                self.reach(table.version);
                if unchanged {
                    return Ok(Vec::new());
                }
                self.services.insert(table.service.clone(), table.version);
                Ok(vec![Effect::Store(table)])
            }
            Down::Patch(patch) => {
                self.mention(&patch.service);
                match self.services.get_mut(&patch.service) {
                    Some(held) if *held == patch.from => *held = patch.version,
                    Some(held) if patch.version <= *held => return Err(Refused::Older),
                    _ => return Ok(vec![Effect::Lost(patch.service)]),
                }
                self.reach(patch.version);
                Ok(vec![Effect::Amend(patch)])
            }
            Down::Remove(removed) => {
                if self.services.get(&removed.service).is_some_and(|held| removed.version < *held) {
                    return Err(Refused::Older);
                }
                self.reach(removed.version);
                Ok(match self.services.remove(&removed.service) {
                    Some(_) => vec![Effect::Remove(removed.service)],
                    // A start tells of many that are gone, and of none that anybody waits for.
                    None if self.mentioned.is_some() => Vec::new(),
                    None => vec![Effect::Absent(removed.service)],
                })
            }
            Down::InitialEnd(initial) => {
                let mut effects = Vec::new();
                // Who did not hear the start from its beginning cannot say what it left out.
                if let (true, Some(mentioned)) = (initial.full, self.mentioned.take()) {
                    let gone = |name: &String| !mentioned.contains(name);
                    effects = self
                        .services
                        .keys()
                        .filter(|n| gone(n))
                        .cloned()
                        .map(Effect::Remove)
                        .collect();
                    self.services.retain(|name, _| mentioned.contains(name));
                }
                self.version = self.version.max(initial.version);
                effects.push(Effect::Complete(self.version));
                Ok(effects)
            }
            Down::Heartbeat(_) => Ok(Vec::new()),
        }
    }

    /// Another epoch only once its start is whole: who asked to go on from there would not hear
    /// what is gone since.
    fn reach(&mut self, version: Version) {
        if self.mentioned.is_none() || version.epoch == self.version.epoch {
            self.version = self.version.max(version);
        }
    }

    /// What is held of this service is not what the agent takes it for: the next stream begins as
    /// if nothing were.
    pub fn forget(&mut self, service: &str) {
        self.services.remove(service);
        self.version = Version::default();
    }

    fn mention(&mut self, service: &str) {
        if let Some(mentioned) = &mut self.mentioned {
            mentioned.insert(service.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use pintle_contract::{Initial, Removed};

    use super::*;

    fn version(sequence: u64) -> Version {
        Version { epoch: 1, sequence }
    }

    fn value(service: &str, sequence: u64) -> Table {
        let service = service.to_owned();
        Table { service, version: version(sequence), endpoints: vec![], policy: String::new() }
    }

    fn table(service: &str, sequence: u64) -> Vec<u8> {
        Down::Table(value(service, sequence)).encode()
    }

    fn end(sequence: u64, full: bool) -> Vec<u8> {
        Down::InitialEnd(Initial { version: version(sequence), full }).encode()
    }

    #[test]
    fn a_full_start_removes_what_it_does_not_mention() {
        let mut inbox = Inbox::default();
        inbox.begin();
        assert_eq!(inbox.frame(&table("a", 1)), Ok(vec![Effect::Store(value("a", 1))]));
        assert_eq!(inbox.frame(&table("b", 2)), Ok(vec![Effect::Store(value("b", 2))]));
        assert_eq!(inbox.frame(&end(2, true)), Ok(vec![Effect::Complete(version(2))]));
        inbox.begin();
        assert_eq!(inbox.frame(&table("b", 2)), Ok(vec![]), "unchanged, but mentioned");
        assert_eq!(
            inbox.frame(&end(3, true)),
            Ok(vec![Effect::Remove("a".into()), Effect::Complete(version(3))])
        );
    }

    #[test]
    fn a_full_start_that_was_not_heard_from_its_beginning_removes_nothing() {
        let mut inbox =
            Inbox::resume(Index { version: version(5), services: vec![("a".into(), version(4))] });
        assert!(inbox.frame(&table("b", 6)).is_ok());
        assert_eq!(inbox.frame(&end(6, true)), Ok(vec![Effect::Complete(version(6))]));
        assert_eq!(inbox.index().services.len(), 2);
    }

    /// An agent whose clock went back begins with a lower epoch.
    #[test]
    fn what_is_refused_as_older_is_there_all_the_same() {
        let mut inbox =
            Inbox::resume(Index { version: version(5), services: vec![("a".into(), version(5))] });
        inbox.begin();
        assert_eq!(inbox.frame(&table("a", 4)), Err(Refused::Older));
        assert_eq!(inbox.frame(&end(4, true)), Ok(vec![Effect::Complete(version(5))]));
        assert_eq!(inbox.index().services, vec![("a".into(), version(5))]);
    }

    #[test]
    fn another_epoch_is_reached_only_by_a_whole_start() {
        let mut inbox = Inbox::default();
        inbox.begin();
        assert!(inbox.frame(&table("a", 1)).is_ok());
        assert_eq!(inbox.version(), Version::default(), "asked anew, it is a full start again");
        assert!(inbox.frame(&end(1, true)).is_ok());
        assert_eq!(inbox.version(), version(1));
    }

    #[test]
    fn a_partial_start_removes_only_what_it_names() {
        let mut inbox = Inbox::resume(Index {
            version: version(5),
            services: vec![("a".into(), version(4)), ("b".into(), version(5))],
        });
        inbox.begin();
        let gone = Down::Remove(Removed { service: "a".into(), version: version(6) }).encode();
        assert_eq!(inbox.frame(&gone), Ok(vec![Effect::Remove("a".into())]));
        assert_eq!(inbox.frame(&end(6, false)), Ok(vec![Effect::Complete(version(6))]));
        assert_eq!(inbox.index().services, vec![("b".into(), version(5))]);
    }

    #[test]
    fn a_patch_leads_from_the_table_that_is_held() {
        let patch = |from, to| Patch {
            service: "a".into(),
            from: version(from),
            version: version(to),
            endpoints: Vec::new(),
            gone: vec!["a-1".into()],
        };
        let frame = |from, to| Down::Patch(patch(from, to)).encode();
        let mut inbox = Inbox::default();
        assert_eq!(inbox.frame(&frame(1, 2)), Ok(vec![Effect::Lost("a".into())]));
        assert!(inbox.frame(&table("a", 1)).is_ok());
        assert_eq!(inbox.frame(&frame(1, 2)), Ok(vec![Effect::Amend(patch(1, 2))]));
        assert_eq!(inbox.index().services, vec![("a".into(), version(2))]);
        assert_eq!(inbox.frame(&frame(1, 2)), Err(Refused::Older));
        assert_eq!(inbox.frame(&frame(3, 4)), Ok(vec![Effect::Lost("a".into())]));
        assert_eq!(inbox.version(), version(2));
        inbox.forget("a");
        assert_eq!(inbox.version(), Version::default());
        inbox.begin();
        assert!(matches!(inbox.frame(&table("a", 2)).as_deref(), Ok([Effect::Store(_)])));
    }

    #[test]
    fn a_version_never_goes_back() {
        let mut inbox = Inbox::default();
        assert!(inbox.frame(&table("a", 5)).is_ok());
        assert_eq!(inbox.frame(&table("a", 4)), Err(Refused::Older));
        let gone = Down::Remove(Removed { service: "a".into(), version: version(4) }).encode();
        assert_eq!(inbox.frame(&gone), Err(Refused::Older));
        assert_eq!(inbox.version(), version(5));
    }

    #[test]
    fn a_frame_cut_anywhere_changes_nothing() {
        let mut inbox = Inbox::default();
        let whole = table("a", 1);
        for cut in 0..whole.len() {
            assert!(
                matches!(inbox.frame(&whole[..cut]), Err(Refused::Malformed(_))),
                "cut at {cut}"
            );
        }
        assert_eq!(inbox.index(), Index::default());
    }
}
