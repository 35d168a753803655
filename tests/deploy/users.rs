//! Peers of the socket by their users, with processes that run as these: what OpenShift makes of
//! pods.
//!
//! There a pod's user is one of its namespace's range, its group is root's, and no group is common
//! to two namespaces (SCC `restricted-v2`). The agent's own user is such a one as well.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, Envoy, EnvoyConfig, Etcd, Instance, Server as _, Upstream};
use pintle_tests::{assert_eventually, http};
use serde_json::Value;

use crate::PATIENCE;

/// Becomes this user of root's group, without any other.
const AS: [&str; 6] = ["setpriv", "--regid", "0", "--clear-groups", "--no-new-privs", "--reuid"];

/// The codes that `pintle check` of the agent's socket finds when this user types it.
async fn found(agent: &Agent, user: u32) -> BTreeSet<String> {
    let socket = agent.socket();
    // A copy that everybody reaches.
    let pintle = socket.parent().expect("run").with_file_name("pintle");
    let mut command = tokio::process::Command::new(AS[0]);
    command.args(&AS[1..]).arg(user.to_string()).arg("--").arg(pintle).arg("check");
    command.args(["--no-envoy", "--output", "json", "--etcd", "http://127.0.0.1:9"]);
    let admin = agent.admin().to_string();
    command.args(["--admin", &admin, "--socket"]).arg(socket);
    let done = command.env_clear().env("PATH", "/usr/bin:/bin").output().await.expect("setpriv");
    let said: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let findings = said["findings"].as_array().expect("findings");
    let of_socket = findings.iter().filter(|it| it["what"] == "socket");
    of_socket.filter_map(|it| Some(it["code"].as_str()?.to_owned())).collect()
}

/// Whether the agent's log says that this user was refused.
fn told(log: &str, user: u32) -> bool {
    let said = format!("uid={user} ");
    log.lines().any(|line| line.contains("peer refused") && line.contains(&said))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_a_namespaces_range_are_admitted_and_others_refused_with_a_line() {
    if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        eprintln!("only root becomes others: nothing was tried");
        return;
    }
    const OWN: u32 = 1_000_650_000;
    let etcd = Etcd::start().await.expect("etcd");
    let script = format!(
        "cp \"$0\" {{dir}}/pintle && chmod 0755 {{dir}} {{dir}}/pintle && chown -R {OWN}:0 {{dir}} \
         && mkdir -m 0755 {{dir}}/run && chown {OWN}:0 {{dir}}/run \
         && exec {} {OWN} -- {{dir}}/pintle \"$@\"",
        AS.join(" ")
    );
    let config = "socket: {mode: \"0666\", allow_uids: [1000660000/10000]}\n";
    let agent = Agent::builder().etcd(etcd.url()).config("agent.yaml", config);
    let mut agent = agent.under(&["sh", "-c", &script]).start().await.expect("the agent");
    let socket = std::fs::metadata(agent.socket()).expect("the socket");
    assert_eq!((socket.uid(), socket.gid(), socket.mode() & 0o777), (OWN, 0, 0o666));

    for (user, admitted) in [
        (OWN, true),
        (1_000_660_000, true),
        (1_000_669_999, true),
        (1_000_670_000, false),
        (1337, false),
    ] {
        let codes = found(&agent, user).await;
        let wanted = if admitted { None } else { Some("socket-refuses".to_owned()) };
        assert_eq!(codes, BTreeSet::from_iter(wanted), "{user}");
        if admitted {
            assert!(!told(&agent.log(), user), "{user}: {}", agent.log());
        } else {
            // A line a second at most.
            assert_eventually!(PATIENCE, {
                let _ = found(&agent, user).await;
                told(&agent.log(), user)
            });
        }
    }

    // The sidecar itself.
    let upstream = Upstream::start("orders-1").await.expect("an upstream");
    etcd.register(&Instance::of("orders", &upstream)).await.expect("a registration");
    let config = EnvoyConfig::shipped().expect("the shipped configuration");
    let config = config.agent_socket(agent.socket()).wasm(PINTLE_PATH);
    let envoy = Envoy::start_as(1_000_665_000, config).await.expect("Envoy");
    let answer = async || {
        let request = http::request("orders", "GET", "/", "").expect("a request");
        http::send(envoy.addr(), request).await.map_or(0, |reply| reply.status)
    };
    assert_eventually!(PATIENCE, answer().await == 200);
    let peer = async || {
        let proxies = http::get(agent.admin(), "/v1/proxies").await.expect("an answer");
        let proxies = proxies.json().expect("JSON");
        proxies["proxies"][0]["peer"].as_str().unwrap_or_default().to_owned()
    };
    assert_eventually!(PATIENCE, peer().await.starts_with("uid 1000665000"));
}
