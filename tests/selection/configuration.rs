//! The plugin's configuration as Envoy hands it over: the text of a `StringValue`, or the bytes of
//! a `Struct`, which 1.40 does not turn into JSON although its documentation says so.

use pintle_tests::{Envoy, Server as _, assert_eventually};
use serde_json::{Value, json};

use crate::support::{ORDERS, SOON, World, ask, who};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_struct_is_read_like_the_text() {
    let world = World::start(2).await;
    let mut config = world.config();
    let place = &mut config.wasm_filter()["typed_config"]["config"]["configuration"];
    let mut plugin: Value = serde_json::from_str(place["value"].as_str().unwrap()).unwrap();
    plugin["select"]["attempts"] = json!(2);
    plugin["services"] = json!({ORDERS: {"select": {"strategy": "round_robin"}}});
    *place = json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": plugin});
    let envoy = world.envoy_with(config, 1).await;
    let first = who(&ask(&envoy, &[]).await);
    for turn in 1..10 {
        let next = who(&ask(&envoy, &[]).await);
        assert_eq!(next == first, turn % 2 == 0, "{turn}: {next} after {first}");
    }
}

/// Envoy says of each only that the plugin did not configure; the module says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_and_that_nothing_is_on_is_in_envoys_log() {
    let world = World::start(1).await;
    for (text, says) in [
        ("select: {}\n", "found text in YAML"),
        (r#"{"select": {}, "select": {}}"#, "the key select stands twice in one object"),
        (r#"{"select": null}"#, "select must be a value, or left out to be off, found null"),
        ("", "nothing is on: no select, breaker or trace"),
    ] {
        let mut config = world.config();
        let place = &mut config.wasm_filter()["typed_config"]["config"]["configuration"];
        place["value"] = json!(text);
        let mut envoy = Envoy::launch(config, 1, &[]).unwrap();
        assert_eventually!(SOON, envoy.log().contains(says));
    }
}
