//! The binary as a user meets it: exit codes, refusals, a whole life from start to SIGTERM.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the exemption for tests does not reach the helpers of an integration test"
)]

mod servers;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pintle_tests::Port;

fn pintle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pintle")).args(arguments).env_clear().output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn exit_codes_are_those_that_the_help_names() {
    let table: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, "Exit codes: 0 done; 1 the answer is no; 64"),
        (&["--version"], 0, "pintle 0.1.0"),
        (&["run", "--help"], 0, "[env: PINTLE_ETCD="),
        (&["completions", "bash"], 0, "_pintle"),
        (&[], 64, "Usage: pintle"),
        (&["fly"], 64, "unrecognized subcommand"),
        (&["run"], 64, "--etcd http://127.0.0.1:2379"),
        (&["run", "--config", "/nowhere.yaml"], 64, "/nowhere.yaml"),
        (
            &["run", "--file", "x", "--admin", "0.0.0.0:0", "--socket", "/tmp/never/s"],
            64,
            "admin.allow_remote",
        ),
        (&["run", "--file", "x", "--allow", "10.0.0.1/8"], 64, "state.allow"),
        (&["services", "--admin", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (&["breakers", "--admin", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (&["release", "a b"], 64, "no service's name"),
        (&["release"], 64, "SERVICE"),
        (&["release", "orders", "--all"], 64, "cannot be used with"),
        (&["proxies", "--admin", "127.0.0.1:1"], 69, "127.0.0.1:1"),
        (&["fleet", "--nats", "nats://127.0.0.1:1"], 69, "NATS"),
        (&["policy", "validate", "/nowhere.json"], 64, "/nowhere.json"),
        (&["version", "--admin", "127.0.0.1:1"], 0, "no agent answers"),
        (&["run", "--file", "x", "--log-level", "loud"], 64, "trace"),
        (&["drain", "orders"], 64, "is not SERVICE/ID"),
        (&["drain", "orders/1", "--ttl", "60d"], 64, "ttl"),
        (&["drain", "orders/1", "--nats", "nats://127.0.0.1:1"], 69, "NATS"),
        (&["publish", "endpoint", "orders/1", "{"], 64, "not JSON"),
        (&["publish", "endpoint", "orders/1", "{\"action\":\"fly\"}"], 64, "action"),
        (&["register"], 64, "register.instances"),
    ];
    for (arguments, code, text) in table {
        let output = pintle(arguments);
        let words = said(&output);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}\n{words}");
        assert!(words.contains(text), "{arguments:?}: {text:?}\n{words}");
    }
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_pintle"))
        .args(["run", "--file", "x"])
        .env_clear()
        .env("PINTLE_SOKET", "/tmp/x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("PINTLE_SOKET"), "{}", said(&output));
}

/// A running agent; killed on drop.
struct Agent {
    child: Child,
    admin: String,
    lines: Arc<Mutex<String>>,
    dir: tempfile::TempDir,
    _port: Port,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn instances(path: &Path, ports: &[u16]) {
    let endpoints: Vec<String> = (1..)
        .zip(ports)
        .map(|(id, port)| {
            format!(r#"{{"id": "orders-{id}", "address": "127.0.0.1", "port": {port}}}"#)
        })
        .collect();
    let endpoints = endpoints.join(", ");
    let text = format!(r#"{{"services": {{"orders": {{"endpoints": [{endpoints}]}}}}}}"#);
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

fn services(path: &Path, port: u16) {
    instances(path, &[port]);
}

impl Agent {
    fn start(format: &str) -> Self {
        let agent = Self::spawn(format, &[], None);
        agent.until("services", "orders-1");
        agent
    }

    fn ended(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let lines = self.lines.lock().unwrap().clone();
            assert!(start.elapsed() < Duration::from_secs(60), "{lines}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn spawn(format: &str, more: &[&str], fault: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = Port::take().unwrap();
        let admin = port.addr().to_string();
        let config = dir.path().join("agent.yaml");
        fs::write(&config, format!("agent: edge-1\nlog: {{format: {format}}}\n")).unwrap();
        let file = dir.path().join("services.json");
        services(&file, 8001);
        let mut child = Command::new(env!("CARGO_BIN_EXE_pintle"))
            .args(["run", "--config", config.to_str().unwrap()])
            .args(["--file", file.to_str().unwrap()])
            .args(["--socket", dir.path().join("run/agent.sock").to_str().unwrap()])
            .args(["--state-dir", dir.path().join("state").to_str().unwrap()])
            .args(["--admin", &admin, "--allow", "127.0.0.0/8"])
            .args(more)
            .env_clear()
            .envs(fault.map(|fault| ("TEST_PINTLE_FAULT", fault)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let all = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *all.lock().unwrap() += &(line + "\n");
            }
        });
        Self { child, admin, lines, dir, _port: port }
    }

    fn ask(&self, command: &str) -> Output {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.extend(["--admin", &self.admin]);
        pintle(&arguments)
    }

    fn until(&self, command: &str, text: &str) -> String {
        let start = Instant::now();
        loop {
            let words = said(&self.ask(command));
            if words.contains(text) {
                return words;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{command}: {words}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn until_logged(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let lines = self.lines.lock().unwrap().clone();
            if lines.contains(text) {
                return lines;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{text}: {lines}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

#[test]
fn an_agent_lives_answers_reloads_and_ends_in_order() {
    let mut agent = Agent::start("json");
    let table = agent.until("services", "orders-1");
    assert!(table.starts_with("SERVICE"), "{table}");
    assert!(table.contains("127.0.0.1:8001"), "{table}");
    let one = agent.ask("services orders --output json");
    assert!(said(&one).contains("\"address\": \"127.0.0.1:8001\""), "{}", said(&one));
    let none = agent.ask("services nobody");
    assert_eq!(none.status.code(), Some(1));
    assert!(said(&agent.ask("breakers")).contains("All breakers are closed."));
    let nothing = agent.ask("release orders");
    assert_eq!(nothing.status.code(), Some(1), "nothing was held");
    services(&agent.dir.path().join("services.json"), 8002);
    agent.until("services", "127.0.0.1:8002");

    let config = agent.dir.path().join("agent.yaml");
    fs::write(&config, "agent: edge-1\nlog: {format: json, level: verbose=x=y}\n").unwrap();
    agent.signal("-HUP");
    agent.until_logged("the old one stays");
    fs::write(&config, "agent: other\nlog: {format: json, level: debug}\n").unwrap();
    agent.signal("-HUP");
    agent.until_logged("were read again");
    agent.until("services", "orders-1");

    let start = Instant::now();
    agent.signal("-TERM");
    let status = agent.child.wait().unwrap();
    assert!(status.success(), "{status:?}");
    assert!(start.elapsed() < Duration::from_secs(12));
    assert!(!agent.dir.path().join("run/agent.sock").exists());
    let lines = agent.until_logged("the agent stops");
    for line in lines.lines() {
        assert!(line.starts_with("{\"timestamp\":"), "{line}");
    }
    for text in
        ["the agent serves", "the agent stops", "the old one stays", "\"section\":\"agent\""]
    {
        assert!(lines.contains(text), "{text}\n{lines}");
    }
}

#[test]
fn what_the_agent_knows_can_be_asked_for_as_a_table_and_as_json() {
    let agent = Agent::start("text");
    let file = agent.dir.path().join("services.json");
    let endpoint = r#"{"id": "orders-1", "address": "127.0.0.1", "port": 8001}"#;
    let policy = r#"{"select": {"strategy": "random"}}"#;
    let text = format!(
        r#"{{"services": {{"orders": {{"policy": {policy}, "endpoints": [{endpoint}]}}}}}}"#
    );
    fs::write(&file, text).unwrap();
    let table = agent.until("policy show orders", "select.strategy");
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, ["select.strategy", "\"random\"", "file"], "{table}");
    assert!(agent.until("sources", "file").contains("connected"));
    agent.until("proxies", "No Envoy has been connected.");
    agent.until("overlays", "No event is in force.");
    agent.until("services --sort trouble", "orders-1");
    assert!(said(&agent.ask("version")).contains("agent edge-1 at"));
    for command in ["policy show orders", "sources", "proxies", "overlays", "version", "services"] {
        let output = agent.ask(&format!("{command} -o json"));
        assert!(output.status.success(), "{command}: {}", said(&output));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(json.is_object(), "{command}: {json}");
    }

    let bad = agent.dir.path().join("policy.json");
    for (text, code, says) in [
        (policy, 0, "would be taken"),
        (r#"{"select": {"strategy": "fastest"}}"#, 1, "strategy"),
        ("{", 1, "not JSON"),
    ] {
        fs::write(&bad, text).unwrap();
        let output = pintle(&["policy", "validate", bad.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(code), "{text}: {}", said(&output));
        assert!(said(&output).contains(says), "{text}: {}", said(&output));
    }
}

#[test]
fn every_command_has_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let output = pintle(&["man", dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    for page in ["pintle", "pintle-run", "pintle-release", "pintle-policy-show", "pintle-fleet"] {
        let text = fs::read_to_string(dir.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains("DESCRIPTION"), "{page}");
    }
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let agent = Agent::start("text");
    let socket = agent.dir.path().join("run/agent.sock");
    let output = pintle(&[
        "run",
        "--file",
        agent.dir.path().join("services.json").to_str().unwrap(),
        "--socket",
        socket.to_str().unwrap(),
        "--admin",
        "127.0.0.1:0",
        "--allow",
        "127.0.0.0/8",
    ]);
    assert_eq!(output.status.code(), Some(69), "{}", said(&output));
    assert!(said(&output).contains("another agent serves"), "{}", said(&output));
    agent.until("services", "orders-1");
}

/// What is put into one task, and whether the agent ends by it.
const FAULTS: [(&str, bool); 14] = [
    ("publisher=panic", true),
    ("publisher=end", true),
    ("publisher=stall", true),
    ("prober=panic", true),
    ("relay=end", true),
    ("nats=panic", true),
    ("ledger=panic", true),
    ("ledger=stall", true),
    ("activities=end", true),
    ("proxies' server=panic", true),
    ("socket=panic", true),
    ("admin socket=panic", true),
    ("admin server=end", true),
    ("file=panic", false),
];

#[test]
fn a_task_that_ends_panics_or_stalls_is_started_again_or_ends_the_agent_with_a_reason() {
    let nats = ["--nats", "nats://127.0.0.1:1"];
    let agents: Vec<_> = FAULTS
        .iter()
        .map(|(fault, ends)| (fault, ends, Agent::spawn("text", &nats, Some(fault))))
        .collect();
    for (fault, ends, mut agent) in agents {
        let task = fault.split('=').next().unwrap();
        if *ends {
            let status = agent.ended();
            let lines = agent.until_logged("pintle: the task");
            assert_eq!(status.code(), Some(70), "{fault}: {lines}");
            let last = lines.lines().rfind(|line| line.starts_with("pintle: ")).unwrap_or("");
            assert!(last.contains(task), "{fault}: {lines}");
        } else {
            agent.until_logged("it is started again");
            services(&agent.dir.path().join("services.json"), 8009);
            agent.until("services", "127.0.0.1:8009");
            assert!(agent.child.try_wait().unwrap().is_none(), "{fault}");
        }
    }
}

#[test]
fn events_can_be_followed() {
    let agent = Agent::start("text");
    let mut follow = Command::new(env!("CARGO_BIN_EXE_pintle"))
        .args(["events", "--follow", "--output", "json", "--admin", &agent.admin])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = tx.send(line);
        }
    });
    instances(&agent.dir.path().join("services.json"), &[8001, 8003]);
    let found = loop {
        match rx.recv_timeout(Duration::from_secs(30)) {
            Ok(line) if line.contains("orders-2") => break line,
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let _ = follow.kill();
    let _ = follow.wait();
    assert!(found.starts_with("{\"at\":"), "{found}");
}
