//! One connection to one member: a listing, the watches from there on, and a listing now and then
//! beside them, for what a watch may have missed.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::WatchResponse;
use pintle_state::{Change, Update};
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, sleep_until};

use super::connect::{Link, REQUEST, open};
use super::intake::Intake;
use super::list::{Listed, Page, list};
use super::version::progress_is_sound;
use super::watch::{Heard, Position, Watches};
use super::{EtcdError, Registry};
use crate::source::{Backoff, Context, EtcdConfig, leases};

/// A failed listing beside a healthy watch is tried again after so long, or after `etcd.reconcile`
/// if that is shorter.
const RELIST: Duration = Duration::from_secs(5);
/// So many in a row may fail; after one more another member is asked, and the watch goes on there.
const LISTINGS: u32 = 2;

/// A connection with its watches open.
pub(super) struct Session<'a> {
    context: &'a Context,
    config: &'a EtcdConfig,
    registry: &'a mut Registry,
    backoff: &'a mut Backoff,
    link: Link,
    watches: Watches,
    /// Whether the member's answers to progress requests may be believed.
    sound: bool,
    here: Position,
    /// When the member last said something.
    heard: Instant,
    beside: Beside,
}

/// The listing beside the watches.
struct Beside {
    /// When the next one begins.
    due: Pin<Box<Sleep>>,
    /// The one on its way; never ready when there is none.
    task: Pin<Box<dyn Future<Output = Result<Listed, EtcdError>> + Send>>,
    /// What it has read; closed when there is none.
    pages: mpsc::Receiver<Page>,
    intake: Intake,
    /// How far the watches were when it began.
    began: Vec<u64>,
    /// What they told since, where the listing is gathered; `None` when none is on its way.
    meanwhile: Option<Vec<Change>>,
    /// How many failed in a row.
    failed: u32,
}

impl<'a> Session<'a> {
    /// Connects, lists unless the registry's position is known, and opens the watches.
    ///
    /// # Errors
    /// [`EtcdError`]: the member does not answer, or denies everything.
    pub(super) async fn open(
        context: &'a Context,
        config: &'a EtcdConfig,
        member: usize,
        registry: &'a mut Registry,
        backoff: &'a mut Backoff,
    ) -> Result<Self, EtcdError> {
        let link = open(config, member, registry.patience).await?;
        let sound = progress_is_sound(&link).await?;
        let here = match &registry.position {
            Some(position) => position.clone(),
            None => first_listing(context, config, &link, registry).await?,
        };
        let watches = Watches::open(&link, &registry.prefixes, &here).await?;
        registry.position = Some(here.clone());
        registry.patience = REQUEST;
        let endpoint = config.member(member);
        context.etcd_connected(endpoint, config);
        context.etcd_denied(&here, &registry.prefixes);
        tracing::info!(endpoint, revision = here.reached.first(), "etcd connected");
        context.tell(format!("etcd connected at {endpoint}"));
        let beside = Beside {
            due: Box::pin(sleep(jittered(config.reconcile))),
            task: Box::pin(pending()),
            pages: mpsc::channel(1).1,
            intake: Intake::default(),
            began: here.reached.clone(),
            meanwhile: None,
            failed: 0,
        };
        let heard = Instant::now();
        Ok(Self { context, config, registry, backoff, link, watches, sound, here, heard, beside })
    }

    /// Follows the registry until something ends it.
    ///
    /// # Errors
    /// [`EtcdError`]: why it ended.
    pub(super) async fn run(mut self) -> Result<Infallible, EtcdError> {
        let mut ask = interval(self.config.silence / 3);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let silent_at = self.silent_at();
            tokio::select! {
                biased;
                message = self.watches.stream.message() => self.receive(message?).await?,
                Some(page) = self.beside.pages.recv() => self.page(page).await?,
                listed = &mut self.beside.task => self.listed(listed).await?,
                () = &mut self.beside.due, if self.beside.meanwhile.is_none() => self.list(),
                _ = ask.tick() => self.ask().await?,
                () = sleep_until(silent_at) => self.is_silent()?,
            }
        }
    }

    async fn receive(&mut self, message: Option<WatchResponse>) -> Result<(), EtcdError> {
        let Some(message) = message else {
            return Err(EtcdError::Cancelled("the stream ended".into()));
        };
        self.heard = Instant::now();
        self.backoff.reset();
        match self.watches.receive(message, &mut self.here, self.sound)? {
            Heard::Denied => self.context.etcd_denied(&self.here, &self.registry.prefixes),
            Heard::Changes(changes) if changes.is_empty() => {
                let revision = self.here.least();
                send(self.context, Update::Progress { revision }).await?;
            }
            Heard::Changes(changes) => self.changed(changes).await?,
        }
        // Not before: a reload may end this session while it sends.
        self.registry.position = Some(self.here.clone());
        self.context.etcd_heard(self.here.most(), self.registry.translator.beside());
        Ok(())
    }

    async fn changed(&mut self, changes: Vec<Change>) -> Result<(), EtcdError> {
        if let Some(meanwhile) = &mut self.beside.meanwhile
            && self.registry.translator.is_foreign()
        {
            meanwhile.extend(changes.iter().cloned());
        }
        let translated = self.registry.translator.changes(changes);
        let removes = translated.told.iter().any(|change| change.value.is_none());
        let update = Update::Changes(translated.told);
        if removes {
            let updates = &self.context.updates;
            let told = updates.apply(update).await.map_err(|_| EtcdError::Gone)?;
            leases::ask(self.link.client.clone(), told.leases, updates.clone());
        } else {
            send(self.context, update).await?;
        }
        if !translated.unread.is_empty() {
            send(self.context, Update::Unread(translated.unread)).await?;
        }
        Ok(())
    }

    /// Begins a listing.
    fn list(&mut self) {
        self.beside.began.clone_from(&self.here.reached);
        self.beside.meanwhile = Some(Vec::new());
        let (link, config) = (self.link.clone(), self.config.clone());
        let prefixes = self.registry.prefixes.clone();
        let (to, pages) = mpsc::channel(1);
        self.beside.pages = pages;
        self.beside.intake = Intake::default();
        self.beside.task = Box::pin(async move { list(&link, &config, &prefixes, to).await });
    }

    async fn page(&mut self, page: Page) -> Result<(), EtcdError> {
        if page.cluster != self.here.cluster {
            return Err(EtcdError::Relist("another cluster"));
        }
        if is_step_back(page.revision, &self.beside.began) {
            return Err(EtcdError::Relist("a lower revision than before"));
        }
        self.beside.intake.page(page, &mut self.registry.translator, self.context).await
    }

    async fn listed(&mut self, listed: Result<Listed, EtcdError>) -> Result<(), EtcdError> {
        self.beside.task = Box::pin(pending());
        while let Ok(page) = self.beside.pages.try_recv() {
            self.page(page).await?;
        }
        let newer = self.beside.meanwhile.take().unwrap_or_default();
        let listed = match listed {
            Ok(listed) => listed,
            // What the watches told is in the state already.
            Err(error) if self.beside.failed < LISTINGS && !ends_the_watch(&error) => {
                self.beside.failed = self.beside.failed.saturating_add(1);
                self.context.etcd_unlisted(Some(&error));
                self.beside.due.set(sleep(jittered(RELIST.min(self.config.reconcile))));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.beside.failed = 0;
        self.context.etcd_unlisted(None);
        if self.here.denied.iter().any(|at| !listed.denied.contains(at)) {
            return Err(EtcdError::Relist("a prefix may be read now"));
        }
        self.here.denied.clone_from(&listed.denied);
        let intake = std::mem::take(&mut self.beside.intake);
        end_listing(self.context, self.registry, intake, &listed, newer).await?;
        self.here.advance(listed.revision);
        self.context.etcd_denied(&self.here, &self.registry.prefixes);
        self.registry.position = Some(self.here.clone());
        self.beside.due.set(sleep(jittered(self.config.reconcile)));
        Ok(())
    }

    /// Asks how far the watches are.
    async fn ask(&mut self) -> Result<(), EtcdError> {
        if self.watches.ask(&self.link, &self.config.services).await? {
            self.heard = Instant::now();
        }
        Ok(())
    }

    fn silent_at(&self) -> Instant {
        self.heard.max(self.link.busy()) + self.config.silence
    }

    fn is_silent(&self) -> Result<(), EtcdError> {
        // Something may have come while the timer fired.
        match self.silent_at() <= Instant::now() {
            true => Err(EtcdError::Silent(self.config.silence)),
            false => Ok(()),
        }
    }
}

/// Lists everything and tells it.
async fn first_listing(
    context: &Context,
    config: &EtcdConfig,
    link: &Link,
    registry: &mut Registry,
) -> Result<Position, EtcdError> {
    let (to, mut pages) = mpsc::channel(1);
    let prefixes = registry.prefixes.clone();
    let mut intake = Intake::default();
    let translator = &mut registry.translator;
    let take = async {
        while let Some(page) = pages.recv().await {
            intake.page(page, translator, context).await?;
        }
        Ok(())
    };
    let (listed, ()) = tokio::try_join!(list(link, config, &prefixes, to), take)?;
    end_listing(context, registry, intake, &listed, Vec::new()).await?;
    Ok(Position::after(&listed, prefixes.len()))
}

async fn end_listing(
    context: &Context,
    registry: &mut Registry,
    intake: Intake,
    listed: &Listed,
    newer: Vec<Change>,
) -> Result<(), EtcdError> {
    let Registry { translator, prefixes, .. } = registry;
    intake.end(listed, newer, translator, (prefixes, context)).await?;
    context.board.change(|sources| sources.etcd.listed = Some(std::time::Instant::now()));
    context.etcd_heard(listed.revision, registry.translator.beside());
    Ok(())
}

async fn send(context: &Context, update: Update) -> Result<(), EtcdError> {
    context.updates.send(update).await.map_err(|_| EtcdError::Gone)
}

/// Whether a failed listing says that the watch beside it is not to be trusted, or will not come
/// back: a place that is wrong, nothing that may be read, and a token that has run out, which only
/// another connection renews.
fn ends_the_watch(error: &EtcdError) -> bool {
    use etcd_client::Error::GRpcStatus;
    match error {
        EtcdError::Relist(_) | EtcdError::Denied(_) | EtcdError::Gone => true,
        EtcdError::Client(GRpcStatus(status)) => status.code() == tonic::Code::Unauthenticated,
        _ => false,
    }
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// Whether a listing is from before what the watches had told when it began. What the slowest of
/// them has yet to tell is in neither.
fn is_step_back(revision: u64, began: &[u64]) -> bool {
    began.iter().any(|began| revision < *began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_a_step_back_only_from_where_it_began() {
        for (began, expect) in [([10, 10], false), ([8, 9], false), ([11, 9], true)] {
            assert_eq!(is_step_back(10, &began), expect, "{began:?}");
        }
    }
}
