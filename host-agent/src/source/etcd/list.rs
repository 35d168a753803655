//! A listing: every prefix in pages, at one revision. A page is handed on before the next one is
//! asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use etcd_client::{GetOptions, GetResponse};
use pintle_state::Item;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::EtcdError;
use super::connect::Link;
use crate::source::EtcdConfig;
use crate::source::formats;

/// A page that takes so much longer than the quickest one is followed by one of half its keys: what
/// the watch has to tell, and the answers to pings, wait behind it.
const SLOW: Duration = Duration::from_secs(1);
/// A page that takes less than this longer is followed by one of twice its keys, up to `etcd.page`.
const FAST: Duration = Duration::from_millis(250);

/// After a page that was too large for a message, so many are not followed by a larger one: large
/// values often stand together, and each page in vain is sent by the server all the same.
const CALM: u32 = 8;

/// Which registry was listed, and at which revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    pub(super) cluster: u64,
    pub(super) revision: u64,
    /// Which of the prefixes may not be read.
    pub(super) denied: BTreeSet<usize>,
}

/// Some of what was listed.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) cluster: u64,
    pub(super) revision: u64,
    pub(super) items: Vec<Item>,
}

/// Bytes that are kept of a value: enough to see that it is too long.
pub(super) const fn keep(foreign: bool) -> usize {
    let most = if foreign { formats::MAX_VALUE } else { pintle_state::entry::MAX_VALUE };
    most.saturating_add(1)
}

/// The first `most` bytes of a value.
pub(super) fn kept(value: &[u8], most: usize) -> Vec<u8> {
    value.get(..most).unwrap_or(value).to_vec()
}

/// Reads the prefixes, the last of which is that of policies, and hands the pages to `to`.
///
/// # Errors
/// What ends the connection, and [`EtcdError::Denied`] where no prefix of instances may be read.
pub(super) async fn list(
    link: &Link,
    config: &EtcdConfig,
    prefixes: &[Vec<u8>],
    to: mpsc::Sender<Page>,
) -> Result<Listed, EtcdError> {
    let mut pages = Pages {
        link,
        to,
        most: i64::from(config.page),
        page: i64::from(config.page / 10).max(1),
        calm: 0,
        least: Duration::MAX,
        keep: keep(!config.sources.is_empty()),
        listed: Listed::default(),
    };
    for (at, prefix) in prefixes.iter().enumerate() {
        match pages.read(prefix).await {
            Err(EtcdError::Client(error)) if is_denied(&error) => {
                pages.listed.denied.insert(at);
            }
            other => other?,
        }
    }
    let instances = prefixes.len().saturating_sub(1);
    if (0..instances).all(|at| pages.listed.denied.contains(&at)) {
        let names = prefixes.iter().take(instances).map(|prefix| pintle_state::show(prefix));
        return Err(EtcdError::Denied(names.collect::<Vec<_>>().join(", ")));
    }
    Ok(pages.listed)
}

struct Pages<'a> {
    link: &'a Link,
    to: mpsc::Sender<Page>,
    most: i64,
    page: i64,
    /// Pages that are not followed by a larger one.
    calm: u32,
    /// What the quickest page took: the way there and back is no sign of a page too long.
    least: Duration,
    keep: usize,
    listed: Listed,
}

impl Pages<'_> {
    async fn read(&mut self, prefix: &[u8]) -> Result<(), EtcdError> {
        let end = prefix_end(prefix);
        let mut from = prefix.to_vec();
        loop {
            let began = Instant::now();
            let options = GetOptions::new().with_range(end.clone()).with_limit(self.page);
            let (answer, whole) = match self.ask(&from, options).await {
                Err(EtcdError::Client(error)) if is_too_large(&error) => {
                    if self.page > 1 {
                        self.page = (self.page / 2).max(1);
                        self.calm = CALM;
                        continue;
                    }
                    // One value is longer than a message may be: its key stands for it.
                    let options = GetOptions::new().with_range(end.clone()).with_limit(1);
                    (self.ask(&from, options.with_keys_only()).await?, false)
                }
                other => (other?, true),
            };
            let took = began.elapsed();
            self.least = self.least.min(took);
            match took.saturating_sub(self.least) {
                more if more > SLOW => self.page = (self.page / 2).max(1),
                _ if self.calm > 0 => self.calm = self.calm.saturating_sub(1),
                more if more < FAST => self.page = self.page.saturating_mul(2).min(self.most),
                _ => {}
            }
            let more = answer.more();
            let last = answer.kvs().last().map(|kv| kv.key().to_vec());
            let keep = self.keep;
            let items = answer.kvs().iter().map(|kv| Item {
                key: kv.key().to_vec(),
                value: if whole { kept(kv.value(), keep) } else { vec![0; keep] },
                revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
                created: u64::try_from(kv.create_revision()).unwrap_or(0),
                lease: u64::try_from(kv.lease()).unwrap_or(0),
            });
            let Listed { cluster, revision, .. } = self.listed;
            let page = Page { cluster, revision, items: items.collect() };
            drop(answer);
            self.to.send(page).await.map_err(|_| EtcdError::Gone)?;
            match last {
                Some(mut last) if more => {
                    last.push(0);
                    from = last;
                }
                _ => return Ok(()),
            }
        }
    }

    async fn ask(&mut self, from: &[u8], options: GetOptions) -> Result<GetResponse, EtcdError> {
        let revision = self.listed.revision;
        let options = match revision {
            0 => options,
            at => options.with_revision(i64::try_from(at).unwrap_or(i64::MAX)),
        };
        let mut client = self.link.client.clone();
        let answer = self.link.within("listing", client.get(from, Some(options))).await?;
        let header = answer.header().ok_or_else(|| EtcdError::Cancelled("no header".into()))?;
        if revision == 0 {
            self.listed.revision = u64::try_from(header.revision()).unwrap_or(0);
            self.listed.cluster = header.cluster_id();
        } else if header.cluster_id() != self.listed.cluster {
            return Err(EtcdError::Relist("another cluster"));
        }
        Ok(answer)
    }
}

fn is_denied(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.code() == tonic::Code::PermissionDenied,
        _ => false,
    }
}

/// Whether a message was longer than the client (4 MiB) or the server lets it be.
pub(super) fn is_too_large(error: &impl TooLarge) -> bool {
    error.status().is_some_and(|status| {
        let text = status.message();
        text.contains("message length too large") || text.contains("larger than max")
    })
}

/// An error that may be gRPC's.
pub(super) trait TooLarge {
    fn status(&self) -> Option<&tonic::Status>;
}

impl TooLarge for etcd_client::Error {
    fn status(&self) -> Option<&tonic::Status> {
        match self {
            Self::GRpcStatus(status) => Some(status),
            _ => None,
        }
    }
}

impl TooLarge for EtcdError {
    fn status(&self) -> Option<&tonic::Status> {
        match self {
            Self::Client(error) => error.status(),
            _ => None,
        }
    }
}

/// The first key after all that begin with `prefix`.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last.saturating_add(1));
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_without_it() {
        assert_eq!(prefix_end(b"/services/"), b"/services0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }
}
