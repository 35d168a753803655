//! `pintle.v1.Sync/Watch`: tables down to the filters, reports up from them.
//!
//! ```text
//!  up:    Hello{proxy, worker, fence, have}   Applied, Transition, Report ...
//!  down:  Table/Remove* (what changed since `have`, or all)  InitialEnd
//!         then changes; Heartbeat 1/s
//!         (a Patch in the place of a Table, where that is little and the module reads it)
//! ```
//! Of few services every proxy gets all. Of more it gets what it wants, if its module reads so:
//! what it holds already and its configuration names, what its discovery streams ask for, and what
//! requests come for.
//! ```text
//!  down:  Heartbeat of schema 3
//!  up:    Want{held, services}  and, with a first request, Want{services}
//!  down:  Table of each, or Remove where there is none
//! ```
//! A module says with the stream which schema it reads, and is told in heartbeats which one is
//! spoken. One stream per Envoy, held by its leader ([`Fences`]). Each stream is one task with a
//! writer and a reader that do not wait for each other. The writer holds a [`Cursor`] and no queue:
//! it takes a place in the transport first and chooses the frame then, so a slow reader gets the
//! newest state. The reader pays for every frame ([`flow`]), so a flood is slowed by flow control
//! at its sender. Frames that do not decode are counted by reason and dropped, and a stream of
//! nothing else is closed.

mod codec;
mod cursor;
mod fence;
mod flow;
mod wants;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use pintle_contract::{Down, Hello, MAX_FRAME, Message, Schema, Up, Version, Want};
use pintle_state::{Snapshot, Update};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use codec::FrameCodec;
pub(crate) use cursor::Cursor;
pub(crate) use fence::Fences;
use wants::Wants;

use crate::fleet::{Fleet, When};
use crate::link::Snapshots;
use crate::serve::gate::Caller;
use crate::serve::interest::{Interests, MAX_NODE};
use crate::serve::recall::{self, Recall};
use crate::updates::Updates;
use flow::Flows;

/// How often a stream with nothing to say says so. The filters take three missed ones for silence.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
/// A stream that has not said who it is by then holds a place for nothing.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Frames handed to the transport ahead of the network. More would be backlog.
const AHEAD: usize = 2;
/// Questions for services that wait to be answered. What comes beyond is not, and asked again.
const ASKED: usize = 16;
/// Services that one of them names, but for the first of a stream. A module asks for 128 a second
/// and worker.
const ASKED_AT_ONCE: usize = 256;
/// Undecodable frames on one stream before it is closed: a peer of another schema, not an accident.
const MAX_BAD: u32 = 100;
/// Proxies are brought back from a higher epoch this rarely: everything is sent anew to all of
/// them.
const OUTRUN_PACE: Duration = Duration::from_secs(2);
/// Above this no clock was: milliseconds since 1970.
const MAX_EPOCH: u64 = 1 << 50;

/// The service, to be added to a tonic server.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    snapshots: Snapshots,
    fleet: Arc<Fleet>,
    fences: Fences,
    flows: Flows,
    updates: Updates,
    recall: Recall,
    interests: Interests,
    /// When proxies were last brought back from a higher epoch.
    outran: Arc<Mutex<Option<Instant>>>,
    stop: CancellationToken,
}

impl Sync {
    /// Serves `snapshots` and hands what comes up to `fleet`; `updates` takes epochs that proxies
    /// hold and this agent has not reached; `recall` says who is to wait; `stop` ends all streams.
    #[must_use]
    pub(crate) fn new(
        snapshots: Snapshots,
        fleet: Arc<Fleet>,
        updates: Updates,
        recall: Recall,
        stop: CancellationToken,
    ) -> Self {
        Self {
            snapshots,
            fleet,
            fences: Fences::default(),
            flows: Flows::default(),
            updates,
            recall,
            interests: Interests::new(usize::MAX),
            outran: Arc::default(),
            stop,
        }
    }

    /// Sends of many services only what a proxy wants, and its discovery streams ask for.
    #[must_use]
    pub(crate) fn sparing(self, interests: Interests) -> Self {
        Self { interests, ..self }
    }

    async fn session(
        self,
        caller: Caller,
        schema: Schema,
        mut incoming: Streaming<Bytes>,
        tx: mpsc::Sender<Result<Bytes, Status>>,
    ) {
        if let Err(status) = self.watch(&caller, schema, &mut incoming, &tx).await {
            let peer = &caller.peer;
            tracing::debug!(%peer, code = ?status.code(), message = status.message(), "stream ends");
            // Room for the last word is not worth waiting for when the reader does not read.
            let _ = timeout(Duration::from_millis(100), tx.send(Err(status))).await;
        }
    }

    async fn watch(
        &self,
        caller: &Caller,
        schema: Schema,
        incoming: &mut Streaming<Bytes>,
        tx: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let hello = self.hello(incoming).await?;
        let peer = &caller.peer;
        let name = format!("{}/{}", hello.proxy, caller.identity());
        let hold = self.fences.take(&name, hello.fence).map_err(|fenced| {
            self.fleet.refused("fenced");
            Status::failed_precondition(fenced.to_string())
        })?;
        if !self.fleet.connected(&hello, schema, &peer.to_string(), When::now()) {
            return Err(Status::resource_exhausted("too many proxies"));
        }
        tracing::info!(
            proxy = hello.proxy, %peer, worker = hello.worker, fence = hello.fence,
            have = %hello.have, schema = schema as u8, "proxy connected"
        );
        let (asks, asked) = mpsc::channel(ASKED);
        let wants = Wants::new(self.interests.of(&hello.proxy), asked);
        let end = tokio::select! {
            end = self.write(&hello, schema, wants, tx) => end,
            end = self.read(caller, &hello.proxy, &asks, incoming) => end,
            () = hold.superseded.cancelled() => Err(Status::aborted("a newer leader has come")),
            () = self.stop.cancelled() => Err(Status::unavailable("the agent stops")),
        };
        self.fleet.disconnected(&hello.proxy, When::now());
        tracing::info!(proxy = hello.proxy, fence = hello.fence, "proxy disconnected");
        end
    }

    /// Brings back a proxy whose epoch is above this agent's: it was told by one whose clock was
    /// ahead, and would refuse all tables until this clock has reached that time.
    async fn outrun(
        &self,
        hello: &Hello,
        snapshots: &mut Snapshots,
    ) -> Result<Arc<Snapshot>, Status> {
        let epoch = hello.have.epoch;
        if epoch > MAX_EPOCH {
            self.fleet.refused("epoch");
            return Err(Status::invalid_argument(format!("epoch {epoch} is above {MAX_EPOCH}")));
        }
        let mut outran = self.outran.lock().await;
        let newest = Arc::clone(&snapshots.borrow_and_update());
        if newest.version.epoch >= epoch {
            return Ok(newest);
        }
        if outran.is_some_and(|at| at.elapsed() < OUTRUN_PACE) {
            self.fleet.refused("epoch");
            return Err(Status::unavailable("another proxy was brought back just now"));
        }
        *outran = Some(Instant::now());
        tracing::warn!(
            proxy = hello.proxy, have = %hello.have, version = %newest.version,
            "the proxy holds a newer epoch than this agent's; everything is published anew above it"
        );
        self.updates.apply(Update::Outrun { epoch }).await.map_err(|_| gone())?;
        Ok(Arc::clone(&snapshots.borrow_and_update()))
    }

    async fn hello(&self, incoming: &mut Streaming<Bytes>) -> Result<Hello, Status> {
        let first = tokio::select! {
            first = timeout(HELLO_WITHIN, incoming.message()) => first,
            () = self.stop.cancelled() => return Err(Status::unavailable("the agent stops")),
        };
        let first = first
            .map_err(|_| Status::deadline_exceeded("no hello"))??
            .ok_or_else(|| Status::invalid_argument("no hello"))?;
        match Up::decode(&first) {
            Ok(Up::Hello(hello)) if is_node(&hello.proxy) => Ok(hello),
            Ok(Up::Hello(_)) => {
                self.fleet.refused("node_id");
                Err(Status::invalid_argument(
                    "a node id is 1 to 512 bytes without control characters",
                ))
            }
            Ok(_) => {
                self.fleet.refused("no_hello");
                Err(Status::invalid_argument("the first message must be a hello"))
            }
            Err(error) => {
                self.fleet.refused(error.reason());
                Err(Status::invalid_argument(error.to_string()))
            }
        }
    }

    async fn write(
        &self,
        hello: &Hello,
        reads: Schema,
        mut wants: Wants,
        tx: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let mut schema = reads.min(Schema::Two);
        let mut snapshots = self.snapshots.clone();
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Before the first snapshot there is nothing true to say but that the agent lives.
        let first = loop {
            let now = Arc::clone(&snapshots.borrow_and_update());
            if is_loaded(&now) {
                break now;
            }
            tokio::select! {
                changed = snapshots.changed() => changed.map_err(|_| gone())?,
                _ = beat.tick() => heartbeat(tx, schema, Version::default()),
            }
        };
        let began = Instant::now();
        let mut first = first;
        let by_another = ![0, first.version.epoch].contains(&hello.have.epoch);
        while by_another && self.recall.holds(began, &first, Instant::now()) {
            tokio::select! {
                _ = beat.tick() => heartbeat(tx, schema, Version::default()),
                () = sleep(recall::AGAIN) => first = Arc::clone(&snapshots.borrow_and_update()),
                () = tx.closed() => return Err(left()),
            }
        }
        let first = match hello.have.epoch > first.version.epoch {
            true => self.outrun(hello, &mut snapshots).await?,
            false => first,
        };
        let is_lazy = |now: &Snapshot| reads >= Schema::Three && self.interests.count_in(now);
        let mut cursor = match is_lazy(&first) {
            false => Cursor::new(hello.have, schema, first),
            true => {
                schema = Schema::Three;
                let held = self.held(&mut wants, &mut beat, tx).await?;
                let newest = Arc::clone(&snapshots.borrow_and_update());
                let mut cursor = Cursor::lazy(hello.have, held.held, schema, newest);
                cursor.want(wants.standing(held.services));
                cursor
            }
        };
        let mut greeted = false;
        loop {
            while !cursor.is_complete() {
                let room = tokio::select! {
                    room = tx.reserve() => room.map_err(|_| left())?,
                    _ = beat.tick() => {
                        heartbeat(tx, schema, cursor.reached());
                        continue;
                    }
                };
                // Room may have been long in coming: what is sent now is chosen now.
                if snapshots.has_changed().map_err(|_| gone())? {
                    cursor.advance(Arc::clone(&snapshots.borrow_and_update()));
                }
                if let Some(want) = wants.try_next() {
                    wants.tell(&mut cursor, Some(want));
                }
                if let Some(frame) = cursor.next_frame() {
                    room.send(Ok(frame));
                }
            }
            if !greeted {
                greeted = true;
                let end = Down::InitialEnd(cursor.initial()).encode_for(schema).into();
                tx.send(Ok(end)).await.map_err(|_| left())?;
            }
            if schema == Schema::Three {
                let (sent, reached) = (cursor.told(), cursor.reached());
                self.fleet.spared(&hello.proxy, sent, reached, When::now());
            }
            tokio::select! {
                changed = snapshots.changed() => {
                    changed.map_err(|_| gone())?;
                    let newest = Arc::clone(&snapshots.borrow_and_update());
                    let lazy = is_lazy(&newest);
                    cursor.advance(newest);
                    cursor.set_all(!lazy);
                    if lazy && schema < Schema::Three {
                        schema = Schema::Three;
                        cursor.want(wants.standing(Vec::new()));
                    }
                }
                news = wants.next() => wants.tell(&mut cursor, news),
                _ = beat.tick() => heartbeat(tx, schema, cursor.reached()),
                () = tx.closed() => return Err(left()),
            }
        }
    }

    /// Says that only what is wanted is told, and hears what is held.
    async fn held(
        &self,
        wants: &mut Wants,
        beat: &mut Interval,
        tx: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<Want, Status> {
        heartbeat(tx, Schema::Three, Version::default());
        let began = Instant::now();
        loop {
            tokio::select! {
                want = wants.first(began) => {
                    return want.ok_or_else(|| Status::deadline_exceeded("no word of what is held"));
                }
                _ = beat.tick() => heartbeat(tx, Schema::Three, Version::default()),
                () = tx.closed() => return Err(left()),
                () = self.stop.cancelled() => return Err(gone()),
            }
        }
    }

    async fn read(
        &self,
        caller: &Caller,
        proxy: &str,
        asks: &mpsc::Sender<Want>,
        incoming: &mut Streaming<Bytes>,
    ) -> Result<(), Status> {
        let flow = self.flows.of(caller.owner(), Instant::now());
        let (mut bad, mut first) = (0u32, true);
        while let Some(frame) = incoming.message().await? {
            if let Some(until) = flow.pay(frame.len(), Instant::now()) {
                sleep_until(until).await;
            }
            match Up::decode(&frame) {
                Ok(Up::Want(want)) => {
                    let most = if first { usize::MAX } else { ASKED_AT_ONCE };
                    first = false;
                    let named = want.held.len().saturating_add(want.services.len());
                    if named > most || asks.try_send(want).is_err() {
                        self.fleet.refused("asked_too_much");
                    }
                }
                Ok(up) => {
                    if let Up::Report(report) = &up {
                        self.recall.heard(report, Instant::now());
                    }
                    self.fleet.received(proxy, up, When::now());
                }
                Err(error) => {
                    self.fleet.refused(error.reason());
                    bad = bad.saturating_add(1);
                    // A peer of another schema sends nothing else: a line for each says no more.
                    if bad.is_power_of_two() {
                        let bytes = frame.len();
                        tracing::warn!(proxy, %error, bytes, refused = bad, "frame refused");
                    }
                    if bad >= MAX_BAD {
                        return Err(Status::invalid_argument("too many frames refused"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the snapshot says anything yet: a source has spoken, or there was something on disk. An
/// empty one that nobody has confirmed must not be told to anybody, since it would be believed.
#[must_use]
pub(crate) fn is_loaded(snapshot: &Snapshot) -> bool {
    snapshot.version != Version::default() && (!snapshot.stale || !snapshot.services.is_empty())
}

fn is_node(id: &str) -> bool {
    (1..=MAX_NODE).contains(&id.len()) && !id.chars().any(char::is_control)
}

fn left() -> Status {
    Status::cancelled("the proxy left")
}

fn gone() -> Status {
    Status::unavailable("the agent stops")
}

/// Only when there is room: a reader with unread frames knows that the agent lives.
fn heartbeat(tx: &mpsc::Sender<Result<Bytes, Status>>, schema: Schema, version: Version) {
    let _ = tx.try_send(Ok(Down::Heartbeat(version).encode_for(schema).into()));
}

// === the tonic service around it ===

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl NamedService for Sync {
    const NAME: &'static str = "pintle.v1.Sync";
}

impl tonic::codegen::Service<http::Request<Body>> for Sync {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let watch = Watch(self.clone());
        Box::pin(async move {
            if request.uri().path() != "/pintle.v1.Sync/Watch" {
                return Ok(Status::unimplemented("there is Watch alone").into_http());
            }
            let mut grpc = Grpc::new(FrameCodec).max_decoding_message_size(MAX_FRAME);
            Ok(grpc.streaming(watch, request).await)
        })
    }
}

struct Watch(Sync);

impl StreamingService<Bytes> for Watch {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let caller = request.extensions().get().cloned().unwrap_or_else(Caller::unknown);
        let said = request.metadata().get(Schema::HEADER).and_then(|said| said.to_str().ok());
        let said = said.and_then(|said| said.parse().ok()).unwrap_or_default();
        let schema = Schema::in_common(said);
        let (tx, rx) = mpsc::channel(AHEAD);
        tokio::spawn(self.0.clone().session(caller, schema, request.into_inner(), tx));
        Box::pin(std::future::ready(Ok(Response::new(ReceiverStream::new(rx)))))
    }
}

#[cfg(test)]
pub(crate) mod tests;
