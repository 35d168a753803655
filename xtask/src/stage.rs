//! What the demo plays on: the servers, each ending with [`World`] on every way out (an error,
//! Ctrl-C, SIGTERM, even SIGKILL), and the bounds that `--check` holds the figures to.

use std::time::Duration;

use pintle_tests::{Agent, Envoy, EnvoyConfig, Etcd, Nats, Result, Upstream, tools};
use serde_json::{Value, json};

/// A service of its own for the rounds of measuring, so that the story stays small to look at.
pub const SECOND: &str = "payments";

/// Everything that runs.
pub struct World {
    pub etcd: Etcd,
    pub nats: Nats,
    pub agent: Agent,
    pub envoy: Envoy,
}

/// What was measured, in the units of the names.
#[derive(Debug, Default)]
pub struct Figures {
    /// etcd put to first request at the new endpoint, one per round.
    pub propagation_ms: Vec<f64>,
    /// Requests that reached the failing endpoint before its breaker opened.
    pub breaker_failures: usize,
    /// From the endpoint's recovery until 20 requests have come to it again, in turns.
    pub breaker_recovery_ms: f64,
    /// From the end of the policy of turns until five requests come to it within 200 ms.
    pub trusted_ms: f64,
    /// What it then got by latency and load, as a part of the mean.
    pub recovered_share: f64,
    /// Drain event at the server to last request at the endpoint.
    pub drain_ms: f64,
    /// Requests sent while the agent was gone, and until it had caught up.
    pub agent_gone_requests: usize,
    /// Those of them that failed.
    pub failed_requests: usize,
    /// From the agent's start to the first request at what was registered meanwhile.
    pub catch_up_ms: f64,
    /// Whether the trace of a client reached the upstream as it came: nothing exports a span here,
    /// and a parent that nobody ever sees would cut the chain.
    pub trace_continued: bool,
    /// How often a VM trapped and was rebuilt.
    pub vm_reloads: u64,
}

impl Figures {
    /// The share (0..=1) of rounds that stayed within the returned time.
    pub fn propagation(&self, share: f64) -> f64 {
        let mut sorted = self.propagation_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
    }

    /// Every bound that does not hold, in words.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut hold = |good: bool, what: String| {
            if !good {
                broken.push(what);
            }
        };
        let p99 = self.propagation(0.99);
        let rounds = self.propagation_ms.len();
        hold(rounds >= 20, format!("{rounds} rounds of propagation, 20 wanted"));
        hold(p99 < 50.0, format!("propagation p99 {p99:.1} ms, below 50 wanted"));
        let (failures, drain) = (self.breaker_failures, self.drain_ms);
        hold(failures <= 5, format!("{failures} failures before the breaker opened, 5 allowed"));
        hold(drain < 50.0, format!("drain {drain:.1} ms, below 50 wanted"));
        let trusted = self.trusted_ms;
        hold(trusted < 5000.0, format!("trusted after {trusted:.0} ms, below 5000 wanted"));
        let share = self.recovered_share;
        let even = (0.75..=1.25).contains(&share);
        hold(even, format!("the recovered got {share:.2} of the mean, 0.75 to 1.25 wanted"));
        let (failed, back) = (self.failed_requests, self.catch_up_ms);
        hold(failed == 0, format!("{failed} failed requests without the agent, 0 allowed"));
        hold(self.agent_gone_requests > 0, "no request was sent without the agent".into());
        hold(back < 1000.0, format!("caught up after {back:.0} ms, below 1000 wanted"));
        hold(self.trace_continued, "the trace did not reach the upstream".into());
        hold(self.vm_reloads == 0, format!("{} VM reloads, 0 allowed", self.vm_reloads));
        broken
    }

    pub fn json(&self) -> Value {
        let tenth = |ms: f64| (ms * 10.0).round() / 10.0;
        json!({
            "propagation_ms": {
                "p50": tenth(self.propagation(0.5)),
                "p99": tenth(self.propagation(0.99)),
                "rounds": self.propagation_ms.len(),
            },
            "breaker_failures": self.breaker_failures,
            "breaker_recovery_ms": tenth(self.breaker_recovery_ms),
            "trusted_ms": tenth(self.trusted_ms),
            "recovered_share": (self.recovered_share * 100.0).round() / 100.0,
            "drain_ms": tenth(self.drain_ms),
            "agent_gone_requests": self.agent_gone_requests,
            "failed_requests": self.failed_requests,
            "catch_up_ms": tenth(self.catch_up_ms),
            "trace_continued": self.trace_continued,
            "vm_reloads": self.vm_reloads,
        })
    }
}

impl World {
    /// A breaker stays `open` so long.
    pub async fn start(open: &str) -> Result<Self> {
        println!("starting etcd, nats-server, the agent and Envoy (two workers)");
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start())?;
        let agent = Agent::with(&etcd, &nats).start().await?;
        let config = EnvoyConfig::shipped()?
            .service(SECOND)
            .agent_socket(agent.socket())
            .wasm(tools::module()?)
            .plugin(|plugin| {
                plugin["breaker"] = json!({"open": open, "jitter_percent": 0});
            });
        let envoy = Envoy::start(config).await?;
        Ok(Self { etcd, nats, agent, envoy })
    }

    pub fn invite(&self) {
        let (envoy, admin) = (self.envoy.addr(), self.envoy.admin());
        let (etcd, nats, agent) = (self.etcd.url(), self.nats.url(), self.agent.admin());
        println!("\nAll of it stays up until Ctrl-C. To try by hand:");
        println!(
            "  curl -s http://{envoy}/                  one request, answered with its own headers"
        );
        println!("  curl -s http://{admin}/clusters          what Envoy knows");
        println!(
            "  curl -s http://{agent}/v1/services       what the agent knows; / is the status page"
        );
        println!("  ETCDCTL_API=3 etcdctl --endpoints {etcd} get --prefix /services/");
        println!("  pintle drain --nats {nats} orders/orders-2 --ttl 10s");
    }
}

/// An upstream that takes as long as a quick service does, so that picking by latency has something
/// to look at.
pub async fn quick(name: &str) -> Result<Upstream> {
    let upstream = Upstream::start(name).await?;
    let latency =
        pintle_tests::Latency::Uniform(Duration::from_millis(1), Duration::from_millis(3));
    upstream.set(pintle_tests::Behaviour::slow(latency));
    Ok(upstream)
}
