//! What plain Istio answers is answered with our files applied, whatever the service looks like.

use std::collections::{BTreeMap, BTreeSet};

use pintle_tests::{
    Agent, Authority, Envoy, Etcd, Instance, Nats, Upstream, assert_eventually, http,
};
use serde_json::json;

use super::proxy::Proxy;
use super::shape::{Found, Shape};
use crate::PATIENCE;

/// Requests to each service.
const REQUESTS: usize = 24;

/// What came of them.
#[derive(Debug, PartialEq)]
struct Answers {
    /// How often each status.
    statuses: BTreeMap<u16, usize>,
    versions: BTreeSet<String>,
    /// A connection for each request.
    fresh: bool,
}

/// Of one client, which a DestinationRule with consistentHash knows by this header.
async fn status(envoy: &Envoy, authority: &str) -> u16 {
    let mut request = http::request(authority, "GET", "/", "").expect("a request");
    request.headers_mut().insert("x-user", "7".parse().expect("a value"));
    http::send(envoy.addr(), request).await.expect("an answer").status
}

async fn ask(envoy: &Envoy, shape: &Shape<'_>) -> (Answers, BTreeSet<String>) {
    shape.pods.iter().for_each(|pod| pod.forget());
    let connections = format!("cluster.{}.upstream_cx_total", shape.cluster());
    let before = envoy.stat(&connections).await.unwrap_or_default();
    let mut statuses = BTreeMap::new();
    for _ in 0..REQUESTS {
        *statuses.entry(status(envoy, &shape.authority()).await).or_default() += 1;
    }
    let opened = envoy.stat(&connections).await.unwrap_or_default() - before;
    let asked = shape.pods.iter().filter(|pod| pod.requests() > 0);
    let seen = shape.pods.iter().flat_map(|pod| pod.seen());
    let answers = Answers {
        statuses,
        versions: seen.map(|seen| format!("{:?}", seen.version)).collect(),
        fresh: opened >= REQUESTS as u64,
    };
    (answers, asked.map(|pod| pod.name().to_owned()).collect())
}

/// Two routes of VirtualServices: by weights, and with a copy of each request to somebody else.
fn routes(proxy: &mut Proxy, shapes: &[Shape<'_>], shadow: &Shape<'_>) {
    let one = |name: &str| [format!("{name}:80")];
    let weighted = shapes[..2].iter().map(|it| json!({"name": it.cluster(), "weight": 50}));
    let split = json!({"weighted_clusters": {"clusters": weighted.collect::<Vec<_>>()}});
    proxy.virtual_host("split", &one("split"), &split);
    proxy.service(shadow);
    let mirrored = json!({"cluster": shapes[0].cluster(),
        "request_mirror_policies": [{"cluster": shadow.cluster()}]});
    proxy.virtual_host("mirror", &one("mirror"), &mirrored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_plain_istio_answers_is_answered_with_our_files() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let authority = Authority::new().expect("an authority");
    let pod = authority.issue(&["127.0.0.1"]).expect("a certificate");
    let workload = authority.issue(&["web"]).expect("a certificate");
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    for name in ["a", "b", "unregistered", "other-version"] {
        open.push(Upstream::start(name).await.expect("a pod"));
        closed.push(Upstream::start_tls(name, &pod).await.expect("a pod"));
    }
    let copies = Upstream::start("copies").await.expect("a pod");
    let (pods, strict): (Vec<_>, Vec<_>) = (open.iter().collect(), closed.iter().collect());
    let (all, strict) = (&pods[..3], &strict[..3]);
    let host = |name: &str| format!("{name}.shop.svc.cluster.local");
    let names = [
        "near", "zonal", "ledger", "chat", "pool", "beta", "outlier", "strict", "dns", "turns",
        "sticky", "warm", "unnamed",
    ];
    let hosts = names.map(host);
    let [near, zonal, ledger, chat, pool, beta, outlier, of_strict, rest @ ..] = hosts.each_ref();
    let [dns, turns, sticky, warm, unnamed] = rest;
    let shapes = [
        Shape { close: true, ..Shape::new(near, all) },
        Shape { zonal: true, ..Shape::new(zonal, all) },
        Shape { found: Found::Original, ..Shape::new(ledger, all) },
        Shape::new(chat, all),
        Shape { port: 9090, http2: true, ..Shape::new(chat, all) },
        Shape { pool: true, ..Shape::new(pool, all) },
        Shape { subset: "v1", ..Shape::new(beta, all) },
        Shape { outlier: true, ..Shape::new(outlier, all) },
        Shape { mtls: Some((&authority, &workload)), ..Shape::new(of_strict, strict) },
        Shape { found: Found::Dns, ..Shape::new(dns, all) },
        Shape { found: Found::RoundRobinDns, ..Shape::new(turns, all) },
        Shape { sticky: true, ..Shape::new(sticky, all) },
        Shape { warmup: true, ..Shape::new(warm, all) },
        Shape { unnamed: true, ..Shape::new(unnamed, all) },
    ];
    let (of_shadow, only) = (host("shadow"), [&copies]);
    let shadow = Shape::new(&of_shadow, &only);
    // What the DestinationRule says of a user is the policy's to say here.
    let by_user = json!({"select": {"strategy": "maglev", "hash_key": [{"header": "x-user"}]}});
    etcd.put("/pintle/policies/sticky", &by_user.to_string()).await.expect("a policy");
    let mut last = None;
    for name in names {
        let instances = if name == "strict" { &closed } else { &open };
        for upstream in instances.iter().filter(|it| it.name() != "unregistered") {
            // A subset of the mesh is none of the registry: the other version is registered, too.
            if name == "beta" || upstream.name() != "other-version" {
                let instance = Instance::of(name, upstream);
                last = Some(etcd.register(&instance).await.expect("a registration"));
            }
        }
    }

    let mut plain = Proxy::sidecar(&agent);
    shapes.iter().for_each(|shape| plain.service(shape));
    routes(&mut plain, &shapes, &shadow);
    let (plain, _plain) = plain.start().await;
    let mut ours = Proxy::sidecar(&agent);
    shapes.iter().for_each(|shape| ours.service(shape));
    routes(&mut ours, &shapes, &shadow);
    ours.apply("istio/pintle.yaml");
    // The last is in no proxy that a Sidecar resource keeps from it.
    for name in names.into_iter().chain(["shadow", "cut"]) {
        let (file, named) =
            if name == "ledger" { ("headless", name) } else { ("orders", "orders") };
        let file = format!("istio/{file}.yaml");
        ours.apply_for(&file, named, name, 80);
        if name == "chat" {
            ours.apply_for(&file, named, name, 9090);
        }
    }
    let (ours, _ours) = ours.start().await;
    assert_eq!(ours.stat("cluster_manager.cds.update_rejected").await, Some(0));
    agent.settled(last.expect("registrations")).await.expect("every worker knows");

    let chosen: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
    for shape in &shapes {
        let cluster = shape.cluster();
        let (answers, asked) = ask(&ours, shape).await;
        assert_eq!(answers.statuses, BTreeMap::from([(200, REQUESTS)]), "{cluster}: {answers:?}");
        assert!(asked.is_subset(&chosen), "{cluster}: {asked:?}");
        assert!(!shape.sticky || asked.len() == 1, "{cluster}: {asked:?}");
        // Where a request for a headless service goes is the kernel's word, which a test has none
        // of.
        if shape.found != Found::Original {
            let (expected, of_plain) = ask(&plain, shape).await;
            assert_eq!(answers, expected, "{cluster}");
            assert!(!shape.sticky || of_plain.len() == 1, "{cluster}: {of_plain:?}");
        }
    }
    assert_eq!(pods[3].requests(), 0, "of no subset that anybody asked for");
    for envoy in [&ours, &plain] {
        copies.forget();
        for _ in 0..REQUESTS {
            assert_eq!(status(envoy, "split:80").await, 200);
            assert_eq!(status(envoy, "mirror:80").await, 200);
        }
        assert_eventually!(PATIENCE, copies.requests() == REQUESTS);
        assert_eq!(status(envoy, &format!("{}:80", host("cut"))).await, 404);
    }
    assert!(
        pods.iter()
            .chain([&&copies])
            .flat_map(|pod| pod.seen())
            .all(|seen| { seen.headers.keys().all(|name| !name.as_str().starts_with("x-pintle")) })
    );
}
