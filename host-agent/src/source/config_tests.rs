use super::*;

fn read(yaml: &str) -> Result<SourcesConfig, String> {
    let tree = serde_yaml_ng::from_str(yaml).expect("YAML");
    pintle_settings::read("", tree).map_err(|error| error.to_string())
}

#[test]
fn a_whole_configuration_is_read_and_defaults_are_good() {
    let minimal = read("agent: a\netcd: {}\nnats: {}\n").unwrap();
    assert_eq!(minimal.etcd, Some(EtcdConfig::default()));
    assert_eq!(minimal.nats, Some(NatsConfig::default()));
    let whole = read(
        "agent: a-1
state: {dir: /var/lib/pintle, allow: [10.0.0.0/8, 127.0.0.0/8], protect_window: 30s}
etcd:
  endpoints: [https://e1:2379, https://e2:2379]
  user: agent
  password: {file: /run/secrets/etcd}
  tls: {ca: ca.pem, cert: c.pem, key: k.pem}
  reconcile: 2m
nats:
  servers: [tls://n1:4222]
  token: {env: NATS_TOKEN}
  backoff: [1s, 5s]
  max_deliver: 3
file: {path: services.yaml, poll: 1s}
",
    )
    .unwrap();
    let etcd = whole.etcd.unwrap();
    assert_eq!(etcd.reconcile, Duration::from_secs(120));
    assert_eq!(whole.nats.unwrap().backoff.len(), 2);
}

#[test]
fn what_is_out_of_range_or_unknown_is_refused_by_name() {
    let table = [
        ("agent: ''", "agent must be 1 to 100"),
        ("agent: a=b", "agent must be 1 to 100"),
        ("agent: a\nwhatever: 1", "whatever"),
        ("agent: a\netcd: {endpoint: x}", "endpoint"),
        ("agent: a\netcd: {endpoints: []}", "etcd.endpoints"),
        ("agent: a\netcd: {endpoints: ['127.0.0.1:2379']}", "etcd.endpoints"),
        ("agent: a\netcd: {endpoints: ['http://127.0.0.1']}", "etcd.endpoints"),
        ("agent: a\netcd: {endpoints: ['ftp://127.0.0.1:1']}", "etcd.endpoints"),
        ("agent: a\netcd: {endpoints: ['http://u:p@127.0.0.1:1']}", "no secrets"),
        ("agent: a\netcd: {endpoints: ['http://10.0.0.1:2379']}", "etcd.plaintext"),
        (
            "agent: a\netcd: {endpoints: ['http://127.0.0.1:1', 'https://127.0.0.1:1']}",
            "all http or all https",
        ),
        ("agent: a\netcd: {tls: {ca: x}}", "etcd.endpoints"),
        ("agent: a\netcd: {endpoints: ['https://e:1'], tls: {cert: x}}", "etcd.tls.key"),
        ("agent: a\netcd: {user: u}", "etcd.password"),
        ("agent: a\netcd: {password: hunter2}", "password"),
        ("agent: a\netcd: {services: services}", "etcd.services"),
        ("agent: a\netcd: {services: /pintle/policies/}", "etcd.policies"),
        ("agent: a\netcd: {page: 0}", "etcd.page"),
        (
            "agent: a\netcd: {silence: 1s}",
            "etcd.silence must be a duration from 2s to 1m, found \"1s\"",
        ),
        (
            "agent: a\netcd: {reconcile: 60}",
            "etcd.reconcile must be a duration from 1s to 1d, found 60",
        ),
        (
            "agent: a\netcd: {page: '5'}",
            "etcd.page must be a whole number from 1 to 10000, found \"5\"",
        ),
        ("agent: a\nnats: {backoff: [1s, 5]}", "nats.backoff[1] must be a duration"),
        ("agent: a\nnats: {servers: 'nats://u:hunter2@n:1'}", "nats.servers must be a list"),
        (
            "agent: a\netcd: {reconcile: soon}",
            "etcd.reconcile must be a duration from 1s to 1d, found \"soon\"",
        ),
        ("agent: a\nnats: {servers: ['nats://n1:4222']}", "nats.plaintext"),
        ("agent: a\nnats: {backoff: [1s, 2s], max_deliver: 2}", "nats.max_deliver"),
        ("agent: a\nnats: {backoff: []}", "nats.backoff"),
        ("agent: a\nnats: {max_age: 1h}", "nats.max_age"),
        ("agent: a\nnats: {prefix: 'events.>'}", "nats.prefix"),
        ("agent: a\nnats: {dlq_prefix: events.dlq}", "nats.dlq_prefix"),
        ("agent: a\nnats: {token: {env: A}, nkey: {env: B}}", "one of user, token, nkey"),
        ("agent: a\nnats: {buffer: 0}", "nats.buffer"),
        ("agent: a\nfile: {}", "file.path"),
        ("agent: a\nfile: {path: x, poll: 1ms}", "file.poll"),
        ("agent: a\nstate: {allow: [10.0.0.1/8]}", "state.allow"),
        ("agent: a\nstate: {protect_window: 0s}", "state.protect_window"),
    ];
    for (yaml, expect) in table {
        let error = read(yaml).unwrap_err();
        assert!(error.contains(expect), "{yaml}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(read("agent: a\netcd: {endpoints: ['http://10.0.0.1:2379'], plaintext: true}").is_ok());
}

#[test]
fn what_the_state_was_built_with_is_kept_and_named_and_the_rest_is_taken_over() {
    let read = |text| read(text).unwrap();
    let is = read("agent: a\netcd: {}\nnats: {}\nfile: {path: x}");
    for (fresh, names, expect) in [
        (
            "agent: b\netcd: {}\nnats: {}\nfile: {path: y}\nstate: {protect: false}",
            vec!["agent", "state"],
            "agent: a\netcd: {}\nnats: {}\nfile: {path: y}",
        ),
        (
            "agent: a\netcd: {services: /s/, policies: /p/, page: 7}\nnats: {}\nfile: {path: x}",
            vec!["etcd.services", "etcd.policies"],
            "agent: a\netcd: {page: 7}\nnats: {}\nfile: {path: x}",
        ),
        (
            "agent: a\netcd: {}\nnats: {prefix: p, buffer: 7, replicas: 3}\nfile: {path: x}",
            vec!["nats.prefix", "nats.buffer"],
            "agent: a\netcd: {}\nnats: {replicas: 3}\nfile: {path: x}",
        ),
        ("agent: a", vec!["etcd", "nats", "file"], "agent: a\netcd: {}\nnats: {}\nfile: {path: x}"),
    ] {
        assert_eq!(is.take_over(read(fresh)), Ok((read(expect), names)), "{fresh}");
    }
    let none = read("agent: a");
    assert_eq!(none.take_over(is.clone()), Ok((none.clone(), vec!["etcd", "nats", "file"])));
    assert_eq!(is.take_over(is.clone()), Ok((is.clone(), Vec::new())));
}
