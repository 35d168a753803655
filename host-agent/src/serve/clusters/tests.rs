//! Templates, and what a stream is sent of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use pintle_contract::{Table, Version};
use pintle_state::{Service, Snapshot};
use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::serve::eds::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status,
};
use crate::serve::eds::{Answer, RESPONSE};

fn template(patch: Value) -> Result<Template, String> {
    Template::read("serve.clusters", &patch).map_err(|error| error.to_string())
}

fn snapshot(sequence: u64, names: &[&str]) -> Snapshot {
    let version = Version { epoch: 1, sequence };
    let service = |name: &str| {
        let table = Table {
            service: name.to_owned(),
            version,
            endpoints: Vec::new(),
            policy: String::new(),
        };
        let service = Service { seen_at: SystemTime::UNIX_EPOCH, ..Service::of(table) };
        Arc::new(service)
    };
    let services = names.iter().map(|name| service(name)).collect();
    Snapshot { version, services, ..Snapshot::default() }
}

fn session() -> Session {
    let template = template(json!({"name": "service/{service}"})).unwrap();
    Session::new(Some(Arc::new(template)))
}

fn ask(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: TYPE_URL.to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn acknowledge(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..ask(&[]) }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn each_cluster_is_the_template_with_the_services_name_in_its_places() {
    let template = template(json!({
        "name": "service/{service}",
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "{service}.internal",
            },
        },
    }))
    .unwrap();
    let cluster = template.cluster("orders").unwrap();
    assert_eq!(cluster.name, "service/orders");
    assert_eq!(template.service_of(&cluster.name), Some("orders"));
    assert_eq!(template.service_of("pintle_agent"), None);
    let text = String::from_utf8_lossy(&cluster.bytes);
    for part in ["service/orders", "orders.internal", "x-pintle-endpoints", "UpstreamCodec"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("{service}") && !text.contains("pintle_agent"), "{text}");
    // By Envoy's numbers: name is 1, type is 2 and EDS is 3.
    assert_eq!(cluster.bytes[..2], [0x0a, 14]);
    assert_eq!(cluster.bytes[16..18], [0x10, 3]);
    assert_ne!(cluster.fingerprint, template.cluster("ledger").unwrap().fingerprint);
}

#[test]
fn what_a_template_must_not_say_is_refused_by_its_path() {
    let http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let cases = [
        (json!([]), "serve.clusters must be what differs from the shipped cluster, found a list"),
        (json!({"lb_policy": "RANDOM"}), "unknown key serve.clusters.lb_policy, accepted are "),
        (
            json!({"circuit_breakers": {"thresholds": [{"max_request": 1}]}}),
            "unknown key serve.clusters.circuit_breakers.thresholds[0].max_request, accepted are ",
        ),
        (
            json!({"typed_extension_protocol_options": {http: {"protocol": 1}}}),
            "HttpProtocolOptions.protocol, accepted are ",
        ),
        (
            json!({"transport_socket": {"typed_config": {"@type": "type.googleapis.com/a.B"}}}),
            "serve.clusters.transport_socket.typed_config.@type must be type.googleapis.com/",
        ),
        (json!({"type": "STATIC"}), "serve.clusters.type must be left out, or EDS"),
        (
            json!({"name": "orders"}),
            "serve.clusters.name must be a text with {service} in it, once",
        ),
        (
            json!({"eds_cluster_config": {"service_name": "a"}}),
            "serve.clusters.eds_cluster_config.service_name must be left out, or {service}",
        ),
        (json!({"connect_timeout": "soon"}), "serve.clusters must be a cluster that Envoy takes ("),
        (
            json!({"typed_extension_protocol_options": {http: {"explicit_http_config":
                {"http2_protocol_options": {}}}}}),
            "serve.clusters must be a cluster that Envoy takes (",
        ),
    ];
    for (patch, expected) in cases {
        let refused = template(patch.clone()).unwrap_err();
        assert!(refused.contains(expected), "{patch}: {refused}");
    }
    let grpc = json!({"typed_extension_protocol_options": {http: {"explicit_http_config":
        {"http_protocol_options": null, "http2_protocol_options": {}}}}});
    assert!(template(grpc).is_ok());
}

#[test]
fn a_service_comes_and_goes_with_its_cluster() {
    let mut session = session();
    assert_eq!(session.request(ask(&[])), Answer::None);
    assert!(session.respond(&Snapshot::default()).is_none(), "nothing is known yet");
    let first = session.respond(&snapshot(1, &["a", "b"])).unwrap();
    assert_eq!(names(&first), ["service/a", "service/b"]);
    assert!(session.respond(&snapshot(2, &["a"])).is_none(), "one is on its way");
    assert_eq!(session.request(acknowledge(&first)), Answer::Ack);
    assert!(session.respond(&snapshot(3, &["a", "b"])).is_none(), "nothing changed");
    let second = session.respond(&snapshot(4, &["a", "c"])).unwrap();
    assert_eq!(names(&second), ["service/c"]);
    assert_eq!(second.removed_resources, ["service/b"]);
    let error_detail = Some(Status { code: 3, message: "no such thing".to_owned() });
    let refusal = DeltaDiscoveryRequest { error_detail, ..acknowledge(&second) };
    assert_eq!(session.request(refusal), Answer::Nack("no such thing".to_owned()));
    assert!(session.respond(&snapshot(5, &["a", "c"])).is_none(), "it would be refused again");
}

#[test]
fn whoever_asks_for_all_is_answered_though_there_is_nothing() {
    let mut session = session();
    session.request(ask(&["*"]));
    let nothing = Snapshot { version: Version { epoch: 1, sequence: 0 }, ..Snapshot::default() };
    let answer = session.respond(&nothing).unwrap();
    assert!(answer.resources.is_empty() && answer.removed_resources.is_empty());
    session.request(acknowledge(&answer));
    assert!(session.respond(&nothing).is_none());
}

#[test]
fn a_cluster_can_be_asked_for_by_name() {
    let mut session = session();
    session.request(ask(&["service/a", "service/z", "pintle_agent"]));
    let answer = session.respond(&snapshot(1, &["a", "b"])).unwrap();
    assert_eq!(names(&answer), ["service/a"]);
    assert_eq!(answer.removed_resources, ["pintle_agent", "service/z"]);
    session.request(acknowledge(&answer));
    let later = session.respond(&snapshot(2, &["a", "z"])).unwrap();
    assert_eq!(names(&later), ["service/z"]);
}

#[test]
fn a_reconnected_envoy_is_sent_only_what_it_lacks() {
    let now = snapshot(1, &["a", "b"]);
    let mut first = session();
    first.request(ask(&[]));
    let answer = first.respond(&now).unwrap();
    let held: BTreeMap<String, String> =
        answer.resources.into_iter().map(|it| (it.name, it.version)).collect();
    let mut again = ask(&[]);
    again.initial_resource_versions = held.clone().into_iter().collect();
    let mut second = session();
    second.request(again.clone());
    let answer = second.respond(&now).unwrap();
    assert!(answer.resources.is_empty(), "it has them: {:?}", names(&answer));
    let mut third = session();
    third.request(again);
    let answer = third.respond(&snapshot(2, &["b", "c"])).unwrap();
    assert_eq!((names(&answer), &*answer.removed_resources[0]), (vec!["service/c"], "service/a"));
}

#[test]
fn a_thousand_come_in_parts_and_without_a_template_none() {
    let all: Vec<String> = (0..1_000).map(|number| format!("s-{number:04}")).collect();
    let now = snapshot(1, &all.iter().map(String::as_str).collect::<Vec<_>>());
    let mut session = session();
    session.request(ask(&[]));
    let (mut seen, mut parts) = (0, 0);
    while let Some(part) = session.respond(&now) {
        let bytes: usize = part.resources.iter().map(|it| it.encoded_len()).sum();
        assert!(bytes < RESPONSE * 2, "{bytes}");
        (seen, parts) = (seen + part.resources.len(), parts + 1);
        session.request(acknowledge(&part));
    }
    assert!(seen == 1_000 && parts > 3, "{seen} in {parts}");
    let mut off = Session::new(None);
    assert!(matches!(off.request(ask(&[])), Answer::Unserved(_)));
    assert!(off.respond(&now).is_none());
}
