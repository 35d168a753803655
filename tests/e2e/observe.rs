//! What `envoy/grafana` ships, on a real Prometheus that scrapes a running installation as
//! `envoy/README.md` says.
//!
//! A metric that is renamed, an expression that does not parse or never has a series, an alert
//! without a test, advice to type what does not exist: each of them fails here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use pintle_artifact::{PINTLE, PINTLE_PATH};
use pintle_tests::{
    Agent, Behaviour, Collector, Envoy, EnvoyConfig, Etcd, Fault, Instance, Manner, Nats,
    Prometheus, Server as _, assert_eventually, http, tools, trapping,
};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, everybody_serves, in_turns, quick};

const ALERTS: &str = "alerts.yaml";
const TESTS: &str = "alerts_test.yaml";

fn path(file: &str) -> PathBuf {
    tools::root().join("envoy/grafana").join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(path(file)).expect("a shipped file")
}

/// The alert rules.
fn rules() -> Vec<Value> {
    let file: Value = serde_yaml_ng::from_str(&text(ALERTS)).expect("YAML");
    file["groups"][0]["rules"].as_array().expect("rules").clone()
}

/// The panels of the dashboard, without the rows' titles.
fn panels() -> Vec<Value> {
    let file: Value = serde_json::from_str(&text("dashboard.json")).expect("JSON");
    let panels = file["panels"].as_array().expect("panels").iter();
    panels.filter(|panel| panel["type"] != "row").cloned().collect()
}

/// The expressions of a panel, with a value for each of Grafana's variables.
fn expressions(panel: &Value) -> Vec<String> {
    let targets = panel["targets"].as_array().expect("targets").iter();
    let written = targets.map(|target| target["expr"].as_str().expect("an expression"));
    written
        .map(|expression| {
            let variables = ["$service", "$fleet", "$agent", "$envoy"].into_iter();
            let expression = expression.replace("$__rate_interval", "10s");
            variables.fold(expression, |text, variable| text.replace(variable, ".*"))
        })
        .collect()
}

/// The metrics that an expression names: outside of braces and brackets, what has an underscore, as
/// no label here has, and is no function. It misses `up`, which is Prometheus' own.
fn metrics(expression: &str) -> BTreeSet<String> {
    let mut depth = 0;
    let mut outside = String::new();
    // Every other piece is within quotes.
    let unquoted: String = expression.split('"').step_by(2).collect();
    for c in unquoted.chars() {
        depth += i32::from("{[".contains(c)) - i32::from("}]".contains(c));
        if depth == 0 {
            outside.push(c);
        }
    }
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = outside.split_inclusive(|c| !part(c));
    let named = words.filter(|word| {
        word.contains('_') && !word.ends_with('(') && !word.starts_with("exported_")
    });
    named.map(|word| word.trim_end_matches(|c| !part(c)).to_owned()).collect()
}

/// A Prometheus with these rules and the configuration in `envoy/README.md`, at this installation's
/// addresses and with a quicker clock.
async fn watching(world: &World, rules: &str) -> Prometheus {
    let readme = std::fs::read_to_string(tools::root().join("envoy/README.md")).expect("a file");
    let section = readme.split("## Watch it").nth(1).expect("the section");
    let block = section.split("```yaml").nth(1).and_then(|it| it.split("```").next());
    let mut config = block.expect("a configuration of Prometheus").to_owned();
    for (written, address) in
        [("127.0.0.1:19100", world.agent.admin()), ("127.0.0.1:9901", world.envoy.admin())]
    {
        assert!(config.contains(written), "{config}");
        config = config.replace(written, &address.to_string());
    }
    let clock = "global: {scrape_interval: 500ms, evaluation_interval: 500ms}";
    let config = format!("{clock}\n{config}");
    Prometheus::start(&config, &[(ALERTS, rules)]).await.expect("Prometheus")
}

#[test]
fn promtool_passes_the_alerts_and_their_tests_name_each() {
    for args in [["check", "rules", ALERTS], ["test", "rules", TESTS]] {
        let mut promtool = Command::new(tools::promtool().expect("promtool"));
        let done = promtool.args(args).current_dir(path("")).output().expect("promtool");
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert!(done.status.success(), "{args:?}: {said}");
    }
    let tests = text(TESTS);
    for rule in rules() {
        let (name, severity) = (&rule["alert"], &rule["labels"]["severity"]);
        for state in ["pending", "firing"] {
            let series =
                format!("ALERTS{{alertname={name}, alertstate=\"{state}\", severity={severity}, ");
            assert!(tests.contains(&series), "no test expects {series}");
        }
        assert!(rule["for"].is_string(), "{rule}");
        assert!(matches!(severity.as_str(), Some("critical" | "warning")), "{rule}");
    }
}

/// The operator's rules are the same, and its monitors ask for ports that the agent has.
#[test]
fn what_is_shipped_for_the_operator_is_what_is_tested() {
    let file = |name: &str| {
        let path = tools::root().join("envoy/kubernetes").join(name);
        let text = std::fs::read_to_string(path).expect("a shipped file");
        let documents = serde_yaml_ng::Deserializer::from_str(&text);
        let read = documents.map(|it| serde::Deserialize::deserialize(it).expect("YAML"));
        read.collect::<Vec<Value>>()
    };
    let plain: Value = serde_yaml_ng::from_str(&text(ALERTS)).expect("YAML");
    let [rule] = &file("alerts.yaml")[..] else { panic!("one PrometheusRule") };
    assert_eq!(rule["kind"], "PrometheusRule");
    assert_eq!(rule["spec"]["groups"], plain["groups"], "the rules of grafana/alerts.yaml");
    let (monitors, agent) = (file("monitoring.yaml"), file("agent.yaml"));
    let kind = |kind: &str| monitors.iter().find(|it| it["kind"] == kind).expect("it is there");
    let endpoint = &kind("ServiceMonitor")["spec"]["endpoints"][0];
    assert_eq!(endpoint["honorLabels"], true);
    assert_eq!(endpoint["port"], kind("Service")["spec"]["ports"][0]["name"]);
    let pods = agent.iter().find(|it| it["kind"] == "DaemonSet").expect("the agents");
    let template = &pods["spec"]["template"];
    let port = &template["spec"]["containers"][0]["ports"][0];
    assert_eq!(kind("Service")["spec"]["ports"][0]["targetPort"], port["name"]);
    assert_eq!(kind("Service")["spec"]["selector"], template["metadata"]["labels"]);
    assert_eq!(kind("PodMonitor")["spec"]["podMetricsEndpoints"][0]["path"], "/stats/prometheus");
    let page = std::fs::read_to_string(tools::root().join("docs/troubleshooting.md"));
    let page = page.expect("the page");
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name");
        let link = format!("docs/troubleshooting.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], link.as_str());
        assert!(page.contains(&format!("\n## {name}\n")), "no section for {name}");
    }
}

/// The words between backticks that begin with `pintle` are a command of ours.
#[tokio::test]
async fn what_an_alert_advises_to_type_exists() {
    let mut tried = BTreeSet::new();
    for rule in rules() {
        let annotations = &rule["annotations"];
        assert!(annotations["summary"].is_string(), "{rule}");
        let description = annotations["description"].as_str().expect("a description");
        for quoted in description.split('`').skip(1).step_by(2) {
            // What is filled in is not needed by --help, and not accepted by all.
            let word = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let command: Vec<&str> = quoted.split_whitespace().take_while(word).collect();
            assert_eq!(command.first(), Some(&"pintle"), "{quoted:?}");
            if command.len() > 1 && tried.insert(command.join(" ")) {
                let args = [&command[1..], &["--help"]].concat();
                let done = Agent::command(&args).await.expect("pintle");
                assert!(done.status.success(), "{quoted:?}");
            }
        }
    }
    assert!(tried.len() > 8, "{tried:?}");
}

/// An installation to which everything has happened that a panel shows.
#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_a_running_installation_and_every_metric_is_there() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let collector = Collector::start().await.expect("a collector");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let config = EnvoyConfig::shipped()
        .and_then(|config| config.clusters_from("tracing.yaml"))
        .expect("the shipped configuration")
        .static_hosts("otlp", &[collector.addr()])
        .service("resting")
        .service("nobody")
        .agent_socket(agent.socket())
        .wasm(PINTLE_PATH)
        .plugin(|plugin| {
            in_turns(plugin);
            let export = json!({"cluster": "otlp", "service_name": "edge", "interval": "100ms"});
            plugin["trace"] = json!({ "export": export });
        });
    let envoy = Envoy::start(config).await.expect("Envoy");
    let world = World { etcd, nats, agent, envoy };
    let prometheus = watching(&world, &text(ALERTS)).await;

    let all = world.orders(3).await;
    let load = world.load(100.0).start();
    everybody_serves(&all).await;
    // A breaker opens.
    all[0].set(Behaviour::failing(Fault::Status(503)));
    // Nobody is eligible, and a panic would not ask the draining one either; nobody is known.
    let calm = r#"{"select": {"panic_percent": 0}}"#;
    world.etcd.put("/pintle/policies/resting", calm).await.expect("a policy");
    let resting = quick("resting-1").await;
    let mut instance = Instance::of("resting", &resting);
    instance.health = "draining".into();
    world.etcd.register(&instance).await.expect("a registration");
    let ask = async |service: &str| {
        let request = http::request(service, "GET", "/", "").expect("a request");
        http::send(world.envoy.addr(), request).await.expect("an answer")
    };
    assert_eventually!(PATIENCE, ask("resting").await.header("x-pintle-reason").is_some());
    assert_eq!(ask("nobody").await.status, 503, "Envoy has no host either");
    // A removal is held, an entry refused.
    for id in ["parts-1", "parts-2"] {
        let part = Instance::new("parts", id, resting.addr());
        world.etcd.register(&part).await.expect("a registration");
    }
    world.etcd.delete_prefix("/services/parts/").await.expect("a removal");
    world.etcd.put("/services/orders/broken", "{").await.expect("a put");
    // Spans are lost, and are taken.
    const INVALID_ARGUMENT: u32 = 3;
    collector.set(Manner::Refuse(INVALID_ARGUMENT));
    let count =
        async |name: &str| world.envoy.stat(&format!("wasmcustom.pintle_{name}_total")).await;
    assert_eventually!(PATIENCE, count("span_dropped").await > Some(0));
    collector.set(Manner::Take);
    assert_eventually!(PATIENCE, count("span_exported").await > Some(0));

    for panel in panels() {
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        for said in [&panel["title"], &panel["description"], unit] {
            assert!(said.as_str().is_some_and(|said| !said.is_empty()), "{panel}");
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "it imports anywhere: {panel}");
        for expression in expressions(&panel) {
            assert_eventually!(
                PATIENCE,
                !prometheus.query(&expression).await.expect("it parses").is_empty(),
                "nothing to see in {}: {expression}",
                panel["title"]
            );
        }
    }
    let alerts = rules().into_iter().map(|rule| rule["expr"].as_str().expect("text").to_owned());
    let shown = panels().iter().flat_map(expressions).chain(alerts).collect::<Vec<_>>().join("\n");
    let named = metrics(&shown);
    assert!(named.len() > 30, "{named:?}");
    let scraped = prometheus.names().await.expect("the names");
    let missing: Vec<_> = named.difference(&scraped).collect();
    assert!(missing.is_empty(), "nobody has {missing:?}");
    load.stop().await;
    world.no_traps().await;
}

/// With `for` cut to nothing: silence when all is well, the right alert and no other when something
/// is not, and silence again afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_fires_when_its_cause_comes_and_ends_when_it_goes() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let dir = tempfile::tempdir().expect("a directory");
    let module = dir.path().join("trapping.wasm");
    const HEADERS: i32 = 60;
    std::fs::write(&module, trapping(PINTLE, HEADERS).expect("a module")).expect("a file");
    let config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(module);
    let envoy = Envoy::start(config).await.expect("Envoy");
    let mut world = World { etcd, nats, agent, envoy };
    let _all = world.orders(2).await;
    let load = world.load(50.0).start();
    let mut rules = rules();
    for rule in &mut rules {
        rule["for"] = "0s".into();
    }
    let rules = json!({"groups": [{"name": "pintle", "rules": rules}]}).to_string();
    let prometheus = watching(&world, &rules).await;
    let fires = async |expected: &[&str]| {
        let began = Instant::now();
        let firing = async || prometheus.firing().await.expect("the alerts");
        assert_eventually!(
            PATIENCE,
            firing().await.iter().eq(expected),
            "{:?} fire, and not {expected:?}",
            firing().await
        );
        println!("{expected:?} after {:.1} s", began.elapsed().as_secs_f64());
    };
    let up = async || prometheus.query("up == 1").await.expect("it parses").len();
    assert_eventually!(PATIENCE, up().await == 2);
    fires(&[]).await;

    world.etcd.kill9();
    fires(&["PintleRegistryLost"]).await;
    world.etcd.restart().await.expect("etcd");
    fires(&[]).await;

    world.agent.kill9();
    fires(&["PintleAgentDown"]).await;
    world.agent.restart().await.expect("the agent");
    fires(&[]).await;

    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let mut request = http::request("orders", "GET", "/", "").expect("a request");
    for header in 0..HEADERS {
        let name = format!("x-{header}").parse::<::http::HeaderName>().expect("a name");
        request.headers_mut().insert(name, "1".parse().expect("a value"));
    }
    let reply = http::send(world.envoy.addr(), request).await.expect("an answer");
    assert_eq!(reply.status, 503, "it traps");
    assert_eventually!(PATIENCE, {
        world.get("/").await;
        world.envoy.vm_reloads().await.expect("the statistics") > 0
    });
    fires(&["PintleModuleTrapped"]).await;
}
