//! The debug header on a real Envoy: in answers of endpoints and in local ones, for who brings the
//! token.

use serde_json::{Value, json};

use crate::support::{World, ask, who};

const HEADER: &str = "pintle-debug";
const TOKEN: &str = "a-token-of-the-test";

/// In each place that configures the VM: the first one makes it (seen in 1.40.0).
fn give_token(config: &mut Value) {
    match config {
        Value::Object(fields) => {
            if let Some(vm) = fields.get_mut("vm_config") {
                vm["environment_variables"] = json!({"key_values": {"PINTLE_DEBUG_TOKEN": TOKEN}});
            }
            fields.values_mut().for_each(give_token);
        }
        Value::Array(items) => items.iter_mut().for_each(give_token),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_the_token_is_told_why_and_no_other_sees_the_header() {
    let mut world = World::start(3).await;
    let mut config = world.config().plugin(|plugin| plugin["debug"] = json!({}));
    // Of `key_values` in the place of `host_env_keys`, which would be this test's own environment.
    give_token(config.root());
    let envoy = world.envoy(config).await;
    let told = |reply: &pintle_tests::http::Reply| {
        reply.header(HEADER).map(|text| serde_json::from_str::<Value>(text).unwrap())
    };

    let reply = ask(&envoy, &[(HEADER, TOKEN)]).await;
    let answer = told(&reply).expect("an answer");
    assert_eq!((&answer["choice"], &answer["candidates"]), (&json!("eligible"), &json!(3)));
    assert_eq!(answer["list"][0], json!(who(&reply)));
    assert_eq!(reply.echoed(HEADER), Vec::<String>::new(), "no endpoint learns the token");

    for headers in [&[][..], &[(HEADER, "a-token-of-the-tesT")], &[(HEADER, "")]] {
        let reply = ask(&envoy, headers).await;
        assert_eq!((reply.status, reply.header(HEADER)), (200, None), "{headers:?}");
        assert_eq!(reply.echoed(HEADER), Vec::<String>::new(), "{headers:?}");
    }

    world.policy(json!({"select": {"subset": [{"header": "x-tag", "tag": true}]}})).await;
    let reply = ask(&envoy, &[(HEADER, TOKEN), ("x-tag", "nobody's")]).await;
    assert_eq!(reply.status, 503);
    let answer = told(&reply).expect("in the local answer, too");
    assert_eq!(answer["choice"], json!("nobody is of the subset"));
    assert_eq!(answer["endpoints"][2]["left_out"], json!("not of the subset"));
    assert_eq!(envoy.vm_reloads().await.unwrap(), 0);
}
