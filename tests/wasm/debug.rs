//! The debug header: who brings the token is told why, and nobody else sees that it is there.

use pintle_contract::{Endpoint, Health};
use pintle_harness::{Outcome, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::{ALL, Run, builder, endpoint, endpoints, get};

const TOKEN: &str = "0123456789abcdef-0123456789";
const HEADER: &str = "pintle-debug";

fn run_with(token: &str) -> Run {
    let configuration = ALL.replace("\"trace\": {}", "\"trace\": {}, \"debug\": {}");
    let builder = builder(&configuration).env("PINTLE_DEBUG_TOKEN", token);
    Run::of(builder.build().expect("the module starts"))
}

/// The answer to a request, behind an upstream that sends such a header itself.
fn answer(run: &mut Run, request: RequestBuilder) -> Response {
    let request = run.envoy.worker(0).request(request);
    assert_eq!(request.header(HEADER), None, "it goes no further");
    run.envoy.finish(request, Outcome::ok("10.0.0.1:80").header(HEADER, "{\"a\": \"lie\"}"))
}

fn told(response: &Response) -> Option<Value> {
    let text = response.headers.text(HEADER)?;
    Some(serde_json::from_str(&text).expect("JSON"))
}

fn asks(service: &str) -> RequestBuilder {
    get(service).header(HEADER, TOKEN)
}

#[test]
fn who_brings_the_token_is_told_who_was_left_out_and_why() {
    let mut run = run_with(TOKEN);
    let mut all: Vec<Endpoint> = endpoints(9);
    all[1].health = Health::Unhealthy;
    all[2].health = Health::Draining;
    all[3].weight = 0;
    all[4].metadata = [("priority".into(), "1".into())].into();
    all[5].tags = ["new".into()].into();
    let policy = r#"{"select": {"max_requests": 1, "panic_percent": 10,
        "subset": [{"header": "x-tag", "tag": true}]}}"#;
    run.table_with("orders", all, policy);
    let told_of = told(&answer(&mut run, asks("orders"))).expect("an answer");
    assert_eq!(told_of["service"], json!("orders"));
    assert_eq!(told_of["version"], json!("1.1"));
    assert_eq!((&told_of["strategy"], &told_of["choice"]), (&json!("p2c"), &json!("eligible")));
    let why = |told: &Value| {
        let all = told["endpoints"].as_array().expect("endpoints").clone();
        let mut why: Vec<_> = all
            .into_iter()
            .map(|one| (one["id"].to_string(), one["left_out"].as_str().map(str::to_owned)))
            .collect();
        why.sort();
        why.into_iter().map(|(_, why)| why.unwrap_or_default()).collect::<Vec<_>>()
    };
    let tier = "a tier before its own takes all";
    let amiss = ["unhealthy", "draining: pinned sessions only", "weight 0"];
    assert_eq!(why(&told_of), ["", amiss[0], amiss[1], amiss[2], tier, "", "", "", ""]);
    let first = &told_of["endpoints"][0];
    assert_eq!(first["id"], told_of["list"][0]);
    assert_eq!((&first["limit"], &first["in_flight"]), (&json!(1), &json!(0)));
    assert_eq!(first["latency_ms"], json!(30.0), "as long as nothing is known");

    let of_subset = told(&answer(&mut run, asks("orders").header("x-tag", "new"))).expect("told");
    assert_eq!(why(&of_subset)[0], "not of the subset");
    assert_eq!(of_subset["list"], json!(["a-5", "a-5", "a-5"]));

    let held = run.envoy.worker(0).request(get("orders").header("x-tag", "new"));
    let full = told(&answer(&mut run, asks("orders").header("x-tag", "new"))).expect("told");
    assert_eq!(full["choice"], json!("every endpoint is full"), "a local reply tells it, too");
    assert_eq!(why(&full)[5], "full: max_requests");
    run.envoy.finish(held, Outcome::ok("10.0.0.6:80"));
}

#[test]
fn what_is_ill_or_open_is_told_with_its_cost() {
    let mut run = run_with(TOKEN);
    run.table("orders", endpoints(3));
    for _ in 0..40 {
        let request = run.envoy.worker(0).request(get("orders"));
        let first = crate::support::list(&request)[0].clone();
        let ill = first == "10.0.0.1:80";
        run.envoy.advance(std::time::Duration::from_millis(if ill { 400 } else { 4 }));
        run.envoy.finish(request, Outcome::ok(first));
    }
    let told = told(&answer(&mut run, asks("orders"))).expect("told");
    let all = told["endpoints"].as_array().expect("endpoints");
    let of = |id: &str| all.iter().find(|one| one["id"] == id).expect("told of");
    assert_eq!(of("a-0")["ill"], json!("slow"));
    assert!(of("a-0")["cost_ms"].as_f64() > Some(16.0), "{told}");
    assert_eq!(of("a-1").get("ill"), None);
}

#[test]
fn nobody_else_sees_it() {
    for (token, brought) in [
        (TOKEN, None),
        (TOKEN, Some("")),
        (TOKEN, Some("0123456789abcdef-012345678")),
        (TOKEN, Some("0123456789abcdef-01234567890")),
        // Too short to be one, or not there at all.
        ("short", Some("short")),
        ("", Some("")),
    ] {
        let mut run = run_with(token);
        run.table("orders", endpoints(2));
        for service in ["orders", "nobody"] {
            let mut request = get(service);
            if let Some(brought) = brought {
                request = request.header(HEADER, brought);
            }
            let response = answer(&mut run, request);
            assert_eq!(response.headers.text(HEADER), None, "{token:?} {brought:?} {service}");
        }
        let logs = format!("{:?}", run.envoy.logs());
        assert!(!logs.contains(TOKEN), "{logs}");
        assert_eq!(logs.contains("debug answers nobody"), token != TOKEN, "{logs}");
    }
}

#[test]
fn a_request_that_is_envoys_is_told_so() {
    let mut run = run_with(TOKEN);
    run.table_with("orders", vec![endpoint(0)], r#"{"bypass": true}"#);
    let told_of = told(&answer(&mut run, asks("orders"))).expect("told");
    assert_eq!(told_of["why"], json!("bypass"));
    let told_of = told(&answer(&mut run, asks("nobody"))).expect("told");
    assert_eq!(told_of["why"], json!("no table"));
}

/// Without `debug` the headers are nobody's business.
#[test]
fn without_debug_nothing_is_touched() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(2));
    let request = run.envoy.worker(0).request(asks("orders"));
    assert_eq!(request.header(HEADER).as_deref(), Some(TOKEN));
    let response = run.envoy.finish(request, Outcome::ok("10.0.0.1:80").header(HEADER, "x"));
    assert_eq!(response.headers.text(HEADER).as_deref(), Some("x"));
}
