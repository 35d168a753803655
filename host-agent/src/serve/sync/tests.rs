//! The Watch stream, first the cursor alone, then over a real socket with a real client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use pintle_contract::{
    Applied, BreakerState, Endpoint, Patch, Report, ServiceReport, Table, Transition, Up,
};
use pintle_state::{Patched, Service};
use proptest::prelude::*;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tonic::client::Grpc as Client;
use tonic::transport::{Channel, Endpoint as Target};

use super::fence::Fenced;
use super::flow::{BURST, FLOW, Flow};
use super::*;
use crate::link::Reported;
use crate::serve::eds::Eds;
use crate::serve::gate::TOKEN_HEADER;
use crate::serve::quota::Quotas;
use crate::serve::recall::Recall;
use crate::serve::socket::{Socket, SocketOptions};
use crate::serve::transport::{IDLE_WITHIN, Proxies};
use crate::updates::Updates;

fn version(sequence: u64) -> Version {
    Version { epoch: 9, sequence }
}

fn service(name: &str, at: u64) -> Arc<Service> {
    let table = Table {
        service: name.to_owned(),
        version: version(at),
        endpoints: vec![Endpoint::new("1", ([10, 0, 0, 1], 80).into())],
        policy: String::new(),
    };
    Arc::new(Service::of(table))
}

/// Services with the sequence of their last change; what is gone with that of its removal.
fn snapshot(sequence: u64, services: &[(&str, u64)], gone: &[(&str, u64)]) -> Snapshot {
    Snapshot {
        version: version(sequence),
        services: services.iter().map(|(name, at)| service(name, *at)).collect(),
        gone: Arc::new(gone.iter().map(|(name, at)| ((*name).to_owned(), version(*at))).collect()),
        complete_since: version(2),
        ..Snapshot::default()
    }
}

/// `+name@sequence`, `-name@sequence`.
fn show(frame: &[u8]) -> String {
    match Down::decode(frame).unwrap() {
        Down::Table(table) => format!("+{}@{}", table.service, table.version.sequence),
        Down::Remove(removed) => format!("-{}@{}", removed.service, removed.version.sequence),
        Down::InitialEnd(initial) => format!("end@{}", initial.version.sequence),
        Down::Heartbeat(version) => format!("beat@{}", version.sequence),
        Down::Patch(patch) => format!("~{}@{}", patch.service, patch.version.sequence),
    }
}

fn drain(cursor: &mut Cursor) -> Vec<String> {
    std::iter::from_fn(|| cursor.next_frame()).map(|frame| show(&frame)).collect()
}

#[test]
fn a_reader_is_sent_what_it_lacks() {
    let now = || snapshot(9, &[("a", 3), ("b", 9), ("c", 5)], &[("d", 7), ("e", 2)]);
    let all = vec!["-e@2", "+a@3", "+c@5", "-d@7", "+b@9"];
    for (name, have, expect) in [
        ("nothing", Version::default(), vec!["+a@3", "+c@5", "+b@9"]),
        ("all", version(9), vec![]),
        ("some", version(5), vec!["-d@7", "+b@9"]),
        ("older than removals are remembered", version(1), all.clone()),
        ("newer than there is", version(10), all.clone()),
        ("another epoch", Version { epoch: 8, sequence: 9 }, all),
    ] {
        let mut cursor = Cursor::new(have, Schema::Two, Arc::new(now()));
        assert_eq!(drain(&mut cursor), expect, "{name}");
        assert!(cursor.is_complete());
        assert_eq!(cursor.reached(), version(9), "{name}");
    }
}

#[test]
fn who_holds_the_table_before_and_reads_patches_is_sent_what_changed() {
    let (from, to) = (version(3), version(5));
    let gone = vec!["2".to_owned()];
    let patch = Patch { service: "a".into(), from, version: to, endpoints: Vec::new(), gone };
    let patch = Some(Patched { from, frame: Down::Patch(patch).encode() });
    let patched = Arc::new(Service { patch, ..Service::clone(&service("a", 5)) });
    for (schema, held, expect) in
        [(Schema::Two, 3, "~a@5"), (Schema::One, 3, "+a@5"), (Schema::Two, 4, "+a@5")]
    {
        let before = Arc::new(snapshot(held, &[("a", held)], &[]));
        let mut cursor = Cursor::new(version(held), schema, before);
        let mut next = snapshot(5, &[], &[]);
        next.services.insert(Arc::clone(&patched));
        cursor.advance(Arc::new(next));
        assert_eq!(drain(&mut cursor), [expect]);
    }
}

#[test]
fn what_is_superseded_while_it_waits_is_not_sent() {
    let mut cursor = Cursor::new(
        Version::default(),
        Schema::Two,
        Arc::new(snapshot(4, &[("a", 2), ("b", 3), ("c", 4)], &[])),
    );
    assert_eq!(show(&cursor.next_frame().unwrap()), "+a@2");
    cursor.advance(Arc::new(snapshot(7, &[("a", 5), ("b", 7)], &[("c", 6)])));
    assert_eq!(cursor.reached(), version(2));
    assert_eq!(drain(&mut cursor), ["+a@5", "+b@7"], "c was never sent");
    cursor.advance(Arc::new(snapshot(8, &[("b", 7)], &[("a", 8), ("c", 6)])));
    assert_eq!(drain(&mut cursor), ["-a@8"]);
    cursor.advance(Arc::new(snapshot(7, &[("a", 5), ("b", 7)], &[])));
    assert_eq!(drain(&mut cursor), Vec::<String>::new(), "never back");
}

#[test]
fn a_reader_that_wants_some_is_sent_those_and_what_becomes_of_them() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let ask = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let now = Arc::new(snapshot(9, &[("a", 3), ("b", 9), ("c", 5)], &[]));
    let mut cursor = Cursor::lazy(version(6), ask(&["a", "gone"]), Schema::Three, now);
    cursor.want(set(&["c", "later"]));
    assert_eq!(drain(&mut cursor), ["+c@5", "-gone@9"], "a is held as it is, b not wanted");
    assert_eq!((cursor.reached(), cursor.told()), (version(9), version(9)));
    let next = |at, more: &[(&'static str, u64)]| {
        let all = [&[("a", 10), ("b", 11), ("c", 5)], more].concat();
        Arc::new(snapshot(at, &all, &[]))
    };
    cursor.advance(next(12, &[("later", 12)]));
    assert_eq!(drain(&mut cursor), ["+a@10", "+later@12"]);
    cursor.advance(next(13, &[("later", 12), ("x", 13)]));
    assert!(cursor.is_complete(), "of x it hears nothing");
    assert_eq!((cursor.reached(), cursor.told()), (version(13), version(12)));
    cursor.ask(ask(&["b", "a", "nobody"]));
    assert_eq!(drain(&mut cursor), ["+b@11", "-nobody@13"], "a is there already");
    cursor.advance(next(15, &[("nobody", 14), ("b", 15)]));
    assert_eq!(drain(&mut cursor), ["+b@15", "-later@15"], "nobody is forgotten");
    cursor.set_all(true);
    assert_eq!(drain(&mut cursor), ["+nobody@14"], "all");
    cursor.set_all(false);
    cursor.advance(next(17, &[("nobody", 16), ("y", 17)]));
    assert_eq!(drain(&mut cursor), ["+nobody@16"], "what it was sent, and no more");
}

#[test]
fn who_asks_for_more_than_it_reads_is_owed_a_bounded_number_of_answers() {
    let now = Arc::new(snapshot(9, &[("a", 3)], &[]));
    let mut cursor = Cursor::lazy(version(9), Vec::new(), Schema::Three, now);
    for round in 0..100 {
        cursor.ask((0..100).map(|n| format!("made-up-{round}-{n}")).collect());
    }
    cursor.ask(vec!["a".to_owned()]);
    let told = drain(&mut cursor);
    assert_eq!(told.len(), 1_025);
    assert_eq!(told.first().map(String::as_str), Some("+a@3"), "what is there is told");
}

#[test]
fn a_reader_that_cannot_go_on_is_sent_anew_what_it_held() {
    let held = ["a", "gone"].map(ToOwned::to_owned).to_vec();
    let now = Arc::new(snapshot(9, &[("a", 3), ("b", 9)], &[]));
    let mut cursor = Cursor::lazy(version(1), held, Schema::Three, now);
    assert_eq!(drain(&mut cursor), ["+a@3", "-gone@9"]);
    assert!(cursor.initial().full);
}

proptest! {
    /// A reader whose stream breaks anywhere, any number of times, and who resumes from the version
    /// it was sent last, always ends with exactly the newest tables.
    #[test]
    fn a_reader_that_resumes_ends_with_the_newest_state(
        changes in prop::collection::vec((0u8..5, any::<bool>(), 0usize..4, any::<bool>()), 1..60),
    ) {
        let mut services: BTreeMap<String, u64> = BTreeMap::new();
        let mut gone: BTreeMap<String, u64> = BTreeMap::new();
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        let mut reached = Version::default();
        let make = |at: u64, services: &BTreeMap<String, u64>, gone: &BTreeMap<String, u64>| {
            let services: Vec<_> = services.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            let gone: Vec<_> = gone.iter().map(|(n, v)| (n.as_str(), *v)).collect();
            Arc::new(snapshot(at, &services, &gone))
        };
        let mut cursor = Cursor::new(reached, Schema::Two, make(1, &services, &gone));
        let mut take = |cursor: &mut Cursor, count: usize| {
            for _ in 0..count {
                let Some(frame) = cursor.next_frame() else { break };
                match Down::decode(&frame).unwrap() {
                    Down::Table(table) => {
                        let before = held.insert(table.service, table.version.sequence);
                        assert!(before < Some(table.version.sequence), "went back");
                    }
                    Down::Remove(removed) => { held.remove(&removed.service); }
                    _ => unreachable!(),
                }
            }
            held.clone()
        };
        for (at, (which, removed, reads, breaks)) in (2u64..).zip(changes) {
            let name = format!("s{which}");
            if removed {
                if services.remove(&name).is_some() {
                    gone.insert(name, at);
                }
            } else {
                gone.remove(&name);
                services.insert(name, at);
            }
            let now = make(at, &services, &gone);
            if breaks {
                reached = reached.max(cursor.reached());
                cursor = Cursor::new(cursor.reached(), Schema::Two, now);
            } else {
                cursor.advance(now);
            }
            take(&mut cursor, reads);
        }
        prop_assert_eq!(take(&mut cursor, usize::MAX), services);
    }
}

#[test]
fn a_flood_is_slowed_and_ordinary_traffic_is_not() {
    let start = Instant::now();
    let mut flow = Flow::new(FLOW, BURST, start);
    for second in 0..60 {
        for _ in 0..500 {
            let now = start + Duration::from_secs(second);
            assert_eq!(flow.pay(2_000, now), None);
        }
    }
    let now = start + Duration::from_secs(100);
    let mut waits = Vec::new();
    for _ in 0..BURST + FLOW {
        waits.extend(flow.pay(100, now));
    }
    assert_eq!(waits.last(), Some(&(now + Duration::from_secs(1))));
    let mut large = Flow::new(FLOW, BURST, start);
    assert!((0..20).any(|_| large.pay(8 << 20, start).is_some()));
}

#[test]
fn the_highest_fence_holds_the_stream() {
    let fences = Fences::default();
    let first = fences.take("p/7", 3).unwrap();
    assert_eq!(fences.take("p/7", 2).unwrap_err(), Fenced { held: 3 });
    let again = fences.take("p/7", 3).unwrap();
    assert!(first.superseded.is_cancelled(), "the same leader came back");
    drop(first);
    assert_eq!(fences.take("p/7", 1).unwrap_err(), Fenced { held: 3 });
    let other = fences.take("p/8", 1).unwrap();
    drop(again);
    assert!(fences.take("p/7", 1).is_ok(), "a restarted Envoy begins anew");
    assert!(!other.superseded.is_cancelled());
}

/// An agent's proxy side on a socket of its own, without sources.
pub(crate) struct Agent {
    dir: tempfile::TempDir,
    snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) fleet: Arc<Fleet>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), crate::serve::transport::ServeError>>,
    _reported: mpsc::Receiver<Reported>,
}

impl Agent {
    pub(crate) async fn start(first: Snapshot) -> Self {
        Self::sparing(first, usize::MAX).await
    }

    /// One that sends of more services than these what is wanted.
    async fn sparing(first: Snapshot, all_up_to: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, rx) = watch::channel(Arc::new(first));
        let (outgoing, reported) = mpsc::channel(64);
        let fleet = Arc::new(Fleet::new(broadcast::channel(64).0, outgoing));
        fleet.published(&rx.borrow(), When::now());
        let stop = CancellationToken::new();
        let interests = Interests::new(all_up_to);
        let eds = Eds::new(rx.clone(), Arc::clone(&fleet), Recall::default(), stop.clone());
        let (updates, recall) = (Updates::nowhere(), Recall::default());
        let sync = Sync::new(rx, Arc::clone(&fleet), updates, recall, stop.clone());
        let proxies = Proxies {
            socket: Socket::bind(SocketOptions::at(dir.path().join("agent.sock"))).unwrap(),
            tcp: None,
            sync: sync.sparing(interests.clone()),
            eds: eds.noting(interests),
            fleet: Arc::clone(&fleet),
            quotas: Quotas::new(512),
        };
        let server = tokio::spawn(proxies.serve(stop.clone()));
        Self { dir, snapshots, fleet, stop, server, _reported: reported }
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.fleet.published(&snapshot, When::now());
        self.snapshots.send_replace(snapshot);
    }

    pub(crate) async fn channel(&self) -> Channel {
        let path = self.dir.path().join("agent.sock");
        Target::from_static("http://agent")
            .connect_with_connector(tower_connector(path))
            .await
            .unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.server).await.unwrap().unwrap().unwrap();
    }

    async fn watch(&self, hello: Hello) -> Stream {
        let stream = self.open().await;
        stream.send(&Up::Hello(hello)).await;
        stream
    }

    async fn open(&self) -> Stream {
        self.open_with("").await.unwrap()
    }

    async fn open_with(&self, token: &'static str) -> Result<Stream, Status> {
        self.open_reading(token, "").await
    }

    async fn open_reading(
        &self,
        token: &'static str,
        reads: &'static str,
    ) -> Result<Stream, Status> {
        let (up, rx) = mpsc::channel(16);
        let mut client = Client::new(self.channel().await);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/pintle.v1.Sync/Watch");
        let mut request = Request::new(ReceiverStream::new(rx));
        if !token.is_empty() {
            let value = tonic::metadata::MetadataValue::from_static(token);
            request.metadata_mut().insert(TOKEN_HEADER, value);
        }
        if !reads.is_empty() {
            let value = tonic::metadata::MetadataValue::from_static(reads);
            request.metadata_mut().insert(Schema::HEADER, value);
        }
        let response = client.streaming(request, path, FrameCodec).await?;
        Ok(Stream { up, down: response.into_inner() })
    }
}

fn tower_connector(
    path: std::path::PathBuf,
) -> impl tonic::codegen::Service<
    http::Uri,
    Response = TokioIo<UnixStream>,
    Error = std::io::Error,
    Future = BoxFuture<std::io::Result<TokioIo<UnixStream>>>,
> + Send {
    Connector(path)
}

struct Connector(std::path::PathBuf);

impl tonic::codegen::Service<http::Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<std::io::Result<TokioIo<UnixStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

const SOON: Duration = Duration::from_secs(20);

struct Stream {
    up: mpsc::Sender<Bytes>,
    down: Streaming<Bytes>,
}

impl Stream {
    async fn send(&self, up: &Up) {
        self.up.send(up.encode().into()).await.unwrap();
    }

    /// The next frame that is no heartbeat.
    async fn next(&mut self) -> String {
        loop {
            let frame = timeout(SOON, self.down.message()).await.unwrap();
            let text = show(&frame.unwrap().unwrap());
            if !text.starts_with("beat") {
                return text;
            }
        }
    }

    async fn up_to(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            all.push(self.next().await);
            if all.last().is_some_and(|text| text == last) {
                return all;
            }
        }
    }

    async fn end(&mut self) -> tonic::Code {
        loop {
            match timeout(SOON, self.down.message()).await.unwrap() {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Code::Ok,
                Err(status) => return status.code(),
            }
        }
    }
}

fn hello(fence: u64, have: Version) -> Hello {
    Hello { proxy: "envoy-1".to_owned(), worker: fence, fence, have }
}

async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let met = async {
        while !check() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, met).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn full_state_then_changes_then_heartbeats() {
    let agent = Agent::start(snapshot(3, &[("a", 2), ("b", 3)], &[])).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    assert_eq!(stream.up_to("end@3").await, ["+a@2", "+b@3", "end@3"]);
    agent.publish(snapshot(4, &[("a", 2), ("b", 4)], &[]));
    assert_eq!(stream.next().await, "+b@4");
    agent.publish(snapshot(5, &[("b", 4)], &[("a", 5)]));
    assert_eq!(stream.next().await, "-a@5");
    let beat = timeout(SOON, stream.down.message()).await.unwrap();
    assert_eq!(show(&beat.unwrap().unwrap()), "beat@5");
    agent.stop().await;
}

#[tokio::test]
async fn of_many_services_a_module_that_can_ask_is_sent_what_it_wants_and_an_older_one_all() {
    let services = |more: &[(&'static str, u64)]| [&[("a", 2), ("b", 3), ("c", 3)], more].concat();
    let agent = Agent::sparing(snapshot(3, &services(&[]), &[]), 2).await;
    let mut older = agent.open_reading("", "2").await.unwrap();
    older.send(&Up::Hello(Hello { proxy: "older".into(), ..hello(1, Version::default()) })).await;
    assert_eq!(older.up_to("end@3").await, ["+a@2", "+b@3", "+c@3", "end@3"]);

    let want = |held: &[&str], services: &[&str]| {
        let [held, services] = [held, services]
            .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        Up::Want(Want { held, services })
    };
    let mut stream = agent.open_reading("", "3").await.unwrap();
    stream.send(&Up::Hello(hello(1, version(2)))).await;
    let beat = timeout(SOON, stream.down.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(Schema::of(&beat), Schema::Three, "it says that it can be asked");
    stream.send(&want(&["a"], &["c"])).await;
    assert_eq!(stream.up_to("end@3").await, ["+c@3", "end@3"]);
    stream.send(&want(&[], &["b", "nobody"])).await;
    assert_eq!([stream.next().await, stream.next().await], ["+b@3", "-nobody@3"]);

    // What nobody wants makes nobody late.
    let applied = Applied { worker: 1, workers: 1, version: version(3) };
    stream.send(&Up::Applied(applied)).await;
    agent.publish(snapshot(4, &services(&[("d", 4)]), &[]));
    let current = || {
        let all = agent.fleet.proxies(When::now());
        all.iter().any(|proxy| proxy.proxy == "envoy-1" && proxy.current)
    };
    eventually("it is current with 4", current).await;
    assert_eq!(older.next().await, "+d@4");
    agent.publish(snapshot(5, &[("a", 5)], &[]));
    assert_eq!(stream.next().await, "+a@5");
    agent.publish(snapshot(6, &[("a", 5), ("e", 6)], &[]));
    let told = stream.up_to("+e@6").await;
    assert!(!told.iter().any(|text| text.contains("-d")), "of few it is told all: {told:?}");
}

#[tokio::test]
async fn a_reader_that_has_it_all_is_sent_the_end_alone() {
    let agent = Agent::start(snapshot(3, &[("a", 2), ("b", 3)], &[])).await;
    let mut stream = agent.watch(hello(1, version(2))).await;
    assert_eq!(stream.up_to("end@3").await, ["+b@3", "end@3"]);
    let mut stream = agent.watch(hello(2, version(3))).await;
    assert_eq!(stream.next().await, "end@3");
}

#[tokio::test]
async fn before_the_first_snapshot_there_are_only_heartbeats() {
    let unconfirmed = Snapshot { version: version(0), stale: true, ..Snapshot::default() };
    let agent = Agent::start(unconfirmed).await;
    let mut stream = agent.watch(hello(1, version(7))).await;
    let beat = timeout(SOON, stream.down.message()).await.unwrap();
    assert_eq!(show(&beat.unwrap().unwrap()), "beat@0");
    agent.publish(snapshot(3, &[("a", 2)], &[]));
    assert_eq!(stream.up_to("end@3").await, ["+a@2", "end@3"]);
}

#[tokio::test]
async fn a_newer_leader_takes_the_stream_and_an_older_one_is_refused() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let mut old = agent.watch(hello(5, Version::default())).await;
    old.up_to("end@3").await;
    let mut new = agent.watch(hello(6, Version::default())).await;
    new.up_to("end@3").await;
    assert_eq!(old.end().await, tonic::Code::Aborted);
    let mut late = agent.watch(hello(5, Version::default())).await;
    assert_eq!(late.end().await, tonic::Code::FailedPrecondition);
    agent.publish(snapshot(4, &[("a", 4)], &[]));
    assert_eq!(new.next().await, "+a@4");
    assert_eq!(agent.fleet.view(When::now()).refused["fenced"], 1);
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_state_and_no_backlog() {
    let names: Vec<String> = (0..50).map(|i| format!("s{i:02}")).collect();
    // Tables of 300 KB, so that the transport's own buffers can't hold a generation.
    let big = |at: u64| {
        let services = names.iter().map(|name| {
            let table = Table {
                service: name.clone(),
                version: version(at),
                endpoints: (1000u16..6000)
                    .map(|i| Endpoint::new(i.to_string(), ([10, 0, 0, 1], i).into()))
                    .map(|endpoint| Endpoint { zone: "z".repeat(40), ..endpoint })
                    .collect(),
                policy: String::new(),
            };
            let service = Service::of(table);
            Arc::new(service)
        });
        Snapshot { version: version(at), services: services.collect(), ..Snapshot::default() }
    };
    let agent = Agent::start(big(3)).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    assert_eq!(stream.next().await, "+s00@3");
    for at in 4..14 {
        agent.publish(big(at));
    }
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in stream.up_to("end@13").await {
        if let Some((name, at)) = text.split_once('@') {
            seen.entry(name.to_owned()).or_default().push(at.to_owned());
        }
    }
    seen.remove("end");
    assert_eq!(seen.len(), 50);
    let frames: usize = seen.values().map(Vec::len).sum();
    assert!(seen.values().all(|ats| ats.last().is_some_and(|at| at == "13")));
    assert!(frames <= 50 + 20, "{frames} frames: at most what was on its way");
}

#[tokio::test]
async fn what_is_reported_is_counted_and_what_is_broken_is_dropped() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    stream.up_to("end@3").await;
    stream.up.send(Bytes::from_static(b"nonsense")).await.unwrap();
    let mut flipped = Up::Hello(hello(1, version(1))).encode();
    flipped[12] ^= 1;
    stream.up.send(flipped.into()).await.unwrap();
    stream.send(&Up::Hello(hello(1, version(1)))).await;
    stream
        .send(&Up::Report(Report {
            worker: 4,
            services: vec![ServiceReport {
                service: "a".to_owned(),
                panics: 17,
                ..ServiceReport::default()
            }],
            ..Report::default()
        }))
        .await;
    stream
        .send(&Up::Transition(Transition {
            service: "a".to_owned(),
            endpoint: "1".to_owned(),
            from: BreakerState::Closed,
            to: BreakerState::Open,
            reason: "5 consecutive failures".to_owned(),
            observed: true,
            at: pintle_contract::Now(5),
            until: pintle_contract::Now(6),
            trips: 1,
        }))
        .await;
    stream.send(&Up::Applied(Applied { worker: 4, workers: 1, version: version(3) })).await;
    eventually("the last of them has arrived", || {
        let view = agent.fleet.view(When::now());
        view.proxies.first().is_some_and(|proxy| proxy.current)
    })
    .await;
    let view = agent.fleet.view(When::now());
    assert_eq!(view.services["a"].panics, 17);
    assert_eq!(view.services["a"].endpoints["1"].state, BreakerState::Open);
    let refused: BTreeSet<_> = view.refused.keys().copied().collect();
    assert_eq!(refused, BTreeSet::from(["checksum", "truncated", "unexpected_hello"]));
    agent.publish(snapshot(4, &[("a", 4)], &[]));
    assert_eq!(stream.next().await, "+a@4", "the stream goes on");
}

#[tokio::test]
async fn a_stream_of_nothing_but_broken_frames_is_closed() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    let up = stream.up.clone();
    tokio::spawn(async move { while up.send(Bytes::from_static(b"x")).await.is_ok() {} });
    assert_eq!(stream.end().await, tonic::Code::InvalidArgument);
    eventually("it counts as disconnected", || !agent.fleet.view(When::now()).proxies[0].connected)
        .await;
}

#[tokio::test]
async fn a_stream_must_begin_with_a_good_hello() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let nameless = Hello { proxy: "a\u{1b}b".to_owned(), ..hello(1, version(0)) };
    for first in [
        Bytes::from_static(b"nonsense"),
        Up::Report(Report::default()).encode().into(),
        Up::Hello(nameless).encode().into(),
    ] {
        let mut stream = agent.open().await;
        stream.up.send(first).await.unwrap();
        assert_eq!(stream.end().await, tonic::Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_stream_and_nothing_else() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    stream.up_to("end@3").await;
    stream.up.send(vec![0; MAX_FRAME + 1].into()).await.unwrap();
    assert_eq!(stream.end().await, tonic::Code::OutOfRange);
    let mut stream = agent.watch(hello(1, Version::default())).await;
    assert_eq!(stream.up_to("end@3").await, ["+a@2", "end@3"]);
}

#[tokio::test]
async fn streams_end_when_the_agent_stops() {
    let agent = Agent::start(snapshot(3, &[("a", 2)], &[])).await;
    let mut stream = agent.watch(hello(1, Version::default())).await;
    stream.up_to("end@3").await;
    agent.stop().await;
    assert_eq!(stream.end().await, tonic::Code::Unavailable);
}

/// In a container every peer is process 0, and the token alone tells one Envoy from another that
/// calls itself by the same name.
#[tokio::test]
async fn a_neighbour_with_another_token_cuts_nobody_off() {
    let agent = Agent::start(snapshot(3, &[("a", 3)], &[])).await;
    let mut ours = agent.open_with("ours").await.unwrap();
    ours.send(&Up::Hello(hello(1, Version::default()))).await;
    assert_eq!(ours.up_to("end@3").await, ["+a@3", "end@3"]);
    let mut other = agent.open_with("other").await.unwrap();
    other.send(&Up::Hello(hello(9, Version::default()))).await;
    assert_eq!(other.up_to("end@3").await, ["+a@3", "end@3"]);
    agent.publish(snapshot(4, &[("a", 4)], &[]));
    assert_eq!(ours.next().await, "+a@4", "its stream goes on");
    let mut again = agent.open_with("ours").await.unwrap();
    again.send(&Up::Hello(hello(2, Version::default()))).await;
    assert_eq!(again.next().await, "+a@4");
    assert_eq!(ours.end().await, tonic::Code::Aborted, "its own successor takes it over");
    agent.stop().await;
}

#[tokio::test]
async fn silent_connections_of_one_process_are_bounded_and_hung_up_on() {
    use tokio::io::AsyncReadExt;
    let agent = Agent::start(snapshot(3, &[("a", 3)], &[])).await;
    let path = agent.dir.path().join("agent.sock");
    let mut silent = Vec::new();
    for _ in 0..70 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }
    let refused = || agent.fleet.view(When::now()).refused.get("quota_connections").copied();
    eventually("six are refused", || refused() == Some(6)).await;
    let begun = std::time::Instant::now();
    for stream in &mut silent {
        let mut bytes = Vec::new();
        // The server's settings frame may have come before the end.
        let _ = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("hung up on");
    }
    assert!(begun.elapsed() >= IDLE_WITHIN / 2, "not before they could have spoken");
    let mut stream = agent.watch(hello(1, Version::default())).await;
    assert_eq!(stream.up_to("end@3").await, ["+a@3", "end@3"]);
    sleep(IDLE_WITHIN + HEARTBEAT).await;
    agent.publish(snapshot(4, &[("a", 4)], &[]));
    assert_eq!(stream.next().await, "+a@4", "a connection with a stream stays");
    agent.stop().await;
}

#[tokio::test]
async fn streams_of_one_process_are_bounded() {
    let agent = Agent::start(snapshot(3, &[("a", 3)], &[])).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(agent.open().await);
    }
    let Err(refused) = agent.open_with("").await else { panic!("one more is let in") };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    drop(open);
    // The places come back when the server has heard of the ends.
    let mut again = Err(refused);
    for _ in 0..400 {
        again = agent.open_with("").await;
        if again.is_ok() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert!(again.is_ok());
    drop(again);
    agent.stop().await;
}
