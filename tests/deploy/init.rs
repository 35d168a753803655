//! What `pintle init` writes is booted: agent, Envoy, and a request to a service of each kind.

use http_body_util::Full;
use hyper::Version;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Authority, Envoy, EnvoyConfig, Etcd, Instance, Upstream, assert_eventually, http,
};
use tempfile::TempDir;

use crate::PATIENCE;

async fn pintle(args: &[&str]) -> (Option<i32>, String) {
    let done = Agent::command(args).await.expect("pintle");
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_for_services_of_each_kind_is_booted() {
    let etcd = Etcd::start().await.expect("etcd");
    let authority = Authority::new().expect("an authority");
    let identity = authority.issue(&["vault.internal"]).expect("a certificate");
    let orders = Upstream::start("orders-1").await.expect("an upstream");
    let ledger = Upstream::start("ledger-1").await.expect("an upstream");
    let vault = Upstream::start_tls("vault-1", &identity).await.expect("an upstream");
    let mut cache = Vec::new();
    for name in ["cache-1", "cache-2"] {
        cache.push(Upstream::start(name).await.expect("an upstream"));
    }

    let dir = TempDir::with_prefix("pintle-init-").expect("a directory");
    let place = dir.path().join("new").display().to_string();
    let etcd_at = etcd.url();
    let secret = format!("vault,tls=vault.internal,ca={}", authority.certificate().display());
    let known = format!("cache,static={},static={}", cache[0].addr(), cache[1].addr());
    let services = ["orders", "ledger,grpc,domain=ledger.example", &secret, &known];
    let services = services.iter().flat_map(|service| ["--service", service]);
    let rest = ["--etcd", &etcd_at, "--module", PINTLE_PATH];
    let line: Vec<&str> = ["init", &place].into_iter().chain(services).chain(rest).collect();
    let (code, said) = pintle(&line).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = pintle(&line).await;
    assert!(code == Some(1) && said.contains("--force"), "{said}");

    let path = |name: &str| format!("{place}/{name}");
    let (config, bootstrap) = (path("agent.yaml"), path("envoy.yaml"));
    let (code, said) = pintle(&["check", "--config", &config, "--envoy-config", &bootstrap]).await;
    assert_eq!(code, Some(0), "{said}");

    // What is this machine's alone: where to listen, and where the socket is.
    let text = |name: &str| std::fs::read_to_string(path(name)).expect("a file");
    let agent = Agent::builder().config("agent.yaml", &text("agent.yaml"));
    let agent = agent.start().await.expect("the agent");
    let mut written = EnvoyConfig::shipped().expect("a configuration");
    *written.root() = serde_yaml_ng::from_str(&text("envoy.yaml")).expect("YAML");
    let envoy = Envoy::start(written.agent_socket(agent.socket())).await.expect("Envoy");

    let mut last = None;
    for (service, upstream) in [("orders", &orders), ("ledger", &ledger), ("vault", &vault)] {
        let instance = Instance::of(service, upstream);
        last = Some(etcd.register(&instance).await.expect("a registration"));
    }
    agent.settled(last.expect("registrations")).await.expect("every worker knows");
    let ask = async |host: &str| {
        let request: hyper::Request<Full<_>> =
            http::request(host, "GET", "/", "").expect("a request");
        http::send(envoy.addr(), request).await.map_or(0, |reply| reply.status)
    };
    let unknown = async || envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    for host in ["orders", "ledger.example", "vault:10000", "cache", "nobody.example"] {
        assert_eventually!(PATIENCE, ask(host).await == 200, "{host}");
    }
    let before = unknown().await;
    for host in ["orders", "ledger.example", "vault:10000", "nobody.example"] {
        assert_eq!(ask(host).await, 200, "{host}");
    }
    for _ in 0..40 {
        assert_eq!(ask("cache").await, 200);
    }
    assert_eq!(unknown().await, before, "each has a table");
    assert!(cache.iter().all(|upstream| upstream.requests() > 0));
    let spoken = |upstream: &Upstream| upstream.seen().last().map(|seen| seen.version);
    assert_eq!(spoken(&ledger), Some(Version::HTTP_2));
    assert_eq!(spoken(&orders), Some(Version::HTTP_11));
    assert!(text("pintle.service").contains(&format!("run --config {config}\n")));
}
