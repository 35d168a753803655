//! Orders: what agents say of them, and what the command line makes of it.

use std::process::Output;

use super::*;

async fn pintle(nats: &Nats, arguments: &[&str]) -> Output {
    let url = nats.url();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pintle"));
    command.args(arguments).args(["--nats", &url]).env_clear();
    command.output().await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

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
        assert!(words.contains("not registered at any of 2 agents"), "{words}");
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
