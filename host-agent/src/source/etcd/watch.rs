//! The watches, one a prefix, on one stream.

use std::collections::BTreeSet;

use etcd_client::{GetOptions, WatchOptions, WatchResponse, WatchStream};
use pintle_state::Change;

use super::EtcdError;
use super::connect::Link;
use super::list::{Listed, keep, kept};

/// The first of the ids that we ask for. etcd takes them since 3.4; what gives its own, which begin
/// at zero, is older or a `grpc-proxy`, and neither knows progress requests (3.4's proxy panics at
/// one).
const OURS: i64 = 1 << 20;

/// Bytes of one message: a value that is longer than the listing's messages may be is told all the
/// same, and costs itself when it is read.
const MESSAGE: usize = 32 << 20;

/// How far what was received reaches, so that a new session can go on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) cluster: u64,
    /// Per prefix: everything up to this revision is in the state.
    pub(super) reached: Vec<u64>,
    /// The prefixes that may not be read.
    pub(super) denied: BTreeSet<usize>,
}

impl Position {
    pub(super) fn after(listed: &Listed, prefixes: usize) -> Self {
        Self {
            cluster: listed.cluster,
            reached: vec![listed.revision; prefixes],
            denied: listed.denied.clone(),
        }
    }

    pub(super) fn least(&self) -> u64 {
        self.reached.iter().copied().min().unwrap_or(0)
    }

    pub(super) fn most(&self) -> u64 {
        self.reached.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn advance(&mut self, revision: u64) {
        for place in &mut self.reached {
            *place = (*place).max(revision);
        }
    }
}

/// The open watches.
pub(super) struct Watches {
    pub(super) stream: WatchStream,
    /// The prefixes that are watched, in the order in which they were asked for.
    asked: Vec<usize>,
    /// The revision that was reached when the stream was opened.
    opened: u64,
    /// Whether progress may be asked for.
    answers: bool,
    keep: usize,
}

/// What a message said.
#[derive(Debug)]
pub(super) enum Heard {
    Changes(Vec<Change>),
    /// A prefix may not be watched.
    Denied,
}

impl Watches {
    pub(super) async fn open(
        link: &Link,
        prefixes: &[Vec<u8>],
        here: &Position,
    ) -> Result<Self, EtcdError> {
        let places = prefixes.iter().zip(&here.reached).enumerate();
        let mut stream: Option<WatchStream> = None;
        let mut asked = Vec::new();
        for (at, (prefix, reached)) in places.filter(|(at, _)| !here.denied.contains(at)) {
            let next = i64::try_from(*reached).unwrap_or(i64::MAX).saturating_add(1);
            let options = WatchOptions::new()
                .with_prefix()
                .with_watch_id(OURS.saturating_add(i64::try_from(at).unwrap_or(0)))
                .with_start_revision(next)
                .with_progress_notify()
                .with_fragment();
            let prefix = prefix.as_slice();
            let mut client = link.client.watch_client().max_decoding_message_size(MESSAGE);
            match &mut stream {
                Some(stream) => {
                    link.within("watching", stream.watch(prefix, Some(options))).await?;
                }
                None => {
                    let opened = client.watch(prefix, Some(options));
                    stream = Some(link.within("watching", opened).await?);
                }
            }
            asked.push(at);
        }
        let stream = stream.ok_or_else(|| EtcdError::Denied("any prefix".into()))?;
        let keep = keep(prefixes.len() > 2);
        Ok(Self { stream, asked, opened: here.most(), answers: false, keep })
    }

    /// Asks for a sign of life; whether it came with the answer, rather than on the stream later.
    pub(super) async fn ask(&mut self, link: &Link, key: &str) -> Result<bool, EtcdError> {
        if self.answers {
            link.within("asking for progress", self.stream.request_progress()).await?;
            return Ok(false);
        }
        let mut client = link.client.clone();
        let options = GetOptions::new().with_prefix().with_limit(1).with_keys_only();
        match link.within("asking for a sign of life", client.get(key, Some(options))).await {
            Ok(_) => Ok(true),
            // An answer, too.
            Err(EtcdError::Client(etcd_client::Error::GRpcStatus(status)))
                if status.code() == tonic::Code::PermissionDenied =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn prefix_of(&self, watch: i64) -> Option<usize> {
        if watch >= OURS {
            return usize::try_from(watch.saturating_sub(OURS)).ok();
        }
        self.asked.get(usize::try_from(watch).ok()?).copied()
    }

    /// Takes a message apart: what changed, and how far it reaches.
    pub(super) fn receive(
        &mut self,
        message: WatchResponse,
        here: &mut Position,
        sound: bool,
    ) -> Result<Heard, EtcdError> {
        if message.compact_revision() > 0 {
            return Err(EtcdError::Relist("the revisions since are compacted"));
        }
        let prefix = self.prefix_of(message.watch_id());
        if message.canceled() {
            let reason = message.cancel_reason();
            if let Some(prefix) = prefix.filter(|_| reason.contains("permission denied")) {
                here.denied.insert(prefix);
                return Ok(Heard::Denied);
            }
            let reason = if reason.is_empty() { "no reason given" } else { reason };
            return Err(EtcdError::Cancelled(reason.to_owned()));
        }
        if message.created() {
            self.answers = message.watch_id() >= OURS;
        }
        receive(message, prefix, here, self.opened, sound, self.keep).map(Heard::Changes)
    }
}

fn receive(
    message: WatchResponse,
    prefix: Option<usize>,
    here: &mut Position,
    opened: u64,
    sound: bool,
    keep: usize,
) -> Result<Vec<Change>, EtcdError> {
    let header = message.header().ok_or_else(|| EtcdError::Cancelled("no header".into()))?;
    if header.cluster_id() != here.cluster {
        return Err(EtcdError::Relist("another cluster"));
    }
    let revision = u64::try_from(header.revision()).unwrap_or(0);
    // The answer to the creation of a watch tells the server's revision before anything else does;
    // a member that lags behind the one before it looks the same, and listing again makes it catch
    // up. Events that came since say nothing against it: the server lets them overtake its answers.
    if revision < opened && message.events().is_empty() {
        return Err(EtcdError::Relist("a lower revision than before"));
    }
    let mut changes = Vec::with_capacity(message.events().len());
    let mut reached = 0u64;
    for event in message.events() {
        // The client's own accessor panics on kinds of events that it does not know.
        let kind = event.0.r#type;
        let Some(kv) = event.kv() else { continue };
        let revision = u64::try_from(kv.mod_revision()).unwrap_or(0);
        reached = reached.max(revision);
        let value = match kind {
            0 => Some(kept(kv.value(), keep)),
            1 => None,
            _ => continue,
        };
        changes.push(Change {
            key: kv.key().to_vec(),
            value,
            revision,
            created: u64::try_from(kv.create_revision()).unwrap_or(0),
            lease: u64::try_from(kv.lease()).unwrap_or(0),
        });
    }
    if let Some(place) = prefix.and_then(|at| here.reached.get_mut(at)) {
        if message.created() {
            // Says nothing of what was delivered.
        } else if message.events().is_empty() {
            *place = (*place).max(revision);
        } else {
            // A fragment may end within a revision.
            let whole = if message.0.fragment { reached.saturating_sub(1) } else { reached };
            *place = (*place).max(whole);
        }
    } else if sound && message.events().is_empty() {
        here.advance(revision);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_events_have_overtaken_is_no_step_back() {
        use etcd_client::proto::{PbResponseHeader, PbWatchResponse};
        let created = |revision| {
            let header =
                PbResponseHeader { cluster_id: 1, revision, ..PbResponseHeader::default() };
            WatchResponse(PbWatchResponse {
                header: Some(header),
                watch_id: OURS + 1,
                created: true,
                ..PbWatchResponse::default()
            })
        };
        // Opened at 10; the other watch has told of 15 before the second one's creation was
        // answered.
        let mut here = Position { cluster: 1, reached: vec![15, 10], denied: BTreeSet::new() };
        assert!(
            receive(created(12), Some(1), &mut here, 10, false, 9)
                .is_ok_and(|changes| changes.is_empty())
        );
        assert_eq!(here.reached, [15, 10]);
        // The member itself is behind what another one told.
        assert!(matches!(
            receive(created(9), Some(1), &mut here, 10, false, 9),
            Err(EtcdError::Relist(_))
        ));
    }
}
