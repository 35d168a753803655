//! Orders: what agents say of them, and what the command line makes of it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_order_says_what_it_did_until_when_and_where_or_fails() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let nobody = pintle(&nats, &["drain", "orders/e1", "--wait", "300ms"]).await;
    assert_eq!(nobody.status.code(), Some(1), "{}", said(&nobody));
    assert!(said(&nobody).contains("no agent of stream PINTLE_EVENTS"), "{}", said(&nobody));

    let agents = ["one", "two"].map(|name| {
        let mut config = place.config(&nats.url());
        config.agent = name.into();
        config.state.dir = None;
        Agent::start(config)
    });
    for agent in &agents {
        ready(agent).await;
        assert_eq!(health(agent, "e1"), Some(Health::Healthy), "nothing was ordered");
    }
    let done = pintle(&nats, &["drain", "orders/e1", "--ttl", "10m"]).await;
    let words = said(&done);
    assert!(done.status.success(), "{words}");
    assert!(words.starts_with("drain orders/e1: in force until 20"), "{words}");
    assert!(words.contains(" on 2 of 2 agents (event 1)"), "{words}");
    for agent in &agents {
        let drained = |a: &Agent| health(a, "e1") == Some(Health::Draining);
        agent.until(secs(2), "drained", drained).await;
    }
    let json = ["breaker", "clear", "orders/e2", "--output", "json"];
    let done: Value = serde_json::from_str(&said(&pintle(&nats, &json).await)).unwrap();
    assert_eq!(done["agents"], json!(["one", "two"]), "{done}");
    assert_eq!(done["until"], Value::Null);

    for (what, near) in [("ordres/e1", "orders"), ("orders/e", "orders/e0")] {
        let unknown = pintle(&nats, &["drain", what]).await;
        let words = said(&unknown);
        assert_eq!(unknown.status.code(), Some(1), "{words}");
        assert!(words.contains("not registered at any of the 2 agents"), "{words}");
        assert!(words.contains(&format!("but {near}")), "{words}");
    }
    let trace = ["publish", "trace", "late", r#"{"ratio": 1, "ttl": "5m"}"#];
    assert_eq!(pintle(&nats, &trace).await.status.code(), Some(1));
    let forced = pintle(&nats, &[&trace[..], &["--force"]].concat()).await;
    assert!(forced.status.success(), "{}", said(&forced));

    let again = ["publish", "endpoint", "orders/e3", r#"{"action":"drain","ttl":"5m"}"#];
    let again = [&again[..], &["--id", "one"]].concat();
    assert!(pintle(&nats, &again).await.status.success());
    assert!(said(&pintle(&nats, &again).await).contains("known already"));

    for agent in agents {
        agent.stop().await;
    }
    let unasked = pintle(&nats, &["undrain", "orders/e1", "--no-wait"]).await;
    assert!(unasked.status.success(), "{}", said(&unasked));
    assert!(said(&unasked).contains("no agent was asked"), "{}", said(&unasked));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_agents_cannot_read_is_no_success() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    // What a newer command could send.
    let order = draft("orders", "e1", Action::Weight(u32::MAX), 60);
    let refused = events.order(&order, How { wait: secs(5), force: false }).await;
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("in force on no agent: test: "), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_opinions_keeps_no_order_waiting_and_no_state_grows_by_it() {
    const COUNT: u64 = 100_000;
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    for n in 0..COUNT {
        let action = Action::Transition {
            proxy: format!("envoy-{n}"),
            from: BreakerState::Closed,
            to: BreakerState::Open,
            reason: "5 consecutive failures".into(),
            trips: 1,
        };
        let mut opinion = draft("orders", &format!("e{}", n % 10), action, 60);
        opinion.source = format!("agent-{}", n % 100);
        let payload = opinion.encode(Now(1_000_000_000 * n));
        client.publish(opinion.subject("events"), payload.into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let how = How { wait: secs(20), force: false };
    let began = Instant::now();
    let done = events.order(&draft("orders", "e1", Action::Drain, 600), how).await.unwrap();
    println!("an order behind {COUNT} opinions: {:?}", began.elapsed());
    assert_eq!(done.applied.len(), 1);
    assert_eq!(health(&agent, "e1"), Some(Health::Draining));
    let done = events.order(&draft("orders", "e2", Action::ForceOpen, 600), how).await.unwrap();
    println!("an order to a breaker behind them: {:?}", began.elapsed());
    assert_eq!(done.applied.len(), 1);
    let stream = js(&nats).await.get_stream("PINTLE_EVENTS").await.unwrap();
    let pending = async || stream.consumer_info("pintle-test:breaker").await.unwrap().num_pending;
    pintle_tests::assert_eventually!(secs(60), pending().await == 0);
    let gave_way = agent.sources().refused.get(&("event", "opinion_gave_way")).copied();
    println!("{gave_way:?} gave way");
    agent.stop().await;
    let state = std::fs::metadata(place.dir.path().join("state/state")).unwrap().len();
    assert!(state < 16 << 20, "{state} bytes");
    let agent = Agent::start(config);
    assert_eq!(health(&agent, "e1"), Some(Health::Draining), "from disk");
}
