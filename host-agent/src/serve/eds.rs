//! Endpoint discovery for Envoy itself: the hosts of its clusters, by the name of the service.
//!
//! The cluster's EDS resource name is the service's name. `StreamEndpoints`, `DeltaEndpoints` and
//! both streams of the aggregated service are answered, for endpoints, and by delta for the
//! clusters of [`super::clusters`]; a request for another type over ADS stays without an answer,
//! and Envoy goes on after its `initial_fetch_timeout`.
//!
//! `session` knows what is owed of hosts; here is the loop around it. Before the first snapshot
//! nothing is sent: an empty assignment would be obeyed at once and empty the cluster.

mod assignment;
pub mod proto;
mod refusals;
mod session;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream};
use pintle_contract::Version;
use tokio::sync::mpsc;
use tokio::sync::watch::error::RecvError;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use refusals::OfStream;
pub(crate) use refusals::{Refusal, Refusals};
pub(crate) use session::{Answer, MAX_SUBSCRIBED, RESPONSE, Session};

use super::clusters::{self, Template};
use crate::fleet::Fleet;
use crate::link::Snapshots;
use crate::serve::gate::Caller;
use crate::serve::interest::{Interests, Part};
use crate::serve::messages::Messages;
use crate::serve::quota::{Kind, Place};
use crate::serve::recall::{self, Recall};
use crate::serve::sync::is_loaded;
use crate::serve::wakes::{Wake, Wakes};
use proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use proto::envoy::service::endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryService;

/// Envoy answers at once; one that pauses its answers (while clusters warm) gets the newest state
/// after this long all the same.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A stream that has asked for nothing by then holds a place for nothing.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// How soon a peer whose quota of unanswered bytes is used up is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// The discovery services.
#[derive(Clone, Debug)]
pub(crate) struct Eds {
    snapshots: Snapshots,
    fleet: Arc<Fleet>,
    clusters: Option<Arc<Template>>,
    refusals: Refusals,
    recall: Recall,
    interests: Interests,
    wakes: Wakes,
    stop: CancellationToken,
}

/// What one stream is owed: of hosts, and of clusters.
#[derive(Debug)]
struct Owed {
    hosts: Session,
    clusters: clusters::Session,
}

impl Owed {
    const fn has_asked(&self) -> bool {
        self.hosts.has_asked() || self.clusters.has_asked()
    }

    fn subscribed(&self) -> usize {
        self.hosts.subscribed() + self.clusters.subscribed()
    }

    /// The one service whose changes concern it, if it is one.
    fn only(&self) -> Option<&str> {
        self.hosts.only().filter(|_| !self.clusters.has_asked())
    }

    const fn is_waiting(&self) -> bool {
        self.hosts.is_waiting() || self.clusters.is_waiting()
    }

    const fn stop_waiting(&mut self) {
        self.hosts.stop_waiting();
        self.clusters.stop_waiting();
    }
}

/// The two protocols differ in their messages and in nothing else.
trait Protocol: Send + 'static {
    type Request: prost::Message + Default + Send + 'static;
    type Response: Send + 'static;
    /// The id of the proxy, in a stream's first request.
    fn node(request: &Self::Request) -> Option<&str>;
    /// `clusters` or `hosts`.
    fn what(request: &Self::Request) -> &'static str;
    /// Whether a stream's first request says that Envoy holds what another agent told, or this one
    /// before `epoch`.
    fn holds(request: &Self::Request, epoch: u64) -> bool;
    fn take(owed: &mut Owed, request: Self::Request) -> Answer;
    fn respond(owed: &mut Owed, snapshot: &pintle_state::Snapshot) -> Option<Self::Response>;
}

struct StateOfTheWorld;

impl Protocol for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node(request: &DiscoveryRequest) -> Option<&str> {
        request.node.as_ref().map(|node| node.id.as_str())
    }

    fn what(request: &DiscoveryRequest) -> &'static str {
        what(&request.type_url)
    }

    /// Envoy names the version that it took last, over whatever stream.
    fn holds(request: &DiscoveryRequest, epoch: u64) -> bool {
        let held = request.version_info.parse::<Version>();
        held.map_or(!request.version_info.is_empty(), |held| held.epoch != epoch)
    }

    fn take(owed: &mut Owed, request: DiscoveryRequest) -> Answer {
        match request.type_url == clusters::TYPE_URL {
            true => Answer::Unserved("they are served with api_type: DELTA_GRPC alone"),
            false => owed.hosts.request(request),
        }
    }

    fn respond(owed: &mut Owed, now: &pintle_state::Snapshot) -> Option<DiscoveryResponse> {
        owed.hosts.respond(now)
    }
}

struct Delta;

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&str> {
        request.node.as_ref().map(|node| node.id.as_str())
    }

    fn what(request: &DeltaDiscoveryRequest) -> &'static str {
        what(&request.type_url)
    }

    /// Versions of resources are their hashes, whoever told them.
    fn holds(request: &DeltaDiscoveryRequest, _: u64) -> bool {
        !request.initial_resource_versions.is_empty()
    }

    fn take(owed: &mut Owed, request: DeltaDiscoveryRequest) -> Answer {
        match request.type_url == clusters::TYPE_URL {
            true => owed.clusters.request(request),
            false => owed.hosts.delta_request(request),
        }
    }

    /// Clusters before their hosts, as Envoy can use them.
    fn respond(owed: &mut Owed, now: &pintle_state::Snapshot) -> Option<DeltaDiscoveryResponse> {
        owed.clusters.respond(now).or_else(|| owed.hosts.respond_delta(now))
    }
}

fn what(type_url: &str) -> &'static str {
    if type_url == clusters::TYPE_URL { "clusters" } else { "hosts" }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Eds {
    /// Serves `snapshots`; `recall` says who is to wait; `stop` ends all streams.
    #[must_use]
    pub(crate) fn new(
        snapshots: Snapshots,
        fleet: Arc<Fleet>,
        recall: Recall,
        stop: CancellationToken,
    ) -> Self {
        Self {
            snapshots,
            fleet,
            clusters: None,
            refusals: Refusals::default(),
            recall,
            interests: Interests::new(usize::MAX),
            wakes: Wakes::default(),
            stop,
        }
    }

    /// Notes there what the proxies ask for.
    #[must_use]
    pub(crate) fn noting(self, interests: Interests) -> Self {
        Self { interests, ..self }
    }

    /// What Envoys have refused.
    pub(crate) const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Wakes the streams whose service has changed, for ever: that snapshots end is for the one to
    /// say who published them.
    pub(crate) fn wake(&self) -> impl Future<Output = ()> + Send + use<> {
        self.wakes.clone().follow(self.snapshots.clone()).then(|()| std::future::pending())
    }

    /// Serves clusters as well, where there is a template of them.
    #[must_use]
    pub(crate) fn with_clusters(self, template: Option<Template>) -> Self {
        Self { clusters: template.map(Arc::new), ..self }
    }

    fn serve<P: Protocol>(
        &self,
        request: Request<Streaming<P::Request>>,
    ) -> Response<Responses<P::Response>> {
        let caller = request.extensions().get().cloned().unwrap_or_else(Caller::unknown);
        let messages = request.extensions().get::<Messages>().cloned();
        let (tx, rx) = mpsc::channel(1);
        let eds = self.clone();
        tokio::spawn(async move {
            if let Err(status) = eds.run::<P>(&caller, request.into_inner(), messages, &tx).await {
                let peer = &caller.peer;
                tracing::debug!(%peer, code = ?status.code(), "discovery stream ends");
                let _ = tx.try_send(Err(status));
            }
        });
        Response::new(Box::pin(ReceiverStream::new(rx)))
    }

    async fn run<P: Protocol>(
        &self,
        caller: &Caller,
        mut incoming: Streaming<P::Request>,
        messages: Option<Messages>,
        tx: &mpsc::Sender<Result<P::Response, Status>>,
    ) -> Result<(), Status> {
        let mut snapshots = self.snapshots.clone();
        let clusters = clusters::Session::new(self.clusters.clone());
        let mut session = Owed { hosts: Session::default(), clusters };
        let refusals = self.refusals.of(caller.peer.to_string());
        let mut names = caller.take(Kind::Names, 0)?;
        let (mut part, mut noted) = (Part::default(), true);
        let mut unanswered: Option<Place> = None;
        let began = Instant::now();
        let mut deadline = began + REQUEST_WITHIN;
        let mut holds = false;
        let mut wake: Option<Wake> = None;
        loop {
            wake.as_mut().map(Wake::reset);
            let now = Arc::clone(&snapshots.borrow_and_update());
            holds = holds && (!is_loaded(&now) || self.recall.holds(began, &now, Instant::now()));
            if !session.is_waiting() {
                unanswered = caller.take(Kind::Unanswered, RESPONSE).ok();
            }
            let full = unanswered.is_none();
            while !full
                && !holds
                && let Some(response) = P::respond(&mut session, &now)
            {
                deadline = Instant::now() + ANSWER_WITHIN;
                tokio::select! {
                    sent = tx.send(Ok(response)) => {
                        sent.map_err(|_| Status::cancelled("the proxy left"))?;
                    }
                    () = self.stop.cancelled() => return Err(stopping()),
                }
            }
            if !session.is_waiting() {
                unanswered = None;
            }
            // A stream of one service does not hear of others, whose number decides whether it
            // counts.
            if !noted && (session.only().is_some() || self.interests.count_in(&now)) {
                part.set(session.hosts.names());
                noted = true;
            }
            // A stream that waits for long keeps nothing of what was.
            let epoch = now.version.epoch;
            drop(now);
            let silent = !session.has_asked();
            tokio::select! {
                request = incoming.message() => match request? {
                    Some(request) => {
                        holds |= silent && P::holds(&request, epoch);
                        part.begin(&self.interests, P::node(&request));
                        self.take::<P>(&refusals, &mut session, request);
                        names.resize(session.subscribed())?;
                        noted = false;
                        if wake.as_ref().map(Wake::service) != session.only() {
                            wake = session.only().map(|service| self.wakes.of(service));
                        }
                        if let Some(messages) = messages.as_ref().filter(|it| it.was_large()) {
                            incoming = messages.reader();
                        }
                    }
                    None => return Ok(()),
                },
                changed = next(&mut snapshots, wake.as_mut()) => changed.map_err(|_| stopping())?,
                () = sleep_until(deadline), if session.is_waiting() => session.stop_waiting(),
                () = sleep_until(deadline), if silent => {
                    return Err(Status::deadline_exceeded("no request came"));
                }
                () = sleep(AGAIN), if full => {}
                () = sleep(recall::AGAIN), if holds => {}
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    fn take<P: Protocol>(&self, refusals: &OfStream, owed: &mut Owed, request: P::Request) {
        let what = P::what(&request);
        match P::take(owed, request) {
            Answer::None => {}
            Answer::Ack => refusals.taken(what),
            Answer::Nack(error) => {
                self.fleet.refused("eds_nack");
                tracing::warn!(
                    peer = refusals.peer(),
                    what,
                    error,
                    "Envoy refused what it was sent"
                );
                refusals.refused(what, error);
            }
            Answer::Unserved(why) => {
                self.fleet.refused("eds_type");
                tracing::warn!(peer = refusals.peer(), why, "Envoy asks for clusters in vain");
                refusals.refused(what, why.to_owned());
            }
            Answer::Foreign => self.fleet.refused("eds_type"),
        }
    }
}

/// Waits for a change that concerns the stream.
async fn next(snapshots: &mut Snapshots, wake: Option<&mut Wake>) -> Result<(), RecvError> {
    match wake {
        Some(wake) => wake.changed().await,
        None => snapshots.changed().await,
    }
}

fn stopping() -> Status {
    Status::unavailable("the agent stops")
}

#[tonic::async_trait]
impl EndpointDiscoveryService for Eds {
    type StreamEndpointsStream = Responses<DiscoveryResponse>;
    type DeltaEndpointsStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_endpoints(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamEndpointsStream>, Status> {
        Ok(self.serve::<StateOfTheWorld>(request))
    }

    async fn delta_endpoints(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaEndpointsStream>, Status> {
        Ok(self.serve::<Delta>(request))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Eds {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(self.serve::<StateOfTheWorld>(request))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Ok(self.serve::<Delta>(request))
    }
}

#[cfg(test)]
mod tests;
