//! A kind of traffic: a piece of configuration, a drive, and what must then be in the books.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::Request;
use pintle_tests::http::{self, Reply};
use pintle_tests::{EnvoyConfig, assert_eventually};

use crate::quic::Quic;
use crate::upstream::{Entry, Said, Upstream};

/// Changes the shipped configuration for a row, whose upstreams are there already.
type Configure = dyn Fn(EnvoyConfig, &[Upstream]) -> EnvoyConfig + Send + Sync;

/// Whether Envoy goes where the module says, and what is then known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// It does.
    Always,
    /// Some attempts went nobody knows where, or ended nobody knows how: booked and unknown are
    /// all.
    Unknown,
    /// To another endpoint of the table, which is booked, and counted as not followed.
    Elsewhere,
    /// To a host that is in no table: none of it is booked, and all of it counted.
    Strays,
}

/// One kind. Its name is the service, the cluster and the authority of its requests.
pub struct Row {
    pub name: &'static str,
    /// The row of TRAFFIC.md that it is an example of; 0 for what always held.
    pub traffic: u8,
    /// Upstreams that are registered.
    pub endpoints: usize,
    /// The metadata `version` of those, in their order.
    pub versions: &'static [&'static str],
    /// Upstreams behind them that are not.
    pub strays: usize,
    pub configure: Box<Configure>,
    pub drive: Box<dyn Fn(Site) -> BoxFuture<'static, ()> + Send + Sync>,
    /// Whether an entry of an upstream's log is a failure of that endpoint.
    pub failed: fn(&Entry) -> bool,
    /// Endpoints whose breakers open.
    pub opens: &'static [usize],
    pub followed: Followed,
    /// What else must hold, from the upstreams' logs.
    pub also: fn(&Site) -> Result<(), String>,
}

impl Row {
    /// One endpoint, the shipped configuration, failures as the upstream itself sees them.
    pub fn new<F>(
        name: &'static str,
        traffic: u8,
        drive: impl Fn(Site) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            name,
            traffic,
            endpoints: 1,
            versions: &[],
            strays: 0,
            configure: Box::new(|config, _| config),
            drive: Box::new(move |site| drive(site).boxed()),
            failed: |entry| entry.said == Said::Badly,
            opens: &[],
            followed: Followed::Always,
            also: |_| Ok(()),
        }
    }

    pub fn endpoints(self, endpoints: usize) -> Self {
        Self { endpoints, ..self }
    }

    pub fn configured(
        self,
        configure: impl Fn(EnvoyConfig) -> EnvoyConfig + Send + Sync + 'static,
    ) -> Self {
        Self { configure: Box::new(move |config, _| configure(config)), ..self }
    }

    /// The same with the addresses of its upstreams.
    pub fn placed(
        self,
        configure: impl Fn(EnvoyConfig, &[Upstream]) -> EnvoyConfig + Send + Sync + 'static,
    ) -> Self {
        Self { configure: Box::new(configure), ..self }
    }

    pub fn versions(self, versions: &'static [&'static str]) -> Self {
        Self { versions, ..self }
    }

    pub fn strays(self, strays: usize) -> Self {
        Self { strays, ..self }
    }

    pub fn failed(self, failed: fn(&Entry) -> bool) -> Self {
        Self { failed, ..self }
    }

    pub fn opens(self, opens: &'static [usize]) -> Self {
        Self { opens, ..self }
    }

    pub fn followed(self, followed: Followed) -> Self {
        Self { followed, ..self }
    }

    pub fn also(self, also: fn(&Site) -> Result<(), String>) -> Self {
        Self { also, ..self }
    }
}

/// Where a row is driven: its upstreams, and Envoy's two listeners.
#[derive(Clone)]
pub struct Site {
    pub name: &'static str,
    pub upstreams: Arc<Vec<Upstream>>,
    /// TCP: HTTP/1.1 and HTTP/2.
    pub tcp: SocketAddr,
    pub quic: Quic,
    registered: usize,
    sent: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
}

impl Site {
    pub fn new(row: &Row, upstreams: Vec<Upstream>, tcp: SocketAddr, quic: Quic) -> Self {
        let (name, registered) = (row.name, row.endpoints);
        Self {
            name,
            upstreams: Arc::new(upstreams),
            tcp,
            quic,
            registered,
            sent: Arc::default(),
            passed: Arc::default(),
        }
    }

    /// Its upstreams that are registered.
    pub fn endpoints(&self) -> &[Upstream] {
        &self.upstreams[..self.registered]
    }

    /// Requests so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Says that a request goes out by other means than the methods here.
    pub fn sending(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the upstreams have seen whatever was sent, one attempt a request: Envoy may have
    /// made one that nobody has read, and whoever leaves now would leave that.
    pub async fn arrived(&self) {
        let logged = || self.upstreams.iter().map(|one| one.log().len() as u64).sum::<u64>();
        let sent = self.sent();
        assert_eventually!(crate::PATIENCE, logged() >= sent, "{}: {sent} at upstreams", self.name);
    }

    /// Requests that were none of the module's.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Sends one that has a span and is in no book.
    pub async fn pass(&self, request: Request<Full<Bytes>>) -> Reply {
        self.passed.fetch_add(1, Ordering::Relaxed);
        http::send(self.tcp, request).await.expect("an answer")
    }

    /// A request for this row, to be sent by [`Site::send`].
    pub fn request(&self, method: &str, act: &str) -> Request<Full<Bytes>> {
        http::request(self.name, method, &format!("/{act}"), "").expect("a request")
    }

    /// Over HTTP/1.1.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        self.sending();
        http::send(self.tcp, request).await.expect("an answer")
    }

    /// `GET /act` over HTTP/1.1; its status.
    pub async fn get(&self, act: &str) -> u16 {
        self.send(self.request("GET", act)).await.status
    }

    /// So many of them, one after the other, each with this status.
    pub async fn gets(&self, count: usize, act: &str, status: u16) {
        for number in 0..count {
            assert_eq!(self.get(act).await, status, "{} {act} number {number}", self.name);
        }
    }
}
