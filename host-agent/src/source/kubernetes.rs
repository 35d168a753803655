//! The EndpointSlices of a Kubernetes cluster: a listing in pages, a watch from its revision on,
//! and a listing again where the watch says that it is too old (410 Gone, Kubernetes API concepts,
//! "Efficient detection of changes").
//!
//! The server ends a watch after the time that it is given, and sends bookmarks meanwhile, so a
//! stream that says nothing for longer is dead. What the slices mean is decided in `slices`.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt as _};
use pintle_state::{Source, Update, show};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::slices::{Changed, Slices};
use super::{Backoff, Context};

mod config;
mod slices;

pub use config::{Family, KubernetesConfig};

/// Slices of one page of a listing.
const PAGE: u32 = 500;
/// The server ends a watch after so many seconds.
const WATCH: u32 = 60;
/// A watch that says nothing for longer than it may last is dead.
const SILENCE: Duration = Duration::from_secs(75);
/// A page may take so long: one of 500 slices is a few megabytes.
const READ: Duration = Duration::from_secs(30);
/// A watch's head comes at once, whatever there is to tell.
const OPENING: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
/// The server may ask to be left alone for so long, at most.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Messages of the followers that wait.
const TOLD: usize = 64;

/// Why the cluster is not followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubernetesError {
    /// The server, or the connection to it, said no.
    #[error("{}", crate::words::of(&**.0))]
    Client(#[from] Box<kube::Error>),
    /// The kubeconfig can't be used.
    #[error("{0}")]
    Kubeconfig(#[from] Box<kube::config::KubeconfigError>),
    /// There is no service account: this is no pod.
    #[error("{0}; set kubernetes.kubeconfig outside of a pod")]
    InCluster(#[from] kube::config::InClusterError),
    /// No answer in time.
    #[error("{0}: no answer within {1:?}")]
    Silent(&'static str, Duration),
    /// The watch's revision is gone.
    #[error("the watch is too old; listing again")]
    TooOld,
    /// The agent is shutting down.
    #[error("shutting down")]
    Gone,
}

impl From<kube::Error> for KubernetesError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 410 => Self::TooOld,
            _ => Self::Client(Box::new(error)),
        }
    }
}

/// What a follower of one namespace tells.
enum Told {
    Listed(Option<String>, Vec<EndpointSlice>),
    Put(Box<EndpointSlice>),
    Removed(Box<EndpointSlice>),
    /// The server is alive.
    Alive,
    Lost(KubernetesError),
}

/// Keeps the state as the cluster is, for ever.
pub(crate) async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = configurations(context) => {}
    }
}

/// Follows the cluster by one configuration after the other.
async fn configurations(context: Context) {
    let mut reader = context.config.clone();
    loop {
        let config = reader.borrow_and_update().kubernetes.clone().unwrap_or_default();
        let changed = async {
            loop {
                if reader.changed().await.is_err() {
                    return false;
                }
                let fresh = reader.borrow().kubernetes.clone().unwrap_or_default();
                if fresh != config {
                    return true;
                }
            }
        };
        tokio::select! {
            () = follow(&context, &config) => return,
            go_on = changed => if !go_on { return },
        }
    }
}

/// Follows the configured namespaces until the agent shuts down.
async fn follow(context: &Context, config: &KubernetesConfig) {
    context.board.change(|sources| sources.kubernetes.patience = SILENCE);
    let (tell, mut told) = mpsc::channel(TOLD);
    let namespaces: Vec<Option<String>> = match config.namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let mut unlisted = namespaces.len();
    let mut listed = std::collections::BTreeSet::new();
    let followers = namespaces.into_iter().map(|namespace| {
        let follower = Follower { config: config.clone(), namespace, tell: tell.clone() };
        follower.run()
    });
    let followers = futures::future::join_all(followers);
    drop(tell);
    let work = async {
        let mut slices = Slices::new(config.clone());
        while let Some(told) = told.recv().await {
            let (changed, whole) = match told {
                Told::Lost(error) => {
                    context.kubernetes_lost(&error);
                    continue;
                }
                Told::Alive => {
                    context.kubernetes_heard(&slices);
                    continue;
                }
                Told::Put(slice) => (slices.put(*slice), false),
                Told::Removed(slice) => (slices.remove(&slice), false),
                Told::Listed(namespace, list) => {
                    let changed = slices.list(namespace.as_deref(), list);
                    if listed.insert(namespace) {
                        unlisted = unlisted.saturating_sub(1);
                    }
                    context.kubernetes_listed();
                    match unlisted {
                        0 => (slices.all(), true),
                        _ => (changed, false),
                    }
                }
            };
            context.kubernetes_heard(&slices);
            if send(context, changed, whole).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = followers => {}
        () = work => {}
    }
}

async fn send(context: &Context, changed: Changed, whole: bool) -> Result<(), KubernetesError> {
    let gone = |_| KubernetesError::Gone;
    if whole || !changed.services.is_empty() {
        let (source, services) = (Source::Kubernetes, changed.services);
        context.updates.send(Update::Services { source, whole, services }).await.map_err(gone)?;
    }
    for (key, why) in changed.unserved {
        let refused = Update::Refused {
            source: Source::Kubernetes.label(),
            key,
            reason: "kubernetes",
            detail: why.to_string(),
        };
        context.updates.send(refused).await.map_err(gone)?;
    }
    Ok(())
}

/// One namespace, or all.
struct Follower {
    config: KubernetesConfig,
    namespace: Option<String>,
    tell: mpsc::Sender<Told>,
}

impl Follower {
    async fn run(self) {
        let mut backoff = Backoff::default();
        let mut revision: Option<String> = None;
        loop {
            let began = tokio::time::Instant::now();
            let Err(error) = self.session(&mut revision, &mut backoff).await;
            let again = match &error {
                KubernetesError::Gone => return,
                KubernetesError::TooOld => {
                    revision = None;
                    tokio::time::Instant::now() + backoff.next()
                }
                error => {
                    let pause = asked_to_wait(error).unwrap_or_default().min(LONGEST_WAIT);
                    backoff.reconnect(began).max(tokio::time::Instant::now() + pause)
                }
            };
            if !matches!(error, KubernetesError::TooOld) {
                let _ = self.tell.send(Told::Lost(error)).await;
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// One connection: a listing where no revision is known, and watches from there on.
    async fn session(
        &self,
        revision: &mut Option<String>,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, KubernetesError> {
        let client = client(&self.config).await?;
        let slices: Api<EndpointSlice> = match &self.namespace {
            None => Api::all(client),
            Some(namespace) => Api::namespaced(client, namespace),
        };
        loop {
            let at = match revision.clone() {
                Some(at) => at,
                None => {
                    let at = self.list(&slices).await?;
                    revision.insert(at).clone()
                }
            };
            let mut watch = WatchParams::default().timeout(WATCH);
            watch.label_selector.clone_from(&self.config.selector);
            let opening = timeout(OPENING, slices.watch(&watch, &at)).await;
            let opening =
                opening.map_err(|_| KubernetesError::Silent("opening a watch", OPENING))?;
            let mut stream = opening.map_err(KubernetesError::from)?.boxed();
            loop {
                let next = timeout(SILENCE, stream.try_next()).await;
                let next = next.map_err(|_| KubernetesError::Silent("the watch", SILENCE))?;
                // The server ends a watch in time; the next one goes on where it was.
                let Some(event) = next.map_err(KubernetesError::from)? else { break };
                backoff.reset();
                self.told(event, revision).await?;
            }
            self.tell(Told::Alive).await?;
        }
    }

    async fn told(
        &self,
        event: WatchEvent<EndpointSlice>,
        revision: &mut Option<String>,
    ) -> Result<(), KubernetesError> {
        let (at, told) = match event {
            WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                (slice.resource_version(), Told::Put(Box::new(slice)))
            }
            WatchEvent::Deleted(slice) => {
                (slice.resource_version(), Told::Removed(Box::new(slice)))
            }
            WatchEvent::Bookmark(mark) => (Some(mark.metadata.resource_version), Told::Alive),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        self.tell(told).await?;
        if at.is_some() {
            *revision = at;
        }
        Ok(())
    }

    /// Reads everything in pages; the revision at which it was so.
    async fn list(&self, slices: &Api<EndpointSlice>) -> Result<String, KubernetesError> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector.clone_from(&self.config.selector);
        let mut all = Vec::new();
        loop {
            let page = timeout(READ, slices.list(&params)).await;
            let page = page.map_err(|_| KubernetesError::Silent("a listing", READ))?;
            let page = page.map_err(KubernetesError::from)?;
            let (more, revision) = (page.metadata.continue_, page.metadata.resource_version);
            all.extend(page.items);
            match more.filter(|more| !more.is_empty()) {
                Some(more) => params = params.continue_token(&more),
                None => {
                    self.tell(Told::Listed(self.namespace.clone(), all)).await?;
                    return Ok(revision.unwrap_or_default());
                }
            }
        }
    }

    async fn tell(&self, told: Told) -> Result<(), KubernetesError> {
        self.tell.send(told).await.map_err(|_| KubernetesError::Gone)
    }
}

/// A client that reads the token of its file again by itself.
async fn client(config: &KubernetesConfig) -> Result<Client, KubernetesError> {
    // Several crates bring rustls; whoever is first names the provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut cluster = match &config.kubeconfig {
        None => kube::Config::incluster()?,
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(Box::new)?;
            let context = config.context.clone();
            let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
            kube::Config::from_custom_kubeconfig(file, &options).await.map_err(Box::new)?
        }
    };
    cluster.connect_timeout = Some(CONNECT);
    cluster.read_timeout = Some(SILENCE);
    Ok(Client::try_from(cluster)?)
}

/// For how long the server asks to be left alone (429 and 503 with `retryAfterSeconds`).
fn asked_to_wait(error: &KubernetesError) -> Option<Duration> {
    let KubernetesError::Client(error) = error else { return None };
    let kube::Error::Api(status) = &**error else { return None };
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

impl Context {
    fn kubernetes_lost(&self, error: &KubernetesError) {
        let text = show(error.to_string().as_bytes());
        let mut news = false;
        self.board.change(|sources| {
            let status = &mut sources.kubernetes;
            news = status.connected || status.error.is_none();
            status.connected = false;
            status.error = Some(text.clone());
        });
        if news {
            tracing::warn!(error = %text, "kubernetes lost");
            self.tell(format!("kubernetes lost: {text}"));
        }
    }

    fn kubernetes_listed(&self) {
        self.board.change(|sources| {
            let status = &mut sources.kubernetes;
            status.listed = Some(Instant::now());
        });
    }

    fn kubernetes_heard(&self, slices: &Slices) {
        let mut news = false;
        self.board.change(|sources| {
            let status = &mut sources.kubernetes;
            status.hear();
            news = !status.connected;
            status.connects = status.connects.saturating_add(news.into());
            status.connected = true;
            status.error = None;
            let left_out = slices.left_out();
            if left_out > 0 {
                let warning = format!("{left_out} EndpointSlices are left out: too many");
                status.warnings.insert("slices", warning);
            }
        });
        if news {
            tracing::info!("kubernetes connected");
            self.tell("kubernetes connected".to_owned());
        }
    }
}

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod tests;
