//! The registry in etcd: a listing at one revision, a watch from the next, and distrust of both.
//!
//! etcd promises an ordered, complete watch, and its own tests have found versions that broke it; and
//! the connection below it may be dead without either end knowing. So:
//!
//! - a listing reads both prefixes in pages at one fixed revision R, and the watch starts at R + 1;
//! - the watch is asked for a sign of life three times within `silence`; none is a dead connection;
//! - the place from which a watch is resumed moves with what was received, per prefix: with complete
//!   revisions, with progress messages of that very watch, and with the answers to our own questions
//!   only where the server is new enough not to give them too early (etcd issue 15220: before 3.4.25
//!   and 3.5.8 an answer could overtake events);
//! - compaction, another cluster, or a revision lower than what was seen (a restore) mean a new
//!   listing, which the state compares, so that deletes nobody told of are found;
//! - everything is listed again once in `reconcile` and compared, whatever the watch says.
//!
//! One member is talked to at a time; the next one is tried when it fails. `require_leader` makes a
//! member that lost its cluster say so instead of going silent.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, TlsOptions, WatchOptions,
    WatchResponse, WatchStream,
};
use pintle_state::{Change, Item, Listing, Update, show};
use rand::RngExt as _;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::settings::read_text;
use super::{Backoff, Context, EtcdConfig};

/// A connection, and each request on it, may take this long.
const REQUEST: Duration = Duration::from_secs(3);
/// HTTP/2 pings; a server refuses clients that ping more often than every 5 s.
const PING: Duration = Duration::from_secs(6);
/// A ping may take this long.
const PONG: Duration = Duration::from_secs(3);
/// The watch of services and that of policies on one stream.
const WATCHES: [i64; 2] = [1, 2];
/// What is kept of a value: enough to see that it is too long.
const KEEP: usize = pintle_state::entry::MAX_VALUE + 1;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// etcd or the connection to it said no.
    #[error("{0}")]
    Client(#[from] etcd_client::Error),
    /// A file or variable that the configuration names.
    #[error("{0}")]
    Config(String),
    /// No answer in time.
    #[error("{0} took longer than {wait:?}", wait = REQUEST)]
    Timeout(&'static str),
    /// Nothing was heard.
    #[error("silent for longer than {0:?}")]
    Silent(Duration),
    /// The watch was ended by the server.
    #[error("the watch was cancelled: {0}")]
    Cancelled(String),
    /// What was seen is not this server's past.
    #[error("{0}; listing again")]
    Relist(&'static str),
    /// The agent is shutting down.
    #[error("shutting down")]
    Gone,
}

/// Connects to one member, verified and authenticated as configured. Secrets and certificates are read
/// anew each time.
///
/// # Errors
/// What stands in the way.
pub async fn connect(config: &EtcdConfig, member: usize) -> Result<Client, EtcdError> {
    // Several crates bring rustls; whoever is first names the provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let endpoint = config
        .endpoints
        .get(member % config.endpoints.len().max(1))
        .ok_or_else(|| EtcdError::Config("no endpoints".into()))?;
    let mut options = ConnectOptions::new()
        .with_require_leader(true)
        .with_connect_timeout(REQUEST)
        .with_keep_alive(PING, PONG)
        .with_keep_alive_while_idle(true)
        .with_auto_token_refresh(true);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        let password = password.read().map_err(EtcdError::Config)?;
        options = options.with_user(user, password.expose());
    }
    if endpoint.starts_with("https://") {
        options = options.with_tls(tls(config)?);
    }
    within("connecting", Client::connect([endpoint], Some(options))).await
}

fn tls(config: &EtcdConfig) -> Result<TlsOptions, EtcdError> {
    let read = |path| read_text(path).map_err(EtcdError::Config);
    let mut tls = match &config.tls.ca {
        Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    if let Some(name) = &config.tls.server_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

/// Waits no longer than [`REQUEST`].
pub(crate) async fn within<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, EtcdError> {
    match timeout(REQUEST, call).await {
        Ok(result) => result.map_err(EtcdError::Client),
        Err(_) => Err(EtcdError::Timeout(what)),
    }
}

/// How far what was received reaches, so that a new session can go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    cluster: u64,
    /// Per watch: everything up to this revision is in the state.
    reached: [u64; 2],
}

/// Keeps the state as the registry is, for ever.
pub(crate) async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = sessions(context) => {}
    }
}

async fn sessions(context: Context) {
    let mut backoff = Backoff::default();
    let mut reader = context.config.clone();
    let mut member = rand::rng().random_range(0..1024usize);
    let mut seat: Option<Seat> = None;
    loop {
        let config = reader.borrow_and_update().etcd.clone().unwrap_or_default();
        let at = config
            .endpoints
            .get(member % config.endpoints.len().max(1))
            .cloned()
            .unwrap_or_default();
        let began = Instant::now();
        let ended = tokio::select! {
            ended = session(&context, &config, member, &mut seat, &mut backoff) => ended,
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
                seat = None;
                Instant::now() + backoff.next()
            }
            _ => {
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

    fn etcd_heard(&self, revision: u64) {
        self.board.change(|sources| {
            sources.etcd.last_seen = Some(SystemTime::now());
            sources.etcd.position = revision;
        });
    }
}

/// One connection to one member, until something ends it.
async fn session(
    context: &Context,
    config: &EtcdConfig,
    member: usize,
    seat: &mut Option<Seat>,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, EtcdError> {
    let mut client = connect(config, member).await?;
    let sound = progress_is_sound(&mut client).await?;
    let mut here = match *seat {
        Some(seat) => seat,
        None => {
            let (cluster, listing) = list(&mut client, config).await?;
            let revision = listing.revision;
            send(context, Update::Listing(listing)).await?;
            Seat { cluster, reached: [revision; 2] }
        }
    };
    let opened = here.reached[0].max(here.reached[1]);
    let mut stream = watch(&mut client, config, here).await?;
    *seat = Some(here);
    let endpoint = config.endpoints.get(member % config.endpoints.len().max(1));
    context.board.change(|sources| {
        let etcd = &mut sources.etcd;
        etcd.connected = true;
        etcd.error = None;
        etcd.endpoint = endpoint.cloned().unwrap_or_default();
        etcd.connects = etcd.connects.saturating_add(1);
    });
    tracing::info!(
        endpoint = endpoint.map(String::as_str),
        revision = here.reached[0],
        "etcd connected"
    );
    context.tell(format!("etcd connected at {}", endpoint.map_or("", String::as_str)));

    let mut heard = Instant::now();
    let mut ask = tokio::time::interval(config.silence / 3);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reconcile = Box::pin(sleep(jittered(config.reconcile)));
    // A listing on its way, how far the watches were when it began, and what they told since.
    let mut listing: ListingTask = Box::pin(pending());
    let mut began = here.reached;
    let mut meanwhile: Option<Vec<Change>> = None;
    loop {
        tokio::select! {
            biased;
            message = stream.message() => {
                let Some(message) = message? else {
                    return Err(EtcdError::Cancelled("the stream ended".into()));
                };
                heard = Instant::now();
                backoff.reset();
                let changes = receive(message, &mut here, opened, sound)?;
                if changes.is_empty() {
                    let revision = here.reached[0].min(here.reached[1]);
                    send(context, Update::Progress { revision }).await?;
                } else {
                    if let Some(meanwhile) = &mut meanwhile {
                        meanwhile.extend(changes.iter().cloned());
                    }
                    send(context, Update::Changes(changes)).await?;
                }
                // Not before: a reload may end this session while it sends.
                *seat = Some(here);
                context.etcd_heard(here.reached[0].max(here.reached[1]));
            }
            listed = &mut listing => {
                let (cluster, listed) = listed?;
                if cluster != here.cluster {
                    return Err(EtcdError::Relist("another cluster"));
                }
                let newer = meanwhile.take().unwrap_or_default();
                let listed = catch_up(listed, began, here.reached, newer)?;
                here.reached = here.reached.map(|reached| reached.max(listed.revision));
                send(context, Update::Listing(listed)).await?;
                *seat = Some(here);
                listing = Box::pin(pending());
                reconcile.set(sleep(jittered(config.reconcile)));
            }
            () = &mut reconcile, if meanwhile.is_none() => {
                began = here.reached;
                meanwhile = Some(Vec::new());
                let (mut client, config) = (client.clone(), config.clone());
                listing = Box::pin(async move { list(&mut client, &config).await });
            }
            _ = ask.tick() => {
                within("asking for progress", stream.request_progress()).await?;
            }
            () = sleep_until(heard + config.silence) => {
                return Err(EtcdError::Silent(config.silence));
            }
        }
    }
}

type Listed = Result<(u64, Listing), EtcdError>;
type ListingTask = Pin<Box<dyn Future<Output = Listed> + Send>>;

async fn send(context: &Context, update: Update) -> Result<(), EtcdError> {
    context.updates.send(update).await.map_err(|_| EtcdError::Gone)
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// A listing brought up to date with what the watches told while it was read, if it is not from before
/// what they had told when it began. It reaches as far as both of them do: what the slower one has yet
/// to tell is in neither.
fn catch_up(
    listing: Listing,
    began: [u64; 2],
    reached: [u64; 2],
    newer: Vec<Change>,
) -> Result<Listing, EtcdError> {
    if began.iter().any(|began| listing.revision < *began) {
        return Err(EtcdError::Relist("a lower revision than before"));
    }
    let revision = listing.revision.max(reached[0].min(reached[1]));
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
async fn progress_is_sound(client: &mut Client) -> Result<bool, EtcdError> {
    use etcd_client::Error::GRpcStatus;
    use tonic::Code::{PermissionDenied, Unauthenticated, Unimplemented};
    match within("asking for the version", client.status()).await {
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

async fn watch(
    client: &mut Client,
    config: &EtcdConfig,
    here: Seat,
) -> Result<WatchStream, EtcdError> {
    let options = |id: i64, reached: u64| {
        WatchOptions::new()
            .with_prefix()
            .with_watch_id(id)
            .with_start_revision(i64::try_from(reached).unwrap_or(i64::MAX).saturating_add(1))
            .with_progress_notify()
            .with_fragment()
    };
    let [services, policies] = WATCHES;
    let [reached_services, reached_policies] = here.reached;
    let first = options(services, reached_services);
    let mut stream =
        within("watching", client.watch(config.services.as_bytes(), Some(first))).await?;
    let second = options(policies, reached_policies);
    within("watching", stream.watch(config.policies.as_bytes(), Some(second))).await?;
    Ok(stream)
}

/// Takes a message of the watch apart: what changed, and how far it reaches. `opened` is the revision
/// that was reached when the stream was opened.
fn receive(
    message: WatchResponse,
    here: &mut Seat,
    opened: u64,
    sound: bool,
) -> Result<Vec<Change>, EtcdError> {
    if message.compact_revision() > 0 {
        return Err(EtcdError::Relist("the revisions since are compacted"));
    }
    if message.canceled() {
        let reason = message.cancel_reason();
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        return Err(EtcdError::Cancelled(reason.to_owned()));
    }
    let header = message.header().ok_or_else(|| EtcdError::Cancelled("no header".into()))?;
    if header.cluster_id() != here.cluster {
        return Err(EtcdError::Relist("another cluster"));
    }
    let revision = u64::try_from(header.revision()).unwrap_or(0);
    let watch = WATCHES.iter().position(|id| *id == message.watch_id());
    // The answer to the creation of a watch tells the server's revision before anything else does; a
    // member that lags behind the one before it looks the same, and listing again makes it catch up.
    // Events that came since say nothing against it: the server lets them overtake its answers.
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
            0 => Some(kept(kv.value())),
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
    if let Some(place) = watch.and_then(|watch| here.reached.get_mut(watch)) {
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
        here.reached = here.reached.map(|place| place.max(revision));
    }
    Ok(changes)
}

fn kept(value: &[u8]) -> Vec<u8> {
    value.get(..KEEP).unwrap_or(value).to_vec()
}

/// Reads both prefixes, in pages, at one revision; the cluster's id and what was there.
async fn list(client: &mut Client, config: &EtcdConfig) -> Result<(u64, Listing), EtcdError> {
    let mut listing = Listing::default();
    let mut cluster = 0;
    let mut page = i64::from(config.page);
    for prefix in [&config.services, &config.policies] {
        let end = prefix_end(prefix.as_bytes());
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(page);
            if listing.revision > 0 {
                options =
                    options.with_revision(i64::try_from(listing.revision).unwrap_or(i64::MAX));
            }
            let answer = within("listing", client.get(from.clone(), Some(options))).await;
            let answer = match answer {
                Err(EtcdError::Client(error)) if page > 1 && is_too_large(&error) => {
                    page /= 2;
                    continue;
                }
                other => other?,
            };
            let header = answer.header().ok_or_else(|| EtcdError::Cancelled("no header".into()))?;
            if listing.revision == 0 {
                listing.revision = u64::try_from(header.revision()).unwrap_or(0);
                cluster = header.cluster_id();
            } else if header.cluster_id() != cluster {
                return Err(EtcdError::Relist("another cluster"));
            }
            let more = answer.more();
            let last = answer.kvs().last().map(|kv| kv.key().to_vec());
            listing.items.extend(answer.kvs().iter().map(|kv| Item {
                key: kv.key().to_vec(),
                value: kept(kv.value()),
                revision: u64::try_from(kv.mod_revision()).unwrap_or(0),
                created: u64::try_from(kv.create_revision()).unwrap_or(0),
                lease: u64::try_from(kv.lease()).unwrap_or(0),
            }));
            match last {
                Some(mut last) if more => {
                    last.push(0);
                    from = last;
                }
                _ => break,
            }
        }
    }
    Ok((cluster, listing))
}

fn is_too_large(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let text = status.message();
            text.contains("message length too large") || text.contains("larger than max")
        }
        _ => false,
    }
}

/// The first key after all that begin with `prefix`.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
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
    fn an_answer_that_events_have_overtaken_is_no_step_back() {
        use etcd_client::proto::{PbResponseHeader, PbWatchResponse};
        let created = |revision| {
            let header =
                PbResponseHeader { cluster_id: 1, revision, ..PbResponseHeader::default() };
            WatchResponse(PbWatchResponse {
                header: Some(header),
                watch_id: WATCHES[1],
                created: true,
                ..PbWatchResponse::default()
            })
        };
        // Opened at 10; the other watch has told of 15 before the second one's creation was answered.
        let mut here = Seat { cluster: 1, reached: [15, 10] };
        assert!(receive(created(12), &mut here, 10, false).is_ok_and(|changes| changes.is_empty()));
        assert_eq!(here.reached, [15, 10]);
        // The member itself is behind what another one told.
        assert!(matches!(receive(created(9), &mut here, 10, false), Err(EtcdError::Relist(_))));
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
        let patched = catch_up(listing, [4, 5], [8, 8], newer).unwrap();
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
            let listed = catch_up(listing, began, reached, newer).ok();
            let is = listed.map(|listed| (listed.revision, listed.items.len()));
            assert_eq!(is, expect.map(|at| (at, items)), "{began:?} {reached:?}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_without_it() {
        assert_eq!(prefix_end(b"/services/"), b"/services0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }
}
