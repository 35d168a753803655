//! Registries of other frameworks on a real etcd, each with its lease.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions};
use pintle_agent::registration::{Instance, RegisterConfig, register};
use pintle_agent::source::{SourceConfig, SourcesConfig};
use pintle_tests::Etcd;
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, key, secs, value, with_etcd};

fn with_sources(etcd: &Etcd, yaml: &str) -> SourcesConfig {
    let sources: serde_json::Value = serde_yaml_ng::from_str(yaml).unwrap();
    let keys = serde_json::json!({ "endpoints": [etcd.url()], "sources": sources });
    let mut config = with_etcd(vec![etcd.url()]);
    config.state.protect = false;
    config.etcd = Some(pintle_settings::read("etcd", keys).unwrap());
    config
}

/// `ip:port` of a service's endpoints, sorted.
fn addresses(agent: &Agent, service: &str) -> Vec<String> {
    let snapshot = agent.snapshot();
    let endpoints = snapshot.services.get(service).map(|s| s.table.endpoints.as_slice());
    let mut all: Vec<_> =
        endpoints.unwrap_or_default().iter().map(|e| e.socket_addr().to_string()).collect();
    all.sort();
    all
}

const SOURCES: &str = "
- {format: grpc, prefix: naming/}
- {format: jupiter}
- {format: go-zero, prefix: user.rpc}
- {format: kratos}
- {format: kratos, scheme: grpc, name: '{name}-grpc'}
- {format: kitex}
- {format: hertz}
- {format: dubbo}
- {format: goframe}
- {format: go-micro}
- {format: rpcx, prefix: /rpcx_test}
- {format: trpc}
- {format: shenyu}
- {format: skydns}
- {format: custom, prefix: acme, key: '{name}:{address}', value: text, fields: {address: ''}}
";

/// Service, key, value, addresses: as the frameworks write them (REGISTRIES.md has where it was
/// read).
const ROWS: &[(&str, &str, &str, &[&str])] = &[
    (
        "shop",
        "naming/shop/10.0.1.1:80",
        r#"{"Op":0,"Addr":"10.0.1.1:80","Metadata":null}"#,
        &["10.0.1.1:80"],
    ),
    (
        "main:v1:dev",
        "grpc:main:v1:dev/10.0.1.2:80",
        r#"{"Op":0,"Addr":"10.0.1.2:80","Metadata":{"weight":100,"enable":true,"healthy":true}}"#,
        &["10.0.1.2:80"],
    ),
    ("user.rpc", "user.rpc/7587862094212345678", "10.0.1.3:80", &["10.0.1.3:80"]),
    (
        "hello",
        "/microservices/hello/u",
        r#"{"id":"u","name":"hello","version":"v1","metadata":null,"endpoints":["http://10.0.1.4:80?isSecure=false","grpc://10.0.1.4:90"]}"#,
        &["10.0.1.4:80"],
    ),
    (
        "echo",
        "kitex/registry-etcd/echo/10.0.1.5:80",
        r#"{"network":"tcp","address":"10.0.1.5:80","weight":10,"tags":null}"#,
        &["10.0.1.5:80"],
    ),
    (
        "hertz.hello",
        "hertz/registry-etcd/hertz.hello/10.0.1.6:80",
        r#"{"network":"tcp","address":"10.0.1.6:80","weight":10,"tags":{"k":"v"}}"#,
        &["10.0.1.6:80"],
    ),
    (
        "dubbo-shop",
        "/services/dubbo-shop/10.0.1.7:20000",
        r#"{"ID":"10.0.1.7:20000","ServiceName":"dubbo-shop","Host":"10.0.1.7","Port":20000,"Weight":0,"Enable":true,"Healthy":true,"Metadata":{}}"#,
        &["10.0.1.7:20000"],
    ),
    (
        "frame",
        "/service/default/default/frame/latest/10.0.1.8:80,10.0.1.9:80",
        r#"{"insecure":true,"protocol":"http"}"#,
        &["10.0.1.8:80", "10.0.1.9:80"],
    ),
    (
        "greeter",
        "/micro/registry/greeter/greeter-u",
        r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"id":"greeter-u","address":"10.0.1.10:80","metadata":{"protocol":"grpc"}}]}"#,
        &["10.0.1.10:80"],
    ),
    ("Arith", "/rpcx_test/Arith/tcp@10.0.1.11:80", "weight=5&group=test", &["10.0.1.11:80"]),
    (
        "trpc.app",
        "trpc/registry/services/trpc.app/10.0.1.12-80-7",
        r#"{"name":"trpc.app","id":"10.0.1.12-80-7","address":"10.0.1.12:80","weight":1}"#,
        &["10.0.1.12:80"],
    ),
    (
        "orders",
        "/shenyu/register/instance/orders/10.0.1.13:80",
        r#"{"appName":"orders","host":"10.0.1.13","port":80,"weight":50,"status":0}"#,
        &["10.0.1.13:80"],
    ),
    (
        "web.local",
        "/skydns/local/web/1",
        r#"{"host":"10.0.1.14","port":80,"ttl":60}"#,
        &["10.0.1.14:80"],
    ),
    ("mine", "acme/mine:a", "10.0.1.15:80", &["10.0.1.15:80"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_format_comes_with_its_lease_and_goes_with_it() {
    let etcd = Etcd::start().await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    etcd.put(&key("own", "a"), &value("own", "a", 1)).await.unwrap();
    etcd.put("/rpcx_test/Arith", "").await.unwrap();
    etcd.put("/microservices2/hello/u", ROWS[3].2).await.unwrap();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    let put = |key: &str| (key.to_owned(), PutOptions::new().with_lease(lease));
    let (listed, watched) = ROWS.split_at(ROWS.len() / 2);
    for (_, key, value, _) in listed {
        let (key, options) = put(key);
        client.put(key, *value, Some(options)).await.unwrap();
    }
    let agent = Agent::start(with_sources(&etcd, SOURCES));
    agent.watching().await;
    for (_, key, value, _) in watched {
        let (key, options) = put(key);
        client.put(key, *value, Some(options)).await.unwrap();
    }
    let expect: BTreeMap<&str, &[&str]> =
        ROWS.iter().map(|(service, _, _, addresses)| (*service, *addresses)).collect();
    for (service, at) in &expect {
        agent.until(secs(10), service, |a| addresses(a, service) == *at).await;
    }
    agent
        .until(secs(5), "the other scheme", |a| addresses(a, "hello-grpc") == ["10.0.1.4:90"])
        .await;
    agent.until(secs(5), "our own", |a| a.ids("own") == ["a"]).await;
    assert!(agent.snapshot().rejected.is_empty());
    assert_eq!(agent.sources().keys_beside, 1, "rpcx' own key, and nobody's sibling");
    // Churn of equal values, as rpcx rewrites them, publishes nothing.
    let before = agent.snapshot().version;
    let again = client.put(ROWS[9].1, ROWS[9].2, Some(PutOptions::new().with_lease(lease)));
    let reached = again.await.unwrap().header().unwrap().revision();
    let reached = u64::try_from(reached).unwrap();
    agent.until(secs(5), "it again", |a| a.sources().etcd.position >= reached).await;
    assert_eq!(agent.snapshot().version, before);
    client.lease_revoke(lease).await.unwrap();
    agent.until(secs(10), "all gone but our own", |a| a.count() == 1).await;
}

/// An instance of go-zero that lost its lease registers under another key while the old one lives
/// on for up to ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_go_zero_instance_under_two_keys_is_one_endpoint_throughout() {
    let etcd = Etcd::start().await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let mut config = with_sources(&etcd, "[{format: go-zero, prefix: user.rpc}]");
    config.state.protect = true;
    let agent = Agent::start(config);
    agent.watching().await;
    let mut register = async || {
        let lease = client.lease_grant(60, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(lease);
        let key = format!("user.rpc/{lease}");
        client.put(key, "10.0.0.5:8080", Some(options)).await.unwrap();
        lease
    };
    let mut old = register().await;
    agent.until(secs(5), "the instance", |a| a.count() == 1).await;
    let mut snapshots = agent.running.snapshots.clone();
    for _ in 0..5 {
        let new = register().await;
        etcd.call("/v3/lease/revoke", &serde_json::json!({"ID": old.to_string()})).await.unwrap();
        old = new;
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            let count = snapshots.borrow_and_update().services["user.rpc"].table.endpoints.len();
            assert_eq!(count, 1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(agent.sources().removals_held, 0, "the going of one of two keys is no removal");
    assert_eq!(addresses(&agent, "user.rpc"), ["10.0.0.5:8080"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_format_is_named_and_other_sources_are_taken_over_by_a_reload() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put("/services/hello/u", ROWS[3].2).await.unwrap();
    etcd.put("naming/shop/a", ROWS[0].2.replace("10.0.1.1", "shop.svc").as_str()).await.unwrap();
    let agent = Agent::start(with_sources(&etcd, "[{format: grpc, prefix: naming/}]"));
    let refused = |a: &Agent| -> Vec<(String, String)> {
        let snapshot = a.snapshot();
        snapshot.rejected.iter().map(|r| (r.key.clone(), r.detail.clone())).collect()
    };
    agent.until(secs(5), "both refused", |a| refused(a).len() == 2).await;
    let all = refused(&agent);
    assert!(all.iter().any(|(_, detail)| detail.contains("set `format: kratos`")), "{all:?}");
    assert!(
        all.iter().any(|(_, detail)| detail.contains("\"shop.svc\" is a host name")),
        "{all:?}"
    );
    etcd.put("naming/shop/a", ROWS[0].2).await.unwrap();
    agent.until(secs(5), "one is good", |a| refused(a).len() == 1).await;
    let sources = "[{format: kratos, prefix: /services/}]";
    agent.running.reload(with_sources(&etcd, sources)).unwrap();
    agent.until(secs(5), "the other format", |a| addresses(a, "hello") == ["10.0.1.4:80"]).await;
    agent.until(secs(5), "nothing refused", |a| refused(a).is_empty()).await;
    agent.until(secs(5), "the other source gone", |a| addresses(a, "shop").is_empty()).await;
}

/// Every form but those that share another's bytes.
#[tokio::test(flavor = "multi_thread")]
async fn what_register_writes_in_each_format_is_read_back() {
    let etcd = Etcd::start().await.unwrap();
    let agent = Agent::start(with_sources(&etcd, SOURCES));
    agent.watching().await;
    let stop = CancellationToken::new();
    let mut running = Vec::new();
    let formats: Vec<SourceConfig> = with_sources(&etcd, SOURCES).etcd.unwrap().sources;
    let mut names = Vec::new();
    for (at, source) in formats.iter().enumerate().filter(|(_, s)| s.scheme == "http") {
        let name = if source.format.as_str() == "go-zero" {
            "user.rpc".to_owned()
        } else {
            format!("{}.app", source.format)
        };
        let instance = serde_json::json!({
            "name": name, "id": format!("i{at}"), "address": "10.0.2.1", "port": 8000 + at,
            "metadata": {"weight": "7", "zone": "z1", "protocol": "http"},
        });
        let instances: Vec<Instance> = vec![pintle_settings::read("instance", instance).unwrap()];
        let sources = with_sources(&etcd, SOURCES).etcd.unwrap();
        let mut config = RegisterConfig { etcd: sources, instances, ..RegisterConfig::default() };
        config.format = Some(source.format);
        config.drain = Duration::ZERO;
        if source.format.as_str() == "go-zero" {
            // Its keys are {prefix}{name}/{lease}, as for every other.
            config.prefix = Some(b"zero/".to_vec());
        }
        running.push(tokio::spawn(register(config, stop.clone())));
        names.push((source.format.as_str(), name, format!("10.0.2.1:{}", 8000 + at)));
    }
    for (format, name, address) in &names {
        if *format == "go-zero" {
            continue;
        }
        agent.until(secs(10), format, |a| addresses(a, name) == [address.as_str()]).await;
        let snapshot = agent.snapshot();
        let endpoint = &snapshot.services[name].table.endpoints[0];
        let has_weight = !matches!(*format, "custom");
        assert_eq!(endpoint.weight, if has_weight { 7 } else { 1 }, "{format}: {endpoint:?}");
    }
    let zero = etcd.list("zero/user.rpc/").await.unwrap();
    assert_eq!(zero.len(), 1);
    assert!(zero[0].1.starts_with("10.0.2.1:"), "{zero:?}");
    stop.cancel();
    for task in running {
        task.await.unwrap();
    }
    agent.until(secs(10), "all gone", |a| a.count() == 0).await;
    assert!(agent.snapshot().rejected.is_empty());
}

/// Debian's `golang-go` and `golang-etcd-server-dev` have the library; where they are not
/// installed, the bytes of [`ROWS`] stand for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_library_of_grpcs_naming_registers_is_served() {
    const LIBRARY: &str = "/usr/share/gocode/src/go.etcd.io/etcd/clientv3/naming/endpoints";
    if !std::path::Path::new(LIBRARY).exists() {
        println!("not tried: no {LIBRARY} (apt-get install golang-go golang-etcd-server-dev)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("naming");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd/naming.go");
    let built = std::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(source)
        .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "-p=2")])
        .env("GOCACHE", std::env::temp_dir().join("pintle-go-cache"))
        .status()
        .unwrap();
    assert!(built.success());
    let etcd = Etcd::start().await.unwrap();
    let agent = Agent::start(with_sources(&etcd, "[{format: grpc, prefix: naming/}]"));
    agent.watching().await;
    let mut registrar = std::process::Command::new(&program)
        .args([etcd.addr().to_string().as_str(), "naming/team/shop", "10.0.0.5:8080"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let there = |a: &Agent| addresses(a, "team%2Fshop") == ["10.0.0.5:8080"];
    agent.until(secs(20), "the endpoint", there).await;
    assert_eq!(agent.snapshot().services["team%2Fshop"].table.endpoints[0].zone, "a");
    drop(registrar.stdin.take());
    assert!(registrar.wait().unwrap().success());
    agent.until(secs(10), "its end", |a| a.count() == 0).await;
}
