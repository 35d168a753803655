//! `pintle check`: mistakes that are planted are found by their codes, and nothing else is.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, Envoy, EnvoyConfig, Instance, Server as _, assert_eventually};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::support::{PATIENCE, World};

/// The codes that are found, and whether the exit code is 1.
async fn found(args: &[&str]) -> (BTreeSet<String>, bool) {
    let args = [&["check", "--output", "json"], args].concat();
    let done = Agent::command(&args).await.expect("pintle");
    let said = String::from_utf8_lossy(&done.stdout);
    let answer: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let findings = answer["findings"].as_array().expect("findings").clone();
    for finding in &findings {
        let wrong = finding["state"] != "good";
        assert_eq!(wrong, finding["code"].is_string(), "{finding}");
        assert_eq!(wrong, finding["todo"].is_string(), "{finding}");
    }
    let codes = findings.iter().filter_map(|it| Some(it["code"].as_str()?.to_owned()));
    (codes.collect(), done.status.code() == Some(1))
}

fn with_code((codes, no): &(BTreeSet<String>, bool), code: &str) -> bool {
    codes.contains(code) && *no
}

/// The exit code is 0 for what works all the same.
const WARNINGS: [&str; 9] = [
    "requests-in-cache",
    "choice-in-session",
    "hosts-by-name",
    "wasm-failure-open",
    "wasm-backoff",
    "wasm-vm-id",
    "wasm-precompiled",
    "eds-waits",
    "etcd-empty",
];

#[tokio::test]
async fn mistakes_in_a_configuration_are_found_without_anything_that_runs() {
    type Mistake = (&'static str, fn(&mut EnvoyConfig));
    fn plugin(config: &mut EnvoyConfig) -> &mut Value {
        &mut config.wasm_filter()["typed_config"]["config"]
    }
    fn settings(config: &mut EnvoyConfig, change: impl FnOnce(&mut Value)) {
        let value = &mut plugin(config)["configuration"]["value"];
        let mut all: Value = serde_json::from_str(value.as_str().expect("text")).expect("JSON");
        change(&mut all);
        *value = Value::from(all.to_string());
    }
    fn remove(value: &mut Value, key: &str) {
        value.as_object_mut().expect("an object").remove(key);
    }
    fn members(config: &mut EnvoyConfig, name: &str, more: Value) {
        let mut other = config.cluster("pintle_agent").clone();
        remove(&mut other, "load_assignment");
        other["name"] = name.into();
        other.as_object_mut().expect("an object").extend(more.as_object().expect("more").clone());
        let clusters = config.at("/static_resources/clusters").as_array_mut().expect("clusters");
        clusters.push(other);
    }
    fn hosts(config: &mut EnvoyConfig, kind: &str, address: Value) {
        let cluster = config.cluster("orders");
        remove(cluster, "eds_cluster_config");
        cluster["type"] = kind.into();
        cluster["load_assignment"] = json!({"cluster_name": "orders",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]});
    }
    fn aggregate(config: &mut EnvoyConfig, of: &[&str]) {
        let typed = json!({"clusters": of});
        let kind = json!({"name": "envoy.clusters.aggregate", "typed_config": typed});
        members(config, "both", json!({"cluster_type": kind}));
        remove(config.cluster("both"), "type");
    }
    fn route(config: &mut EnvoyConfig) -> &mut Value {
        let manager = config.http_connection_manager();
        &mut manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    }
    fn host(config: &mut EnvoyConfig) -> &mut Value {
        &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0]
    }
    let mistakes: [Mistake; 38] = [
        ("node-unnamed", |it| it.root()["node"]["cluster"] = "".into()),
        ("ambient-waypoint", |it| {
            it.root()["node"]["id"] =
                "waypoint~10.0.0.9~waypoint-0.shop~shop.svc.cluster.local".into();
        }),
        ("wasm-failure-closed", |it| plugin(it)["failure_policy"] = "FAIL_CLOSED".into()),
        ("wasm-failure-open", |it| plugin(it)["failure_policy"] = "FAIL_OPEN".into()),
        ("wasm-backoff", |it| {
            plugin(it)["reload_config"]["backoff"]["base_interval"] = "0.001s".into();
        }),
        ("wasm-vm-id", |it| remove(&mut plugin(it)["vm_config"], "vm_id")),
        ("wasm-precompiled", |it| plugin(it)["vm_config"]["allow_precompiled"] = true.into()),
        ("wasm-unchecked", |it| plugin(it)["vm_config"]["code"] = json!({"remote": {}})),
        ("plugin-refused", |it| settings(it, |all| all["selct"] = json!({}))),
        ("plugin-twice", |it| {
            let filters = it.http_connection_manager()["http_filters"].as_array_mut();
            let filters = filters.expect("filters");
            filters.insert(0, filters[0].clone());
        }),
        ("agent-cluster-http1", |it| {
            remove(it.cluster("pintle_agent"), "typed_extension_protocol_options");
        }),
        ("plugin-sync-cluster", |it| settings(it, |all| all["sync"]["cluster"] = "agnet".into())),
        ("plugin-header-unread", |it| settings(it, |all| all["select"]["header"] = "x-a".into())),
        ("client-chooses-host", |it| {
            remove(it.http_connection_manager(), "early_header_mutation_extensions");
        }),
        ("header-removed-early", |it| {
            it.http_connection_manager()["route_config"]["request_headers_to_remove"] =
                json!(["x-pintle-endpoints"]);
        }),
        ("header-on-the-wire", |it| {
            remove(it.cluster("orders"), "typed_extension_protocol_options");
        }),
        ("header-on-the-wire", |it| {
            members(it, "shadow", json!({"type": "STATIC"}));
            let route = it.http_connection_manager();
            route["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["request_mirror_policies"] =
                json!([{"cluster": "shadow"}]);
        }),
        ("header-on-the-wire", |it| {
            members(it, "member", json!({"type": "STATIC"}));
            aggregate(it, &["member"]);
        }),
        ("choice-in-aggregate", |it| aggregate(it, &["orders"])),
        ("choice-in-session", |it| {
            let filters = it.http_connection_manager()["http_filters"].as_array_mut();
            let state = json!({"name": "envoy.http.stateful_session.cookie", "typed_config": {}});
            filters.expect("filters").insert(
                0,
                json!({"name": "sessions",
                "typed_config": {"session_state": state}}),
            );
        }),
        ("requests-in-cache", |it| {
            let filters = it.http_connection_manager()["http_filters"].as_array_mut();
            let kind = "type.googleapis.com/envoy.extensions.filters.http.cache.v3.CacheConfig";
            let cache = json!({"name": "store", "typed_config": {"@type": kind}});
            filters.expect("filters").insert(0, cache);
        }),
        ("hosts-unnamed", |it| hosts(it, "STATIC", json!({"pipe": {"path": "/tmp/orders"}}))),
        ("hosts-unnamed", |it| {
            let inner = json!({"server_listener_name": "connect_originate", "endpoint_id": "a"});
            hosts(it, "STATIC", json!({"envoy_internal_address": inner}));
        }),
        ("hosts-by-name", |it| {
            let address = json!({"address": "orders.local", "port_value": 80});
            hosts(it, "STRICT_DNS", json!({"socket_address": address}));
        }),
        ("retries-unfit", |it| {
            host(it)["retry_policy"]["retry_on"] = "connect-failure,retriable-4xx".into();
        }),
        ("retries-unfit", |it| {
            route(it)["retry_policy"] = json!({"retry_on": "retriable-status-codes",
                "retriable_status_codes": [503, 404]});
        }),
        ("retries-unfit", |it| {
            route(it)["retry_policy"] = json!({"retry_on": "5xx", "per_try_timeout": "0.1s"});
            host(it)["hedge_policy"] = json!({"hedge_on_per_try_timeout": true});
        }),
        ("retries-unfit", |it| {
            settings(it, |all| all["breaker"]["failure_codes"] = json!(["503"]));
            host(it)["retry_policy"]["retry_on"] = "gateway-error".into();
        }),
        ("retries-unfit", |it| {
            remove(host(it), "retry_policy");
            let options = "/typed_extension_protocol_options/\
                envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            let options = it.cluster("orders").pointer_mut(options).expect("options");
            options["retry_policy"] = json!({"retry_on": "retriable-headers"});
        }),
        ("upstream-log-absent", |it| {
            settings(it, |all| all["breaker"]["retries"] = "logged".into());
        }),
        ("original-dst-header", |it| {
            members(it, "any", json!({"original_dst_lb_config": {"use_http_header": true}}));
        }),
        ("eds-waits", |it| {
            remove(
                &mut it.cluster("orders")["eds_cluster_config"]["eds_config"],
                "initial_fetch_timeout",
            );
        }),
        ("override-host-absent", |it| {
            let more = json!({"metadata": {"filter_metadata": {"pintle": {"service": "bills"}}}});
            members(it, "bills", more);
        }),
        ("metadata-unread", |it| {
            it.cluster("orders")["metadata"]["filter_metadata"]["pintle"]["servce"] = "o".into();
        }),
        ("health-beside", |it| it.cluster("orders")["outlier_detection"] = json!({})),
        ("health-beside", |it| {
            it.cluster("orders")["health_checks"] = json!([{"timeout": "1s"}]);
        }),
        ("agent-cluster-absent", |it| {
            *it = it.clone().agent_socket("/somewhere/else.sock");
        }),
        ("wasm-absent", |it| *it = it.clone().without_filter()),
    ];
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("envoy.json");
    let check = async |config: &EnvoyConfig| {
        std::fs::write(&file, config.to_json()).expect("a file");
        let file = file.display().to_string();
        found(&["--envoy-config", &file, "--socket", "/tmp/mine/agent.sock"]).await
    };
    let right =
        EnvoyConfig::shipped().expect("the shipped one").agent_socket("/tmp/mine/agent.sock");
    assert_eq!(check(&right).await, (BTreeSet::new(), false));
    // What a service's policy allows for is no mistake.
    let mut any = right.clone();
    host(&mut any)["retry_policy"]["retry_on"] = "retriable-4xx".into();
    settings(&mut any, |all| all["services"]["orders"]["breaker"]["retries"] = "any".into());
    assert_eq!(check(&any).await, (BTreeSet::new(), false));
    settings(&mut any, |all| all["services"]["orders"]["breaker"]["retries"] = "logged".into());
    assert_eq!(check(&any.upstream_log()).await, (BTreeSet::new(), false));
    for (number, (code, mistake)) in mistakes.into_iter().enumerate() {
        let mut wrong = right.clone();
        mistake(&mut wrong);
        let (codes, no) = check(&wrong).await;
        assert_eq!(codes, BTreeSet::from([code.to_owned()]), "mistake {number}");
        // A back-off below 10 ms ends Envoy.
        assert_eq!(no, code == "wasm-backoff" || !WARNINGS.contains(&code), "{code}");
    }
    let yaml = dir.path().join("agent.yaml");
    std::fs::write(&yaml, "etcd: {endpoint: [\"http://127.0.0.1:2379\"]}\n").expect("a file");
    std::fs::write(&file, right.to_json()).expect("a file");
    let (yaml, file) = (yaml.display().to_string(), file.display().to_string());
    let both = ["--config", &yaml, "--envoy-config", &file, "--socket", "/tmp/mine/agent.sock"];
    assert_eq!(found(&both).await, (BTreeSet::from(["config-refused".to_owned()]), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_what_runs_are_found_on_other_ports_than_the_defaults() {
    let mut world = World::start().await;
    let all = world.orders(2).await;
    let (admin, envoy) = (world.agent.admin().to_string(), world.envoy.admin().to_string());
    let check = async || found(&["--admin", &admin, "--envoy", &envoy]).await;
    let one = |code: &str| (BTreeSet::from([code.to_owned()]), true);
    let well = (BTreeSet::new(), false);
    assert_eventually!(PATIENCE, check().await == well);

    // Planted in the registry, and taken away again.
    let far = json!({"address": "192.168.7.1", "port": 80}).to_string();
    for (code, key, value) in [
        ("entries-refused", "/services/orders/orders-9", "{"),
        ("entries-all-refused", "/services/bills/bills-1", far.as_str()),
        ("policy-refused", "/pintle/policies/orders", r#"{"select": {"strategy": "best"}}"#),
    ] {
        world.etcd.put(key, value).await.expect("a put");
        assert_eventually!(PATIENCE, check().await == one(code));
        world.etcd.delete(key).await.expect("a removal");
        assert_eventually!(PATIENCE, check().await == well);
    }

    // A policy that nobody reads.
    world.etcd.put("/pintle/policy/orders", "{}").await.expect("a put");
    let etcd = world.etcd.url();
    let asked = found(&["--admin", &admin, "--envoy", &envoy, "--etcd", &etcd]).await;
    assert_eq!(asked, (one("keys-unread").0, false));
    world.etcd.delete("/pintle/policy/orders").await.expect("a removal");

    // One that may not be used, and is all that its service has.
    let ill = json!({"id": "ill-1", "name": "ill", "address": "127.0.0.1", "port": 9,
        "health": "draining"});
    world.etcd.put("/services/ill/ill-1", &ill.to_string()).await.expect("a put");
    assert_eventually!(PATIENCE, check().await == one("endpoints-unusable"));
    world.etcd.delete("/services/ill/ill-1").await.expect("a removal");
    assert_eventually!(PATIENCE, check().await == well);

    // Ordered, and forgotten.
    let nats = world.nats.url();
    for (order, code, bad) in [
        (["bypass", "orders", "--ttl", "10m"], "switch-in-force", false),
        (["failover", "orders", "--tag", "dr"], "failover-unmatched", true),
    ] {
        let order = [&order[..], &["--nats", &nats]].concat();
        assert!(Agent::command(&order).await.expect("pintle").status.success());
        assert_eventually!(PATIENCE, check().await == (one(code).0, bad));
        let off = [order[0], "orders", "--off", "--nats", &nats];
        assert!(Agent::command(&off).await.expect("pintle").status.success());
    }
    assert_eventually!(PATIENCE, check().await == well);

    // Ordered by hand, for both.
    for id in ["orders/orders-1", "orders/orders-2"] {
        let order = ["breaker", "force-open", id, "--ttl", "10m", "--nats", &nats];
        assert!(Agent::command(&order).await.expect("pintle").status.success());
    }
    assert_eventually!(PATIENCE, check().await == one("breakers-open"));
    for id in ["orders/orders-1", "orders/orders-2"] {
        let order = ["breaker", "clear", id, "--nats", &nats];
        assert!(Agent::command(&order).await.expect("pintle").status.success());
    }
    assert_eventually!(PATIENCE, check().await == well);

    // Whoever may open the socket, and one address under two ids.
    let socket = world.agent.socket().to_owned();
    let mode = |mode| std::fs::set_permissions(&socket, Permissions::from_mode(mode));
    let before = std::fs::metadata(&socket).expect("the socket").permissions().mode();
    mode(0o777).expect("its mode");
    assert_eq!(check().await.0, one("socket-open").0);
    mode(before).expect("its mode");
    world.etcd.register(&Instance::new("orders", "again", all[0].addr())).await.expect("a put");
    assert_eventually!(PATIENCE, check().await == (one("ids-several").0, false));
    world.etcd.deregister("orders", "again").await.expect("a removal");
    assert_eventually!(PATIENCE, check().await == well);

    // An Envoy whose cluster has hosts of its own, and one whose service nobody registers.
    let shipped = || {
        let config = EnvoyConfig::shipped().expect("the shipped configuration");
        config.agent_socket(world.agent.socket()).wasm(PINTLE_PATH).node("another")
    };
    let foreign = shipped().static_hosts("orders", &[([127, 0, 0, 1], 9).into()]);
    let mut stranger = shipped();
    stranger.cluster("orders")["metadata"]["filter_metadata"]["pintle"]["service"] =
        "ordres".into();
    let lacking = shipped().static_hosts("orders", &[all[0].addr()]);
    for (code, config) in
        [("hosts-foreign", foreign), ("hosts-missing", lacking), ("service-unknown", stranger)]
    {
        let other = Envoy::start(config).await.expect("Envoy");
        let envoy = other.admin().to_string();
        let found = async || found(&["--admin", &admin, "--envoy", &envoy]).await;
        assert_eventually!(PATIENCE, found().await == one(code));
        drop(other);
    }

    // An agent without any proxy, whose registry is of another scheme than it takes.
    let foreign = r#"{"id":"u","name":"hello","endpoints":["grpc://127.0.0.1:9"]}"#;
    world.etcd.put("/microservices/hello/u", foreign).await.expect("a put");
    let etcd = world.etcd.url();
    let sources = json!({"etcd": {"endpoints": [etcd], "sources": [{"format": "kratos"}]}});
    let other = Agent::builder().config("agent.yaml", &sources.to_string());
    let other = other.start().await.expect("an agent");
    let (at, file) = (other.admin().to_string(), other.state_dir().with_file_name("agent.yaml"));
    let asked = ["--admin", &at, "--config", &file.display().to_string(), "--envoy", &envoy];
    let codes = found(&asked).await;
    for code in ["scheme-foreign", "proxies-absent"] {
        assert!(with_code(&codes, code), "{codes:?}");
    }
    drop(other);

    // A process that takes all places that one may have.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(UnixStream::connect(world.agent.socket()).await.expect("a connection"));
    }
    let with = |codes: (BTreeSet<String>, bool), code: &str| with_code(&codes, code);
    assert_eventually!(PATIENCE, with(check().await, "quota-full"));
    drop(silent);

    // Fewer than half may be chosen; then an Envoy that stands still while the registry goes on.
    for number in 5..9 {
        let ill = json!({"id": format!("ill-{number}"), "name": "orders",
            "address": "127.0.0.1", "port": number, "health": "unhealthy"});
        let key = format!("/services/orders/ill-{number}");
        world.etcd.put(&key, &ill.to_string()).await.expect("a put");
    }
    assert_eventually!(PATIENCE, {
        world.get("/").await;
        with(check().await, "service-panics")
    });
    world.envoy.stop();
    let _fourth = world.newcomer("orders-4").await;
    assert_eventually!(PATIENCE, {
        with(found(&["--admin", &admin, "--no-envoy"]).await, "workers-behind")
    });
    world.envoy.cont();

    // All but one vanish at once: the rest is held.
    world.etcd.delete_prefix("/services/orders/").await.expect("a removal");
    assert_eventually!(PATIENCE, with(check().await, "removals-held"));
    world.etcd.kill9();
    world.nats.kill9();
    assert_eventually!(PATIENCE, {
        let codes = check().await;
        with(codes.clone(), "etcd-away") && with(codes, "nats-away")
    });
    world.agent.kill9();
    assert_eventually!(PATIENCE, with(check().await, "agent-away"));
}
