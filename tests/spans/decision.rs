//! What was decided about a request is on its span: a real registry, agent, Envoy and collector.

use std::collections::BTreeSet;

use opentelemetry_proto::tonic::trace::v1::Span;
use pintle_tests::{Upstream, assert_eventually, http};
use serde_json::json;

use crate::support::{Installed, SOON, attribute, expect, exporting, request};

async fn installed() -> Installed {
    let config = |config: pintle_tests::EnvoyConfig| {
        config.plugin(|plugin| plugin["breaker"] = json!({"max_ejection_percent": 100}))
    };
    let world = Installed::start(3, exporting(json!({"direction": "egress"})), config).await;
    world.policy("orders", json!({"select": {"strategy": "round_robin"}})).await;
    world
}

fn text(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_default()
}

/// One request, the status of its answer, who gave it, and its span.
async fn ask(world: &Installed) -> (u16, String, Span) {
    let reply = http::send(world.rig.envoy.addr(), request(&[])).await.unwrap();
    let who = reply.header("x-upstream").unwrap_or_default().to_string();
    (reply.status, who, world.rig.span().await)
}

/// The address of an upstream by its name.
fn address(world: &Installed, name: &str) -> String {
    let mut all = world.others.iter().chain([&world.rig.upstream]);
    all.find(|upstream| upstream.name() == name).map(Upstream::addr).unwrap().to_string()
}

/// The version of the table that the agent has now.
async fn version(world: &Installed) -> String {
    let services = world.agent.services().await.unwrap();
    services["services"][0]["version"].as_str().unwrap().to_string()
}

/// What every span says of the table that was decided upon.
async fn expect_snapshot(world: &Installed, span: &Span) {
    let version = version(world).await;
    expect(span, &[("pintle.service", "orders"), ("pintle.snapshot.version", &version)]);
    let age: u64 = text(span, "pintle.snapshot.age_ms").parse().unwrap();
    // The agent confirms it every second, to the leader; the others read that with their next tick.
    assert!(age < 2_000, "{age} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_names_its_strategy_its_candidates_and_the_endpoint_that_answered() {
    let world = installed().await;
    let mut used = BTreeSet::new();
    for strategy in ["round_robin", "p2c", "maglev"] {
        world.policy("orders", json!({"select": {"strategy": strategy}})).await;
        for _ in 0..6 {
            let (status, who, span) = ask(&world).await;
            assert_eq!(status, 200);
            let at = address(&world, &who);
            expect(
                &span,
                &[
                    ("pintle.strategy", strategy),
                    ("pintle.candidates", "3"),
                    ("pintle.endpoint", &at),
                    ("pintle.attempts", &format!("{at}=200")),
                    ("pintle.breaker.state", "closed"),
                    ("pintle.outcome", "chosen"),
                    ("pintle.reason", ""),
                ],
            );
            expect_snapshot(&world, &span).await;
            used.insert(at);
        }
    }
    assert_eq!(used.len(), 3, "{used:?}");
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_request_lists_its_attempts_in_their_order() {
    let mut world = installed().await;
    let refused = world.rig.upstream.addr().to_string();
    world.rig.upstream.close().await;
    let mut retried = 0;
    for _ in 0..9 {
        let (status, who, span) = ask(&world).await;
        assert_eq!(status, 200);
        let answered = format!("{}=200", address(&world, &who));
        if text(&span, "http.request.resend_count") == "1" {
            retried += 1;
            let attempts = format!("{refused}=retried {answered}");
            expect(&span, &[("pintle.attempts", &attempts), ("pintle.endpoint", &refused)]);
        } else {
            expect(&span, &[("pintle.attempts", &answered)]);
        }
        expect(&span, &[("pintle.outcome", "chosen"), ("pintle.strategy", "round_robin")]);
        expect_snapshot(&world, &span).await;
    }
    assert!(retried >= 2, "{retried}");
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_breakers_are_no_candidates_then_panic_then_a_local_reply_each_with_its_reason() {
    let world = installed().await;
    let first = world.rig.upstream.addr().to_string();
    world.order(&["breaker", "force-open", "orders/orders-1", "--ttl", "5m"]).await;
    assert_eventually!(SOON, text(&ask(&world).await.2, "pintle.candidates") == "2");
    for _ in 0..6 {
        let (_, _, span) = ask(&world).await;
        expect(&span, &[("pintle.candidates", "2"), ("pintle.outcome", "chosen")]);
        expect(&span, &[("pintle.breaker.state", "closed")]);
        assert_ne!(text(&span, "pintle.endpoint"), first);
    }

    for other in ["orders/orders-2", "orders/orders-3"] {
        world.order(&["breaker", "force-open", other, "--ttl", "5m"]).await;
    }
    assert_eventually!(SOON, {
        let reply = pintle_tests::http::get(world.agent.admin(), "/v1/breakers").await.unwrap();
        reply.json().unwrap()["breakers"].as_array().map_or(0, Vec::len) == 3
    });
    let mut span;
    assert_eventually!(SOON, {
        span = ask(&world).await.2;
        text(&span, "pintle.outcome") == "panic"
            && text(&span, "pintle.snapshot.version") == version(&world).await
    });
    let endpoint = text(&span, "pintle.endpoint");
    expect(
        &span,
        &[
            ("pintle.reason", "too few endpoints are eligible"),
            ("pintle.breaker.state", "open"),
            ("pintle.strategy", "round_robin"),
            ("pintle.attempts", &format!("{endpoint}=200")),
            ("http.response.status_code", "200"),
        ],
    );
    expect_snapshot(&world, &span).await;

    world
        .policy("orders", json!({"select": {"strategy": "round_robin", "panic_percent": 0}}))
        .await;
    let mut status;
    assert_eventually!(SOON, {
        (status, _, span) = ask(&world).await;
        text(&span, "pintle.outcome") == "local_reply"
    });
    assert_eq!(status, 503);
    expect(
        &span,
        &[
            ("pintle.reason", "no endpoint is eligible"),
            ("pintle.candidates", "0"),
            ("pintle.endpoint", ""),
            ("pintle.attempts", ""),
            ("http.response.status_code", "503"),
            ("error.type", "503"),
        ],
    );
    expect_snapshot(&world, &span).await;
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_table_the_span_says_whose_decision_it_was() {
    for (unknown, outcome, status) in [("pass", "fallback", 200), ("reject", "local_reply", 503)] {
        let elsewhere = Upstream::start("elsewhere").await.unwrap();
        let world = Installed::start(1, exporting(json!({"direction": "egress"})), |config| {
            let config = config.service("nobodys").static_hosts("nobodys", &[elsewhere.addr()]);
            config.plugin(|plugin| plugin["select"]["unknown_service"] = json!(unknown))
        })
        .await;
        let mut request = request(&[]);
        request.headers_mut().insert("host", "nobodys".parse().unwrap());
        let reply = http::send(world.rig.envoy.addr(), request).await.unwrap();
        assert_eq!(reply.status, status);
        let span = world.rig.span().await;
        let port = if status == 200 { elsewhere.addr().port().to_string() } else { String::new() };
        expect(
            &span,
            &[
                ("pintle.outcome", outcome),
                ("pintle.reason", "no table"),
                ("pintle.strategy", ""),
                ("pintle.endpoint", ""),
                ("pintle.candidates", ""),
                ("network.peer.port", &port),
            ],
        );
        world.rig.end().await;
    }
}
