//! The Helm chart: what it renders is what Kubernetes takes, and the plain manifests are made of
//! it.

mod render;

use std::path::PathBuf;
use std::process::Command;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use pintle_tests::tools;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::render::{directory, objects, parsed, render, values};

/// Each mode with everything on, and with as little as may be.
fn releases() -> Vec<Value> {
    let everything = json!({
        "namespace": {"create": true},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {"etcd": null, "nats": null, "kubernetes": {}, "state": {"allow": ["10.0.0.0/8"]}},
        "policies": {"orders": {"select": {"strategy": "p2c"}}, "a-1.b": {"breaker": {}}},
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
        "user": 1_000_660_000,
        "socket": {"uids": [1337, "1000660000/10000"], "mode": "0666"},
        "envoy": {"config": "admin: {}\nstatic_resources: {}\n"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "priorityClassName": "high",
        "networkPolicy": {"enabled": true},
        "monitoring": {"enabled": true},
    });
    let mut all = Vec::new();
    for mode in ["node", "service", "sidecar"] {
        all.push(json!({"mode": mode, "envoy": {"config": "admin: {}"}}));
        let mut more = everything.clone();
        more["mode"] = json!(mode);
        all.push(more);
    }
    for mode in ["service", "sidecar"] {
        all.push(json!({"mode": mode, "envoy": {"config": "admin: {}"}, "user": null}));
    }
    all
}

/// Whether a type of Kubernetes' API takes the object, and knows each of its fields.
fn known<T: DeserializeOwned + Serialize>(object: &Value) {
    let read: T = serde_json::from_value(object.clone())
        .unwrap_or_else(|error| panic!("{error}: {object:#}"));
    assert_eq!(serde_json::to_value(read).unwrap(), *object);
}

#[test]
fn every_object_is_one_of_kubernetes() {
    for release in releases() {
        for object in objects(&release) {
            assert!(object["metadata"]["name"].is_string(), "{object}");
            match object["kind"].as_str().unwrap() {
                "Namespace" => known::<Namespace>(&object),
                "ConfigMap" => known::<ConfigMap>(&object),
                "Service" => known::<Service>(&object),
                "ServiceAccount" => known::<ServiceAccount>(&object),
                "ClusterRole" => known::<ClusterRole>(&object),
                "ClusterRoleBinding" => known::<ClusterRoleBinding>(&object),
                "DaemonSet" => known::<DaemonSet>(&object),
                "Deployment" => known::<Deployment>(&object),
                "PodDisruptionBudget" => known::<PodDisruptionBudget>(&object),
                "NetworkPolicy" => known::<NetworkPolicy>(&object),
                // The Prometheus Operator's.
                "ServiceMonitor" | "PodMonitor" => {}
                other => panic!("{other} is not expected"),
            }
        }
    }
}

/// The pod of a release.
fn pod(release: &Value) -> Value {
    let kinds = ["DaemonSet", "Deployment"];
    let objects = objects(release);
    let found = objects.iter().find(|it| kinds.iter().any(|kind| it["kind"] == *kind));
    found.expect("a workload")["spec"]["template"]["spec"].clone()
}

/// What the level `restricted` of the Pod Security Standards asks for.
#[test]
fn only_agents_of_nodes_need_more_than_restricted_pods_may() {
    for release in releases().iter().filter(|release| release["mode"] != "node") {
        let pod = pod(release);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let of = |key: &str| pod[key].as_array().cloned().unwrap_or_default();
        for container in of("containers").iter().chain(&of("initContainers")) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{container}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{container}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_ne!(context["runAsUser"], 0, "{container}");
            let cluster_chooses = release["user"].is_null() && release.get("user").is_some();
            assert!(!cluster_chooses || context["runAsUser"].is_null(), "{container}");
        }
        for volume in of("volumes") {
            let kinds = ["emptyDir", "configMap", "secret"];
            assert!(kinds.iter().any(|kind| volume.get(kind).is_some()), "{volume}");
        }
    }
}

#[test]
fn the_agent_takes_what_every_mode_configures() {
    let dir = tempfile::TempDir::with_prefix("pintle-chart-").unwrap();
    for release in releases() {
        let objects = objects(&release);
        let map = objects.iter().find(|it| it["kind"] == "ConfigMap").unwrap();
        let file = dir.path().join("agent.yaml");
        std::fs::write(&file, map["data"]["agent.yaml"].as_str().unwrap()).unwrap();
        let mut check = Command::new(tools::agent().unwrap());
        // What is set for the tests is not the agent's.
        check.env_clear().args(["check", "--no-envoy", "-o", "json", "--config"]).arg(&file);
        let said = String::from_utf8(check.output().unwrap().stdout).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        let findings = said["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"] == "configuration").unwrap();
        assert_eq!(found["state"], "good", "{release}: {found}");
    }
}

#[test]
fn the_schema_takes_the_values_and_nothing_else() {
    let text = std::fs::read_to_string(directory().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("values.json", schema).unwrap();
    let schema = compiler.compile("values.json", &mut schemas).unwrap();
    let takes = |changes: &Value| schemas.validate(&values(changes), schema).is_ok();
    assert!(takes(&json!({})));
    for release in releases() {
        assert!(takes(&release), "{release}");
    }
    for wrong in [
        json!({"mode": "daemon"}),
        json!({"mode": "sidecar"}),
        json!({"user": null}),
        json!({"user": 0}),
        json!({"imgae": "pintle:0.1.0"}),
        json!({"config": {"socket": {"path": "/tmp/agent.sock"}}}),
        json!({"config": {"etcd": null}}),
        json!({"tcp": {"replicas": 0}}),
        json!({"maxUnavailable": "0%"}),
        json!({"socket": {"uids": ["1000660000-1000669999"]}}),
        json!({"socket": {"mode": "0777"}}),
    ] {
        assert!(!takes(&wrong), "{wrong}");
    }
}

#[test]
fn the_chart_is_of_this_release() {
    let version = env!("CARGO_PKG_VERSION");
    let text = std::fs::read_to_string(directory().join("Chart.yaml")).unwrap();
    let chart: Value = serde_yaml_ng::from_str(&text).unwrap();
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
    assert_eq!(values(&json!({}))["image"], format!("pintle:{version}"));
}

/// `BLESS=1 cargo test -p xtask chart` writes them.
#[test]
fn the_plain_manifests_are_the_charts() {
    let values = values(&json!({"namespace": {"create": true}, "monitoring": {"enabled": true}}));
    let rendered = |file: &str| render(file, &values).trim_end().to_owned();
    let agent = format!("{}\n---\n{}", rendered("config.yaml"), rendered("node.yaml"));
    for (name, text) in [("agent.yaml", agent), ("monitoring.yaml", rendered("monitoring.yaml"))] {
        let path: PathBuf = tools::root().join("envoy/kubernetes").join(name);
        let there = std::fs::read_to_string(&path).unwrap();
        // What it is for stands above, and is not the chart's.
        let head = there.find("apiVersion:").unwrap();
        let wanted = format!("{}{text}\n", &there[..head]);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &wanted).unwrap();
            continue;
        }
        assert!(there == wanted, "{name} is not the chart's; BLESS=1 writes it:\n{wanted}");
        assert!(!parsed(&there).is_empty());
    }
}

/// Its template has no annotations for volumes (`gateway-injection-template.yaml` of Istio).
#[test]
fn a_gateways_deployment_mounts_what_the_plugin_and_its_cluster_read() {
    let text = std::fs::read_to_string(tools::root().join("envoy/istio/gateway.yaml")).unwrap();
    let all = parsed(&text);
    let deployment = all.iter().find(|it| it["kind"] == "Deployment").unwrap();
    known::<Deployment>(deployment);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["pintle"], "enabled");
    let mounts = template["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
    // The module of the WasmPlugin and the socket of `pintle_agent` are below the first.
    for path in ["/run/pintle", "/etc/istio/pintle"] {
        assert!(mounts.iter().any(|mount| mount["mountPath"] == path), "{path}");
    }
}
