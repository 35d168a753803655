//! The discovery protocols, as Envoy would hold them: first the state machine, then over a socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pintle_contract::{Endpoint, Health, Table, Version};
use pintle_state::{Service, Snapshot};
use prost::Message;

use super::assignment::{Assignment, TYPE_URL, assignment};
use super::proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, HealthStatus};
use super::proto::envoy::service::discovery::v3::Status as RpcStatus;
use super::*;

fn version(sequence: u64) -> Version {
    Version { epoch: 1, sequence }
}

fn endpoint(id: u16, weight: u32, health: Health, zone: &str) -> Endpoint {
    Endpoint {
        weight,
        health,
        zone: zone.to_owned(),
        ..Endpoint::new(id.to_string(), ([10, 0, 0, 1], 8000 + id).into())
    }
}

fn service(name: &str, sequence: u64, endpoints: Vec<Endpoint>) -> Arc<Service> {
    Arc::new(Service {
        seen_at: SystemTime::UNIX_EPOCH,
        ..Service::of(Table {
            service: name.to_owned(),
            version: version(sequence),
            endpoints,
            policy: String::new(),
        })
    })
}

fn snapshot(sequence: u64, services: &[(&str, u64, u16)]) -> Snapshot {
    let services = services
        .iter()
        .map(|(name, version, count)| {
            let endpoints = (1..=*count).map(|id| endpoint(id, 1, Health::Healthy, "z")).collect();
            service(name, *version, endpoints)
        })
        .collect();
    Snapshot { version: version(sequence), services, ..Snapshot::default() }
}

fn ask(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        type_url: TYPE_URL.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        type_url: TYPE_URL.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn acknowledge(nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: nonce.to_owned(), ..subscribe(&[]) }
}

/// (name, number of hosts) of each resource.
fn hosts(response: &DiscoveryResponse) -> Vec<(String, usize)> {
    response
        .resources
        .iter()
        .map(|any| {
            assert_eq!(any.type_url, TYPE_URL);
            let assignment = ClusterLoadAssignment::decode(&*any.value).unwrap();
            let hosts = assignment.endpoints.iter().map(|l| l.lb_endpoints.len());
            (assignment.cluster_name, hosts.sum())
        })
        .collect()
}

fn named(expect: &[(&str, usize)]) -> Vec<(String, usize)> {
    expect.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect()
}

#[test]
fn state_of_the_world_sends_what_changed_once_it_is_acknowledged() {
    let mut session = Session::default();
    let first = snapshot(5, &[("a", 4, 2), ("b", 5, 1), ("other", 5, 1)]);
    assert_eq!(session.request(ask(&["a", "b", "nobody"], "")), Answer::None);
    let response = session.respond(&first).unwrap();
    assert_eq!(hosts(&response), named(&[("a", 2), ("b", 1)]), "unknown: omitted");
    assert_eq!(response.version_info, "1.5");
    let second = snapshot(6, &[("a", 6, 3), ("b", 5, 1)]);
    assert!(session.respond(&second).is_none(), "one on its way");
    let third = snapshot(7, &[("a", 7, 4), ("b", 5, 1)]);
    assert_eq!(session.request(ask(&["a", "b", "nobody"], &response.nonce)), Answer::Ack);
    let response = session.respond(&third).unwrap();
    assert_eq!(hosts(&response), named(&[("a", 4)]), "newest, and only it");
    session.request(ask(&["a", "b", "nobody"], &response.nonce));
    assert!(session.respond(&third).is_none());
    let fourth = snapshot(8, &[("a", 7, 4), ("b", 5, 1), ("nobody", 8, 0)]);
    let response = session.respond(&fourth).unwrap();
    assert_eq!(hosts(&response), named(&[("nobody", 0)]), "known but empty");
}

#[test]
fn a_refused_resource_is_not_repeated_until_it_changes() {
    let mut session = Session::default();
    session.request(ask(&["a"], ""));
    let first = snapshot(1, &[("a", 1, 1)]);
    let response = session.respond(&first).unwrap();
    let nack = DiscoveryRequest {
        error_detail: Some(RpcStatus { code: 3, message: "malformed".to_owned() }),
        ..ask(&["a"], &response.nonce)
    };
    assert_eq!(session.request(nack), Answer::Nack("malformed".to_owned()));
    assert!(session.respond(&first).is_none());
    assert!(session.respond(&snapshot(2, &[("a", 2, 2)])).is_some());
}

#[test]
fn an_answer_to_an_older_response_changes_nothing() {
    let mut session = Session::default();
    session.request(ask(&["a"], ""));
    session.respond(&snapshot(1, &[("a", 1, 1)])).unwrap();
    assert_eq!(session.request(ask(&["b"], "0")), Answer::None);
    assert!(session.is_waiting());
    assert_eq!(session.request(ask(&["a"], "1")), Answer::Ack);
}

#[test]
fn a_resource_asked_for_again_is_sent_again() {
    let mut session = Session::default();
    let now = snapshot(1, &[("a", 1, 1), ("b", 1, 1)]);
    session.request(ask(&["a", "b"], ""));
    session.respond(&now).unwrap();
    session.request(ask(&["b"], "1"));
    assert!(session.respond(&now).is_none());
    session.request(ask(&["a", "b"], "1"));
    assert_eq!(hosts(&session.respond(&now).unwrap()), named(&[("a", 1)]));
}

#[test]
fn nothing_is_sent_before_the_first_snapshot() {
    let mut session = Session::default();
    session.request(ask(&["a"], ""));
    assert!(session.respond(&Snapshot::default()).is_none());
    let mut session = Session::default();
    session.delta_request(subscribe(&["a"]));
    assert!(session.respond_delta(&Snapshot::default()).is_none());
}

#[test]
fn a_service_that_is_gone_leaves_no_hosts_behind() {
    let mut session = Session::default();
    session.request(ask(&["a"], ""));
    session.respond(&snapshot(1, &[("a", 1, 2)])).unwrap();
    session.request(ask(&["a"], "1"));
    let response = session.respond(&snapshot(2, &[])).unwrap();
    assert_eq!(hosts(&response), named(&[("a", 0)]));
    session.request(ask(&["a"], "2"));
    assert!(session.respond(&snapshot(3, &[])).is_none());
    let response = session.respond(&snapshot(4, &[("a", 4, 1)])).unwrap();
    assert_eq!(hosts(&response), named(&[("a", 1)]));
}

#[test]
fn delta_names_what_is_not_there_and_forgets_what_is_unsubscribed() {
    let mut session = Session::default();
    session.delta_request(subscribe(&["a", "nobody"]));
    let now = snapshot(1, &[("a", 1, 1), ("b", 1, 1)]);
    let response = session.respond_delta(&now).unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["a"]);
    assert_eq!(response.removed_resources, ["nobody"]);
    assert_eq!(session.delta_request(acknowledge(&response.nonce)), Answer::Ack);
    assert!(session.respond_delta(&now).is_none());
    session.delta_request(DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["a".to_owned()],
        ..subscribe(&["b"])
    });
    let later = snapshot(2, &[("a", 2, 3), ("b", 1, 1), ("nobody", 2, 1)]);
    let response = session.respond_delta(&later).unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["b", "nobody"]);
}

#[test]
fn a_reconnected_delta_client_is_sent_only_what_it_lacks() {
    let now = snapshot(1, &[("a", 1, 1), ("b", 1, 1)]);
    let mut session = Session::default();
    session.delta_request(subscribe(&["a", "b"]));
    let response = session.respond_delta(&now).unwrap();
    let mut again = subscribe(&["a", "b"]);
    again.initial_resource_versions =
        response.resources.into_iter().map(|resource| (resource.name, resource.version)).collect();
    let mut session = Session::default();
    session.delta_request(again);
    assert!(session.respond_delta(&now).is_none());
    let later = snapshot(9, &[("a", 9, 2), ("b", 1, 1)]);
    let response = session.respond_delta(&later).unwrap();
    assert_eq!(response.resources[0].name, "a");
    assert_eq!(response.resources.len(), 1);
}

#[test]
fn a_table_that_changed_without_its_hosts_is_not_sent() {
    let mut session = Session::default();
    session.request(ask(&["a"], ""));
    session.respond(&snapshot(1, &[("a", 1, 2)])).unwrap();
    session.request(ask(&["a"], "1"));
    assert!(session.respond(&snapshot(2, &[("a", 2, 2)])).is_none());
}

#[test]
fn other_types_are_left_unanswered() {
    let mut session = Session::default();
    let clusters = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..ask(&["a"], "")
    };
    assert_eq!(session.request(clusters), Answer::Foreign);
    assert!(session.respond(&snapshot(1, &[("a", 1, 1)])).is_none());
}

#[test]
fn health_weight_and_zone_are_said_in_envoys_terms() {
    use HealthStatus::{Draining, Healthy, Unhealthy};
    let table = Table {
        service: "a".to_owned(),
        version: version(1),
        endpoints: vec![
            endpoint(1, 7, Health::Healthy, "east"),
            endpoint(2, 0, Health::Healthy, "east"),
            endpoint(3, 1, Health::Unhealthy, "west"),
            endpoint(4, 0, Health::Unhealthy, "west"),
            endpoint(5, 2, Health::Draining, ""),
            Endpoint {
                metadata: [("region".to_owned(), "eu".to_owned())].into(),
                ..endpoint(6, 3, Health::Healthy, "east")
            },
            Endpoint { id: "7".to_owned(), ..endpoint(1, 9, Health::Healthy, "east") },
        ],
        policy: String::new(),
    };
    let all = assignment(&table);
    let mut rows = Vec::new();
    for locality in &all.endpoints {
        let zone = locality.locality.as_ref().unwrap();
        for host in &locality.lb_endpoints {
            rows.push((
                zone.region.as_str(),
                zone.zone.as_str(),
                host.health_status(),
                host.load_balancing_weight.unwrap(),
            ));
        }
    }
    assert_eq!(
        rows,
        [
            ("", "", Draining, 2),
            ("", "east", Healthy, 7),
            ("", "east", Draining, 1),
            ("", "west", Unhealthy, 1),
            ("", "west", Unhealthy, 1),
            ("eu", "east", Healthy, 3),
        ]
    );
}

#[test]
fn the_weights_of_a_locality_stay_below_envoys_limit() {
    let endpoints: Vec<_> = (0..10_000u16)
        .map(|id| endpoint(id, if id == 0 { 1 } else { 1_000_000 }, Health::Healthy, ""))
        .collect();
    let table = service("a", 1, endpoints).table.clone();
    let all = assignment(&table);
    let weights = || {
        all.endpoints[0]
            .lb_endpoints
            .iter()
            .map(|host| u64::from(host.load_balancing_weight.unwrap()))
    };
    assert!(weights().sum::<u64>() <= u64::from(u32::MAX));
    assert_eq!(weights().min(), Some(1));
}

#[test]
fn the_bytes_are_those_of_envoys_own_messages() {
    let table = service("a", 1, vec![endpoint(1, 7, Health::Healthy, "z")]).table.clone();
    // ClusterLoadAssignment{1: "a", 2: {1: {2: "z"}, 2: {1: {1: {1: {2: "10.0.0.1", 3: 8001}}},
    // 2: HEALTHY, 4: {1: 7}}}}, by the numbers in envoy/config/endpoint/v3.
    let address = b"\x12\x0810.0.0.1\x18\xc1\x3e";
    let field = |tag: u8, inner: &[u8]| {
        let mut out = vec![tag, u8::try_from(inner.len()).unwrap()];
        out.extend_from_slice(inner);
        out
    };
    let endpoint = field(0x0a, &field(0x0a, address));
    let mut host = field(0x0a, &endpoint);
    host.extend_from_slice(b"\x10\x01\x22\x02\x08\x07");
    let mut locality = field(0x0a, &field(0x12, b"z"));
    locality.extend_from_slice(&field(0x12, &host));
    let mut expect = field(0x0a, b"a");
    expect.extend_from_slice(&field(0x12, &locality));
    assert_eq!(Assignment::of(&table).bytes, expect);
}

mod over_a_socket {
    use tokio_stream::StreamExt;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::serve::eds::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
    use crate::serve::eds::proto::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
    use crate::serve::sync::tests::Agent;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn all_four_streams_follow_the_registry() {
        let agent = Agent::start(snapshot(1, &[("a", 1, 1)])).await;
        let channel = agent.channel().await;
        let (up, rx) = mpsc::channel(4);
        up.send(ask(&["a"], "")).await.unwrap();
        let mut sotw = EndpointDiscoveryServiceClient::new(channel.clone())
            .stream_endpoints(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        let (ads_up, rx) = mpsc::channel(4);
        ads_up.send(ask(&["a"], "")).await.unwrap();
        let mut ads = AggregatedDiscoveryServiceClient::new(channel.clone())
            .stream_aggregated_resources(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        let (delta_up, rx) = mpsc::channel(4);
        delta_up.send(subscribe(&["a"])).await.unwrap();
        let mut delta = EndpointDiscoveryServiceClient::new(channel.clone())
            .delta_endpoints(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        let (delta_ads_up, rx) = mpsc::channel(4);
        delta_ads_up.send(subscribe(&["a"])).await.unwrap();
        let mut delta_ads = AggregatedDiscoveryServiceClient::new(channel)
            .delta_aggregated_resources(ReceiverStream::new(rx))
            .await
            .unwrap()
            .into_inner();
        for (count, sequence) in [(1, 2), (2, 3), (3, 4)] {
            for (stream, up) in [(&mut sotw, &up), (&mut ads, &ads_up)] {
                let next = tokio::time::timeout(SOON, stream.next());
                let response = next.await.unwrap().unwrap().unwrap();
                assert_eq!(hosts(&response), named(&[("a", count)]));
                up.send(ask(&["a"], &response.nonce)).await.unwrap();
            }
            for (stream, up) in [(&mut delta, &delta_up), (&mut delta_ads, &delta_ads_up)] {
                let next = tokio::time::timeout(SOON, stream.next());
                let response = next.await.unwrap().unwrap().unwrap();
                assert_eq!(response.resources[0].name, "a");
                up.send(acknowledge(&response.nonce)).await.unwrap();
            }
            let more = u16::try_from(count).unwrap() + 1;
            agent.publish(snapshot(sequence, &[("a", sequence, more)]));
        }
        agent.stop().await;
        let end = async {
            while let Some(item) = sotw.next().await {
                if item.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(SOON, end).await.unwrap();
    }
}

#[test]
fn a_large_state_comes_in_parts_as_it_is_answered() {
    let names: Vec<String> = (0..2_000).map(|i| format!("service-{i:04}")).collect();
    let known: Vec<(&str, u64, u16)> = names.iter().map(|name| (name.as_str(), 2, 5)).collect();
    let now = snapshot(2, &known);
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut session = Session::default();
    session.request(ask(&asked, ""));
    let mut seen = 0;
    let mut parts = 0;
    while let Some(part) = session.respond(&now) {
        let bytes: usize = part.resources.iter().map(|resource| resource.value.len()).sum();
        assert!(bytes <= RESPONSE + 1_000, "{bytes}");
        assert!(session.is_waiting() && session.respond(&now).is_none(), "it is not answered");
        seen += part.resources.len();
        parts += 1;
        session.request(ask(&asked, &part.nonce));
    }
    assert_eq!(seen, names.len());
    assert!(parts > 2, "{parts}");
}
