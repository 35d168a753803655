//! Which endpoint, told how, and what happens where there is none.

use std::time::Duration;

use pintle_contract::Health;
use pintle_harness::{Outcome, Request, RequestBuilder};

use crate::support::{ALL, Run, builder, endpoint, endpoints, get, list};

fn run_with(configuration: &str) -> Run {
    Run::start(configuration)
}

fn ask(run: &mut Run, request: RequestBuilder) -> Request {
    let request = run.envoy.worker(0).request(request);
    run.envoy.finish(request.clone(), Outcome::ok("10.0.0.1:80"));
    request
}

#[test]
fn without_a_table_the_request_is_envoys_and_a_client_s_copy_of_our_header_goes() {
    let mut run = run_with(ALL);
    let request = ask(&mut run, get("nobody").header("x-pintle-endpoints", "169.254.169.254:80"));
    assert!(request.continues());
    assert_eq!(request.header("x-pintle-endpoints"), None);
    let metrics = run.envoy.metrics();
    assert_eq!(metrics.counter("pintle_unknown_service_total"), Some(1));
    assert_eq!(metrics.counter("pintle_spoofed_header_total"), Some(1));
}

#[test]
fn a_client_s_copies_of_our_header_are_replaced() {
    let mut run = run_with(ALL);
    run.table("orders", endpoints(2));
    let request = get("orders")
        .header("x-pintle-endpoints", "169.254.169.254:80")
        .header("X-Pintle-Endpoints", "127.0.0.1:22");
    let request = ask(&mut run, request);
    assert_eq!(request.headers().get_all("x-pintle-endpoints").len(), 1);
    assert!(list(&request).iter().all(|entry| entry.starts_with("10.0.0.")));
}

#[test]
fn without_a_table_the_request_is_refused_where_that_is_configured() {
    let mut run =
        run_with(&ALL.replace("\"select\": {}", "\"select\": {\"unknown_service\": \"reject\"}"));
    let named = ["xds", "cluster_metadata", "filter_metadata", "pintle", "service"];
    let request = ask(&mut run, get("cluster-7").property(&named, "nobody"));
    let reply = request.local_reply().expect("a local reply");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.headers.text("x-pintle-reason").as_deref(), Some("no-table"));
    // Every cluster has a name: that of one that is not ours refuses nobody, and a redirect has
    // none.
    for request in [get("theirs"), get("")] {
        assert!(ask(&mut run, request).local_reply().is_none());
    }
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

#[test]
fn nothing_eligible_and_panic_off_is_answered_here() {
    let mut run = run_with(ALL);
    let mut all = endpoints(2);
    all.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    run.table_with("orders", all.clone(), r#"{"select": {"panic_percent": 0}}"#);
    let request = ask(&mut run, get("orders"));
    let reply = request.local_reply().expect("a local reply");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.grpc_status, Some(14));
    assert_eq!(reply.headers.text("x-pintle-reason").as_deref(), Some("no-endpoint"));
    assert!(reply.headers.text("retry-after").is_some());

    all[0].health = Health::Healthy;
    run.table_with("orders", all, r#"{"select": {"panic_percent": 0}}"#);
    assert_eq!(list(&ask(&mut run, get("orders")))[0], "10.0.0.1:80", "back with the first one");
}

#[test]
fn too_few_eligible_is_panic_and_counted() {
    let mut run = run_with(ALL);
    let mut all = endpoints(3);
    all[0].health = Health::Unhealthy;
    all[1].health = Health::Unhealthy;
    run.table("orders", all);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        seen.insert(list(&ask(&mut run, get("orders")))[0].clone());
    }
    assert_eq!(seen.len(), 3, "spread over all: {seen:?}");
    assert_eq!(run.envoy.metrics().counter("pintle_panic_total"), Some(60));
}

#[test]
fn the_service_is_found_where_the_configuration_says() {
    let table = [
        (
            r#"["cluster_metadata"]"#,
            get("x").property(
                &["xds", "cluster_metadata", "filter_metadata", "pintle", "service"],
                "orders",
            ),
        ),
        (
            r#"["route_metadata"]"#,
            get("x").property(
                &["xds", "route_metadata", "filter_metadata", "pintle", "service"],
                "orders",
            ),
        ),
        (r#"["cluster"]"#, get("orders")),
        (
            r#"[{"cluster": "outbound|80||*.svc.cluster.local"}]"#,
            get("outbound|80||orders.svc.cluster.local"),
        ),
        (r#"["authority"]"#, RequestBuilder::get("orders:8080", "/")),
        (r#"[{"authority": "*.example"}]"#, RequestBuilder::get("orders.example", "/")),
        (r#"[{"header": "x-service"}]"#, get("x").header("x-service", "orders")),
        (r#"[{"header": "x-service"}, "cluster"]"#, get("orders")),
    ];
    for (from, request) in table {
        let mut run = run_with(&ALL.replace(r#"["cluster_metadata", "cluster"]"#, from));
        run.table("orders", endpoints(1));
        let request = ask(&mut run, request);
        assert!(!list(&request).is_empty(), "{from}");
    }
}

#[test]
fn original_dst_is_told_by_filter_state_and_by_no_header() {
    let configuration = ALL.replace("\"select\": {}", "\"select\": {\"via\": \"original_dst\"}");
    let mut run = Run::of(builder(&configuration).build().expect("the module starts"));
    run.table("orders", endpoints(1));
    let request = ask(&mut run, get("orders").header("x-envoy-original-dst-host", "10.9.9.9:1"));
    assert_eq!(request.header("x-pintle-endpoints"), None);
    let state = request.filter_state("envoy.network.transport_socket.original_dst_address");
    assert_eq!(state.as_deref(), Some(b"10.0.0.1:80".as_slice()));
}

#[test]
fn a_strategy_changes_with_the_table_s_policy_and_back() {
    let mut run = run_with(ALL);
    let policy = r#"{"select": {"strategy": "maglev", "hash_key": [{"header": "x-user"}]}}"#;
    run.table_with("orders", endpoints(5), policy);
    let pick = |run: &mut Run, user: &str| {
        list(&ask(run, get("orders").header("x-user", user)))[0].clone()
    };
    let first = pick(&mut run, "ann");
    for _ in 0..20 {
        assert_eq!(pick(&mut run, "ann"), first);
    }
    run.table("orders", endpoints(5));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..60 {
        seen.insert(pick(&mut run, "ann"));
    }
    assert!(seen.len() > 1, "p2c again");
}

#[test]
fn a_policy_that_cannot_be_read_leaves_the_one_before() {
    let mut run = run_with(ALL);
    run.table_with("orders", endpoints(3), r#"{"select": {"attempts": 1}}"#);
    assert_eq!(list(&ask(&mut run, get("orders"))).len(), 1);
    run.table_with("orders", endpoints(3), r#"{"select": {"attempts": 99}}"#);
    run.table_with("orders", endpoints(3), "not json");
    assert_eq!(list(&ask(&mut run, get("orders"))).len(), 1);
    assert_eq!(run.envoy.metrics().counter("pintle_policy_rejected_total").unwrap_or(0) % 2, 0);
}

#[test]
fn a_subset_is_asked_for_by_header_by_the_route_or_before_both_by_the_cluster() {
    let mut run = run_with(ALL);
    let mut all = endpoints(4);
    all[3].metadata = [("version".to_owned(), "v2".to_owned())].into();
    let policy = r#"{"select": {"subset": [{"header": "x-version", "metadata": "version"}]}}"#;
    run.table_with("orders", all, policy);
    let path = ["xds", "route_metadata", "filter_metadata", "pintle", "subset", "version"];
    let of_cluster = ["xds", "cluster_metadata", "filter_metadata", "pintle", "subset", "version"];
    for request in [
        get("orders").header("x-version", "v2"),
        get("orders").property(&path, "v2"),
        get("orders").property(&of_cluster, "v2"),
        get("orders").property(&of_cluster, "v2").property(&path, "v1").header("x-version", "v1"),
    ] {
        for _ in 0..20 {
            assert!(
                list(&ask(&mut run, request.clone())).iter().all(|entry| entry == "10.0.0.4:80")
            );
        }
    }
}

#[test]
fn a_session_stays_on_its_endpoint_while_it_drains() {
    let mut run = run_with(ALL);
    let policy = r#"{"select": {"sticky": {"cookie": {"name": "pin", "ttl": "1h", "path": "/"}}}}"#;
    run.table_with("orders", endpoints(3), policy);
    let request = ask(&mut run, get("orders"));
    let first = list(&request)[0].clone();
    let state = request
        .filter_state("wasm.pintle_set_cookie")
        .or(request.filter_state("pintle_set_cookie"));
    let cookie = String::from_utf8(state.expect("a cookie to set")).expect("text");
    assert!(cookie.contains("Max-Age=3600") && cookie.contains("Path=/"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair").replace('"', "");

    let number =
        first.split('.').nth(3).and_then(|rest| rest.split(':').next()).expect("an address");
    let mut all = endpoints(3);
    let drained = &mut all[number.parse::<usize>().expect("a number") - 1];
    drained.health = Health::Draining;
    run.table_with("orders", all, policy);
    for _ in 0..20 {
        let pinned = ask(&mut run, get("orders").header("cookie", &pair));
        assert_eq!(list(&pinned)[0], first, "the session stays");
        let fresh = ask(&mut run, get("orders"));
        assert_ne!(list(&fresh)[0], first, "nothing new comes");
    }
}

#[test]
fn a_cookie_is_made_where_the_hash_needs_one() {
    let mut run = run_with(ALL);
    let policy = r#"{"select": {"strategy": "ring_hash",
        "hash_key": [{"cookie": {"name": "c", "ttl": "60s", "path": "/p"}}]}}"#;
    run.table_with("orders", endpoints(3), policy);
    let request = ask(&mut run, get("orders"));
    let state = request
        .filter_state("wasm.pintle_set_cookie")
        .or(request.filter_state("pintle_set_cookie"));
    let cookie = String::from_utf8(state.expect("a cookie to set")).expect("text");
    assert!(cookie.starts_with("c=") && cookie.contains("Max-Age=60; Path=/p"), "{cookie}");
    let pair = cookie.split(';').next().expect("a pair").to_owned();
    for _ in 0..10 {
        let again = ask(&mut run, get("orders").header("cookie", &pair));
        assert_eq!(list(&again)[0], list(&request)[0]);
        assert_eq!(again.filter_state("wasm.pintle_set_cookie"), None, "it has one");
    }
}

#[test]
fn a_slow_endpoint_is_learned_once_for_all_workers() {
    let mut run = run_with(ALL);
    run.table("orders", endpoints(2));
    let slow = Duration::from_millis(900);
    let fast = Duration::from_millis(2);
    // Only worker 0 sees traffic, and one of the two endpoints is slow.
    for _ in 0..20 {
        let request = run.envoy.worker(0).request(get("orders"));
        let first = list(&request)[0].clone();
        let took = if first == "10.0.0.1:80" { slow } else { fast };
        run.envoy.advance(took);
        run.envoy.finish(request, Outcome::ok(first));
    }
    for _ in 0..3 {
        run.tick();
    }
    let mut slow_picks = 0;
    for _ in 0..50 {
        let request = run.envoy.worker(1).request(get("orders"));
        slow_picks += u32::from(list(&request)[0] == "10.0.0.1:80");
        run.envoy.advance(fast);
        run.envoy.finish(request, Outcome::ok("10.0.0.2:80"));
    }
    assert_eq!(slow_picks, 0, "worker 1 knows it within 250 ms, without having been there");
}

/// What worker `by` sends to the second endpoint of two in fifty requests.
fn second_of_two(run: &mut Run, by: usize) -> u32 {
    let mut second = 0;
    for _ in 0..50 {
        let request = run.envoy.worker(by).request(get("orders"));
        let first = list(&request)[0].clone();
        second += u32::from(first == "10.0.0.2:80");
        run.envoy.advance(Duration::from_millis(2));
        run.envoy.finish(request, Outcome::ok(first));
    }
    second
}

#[test]
fn who_asks_to_be_left_alone_is_by_all_workers_for_as_long_as_the_policy_lets_it() {
    let mut run = run_with(ALL);
    run.table_with("orders", endpoints(2), r#"{"breaker": {"retry_after": "2s"}}"#);
    assert!(second_of_two(&mut run, 0) > 10);
    loop {
        let request = run.envoy.worker(0).request(get("orders"));
        let first = list(&request)[0].clone();
        run.envoy.advance(Duration::from_millis(2));
        let asks = first == "10.0.0.2:80";
        let answer = if asks { Outcome::status(429, first) } else { Outcome::ok(first) };
        run.envoy.finish(request, answer.header("retry-after", "3600"));
        if asks {
            break;
        }
    }
    assert_eq!(second_of_two(&mut run, 0), 0);
    run.tick();
    run.tick();
    assert_eq!(second_of_two(&mut run, 1), 0, "the other worker has heard of it");
    run.live(Duration::from_secs(2));
    for worker in [0, 1] {
        assert!(second_of_two(&mut run, worker) > 10, "two seconds are over for worker {worker}");
    }
}

#[test]
fn an_address_that_no_endpoint_may_have_is_left_out_though_the_agent_says_it() {
    let restricted = ALL
        .replace("\"trace\": {}", "\"trace\": {}, \"addresses\": {\"allow\": [\"10.0.0.0/30\"]}");
    let mut run = run_with(&restricted);
    run.table("orders", (0..6).map(endpoint).collect());
    for _ in 0..40 {
        for entry in list(&ask(&mut run, get("orders"))) {
            assert!(
                ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"].contains(&entry.as_str()),
                "{entry}"
            );
        }
    }
    let refused = run.envoy.metrics().counter("pintle_address_rejected_total").unwrap_or(0);
    assert!(refused >= 3);
}

const LIMITED: &str = r#"{"select": {"max_requests": 2, "sticky": {"header": "x-pin"}}}"#;

/// Sends requests that stay in flight until the answer is a local one.
fn fill(run: &mut Run, worker: usize) -> (Vec<(Request, String)>, Request) {
    let mut held = Vec::new();
    loop {
        let request = run.envoy.worker(worker).request(get("orders"));
        match list(&request).first() {
            Some(first) => held.push((request.clone(), first.clone())),
            None => return (held, request),
        }
    }
}

#[test]
fn all_full_is_answered_here_and_counted_apart() {
    let mut run = run_with(ALL);
    run.table_with("orders", endpoints(3), LIMITED);
    let (mut held, refused) = fill(&mut run, 0);
    assert_eq!(held.len(), 6, "two at each of three");
    let reply = refused.local_reply().expect("a local reply");
    assert_eq!((reply.status, reply.grpc_status), (503, Some(8)));
    assert_eq!(reply.headers.text("x-pintle-reason").as_deref(), Some("full"));
    assert_eq!(reply.headers.text("retry-after").as_deref(), Some("1"));
    let counts = ["full", "no_endpoint", "panic", "breaker_opened"];
    let counts =
        counts.map(|name| run.envoy.metrics().counter(format!("pintle_{name}_total")).unwrap_or(0));
    assert_eq!(counts, [1, 0, 0, 0]);

    // The other workers know with their next tick, and have their part all the same: one of the
    // two.
    run.tick();
    run.tick();
    let (part, _) = fill(&mut run, 1);
    assert_eq!(part.len(), 3, "one at each of three");
    for (request, at) in part {
        run.envoy.finish(request, Outcome::ok(at));
    }
    run.tick();
    run.tick();

    let (request, first) = held.remove(0);
    run.envoy.finish(request, Outcome::ok(first.clone()));
    let (room, _) = fill(&mut run, 0);
    assert_eq!(room.iter().map(|(_, at)| at).collect::<Vec<_>>(), [&first]);
    for (request, at) in held.into_iter().chain(room) {
        run.envoy.finish(request, Outcome::ok(at));
    }
    run.tick();
    run.tick();
    assert_eq!(fill(&mut run, 1).0.len(), 6, "and that there is room again");
}

/// One endpoint that serves eight side by side in 8 ms each, in the order in which they come,
/// before as many requests as it lets in.
#[test]
fn an_adaptive_limit_ends_the_queue_at_an_endpoint() {
    let mut run = run_with(ALL);
    run.table_with("orders", endpoints(1), r#"{"select": {"max_requests": "adaptive"}}"#);
    let mut queue = std::collections::VecDeque::new();
    let mut most = 0;
    for millisecond in 0..3_000 {
        // Of all that come in a millisecond no more than 200 are tried.
        for _ in 0..200 {
            let request = run.envoy.worker(0).request(get("orders"));
            if list(&request).is_empty() {
                break;
            }
            queue.push_back(request);
        }
        run.envoy.advance(Duration::from_millis(1));
        if millisecond >= 8 {
            let served = queue.pop_front().expect("never idle");
            run.envoy.finish(served, Outcome::ok("10.0.0.1:80"));
        }
        if millisecond >= 2_000 {
            most = most.max(queue.len());
        }
    }
    assert!((8..=20).contains(&most), "{most} in flight at once");
    assert!(run.envoy.metrics().counter("pintle_full_total").unwrap_or(0) > 1_000);
}

#[test]
fn a_session_at_a_full_endpoint_moves_for_that_request_and_keeps_its_pin() {
    let mut run = run_with(ALL);
    run.table_with("orders", endpoints(3), LIMITED);
    let first = run.envoy.worker(0).request(get("orders"));
    let pin = first.filter_state("wasm.pintle_pin").or(first.filter_state("pintle_pin"));
    let pin = String::from_utf8(pin.expect("a pin")).expect("text");
    let second = run.envoy.worker(0).request(get("orders").header("x-pin", &pin));
    let third = run.envoy.worker(0).request(get("orders").header("x-pin", &pin));
    assert_eq!(list(&second)[0], list(&first)[0]);
    assert_ne!(list(&third)[0], list(&first)[0], "it is full");
    assert_eq!(third.filter_state("wasm.pintle_pin").or(third.filter_state("pintle_pin")), None);
}
