//! An agent that may open 64 files, and peers who take all that they can get.

use std::net::SocketAddr;

use pintle_tests::{Agent, Etcd, Instance, Server as _, assert_eventually, http};
use tokio::net::{TcpStream, UnixStream};

use crate::support::PATIENCE;

async fn is_full(agent: &Agent) -> bool {
    let Ok(reply) = http::get(agent.admin(), "/v1/agent").await else { return false };
    let quotas = reply.json().expect("JSON")["quotas"].clone();
    let mut all = quotas.as_array().into_iter().flatten();
    all.any(|quota| quota["kind"] == "connections" && quota["full"] == true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_64_descriptors_health_answers_what_is_full_is_said_and_the_registry_is_read() {
    let etcd = Etcd::start().await.expect("etcd");
    let loopback: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    etcd.register(&Instance::new("orders", "a", loopback)).await.expect("a registration");
    let agent = Agent::builder().etcd(etcd.url());
    let agent = agent.under(&["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
    let mut agent = agent.start().await.expect("the agent");

    let mut proxies = Vec::new();
    assert_eventually!(PATIENCE, {
        for _ in 0..100 {
            proxies.extend(UnixStream::connect(agent.socket()).await.ok());
        }
        is_full(&agent).await
    });
    let mut readers = Vec::new();
    for _ in 0..100 {
        readers.extend(TcpStream::connect(agent.admin()).await.ok());
    }
    for path in ["/healthz", "/readyz"].repeat(5) {
        let reply = http::get(agent.admin(), path).await.expect("an answer");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    etcd.register(&Instance::new("users", "a", loopback)).await.expect("a registration");
    drop(readers);
    assert_eventually!(PATIENCE, {
        let services = agent.services().await.map(|it| it.to_string()).unwrap_or_default();
        services.contains("users")
    });
    assert!(agent.log().contains("quota is used up"), "{}", agent.log());
}
