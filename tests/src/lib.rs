//! The servers that the tests, the benches and the demo run against, each of them real.
//!
//! A fixture owns what it starts: its own process, its own directory, its own ports on loopback,
//! and it takes all of them away when it is dropped. Nothing listens on a fixed port, so any number
//! of tests runs at once; a server that is killed comes back on the port it had, because the port
//! stays reserved (`Port`). A test runner that is itself killed leaves nothing behind: the kernel
//! ends the children.
//!
//! Not here: mocks, fakes that answer what a test expects, and skips. A missing binary is an error
//! that names the line which installs it, since a test that silently did not run is worse than a
//! red one.
//!
//! ```no_run
//! # async fn example() -> pintle_tests::Result<()> {
//! use pintle_tests::{Agent, Envoy, EnvoyConfig, Etcd, Instance, Load, Nats, Upstream};
//!
//! let (etcd, nats) = (Etcd::start().await?, Nats::start().await?);
//! let one = Upstream::start("orders-1").await?;
//! etcd.register(&Instance::of("orders", &one)).await?;
//! let agent = Agent::with(&etcd, &nats).start().await?;
//! let config = EnvoyConfig::shipped()?.agent_socket(agent.socket()).wasm("pintle.wasm");
//! let envoy = Envoy::start(config).await?;
//! let report = Load::to(envoy.addr()).host("orders").rate(1000.0).run_for_secs(2.0).await;
//! assert_eq!(report.failed(), 0, "{}", report.summary());
//! # Ok(())
//! # }
//! ```

mod agent;
pub mod browser;
mod clock;
mod collector;
mod envoy;
mod envoy_config;
mod error;
mod etcd;
mod etcd_peers;
mod haproxy;
pub mod http;
mod load;
mod nats;
mod patience;
mod port;
mod process;
mod prometheus;
mod proxy;
mod stalls;
pub mod text;
mod tls;
pub mod tools;
mod trap;
mod upstream;

pub use agent::{Agent, AgentBuilder};
pub use clock::Clock;
pub use collector::{Call, Collector, Manner};
pub use envoy::Envoy;
pub use envoy_config::EnvoyConfig;
pub use error::{Error, Result};
pub use etcd::{Etcd, EtcdCluster, Instance, Written};
pub use haproxy::HaProxy;
pub use load::{Load, Outcome, Report, Running, Sample};
pub use nats::{Message, Nats, Tap};
pub use patience::{Patience, pause};
pub use port::Port;
pub use process::{Process, Server, Spec};
pub use prometheus::Prometheus;
pub use proxy::{Fault as NetworkFault, Proxy, most_within};
pub use stalls::Stalls;
pub use tls::{Authority, Identity};
pub use trap::trapping;
pub use upstream::{Behaviour, Fault, Grpc, Latency, Seen, Upstream};

/// Waits until the condition holds, for at most the budget, and panics with the condition's text
/// (or the message given) when it does not. The condition may `.await`; it is asked every 5 ms.
///
/// ```no_run
/// # async fn f(envoy: pintle_tests::Envoy) {
/// use std::time::Duration;
/// pintle_tests::assert_eventually!(Duration::from_secs(2), envoy.stat("server.live").await == Some(1));
/// # }
/// ```
#[macro_export]
macro_rules! assert_eventually {
    ($budget:expr, $condition:expr $(,)?) => {
        $crate::assert_eventually!($budget, $condition, "{}", stringify!($condition))
    };
    ($budget:expr, $condition:expr, $($message:tt)+) => {{
        let budget: ::std::time::Duration = $budget;
        let mut patience = $crate::Patience::new(budget);
        while !$condition {
            if !patience.lasts().await {
                panic!("not within {budget:?}: {}", format_args!($($message)+));
            }
        }
    }};
}
