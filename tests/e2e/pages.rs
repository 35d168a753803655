//! What `docs/by-hand.md` says to type is typed, by a shell; where the machine lets it, in a
//! network of its own, because its ports are those that a person has free and this machine may not.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, tools};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// For the slower of the two stories.
const STORY: Duration = Duration::from_secs(180);
/// Brings loopback up, where there is no `ip`: SIOCSIFFLAGS with IFF_UP and IFF_RUNNING.
const LOOPBACK: &str = "python3 -c \"import fcntl, socket, struct; \
                        fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x41))\"";

/// The shell's blocks below a heading.
fn blocks(page: &str, heading: &str) -> String {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.collect()
}

/// What `cargo xtask dist` makes, as far as the page speaks of it, with the agent as it is
/// developed.
fn dist() -> TempDir {
    let dir = TempDir::with_prefix("pintle-dist-").expect("a directory");
    let link = |from: &Path, name: &str| {
        std::os::unix::fs::symlink(from, dir.path().join(name)).expect("a link");
    };
    link(&tools::agent().expect("the agent"), "pintle");
    link(Path::new(PINTLE_PATH), "pintle.wasm");
    link(&tools::root().join("envoy"), "envoy");
    dir
}

async fn typed(script: &str) -> String {
    let dist = dist();
    let envoy = tools::envoy().expect("Envoy");
    let fetched = format!("$PWD/target/tools/envoy/{}", tools::ENVOY_VERSION);
    let script = script
        .replace(&fetched, &envoy.parent().expect("a directory").display().to_string())
        .replace("$PWD/target/dist", &dist.path().display().to_string())
        .replace("target/dist", &dist.path().display().to_string());
    let apart = ["--map-root-user", "--net"];
    let may = Command::new("unshare").args(apart).arg("true").output().await;
    let mut command = if may.is_ok_and(|done| done.status.success()) {
        let mut command = Command::new("unshare");
        command.args(apart).args(["bash", "-euc"]).arg(format!("{LOOPBACK}\n{script}"));
        command
    } else {
        let mut command = Command::new("bash");
        command.args(["-euc", &script]);
        command
    };
    command.current_dir(tools::root()).stdin(Stdio::null()).kill_on_drop(true);
    let done = tokio::time::timeout(STORY, command.output()).await.expect("it ends");
    let done = done.expect("a shell");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_by_hand_says_works_as_it_stands() {
    let page = std::fs::read_to_string(tools::root().join("docs/by-hand.md")).expect("the page");
    let first = blocks(&page, "The first request");
    let until = first.split("curl ").next().expect("a request").replace("\\\n", " ");
    let commands = until.lines().flat_map(|line| line.split(';')).count();
    assert!(commands < 10, "{commands} commands to the first request");
    let first = typed(&first).await;
    assert!(first.contains("# Envoy with Pintle") && first.contains("web"), "{first}");
    let registry = typed(&blocks(&page, "With a registry")).await;
    let answers = registry.split_once("OK\n").expect("etcdctl's answer").1;
    assert_eq!(answers, "orders-1\norders-2\n", "{registry}");
}

/// The commands of the compose file that `pintle init` writes, as an engine runs them, but for the
/// images and the mounts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_compose_file_runs_answers() {
    let place = TempDir::with_prefix("pintle-compose-").expect("a directory");
    let dir = place.path().display().to_string();
    let socket = format!("{dir}/run/agent.sock");
    let args = ["init", &dir, "--service", "orders", "--allow", "127.0.0.0/8"];
    let rest = ["--socket", &socket, "--module", PINTLE_PATH];
    let done = Agent::command(&[&args[..], &rest].concat()).await.expect("pintle");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let file = std::fs::read_to_string(place.path().join("compose.yaml")).expect("the file");
    let compose: Value = serde_yaml_ng::from_str(&file).expect("YAML");
    let mut script = format!("PATH=$PWD/target/dist:{}:$PATH\n", "$PWD/target/tools/envoy/1.40.0");
    for (name, program) in [("etcd", ""), ("agent", "pintle"), ("envoy", "")] {
        let command = compose["services"][name]["command"].as_array().expect("a list");
        let words = command.iter().map(|word| format!("'{}'", word.as_str().expect("a word")));
        let words = words.collect::<Vec<_>>().join(" ").replace("'/etcd'", &format!("{dir}/etcd"));
        script += &format!("{program} {words} > {dir}/{name}.log 2>&1 &\n");
    }
    script += &format!(
        "mkdir {dir}/web; echo hello > {dir}/web/index.html\n\
         python3 -m http.server 8001 --bind 127.0.0.1 --directory {dir}/web > {dir}/web.log 2>&1 &\n\
         pintle register --service orders --id orders-1 --address 127.0.0.1 --port 8001 \
         > {dir}/register.log 2>&1 &\n\
         curl -sf --retry 30 --retry-delay 1 --retry-all-errors http://127.0.0.1:10000/\n\
         kill $(jobs -p); wait\n"
    );
    let said = typed(&script).await;
    assert_eq!(said, "hello\n");
}
