//! The ledger: what the module books of each kind of traffic must be what its upstreams saw.
//!
//! Every row is a service of its own behind one shared Envoy with the shipped configuration: it
//! changes that where its kind of traffic needs it, drives requests, and says what must then be in
//! the books. The upstreams keep a log; after the run the agent's `/metrics` must say the same,
//! endpoint by endpoint, and a collector must have a span of each request. Rows are driven side by
//! side.
//!
//! | file | what |
//! |---|---|
//! | `rows/*` | the kinds of traffic, by family |
//! | `row`, `site` | the interface of a row, and where it is driven |
//! | `books` | the comparison |
//! | `upstream` | servers that act as a path says, and keep the log |
//! | `quic` | HTTP/3: the listener and the client |

mod books;
mod config;
mod quic;
mod row;
mod rows;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Authority, Collector, Envoy, EnvoyConfig, Etcd, Instance, Patience, Port, Server as _,
    assert_eventually,
};
use prost::Message as _;
use serde_json::json;

use crate::books::{Books, COLUMNS};
use crate::quic::Quic;
use crate::row::{Row, Site};
use crate::upstream::Upstream;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a row may be driven.
const DRIVE: Duration = Duration::from_secs(40);

/// By row, every column that is not as it should be, with what was found.
type Wrong = BTreeMap<&'static str, BTreeMap<&'static str, String>>;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_traffic_is_booked_as_it_was() {
    run(rows::all(), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_envoy_is_booked_as_well() {
    run(rows::protocols(), true).await;
}

async fn run(rows: Vec<Row>, oldest: bool) {
    let began = Instant::now();
    let (etcd, collector) = tokio::try_join!(Etcd::start(), Collector::start()).expect("servers");
    let (authority, port) =
        (Authority::new().expect("an authority"), Port::take().expect("a port"));
    let names: Vec<&str> = rows.iter().map(|row| row.name).chain(["localhost"]).collect();
    let identity = authority.issue(&names).expect("a certificate");
    let agent = Agent::builder().etcd(etcd.url()).start().await.expect("the agent");

    let shipped = EnvoyConfig::shipped().and_then(|config| config.clusters_from("tracing.yaml"));
    let shipped = shipped.expect("the shipped files").static_hosts("otlp", &[collector.addr()]);
    let mut config = shipped.agent_socket(agent.socket()).wasm(PINTLE_PATH).plugin(|plugin| {
        plugin["select"]["ewma_decay"] = json!("1s");
        plugin["select"]["unknown_service"] = json!("reject");
        plugin["breaker"] = json!({"max_ejection_percent": 100});
        plugin["trace"] = json!({"export":
            {"cluster": "otlp", "service_name": "edge", "interval": "100ms", "timeout": "2s"}});
    });
    for row in &rows {
        config = config.service(row.name);
    }
    let (mut places, mut written) = (Vec::new(), None);
    for row in &rows {
        let mut upstreams = Vec::new();
        for number in 0..row.endpoints + row.strays {
            let upstream = Upstream::start(&format!("{}-{number}", row.name)).await;
            if number < row.endpoints {
                let version = row.versions.get(number).copied().unwrap_or("1");
                let instance = Instance::new(row.name, upstream.name(), upstream.addr());
                let instance = instance.metadata("version", version);
                written = Some(etcd.register(&instance).await.expect("a registration"));
            }
            upstreams.push(upstream);
        }
        config = (row.configure)(config, &upstreams);
        places.push(upstreams);
    }
    let config = quic::listen(config.upstream_log(), &port, &identity);
    let quic = Quic::client(&authority, &port);
    let mut envoy = match oldest {
        true => Envoy::start_oldest(config).await.expect("the oldest Envoy"),
        false => Envoy::start(config).await.expect("Envoy"),
    };
    let sites = rows.iter().zip(places);
    let sites: Vec<Site> = sites
        .map(|(row, upstreams)| Site::new(row, upstreams, envoy.addr(), quic.clone()))
        .collect();
    agent.settled(written.expect("a row")).await.expect("every worker has the tables");
    for row in &rows {
        let hosts = async || envoy.hosts(row.name).await.is_ok_and(|hosts| !hosts.is_empty());
        assert_eventually!(PATIENCE, hosts().await, "hosts of {}", row.name);
    }
    println!("{} rows are up after {:.1?}", rows.len(), began.elapsed());

    let drives = rows.iter().zip(&sites).map(|(row, site)| {
        let drive = tokio::spawn((row.drive)(site.clone()));
        async move { (row.name, tokio::time::timeout(DRIVE, drive).await) }
    });
    let mut undriven = Wrong::new();
    for (row, driven) in futures::future::join_all(drives).await {
        let what = match driven {
            Ok(Ok(())) => continue,
            Ok(Err(panicked)) => panicked.to_string(),
            Err(late) => late.to_string(),
        };
        undriven.entry(row).or_default().insert("drive", what);
    }
    println!("driven after {:.1?}", began.elapsed());

    let mut spans = Spans::default();
    let mut patience = Patience::new(PATIENCE);
    let (mut wrong, mut still) = (Wrong::new(), 0);
    // Right twice, so that what comes too late and is too much is seen.
    while still < 2 && patience.lasts().await {
        tokio::time::sleep(Duration::from_millis(300)).await;
        spans.read(&collector);
        let books = Books::open(&agent).await;
        let compared = rows.iter().zip(&sites).map(|(row, site)| {
            let found = books.compare(row, site, spans.of(row.name));
            (row.name, found)
        });
        wrong = compared.filter(|(_, found)| !found.is_empty()).collect();
        for (row, found) in &undriven {
            wrong.entry(row).or_default().extend(found.clone());
        }
        let expected = rows.iter().all(|row| verdict(row, &wrong).is_ok());
        still = if expected { still + 1 } else { 0 };
    }
    print(&rows, &sites, &wrong, began.elapsed());
    assert_eq!(envoy.vm_reloads().await.expect("stats"), 0, "{}", envoy.log());
    let surprises: Vec<String> = rows.iter().filter_map(|row| verdict(row, &wrong).err()).collect();
    assert_eq!(surprises, Vec::<String>::new());
}

/// Whether a row is as it should be.
fn verdict(row: &Row, wrong: &Wrong) -> Result<(), String> {
    wrong.get(row.name).map_or(Ok(()), |bad| Err(format!("{}: {bad:?}", row.name)))
}

fn print(rows: &[Row], sites: &[Site], wrong: &Wrong, took: Duration) {
    let columns: Vec<&str> = COLUMNS.into_iter().chain(["drive", "also"]).collect();
    println!("\n{:22} {:>7} {:>4}  {}", "kind", "traffic", "sent", columns.join("  "));
    let mut lines = Vec::new();
    for (row, site) in rows.iter().zip(sites) {
        let cells = columns.iter().map(|column| {
            let bad = wrong.get(row.name).is_some_and(|found| found.contains_key(column));
            let word = if bad { "WRONG" } else { "ok" };
            format!("{word:width$}", width = column.len())
        });
        let cells: Vec<String> = cells.collect();
        println!("{:22} {:>7} {:>4}  {}", row.name, row.traffic, site.sent(), cells.join("  "));
        for (column, what) in wrong.get(row.name).into_iter().flatten() {
            lines.push(format!("    {}: {column}: {what}", row.name));
        }
    }
    println!("\n{}", lines.join("\n"));
    let columns: BTreeMap<_, Vec<_>> =
        wrong.iter().map(|(row, found)| (row, found.keys().collect())).collect();
    let right = rows.len() - wrong.len();
    println!(
        "{}",
        json!({"rows": rows.len(), "right": right, "wrong": columns, "seconds": took.as_secs()})
    );
}

/// Spans that came, by the authority of their requests.
#[derive(Default)]
struct Spans {
    ids: BTreeSet<Vec<u8>>,
    count: BTreeMap<String, u64>,
}

impl Spans {
    fn read(&mut self, collector: &Collector) {
        for call in collector.drain() {
            let batch = ExportTraceServiceRequest::decode(call.message).expect("OTLP");
            let scopes = batch.resource_spans.into_iter().flat_map(|r| r.scope_spans);
            for span in scopes.flat_map(|scope| scope.spans) {
                // A batch whose answer came too late is sent again.
                if !self.ids.insert(span.span_id) {
                    continue;
                }
                let named = span.attributes.into_iter().find(|a| a.key == "server.address");
                if let Some(Any::StringValue(name)) = named.and_then(|a| a.value?.value) {
                    *self.count.entry(name).or_default() += 1;
                }
            }
        }
    }

    fn of(&self, row: &str) -> u64 {
        self.count.get(row).copied().unwrap_or_default()
    }
}
