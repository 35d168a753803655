//! Which source takes a key, and what becomes of it.

use std::collections::BTreeSet;

use pintle_contract::AddressPolicy;

use super::admit::{Admitted, admit};
use super::config::SourceConfig;
use super::recognise::{Guess, is_own, recognise};
use super::{Format, Refusal};
use crate::source::EtcdConfig;

/// All sources of one prefix. Our own form is one of them where `own`.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) prefix: Vec<u8>,
    pub(crate) own: bool,
    sources: Vec<(SourceConfig, Box<dyn Format>)>,
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reading {
    /// Our own form, for the state to read.
    Own,
    /// Instances, and what was wrong with others of the same value.
    Instances(Vec<Admitted>, Option<Refusal>),
    /// No instance, and none of anybody's business.
    Beside,
    /// Should have been an instance.
    Refused(Refusal),
}

/// The prefixes of instances that the configuration names, our own first.
pub(crate) fn groups(config: &EtcdConfig) -> Vec<Group> {
    let own = config.services.as_bytes().to_vec();
    let mut groups = vec![Group { prefix: own, own: true, sources: Vec::new() }];
    for source in &config.sources {
        let Some(format) = source.format() else { continue };
        let prefix = source.prefix();
        let place = groups.iter().position(|group| group.prefix == prefix);
        let at = place.unwrap_or(groups.len());
        if place.is_none() {
            groups.push(Group { prefix, own: false, sources: Vec::new() });
        }
        if let Some(group) = groups.get_mut(at) {
            group.sources.push((source.clone(), format));
        }
    }
    groups
}

impl Group {
    /// Whether the group has any format but our own.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Reads a key, without the prefix, and its value. The first source that recognises them
    /// decides on the format, and all sources of that format take part: each has its own scheme.
    pub(crate) fn read(&self, key: &[u8], value: &[u8], allowed: &AddressPolicy) -> Reading {
        if self.own && is_own(value) {
            return Reading::Own;
        }
        let recognised = self.sources.iter().find(|(_, format)| format.recognises(key, value));
        let Some((chosen, _)) = recognised.or_else(|| self.sources.first()) else {
            return match recognise(key, value) {
                Some(guess @ Guess::Format(_)) => Reading::Refused(Refusal::Other(guess)),
                _ => Reading::Own,
            };
        };
        let mut good = Vec::new();
        let mut bad = None;
        for (source, format) in &self.sources {
            let same = source.format == chosen.format && source.custom == chosen.custom;
            if !same {
                continue;
            }
            match format.read(key, value) {
                Ok(found) => {
                    let alone = found.len() <= 1;
                    for found in found {
                        match admit(found, alone, source, allowed) {
                            Ok(admitted) => good.push(admitted),
                            Err(refusal) => bad = bad.or(Some(refusal)),
                        }
                    }
                }
                Err(refusal) => bad = bad.or(Some(refusal)),
            }
        }
        match bad {
            bad if !good.is_empty() => Reading::Instances(good, bad),
            None => Reading::Beside,
            Some(refusal) if recognised.is_some() => Reading::Refused(refusal),
            // Nobody's: a marker such as a service's own key, a format nobody configured, or
            // broken.
            Some(_) if value.is_empty() => Reading::Beside,
            Some(refusal) => Reading::Refused(match recognise(key, value) {
                Some(guess) if !guess.is(chosen.format) => Refusal::Other(guess),
                _ => refusal,
            }),
        }
    }

    /// The schemes of keys none of which is an instance, because no source takes a URL of theirs;
    /// none where any is one, or is refused. `pairs` are keys without the prefix, and values.
    pub(crate) fn untaken<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> BTreeSet<String> {
        let allowed = AddressPolicy::default();
        let mut schemes = BTreeSet::new();
        for (key, value) in pairs {
            if self.read(key, value, &allowed) != Reading::Beside {
                return BTreeSet::new();
            }
            schemes.extend(self.sources.iter().flat_map(|(_, format)| format.schemes(value)));
        }
        schemes
    }
}
