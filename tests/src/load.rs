//! Load with exact books: every request that was due is one sample.
//!
//! Open loop by default. Arrivals follow the clock and not the answers, and a latency runs from the
//! moment a request was *due*, so that a stall of the proxy shows up in every request that it
//! delayed instead of in one. Connections are kept alive and opened anew when Envoy closed one
//! between requests; a request that was written and not answered whole is a failure, and none is
//! ever sent twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What to send. Built up by its methods, then [`Load::start`] or [`Load::run_for_secs`].
#[derive(Clone, Debug)]
pub struct Load {
    target: SocketAddr,
    host: String,
    path: String,
    headers: Vec<(String, String)>,
    rate: Option<f64>,
    connections: usize,
    timeout: Duration,
}

/// Load that is being sent.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    timeout: Duration,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was due (closed loop: sent).
    pub due: Instant,
    /// From then until the last byte of the answer, or the failure.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer's `x-upstream`.
    pub upstream: Option<Arc<str>>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A whole answer with this status.
    Status(u16),
    /// The connection could not be opened.
    Refused,
    /// The connection ended before the answer did.
    Broken,
    /// No whole answer in time.
    Timeout,
}

/// What happened, in the order in which requests ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// All requests.
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
struct Shared {
    load: Load,
    samples: Mutex<Vec<Sample>>,
    due: Semaphore,
    index: AtomicU64,
    began: Instant,
    stopping: AtomicBool,
}

impl Load {
    /// `GET /` to this address, 100 requests/s over 8 connections, 10 s of patience each.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            target,
            host: "pintle.test".into(),
            path: "/".into(),
            headers: Vec::new(),
            rate: Some(100.0),
            connections: 8,
            timeout: Duration::from_secs(10),
        }
    }

    /// The authority, by which routes tell services apart.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// The path.
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Open loop at so many requests per second.
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// Closed loop: each connection sends its next request when it has its answer.
    pub fn closed(mut self) -> Self {
        self.rate = None;
        self
    }

    /// How many connections: the most that can be in flight. Requests beyond it are late, and are
    /// counted with their lateness.
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count;
        self
    }

    /// How long a request may take once it is sent.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Begins sending, on the runtime of the caller.
    pub fn start(self) -> Running {
        let timeout = self.timeout;
        let connections = self.connections;
        let shared = Arc::new(Shared {
            load: self,
            samples: Mutex::default(),
            due: Semaphore::new(0),
            index: AtomicU64::new(0),
            began: Instant::now(),
            stopping: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        if let Some(rate) = shared.load.rate {
            tasks.spawn(schedule(shared.clone(), rate));
        }
        for _ in 0..connections {
            tasks.spawn(send(shared.clone()));
        }
        Running { shared, tasks, timeout }
    }

    /// Sends for so long and waits for the last answer.
    pub async fn run_for_secs(self, seconds: f64) -> Report {
        let running = self.start();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        running.stop().await
    }
}

impl Running {
    /// What has happened so far.
    pub fn report(&self) -> Report {
        Report { samples: lock(&self.shared.samples).clone() }
    }

    /// What has happened to requests that were due at or after this moment.
    pub fn since(&self, moment: Instant) -> Report {
        let samples = lock(&self.shared.samples);
        Report { samples: samples.iter().filter(|s| s.due >= moment).cloned().collect() }
    }

    /// Sends no more, waits for what is under way, and reports all of it.
    pub async fn stop(mut self) -> Report {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.due.close();
        // Each task has at most one request under way, and that one is bounded.
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(self.timeout + Duration::from_secs(5), all).await;
        self.report()
    }
}

impl Report {
    /// How many requests.
    pub fn total(&self) -> usize {
        self.samples.len()
    }

    /// How many did not end with a status below 400.
    pub fn failed(&self) -> usize {
        self.samples.iter().filter(|s| s.failed()).count()
    }

    /// How often each way to end occurred.
    pub fn outcomes(&self) -> BTreeMap<Outcome, usize> {
        count(self.samples.iter().map(|s| s.outcome))
    }

    /// How many answers each upstream gave; answers without a name are under `-`.
    pub fn by_upstream(&self) -> BTreeMap<String, usize> {
        let name = |s: &Sample| s.upstream.as_deref().unwrap_or("-").to_string();
        count(self.samples.iter().map(name))
    }

    /// The latency that a share of the requests (0..=1) stayed within; zero without any request.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut times: Vec<Duration> = self.samples.iter().map(|s| s.took).collect();
        times.sort_unstable();
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The moment at which the first answer of this upstream was whole.
    pub fn first_from(&self, upstream: &str) -> Option<Instant> {
        let ours = self.samples.iter().filter(|s| s.upstream.as_deref() == Some(upstream));
        ours.map(|s| s.due + s.took).min()
    }

    /// One line for a failure message.
    pub fn summary(&self) -> String {
        format!(
            "{} requests, {} failed, {:?}, {:?}, p50 {:?}, p99 {:?}",
            self.total(),
            self.failed(),
            self.outcomes(),
            self.by_upstream(),
            self.quantile(0.5),
            self.quantile(0.99),
        )
    }
}

impl Sample {
    /// Whether it did not end with a status below 400.
    pub fn failed(&self) -> bool {
        !matches!(self.outcome, Outcome::Status(..400))
    }
}

fn count<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// Releases requests by the clock: after a late wake-up, all that are due by now.
async fn schedule(shared: Arc<Shared>, rate: f64) {
    let mut released = 0u64;
    while !shared.stopping.load(Ordering::Relaxed) {
        let due = (shared.began.elapsed().as_secs_f64() * rate) as u64;
        shared.due.add_permits(due.saturating_sub(released) as usize);
        released = released.max(due);
        let next = shared.began + Duration::from_secs_f64((released + 1) as f64 / rate);
        tokio::time::sleep_until(next.into()).await;
    }
}

async fn send(shared: Arc<Shared>) {
    let mut connection: Option<SendRequest<Full<Bytes>>> = None;
    loop {
        let due = match shared.load.rate {
            None if shared.stopping.load(Ordering::Relaxed) => return,
            None => Instant::now(),
            Some(rate) => {
                let Ok(permit) = shared.due.acquire().await else {
                    return;
                };
                permit.forget();
                let index = shared.index.fetch_add(1, Ordering::Relaxed);
                shared.began + Duration::from_secs_f64((index + 1) as f64 / rate)
            }
        };
        let exchange = exchange(&shared.load, &mut connection);
        let (outcome, upstream) = match tokio::time::timeout(shared.load.timeout, exchange).await {
            Ok(ended) => ended,
            Err(_) => (Outcome::Timeout, None),
        };
        if !matches!(outcome, Outcome::Status(_)) {
            connection = None;
            // A refused connection costs nothing: without this, closed loops would spin.
            if shared.load.rate.is_none() {
                crate::pause().await;
            }
        }
        let took = due.elapsed();
        lock(&shared.samples).push(Sample { due, took, outcome, upstream });
    }
}

async fn exchange(
    load: &Load,
    connection: &mut Option<SendRequest<Full<Bytes>>>,
) -> (Outcome, Option<Arc<str>>) {
    // Closed by the peer while idle: nothing of this request was written yet.
    if let Some(open) = connection
        && open.ready().await.is_err()
    {
        *connection = None;
    }
    let open = match connection {
        Some(open) => open,
        None => match connect(load.target).await {
            Some(new) => connection.insert(new),
            None => return (Outcome::Refused, None),
        },
    };
    let mut request = Request::builder().uri(&load.path).header("host", &load.host);
    for (name, value) in &load.headers {
        request = request.header(name, value);
    }
    let Ok(request) = request.body(Full::default()) else {
        return (Outcome::Broken, None);
    };
    let Ok(response) = open.send_request(request).await else {
        return (Outcome::Broken, None);
    };
    let status = response.status().as_u16();
    let upstream =
        response.headers().get("x-upstream").and_then(|v| v.to_str().ok().map(Arc::from));
    let last = response.headers().get("connection").is_some_and(|v| v == "close");
    match response.into_body().collect().await {
        Ok(_) => {
            if last {
                *connection = None;
            }
            (Outcome::Status(status), upstream)
        }
        Err(_) => (Outcome::Broken, upstream),
    }
}

async fn connect(target: SocketAddr) -> Option<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(target).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    // Ends with the sender: hyper closes when no handle is left.
    tokio::spawn(connection);
    Some(sender)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
