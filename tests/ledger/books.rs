//! The agent's books beside the upstreams' logs, column by column.

use std::collections::BTreeMap;

use pintle_tests::Agent;

use crate::row::{Followed, Row, Site};

/// What is compared, in the table's order.
pub const COLUMNS: [&str; 8] =
    ["requests", "failures", "unknown", "in flight", "breakers", "latency", "answers", "spans"];

/// No answer's head of any row takes longer, and every stream does.
const LONGEST_HEAD: f64 = 1.0;

/// `/metrics` at one moment.
pub struct Books {
    samples: BTreeMap<String, f64>,
}

impl Books {
    pub async fn open(agent: &Agent) -> Self {
        let text = agent.metrics().await.expect("the metrics");
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { samples: samples.collect() }
    }

    /// The sum of a metric's samples with this label; 0 where there is none.
    fn sum(&self, metric: &str, label: (&str, &str)) -> f64 {
        let label = format!("{}=\"{}\"", label.0, label.1);
        let named = |name: &str| {
            name.strip_prefix(metric).is_some_and(|rest| {
                rest.strip_prefix('{').is_some_and(|rest| rest.contains(&label))
            })
        };
        let found = self.samples.iter().filter(|(name, _)| named(name));
        found.fold(0.0, |sum, (_, value)| sum + value)
    }

    /// Every column of a row that is not as its upstreams' logs say, with both.
    pub fn compare(&self, row: &Row, site: &Site, spans: u64) -> BTreeMap<&'static str, String> {
        let mut wrong = BTreeMap::new();
        let mut column = |name, found: Vec<f64>, expected: Vec<f64>| {
            if found != expected {
                wrong.insert(name, format!("{found:?}, not {expected:?}"));
            }
        };
        let of = |metric: &str| -> Vec<f64> {
            let ids = site.endpoints().iter().map(|upstream| upstream.name());
            ids.map(|id| self.sum(metric, ("endpoint", id))).collect()
        };
        let whole = |metric: &str| self.sum(metric, ("service", row.name));
        let logs: Vec<_> = site.endpoints().iter().map(|upstream| upstream.log()).collect();
        let requests = of("pintle_endpoint_requests_total");
        let logged: Vec<f64> = logs.iter().map(|log| log.len() as f64).collect();
        let missing = logged.iter().sum::<f64>() - requests.iter().sum::<f64>();
        let partly = row.followed == Followed::Unknown;
        let within = requests.iter().zip(&logged).all(|(booked, logged)| booked <= logged);
        let expected = if partly && within { requests.clone() } else { logged };
        column("requests", requests, expected);
        let unknown = whole("pintle_not_followed_total");
        let expected = match row.followed {
            Followed::Always => 0.0,
            Followed::Unknown => missing,
            // Of successes a sample is looked at.
            Followed::Elsewhere if unknown > 0.0 && unknown <= site.sent() as f64 => unknown,
            Followed::Elsewhere | Followed::Strays => site.sent() as f64,
        };
        column("unknown", vec![unknown], vec![expected]);
        let failed = logs.iter().map(|log| log.iter().filter(|e| (row.failed)(e)).count() as f64);
        let (failures, failed) = (of("pintle_endpoint_failures_total"), failed.collect::<Vec<_>>());
        let within = failures.iter().zip(&failed).all(|(booked, logged)| booked <= logged);
        let expected = if partly && within { failures.clone() } else { failed };
        column("failures", failures, expected);
        let in_flight = vec![whole("http_requests_in_flight"), whole("pintle_endpoint_in_flight")];
        column("in flight", in_flight, vec![0.0, 0.0]);
        let tripped = of("circuit_breaker_trips_total").iter().map(|n| n.min(1.0)).collect();
        let opens = (0..logs.len()).map(|at| f64::from(row.opens.contains(&at)));
        column("breakers", tripped, opens.collect());
        let slow = of("pintle_endpoint_latency_seconds").into_iter();
        let slow: Vec<f64> = slow.filter(|seconds| *seconds > LONGEST_HEAD).collect();
        column("latency", slow, Vec::new());
        column("answers", vec![whole("http_requests_total")], vec![site.sent() as f64]);
        column("spans", vec![spans as f64], vec![(site.sent() + site.passed()) as f64]);
        if let Err(what) = (row.also)(site) {
            wrong.insert("also", what);
        }
        wrong
    }
}
