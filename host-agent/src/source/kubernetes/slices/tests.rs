//! What Services of every shape become.

use serde_json::{Value, json};

use super::*;

fn config(settings: Value) -> KubernetesConfig {
    pintle_settings::read("kubernetes", settings).unwrap()
}

/// A slice of `default/orders`, with `more` over it.
fn slice(name: &str, more: Value) -> EndpointSlice {
    let mut slice = json!({
        "addressType": "IPv4",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "orders"},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [],
    });
    for (key, value) in more.as_object().unwrap() {
        slice[key] = value.clone();
    }
    serde_json::from_value(slice).unwrap()
}

fn pod(name: &str, address: &str, more: Value) -> Value {
    let mut pod = json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": name}});
    for (key, value) in more.as_object().unwrap() {
        pod[key] = value.clone();
    }
    pod
}

/// By service and id: address with port, health and metadata.
fn read(changed: &Changed) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for service in &changed.services {
        for (id, value) in &service.endpoints {
            let value: Value = serde_json::from_slice(value).unwrap();
            assert_eq!((&value["name"], &value["id"]), (&json!(service.name), &json!(id)));
            all.insert(
                format!("{}/{id}", service.name),
                json!([value["address"], value["port"], value["health"], value["metadata"]]),
            );
        }
    }
    all
}

#[test]
fn an_endpoint_is_what_its_conditions_zone_and_hints_say() {
    for (what, more, health, metadata) in [
        ("nothing said", json!({}), "healthy", json!({})),
        ("ready", json!({"conditions": {"ready": true}}), "healthy", json!({})),
        ("not ready", json!({"conditions": {"ready": false}}), "unhealthy", json!({})),
        (
            "terminating and serving",
            json!({"conditions": {"ready": false, "serving": true, "terminating": true}}),
            "draining",
            json!({}),
        ),
        (
            "terminating and not serving",
            json!({"conditions": {"ready": false, "serving": false, "terminating": true}}),
            "unhealthy",
            json!({}),
        ),
        (
            "not ready by its probe, and published nevertheless",
            json!({"conditions": {"ready": true, "serving": false, "terminating": false}}),
            "healthy",
            json!({}),
        ),
        (
            "with a zone and a node",
            json!({"zone": "a", "nodeName": "n1"}),
            "healthy",
            json!({"zone": "a", "node": "n1"}),
        ),
        (
            "meant for another zone",
            json!({"zone": "a", "hints": {"forZones": [{"name": "b"}]}}),
            "healthy",
            json!({"zone": "b"}),
        ),
    ] {
        let mut slices = Slices::new(config(json!({})));
        let endpoints = json!([pod("orders-1", "10.0.0.1", more)]);
        let told = read(&slices.put(slice("a", json!({ "endpoints": endpoints }))));
        let expect = json!(["10.0.0.1", 8080, health, metadata]);
        assert_eq!(told, [("orders.default/orders-1".to_owned(), expect)].into(), "{what}");
    }
}

#[test]
fn slices_of_one_service_are_one_and_an_address_in_two_of_them_is_the_ready_one() {
    let mut slices = Slices::new(config(json!({})));
    let unready = json!({"conditions": {"ready": false}});
    let first =
        json!([pod("orders-1", "10.0.0.1", unready), pod("orders-2", "10.0.0.2", json!({})),]);
    slices.put(slice("a", json!({ "endpoints": first })));
    let second =
        json!([pod("orders-1", "10.0.0.1", json!({})), {"addresses": ["10.0.0.3", "10.0.0.4"]}]);
    let told = read(&slices.put(slice("b", json!({ "endpoints": second }))));
    let healthy = |address: &str| json!([address, 8080, "healthy", {}]);
    let expect: BTreeMap<String, Value> = [
        ("orders.default/orders-1".to_owned(), healthy("10.0.0.1")),
        ("orders.default/orders-2".to_owned(), healthy("10.0.0.2")),
        ("orders.default/10.0.0.3".to_owned(), healthy("10.0.0.3")),
    ]
    .into();
    assert_eq!(told, expect);
    // The same again is no news; one slice less leaves the other.
    let same =
        json!([pod("orders-1", "10.0.0.1", json!({})), {"addresses": ["10.0.0.3", "10.0.0.4"]}]);
    assert_eq!(slices.put(slice("b", json!({ "endpoints": same }))), Changed::default());
    let left = read(&slices.remove(&slice("a", json!({}))));
    assert_eq!(
        left.keys().collect::<Vec<_>>(),
        ["orders.default/10.0.0.3", "orders.default/orders-1"]
    );
    let gone = slices.list(None, Vec::new());
    let empty = Told { name: "orders.default".into(), ..Told::default() };
    assert_eq!(gone, Changed { services: vec![empty], unserved: Vec::new() });
}

/// The API server writes an empty list of a slice as null: such as that of a Service scaled to
/// none.
#[test]
fn a_slice_without_endpoints_is_a_service_without_any() {
    let mut slices = Slices::new(config(json!({})));
    slices.put(slice("a", json!({"endpoints": [pod("orders-1", "10.0.0.1", json!({}))]})));
    let changed = slices.put(slice("a", json!({"endpoints": null})));
    let empty = Told { name: "orders.default".into(), ..Told::default() };
    assert_eq!(changed, Changed { services: vec![empty.clone()], unserved: Vec::new() });
    // And without ports, as it may be then.
    let changed = slices.put(slice("a", json!({"endpoints": null, "ports": null})));
    assert_eq!(changed.services, [empty]);
}

#[test]
fn a_service_with_several_ports_needs_a_word_about_them() {
    let two = json!([
        {"name": "grpc", "port": 9000, "protocol": "TCP"},
        {"name": "http", "port": 8080, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    let udp = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
    let nameless = json!([{"port": 8080}]);
    let both = ["orders.default.grpc/9000", "orders.default.http/8080"].as_slice();
    for (what, settings, ports, expect) in [
        ("no word", json!({}), &two, Err("2 ports (grpc, http)")),
        ("a name", json!({"port": "grpc"}), &two, Ok(["orders.default/9000"].as_slice())),
        ("a name that is not there", json!({"port": "x"}), &two, Err("called \"x\"")),
        ("each its own", json!({"name": "{service}.{namespace}.{port}"}), &two, Ok(both)),
        ("no name at all", json!({}), &nameless, Ok(["orders.default/8080"].as_slice())),
        ("no TCP", json!({}), &udp, Err("no TCP port")),
        ("no port", json!({}), &Value::Null, Err("no TCP port")),
    ] {
        let mut slices = Slices::new(config(settings));
        let endpoints = json!([pod("orders-1", "10.0.0.1", json!({}))]);
        let changed = slices.put(slice("a", json!({"ports": ports, "endpoints": endpoints})));
        let found: Vec<String> = read(&changed)
            .into_iter()
            .map(|(key, value)| format!("{}/{}", key.split('/').next().unwrap(), value[1]))
            .collect();
        match expect {
            Ok(expect) => assert_eq!(found, expect, "{what}"),
            Err(expect) => {
                let (name, why) = &changed.unserved[0];
                assert_eq!(name, "orders.default", "{what}");
                assert!(why.to_string().contains(expect), "{what}: {why}");
                assert!(found.is_empty(), "{what}");
            }
        }
    }
}

#[test]
fn of_two_families_the_preferred_one_is_taken_and_host_names_are_refused() {
    let of = |family: &str, address: &str| {
        let endpoints = json!([pod("orders-1", address, json!({}))]);
        slice(family, json!({"addressType": family, "endpoints": endpoints}))
    };
    let (v4, v6) = (of("IPv4", "10.0.0.1"), of("IPv6", "fd00::1"));
    for (settings, list, expect) in [
        (json!({}), vec![v4.clone(), v6.clone()], "10.0.0.1"),
        (json!({"family": "ipv6"}), vec![v4.clone(), v6.clone()], "fd00::1"),
        (json!({}), vec![v6.clone()], "fd00::1"),
        (json!({"family": "ipv6"}), vec![v4.clone()], "10.0.0.1"),
    ] {
        let mut slices = Slices::new(config(settings.clone()));
        let told = read(&slices.list(None, list));
        assert_eq!(told["orders.default/orders-1"][0], expect, "{settings}");
        assert_eq!(told.len(), 1, "{settings}");
    }
    let mut slices = Slices::new(config(json!({})));
    let changed = slices.put(of("FQDN", "orders.example"));
    assert_eq!(changed.unserved, [("orders.default".to_owned(), Unserved::HostNames)]);
}

#[test]
fn a_listing_of_one_namespace_leaves_the_others_alone() {
    let mut slices = Slices::new(config(json!({})));
    let endpoints = json!([pod("orders-1", "10.0.0.1", json!({}))]);
    slices.put(slice("a", json!({ "endpoints": endpoints })));
    assert_eq!(slices.list(Some("other"), Vec::new()), Changed::default());
    assert_eq!(slices.all().services.len(), 1);
    assert_eq!(slices.list(Some("default"), Vec::new()).services[0].endpoints, []);
    assert_eq!(slices.all(), Changed::default());
}

#[test]
fn settings_that_can_not_be_met_name_their_key() {
    for (settings, key) in [
        (json!({"name": "{namespace}"}), "name"),
        (json!({"name": "{service}/{namespace}"}), "name"),
        (json!({"name": "{service}.{port}", "port": "http"}), "port"),
        (json!({"family": "both"}), "family"),
        (json!({"namespaces": ["Default"]}), "namespaces"),
        (json!({"context": "x"}), "kubeconfig"),
        (json!({"namespace": "x"}), "namespace"),
    ] {
        let read = pintle_settings::read::<KubernetesConfig>("kubernetes", settings.clone());
        let error = read.unwrap_err().to_string();
        assert!(error.contains(&format!("kubernetes.{key}")), "{settings}: {error}");
    }
}
