//! Every format's bytes, as its framework writes them, and what becomes of them.

use pintle_contract::AddressPolicy;
use pintle_state::{Change, Item};
use serde_json::Value;

use super::translate::Translator;
use super::{Guess, groups, recognise};
use crate::source::EtcdConfig;

fn config(yaml: &str) -> Result<EtcdConfig, pintle_settings::Invalid> {
    let sources: Value = serde_yaml_ng::from_str(yaml).unwrap();
    pintle_settings::read("etcd", serde_json::json!({ "sources": sources }))
}

fn translator(yaml: &str) -> Translator {
    let groups = groups(&config(yaml).unwrap());
    Translator::new(groups, "/services/", b"/pintle/policies/", AddressPolicy::default())
}

fn item(key: &str, value: &str) -> Item {
    Item { key: key.into(), value: value.into(), revision: 1, ..Item::default() }
}

/// `name/id address weight health key=value...`, and what was refused: `reason`.
fn read(yaml: &str, pairs: &[(&str, &str)]) -> (Vec<String>, Vec<&'static str>, usize) {
    let mut translator = translator(yaml);
    let items = pairs.iter().map(|(key, value)| item(key, value)).collect();
    let translated = translator.listing(translator.read_all(items), &[]);
    let lines = translated.told.iter().map(line).collect();
    let refused = translated.unread.refused.iter().map(|it| it.reason).collect();
    (lines, refused, translator.beside())
}

fn line(item: &Item) -> String {
    let key = String::from_utf8(item.key.clone()).unwrap();
    let value: Value = serde_json::from_slice(&item.value).unwrap();
    let text = |name: &str| value[name].as_str().unwrap().to_owned();
    let mut line = format!(
        "{} {}:{} {} {}",
        key.strip_prefix("/services/").unwrap(),
        text("address"),
        value["port"],
        value["metadata"]["weight"].as_str().unwrap(),
        text("health")
    );
    for (key, value) in value["metadata"].as_object().unwrap() {
        if key != "weight" {
            line += &format!(" {key}={}", value.as_str().unwrap());
        }
    }
    line
}

/// One format: its source, a pair as its framework writes it, and the line that it becomes.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// What `docs` show, byte for byte.
const EXACT: &[Row] = &[
    (
        "grpc, prefix: naming/",
        "naming/shop/10.0.0.5:8080",
        r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":null}"#,
        "shop/10.0.0.5:8080 10.0.0.5:8080 1 healthy",
    ),
    (
        "grpc, prefix: naming/",
        "naming/team/shop/a",
        r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":{"weight":3,"zone":"a","nested":{"x":1}}}"#,
        r#"team%2Fshop/a 10.0.0.5:8080 3 healthy nested={"x":1} zone=a"#,
    ),
    (
        "grpc, prefix: shop",
        "shop/10.0.0.5:8080",
        r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":"v1"}"#,
        "shop/10.0.0.5:8080 10.0.0.5:8080 1 healthy metadata=v1",
    ),
    (
        "jupiter",
        "grpc:main:v1:dev/10.0.0.5:9091",
        r#"{"Op":0,"Addr":"10.0.0.5:9091","Metadata":{"weight":100,"enable":true,"healthy":false,"region":"r","zone":"z"}}"#,
        "main:v1:dev/10.0.0.5:9091 10.0.0.5:9091 100 unhealthy enable=true healthy=false region=r zone=z",
    ),
    (
        "go-zero, prefix: user.rpc",
        "user.rpc/7587862094212345678",
        "10.0.0.5:8080",
        "user.rpc/10.0.0.5:8080 10.0.0.5:8080 1 healthy",
    ),
    (
        "kratos",
        "/microservices/helloworld/u-1",
        r#"{"id":"u-1","name":"helloworld","version":"v1","metadata":{"weight":"10"},"endpoints":["http://10.0.0.5:8000?isSecure=false","grpc://10.0.0.5:9000"]}"#,
        "helloworld/u-1 10.0.0.5:8000 10 healthy version=v1",
    ),
    (
        "kratos, scheme: grpc, name: \"{name}-grpc\"",
        "/microservices/helloworld/u-1",
        r#"{"id":"u-1","name":"helloworld","version":"","metadata":null,"endpoints":["http://10.0.0.5:8000","grpc://[2001:db8::1]:9000"]}"#,
        "helloworld-grpc/u-1 2001:db8::1:9000 100 healthy",
    ),
    (
        "kitex",
        "kitex/registry-etcd/team/echo/2001:db8::1:8888",
        r#"{"network":"tcp","address":"[2001:db8::1]:8888","weight":0,"tags":{"k":"v"}}"#,
        "team%2Fecho/2001:db8::1:8888 2001:db8::1:8888 10 healthy k=v",
    ),
    (
        "hertz",
        "hertz/registry-etcd/hello/10.0.0.5:8888",
        r#"{"network":"tcp","address":"10.0.0.5:8888","weight":7,"tags":null}"#,
        "hello/10.0.0.5:8888 10.0.0.5:8888 7 healthy",
    ),
    (
        "dubbo",
        "/services/shop/10.0.0.5:20000",
        r#"{"ID":"10.0.0.5:20000","ServiceName":"shop","Host":"10.0.0.5","Port":20000,"Weight":0,"Enable":true,"Healthy":true,"Metadata":{"dubbo.metadata.revision":"1"},"Tag":""}"#,
        "shop/10.0.0.5:20000 10.0.0.5:20000 100 healthy dubbo.metadata.revision=1",
    ),
    (
        "dubbo",
        "/services/shop/10.0.0.6:20000",
        r#"{"id":"10.0.0.6:20000","serviceName":"shop","host":"10.0.0.6","port":"20000","enabled":true,"healthy":false,"metadata":{}}"#,
        "shop/10.0.0.6:20000 10.0.0.6:20000 100 unhealthy",
    ),
    (
        "goframe, zone: az",
        "/service/default/default/hello.svc/v1/10.0.0.5:8000",
        r#"{"insecure":true,"protocol":"http","weight":5,"az":"z1"}"#,
        "hello.svc/10.0.0.5:8000 10.0.0.5:8000 5 healthy az=z1 deployment=default insecure=true namespace=default protocol=http version=v1 zone=z1",
    ),
    (
        "go-micro",
        "/micro/registry/greeter/greeter-u",
        r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[{"name":"Say.Hello","request":{"name":"Request","type":"Request","values":null}}],"nodes":[{"id":"greeter-u","address":"10.0.0.5:8080","metadata":{"protocol":"grpc"}}]}"#,
        "greeter/greeter-u 10.0.0.5:8080 1 healthy protocol=grpc",
    ),
    (
        "rpcx, prefix: /rpcx_test",
        "/rpcx_test/Arith/tcp@10.0.0.5:8972",
        "weight=5&group=test&state=inactive",
        "Arith/10.0.0.5:8972 10.0.0.5:8972 5 unhealthy group=test network=tcp state=inactive",
    ),
    (
        "rpcx, prefix: /rpcx_test",
        "/rpcx_test/Arith/tcp@10.0.0.6:8972",
        "",
        "Arith/10.0.0.6:8972 10.0.0.6:8972 1 healthy network=tcp",
    ),
    (
        "trpc",
        "trpc/registry/services/greeter/10.0.0.5-8000-17",
        r#"{"name":"greeter","id":"10.0.0.5-8000-17","address":"10.0.0.5:8000","weight":1}"#,
        "greeter/10.0.0.5-8000-17 10.0.0.5:8000 1 healthy",
    ),
    (
        "shenyu",
        "/shenyu/register/instance/orders/10.0.0.5:8080",
        r#"{"appName":"orders","host":"10.0.0.5","port":8080,"weight":50,"status":1}"#,
        "orders/10.0.0.5:8080 10.0.0.5:8080 50 unhealthy",
    ),
    (
        "skydns",
        "/skydns/local/skydns/east/web/1",
        r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":0,"ttl":60}"#,
        "web.east.skydns.local/1 10.0.0.5:8080 100 healthy",
    ),
    (
        "custom, prefix: \"acme:\", key: \"{env}/{name}/{id}\", fields: {urls: /u, weight: /w, tags: /t, unhealthy: {/s: [down]}}",
        "acme:prod/shop/a b",
        r#"{"u":["http://10.0.0.5:80/x","http://10.0.0.6:80"],"w":"2","s":"up"}"#,
        "shop/a%20b-10.0.0.5:80 10.0.0.5:80 2 healthy env=prod|shop/a%20b-10.0.0.6:80 10.0.0.6:80 2 healthy env=prod",
    ),
];

#[test]
fn each_framework_is_read_as_it_writes() {
    for (source, key, value, expect) in EXACT {
        let yaml = format!("[{{format: {source}}}]");
        let expect: Vec<String> = expect.split('|').map(str::to_owned).collect();
        assert_eq!(read(&yaml, &[(key, value)]), (expect, Vec::new(), 0), "{source}: {key}");
    }
}

#[test]
fn what_each_framework_writes_is_recognised_as_its_own() {
    for (source, key, value, _) in EXACT.iter().filter(|row| !row.0.starts_with("custom")) {
        let name = source.split(',').next().unwrap().replace("hertz", "kitex");
        let guess = recognise(key.as_bytes(), value.as_bytes()).map(|guess| guess.to_string());
        assert_eq!(guess.as_deref(), Some(name.as_str()), "{key}");
    }
    let own = r#"{"id":"a","name":"o","address":"10.0.0.1","port":1,"health":"healthy"}"#;
    assert_eq!(recognise(b"o/a", own.as_bytes()), Some(Guess::Own));
    for value in ["", "{", "{}", "hello", r#"{"a":1}"#] {
        assert_eq!(recognise(b"o/a", value.as_bytes()), None, "{value}");
    }
}

#[test]
fn what_is_no_instance_stands_beside_and_what_should_have_been_one_is_refused() {
    let beside = |source: &str, key: &str, value: &str| {
        let (lines, refused, beside) = read(&format!("[{{format: {source}}}]"), &[(key, value)]);
        assert_eq!((lines.len(), refused.len(), beside), (0, 0, 1), "{key} {value}");
    };
    beside("rpcx, prefix: /rpcx_test", "/rpcx_test/Arith", "");
    beside("go-zero, prefix: user.rpc", "user.rpc/config", "{}");
    beside("goframe", "/service/default/readme", "hello");
    beside("kratos", "/microservices/foo", "");
    beside(
        "kratos",
        "/microservices/foo/u",
        r#"{"name":"foo","endpoints":["grpc://10.0.0.5:9000"]}"#,
    );
    let refused = |source: &str, key: &str, value: &str, reason: &str| {
        let (lines, refused, _) = read(&format!("[{{format: {source}}}]"), &[(key, value)]);
        assert_eq!((lines.len(), refused), (0, vec![reason]), "{key} {value}");
    };
    let naming = "grpc, prefix: n/";
    refused(naming, "n/a/b", r#"{"Op":0,"Addr":"shop.svc:80","Metadata":null}"#, "host_name");
    refused(naming, "n/a/b", r#"{"Op":0,"Addr":"127.0.0.1:80"}"#, "address_not_allowed");
    refused(naming, "n/a/b", r#"{"Op":0,"Addr":"10.0.0.1"}"#, "address_form");
    refused(naming, "n/a/b", r#"{"Op":0,"Addr":""}"#, "missing_field");
    refused(naming, "n/a/b", "{", "json");
    refused(naming, "n/a/b", "10.0.0.1:80", "json");
    refused(naming, "n/a/b", "[]", "not_an_object");
    let heavy = r#"{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"weight":"heavy"}}"#;
    refused(naming, "n/a/b", heavy, "weight");
    refused("dubbo", "/services/a/b", EXACT[5].2, "format");
    refused("go-zero, prefix: k", "k/1", "shop:80", "host_name");
    // Our own prefix, with no other format configured.
    let (lines, reasons, _) = read("[]", &[("/services/hello/u", EXACT[5].2)]);
    assert_eq!((lines.len(), reasons), (0, vec!["format"]));
}

#[test]
fn sources_share_a_prefix_and_keep_their_neighbours_out() {
    let naming = r#"{"Op":0,"Addr":"10.0.0.5:80","Metadata":null}"#;
    let own = r#"{"id":"a","name":"o","address":"10.0.0.1","port":1,"health":"healthy","metadata":{"weight":"1"}}"#;
    let pairs = [
        ("/services/o/a", own),
        ("/services/shop/10.0.0.5:20000", EXACT[9].2),
        ("/microservices/hello/u", EXACT[6].2),
        ("foo/a/1", naming),
    ];
    let (lines, refused, _) = read(
        "[{format: dubbo}, {format: kratos}, {format: grpc, prefix: foo},
          {format: kratos, scheme: grpc, name: '{name}-grpc'}]",
        &pairs,
    );
    assert!(refused.is_empty(), "{refused:?}");
    let names: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["a/1", "hello-grpc/u", "hello/u", "o/a", "shop/10.0.0.5:20000"]);
    let prefix = |yaml: &str| config(yaml).unwrap().sources[0].prefix();
    assert_eq!(prefix("[{format: grpc, prefix: foo}]"), b"foo/");
    assert_eq!(prefix("[{format: grpc, prefix: [255, 1]}]"), [255, 1]);
    assert_eq!(prefix("[{format: go-kratos}]"), b"/microservices/");
    for (yaml, field) in [
        ("[{format: grpc}]", "etcd.sources[0].prefix"),
        ("[{format: grpc, prefix: ''}]", "etcd.sources[0].prefix"),
        ("[{format: grpc, prefix: a}, {format: grpc, prefix: a/b}]", "etcd.sources[1].prefix"),
        ("[{format: grpc, prefix: /services/x/}]", "etcd.sources[0].prefix"),
        ("[{format: grpc, prefix: /}]", "etcd.sources[0].prefix"),
        ("[{format: grpc, prefix: a, key: '{id}'}]", "etcd.sources[0].key"),
        ("[{format: custom, prefix: a}]", "etcd.sources[0].key"),
        ("[{format: custom, prefix: a, key: '{name}/{id}'}]", "etcd.sources[0].fields"),
        (
            "[{format: custom, prefix: a, key: '{name}/{id}', fields: {address: a}}]",
            "etcd.sources[0].fields.address",
        ),
        ("[{format: zookeeper, prefix: a}]", "etcd.sources[0].format"),
        ("[{prefix: a}]", "etcd.sources[0].format"),
        ("[{format: grpc, prefix: a, nam: x}]", "etcd.sources[0].nam"),
    ] {
        assert_eq!(config(yaml).unwrap_err().field, field, "{yaml}");
    }
}

#[test]
fn one_id_of_two_instances_costs_neither() {
    let (lines, refused, _) = read(
        "[{format: kratos}, {format: kratos, scheme: grpc}, {format: grpc, prefix: n/, name: hello}]",
        &[
            ("/microservices/hello/u", EXACT[5].2),
            ("n/a/u", r#"{"Op":0,"Addr":"10.0.0.7:80"}"#),
            ("n/b/u", r#"{"Op":0,"Addr":"10.0.0.8:80"}"#),
        ],
    );
    let ids: Vec<_> = lines.iter().map(|line| line.split(' ').take(2).collect()).collect();
    let ids: Vec<String> = ids.iter().map(|pair: &Vec<&str>| pair.join(" ")).collect();
    assert!(refused.is_empty());
    assert_eq!(
        ids,
        [
            "hello/a%2Fu 10.0.0.7:80",
            "hello/b%2Fu 10.0.0.8:80",
            "hello/u 10.0.0.5:8000",
            "hello/u-10.0.0.5:9000 10.0.0.5:9000",
        ]
    );
}

fn change(key: &str, value: Option<&str>, revision: u64) -> Change {
    Change { key: key.into(), value: value.map(Into::into), revision, ..Change::default() }
}

fn told(translator: &mut Translator, changes: Vec<Change>) -> Vec<(String, bool)> {
    let told = translator.changes(changes).told.into_iter();
    told.map(|it| (String::from_utf8(it.key).unwrap(), it.value.is_some())).collect()
}

#[test]
fn two_keys_of_one_instance_are_one_and_it_goes_with_the_last() {
    let mut zero = translator("[{format: go-zero, prefix: user.rpc}]");
    let own = || "/services/user.rpc/10.0.0.5:80".to_owned();
    let put = |key: &str, revision| change(key, Some("10.0.0.5:80"), revision);
    assert_eq!(told(&mut zero, vec![put("user.rpc/1", 2)]), [(own(), true)]);
    assert_eq!(told(&mut zero, vec![put("user.rpc/2", 3)]), [(own(), true)]);
    assert_eq!(told(&mut zero, vec![change("user.rpc/1", None, 4)]), [(own(), true)]);
    assert_eq!(told(&mut zero, vec![change("user.rpc/2", None, 5)]), [(own(), false)]);
    assert_eq!(told(&mut zero, vec![put("user.rpc/3", 6)]), [(own(), true)]);
    // Another address under the same key.
    let moved = change("user.rpc/3", Some("10.0.0.6:80"), 7);
    let expect = [("/services/user.rpc/10.0.0.6:80".to_owned(), true), (own(), false)];
    assert_eq!(told(&mut zero, vec![moved]), expect);
    // What cannot be read leaves what was there, is told once, and cleared when it is good or gone.
    let bad = || change("user.rpc/3", Some("nonsense"), 8);
    let refused = zero.changes(vec![bad()]);
    assert_eq!((refused.told.len(), refused.unread.refused.len()), (0, 1));
    let listing = vec![item("user.rpc/3", "nonsense")];
    let listed = zero.listing(zero.read_all(listing), &[]);
    assert_eq!((listed.told.len(), listed.unread.refused.len()), (1, 1));
    let gone = zero.changes(vec![change("user.rpc/3", None, 10)]);
    assert_eq!((gone.told.len(), gone.unread.read.len()), (1, 1));
    // Without permission, what was known stays.
    told(&mut zero, vec![put("user.rpc/4", 11)]);
    let listed = zero.listing(Vec::new(), &[b"user.rpc/"]);
    assert_eq!(listed.told.len(), 1);
}

/// The table that users read: every example in it is read as it says.
#[test]
fn the_documented_table_is_true() {
    let text = include_str!("../../../../docs/registries.md");
    let mut formats = std::collections::BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| `") && line.contains('/')) {
        let cells: Vec<Vec<&str>> = row
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.split('`').skip(1).step_by(2).collect())
            .collect();
        let [format, prefix, key, value, served] = cells.as_slice() else { continue };
        let (format, prefix, [name, address]) = (format[0], prefix[0], served.as_slice()) else {
            continue;
        };
        let yaml = format!("[{{format: {format}, prefix: '{prefix}'}}]");
        let (lines, refused, _) = read(&yaml, &[(key[0], value[0])]);
        assert!(refused.is_empty(), "{format}: {refused:?}");
        assert_eq!(lines.len(), 1, "{format}");
        assert!(lines[0].starts_with(&format!("{name}/")), "{format}: {lines:?}");
        assert!(lines[0].contains(&format!(" {address} ")), "{format}: {lines:?}");
        let name = <super::FormatName as clap::ValueEnum>::from_str(format, false).unwrap();
        let own = super::SourceConfig::new(name).prefix();
        assert!(own.is_empty() || own == prefix.as_bytes(), "{format}: {prefix}");
        formats.insert(format.to_owned());
    }
    let all = <super::FormatName as clap::ValueEnum>::value_variants();
    let all = all.iter().map(|format| format.to_string()).filter(|format| format != "custom");
    assert_eq!(formats, all.collect());
}

#[test]
fn keys_of_another_format_are_counted_and_named() {
    let kratos: Vec<(String, &str)> = (0..40).map(|n| (format!("hello/{n}"), EXACT[5].2)).collect();
    let pairs = || kratos.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let lines = super::survey(b"/microservices/", true, &[], pairs());
    let expect = "40 of 40 keys under /microservices/ look like kratos: set `format: kratos`";
    assert_eq!(lines, [expect]);
    let known = [super::FormatName::Kratos];
    assert_eq!(super::survey(b"/m/", false, &known, pairs()), [""; 0]);
}

#[test]
fn instances_of_other_schemes_alone_are_named_by_these() {
    let schemes = |source: &str, key: &str, values: &[&str]| {
        let group = groups(&config(&format!("[{{format: {source}}}]")).unwrap()).pop().unwrap();
        let pairs = values.iter().map(|value| (key.as_bytes(), value.as_bytes()));
        group.untaken(pairs).into_iter().collect::<Vec<_>>()
    };
    let plain = r#"{"name":"hello","endpoints":["grpc://10.0.0.5:9000"]}"#;
    let secure = r#"{"name":"hello","endpoints":["grpc://10.0.0.6:9000?isSecure=true"]}"#;
    let by_name = r#"{"name":"hello","endpoints":["http://host:80"]}"#;
    for (source, values, expect) in [
        ("kratos", vec![plain, secure], vec!["grpc", "grpcs"]),
        ("kratos, scheme: grpcs", vec![plain], vec!["grpc"]),
        ("kratos, scheme: grpc", vec![plain, secure], vec![]),
        // It is refused, and said there.
        ("kratos", vec![plain, by_name], vec![]),
        ("kratos", vec![], vec![]),
    ] {
        assert_eq!(schemes(source, "hello/u", &values), expect, "{source}: {values:?}");
    }
    let custom = r#"custom, prefix: /x/, key: "{name}/{id}", fields: {urls: /at/urls}"#;
    let nested = r#"{"at":{"urls":["h2c://10.0.0.5:80?isSecure=true"]}}"#;
    assert_eq!(schemes(custom, "hello/u", &[nested]), ["h2c"], "no key is looked for by its name");
}
