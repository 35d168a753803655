//! A stand-in for the API server, since no cluster is to be had where the tests run: it keeps
//! EndpointSlices and speaks the protocol of the real one as its documents have it (Kubernetes API
//! concepts): pages with a continue token at one revision, watches as chunked lines of JSON from a
//! revision on, bookmarks, watches that end in time, 410 Gone for what is too old, 401 for a wrong
//! token, 429 with the seconds to wait.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "a-token";
/// The real one sends a bookmark about once a minute.
const BOOKMARKS: Duration = Duration::from_millis(100);

/// What happened at a revision.
#[derive(Clone)]
struct Event {
    revision: u64,
    kind: &'static str,
    slice: Value,
}

#[derive(Default)]
struct Kept {
    revision: u64,
    slices: BTreeMap<(String, String), Value>,
    events: Vec<Event>,
    /// Watches from before this revision are too old, and so are the pages of listings.
    oldest: u64,
    /// So many requests are asked to come again in a second.
    throttled: u32,
    /// The query of each request.
    asked: Vec<String>,
    /// Whether a watch that is too old is told so by its status, or by an event: both are seen.
    gone_by_status: bool,
}

/// The server; it ends when this is dropped.
pub(super) struct Cluster {
    address: SocketAddr,
    inner: Arc<Inner>,
    directory: tempfile::TempDir,
}

struct Inner {
    kept: Mutex<Kept>,
    changed: watch::Sender<u64>,
    /// Ends the watches that are open.
    cut: Mutex<CancellationToken>,
    stop: CancellationToken,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    watch: Option<bool>,
    resource_version: Option<String>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    more: Option<String>,
    label_selector: Option<String>,
    timeout_seconds: Option<u64>,
    allow_watch_bookmarks: Option<bool>,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            kept: Mutex::new(Kept { revision: 100, oldest: 100, ..Kept::default() }),
            changed: watch::channel(100).0,
            cut: Mutex::new(CancellationToken::new()),
            stop: CancellationToken::new(),
        });
        let all = get(|state, query, headers| answer(state, None, query, headers));
        let one = get(|state, Path(namespace): Path<String>, query, headers| {
            answer(state, Some(namespace), query, headers)
        });
        let app = Router::new()
            .route("/apis/discovery.k8s.io/v1/endpointslices", all)
            .route("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", one)
            .with_state(Arc::clone(&inner));
        let stop = inner.stop.clone();
        tokio::spawn(async move {
            let serve = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
            serve.await.unwrap();
        });
        Self { address, inner, directory: tempfile::tempdir().unwrap() }
    }

    /// A kubeconfig for it.
    pub(super) fn kubeconfig(&self, token: &str) -> std::path::PathBuf {
        let path = self.directory.path().join(format!("config-{token}"));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub(super) fn good_kubeconfig(&self) -> std::path::PathBuf {
        self.kubeconfig(TOKEN)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept()
    }

    /// Puts a slice of a service; `endpoints` are pods by name and address.
    pub(super) fn put(&self, namespace: &str, service: &str, slice: &str, pods: &[(&str, &str)]) {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|(name, address)| {
                json!({
                    "addresses": [address],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "targetRef": {"kind": "Pod", "name": name, "namespace": namespace},
                })
            })
            .collect();
        self.put_slice(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": slice,
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": service, "team": service},
            },
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }));
    }

    pub(super) fn put_slice(&self, mut slice: Value) {
        let mut kept = self.kept();
        kept.revision += 1;
        let revision = kept.revision;
        slice["metadata"]["resourceVersion"] = json!(revision.to_string());
        let key = key(&slice);
        let kind = if kept.slices.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        kept.slices.insert(key, slice.clone());
        kept.events.push(Event { revision, kind, slice });
        self.inner.changed.send_replace(revision);
    }

    pub(super) fn remove(&self, namespace: &str, slice: &str) {
        let mut kept = self.kept();
        let removed = kept.slices.remove(&(namespace.to_owned(), slice.to_owned()));
        let mut slice = removed.unwrap();
        kept.revision += 1;
        let revision = kept.revision;
        slice["metadata"]["resourceVersion"] = json!(revision.to_string());
        kept.events.push(Event { revision, kind: "DELETED", slice });
        self.inner.changed.send_replace(revision);
    }

    /// Forgets the past: whoever comes back with a revision must list again.
    pub(super) fn compact(&self, by_status: bool) {
        let mut kept = self.kept();
        kept.revision += 1;
        kept.oldest = kept.revision;
        kept.events.clear();
        kept.gone_by_status = by_status;
    }

    /// Ends the open watches in the middle of a line.
    pub(super) fn cut(&self) {
        let mut cut = self.inner.cut.lock().unwrap();
        std::mem::replace(&mut *cut, CancellationToken::new()).cancel();
    }

    pub(super) fn throttle(&self, requests: u32) {
        self.kept().throttled = requests;
    }

    /// The queries of the requests so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.kept().asked.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.cut();
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(slice: &Value) -> (String, String) {
    let of = |key: &str| slice["metadata"][key].as_str().unwrap_or_default().to_owned();
    (of("namespace"), of("name"))
}

fn status(code: StatusCode, reason: &str, message: &str, seconds: u32) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
        "details": {"retryAfterSeconds": seconds},
    });
    (code, status)
}

fn said((code, status): (StatusCode, Value)) -> Response {
    (code, Json(status)).into_response()
}

fn expired() -> (StatusCode, Value) {
    status(StatusCode::GONE, "Expired", "too old resource version", 0)
}

async fn answer(
    State(inner): State<Arc<Inner>>,
    namespace: Option<String>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    if bearer != Some(&format!("Bearer {TOKEN}")) {
        return said(status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized", 0));
    }
    let mut kept = inner.kept();
    let limit = asked.limit.map_or("-".into(), |limit| limit.to_string());
    let at = asked.resource_version.clone().unwrap_or_default();
    let kind = if asked.watch == Some(true) { "watch" } else { "list" };
    kept.asked.push(format!("{kind} limit={limit} at={at}"));
    if kept.throttled > 0 {
        kept.throttled -= 1;
        let text = "too many requests, please try again later";
        let mut answer = said(status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", text, 1));
        answer.headers_mut().insert("retry-after", "1".parse().unwrap());
        return answer;
    }
    let selector = asked.label_selector.clone();
    let matches = move |slice: &Value| {
        let of = namespace.as_deref().is_none_or(|it| slice["metadata"]["namespace"] == it);
        let selected = selector.as_deref().is_none_or(|selector| {
            let (key, value) = selector.split_once('=').unwrap();
            slice["metadata"]["labels"][key] == value
        });
        of && selected
    };
    if asked.watch == Some(true) {
        let since: u64 = at.parse().unwrap_or(0);
        let (too_old, by_status) = (since < kept.oldest, kept.gone_by_status);
        drop(kept);
        return match too_old {
            true if by_status => said(expired()),
            true => line(&json!({"type": "ERROR", "object": expired().1})).into_response(),
            false => watching(inner, since, &asked, matches),
        };
    }
    // A page is of the revision at which the listing began.
    let (revision, from) = match &asked.more {
        None => (kept.revision, 0),
        Some(more) => {
            let (revision, from) = more.split_once(':').unwrap();
            (revision.parse().unwrap(), from.parse().unwrap())
        }
    };
    if revision < kept.oldest {
        return said(expired());
    }
    let all: Vec<&Value> = kept.slices.values().filter(|slice| matches(slice)).collect();
    let limit = asked.limit.unwrap_or(usize::MAX);
    let page: Vec<Value> = all.iter().skip(from).take(limit).map(|it| (*it).clone()).collect();
    let next = from + page.len();
    let more = if next < all.len() { format!("{revision}:{next}") } else { String::new() };
    Json(json!({
        "kind": "EndpointSliceList",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": revision.to_string(), "continue": more},
        "items": page,
    }))
    .into_response()
}

fn line(event: &Value) -> String {
    format!("{event}\n")
}

/// The events from a revision on, in pieces that end in the middle of lines.
fn watching(
    inner: Arc<Inner>,
    since: u64,
    asked: &Asked,
    matches: impl Fn(&Value) -> bool + Send + 'static,
) -> Response {
    let (pieces, body) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(16);
    let cut = inner.cut.lock().unwrap().clone();
    let ends =
        tokio::time::Instant::now() + Duration::from_secs(asked.timeout_seconds.unwrap_or(300));
    let bookmarks = asked.allow_watch_bookmarks == Some(true);
    let mut changed = inner.changed.subscribe();
    let work = async move {
        let mut at = since;
        loop {
            let (events, revision): (Vec<Event>, u64) = {
                let kept = inner.kept();
                let newer = kept.events.iter();
                let newer = newer.filter(|it| it.revision > at && matches(&it.slice));
                (newer.cloned().collect(), kept.revision)
            };
            for event in &events {
                let text = line(&json!({"type": event.kind, "object": event.slice}));
                let (first, second) = text.split_at(text.len() / 2);
                for piece in [first, second] {
                    let piece = Bytes::copy_from_slice(piece.as_bytes());
                    if pieces.send(Ok(piece)).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            }
            at = revision;
            tokio::select! {
                news = changed.changed() => if news.is_err() { return },
                () = tokio::time::sleep(BOOKMARKS), if bookmarks => {
                    let mark = json!({"type": "BOOKMARK", "object": {
                        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                        "metadata": {"resourceVersion": at.to_string()},
                    }});
                    if pieces.send(Ok(line(&mark).into())).await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(ends) => return,
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = cut.cancelled() => {}
            () = work => {}
        }
    });
    Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body)).into_response()
}
