//! Which layer wins, and what is refused by what name.

use serde_json::json;

use super::*;
use crate::source::StateConfig;

fn load(
    file: Value,
    env: &[(&str, &str)],
    flags: &[(&'static str, &[&str])],
) -> Result<Config, Invalid> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let flags =
        flags.iter().map(|(k, v)| (*k, v.iter().map(|v| (*v).to_owned()).collect())).collect();
    Config::merge(file, env, &flags)
}

/// What the key has come to, as text.
fn shown(config: &Config, flag: &str) -> String {
    let etcd = config.sources.etcd.clone().unwrap_or_default();
    match flag {
        "agent-id" => config.sources.agent.clone(),
        "etcd" => etcd.endpoints.join(","),
        "prefix" => etcd.services,
        "nats" => config.sources.nats.clone().unwrap().servers.join(","),
        "file" => config.sources.file.clone().unwrap().path.display().to_string(),
        "state-dir" => config.sources.state.dir.clone().unwrap().display().to_string(),
        "allow" => {
            let allow = config.sources.state.allow.clone().unwrap();
            allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        "socket" => config.socket.path.display().to_string(),
        "admin" => config.admin.listen.to_string(),
        "log-format" => format!("{:?}", config.log.format).to_lowercase(),
        "log-level" => config.log.level.clone(),
        other => panic!("{other} is not in the table"),
    }
}

#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    // Key, then its value in the file, the environment and as a flag.
    let table: &[(&str, [&str; 3])] = &[
        ("agent-id", ["one", "two", "three"]),
        ("etcd", ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"]),
        ("prefix", ["/a/", "/b/", "/c/"]),
        ("nats", ["nats://127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"]),
        ("file", ["a.yaml", "b.yaml", "c.yaml"]),
        ("state-dir", ["/a", "/b", "/c"]),
        ("allow", ["10.0.0.0/8", "127.0.0.0/8", "192.168.0.0/16"]),
        ("socket", ["/a/s", "/b/s", "/c/s"]),
        ("admin", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
        ("log-format", ["json", "text", "json"]),
        ("log-level", ["warn", "debug", "error"]),
    ];
    assert_eq!(table.len(), KEYS.len(), "every key has its row");
    for (flag, [in_file, in_env, in_flag]) in table {
        let key = KEYS.iter().find(|key| key.flag == *flag).unwrap();
        let value = if key.list { json!([in_file]) } else { json!(in_file) };
        let file = match key.path {
            [name] => json!({"etcd": {}, *name: value}),
            [section, name] => {
                let mut file = json!({"etcd": {}});
                file[section] = json!({*name: value});
                file
            }
            _ => unreachable!(),
        };
        let env = [(key.env, *in_env)];
        let flags: [(&'static str, &[&str]); 1] = [(key.flag, &[in_flag])];
        let alone = load(file.clone(), &[], &[]).unwrap();
        assert_eq!(shown(&alone, flag), *in_file, "{flag} in the file");
        let with_env = load(file.clone(), &env, &[]).unwrap();
        assert_eq!(shown(&with_env, flag), *in_env, "{flag} in the environment");
        let with_both = load(file.clone(), &env, &flags).unwrap();
        assert_eq!(shown(&with_both, flag), *in_flag, "{flag} as a flag");
        let with_flag = load(file, &[], &flags).unwrap();
        assert_eq!(shown(&with_flag, flag), *in_flag, "{flag} as a flag alone");
    }
}

#[test]
fn lists_are_comma_separated_in_the_environment_and_repeatable_as_flags() {
    let env = [("PINTLE_ALLOW", "10.0.0.0/8, 127.0.0.0/8")];
    let config = load(json!({"file": {"path": "x"}}), &env, &[]).unwrap();
    assert_eq!(shown(&config, "allow"), "10.0.0.0/8,127.0.0.0/8");
    let flags: [(&'static str, &[&str]); 1] = [("allow", &["::1/128", "10.0.0.0/8"])];
    let config = load(json!({"file": {"path": "x"}}), &env, &flags).unwrap();
    assert_eq!(shown(&config, "allow"), "::1/128,10.0.0.0/8");
}

#[test]
fn what_is_not_known_or_out_of_range_is_refused_by_name_with_what_is_accepted() {
    for (file, field, says) in [
        (json!({"etcd": {}, "etdc": {}}), "etdc", "agent, state, etcd"),
        (json!({"etcd": {"endpoint": []}}), "etcd.endpoint", "endpoints"),
        (json!({"etcd": {}, "admin": {"port": 1}}), "admin.port", "listen"),
        (json!({"etcd": {}, "socket": {"mode": "0644"}}), "socket.mode", "\"0600\""),
        (json!({"etcd": {}, "socket": {"mode": "rw"}}), "socket.mode", "octal"),
        (json!({"etcd": {}, "socket": {"mode": "0606"}}), "socket.mode", "\"0666\""),
        (
            json!({"etcd": {}, "socket": {"allow_uids": ["9/0"]}}),
            "socket.allow_uids[0]",
            "1000660000/",
        ),
        (
            json!({"etcd": {}, "socket": {"allow_uids": ["4294967295/2"]}}),
            "socket.allow_uids[0]",
            "/",
        ),
        (json!({"etcd": {}, "socket": {"allow_uids": [-1]}}), "socket.allow_uids[0]", "a user"),
        (json!({"etcd": {}, "socket": {"path": "relative"}}), "socket.path", "absolute"),
        (json!({"etcd": {}, "socket": {"group": "no-such-group"}}), "socket.group", "group"),
        (
            json!({"etcd": {}, "shutdown": {"deadline": "1h"}}),
            "shutdown.deadline",
            "from 1s to 10m, found \"1h\"",
        ),
        (json!({"etcd": {}, "shutdown": {"deadline": "soon"}}), "shutdown.deadline", "duration"),
        (
            json!({"etcd": {}, "metrics": {"max_endpoints": 1_000_000}}),
            "metrics.max_endpoints",
            "100000",
        ),
        (json!({"etcd": {}, "log": {"level": "info=loud=x"}}), "log.level", "debug"),
        (json!({"etcd": {}, "log": {"format": "xml"}}), "log.format", "text or json"),
        (json!({"etcd": {}, "state": {"protect_window": "0s"}}), "state.protect_window", "1s"),
        (json!({"etcd": {}, "state": {"allow": ["10.0.0.1/8"]}}), "state.allow[0]", "10.0.0.1/8"),
        (json!({"etcd": {}, "agent": ""}), "agent", "1 to 100 characters"),
        (json!({"etcd": {}, "agent": "a b"}), "agent", "[A-Za-z0-9._-]"),
        (json!({"etcd": {}, "agent": "a=b"}), "agent", "[A-Za-z0-9._-]"),
        (json!({"etcd": {}, "agent": 7}), "agent", "found 7"),
        (json!({}), "etcd", "--file"),
        (json!([1]), "the file", "sections"),
        (json!({"file": {"path": "x"}, "register": {"instances": []}}), "register", "etcd"),
    ] {
        let error = load(file.clone(), &[], &[]).unwrap_err();
        assert_eq!(error.field, field, "{file}: {error}");
        assert!(error.to_string().contains(says), "{file}: {error}");
    }
}

#[test]
fn a_variable_that_means_nothing_is_refused_unless_it_is_somebody_elses() {
    let file = || json!({"etcd": {"user": "u", "password": {"env": "PINTLE_ETCD_PASSWORD"}}});
    let error = load(file(), &[("PINTLE_ETDC", "x")], &[]).unwrap_err();
    assert_eq!(error.field, "PINTLE_ETDC");
    assert!(error.accepts.contains("PINTLE_ETCD,"));
    for fine in [
        "PINTLE_ETCD_PASSWORD",
        "PINTLE_SERVICE_HOST",
        "PINTLE_SERVICE_PORT_ADMIN",
        "PINTLE_PORT_19100_TCP_ADDR",
        "PINTLE_CONFIG",
        "OTHER",
    ] {
        load(file(), &[(fine, "x")], &[]).unwrap_or_else(|e| panic!("{fine}: {e}"));
    }
}

#[test]
fn the_defaults_are_those_of_the_papers() {
    let config = load(json!({"etcd": null}), &[], &[]).unwrap();
    assert_eq!(config.socket.mode, 0o600);
    assert_eq!(config.socket.path, Path::new(SOCKET));
    assert_eq!(config.admin.listen.to_string(), ADMIN);
    assert!(!config.admin.allow_remote);
    assert_eq!(config.deadline, Duration::from_secs(10));
    assert!(config.tcp.is_none() && config.register.is_none());
    assert_eq!(shown(&config, "prefix"), "/services/");
}

#[test]
fn a_file_is_yaml_or_json_and_an_error_names_it() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("agent.yaml");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        Config::load(Some(&path), [], &Flags::new())
    };
    let yaml = "agent: edge-1.eu.internal\netcd:\n  endpoints: [\"http://127.0.0.1:2379\"]\nsocket:\n  mode: \"0660\"\n";
    assert_eq!(load(yaml).unwrap().socket.mode, 0o660);
    let openshift = "etcd: {}\nsocket: {mode: \"0666\", allow_uids: [1337, 1000660000/10000]}\n";
    let socket = load(openshift).unwrap().socket;
    assert_eq!(socket.mode, 0o666);
    assert_eq!(socket.allow_uids, [1337..=1337, 1_000_660_000..=1_000_669_999]);
    assert!(load(r#"{"file": {"path": "services.json"}}"#).is_ok());
    let error = load("etcd: [").unwrap_err().to_string();
    assert!(error.contains("agent.yaml"), "{error}");
    let missing = Config::load(Some(Path::new("/nowhere.yaml")), [], &Flags::new());
    assert!(missing.unwrap_err().to_string().contains("/nowhere.yaml"));
}

/// `envoy/agent.yaml` has every key at its default: as it stands it is what an empty file with
/// these sections is.
#[test]
fn the_shipped_file_is_accepted_and_its_values_are_the_defaults() {
    let text = include_str!("../../../envoy/agent.yaml");
    let shipped: Value = serde_yaml_ng::from_str(text).unwrap();
    let mut empty = shipped.clone();
    for (_, section) in empty.as_object_mut().unwrap() {
        *section = json!({});
    }
    let mut shipped = load(shipped, &[], &[]).unwrap();
    let empty = load(empty, &[], &[]).unwrap();
    // Named there, because it can be replaced, and not by default.
    let private = shipped.sources.state.allow.take().unwrap();
    assert_eq!(shipped, empty);
    let named = StateConfig { allow: Some(private), ..empty.sources.state.clone() };
    let [named, default] = [&named, &empty.sources.state].map(|state| state.addresses());
    for address in
        ["10.1.1.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "127.0.0.1", "8.8.8.8"]
    {
        let address = address.parse().unwrap();
        assert_eq!(named.check(address).is_ok(), default.check(address).is_ok(), "{address}");
    }
}

/// With what is commented out put back, one way to prove who it is at a time, it is accepted as
/// well.
#[test]
fn every_key_of_the_shipped_file_exists() {
    let text = include_str!("../../../envoy/agent.yaml");
    let key = |line: &str| {
        let rest = line.trim_start().strip_prefix("# ")?;
        let word = rest.trim_start().trim_start_matches("- ").split(':').next()?;
        let is_key = !word.is_empty()
            && rest.contains(':')
            && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        is_key.then(|| line.replacen("# ", "", 1))
    };
    let mut restored = 0;
    let lines: Vec<String> = text
        .lines()
        .map(|line| match key(line) {
            Some(line) => {
                restored += 1;
                line
            }
            None => line.to_owned(),
        })
        .collect();
    assert!(restored >= 20, "{restored}");
    let all: Value = serde_yaml_ng::from_str(&lines.join("\n")).unwrap();
    for only in ["user", "token", "nkey", "credentials"] {
        let mut one = all.clone();
        let nats = one["nats"].as_object_mut().unwrap();
        for other in ["user", "token", "nkey", "credentials"] {
            if other != only {
                nats.remove(other);
            }
        }
        if only != "user" {
            nats.remove("password");
        }
        nats.remove(if only == "user" { "domain" } else { "api_prefix" });
        // What is for TLS alone wants addresses with TLS.
        one["etcd"]["endpoints"] = json!(["https://127.0.0.1:2379"]);
        one["nats"]["servers"] = json!(["tls://127.0.0.1:4222"]);
        one["socket"]["group"] = json!("root");
        load(one, &[], &[]).unwrap_or_else(|error| panic!("{only}: {error}"));
    }
}
