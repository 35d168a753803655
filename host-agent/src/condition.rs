//! Whether the agent is well: what `/readyz`, the page, the metrics and `pintle check` say of it.
//!
//! An agent that serves is not well for that alone. It is unwell while what it serves is older than
//! anybody has confirmed, while an Envoy does not take it, and while a service is registered and
//! none of its entries could be used. The first two make it unready. The last does not: whoever can
//! register a service could then make every agent of the fleet unready. Decides with values; has no
//! clock.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use pintle_state::{Rejected, Snapshot};

use crate::fleet::ProxyView;
use crate::link::{SourceStatus, Sources};
use crate::serve::sync::is_loaded;

/// A proxy whose workers stay behind for so long refuses tables: one takes milliseconds.
const REFUSING_AFTER: Duration = Duration::from_secs(15);
/// Services and proxies that are named; the rest is counted.
const NAMED: usize = 5;

/// Something that keeps the agent from being well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is nothing to serve.
    Nothing,
    /// What is served is from disk, and the registry has not confirmed it.
    Unconfirmed,
    /// A source has given nothing for longer than it may.
    Silent {
        /// The source.
        source: &'static str,
        /// For how long.
        silent: Duration,
        /// For how long it may.
        most: Duration,
    },
    /// The registry answers, and has not been listed for longer than it may.
    Unlisted {
        /// For how long.
        since: Duration,
    },
    /// An Envoy does not take the tables.
    Refusing {
        /// Its node id.
        proxy: String,
        /// For how long.
        behind: Duration,
    },
    /// All entries of a service are refused.
    Refused {
        /// The service.
        service: String,
        /// How many entries.
        entries: usize,
        /// One of their keys, and why it is refused.
        such: (String, String),
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => {
                f.write_str("no snapshot yet: the registry has not answered and none is on disk")
            }
            Self::Unconfirmed => f.write_str("stale: from disk, not confirmed by the registry yet"),
            Self::Silent { source, silent, most } => write!(
                f,
                "{source} has given nothing for {} s, and {} s are allowed",
                silent.as_secs(),
                most.as_secs()
            ),
            Self::Unlisted { since } => write!(
                f,
                "etcd has not been listed for {} s: what its watch does not tell is not found",
                since.as_secs()
            ),
            Self::Refusing { proxy, behind } => write!(
                f,
                "proxy {proxy} has not taken the newest tables for {} s",
                behind.as_secs()
            ),
            Self::Refused { service, entries: 1, such: (key, why) } => {
                write!(f, "the only entry of {service} is refused, {key}: {why}")
            }
            Self::Refused { service, entries, such: (key, why) } => {
                write!(f, "all {entries} entries of {service} are refused, such as {key}: {why}")
            }
        }
    }
}

/// How the agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// What is wrong, the worst first; empty when the agent is well.
    pub troubles: Vec<Trouble>,
}

impl Condition {
    /// Of what is served, where it comes from and who takes it.
    #[must_use]
    pub(crate) fn of(
        snapshot: &Snapshot,
        sources: &Sources,
        proxies: &[ProxyView],
        now: Instant,
    ) -> Self {
        let mut troubles = Vec::new();
        if !is_loaded(snapshot) {
            troubles.push(Trouble::Nothing);
        } else if snapshot.stale {
            troubles.push(Trouble::Unconfirmed);
        }
        troubles
            .extend(sources.all().iter().filter_map(|(name, status)| silent(name, status, now)));
        if let Some(listed) = sources.etcd.listed
            && let since = now.saturating_duration_since(listed)
            && since > sources.etcd.patience.saturating_mul(2)
        {
            troubles.push(Trouble::Unlisted { since });
        }
        let refusing = proxies.iter().filter_map(|proxy| {
            let behind = proxy.behind.filter(|behind| *behind > REFUSING_AFTER)?;
            Some(Trouble::Refusing { proxy: proxy.proxy.clone(), behind })
        });
        troubles.extend(refusing.take(NAMED));
        troubles.extend(refused(snapshot).take(NAMED));
        Self { troubles }
    }

    /// Whether there is anything to serve.
    #[must_use]
    pub(crate) fn serves(&self) -> bool {
        !self.troubles.contains(&Trouble::Nothing)
    }

    /// Whether it can be relied upon: there is something to serve, the sources speak, and it is
    /// taken. What is from disk can, until the registry has had its time.
    #[must_use]
    pub(crate) fn is_ready(&self) -> bool {
        let mild = |it: &Trouble| matches!(it, Trouble::Unconfirmed | Trouble::Refused { .. });
        self.troubles.iter().all(mild)
    }

    /// Whether what is served may be of the past.
    #[must_use]
    pub(crate) fn is_stale(&self) -> bool {
        self.troubles.iter().any(|it| match it {
            Trouble::Unconfirmed | Trouble::Unlisted { .. } => true,
            Trouble::Silent { source, .. } => *source != "nats",
            _ => false,
        })
    }
}

fn silent(source: &'static str, status: &SourceStatus, now: Instant) -> Option<Trouble> {
    let silent = now.saturating_duration_since(status.heard?);
    // NATS says something when somebody orders something; a connection to it is all that is
    // expected.
    let spoken_for = source == "nats" && status.connected;
    let most = status.patience;
    (status.enabled && !spoken_for && silent > most).then_some(Trouble::Silent {
        source,
        silent,
        most,
    })
}

/// Services of which entries are refused and none is served.
fn refused(snapshot: &Snapshot) -> impl Iterator<Item = Trouble> {
    let mut entries: BTreeMap<String, Vec<&Rejected>> = BTreeMap::new();
    for row in snapshot.rejected.iter().filter(|row| row.source == "registry") {
        entries.entry(service_of(&row.key)).or_default().push(row);
    }
    let served = |name: &str| {
        let service = snapshot.services.get(name);
        service.is_some_and(|service| !service.table.endpoints.is_empty())
    };
    let ill: Vec<_> = entries.into_iter().filter(|(service, _)| !served(service)).collect();
    ill.into_iter().filter_map(|(service, rows)| {
        let such = rows.first().map(|row| (row.key.clone(), row.detail.clone()))?;
        Some(Trouble::Refused { service, entries: rows.len(), such })
    })
}

/// The service in a key such as `/services/orders/orders-1`; the whole key where it has another
/// form.
#[must_use]
pub(crate) fn service_of(key: &str) -> String {
    let mut parts = key.rsplit('/');
    let last = parts.next().unwrap_or(key);
    parts.next().filter(|part| !part.is_empty()).unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use pintle_contract::Version;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn well(now: Instant) -> (Snapshot, Sources) {
        let version = Version { epoch: 1, sequence: 1 };
        let snapshot = Snapshot { version, ..Snapshot::default() };
        let mut sources = Sources::default();
        for status in
            [&mut sources.etcd, &mut sources.kubernetes, &mut sources.nats, &mut sources.file]
        {
            status.enabled = true;
            status.connected = true;
            status.patience = MINUTE;
            status.heard = Some(now);
        }
        sources.etcd.listed = Some(now);
        (snapshot, sources)
    }

    #[test]
    fn each_trouble_is_said_and_most_make_it_unready() {
        type Fault = fn(&mut Snapshot, &mut Sources, &mut Vec<ProxyView>, Instant);
        let now = Instant::now();
        let later = now + 2 * MINUTE;
        let rows: &[(&str, Fault, bool, bool)] = &[
            ("", |_, _, _, _| {}, true, false),
            ("no snapshot", |it, _, _, _| *it = Snapshot::default(), false, false),
            (
                "etcd has given nothing for 120 s",
                |_, it, _, at| it.etcd.heard = Some(at),
                false,
                true,
            ),
            ("file has given nothing", |_, it, _, at| it.file.heard = Some(at), false, true),
            (
                "kubernetes has given nothing",
                |_, it, _, at| it.kubernetes.heard = Some(at),
                false,
                true,
            ),
            ("", |_, it, _, at| it.nats.heard = Some(at), true, false),
            (
                "nats has given nothing",
                |_, it, _, at| (it.nats.heard, it.nats.connected) = (Some(at), false),
                false,
                false,
            ),
            (
                "etcd has not been listed for 121 s",
                |_, it, _, at| it.etcd.listed = at.checked_sub(Duration::from_secs(1)),
                false,
                true,
            ),
            ("proxy e has not taken", |_, _, it, _| it.push(behind(16)), false, false),
            ("", |_, _, it, _| it.push(behind(14)), true, false),
            ("all 2 entries of orders are refused", |it, _, _, _| refuse(it), true, false),
        ];
        for (words, fault, ready, stale) in rows {
            let (mut snapshot, mut sources) = well(later);
            let mut proxies = Vec::new();
            fault(&mut snapshot, &mut sources, &mut proxies, now);
            let condition = Condition::of(&snapshot, &sources, &proxies, later);
            let said: Vec<_> = condition.troubles.iter().map(ToString::to_string).collect();
            assert_eq!(said.is_empty(), words.is_empty(), "{words}: {said:?}");
            assert!(said.first().is_none_or(|said| said.contains(words)), "{words}: {said:?}");
            assert_eq!((condition.is_ready(), condition.is_stale()), (*ready, *stale), "{words}");
        }
    }

    fn behind(seconds: u64) -> ProxyView {
        ProxyView {
            proxy: "e".to_owned(),
            connected: true,
            since: std::time::SystemTime::UNIX_EPOCH,
            peer: String::new(),
            schema: Default::default(),
            leader: 0,
            fence: 0,
            expected: 1,
            version: Version::default(),
            current: false,
            behind: Some(Duration::from_secs(seconds)),
            workers: Vec::new(),
        }
    }

    fn refuse(snapshot: &mut Snapshot) {
        let rows = ["/services/orders/1", "/services/orders/2"].map(|key| Rejected {
            source: "registry",
            key: key.to_owned(),
            reason: "address_not_allowed",
            detail: String::new(),
            at: std::time::SystemTime::UNIX_EPOCH,
        });
        snapshot.rejected = rows.into();
    }
}
