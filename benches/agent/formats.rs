//! Registries of other frameworks, each as large as our own: how soon a reader holds all of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use etcd_client::{Client, TxnOp};
use pintle_tests::{Agent, Error, Etcd, Result, Server as _};
use serde_json::json;

use crate::{Bound, Figures, PATIENCE, put};
use pintle_benches::reader::Reader;
use pintle_benches::transaction::{commit, failed};

/// Instances of each.
const INSTANCES: usize = 10_000;
/// Services of each; go-zero has a source for each, of which an agent takes 32.
const SERVICES: usize = 20;

/// A framework: what its figures are called, a source of it, and what it writes for an instance.
struct Framework {
    start: &'static str,
    memory: &'static str,
    sources: fn() -> serde_json::Value,
    write: fn(&str, SocketAddr) -> (String, String),
}

const FRAMEWORKS: [Framework; 6] = [
    Framework {
        start: "grpc_start_s",
        memory: "grpc_rss_mib",
        sources: || json!([{"format": "grpc", "prefix": "naming/"}]),
        write: |service, at| {
            let value = json!({"Op": 0, "Addr": at.to_string(), "Metadata": null});
            (format!("naming/{service}/{at}"), value.to_string())
        },
    },
    Framework {
        start: "go_zero_start_s",
        memory: "go_zero_rss_mib",
        sources: || {
            (0..SERVICES).map(|n| json!({"format": "go-zero", "prefix": name(n)})).collect()
        },
        write: |service, at| {
            let lease = 7_587_862_094_212_345_678_u64.wrapping_add(number(at).into());
            (format!("{service}/{lease}"), at.to_string())
        },
    },
    Framework {
        start: "kratos_start_s",
        memory: "kratos_rss_mib",
        sources: || json!([{"format": "kratos"}]),
        write: |service, at| {
            let id = format!("u{}", number(at));
            let value = json!({"id": id, "name": service, "version": "v1",
                "metadata": {"weight": "10"},
                "endpoints": [format!("http://{at}"), format!("grpc://{at}")]});
            (format!("/microservices/{service}/{id}"), value.to_string())
        },
    },
    Framework {
        start: "kitex_start_s",
        memory: "kitex_rss_mib",
        sources: || json!([{"format": "kitex"}]),
        write: |service, at| {
            let value =
                json!({"network": "tcp", "address": at.to_string(), "weight": 10, "tags": null});
            (format!("kitex/registry-etcd/{service}/{at}"), value.to_string())
        },
    },
    Framework {
        start: "dubbo_start_s",
        memory: "dubbo_rss_mib",
        sources: || json!([{"format": "dubbo"}]),
        write: |service, at| {
            let value = json!({"ID": at.to_string(), "ServiceName": service,
                "Host": at.ip().to_string(), "Port": at.port(), "Weight": 0, "Enable": true,
                "Healthy": true, "Metadata": {}});
            (format!("/services/{service}/{at}"), value.to_string())
        },
    },
    Framework {
        start: "goframe_start_s",
        memory: "goframe_rss_mib",
        sources: || json!([{"format": "goframe"}]),
        write: |service, at| {
            let value = json!({"insecure": true, "protocol": "http"});
            (format!("/service/default/default/{service}/v1/{at}"), value.to_string())
        },
    },
];

/// Each in an etcd of its own, read by an agent that has nothing on disk; one of them where it is
/// brief.
pub async fn measure(figures: &mut Figures, brief: bool) -> Result<()> {
    let count = if brief { 1 } else { FRAMEWORKS.len() };
    for framework in &FRAMEWORKS[..count] {
        let etcd = Etcd::start().await?;
        let mut client = Client::connect([etcd.url()], None).await.map_err(failed)?;
        let puts: Vec<TxnOp> = (0..INSTANCES)
            .map(|n| {
                let (key, value) = (framework.write)(&name(n % SERVICES), address(n));
                TxnOp::put(key, value, None)
            })
            .collect();
        commit(&mut client, &puts).await?;
        let sources = (framework.sources)();
        let config = json!({"etcd": {"endpoints": [etcd.url()], "sources": sources}});
        let began = Instant::now();
        let mut agent = Agent::builder().config("agent.yaml", &config.to_string()).launch()?;
        let reader = Reader::connect_within(agent.socket(), "bench", PATIENCE).await?;
        let all = reader.until(PATIENCE, |held| held.endpoints() == INSTANCES).await?;
        let Some(all) = all else {
            let here = reader.look(|held| held.endpoints());
            return Err(Error::new(format!("{}: {here} endpoints", framework.start)));
        };
        put(figures, framework.start, (all - began).as_secs_f64(), Bound::AtMost(1.0));
        put(figures, framework.memory, crate::peak(&mut agent), Bound::AtMost(128.0));
        agent.process().kill9();
    }
    Ok(())
}

fn name(service: usize) -> String {
    format!("svc-{service:03}")
}

fn address(instance: usize) -> SocketAddr {
    let [.., high, low] = (instance as u32).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 2, high, low), 8_000))
}

fn number(at: SocketAddr) -> u32 {
    match at.ip() {
        std::net::IpAddr::V4(ip) => ip.to_bits(),
        std::net::IpAddr::V6(_) => 0,
    }
}
