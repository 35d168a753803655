//! The admin address: health, metrics, the JSON API and the status page, on loopback.
//!
//! Everything is read-only but `POST /v1/release/{service}`, by which a person confirms held
//! removals. Two things keep a web page in somebody's browser out: that request needs a header which
//! a foreign page can't set without asking first (`x-pintle-request`), and every request must name a
//! host that DNS can't have been rebound to: an address literal, `localhost`, or a configured name. Who
//! comes by the network, where that is allowed, changes nothing.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/healthz`, `/readyz` | the process lives; there is a snapshot (stale or not; 503 without) |
//! | `/metrics` | OpenMetrics, or Prometheus text |
//! | `/v1/services?after=&limit=&endpoints=`, `/v1/services/{name}` | tables and their traffic |
//! | `/v1/breakers?all=`, `/v1/proxies`, `/v1/sources` | who holds what open; versions; connections |
//! | `/v1/rejected`, `/v1/held`, `/v1/overlays` | refused entries, removals that wait, events in force |
//! | `/v1/events?follow=&state=` | server-sent events, or the last ones as JSON |
//!
//! Bounds: 256 connections, 32 event streams, 4 KiB of body, 16 KiB of head, 1,000 services an answer.

mod recent;
pub mod view;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures::stream::{Stream, unfold};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

pub use recent::Recent;
use view::{
    ActivitiesJson, ActivityJson, BreakersJson, HeldJson, HeldRowJson, OverlayJson, OverlaysJson,
    ProxiesJson, ProxyJson, ReadyJson, RejectedJson, RejectedRowJson, ReleasedJson, ServiceJson,
    ServicesJson, SourcesJson, StateJson,
};

use super::metrics::Metrics;
use super::page::page;
use crate::fleet::{Fleet, When};
use crate::link::{Snapshots, SourcesWatch};

/// The header that a request to change anything must carry, with any value.
pub const REQUEST_HEADER: &str = "x-pintle-request";

const MAX_CONNECTIONS: usize = 256;
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
pub trait Release: Send + Sync {
    /// Lets the held removals of `service` take effect and says how many they were.
    fn release(&self, service: String) -> Releasing;
}

/// The answer to [`Release::release`]; an error is in words.
pub type Releasing = Pin<Box<dyn Future<Output = Result<u64, String>> + Send>>;

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
}

/// Why the admin address could not be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It would be open to the network.
    #[error(
        "admin.listen {0} is not a loopback address; set admin.allow_remote if that is meant \
         (everybody who reaches it can read all there)"
    )]
    Remote(SocketAddr),
    /// The system refused.
    #[error("admin.listen {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
}

/// What the handlers share.
#[derive(Clone)]
pub struct Admin {
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
    streams: Arc<Semaphore>,
    page_state: Mutex<Option<(Instant, Arc<str>)>>,
    stop: CancellationToken,
}

/// What it takes to answer.
pub struct Parts {
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
pub async fn bind(options: &AdminOptions) -> Result<TcpListener, AdminError> {
    if !options.listen.ip().to_canonical().is_loopback() && !options.allow_remote {
        return Err(AdminError::Remote(options.listen));
    }
    TcpListener::bind(options.listen).await.map_err(|error| AdminError::Bind(options.listen, error))
}

impl Admin {
    /// The handlers' state.
    #[must_use]
    pub fn new(options: AdminOptions, parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                snapshots: parts.snapshots,
                sources: parts.sources,
                fleet: parts.fleet,
                metrics: parts.metrics,
                recent: parts.recent,
                release: parts.release,
                streams: Arc::new(Semaphore::new(MAX_STREAMS)),
                page_state: Mutex::new(None),
                stop: parts.stop,
            }),
        }
    }

    /// All routes behind the checks that hold for all.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/", get(page))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/v1/services", get(services))
            .route("/v1/services/{name}", get(service))
            .route("/v1/breakers", get(breakers))
            .route("/v1/proxies", get(proxies))
            .route("/v1/sources", get(sources))
            .route("/v1/events", get(events))
            .route("/v1/rejected", get(rejected))
            .route("/v1/held", get(held))
            .route("/v1/overlays", get(overlays))
            .route("/v1/release/{service}", post(release))
            .fallback(|| async { fail(StatusCode::NOT_FOUND, "no such path") })
            .layer(DefaultBodyLimit::max(4 << 10))
            .layer(from_fn_with_state(self.clone(), guard))
            .with_state(self.clone())
    }

    /// Serves until the parts' `stop`.
    pub async fn serve(self, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let router = self.router();
        let stop = self.inner.stop.clone();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let router = router.clone().layer(Extension(Peer(peer.ip())));
                    let service = TowerToHyperService::new(router);
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(Duration::from_secs(10))
                            .max_buf_size(16 << 10)
                            .serve_connection(TokioIo::new(stream), service);
                        tokio::select! {
                            // A client that hangs up or speaks nonsense is its own affair.
                            _ = connection => {}
                            () = late(&stop) => {}
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept on the admin address");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn snapshot(&self) -> Arc<pintle_state::Snapshot> {
        Arc::clone(&self.inner.snapshots.borrow())
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
        let state = StateJson {
            agent: self.inner.options.agent.clone(),
            ready: ReadyJson::of(&snapshot),
            services: ServicesJson::of(&snapshot, &view, None, ON_PAGE, true),
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

/// After the stop, what is being answered may finish.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(Duration::from_secs(1)).await;
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
    let ready = ReadyJson::of(&admin.snapshot());
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ready)).into_response()
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (kind, body) = admin.inner.metrics.expose(accept);
    ([(CONTENT_TYPE, kind)], body).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesQuery {
    after: Option<String>,
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
        limit,
        query.endpoints.unwrap_or(true),
    ))
    .into_response()
}

async fn service(State(admin): State<Admin>, Path(name): Path<String>) -> Response {
    let snapshot = admin.snapshot();
    let Some(service) = snapshot.services.get(&name) else {
        return fail(StatusCode::NOT_FOUND, "no such service");
    };
    let view = admin.inner.fleet.view(When::now());
    Json(ServiceJson::of(service, view.services.get(&name), true)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BreakersQuery {
    all: Option<bool>,
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
#[derive(Clone, Copy)]
struct Peer(IpAddr);

impl Peer {
    /// Who reaches this address over the network may look, and change nothing.
    fn may_change(self) -> bool {
        self.0.to_canonical().is_loopback()
    }
}

async fn release(
    State(admin): State<Admin>,
    Extension(peer): Extension<Peer>,
    Path(service): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !peer.may_change() {
        return fail(StatusCode::FORBIDDEN, "a change is taken from this machine alone");
    }
    if !headers.contains_key(REQUEST_HEADER) {
        return fail(StatusCode::FORBIDDEN, "a change needs the header x-pintle-request");
    }
    if !pintle_contract::is_name(&service) {
        return fail(StatusCode::BAD_REQUEST, "not the name of a service");
    }
    tracing::info!(service, "held removals are released by request");
    match admin.inner.release.release(service.clone()).await {
        Ok(released) => Json(ReleasedJson { service, released }).into_response(),
        Err(error) => fail(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    follow: Option<bool>,
    state: Option<u8>,
}

async fn events(State(admin): State<Admin>, Query(query): Query<EventsQuery>) -> Response {
    if query.follow == Some(false) {
        return Json(ActivitiesJson { events: admin.inner.recent.last() }).into_response();
    }
    let Ok(place) = Arc::clone(&admin.inner.streams).try_acquire_owned() else {
        return fail(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open");
    };
    let stream = follow(admin, query.state.unwrap_or(0) > 0, place);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

struct Follow {
    admin: Admin,
    past: std::vec::IntoIter<ActivityJson>,
    coming: broadcast::Receiver<ActivityJson>,
    state: Option<Arc<str>>,
    beat: tokio::time::Interval,
    with_state: bool,
    _place: OwnedSemaphorePermit,
}

fn follow(
    admin: Admin,
    with_state: bool,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let (past, coming) = admin.inner.recent.follow();
    let mut beat = interval(PAGE_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let follow = Follow {
        past: past.into_iter(),
        coming,
        state: None,
        beat,
        with_state,
        _place: place,
        admin,
    };
    unfold(follow, |mut follow| async move {
        let event = follow.next().await?;
        Some((Ok(event), follow))
    })
}

impl Follow {
    async fn next(&mut self) -> Option<Event> {
        let stop = self.admin.inner.stop.clone();
        loop {
            if self.with_state && self.state.is_none() {
                return Some(self.new_state(self.admin.page_state()));
            }
            if let Some(activity) = self.past.next() {
                return Some(activity_event(&activity));
            }
            tokio::select! {
                activity = self.coming.recv() => match activity {
                    Ok(activity) => return Some(activity_event(&activity)),
                    Err(RecvError::Lagged(missed)) => {
                        return Some(Event::default().event("missed").data(missed.to_string()));
                    }
                    Err(RecvError::Closed) => return None,
                },
                _ = self.beat.tick(), if self.with_state => {
                    let state = self.admin.page_state();
                    if self.state.as_ref() != Some(&state) {
                        return Some(self.new_state(state));
                    }
                }
                () = stop.cancelled() => return None,
            }
        }
    }

    fn new_state(&mut self, state: Arc<str>) -> Event {
        let event = Event::default().event("state").data(&*state);
        self.state = Some(state);
        event
    }
}

fn activity_event(activity: &ActivityJson) -> Event {
    let data = serde_json::to_string(activity).unwrap_or_default();
    Event::default().event("activity").data(data)
}

#[cfg(test)]
pub(crate) mod tests;
