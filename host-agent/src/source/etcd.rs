//! The registry in etcd: a listing at one revision, a watch from the next, and distrust of both.
//!
//! etcd promises an ordered, complete watch, and its own tests have found versions that broke it; and
//! the connection below it may be dead without either end knowing. So:
//!
//! - a listing reads all prefixes in pages at one fixed revision R, and the watch starts at R + 1;
//! - the watch is asked for a sign of life three times within `silence`; none is a dead connection,
//!   unless the link is busy with what it has yet to deliver;
//! - the place from which a watch is resumed moves with what was received, per prefix: with complete
//!   revisions, with progress messages of that very watch, and with the answers to our own questions
//!   only where the server is new enough not to give them too early (etcd issue 15220: before 3.4.25
//!   and 3.5.8 an answer could overtake events);
//! - compaction, another cluster, or a revision lower than what was seen (a restore) mean a new
//!   listing, which the state compares, so that deletes nobody told of are found;
//! - everything is listed again once in `reconcile` and compared, whatever the watch says; a listing
//!   that fails leaves a healthy watch alone and is tried again;
//! - a prefix that may not be read costs itself: the others are served.
//!
//! One member is talked to at a time; the next one is tried when it fails. `require_leader` makes a
//! member that lost its cluster say so instead of going silent.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::Client;
use pintle_state::{Change, Item, Listing, Update, show};
use rand::RngExt as _;
use tokio::time::{Instant, sleep, sleep_until};

mod connect;
mod list;
mod watch;

pub use connect::connect;
pub(crate) use connect::within;

use self::connect::{Link, REQUEST, open};
use self::list::{Listed, list};
use self::watch::{Heard, Seat, Watches};
use super::formats::{Translator, groups};
use super::leases;
use super::{Backoff, Context, EtcdConfig, SourceConfig};

/// A member that did not answer in time is given twice as long, up to this.
const PATIENCE: Duration = Duration::from_secs(24);

/// A listing that failed beside a healthy watch is tried again after this long.
const RELIST: Duration = Duration::from_secs(5);
/// So many in a row may fail; after one more another member is asked, and the watch goes on there.
const LISTINGS: u32 = 2;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// etcd or the connection to it said no.
    #[error("{0}")]
    Client(#[from] etcd_client::Error),
    /// A file or variable that the configuration names.
    #[error("{0}")]
    Config(String),
    /// No answer in time, and nothing else on the connection either.
    #[error("{0}: silent for longer than {1:?}")]
    Timeout(&'static str, Duration),
    /// Nothing was heard.
    #[error("silent for longer than {0:?}")]
    Silent(Duration),
    /// The watch was ended by the server.
    #[error("the watch was cancelled: {0}")]
    Cancelled(String),
    /// None of the prefixes of instances may be read.
    #[error("no permission to read {0}")]
    Denied(String),
    /// What was seen is not this server's past.
    #[error("{0}; listing again")]
    Relist(&'static str),
    /// The agent is shutting down.
    #[error("shutting down")]
    Gone,
}

/// Keeps the state as the registry is, for ever.
pub(crate) async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = sessions(context) => {}
    }
}

/// What outlives a connection.
struct Registry {
    /// The prefixes: those of instances, then that of policies.
    prefixes: Vec<Vec<u8>>,
    sources: Vec<SourceConfig>,
    translator: Translator,
    /// Where the next watch goes on; `None`: list first.
    seat: Option<Seat>,
    patience: Duration,
}

impl Registry {
    fn new(config: &super::SourcesConfig) -> Self {
        let etcd = config.etcd.clone().unwrap_or_default();
        let groups = groups(&etcd);
        let mut prefixes: Vec<_> = groups.iter().map(|group| group.prefix.clone()).collect();
        prefixes.push(etcd.policies.as_bytes().to_vec());
        let allowed = config.state.addresses();
        let policies = etcd.policies.as_bytes();
        Self {
            prefixes,
            translator: Translator::new(groups, &etcd.services, policies, allowed),
            sources: etcd.sources,
            seat: None,
            patience: REQUEST,
        }
    }
}

async fn sessions(context: Context) {
    let mut backoff = Backoff::default();
    let mut reader = context.config.clone();
    let mut member = rand::rng().random_range(0..1024usize);
    let mut registry = Registry::new(&reader.borrow());
    loop {
        let whole = reader.borrow_and_update().clone();
        let config = whole.etcd.clone().unwrap_or_default();
        if config.sources != registry.sources {
            registry = Registry::new(&whole);
        }
        let at = config
            .endpoints
            .get(member % config.endpoints.len().max(1))
            .cloned()
            .unwrap_or_default();
        let began = Instant::now();
        let ended = tokio::select! {
            ended = session(&context, &config, member, &mut registry, &mut backoff) => ended,
            changed = reader.changed() => match changed {
                Ok(()) => {
                    context.board.change(|sources| sources.etcd.connected = false);
                    continue;
                }
                Err(_) => return,
            },
        };
        let Err(error) = ended;
        let again = match error {
            EtcdError::Gone => return,
            // The member is well, the place was not: no reason to go elsewhere or to wait.
            EtcdError::Relist(_) => {
                registry.seat = None;
                Instant::now() + backoff.next()
            }
            _ => {
                if list::is_too_large(&error) {
                    // The same event would come again; a listing goes around it.
                    registry.seat = None;
                }
                if let EtcdError::Timeout(..) = error {
                    registry.patience = registry.patience.saturating_mul(2).min(PATIENCE);
                }
                member = member.wrapping_add(1);
                backoff.reconnect(began)
            }
        };
        let text = show(error.to_string().as_bytes());
        let was_connected = context.board_etcd_lost(&text);
        if was_connected {
            tracing::warn!(endpoint = %at, error = %text, "etcd lost");
            context.tell(format!("etcd at {at} lost: {text}"));
        }
        tokio::select! {
            () = sleep_until(again) => {}
            changed = reader.changed() => if changed.is_err() { return },
        }
    }
}

impl Context {
    /// Notes the loss; whether it is news.
    fn board_etcd_lost(&self, text: &str) -> bool {
        let mut news = false;
        self.board.change(|sources| {
            news = sources.etcd.connected || sources.etcd.error.is_none();
            sources.etcd.connected = false;
            sources.etcd.error = Some(text.to_owned());
        });
        news
    }

    fn etcd_heard(&self, revision: u64, beside: usize) {
        self.board.change(|sources| {
            sources.etcd.hear();
            sources.etcd.position = revision;
            sources.keys_beside = u64::try_from(beside).unwrap_or(u64::MAX);
        });
    }

    /// Why the registry can't be listed though its watch is well; told when it changes.
    fn etcd_unlisted(&self, error: Option<&EtcdError>) {
        let text = error.map(|error| {
            let error = show(error.to_string().as_bytes());
            format!("a listing failed, its watch goes on: {error}")
        });
        let mut news = false;
        self.board.change(|sources| {
            let warnings = &mut sources.etcd.warnings;
            news = warnings.get("listing") != text.as_ref();
            match text.clone() {
                Some(text) => warnings.insert("listing", text),
                None => warnings.remove("listing"),
            };
        });
        match text {
            Some(text) if news => {
                tracing::warn!("etcd: {text}");
                self.tell(format!("etcd: {text}"));
            }
            None if news => tracing::info!("etcd: listed again"),
            _ => {}
        }
    }

    /// What of the prefixes may not be read; told when it changes.
    fn etcd_denied(&self, seat: &Seat, prefixes: &[Vec<u8>]) {
        let denied = seat.denied.iter().filter_map(|at| prefixes.get(*at));
        let names: Vec<String> = denied.map(|prefix| show(prefix)).collect();
        let text = (!names.is_empty())
            .then(|| format!("no permission to read {}; the rest is followed", names.join(", ")));
        let mut news = false;
        self.board.change(|sources| {
            news = text.is_some() && sources.etcd.error != text;
            sources.etcd.error.clone_from(&text);
        });
        if let Some(text) = text.filter(|_| news) {
            tracing::warn!("etcd: {text}");
            self.tell(format!("etcd: {text}"));
        }
    }

    async fn send_listing(
        &self,
        registry: &mut Registry,
        listing: Listing,
        seat: &Seat,
    ) -> Result<(), EtcdError> {
        let denied: Vec<&[u8]> = seat
            .denied
            .iter()
            .filter_map(|at| registry.prefixes.get(*at).map(Vec::as_slice))
            .collect();
        let translated = registry.translator.listing(listing, &denied);
        send(self, Update::Listing(translated.told)).await?;
        send(self, Update::Unread(translated.unread)).await?;
        self.board.change(|sources| sources.etcd.listed = Some(std::time::Instant::now()));
        self.etcd_heard(seat.most(), registry.translator.beside());
        Ok(())
    }
}

/// One connection to one member, until something ends it.
async fn session(
    context: &Context,
    config: &EtcdConfig,
    member: usize,
    registry: &mut Registry,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, EtcdError> {
    let link = open(config, member, registry.patience).await?;
    let sound = progress_is_sound(&link).await?;
    let mut here = match &registry.seat {
        Some(seat) => seat.clone(),
        None => {
            let listed = list(&link, config, &registry.prefixes).await?;
            let here = Seat::after(&listed, registry.prefixes.len());
            context.send_listing(registry, listed.listing, &here).await?;
            here
        }
    };
    let mut watches = Watches::open(&link, &registry.prefixes, &here).await?;
    registry.seat = Some(here.clone());
    let endpoint = config.endpoints.get(member % config.endpoints.len().max(1));
    context.board.change(|sources| {
        let etcd = &mut sources.etcd;
        etcd.connected = true;
        etcd.patience = config.reconcile.max(config.silence);
        etcd.error = None;
        etcd.endpoint = endpoint.cloned().unwrap_or_default();
        etcd.connects = etcd.connects.saturating_add(1);
    });
    context.etcd_denied(&here, &registry.prefixes);
    registry.patience = REQUEST;
    tracing::info!(
        endpoint = endpoint.map(String::as_str),
        revision = here.reached.first(),
        "etcd connected"
    );
    context.tell(format!("etcd connected at {}", endpoint.map_or("", String::as_str)));

    let mut heard = Instant::now();
    let mut ask = tokio::time::interval(config.silence / 3);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reconcile = Box::pin(sleep(jittered(config.reconcile)));
    // A listing on its way, how far the watches were when it began, and what they told since.
    let mut listing: ListingTask = Box::pin(pending());
    let mut began = here.reached.clone();
    let mut meanwhile: Option<Vec<Change>> = None;
    let mut failed = 0u32;
    loop {
        tokio::select! {
            biased;
            message = watches.stream.message() => {
                let Some(message) = message? else {
                    return Err(EtcdError::Cancelled("the stream ended".into()));
                };
                heard = Instant::now();
                backoff.reset();
                match watches.receive(message, &mut here, sound)? {
                    Heard::Denied => context.etcd_denied(&here, &registry.prefixes),
                    Heard::Changes(changes) if changes.is_empty() => {
                        let revision = here.least();
                        send(context, Update::Progress { revision }).await?;
                    }
                    Heard::Changes(changes) => {
                        if let Some(meanwhile) = &mut meanwhile {
                            meanwhile.extend(changes.iter().cloned());
                        }
                        let translated = registry.translator.changes(changes);
                        let removes = translated.told.iter().any(|change| change.value.is_none());
                        let update = Update::Changes(translated.told);
                        if removes {
                            let told = context.updates.apply(update).await;
                            let told = told.map_err(|_| EtcdError::Gone)?;
                            leases::ask(link.client.clone(), told.leases, context.updates.clone());
                        } else {
                            send(context, update).await?;
                        }
                        if !translated.unread.is_empty() {
                            send(context, Update::Unread(translated.unread)).await?;
                        }
                    }
                }
                // Not before: a reload may end this session while it sends.
                registry.seat = Some(here.clone());
                context.etcd_heard(here.most(), registry.translator.beside());
            }
            listed = &mut listing => {
                listing = Box::pin(pending());
                let listed = match listed {
                    Ok(listed) => listed,
                    Err(error) if failed < LISTINGS && !ends_the_watch(&error) => {
                        failed = failed.saturating_add(1);
                        context.etcd_unlisted(Some(&error));
                        // Whatever the watch tells is in the state already.
                        meanwhile = None;
                        reconcile.set(sleep(jittered(RELIST.min(config.reconcile))));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                failed = 0;
                context.etcd_unlisted(None);
                if listed.cluster != here.cluster {
                    return Err(EtcdError::Relist("another cluster"));
                }
                if here.denied.iter().any(|at| !listed.denied.contains(at)) {
                    return Err(EtcdError::Relist("a prefix may be read now"));
                }
                here.denied.clone_from(&listed.denied);
                let newer = meanwhile.take().unwrap_or_default();
                let listed = catch_up(listed.listing, &began, &here.reached, newer)?;
                here.advance(listed.revision);
                context.send_listing(registry, listed, &here).await?;
                context.etcd_denied(&here, &registry.prefixes);
                registry.seat = Some(here.clone());
                reconcile.set(sleep(jittered(config.reconcile)));
            }
            () = &mut reconcile, if meanwhile.is_none() => {
                began.clone_from(&here.reached);
                meanwhile = Some(Vec::new());
                let (link, config) = (link.clone(), config.clone());
                let prefixes = registry.prefixes.clone();
                listing = Box::pin(async move { list(&link, &config, &prefixes).await });
            }
            _ = ask.tick() => {
                if watches.ask(&link, &config.services).await? {
                    heard = Instant::now();
                }
            }
            () = sleep_until(heard.max(link.busy()) + config.silence) => {
                if heard.max(link.busy()).elapsed() >= config.silence {
                    return Err(EtcdError::Silent(config.silence));
                }
            }
        }
    }
}

/// Whether a failed listing says that the watch beside it is not to be trusted, or will not come back:
/// a place that is wrong, nothing that may be read, and a token that has run out, which only another
/// connection renews.
fn ends_the_watch(error: &EtcdError) -> bool {
    use etcd_client::Error::GRpcStatus;
    match error {
        EtcdError::Relist(_) | EtcdError::Denied(_) | EtcdError::Gone => true,
        EtcdError::Client(GRpcStatus(status)) => status.code() == tonic::Code::Unauthenticated,
        _ => false,
    }
}

type ListingTask = Pin<Box<dyn Future<Output = Result<Listed, EtcdError>> + Send>>;

async fn send(context: &Context, update: Update) -> Result<(), EtcdError> {
    context.updates.send(update).await.map_err(|_| EtcdError::Gone)
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// A listing brought up to date with what the watches told while it was read, if it is not from before
/// what they had told when it began. It reaches as far as all of them do: what the slowest one has yet
/// to tell is in neither.
fn catch_up(
    listing: Listing,
    began: &[u64],
    reached: &[u64],
    newer: Vec<Change>,
) -> Result<Listing, EtcdError> {
    if began.iter().any(|began| listing.revision < *began) {
        return Err(EtcdError::Relist("a lower revision than before"));
    }
    let revision = listing.revision.max(reached.iter().copied().min().unwrap_or(0));
    let mut items: BTreeMap<Vec<u8>, Item> =
        listing.items.into_iter().map(|item| (item.key.clone(), item)).collect();
    for change in newer {
        if change.revision <= listing.revision {
            continue;
        }
        match change.value {
            Some(value) => {
                let Change { key, revision, created, lease, .. } = change;
                items.insert(key.clone(), Item { key, value, revision, created, lease });
            }
            None => {
                items.remove(&change.key);
            }
        }
    }
    Ok(Listing { revision, items: items.into_values().collect() })
}

/// Whether the server's answers to progress requests never overtake events. Where it does not want to
/// say its version, no.
async fn progress_is_sound(link: &Link) -> Result<bool, EtcdError> {
    use etcd_client::Error::GRpcStatus;
    use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
    let mut client: Client = link.client.clone();
    match link.within("asking for the version", client.status()).await {
        Ok(status) => Ok(version_is_sound(status.version())),
        Err(EtcdError::Client(GRpcStatus(status)))
            if matches!(status.code(), PermissionDenied | Unauthenticated | Unimplemented) =>
        {
            Ok(false)
        }
        // The next request on this connection would only make another.
        Err(error) => Err(error),
    }
}

fn version_is_sound(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return false;
    };
    match (major, minor) {
        (3, ..=3) => false,
        (3, 4) => patch >= 25,
        (3, 5) => patch >= 8,
        _ => major >= 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_believed_only_where_they_do_not_overtake_events() {
        for (version, expect) in [
            ("3.3.99", false),
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.5.21-rc.1", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("", false),
            ("3.5", false),
        ] {
            assert_eq!(version_is_sound(version), expect, "{version}");
        }
    }

    #[test]
    fn a_listing_takes_over_what_changed_while_it_was_read() {
        let item = |key: &str, revision| Item {
            key: key.into(),
            value: b"old".to_vec(),
            revision,
            ..Item::default()
        };
        let change = |key: &str, value: Option<&str>, revision| Change {
            key: key.into(),
            value: value.map(Into::into),
            revision,
            ..Change::default()
        };
        let listing =
            Listing { revision: 5, items: vec![item("a", 1), item("b", 2), item("c", 3)] };
        let newer = vec![
            change("a", Some("older than the listing"), 5),
            change("b", None, 6),
            change("c", Some("new"), 7),
            change("d", Some("new"), 8),
        ];
        let patched = catch_up(listing, &[4, 5], &[8, 8], newer).unwrap();
        let keys: Vec<_> = patched.items.iter().map(|i| (i.key[0], i.revision)).collect();
        assert_eq!(keys, [(b'a', 1), (b'c', 7), (b'd', 8)]);
        assert_eq!(patched.revision, 8);
    }

    #[test]
    fn a_listing_is_a_step_back_only_from_where_it_began_and_reaches_as_far_as_both_watches() {
        let change = || Change {
            key: b"a".to_vec(),
            value: Some(Vec::new()),
            revision: 20,
            ..Change::default()
        };
        for (began, reached, newer, expect) in [
            // Nobody told anything, or only that time passes.
            ([10, 10], [10, 10], vec![], Some(10)),
            ([10, 10], [14, 14], vec![], Some(14)),
            ([8, 9], [8, 9], vec![], Some(10)),
            // The other watch may have something between 10, or 12, and 20 to tell.
            ([10, 10], [20, 10], vec![change()], Some(10)),
            ([10, 10], [20, 12], vec![change()], Some(12)),
            // A restore, whatever has been told since.
            ([11, 9], [11, 9], vec![], None),
            ([11, 11], [20, 11], vec![change()], None),
        ] {
            let listing = Listing { revision: 10, items: Vec::new() };
            let items = newer.len();
            let listed = catch_up(listing, &began, &reached, newer).ok();
            let is = listed.map(|listed| (listed.revision, listed.items.len()));
            assert_eq!(is, expect.map(|at| (at, items)), "{began:?} {reached:?}");
        }
    }
}
