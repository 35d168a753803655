//! The tables of `docs/configuration.md`, row by row against the code: each key is known and none
//! is left out, its default changes nothing, and what it accepts is what the code says of a value
//! that is refused. `PINTLE_WRITE_DOCS=1` puts the code's words into the pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use pintle_agent::config::{Config, Flags};
use pintle_policy::Policy;
use pintle_settings::{Found, Invalid};
use pintle_tests::tools;
use serde_json::{Value, json};

/// Refused wherever a number, a duration, a word, a text, a flag, a list or an object is asked for.
const NOWHERE: f64 = -1.5;

/// Keys that are still taken and no longer mean anything.
const FORMER: [&str; 2] = ["state.protect_percent", "state.protect_grace"];

/// A row of a table; `line` is its place in the page.
#[derive(Clone, Debug)]
struct Row {
    line: usize,
    key: String,
    default: String,
    accepts: String,
}

impl Row {
    /// The path down to the key: an entry of a list is `name[]`.
    fn path(&self) -> Vec<&str> {
        self.key.split('.').collect()
    }

    /// The key as a refusal names it, in the first entry of each list.
    fn field(&self) -> String {
        self.key.replace("[]", "[0]")
    }

    /// The default as a value, where it can be written.
    fn default(&self) -> Option<Value> {
        let text = self.default.strip_prefix('`')?.strip_suffix('`')?;
        Some(serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
    }
}

/// What reads a tree, and the text of what it makes of it.
type Read = fn(&Value) -> Result<String, Invalid>;

fn module(tree: &Value) -> Result<String, Invalid> {
    let it = pintle_policy::Config::parse(tree.to_string().as_bytes())?;
    let parts = (it.sources, it.agent, it.select, it.breaker, it.trace, it.addresses);
    Ok(format!("{parts:?} {:?}", it.default_policy))
}

fn policy(tree: &Value) -> Result<String, Invalid> {
    Policy::resolve([tree]).map(|policy| format!("{policy:?}"))
}

fn agent(tree: &Value) -> Result<String, Invalid> {
    let mut config = Config::merge(tree.clone(), [], &Flags::new())?;
    let addresses = config.sources.state.addresses();
    config.sources.state.allow = Some(addresses.allow);
    Ok(format!("{config:?}"))
}

/// Trees in which a section is there with what it must have, by the section; the longest prefix
/// counts.
fn sections() -> BTreeMap<&'static str, Value> {
    let instance = json!({"name": "orders", "id": "a", "address": "10.0.0.1", "port": 1});
    let mut checked = instance.clone();
    checked["check"] = json!({"http": "/"});
    let secure = json!(["https://10.0.0.1:2379"]);
    let tls = json!({"cert": "c", "key": "k"});
    let files = json!({"listen": "10.0.0.1:1", "cert": "c", "key": "k", "client_ca": "a"});
    [
        ("sync", json!({"sync": {"cluster": "a"}})),
        ("trace.export", json!({"trace": {"export": {"cluster": "a", "service_name": "b"}}})),
        ("select.hash_key[]", json!({"select": {"hash_key": [{"query": "q"}]}})),
        ("select.hash_key[].cookie", json!({"select": {"hash_key": [{"cookie": {"name": "c"}}]}})),
        ("select.sticky", json!({"select": {"sticky": {"cookie": {"name": "c"}}}})),
        ("select.subset[]", json!({"select": {"subset": [{"header": "a", "metadata": "b"}]}})),
        ("select.slow_start", json!({"select": {"slow_start": {"window": "30s"}}})),
        ("etcd.sources[]", json!({"etcd": {"sources": [{"format": "kratos"}]}})),
        ("etcd.tls", json!({"etcd": {"endpoints": secure, "tls": tls}})),
        ("nats.tls", json!({"etcd": {}, "nats": {"servers": ["tls://10.0.0.1:4222"], "tls": tls}})),
        ("file", json!({"file": {"path": "services.yaml"}})),
        ("kubernetes", json!({"kubernetes": {"kubeconfig": "config"}})),
        ("tcp", json!({"etcd": {}, "tcp": files})),
        ("register", json!({"etcd": {}, "register": {"instances": [instance]}})),
        ("register.instances[].check", json!({"etcd": {}, "register": {"instances": [checked]}})),
    ]
    .into()
}

/// The tree for `row` without its own key; `whole` is what every tree of this reader has.
fn around(row: &Row, whole: &Value) -> Value {
    let sections = sections();
    let within = |section: &&&str| row.key.starts_with(&format!("{section}."));
    let section = sections.keys().filter(within).max_by_key(|section| section.len());
    let mut tree = section.map_or_else(|| whole.clone(), |section| sections[*section].clone());
    let path = row.path();
    let mut place = &mut tree;
    for name in &path[..path.len() - 1] {
        place = below(place, name);
        if place.is_null() {
            *place = json!({});
        }
    }
    tree
}

/// The value of a name in an object; of `name[]` the first of its list.
fn below<'a>(place: &'a mut Value, name: &str) -> &'a mut Value {
    match name.strip_suffix("[]") {
        Some(list) => &mut place[list][0],
        None => &mut place[name],
    }
}

fn with(tree: &Value, row: &Row, value: Value) -> Value {
    let mut tree = tree.clone();
    *row.path().iter().fold(&mut tree, |place, name| below(place, name)) = value;
    tree
}

fn without(tree: &Value, row: &Row) -> Value {
    let mut tree = tree.clone();
    let path = row.path();
    let (name, parents) = path.split_last().unwrap();
    let parent = parents.iter().fold(&mut tree, |place, name| below(place, name));
    parent.as_object_mut().unwrap().remove(*name);
    tree
}

/// What the code says that the key accepts.
fn told(row: &Row, read: Read, whole: &Value) -> String {
    let refused = read(&with(&around(row, whole), row, json!(NOWHERE))).unwrap_err();
    assert_eq!(refused.field, row.field(), "{refused}");
    assert_ne!(refused.found, Found::UnknownKey, "{refused}");
    refused.accepts.replace('|', "\\|")
}

/// That the default is what holds where the key is left out; or that it can't be left out.
fn check_default(row: &Row, read: Read, whole: &Value) {
    let left_out = without(&around(row, whole), row);
    match row.default() {
        _ if row.default == "must be there" => {
            let refused = read(&left_out).unwrap_err();
            assert_eq!(refused.field, row.field(), "{refused}");
        }
        Some(default) => {
            let written = read(&with(&around(row, whole), row, default)).unwrap();
            assert_eq!(written, read(&around(row, whole)).unwrap(), "{}", row.key);
        }
        None => {}
    }
}

/// That each section's keys are those of its rows.
fn check_whole(rows: &[Row], read: Read, whole: &Value) {
    let mut sections: BTreeMap<String, (Row, BTreeSet<String>)> = BTreeMap::new();
    for row in rows {
        let path = row.path();
        for at in 0..path.len() {
            let name = path[at].trim_end_matches("[]").to_owned();
            let own = path[..=at].join(".");
            let unknown = Row { key: format!("{own}.x"), ..row.clone() };
            let of = unknown.path()[..at].join(".");
            let probe = Row { key: [&of, "x"].join(".").trim_matches('.').to_owned(), ..unknown };
            sections.entry(of).or_insert_with(|| (probe, BTreeSet::new())).1.insert(name);
        }
    }
    for (section, (probe, names)) in sections {
        let refused = read(&with(&around(&probe, whole), &probe, json!(1))).unwrap_err();
        assert_eq!(refused.found, Found::UnknownKey, "{section}: {refused}");
        let path = |key: &str| [&section, key].join(".").trim_matches('.').to_owned();
        let known = refused.accepts.split(", ").filter(|key| !FORMER.contains(&&*path(key)));
        assert_eq!(names, known.map(str::to_owned).collect(), "{section:?}");
    }
}

/// The page, and the rows below each of its headings.
struct Page {
    path: PathBuf,
    lines: Vec<String>,
}

impl Page {
    fn open() -> Self {
        let path = tools::root().join("docs/configuration.md");
        let text = fs::read_to_string(&path).unwrap();
        Self { path, lines: text.lines().map(str::to_owned).collect() }
    }

    fn rows(&self, heading: &str) -> Vec<Row> {
        let lines = self.lines.iter().enumerate();
        let below = lines.skip_while(|(_, line)| *line != heading).skip(1);
        let section = below.take_while(|(_, line)| !line.starts_with("## "));
        let rows = section.filter_map(|(at, line)| {
            let cells: Vec<&str> = line.split(" | ").collect();
            let key = cells.first()?.strip_prefix("| `")?.strip_suffix('`')?;
            let [_, default, accepts, _] = cells[..] else { panic!("four cells: {line}") };
            let [key, default, accepts] = [key, default, accepts].map(str::to_owned);
            Some(Row { line: at, key, default, accepts })
        });
        rows.collect()
    }

    fn write(&mut self, row: &Row, accepts: &str) {
        let line = &mut self.lines[row.line];
        let mut cells: Vec<&str> = line.split(" | ").collect();
        cells[2] = accepts;
        *line = cells.join(" | ");
        fs::write(&self.path, self.lines.join("\n") + "\n").unwrap();
    }
}

#[test]
fn each_key_is_as_the_page_says() {
    let mut page = Page::open();
    let [of_module, of_policy, of_agent] =
        ["## The module", "## A service's policy", "## The agent"].map(|it| page.rows(it));
    let mut wrong = Vec::new();
    let readers = [
        (&of_module, module as Read, json!({})),
        (&of_policy, policy, json!({})),
        (&of_policy, module, json!({})),
        (&of_agent, agent, json!({"etcd": {}})),
    ];
    for (rows, read, whole) in &readers {
        assert!(rows.len() > 20, "{rows:?}");
        for row in *rows {
            let told = told(row, *read, whole);
            if told != row.accepts {
                wrong.push(format!("{}: {told}", row.key));
                if std::env::var_os("PINTLE_WRITE_DOCS").is_some() {
                    page.write(row, &told);
                }
            }
            check_default(row, *read, whole);
        }
    }
    let all_of_module = [&of_module[..], &of_policy].concat();
    check_whole(&all_of_module, module, &json!({}));
    check_whole(&of_policy, policy, &json!({}));
    check_whole(&of_agent, agent, &json!({"etcd": {}}));
    assert!(wrong.is_empty(), "the code says\n{}", wrong.join("\n"));
}

/// The ConfigMaps of `envoy/kubernetes` hold files that the agent takes.
#[test]
fn the_manifests_configurations_are_good() {
    for name in ["agent.yaml", "endpointslices.yaml"] {
        let path = tools::root().join("envoy/kubernetes").join(name);
        let text = fs::read_to_string(path).unwrap();
        let mut objects =
            text.split("\n---\n").map(|it| serde_yaml_ng::from_str::<Value>(it).unwrap());
        let map = objects.find(|object| object["kind"] == "ConfigMap").unwrap();
        let config = map["data"]["agent.yaml"].as_str().unwrap();
        let tree: Value = serde_yaml_ng::from_str(config).unwrap();
        Config::merge(tree, [], &Flags::new()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
