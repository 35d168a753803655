//! The objects of `envoy/istio` and `envoy/kubernetes`, as far as they can be run without a
//! cluster.
//!
//! istiod does not run here. [`Proxy`] stands for what it would send to a sidecar or a gateway: a
//! listener and clusters in the form that Istio gives them, and the shipped objects applied to
//! these by its rules. What comes out is run by a real Envoy, with real agent, etcd and mutual TLS.

mod gateway;
mod objects;
mod proxy;
mod shape;
mod shapes;

use std::time::Duration;

use pintle_tests::{
    Agent, Authority, Behaviour, Envoy, Etcd, Fault, Instance, Load, Nats, Server as _, Upstream,
    assert_eventually, http,
};
use serde_json::{Value, json};

use self::objects::objects;
use self::proxy::Proxy;
use self::shape::{Found, Shape};
use crate::PATIENCE;

const ORDERS: &str = "outbound|80||orders.shop.svc.cluster.local";

async fn ask(envoy: &Envoy, host: &str, headers: &[(&'static str, &str)]) -> http::Reply {
    let mut request = http::request(host, "GET", "/", "").expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    http::send(envoy.addr(), request).await.expect("an answer")
}

fn load(envoy: &Envoy, host: &str) -> Load {
    Load::to(envoy.addr()).host(host).rate(200.0).connections(16)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_the_mesh_is_chosen_by_the_registry_and_spoken_to_by_mutual_tls() {
    const HOST: &str = "orders.shop.svc.cluster.local";
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let mut agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let authority = Authority::new().expect("an authority");
    let pod = authority.issue(&["127.0.0.1"]).expect("a certificate");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "orders-2", "unregistered"] {
        pods.push(Upstream::start_tls(name, &pod).await.expect("a pod"));
    }
    // One is in etcd and nothing that Istio knows.
    let stray = Upstream::start_tls("stray", &pod).await.expect("an upstream");
    let mut sidecar = Proxy::sidecar(&agent);
    let known: Vec<_> = pods.iter().collect();
    let workload = authority.issue(&["web"]).expect("a certificate");
    let mtls = Some((&authority, &workload));
    sidecar.service(&Shape { mtls, ..Shape::new(HOST, &known) });
    sidecar.apply("istio/pintle.yaml");
    sidecar.apply("istio/orders.yaml");
    let (envoy, _istiod) = sidecar.start().await;

    // Nobody is registered: Istio's own balancing serves.
    let report = load(&envoy, HOST).run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 4, "{}", report.summary());

    // By latency, whoever was late once would be asked less; in turns everybody is asked the same.
    let turns = r#"{"select": {"strategy": "round_robin"}}"#;
    etcd.put("/pintle/policies/orders", turns).await.expect("a policy");
    for upstream in pods[..3].iter().chain([&stray]) {
        etcd.register(&Instance::of("orders", upstream)).await.expect("a registration");
    }
    assert_eventually!(PATIENCE, {
        let report = load(&envoy, HOST).run_for_secs(0.2).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        !report.by_upstream().contains_key("unregistered")
    });
    pods.iter().for_each(Upstream::forget);
    let report = load(&envoy, HOST).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 3, "{}", report.summary());
    assert_eq!(stray.requests(), 0, "no host of the cluster");

    // Neither our header nor a client's reaches a pod, and a client's chooses none.
    let unregistered = pods[3].addr().to_string();
    for _ in 0..20 {
        let reply = ask(&envoy, HOST, &[("x-pintle-endpoints", &unregistered)]).await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(pods[3].requests(), 0);
    for seen in pods.iter().flat_map(Upstream::seen) {
        assert!(seen.headers.keys().all(|name| !name.as_str().starts_with("x-pintle")));
        assert!(seen.headers.contains_key("traceparent"));
    }

    // With the one that is no host of the mesh's cluster it would say so.
    let gone = etcd.deregister("orders", stray.name()).await.expect("gone");
    agent.settled(gone).await.expect("every worker knows");
    let socket = agent.socket().display().to_string();
    let (admin, of_envoy) = (agent.admin().to_string(), envoy.admin().to_string());
    let check = ["check", "--socket", &socket, "--admin", &admin, "--envoy", &of_envoy];
    let servers = ["--etcd", &etcd.url(), "--nats", &nats.url()];
    let done = Agent::command(&[&check[..], &servers].concat()).await.expect("pintle");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.lines().count() > 8 && said.lines().all(|it| it.starts_with("ok")), "{said}");

    // Five failures, and without the agent it goes on, breaker and all.
    pods.iter().for_each(Upstream::forget);
    pods[0].set(Behaviour::failing(Fault::Status(500)));
    let mut failed = 0;
    for number in 0..120 {
        let before = failed;
        failed += usize::from(ask(&envoy, HOST, &[]).await.status != 200);
        if before < 5 && failed == 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if number == 60 {
            agent.process().kill9();
        }
    }
    assert_eq!(failed, 5);
    assert_eq!(pods[0].requests(), 5);
    assert_eq!(envoy.vm_reloads().await.expect("stats"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_only_etcd_knows_has_its_hosts_from_the_agent() {
    const HOST: &str = "billing.pintle.internal";
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let authority = Authority::new().expect("an authority");
    let server = authority.issue(&["billing.example"]).expect("a certificate");
    let mut sidecar = Proxy::sidecar(&agent);
    sidecar.labels.push("pintle-outside");
    sidecar.apply("istio/pintle.yaml");
    sidecar.apply("istio/outside.yaml");
    // What a DestinationRule with `tls: {mode: SIMPLE}` puts in the place of Istio's own.
    let billing = sidecar.clusters.iter_mut().find(|it| it["metadata"].to_string().contains(HOST));
    let billing = billing.and_then(Value::as_object_mut).expect("its cluster");
    billing.remove("transport_socket_matches");
    let tls = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "billing.example", "common_tls_context": {"validation_context": {
            "trusted_ca": {"filename": authority.certificate()}, "match_typed_subject_alt_names": [
                {"san_type": "DNS", "matcher": {"exact": "billing.example"}}]}}}});
    billing.insert("transport_socket".to_owned(), tls);
    let (envoy, _istiod) = sidecar.start().await;
    let mut upstreams = Vec::new();
    for name in ["billing-0", "billing-1"] {
        let upstream = Upstream::start_tls(name, &server).await.expect("an upstream");
        etcd.register(&Instance::of("billing", &upstream)).await.expect("a registration");
        upstreams.push(upstream);
    }
    assert_eventually!(PATIENCE, ask(&envoy, HOST, &[]).await.status == 200);
    assert_eventually!(PATIENCE, {
        let report = load(&envoy, HOST).run_for_secs(0.3).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        report.by_upstream().len() == 2
    });
    let gone = etcd.deregister("billing", "billing-0").await.expect("gone");
    agent.settled(gone).await.expect("every worker knows");
    let unknown = async || envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    let before = unknown().await;
    let report = load(&envoy, HOST).run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 1, "{}", report.summary());
    assert_eq!(unknown().await, before, "with a table every request is the module's");
}

/// A pod that calls no such service has no cluster for them in its bootstrap, and Envoy would
/// refuse one that asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_the_label_for_outside_is_left_alone() {
    let etcd = Etcd::start().await.expect("etcd");
    let agent = Agent::builder().etcd(etcd.url()).start().await.expect("the agent");
    for (label, refused) in [(None, 0), (Some("pintle-outside"), 1)] {
        let mut sidecar = Proxy::sidecar(&agent);
        sidecar.labels.extend(label);
        sidecar.apply("istio/outside.yaml");
        sidecar.without_the_bootstrap();
        let (envoy, _istiod) = sidecar.start().await;
        assert_eq!(envoy.stat("cluster_manager.cds.update_rejected").await, Some(refused));
    }
}

/// What the head of `pintle.yaml` warns of: a discovered filter that never had a configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_starts_without_the_modules_file_answers_nothing() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let upstream = Upstream::start("orders-0").await.expect("an upstream");
    const HOST: &str = "orders.shop.svc.cluster.local";
    let mut sidecar = Proxy::sidecar(&agent);
    sidecar.service(&Shape::new(HOST, &[&upstream]));
    sidecar.apply("istio/pintle.yaml");
    let code = "/typed_config/config/vm_config/code/local/filename";
    *sidecar.extensions[0].pointer_mut(code).expect("a file") = json!("/nowhere/pintle.wasm");
    let (envoy, _istiod) = sidecar.start().await;
    assert_eq!(ask(&envoy, HOST, &[]).await.status, 500);
    assert_eq!(upstream.requests(), 0);
}

/// What the DestinationRule of `orders.yaml` is there for: locality weights, and Istio 1.31's
/// `zoneAwareLbSetting`, which is sent as the second or, turned off, as the third. And what the
/// file's head warns of: a cluster without hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_refuses_our_policy_beside_settings_of_localities_and_without_hosts() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    for (found, setting) in [
        (Found::Told, json!({"locality_weighted_lb_config": {}})),
        (Found::Told, json!({"zone_aware_lb_config": {"min_cluster_size": 6}})),
        (Found::Told, json!({"zone_aware_lb_config": {"routing_enabled": {"value": 0}}})),
        (Found::Original, json!({})),
    ] {
        let mut sidecar = Proxy::sidecar(&agent);
        sidecar.service(&Shape { found, ..Shape::new("orders.shop.svc.cluster.local", &[]) });
        sidecar.apply("istio/orders.yaml");
        sidecar.clusters[0]["common_lb_config"] = setting.clone();
        let (envoy, _istiod) = sidecar.start().await;
        let refused = envoy.stat("cluster_manager.cds.update_rejected").await;
        assert_eq!(refused, Some(1), "{found:?}, {setting}");
        assert!(envoy.hosts(ORDERS).await.expect("clusters").is_empty());
        assert_eq!(ask(&envoy, "orders.shop.svc.cluster.local", &[]).await.status, 503);
        let (admin, of_envoy) = (agent.admin().to_string(), envoy.admin().to_string());
        let check = ["check", "--admin", &admin, "--envoy", &of_envoy];
        let said = Agent::command(&check).await.expect("pintle").stdout;
        assert!(String::from_utf8_lossy(&said).contains("route-without-cluster"), "{setting}");
    }
}

/// With the configuration, the variables, the user and the groups of the DaemonSet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_runs_as_the_daemon_set_has_it() {
    use std::os::unix::fs::MetadataExt as _;

    let objects = objects("kubernetes/agent.yaml");
    let of_kind =
        |kind: &str| objects.iter().find(|object| object.kind == kind).expect("an object");
    let config = of_kind("ConfigMap").data["agent.yaml"].as_str().expect("a configuration");
    let pod = &of_kind("DaemonSet").spec["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["args"], json!(["run", "--config", "/etc/pintle/agent.yaml"]));
    let variable = container["env"][0]["name"].as_str().expect("a variable");
    let etcd = Etcd::start().await.expect("etcd");
    // Where to listen, what to read and what is private differ here; all else is the file's.
    let builder = Agent::builder().etcd(etcd.url()).env(variable, "ip-10-0-1-2.eu.internal");
    let own = std::fs::metadata("/proc/self").expect("this process");
    let (builder, user, group) = if own.uid() == 0 {
        let context = &pod["securityContext"];
        let number = |key: &str| context.pointer(key).and_then(Value::as_u64).expect("a number");
        let (user, group) = (number("/runAsUser"), number("/supplementalGroups/0"));
        // A copy, because the way to the binary need not be open to everybody.
        let script = format!(
            "cp \"$0\" {{dir}}/pintle && chown -R {user} {{dir}} \
             && exec setpriv --reuid {user} --regid {} --groups {group} -- {{dir}}/pintle \"$@\"",
            number("/runAsGroup")
        );
        let builder = builder.under(&["sh", "-c", &script]).config("agent.yaml", config);
        (builder, user, group)
    } else {
        let (user, group) = (own.uid().into(), own.gid().into());
        let config = config.replace("\"1337\"", &format!("\"{group}\""));
        (builder.config("agent.yaml", &config), user, group)
    };
    let agent = builder.start().await.expect("the agent");
    let socket = std::fs::metadata(agent.socket()).expect("the socket");
    assert_eq!(socket.mode() & 0o777, 0o660);
    assert_eq!((u64::from(socket.uid()), u64::from(socket.gid())), (user, group));
    for probe in ["readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().expect("a path");
        assert_eq!(http::get(agent.admin(), path).await.expect("an answer").status, 200);
    }
}

/// With the arguments of the container that stands beside the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_registers_itself_as_the_deployment_has_it() {
    let objects = objects("kubernetes/orders.yaml");
    let deployment = objects.iter().find(|object| object.kind == "Deployment").expect("one");
    let container = &deployment.spec["template"]["spec"]["containers"][1];
    let arguments: Vec<&str> =
        container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str).collect();
    // What this machine has its own of; the rest is the file's.
    let own = |argument: &str| {
        let names = ["--config=", "--service=", "--id=", "--address=", "--port="];
        names.iter().any(|name| argument.starts_with(name))
    };
    assert_eq!(arguments.iter().filter(|argument| own(argument)).count(), 5);
    assert_eq!(arguments[0], "register");
    let rest: Vec<&str> =
        arguments[1..].iter().copied().filter(|argument| !own(argument)).collect();
    let etcd = Etcd::start().await.expect("etcd");
    let upstream = Upstream::start("orders-7d9c").await.expect("an upstream");
    let mut pod =
        Agent::register(&etcd.url(), "orders", "orders-7d9c", upstream.addr(), &rest).expect("it");
    let key = Instance::of("orders", &upstream).key();
    let health = async || {
        let value = etcd.get(&key).await.expect("etcd")?;
        let value: Value = serde_json::from_str(&value).expect("JSON");
        value["health"].as_str().map(str::to_owned)
    };
    assert_eventually!(PATIENCE, health().await.as_deref() == Some("healthy"));
    pod.terminate(PATIENCE).await.expect("it drains and goes");
    assert_eq!(health().await, None);
}
