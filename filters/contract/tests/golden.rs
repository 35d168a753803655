//! The bytes of both schemas, held fast.
//!
//! A difference here means that an agent and a module of different builds do not understand each
//! other: raise the schema number, or take the change back. `BLESS=1 cargo test -p pintle-contract`
//! writes the files anew.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests may fail like tests")]

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;

use pintle_contract::{
    Applied, BreakerState, Down, Endpoint, EndpointReport, Force, ForceAction, Health, Hello,
    Index, Initial, Lease, Load, Loads, Message, Note, Now, Opinion, Patch, Removed, Report,
    RequestCount, Schema, ServiceReport, Slot, Table, Transition, Up, Version, Want,
};

fn version(sequence: u64) -> Version {
    Version { epoch: 1_700_000_000_000, sequence }
}

fn table() -> Table {
    let mut v4 = Endpoint::new("orders-1", SocketAddr::from(([10, 1, 2, 3], 8080)));
    v4.weight = 100;
    v4.zone = "eu-1a".to_owned();
    v4.registered_at = Now::from_millis(1_700_000_000_123);
    v4.tags = ["blue".to_owned(), "canary".to_owned()].into();
    v4.metadata = [("version".to_owned(), "2.1".to_owned())].into();
    v4.opinion = Some(Opinion { expires_at: Now::from_millis(1_700_000_060_000), reporters: 3 });
    let mut v6 = Endpoint::new("orders-2", "[2001:db8::7]:443".parse().expect("an address"));
    v6.health = Health::Draining;
    v6.weight = 0;
    v6.force = Some(Force { action: ForceAction::Clear, until: Now(0), stamp: 42 });
    Table {
        service: "orders".to_owned(),
        version: version(7),
        endpoints: vec![v4, v6],
        policy: r#"{"select":{"strategy":"maglev"}}"#.to_owned(),
    }
}

fn report() -> Report {
    Report {
        worker: 0xfeed_beef,
        version: version(7),
        services: vec![ServiceReport {
            service: "orders".to_owned(),
            requests: vec![
                RequestCount { method: 0, code: 200, count: 1_000 },
                RequestCount { method: 9, code: 0, count: 1 },
            ],
            latency: vec![0; 14],
            latency_sum_us: 12_345_678,
            in_flight: 3,
            panics: 0,
            no_endpoint: 2,
            not_followed: 0,
            unplaced: 0,
            endpoints: vec![EndpointReport {
                id: "orders-1".to_owned(),
                requests: 1_001,
                failures: 5,
                in_flight: 3,
                latency_us: 10_250,
                state: BreakerState::HalfOpen,
            }],
        }],
        counters: vec![("frame_rejected".to_owned(), 1)],
    }
}

fn check<T: Message + PartialEq + Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.hex"));
    let bytes = value.encode();
    let hex: Vec<String> = bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let text = hex.join("\n") + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; BLESS=1 writes it", path.display()));
    assert_eq!(text, golden, "{name} changed its bytes; see the head of this file");
    assert_eq!(T::decode(&bytes).as_ref(), Ok(value), "{name} reads back");
}

#[test]
fn down_frames_have_their_bytes() {
    check("down_table", &Down::Table(table()));
    check(
        "down_remove",
        &Down::Remove(Removed { service: "orders".to_owned(), version: version(8) }),
    );
    check("down_initial_end", &Down::InitialEnd(Initial { version: version(8), full: true }));
    check("down_heartbeat", &Down::Heartbeat(version(8)));
    let Table { service, version: from, endpoints, .. } = table();
    let gone = vec!["orders-3".to_owned()];
    let patch = Patch { service, from, version: version(8), endpoints, gone };
    check("down_patch", &Down::Patch(patch));
}

#[test]
fn up_frames_have_their_bytes() {
    let hello = Hello { proxy: "envoy-1".to_owned(), worker: 1, fence: 9, have: version(6) };
    check("up_hello", &Up::Hello(hello));
    check("up_applied", &Up::Applied(Applied { worker: 1, workers: 3, version: version(7) }));
    let transition = Transition {
        service: "orders".to_owned(),
        endpoint: "orders-1".to_owned(),
        from: BreakerState::Closed,
        to: BreakerState::Open,
        reason: "5 consecutive failures".to_owned(),
        observed: true,
        at: Now::from_millis(1_700_000_001_000),
        until: Now::from_millis(1_700_000_031_000),
        trips: 1,
    };
    check("up_transition", &Up::Transition(transition));
    let mut report = report();
    report.services[0].not_followed = 300;
    report.services[0].unplaced = 7;
    check("up_report", &Up::Report(report));
    let [held, services] = ["orders", "users"].map(|name| vec![name.to_owned()]);
    check("up_want", &Up::Want(Want { held, services }));
}

/// The bytes of a module of 0.1, and what a newer one tells an agent of 0.1.
#[test]
fn a_report_of_schema_1_is_what_0_1_reads_and_writes() {
    let mut report = report();
    let bytes = read("up_report_of_0_1");
    assert_eq!(Up::decode(&bytes), Ok(Up::Report(report.clone())));
    report.services[0].not_followed = 300;
    assert_eq!(Up::Report(report).encode_for(Schema::One), bytes);
}

#[test]
fn an_agent_says_by_its_heartbeats_what_it_reads() {
    let all = [Schema::One, Schema::Two, Schema::Three];
    assert_eq!(
        Down::Heartbeat(version(8)).encode_for(Schema::One),
        Down::Heartbeat(version(8)).encode()
    );
    for schema in all {
        let beat = Down::Heartbeat(version(8)).encode_for(schema);
        assert_eq!(Schema::of(&beat), schema);
        assert_eq!(Down::decode(&beat), Ok(Down::Heartbeat(version(8))));
    }
    // A report is of schema 2 also for those who read more.
    let report = Up::Report(report());
    assert_eq!(report.encode_for(Schema::Three), report.encode_for(Schema::Two));
    // What modules of 0.1 find in shared data has their schema whoever the agent speaks to.
    let table = Down::Table(table()).encode_for(Schema::Two);
    assert_eq!(Schema::of(&table), Schema::One);
}

#[test]
fn shared_values_have_their_bytes() {
    let expires_at = Now::from_millis(1_700_000_000_500);
    check("lease", &Lease { worker: 7, slot: 2, expires_at, fence: 9 });
    let services = vec![("orders".to_owned(), version(7)), ("users".to_owned(), version(3))];
    check("index", &Index { version: version(7), services });
    let load = Load {
        endpoint: u64::MAX,
        in_flight: 2,
        waiting: 1,
        latency_us: 900,
        failures_milli: 1_500,
        sampled_at: Now(7),
        retry_at: Now(9),
    };
    let load = vec![("orders".to_owned(), vec![load])];
    check("loads", &Loads { worker: 7, services: load });
    check("slot", &Slot { worker: 7, at: Now(5), expires_at });
    check("note_table", &Note::Table("orders".to_owned()));
    check("note_breaker", &Note::Breaker(("orders".to_owned(), "orders-1".to_owned())));
    check("note_index", &Note::Index(version(7)));
    check("note_forward", &Note::Forward(vec![0, 127, 128, 255]));
}

/// Workers of both modules share the slots while one is replaced by the other.
#[test]
fn a_slot_that_0_1_wrote_is_still_a_slot() {
    let expires_at = Now::from_millis(1_700_000_000_500);
    let slot = Slot { worker: 7, at: Now(5), expires_at };
    assert_eq!(Slot::decode(&read("slot_of_0_1")), Ok(slot));
}

fn read(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(folder.join(format!("{name}.hex")));
    let digits: Vec<u8> =
        text.expect("a golden file").bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect::<Option<_>>().expect("hex digits")
}
