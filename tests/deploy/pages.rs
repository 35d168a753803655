//! What `docs/by-hand.md` says to type is typed, by a shell; where the machine lets it, in a
//! network of its own, because its ports are those that a person has free and this machine may not.

use std::path::{Path, PathBuf};
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
    // Also when it fails.
    let script = format!("trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}");
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

/// Of the compose file that is shipped.
const SUBNET: &str = "172.30.7.";
const PROGRAMS: &str = "PATH=$PWD/target/dist:$PWD/target/tools/envoy/1.40.0:$PATH\n";
const GET: &str = "curl -sf --retry 30 --retry-delay 1 --retry-all-errors";

/// What an engine makes of a compose file, without images: for each container its mounts in a
/// folder of its own, loopback for its addresses and names, and its command in the background.
struct Containers<'a> {
    compose: &'a Value,
    /// Where the file is.
    at: &'a Path,
    /// Where the mounts are made.
    place: &'a Path,
}

impl Containers<'_> {
    /// Starts all of them; what they said last is shown when something after it fails.
    fn script(&self) -> String {
        let services = self.compose["services"].as_object().expect("services");
        let logs = format!("trap 'tail -n 20 {}/*.log >&2' ERR\n", self.place.display());
        let commands = services.iter().map(|(name, service)| self.command(name, service));
        [logs].into_iter().chain(commands).collect()
    }

    fn command(&self, name: &str, service: &Value) -> String {
        let moved = self.mounts(name, service);
        let rewritten = |text: &str| self.rewritten(text, &moved);
        let words = service["command"].as_array().expect("a list").iter();
        let words = words.map(|word| format!("'{}'", rewritten(word.as_str().expect("a word"))));
        let words = words.collect::<Vec<_>>().join(" ");
        // The entry point of the image.
        let image = service["image"].as_str().expect("an image");
        let entry = if image.starts_with("pintle:") { "pintle " } else { "" };
        let dir = service["working_dir"].as_str().map_or_else(|| ".".to_owned(), rewritten);
        let log = self.place.join(format!("{name}.log"));
        format!("(cd {dir} && exec {entry}{words}) > {} 2>&1 &\n", log.display())
    }

    /// Makes what a container has mounted; the places in it, and where they are.
    fn mounts(&self, name: &str, service: &Value) -> Vec<(String, String)> {
        let list = |key: &str| service[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().expect("a mount").to_owned();
        let mut moved = Vec::new();
        let mut here = |to: &str| {
            let here = self.place.join(name).join(to.trim_start_matches('/'));
            std::fs::create_dir_all(here.parent().expect("a parent")).expect("folders");
            moved.push((to.to_owned(), here.display().to_string()));
            here
        };
        for mount in list("volumes").iter().map(text) {
            let mut parts = mount.split(':');
            let (from, to) = (parts.next().expect("a source"), parts.next().expect("a target"));
            // At the same place as outside.
            if to == from || to.starts_with(&self.place.display().to_string()) {
                continue;
            }
            let source = if from.starts_with('.') {
                self.beside(from)
            } else {
                let volume = self.place.join("volumes").join(from);
                std::fs::create_dir_all(&volume).expect("a volume");
                volume
            };
            std::os::unix::fs::symlink(source, here(to)).expect("a link");
        }
        for mount in list("tmpfs").iter().map(text) {
            let to = mount.split(':').next().expect("a target");
            std::fs::create_dir_all(here(to)).expect("a folder");
        }
        for (_, file) in moved.iter().filter(|(to, _)| to.ends_with(".yaml")) {
            let text = std::fs::read_to_string(file).expect("a file");
            std::fs::remove_file(file).expect("a link");
            std::fs::write(file, self.rewritten(&text, &moved)).expect("a file");
        }
        // A folder that has a mount, or is one.
        if let Some(dir) = service["working_dir"].as_str() {
            let here = format!("{}/{name}{dir}", self.place.display());
            if Path::new(&here).is_dir() && moved.iter().all(|(to, _)| to != dir) {
                moved.push((dir.to_owned(), here));
            }
        }
        moved
    }

    /// A link may be on the way: `..` is the folder that the name says.
    fn beside(&self, relative: &str) -> PathBuf {
        let (mut at, mut rest) = (self.at, relative.trim_start_matches("./"));
        while let Some(above) = rest.strip_prefix("../") {
            (at, rest) = (at.parent().expect("a folder above"), above);
        }
        at.join(rest)
    }

    fn rewritten(&self, text: &str, moved: &[(String, String)]) -> String {
        let mut text = text.to_owned();
        for (name, service) in self.compose["services"].as_object().expect("services") {
            if let Some(address) = service["networks"]["default"]["ipv4_address"].as_str() {
                text = text.replace(&format!("//{name}:"), &format!("//{address}:"));
            }
        }
        for (there, here) in moved {
            text = text.replace(there, here);
        }
        text.replace(SUBNET, "127.0.0.")
    }
}

fn yaml(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).expect("the file");
    let mut tree: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    tree.apply_merge().expect("merges");
    serde_json::to_value(tree).expect("JSON")
}

/// The commands of the compose file that `pintle init` writes, as an engine runs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_compose_file_runs_answers() {
    let place = TempDir::with_prefix("pintle-compose-").expect("a directory");
    let dir = place.path().display().to_string();
    let socket = format!("{dir}/run/agent.sock");
    let args = ["init", &dir, "--service", "orders", "--allow", "127.0.0.0/8"];
    let rest = ["--socket", &socket, "--module", PINTLE_PATH];
    let done = Agent::command(&[&args[..], &rest].concat()).await.expect("pintle");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let compose = yaml(&place.path().join("compose.yaml"));
    let containers = Containers { compose: &compose, at: place.path(), place: place.path() };
    let script = format!(
        "{PROGRAMS}{}\
         mkdir {dir}/web; echo hello > {dir}/web/index.html\n\
         python3 -m http.server 8001 --bind 127.0.0.1 --directory {dir}/web > {dir}/web.log 2>&1 &\n\
         pintle register --service orders --id orders-1 --address 127.0.0.1 --port 8001 \
         > {dir}/register.log 2>&1 &\n\
         {GET} http://127.0.0.1:10000/\n\
         kill $(jobs -p); wait\n",
        containers.script()
    );
    assert_eq!(typed(&script).await, "hello\n");
}

/// The same of the compose file that is shipped, with etcd, NATS and two services: who registers is
/// reached by name, and an order that comes by NATS is obeyed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_compose_file_brings_two_services_and_an_order_reaches_them() {
    let (place, dist) = (TempDir::with_prefix("pintle-compose-").expect("a directory"), dist());
    let at = dist.path().join("envoy/compose");
    let compose = yaml(&at.join("compose.yaml"));
    for (name, service) in compose["services"].as_object().expect("services") {
        let own = service["networks"]["default"]["ipv4_address"].as_str().expect("an address");
        assert!(own.starts_with(SUBNET), "{name}: {own}");
    }
    let containers = Containers { compose: &compose, at: &at, place: place.path() };
    let script = format!(
        "{PROGRAMS}{}\
         for service in orders billing; do {GET} -H \"Host: $service\" http://127.0.0.1:10000/; done\n\
         until [ \"$(pintle services | grep -c ' healthy')\" = 3 ]; do sleep 0.1; done\n\
         pintle drain orders/orders-1 --config {agent} > {dir}/drain.log 2>&1\n\
         for n in 1 2 3 4 5 6 7 8; do {GET} -H 'Host: orders' http://127.0.0.1:10000/; done\n\
         kill $(jobs -p); wait\n",
        containers.script(),
        agent = place.path().join("agent/etc/pintle/agent.yaml").display(),
        dir = place.path().display(),
    );
    let said = typed(&script).await;
    let answers: Vec<&str> = said.lines().collect();
    assert!(answers[0].starts_with("orders-"), "{said}");
    assert_eq!(answers[1], "billing");
    assert_eq!(answers[2..], ["orders-2"; 8], "{said}");
}
