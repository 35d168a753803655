//! What `docs/by-hand.md` says to type is typed, by a shell; where the machine lets it, in a network of its
//! own, because its ports are those that a person has free and this machine may not.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::tools;
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

/// What `cargo xtask dist` makes, as far as the page speaks of it, with the agent as it is developed.
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
    let first = typed(&blocks(&page, "The first request")).await;
    assert!(first.contains("# Envoy with Pintle") && first.contains("web"), "{first}");
    let registry = typed(&blocks(&page, "With a registry")).await;
    let answers = registry.split_once("OK\n").expect("etcdctl's answer").1;
    assert_eq!(answers, "orders-1\norders-2\n", "{registry}");
}
