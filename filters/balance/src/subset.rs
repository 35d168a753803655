//! Endpoints by tag and metadata, as a request asks for them.
//!
//! The policy lists selectors; a request that brings a value for one, by its header or by the rule
//! of its route or cluster, gets only endpoints that have it, and several asked for must all be
//! there. Values are interned when the table changes, so a request costs one binary search per
//! selector: a value that no endpoint has leads to the fallback without being remembered, and pools
//! are built only for combinations that some endpoint has, at most [`MAX_POOLS`] at a time and as
//! far as [`crate::Memory`] holds them. Their rings and tables are paid for by requests
//! ([`crate::stand`]).

use std::collections::BTreeMap;

use pintle_contract::Endpoint;

use crate::hash::RequestView;
use crate::moves::Moves;
use crate::policy::{Failover, MAX_SELECTORS, Policy, Selector, SelectorTarget, SubsetDefault};

/// Pools kept, the whole service's among them. Past it the oldest gives way.
pub(crate) const MAX_POOLS: usize = 4_096;

/// A value asked for: which selector of [`Policy::subset`], and what it must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want<'a> {
    /// Index into [`Policy::subset`].
    pub selector: usize,
    /// The value.
    pub value: &'a [u8],
}

/// The values that a request's headers ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants<'a> {
    items: [Want<'a>; MAX_SELECTORS],
    len: usize,
}

/// Interned values, one per selector, 0 where it is not asked for; and last whether
/// [`Policy::failover`] is.
pub(crate) type Key = [u32; MAX_SELECTORS + 1];

/// A key's values by selector, whether it is [`DEFAULT`], and whether it is failed over.
pub(crate) type Words = (Vec<Option<String>>, bool, bool);

/// The pool of the policy's `subset_default`.
pub(crate) const DEFAULT: Key = {
    let mut key = [u32::MAX; MAX_SELECTORS + 1];
    key[MAX_SELECTORS] = 0;
    key
};

/// The same, and the failover asked for.
pub(crate) const fn failed_over(mut key: Key) -> Key {
    key[MAX_SELECTORS] = 1;
    key
}

/// Who has which value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Per selector, sorted by value, each with its endpoints in order.
    selectors: Vec<Vec<(String, Vec<u32>)>>,
    /// Who matches `subset_default`.
    default: Vec<u32>,
    /// Who matches `failover`.
    failover: Vec<u32>,
}

// === impl Wants ===

impl<'a> Wants<'a> {
    /// Reads the headers that the policy names. An empty value asks for nothing.
    #[must_use]
    pub fn read(policy: &Policy, request: &'a impl RequestView) -> Self {
        let mut wants = Self::default();
        for (selector, Selector { header, .. }) in policy.subset.iter().enumerate() {
            if !header.is_empty()
                && let Some(value) = request.header(header)
                && !value.is_empty()
            {
                wants.push(Want { selector, value });
            }
        }
        wants
    }

    /// Adds what a route's or cluster's rule asks for, in the place of what a header asks of the
    /// same selector; at most [`MAX_SELECTORS`] in all.
    pub fn push(&mut self, want: Want<'a>) {
        let read = self.items.iter_mut().take(self.len);
        if let Some(same) = read.into_iter().find(|read| read.selector == want.selector) {
            *same = want;
            return;
        }
        if let Some(place) = self.items.get_mut(self.len) {
            *place = want;
            self.len += 1;
        }
    }

    /// For [`crate::Request::subset`].
    #[must_use]
    pub fn as_slice(&self) -> &[Want<'a>] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

// === impl Index ===

impl Index {
    pub(crate) fn build(policy: &Policy, endpoints: &[Endpoint]) -> Self {
        let selectors = policy.subset.iter().map(|s| Self::values(s, endpoints)).collect();
        let those = |matches: fn(&Policy, &Endpoint) -> bool| {
            (0_u32..).zip(endpoints).filter(|(_, e)| matches(policy, e)).map(|(i, _)| i).collect()
        };
        Self { selectors, default: those(is_default), failover: those(is_failover) }
    }

    /// The same after some endpoints have moved, and `changed`, by their indices, are other ones.
    pub(crate) fn amended(
        &self,
        policy: &Policy,
        moves: &Moves,
        changed: &[(usize, &Endpoint)],
    ) -> Self {
        let others = |list: &[u32]| {
            let to = list.iter().filter_map(|&at| moves.to(at as usize));
            let others = to.filter(|at| changed.binary_search_by_key(at, |&(at, _)| at).is_err());
            others.map(|at| at as u32).collect::<Vec<u32>>()
        };
        let those = |list: &[u32], matches: fn(&Policy, &Endpoint) -> bool| {
            let mut list = others(list);
            let new = changed.iter().filter(|(_, endpoint)| matches(policy, endpoint));
            list.extend(new.map(|&(at, _)| at as u32));
            list.sort();
            list
        };
        let values = |(selector, values): (&Selector, &Vec<(String, Vec<u32>)>)| {
            let stay = values.iter().map(|(value, list)| (value.clone(), others(list)));
            let mut all: BTreeMap<String, Vec<u32>> = stay.collect();
            for &(at, endpoint) in changed {
                for label in selector.with.labels(endpoint) {
                    all.entry(label.to_owned()).or_default().push(at as u32);
                }
            }
            all.retain(|_, list| !list.is_empty());
            for list in all.values_mut() {
                list.sort();
                list.dedup();
            }
            all.into_iter().collect()
        };
        Self {
            selectors: policy.subset.iter().zip(&self.selectors).map(values).collect(),
            default: those(&self.default, is_default),
            failover: those(&self.failover, is_failover),
        }
    }

    fn values(selector: &Selector, endpoints: &[Endpoint]) -> Vec<(String, Vec<u32>)> {
        let all = (0_u32..).zip(endpoints);
        let pairs = all.flat_map(|(i, it)| selector.with.labels(it).map(move |value| (value, i)));
        let mut pairs: Vec<(&str, u32)> = pairs.collect();
        pairs.sort_unstable();
        pairs.dedup();
        let mut values: Vec<(String, Vec<u32>)> = Vec::new();
        for (value, i) in pairs {
            match values.last_mut() {
                Some((last, members)) if last == value => members.push(i),
                _ => values.push((value.to_owned(), vec![i])),
            }
        }
        values
    }

    /// `None`: some value is had by nobody.
    pub(crate) fn key(&self, wants: &[Want<'_>]) -> Option<Key> {
        let mut key = Key::default();
        for want in wants {
            let values = self.selectors.get(want.selector)?;
            let at = values.binary_search_by(|(v, _)| v.as_bytes().cmp(want.value)).ok()?;
            let place = key.get_mut(want.selector)?;
            let interned = at as u32 + 1;
            // Asked twice for different values of one selector: only a tag can be had twice, and
            // then the route's rule, which comes later, wins.
            *place = interned;
        }
        Some(key)
    }

    /// The key in words, which outlive the index.
    pub(crate) fn words(&self, key: &Key) -> Words {
        let selectors = self.selectors.iter().zip(key);
        let word = |(values, &v): (&Vec<(String, Vec<u32>)>, &u32)| {
            let at = (v as usize).checked_sub(1)?;
            values.get(at).map(|(value, _)| value.clone())
        };
        let failover = key.last() == Some(&1);
        (selectors.map(word).collect(), key.first() == DEFAULT.first(), failover)
    }

    /// Who matches, in order.
    pub(crate) fn members(&self, key: &Key) -> Vec<u32> {
        let mut lists: Vec<&[u32]> = self.lists(key).collect();
        lists.sort_unstable_by_key(|l| l.len());
        let Some((rarest, others)) = lists.split_first() else {
            return Vec::new();
        };
        let in_all = |i: &&u32| others.iter().all(|l| l.binary_search(i).is_ok());
        rarest.iter().filter(in_all).copied().collect()
    }

    pub(crate) fn matches(&self, key: &Key, index: u32) -> bool {
        self.lists(key).all(|l| l.binary_search(&index).is_ok())
    }

    /// The lists that an endpoint of this key is in, all of them.
    fn lists(&self, key: &Key) -> impl Iterator<Item = &[u32]> {
        let is_default = key.first() == DEFAULT.first();
        let asked = self.selectors.iter().zip(key).filter(move |&(_, &v)| v > 0 && !is_default);
        let asked = asked.map(|(values, &v)| {
            values.get(v as usize - 1).map_or(&[][..], |(_, members)| members.as_slice())
        });
        let default = is_default.then_some(self.default.as_slice());
        let failover = (key.last() == Some(&1)).then_some(self.failover.as_slice());
        asked.chain(default).chain(failover)
    }
}

fn is_default(policy: &Policy, endpoint: &Endpoint) -> bool {
    let SubsetDefault { metadata: wanted, tags } = &policy.subset_default;
    // Nobody asks for it where there is nothing that could be asked for.
    !policy.subset.is_empty()
        && wanted.iter().all(|(key, value)| metadata(endpoint, key) == Some(value.as_str()))
        && tags.iter().all(|tag| endpoint.tags.contains(tag))
}

fn is_failover(policy: &Policy, endpoint: &Endpoint) -> bool {
    match &policy.failover {
        None => false,
        Some(Failover::Tag(tag)) => endpoint.tags.contains(tag),
        Some(Failover::Region(region)) => metadata(endpoint, "region") == Some(region.as_str()),
    }
}

impl SelectorTarget {
    /// What an endpoint has of it.
    pub(crate) fn labels<'a>(&self, endpoint: &'a Endpoint) -> impl Iterator<Item = &'a str> {
        let (value, tags) = match self {
            Self::Metadata(key) => (metadata(endpoint, key), None),
            Self::Tag => (None, Some(&*endpoint.tags)),
        };
        value.into_iter().chain(tags.into_iter().flatten().map(String::as_str))
    }
}

pub(crate) fn metadata<'a>(endpoint: &'a Endpoint, key: &str) -> Option<&'a str> {
    match key {
        // Became a field when the registry's entry was read.
        "zone" => Some(&endpoint.zone).filter(|z| !z.is_empty()).map(String::as_str),
        _ => endpoint.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()),
    }
}
