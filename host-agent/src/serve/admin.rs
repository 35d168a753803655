//! The admin address: health, metrics, the JSON API and the status page, on loopback.
//!
//! Everything is read-only but `POST /v1/release/{service}`, by which a person confirms held
//! removals. It is taken at the unix socket alone, from root, the agent's own user and the groups
//! that are named: a TCP address can't tell one user of the machine from the next. What keeps a web
//! page in somebody's browser from reading: every request must name a host that DNS can't have been
//! rebound to, an address literal, `localhost`, or a configured name.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/healthz` | the process lives |
//! | `/readyz` | what is wrong; 503 without a snapshot, a source that speaks, or Envoys that take it |
//! | `/metrics` | OpenMetrics, or Prometheus text |
//! | `/v1/services?after=&contains=&limit=&endpoints=`, `/v1/services/{name}` | tables and their traffic |
//! | `/v1/policies/{name}` | a service's policy, and which layer each key is from |
//! | `/v1/agent` | what the agent was given, and how its servers do |
//! | `/v1/breakers?all=`, `/v1/proxies`, `/v1/sources` | who holds what open; versions; connections |
//! | `/v1/rejected`, `/v1/held`, `/v1/overlays` | refused entries, removals that wait, events in force |
//! | `/v1/events?follow=&state=` | server-sent events, or the last ones as JSON |
//!
//! Bounds: 256 connections ([`super::descriptors`]) and 8 more for health, 32 event streams, 4 KiB
//! of body, 16 KiB of head, 1,000 services an answer, 64 MiB of answers that wait for their
//! readers, each for 10 s.

mod absent;
mod answers;
mod deadline;
mod events;
mod listen;
mod recent;
pub(crate) mod view;

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Extension;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use answers::{Answers, bounded};
use events::events;
use listen::Places;
pub(crate) use recent::Recent;
use view::{
    AgentJson, BreakersJson, Given, HeldJson, HeldRowJson, OverlayJson, OverlaysJson, PolicyJson,
    ProxiesJson, ProxyJson, ReadyJson, RejectedJson, RejectedRowJson, ReleasedJson, ServiceJson,
    ServicesJson, SourcesJson, StateJson, TotalsJson,
};

use super::descriptors;
use super::metrics::{Metrics, Served};
use super::page::page;
use super::socket::{BindError, Credentials, Socket, SocketOptions};
use crate::condition::Condition;
use crate::fleet::{Fleet, ProxyView, When};
use crate::link::{Snapshots, SourcesWatch};
use crate::updates::Gone;

/// The header that a request to change anything must carry, with any value.
pub(crate) const REQUEST_HEADER: &str = "x-pintle-request";

const MAX_STREAMS: usize = 32;
/// Services in one answer, and rows of any other list.
const MAX_SERVICES: usize = 1_000;
const MAX_ROWS: usize = 10_000;
/// Services on the page; a page with more can't be read, and says so.
const ON_PAGE: usize = 200;
const DEFAULT_SERVICES: usize = 100;
/// How often the page hears of the state.
const PAGE_EVERY: Duration = Duration::from_secs(1);

/// Confirms held removals; the state's owner implements it.
pub(crate) trait Release: Send + Sync {
    /// Lets the held removals of `service` take effect and says how many they were.
    fn release(&self, service: String) -> Releasing;
}

/// The answer to [`Release::release`].
pub(crate) type Releasing = Pin<Box<dyn Future<Output = Result<u64, Gone>> + Send>>;

/// Where the admin address listens and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminOptions {
    /// The agent's name, shown on the page.
    pub agent: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether another address than loopback is meant.
    pub allow_remote: bool,
    /// Names by which it may be called, beside address literals and `localhost`.
    pub hosts: Vec<String>,
    /// The unix socket at which orders are taken, and who may give them.
    pub socket: SocketOptions,
}

/// Why the admin address could not be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// It would be open to the network.
    #[error(
        "admin.listen {0} is not a loopback address; set admin.allow_remote if that is meant \
         (everybody who reaches it can read all there)"
    )]
    Remote(SocketAddr),
    /// The system refused.
    #[error("admin.listen {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
    /// The unix socket could not be made.
    #[error("admin.socket: {0}")]
    Socket(#[from] BindError),
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Admin {
    inner: Arc<Inner>,
}

struct Inner {
    options: AdminOptions,
    snapshots: Snapshots,
    sources: SourcesWatch,
    fleet: Arc<Fleet>,
    metrics: Metrics,
    recent: Recent,
    release: Box<dyn Release>,
    given: Given,
    served: Option<Served>,
    started: SystemTime,
    streams: Arc<Semaphore>,
    places: Places,
    answers: Arc<Answers>,
    page_state: Mutex<Option<(Instant, Arc<str>)>>,
    stop: CancellationToken,
}

/// What it takes to answer.
pub(crate) struct Parts {
    /// The newest snapshot.
    pub snapshots: Snapshots,
    /// The sources' states.
    pub sources: SourcesWatch,
    /// The sums.
    pub fleet: Arc<Fleet>,
    /// `/metrics`.
    pub metrics: Metrics,
    /// The last activities.
    pub recent: Recent,
    /// Confirms removals.
    pub release: Box<dyn Release>,
    /// What the agent was started with.
    pub given: Given,
    /// The proxies' server; none where there is none (tests).
    pub served: Option<Served>,
    /// Ends the event streams.
    pub stop: CancellationToken,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// Binds the admin address.
///
/// # Errors
/// [`AdminError::Remote`] for an address that others reach, unless that is allowed.
pub(crate) async fn bind(options: &AdminOptions) -> Result<TcpListener, AdminError> {
    if !options.listen.ip().to_canonical().is_loopback() && !options.allow_remote {
        return Err(AdminError::Remote(options.listen));
    }
    TcpListener::bind(options.listen).await.map_err(|error| AdminError::Bind(options.listen, error))
}

impl Admin {
    /// The handlers' state.
    #[must_use]
    pub(crate) fn new(options: AdminOptions, parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                snapshots: parts.snapshots,
                sources: parts.sources,
                fleet: parts.fleet,
                metrics: parts.metrics,
                recent: parts.recent,
                release: parts.release,
                given: parts.given,
                served: parts.served,
                started: SystemTime::now(),
                streams: Arc::new(Semaphore::new(MAX_STREAMS)),
                places: Places::new(descriptors::admin()),
                answers: Arc::new(Answers::new()),
                page_state: Mutex::new(None),
                stop: parts.stop,
            }),
        }
    }

    /// Binds the unix socket for orders.
    ///
    /// # Errors
    /// [`AdminError::Socket`].
    pub(crate) fn bind_unix(&self) -> Result<Socket, AdminError> {
        Ok(Socket::bind(self.inner.options.socket.clone())?)
    }

    /// All routes behind the checks that hold for all.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/v1/agent", get(agent))
            .route("/v1/services", get(services))
            .route("/v1/services/{name}", get(service))
            .route("/v1/breakers", get(breakers))
            .route("/v1/proxies", get(proxies))
            .route("/v1/sources", get(sources))
            .route("/v1/events", get(events))
            .route("/v1/rejected", get(rejected))
            .route("/v1/held", get(held))
            .route("/v1/overlays", get(overlays))
            .route("/v1/policies/{service}", get(policy))
            .route("/v1/release/{service}", post(release))
            .fallback(|| async { fail(StatusCode::NOT_FOUND, "no such path") })
            .layer(from_fn_with_state(Arc::clone(&self.inner.answers), bounded))
            .layer(DefaultBodyLimit::max(4 << 10))
            .layer(from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    fn snapshot(&self) -> Arc<pintle_state::Snapshot> {
        Arc::clone(&self.inner.snapshots.borrow())
    }

    fn condition(&self, snapshot: &pintle_state::Snapshot, proxies: &[ProxyView]) -> Condition {
        let sources = self.inner.sources.borrow();
        Condition::of(snapshot, &sources, proxies, Instant::now())
    }

    /// The page's state as JSON, made once a second however many look.
    fn page_state(&self) -> Arc<str> {
        let mut cached = self.inner.page_state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, state)) = cached.as_ref()
            && at.elapsed() < PAGE_EVERY * 9 / 10
        {
            return Arc::clone(state);
        }
        let snapshot = self.snapshot();
        let view = self.inner.fleet.view(When::now());
        let (totals, services) = TotalsJson::of(&snapshot, &view, ON_PAGE);
        let state = StateJson {
            agent: self.inner.options.agent.clone(),
            ready: ReadyJson::of(&snapshot, &self.condition(&snapshot, &view.proxies)),
            totals,
            services,
            proxies: view.proxies.iter().map(ProxyJson::of).collect(),
            held: snapshot.held.iter().take(ON_PAGE).map(HeldRowJson::of).collect(),
            overlays: snapshot.overlays.iter().take(ON_PAGE).map(OverlayJson::of).collect(),
            sources: SourcesJson::of(&self.inner.sources.borrow()),
            rejected: snapshot.rejected.len(),
        };
        let state: Arc<str> = serde_json::to_string(&state).unwrap_or_default().into();
        *cached = Some((Instant::now(), Arc::clone(&state)));
        state
    }
}

fn fail(status: StatusCode, error: &str) -> Response {
    let body = serde_json::json!({ "error": error });
    (status, Json(body)).into_response()
}

/// Whether a `Host` header names this server and can't be a name rebound to it.
fn is_own_host(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_own_host(host, &admin.inner.options.hosts) {
        return fail(
            StatusCode::FORBIDDEN,
            "this Host is not served; use the address, localhost, or list the name in admin.hosts",
        );
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn healthz() -> Response {
    let body = serde_json::json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") });
    Json(body).into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let (snapshot, proxies) = (admin.snapshot(), admin.inner.fleet.proxies(When::now()));
    let ready = ReadyJson::of(&snapshot, &admin.condition(&snapshot, &proxies));
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready)).into_response()
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (kind, body) = admin.inner.answers.metrics(&admin.inner.metrics, accept);
    ([(CONTENT_TYPE, kind)], body).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesQuery {
    after: Option<String>,
    contains: Option<String>,
    limit: Option<usize>,
    endpoints: Option<bool>,
}

async fn services(State(admin): State<Admin>, Query(query): Query<ServicesQuery>) -> Response {
    let limit = query.limit.unwrap_or(DEFAULT_SERVICES);
    if !(1..=MAX_SERVICES).contains(&limit) {
        return fail(StatusCode::BAD_REQUEST, "limit is 1 to 1000");
    }
    let view = admin.inner.fleet.view(When::now());
    Json(ServicesJson::of(
        &admin.snapshot(),
        &view,
        query.after.as_deref(),
        query.contains.as_deref().unwrap_or_default(),
        limit,
        query.endpoints.unwrap_or(true),
    ))
    .into_response()
}

async fn service(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let snapshot = admin.snapshot();
    let Some(service) = snapshot.services.get(&name) else {
        return fail(StatusCode::NOT_FOUND, &absent::absent(&snapshot, &name));
    };
    let view = admin.inner.fleet.view(When::now());
    Json(ServiceJson::of(service, view.services.get(&name), true)).into_response()
}

async fn policy(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let snapshot = admin.snapshot();
    match snapshot.services.get(&name) {
        Some(service) => Json(PolicyJson::of(service)).into_response(),
        None => fail(StatusCode::NOT_FOUND, &absent::absent(&snapshot, &name)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BreakersQuery {
    all: Option<bool>,
}

async fn agent(State(admin): State<Admin>) -> Response {
    let inner = &admin.inner;
    let options = &inner.options;
    let at = (options.listen, options.socket.path.as_path());
    let mut agent = AgentJson::of(&options.agent, inner.started, at, &inner.given);
    if let Some(served) = &inner.served {
        agent.serves(&served.file.borrow(), &served.quotas.usage(), &served.refusals.all());
    }
    Json(agent).into_response()
}

async fn breakers(State(admin): State<Admin>, Query(query): Query<BreakersQuery>) -> Response {
    let view = admin.inner.fleet.view(When::now());
    let all = query.all.unwrap_or(false);
    Json(BreakersJson::of(&admin.snapshot(), &view, MAX_ROWS, all)).into_response()
}

async fn proxies(State(admin): State<Admin>) -> Response {
    let view = admin.inner.fleet.view(When::now());
    Json(ProxiesJson { proxies: view.proxies.iter().map(ProxyJson::of).collect() }).into_response()
}

async fn sources(State(admin): State<Admin>) -> Response {
    Json(SourcesJson::of(&admin.inner.sources.borrow())).into_response()
}

async fn rejected(State(admin): State<Admin>) -> Response {
    let snapshot = admin.snapshot();
    let rows = snapshot.rejected.iter().take(MAX_ROWS);
    Json(RejectedJson { rejected: rows.map(RejectedRowJson::of).collect() }).into_response()
}

async fn held(State(admin): State<Admin>) -> Response {
    let snapshot = admin.snapshot();
    let rows = snapshot.held.iter().take(MAX_ROWS);
    Json(HeldJson { held: rows.map(HeldRowJson::of).collect() }).into_response()
}

async fn overlays(State(admin): State<Admin>) -> Response {
    let snapshot = admin.snapshot();
    let rows = snapshot.overlays.iter().take(MAX_ROWS);
    Json(OverlaysJson { overlays: rows.map(OverlayJson::of).collect() }).into_response()
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum Asker {
    /// Somebody at a TCP address, whoever that is.
    Network,
    /// A process that the admin socket let in: root, the agent's own user, or one of a named group.
    Local(Credentials),
}

async fn release(
    State(admin): State<Admin>,
    Extension(asker): Extension<Asker>,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Asker::Local(peer) = asker else {
        let socket = admin.inner.options.socket.path.display();
        let error = format!("orders are taken at the unix socket {socket} alone");
        return fail(StatusCode::FORBIDDEN, &error);
    };
    if !headers.contains_key(REQUEST_HEADER) {
        return fail(StatusCode::FORBIDDEN, "a change needs the header x-pintle-request");
    }
    if !pintle_contract::is_name(&service) {
        return fail(StatusCode::BAD_REQUEST, "not the name of a service");
    }
    match admin.inner.release.release(service.clone()).await {
        Ok(released) => {
            tracing::info!(service, released, uid = peer.uid, "a release of held removals");
            Json(ReleasedJson { service, released }).into_response()
        }
        Err(error) => fail(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
