//! What is written can be read, and what can't be is refused by name.

use clap::Parser;
use serde_json::Value;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    init: InitArgs,
}

fn args(words: &[&str]) -> Result<InitArgs, clap::Error> {
    let line = ["init"].iter().chain(words);
    Line::try_parse_from(line).map(|line| line.init)
}

fn written(words: &[&str]) -> BTreeMap<&'static str, String> {
    files(&args(words).unwrap(), Path::new("/etc/pintle")).unwrap()
}

fn tree(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

/// The shipped file has the places that are looked for, and one service written is what is shipped.
#[test]
fn one_service_of_the_shipped_name_is_the_shipped_file() {
    let files = written(&["--service", "orders", "--listen", "0.0.0.0:10000"]);
    let mut ours = tree(&files["envoy.yaml"]);
    let shipped = tree(include_str!("../../../../envoy/envoy.yaml"));
    let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
    let routes = ours.pointer_mut(manager).unwrap()["route_config"].as_object_mut().unwrap();
    assert_eq!(routes.remove("ignore_port_in_host_matching"), Some(true.into()));
    routes["virtual_hosts"][0]["name"] = "all".into();
    routes["virtual_hosts"][0]["domains"] = serde_json::json!(["*"]);
    assert_eq!(ours, shipped);
    assert!(!files.contains_key("services.yaml"));
    assert!(files["pintle.service"].contains("--config /etc/pintle/agent.yaml"));
}

#[test]
fn each_service_has_a_route_and_a_cluster_of_its_kind() {
    let files = written(&[
        "--service",
        "orders",
        "--service",
        "ledger,grpc,tls=ledger.internal,domain=ledger.example",
        "--service",
        "cache,static=127.0.0.1:8001,static=[::1]:8002",
    ]);
    let envoy = tree(&files["envoy.yaml"]);
    let clusters = &envoy["static_resources"]["clusters"];
    let names: Vec<&str> =
        clusters.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["orders", "ledger", "cache", "pintle_agent"]);
    assert_eq!(clusters[1]["transport_socket"]["typed_config"]["sni"], "ledger.internal");
    assert_eq!(clusters[2]["type"], "STATIC");
    assert_eq!(tree(&files["services.yaml"])["services"]["cache"]["endpoints"][1]["port"], 8002);
    let agent = tree(&files["agent.yaml"]);
    assert_eq!(agent["etcd"]["endpoints"][0], "http://127.0.0.1:2379");
    assert_eq!(agent["file"]["path"], "/etc/pintle/services.yaml");
    assert_eq!(agent["state"]["allow"][0], "127.0.0.0/8");
}

/// By the compose specification: images, commands as lists, volumes that are declared or absolute.
#[test]
fn the_compose_file_runs_the_same_files() {
    let with_registry = written(&["--service", "orders", "--state-dir", "/var/lib/pintle"]);
    let compose = tree(&with_registry["compose.yaml"]);
    let services = compose["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["agent", "envoy", "etcd"]);
    let known = [
        "image",
        "command",
        "network_mode",
        "user",
        "read_only",
        "cap_drop",
        "volumes",
        "restart",
        "depends_on",
        "working_dir",
    ];
    for (name, service) in services {
        let unknown =
            service.as_object().unwrap().keys().find(|key| !known.contains(&key.as_str()));
        assert_eq!(unknown, None, "{name}");
        assert!(service["image"].as_str().unwrap().contains(':'), "{name}");
        for volume in service["volumes"].as_array().unwrap() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let there = from.starts_with('/') || compose["volumes"].get(from).is_some();
            assert!(there, "{name}: {volume}");
        }
        for other in service["depends_on"].as_array().into_iter().flatten() {
            assert!(services.contains_key(other.as_str().unwrap()), "{name}");
        }
    }
    assert_eq!(services["agent"]["command"][2], "/etc/pintle/agent.yaml");
    assert_eq!(services["envoy"]["working_dir"], "/etc/pintle");
    let without = written(&["--service", "cache,static=127.0.0.1:8001", "--module", "/opt/p.wasm"]);
    let compose = tree(&without["compose.yaml"]);
    assert!(compose["services"].get("etcd").is_none());
    assert_eq!(compose["services"]["envoy"]["volumes"][2], "/opt/p.wasm:/opt/p.wasm:ro");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let table: [(&[&str], &str); 6] = [
        (&[], "--service"),
        (&["--service", "a b"], "a service's name is"),
        (&["--service", "a,http3"], "\"http3\" is none of"),
        (&["--service", "a,static=there:80"], "\"there:80\" is no address"),
        (&["--service", "a,ca=/x"], "ca= goes with tls="),
        (&["--service", "a,tls="], "\"tls=\" is none of"),
    ];
    for (words, named) in table {
        let refused = args(words).unwrap_err().to_string();
        assert!(refused.contains(named), "{words:?}: {refused}");
    }
    let table: [(&[&str], &str); 2] = [
        (&["--service", "a", "--service", "a,grpc"], "a is there twice"),
        (&["--service", "a", "--etcd", "http://10.0.0.1:2379"], "etcd.endpoints"),
    ];
    for (words, named) in table {
        let refused = files(&args(words).unwrap(), Path::new("/x")).unwrap_err().to_string();
        assert!(refused.contains(named), "{words:?}: {refused}");
    }
}
