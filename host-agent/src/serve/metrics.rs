//! `/metrics`: what the fleet's sums, the snapshot and the sources come to, at the moment of
//! asking.
//!
//! A collector rather than registered metrics, because nothing here is counted in this file: each
//! scrape reads one view, and a series exists while its service or endpoint does. Labels come from
//! the registry (bounded names) and from fixed sets; endpoint series stop at a configured number of
//! endpoints, the rest is counted in `pintle_endpoints_without_series`.
//!
//! The library writes OpenMetrics, which is served to those who accept it. Everybody else, promtool
//! included, gets the Prometheus text format 0.0.4, which differs in three things only: there the
//! type of a counter belongs to the name with `_total`, and `UNIT` and `EOF` do not exist.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use self::out::Out;
use crate::condition::Condition;
use crate::fleet::{Fleet, When};
use crate::link::{Snapshots, SourcesWatch};

mod agent;
mod out;
mod traffic;

pub(crate) use agent::{Names, Served};

/// The type of OpenMetrics.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The type of the Prometheus text format.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

#[derive(Debug)]
struct Scrape {
    snapshots: Snapshots,
    sources: SourcesWatch,
    fleet: Arc<Fleet>,
    socket: Option<Served>,
    max_endpoints: usize,
    names: Names,
    started: SystemTime,
}
impl Metrics {
    /// At most `max_endpoints` endpoints get series of their own.
    #[must_use]
    pub(crate) fn new(
        snapshots: Snapshots,
        sources: SourcesWatch,
        fleet: Arc<Fleet>,
        socket: Option<Served>,
        max_endpoints: usize,
        names: Names,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape {
            snapshots,
            sources,
            fleet,
            socket,
            max_endpoints,
            names,
            started: SystemTime::now(),
        }));
        Self { registry }
    }

    /// The type of the exposition that a client with this `Accept` header reads.
    #[must_use]
    pub(crate) fn kind(accept: &str) -> &'static str {
        if accept.contains("application/openmetrics-text") { OPENMETRICS } else { TEXT }
    }

    /// The exposition that a client with this `Accept` header reads, and its type.
    #[must_use]
    pub(crate) fn expose(&self, accept: &str) -> (&'static str, String) {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        match Self::kind(accept) {
            OPENMETRICS => (OPENMETRICS, out),
            kind => (kind, to_text(&out)),
        }
    }
}

/// OpenMetrics as Prometheus text 0.0.4.
fn to_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            help = line;
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap_or((declared, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let words = help
                .strip_prefix("# HELP ")
                .and_then(|help| help.strip_prefix(name))
                .unwrap_or_default();
            let _ = writeln!(out, "# HELP {name}{suffix}{words}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = When::now();
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let sources = self.sources.borrow().clone();
        let view = self.fleet.view(now);
        let out = &mut Out(encoder);
        traffic::requests(out, &view)?;
        traffic::endpoints(out, &snapshot, &view, self.max_endpoints)?;
        traffic::services(out, &snapshot, &view, now.wall)?;
        let condition = {
            let sources = self.sources.borrow();
            Condition::of(&snapshot, &sources, &view.proxies, now.mono)
        };
        agent::state(out, &snapshot, &view, &condition, now.wall)?;
        agent::events(out, &sources, now.wall)?;
        agent::proxies(out, &view)?;
        if let Some(socket) = &self.socket {
            agent::served(out, socket)?;
        }
        agent::process(out, self.started, &self.names)
    }
}

#[cfg(test)]
mod tests;
