//! The command line against a running installation: what a person types, and what comes back.

use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Authority, Envoy, EnvoyConfig, Port, Server as _, assert_eventually, tools,
};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, in_turns};

/// The exit code, and everything that was written.
async fn pintle(args: &[&str]) -> (Option<i32>, String) {
    let done = Agent::command(args).await.expect("pintle");
    let said = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// What a command that succeeds writes.
async fn done(args: &[&str]) -> String {
    let (code, said) = pintle(args).await;
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

async fn json_of(args: &[&str]) -> Value {
    let said = done(&[args, &["--output", "json"]].concat()).await;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"))
}

/// The commands that ask an agent.
struct Asked {
    admin: String,
}

impl Asked {
    async fn table(&self, args: &[&str]) -> String {
        done(&[args, &["--admin", &self.admin]].concat()).await
    }

    async fn json(&self, args: &[&str]) -> Value {
        json_of(&[args, &["--admin", &self.admin]].concat()).await
    }

    async fn endpoint(&self, id: &str) -> Value {
        let services = self.json(&["services", "orders"]).await;
        let all = services["endpoints"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|endpoint| endpoint["id"] == id).unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_does_what_it_says() {
    let world = World::with(in_turns).await;
    let all = world.orders(2).await;
    let asked = Asked { admin: world.agent.admin().to_string() };
    let nats = world.nats.url();
    let load = world.load(100.0).start();

    let table = asked.table(&["services"]).await;
    assert!(table.starts_with("SERVICE") && table.contains("orders"), "{table}");
    let address = all[0].addr().to_string();
    assert!(asked.table(&["services", "orders"]).await.contains(&address));
    assert_eq!(asked.endpoint("orders-1").await["address"], address.as_str());
    world.etcd.put("/services/orders/orders-3", "{").await.expect("a put");
    assert_eventually!(
        PATIENCE,
        asked.table(&["services", "--rejected"]).await.contains("/services/orders/orders-3")
    );
    assert_eq!(asked.json(&["services", "--rejected"]).await["rejected"][0]["reason"], "json");

    let weight = r#"{"action":"weight","weight":7,"ttl":"10m"}"#;
    let publish =
        ["publish", "endpoint", "orders/orders-1", weight, "--id", "one", "--nats", &nats];
    done(&publish).await;
    assert_eventually!(PATIENCE, asked.endpoint("orders-1").await["weight"] == 7);
    let again = json_of(&publish).await;
    assert_eq!(again["duplicate"], true, "the same id is one event: {again}");

    done(&["drain", "orders/orders-1", "--ttl", "10m", "--nats", &nats]).await;
    assert_eventually!(PATIENCE, asked.endpoint("orders-1").await["health"] == "draining");
    done(&["undrain", "orders/orders-1", "--nats", &nats]).await;
    assert_eventually!(PATIENCE, asked.endpoint("orders-1").await["health"] == "healthy");

    let explained = asked.table(&["explain", "orders"]).await;
    assert!(explained.contains("2 of 2 endpoints are candidates, by"), "{explained}");
    assert!(asked.table(&["breakers"]).await.contains("All breakers are closed."));
    done(&["breaker", "force-open", "orders/orders-2", "--ttl", "10m", "--nats", &nats]).await;
    assert_eventually!(
        PATIENCE,
        asked.table(&["breakers"]).await.contains("open") && {
            let breakers = asked.json(&["breakers"]).await;
            breakers["breakers"][0]["endpoint"] == "orders-2"
                && breakers["breakers"][0]["breaker"]["state"] == "open"
        }
    );
    done(&["breaker", "clear", "orders/orders-2", "--nats", &nats]).await;
    assert_eventually!(PATIENCE, asked.endpoint("orders-2").await["breaker"]["state"] == "closed");
    done(&["breaker", "force-close", "orders/orders-2", "--ttl", "1s", "--nats", &nats]).await;

    let events = asked.table(&["events"]).await;
    assert!(events.contains("orders-2") && events.contains("breaker"), "{events}");

    dead_letters(&world, &nats).await;

    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(done(&["completions", shell]).await.contains("pintle"), "{shell}");
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    tools::check_metrics(&world.agent.metrics().await.expect("the metrics")).expect("promtool");
    held_and_released(&world, &asked).await;
}

/// Two endpoints that vanish at once and still answer go when a person says so.
async fn held_and_released(world: &World, asked: &Asked) {
    let release = ["release", "orders", "--admin", &asked.admin];
    let (code, said) = pintle(&release).await;
    assert_eq!(code, Some(1), "nothing is held: {said}");
    world.etcd.delete_prefix("/services/orders/orders-").await.expect("a removal");
    assert_eventually!(
        PATIENCE,
        asked.json(&["services", "--held"]).await["held"][0]["service"] == "orders"
    );
    let held = asked.json(&["services", "--held"]).await["held"][0].clone();
    assert!(held["since"].is_string() && held["reason"].is_string(), "{held}");
    let table = asked.table(&["services", "--held"]).await;
    assert!(table.contains(held["endpoint"].as_str().expect("an id")), "{table}");
    // What Prometheus gets may be a quarter of a second old.
    let since = async || world.agent.metric("pintle_removal_held_timestamp_seconds", &[]).await;
    assert_eventually!(PATIENCE, since().await.is_some_and(|since| since > 1.7e9));
    done(&release).await;
    assert_eventually!(PATIENCE, world.held().await == 0.0);
    let left = asked.json(&["services"]).await;
    assert!(!left.to_string().contains("orders-"), "{left}");
}

async fn dead_letters(world: &World, nats: &str) {
    let list = ["dlq", "list", "--nats", nats];
    assert!(done(&list).await.contains("No dead letter."));
    let count = async || json_of(&list).await["dead_letters"].as_array().map_or(0, Vec::len);
    // One after the other: letters are written beside the events and in no order.
    for (before, body) in ["hello", "again"].into_iter().enumerate() {
        world.nats.publish("events.endpoint.orders", body.as_bytes()).await.expect("a message");
        assert_eventually!(PATIENCE, count().await == before + 1);
    }
    let letters = json_of(&list).await;
    let first = &letters["dead_letters"][0];
    assert_eq!((&first["payload"], &first["deliveries"]), (&json!("hello"), &json!(1)), "{first}");
    assert!(first["sequence"].as_u64().is_some() && first["reason"].is_string(), "{first}");
    let number = |at: usize| letters["dead_letters"][at]["number"].to_string();
    assert!(done(&["dlq", "show", &number(0), "--nats", nats]).await.contains("hello"));
    // It is as broken as before, and comes back as another letter.
    done(&["dlq", "replay", &number(0), "--nats", nats]).await;
    assert_eventually!(PATIENCE, {
        let now = json_of(&list).await;
        let now = now["dead_letters"].as_array().cloned().unwrap_or_default();
        now.len() == 2 && now[1]["payload"] == "hello"
    });
    done(&["dlq", "purge", &number(1), "--nats", nats]).await;
    assert_eq!(count().await, 1);
    let (code, _) = pintle(&["dlq", "purge", &number(1), "--nats", nats]).await;
    assert_eq!(code, Some(1), "it is gone");
    done(&["dlq", "purge", "--all", "--nats", nats]).await;
    assert_eq!(count().await, 0);
}

/// Everything that `pintle check` can look at.
struct Check {
    etcd: String,
    nats: String,
    socket: String,
    admin: String,
    envoy: String,
}

impl Check {
    fn of(world: &World) -> Self {
        Self {
            etcd: world.etcd.url(),
            nats: world.nats.url(),
            socket: world.agent.socket().display().to_string(),
            admin: world.agent.admin().to_string(),
            envoy: world.envoy.admin().to_string(),
        }
    }

    async fn run(&self, more: &[&str]) -> (Option<i32>, String) {
        let own = ["check", "--socket", &self.socket, "--admin", &self.admin];
        let servers = ["--etcd", &self.etcd, "--nats", &self.nats, "--envoy", &self.envoy];
        pintle(&[&own[..], &servers, more].concat()).await
    }

    /// Exits 1, and says each of these, with what to do.
    async fn finds(&self, wrong: &[&str]) {
        let (code, said) = self.run(&[]).await;
        assert_eq!(code, Some(1), "{said}");
        let is_bad = |line: &&str| line.starts_with("BAD");
        for text in wrong {
            let mut lines = said.lines().skip_while(|line| !is_bad(line) || !line.contains(text));
            assert!(lines.next().is_some(), "{text:?} is not wrong in\n{said}");
            assert!(lines.next().is_some_and(|todo| todo.trim().starts_with("->")), "{said}");
        }
        let bad = said.lines().filter(is_bad).count();
        assert_eq!(bad, wrong.len(), "nothing else is wrong\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_what_is_right_and_names_what_is_wrong() {
    let mut world = World::start().await;
    let _all = world.orders(1).await;
    let check = Check::of(&world);
    let (code, said) = check.run(&[]).await;
    assert_eq!(code, Some(0), "{said}");
    for what in
        ["etcd: answers; 1 instance below", "nats: answers", "accepts", "agent: ready", "VMs"]
    {
        assert!(said.contains(what), "{what}\n{said}");
    }
    assert!(said.lines().all(|line| line.starts_with("ok")), "nothing to do\n{said}");
    let (_, said) = check.run(&["--output", "json"]).await;
    let findings: Value = serde_json::from_str(&said).expect("JSON");
    let findings = findings["findings"].as_array().expect("findings");
    assert!(findings.len() >= 10 && findings.iter().all(|it| it["state"] == "good"), "{said}");

    // An Envoy with everything wrong that it still starts with.
    let mut config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket("/nowhere/agent.sock")
        .wasm(PINTLE_PATH)
        .native_policy("orders", "round_robin", &json!({}));
    let manager = config.http_connection_manager().as_object_mut().expect("an object");
    manager.remove("early_header_mutation_extensions");
    config.wasm_filter()["typed_config"]["config"]["failure_policy"] = json!("FAIL_CLOSED");
    let wrong = Envoy::start(config).await.expect("Envoy");
    let check = Check { envoy: wrong.admin().to_string(), ..Check::of(&world) };
    check
        .finds(&["every request there gets 503", "no cluster reads it", "no cluster has the pipe"])
        .await;
    drop(wrong);

    // One whose clients choose their host, and whose module has no agent.
    let mut config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(world.agent.socket())
        .wasm(PINTLE_PATH)
        .plugin(|plugin| plugin["sync"] = json!({"cluster": "pintle_agnet"}));
    let manager = config.http_connection_manager().as_object_mut().expect("an object");
    manager.remove("early_header_mutation_extensions");
    let wrong = Envoy::start(config).await.expect("Envoy");
    let check = Check { envoy: wrong.admin().to_string(), ..Check::of(&world) };
    check.finds(&["there is no such cluster", "a client may choose its host"]).await;
    drop(wrong);

    let config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(world.agent.socket())
        .without_filter();
    let wrong = Envoy::start(config).await.expect("Envoy");
    let check = Check { envoy: wrong.admin().to_string(), ..Check::of(&world) };
    check.finds(&["Envoy has no Wasm plugin", "no VM is active"]).await;
    drop(wrong);

    // Nothing of it is there.
    let nowhere = Port::take().expect("a port");
    let check = Check { envoy: nowhere.addr().to_string(), ..Check::of(&world) };
    check.finds(&["envoy: "]).await;
    world.etcd.kill9();
    world.nats.kill9();
    Check::of(&world).finds(&["etcd: ", "nats: "]).await;
    world.agent.kill9();
    assert_eventually!(Duration::from_secs(10), {
        let (_, said) = Check::of(&world).run(&[]).await;
        said.contains("no connection to the agent")
    });
    Check::of(&world)
        .finds(&["etcd: ", "nats: ", "socket: ", "agent: ", "no connection to the agent"])
        .await;
}

/// What a configuration says of TLS is tried, and what stands in the way is said.
#[tokio::test(flavor = "multi_thread")]
async fn check_names_trouble_with_tls_and_with_the_configuration_itself() {
    let world = World::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let ca = Authority::new().expect("an authority").certificate();
    let addr = world.etcd.addr();
    let of = async |text: String| {
        let file = dir.path().join("agent.yaml");
        std::fs::write(&file, text).expect("a file");
        let (admin, socket) = (world.agent.admin().to_string(), world.agent.socket());
        let file = file.display().to_string();
        let socket = socket.display().to_string();
        let args = ["check", "--no-envoy", "--config", &file, "--admin", &admin];
        pintle(&[&args[..], &["--socket", &socket]].concat()).await
    };
    let ca = ca.display();
    for (text, exits, says) in [
        (format!("etcd: {{endpoints: ['http://{addr}']}}"), 0, "configuration: can be used"),
        // The server speaks plain text.
        (format!("etcd: {{endpoints: ['https://{addr}'], tls: {{ca: {ca}}}}}"), 1, "BAD   etcd"),
        (
            format!("etcd: {{endpoints: ['https://{addr}'], tls: {{ca: /nowhere/ca.pem}}}}"),
            1,
            "/nowhere/ca.pem",
        ),
        ("etcd: {endpoints: ['http://192.0.2.1:2379']}".into(), 1, "plaintext"),
        ("etcd: {endpoint: ['http://127.0.0.1:1']}".into(), 1, "etcd.endpoint"),
    ] {
        let (code, said) = of(text.clone()).await;
        assert_eq!(code, Some(exits), "{text}\n{said}");
        assert!(said.contains(says), "{text}\n{said}");
    }
}
