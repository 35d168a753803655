//! What the distribution is made of: a bill of materials (CycloneDX 1.5) for each of its two binaries.

use std::collections::BTreeSet;

use pintle_tests::{Error, Result};
use serde_json::{Value, json};

use crate::shell::output;

/// A crate that is compiled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub licence: String,
}

/// The crates of a selection in `cargo tree`'s words, itself among them.
pub fn components(selection: &str) -> Result<BTreeSet<Component>> {
    let line = format!("cargo tree --locked --prefix none --format {{p}}|{{l}} {selection}");
    let tree = output(&line).ok_or_else(|| Error::new(format!("`{line}` did not succeed")))?;
    tree.lines().filter(|line| !line.is_empty()).map(component).collect()
}

/// `serde v1.0.228|MIT OR Apache-2.0`; a path, "(proc-macro)" and "(*)" may follow the version.
fn component(line: &str) -> Result<Component> {
    let odd = || Error::new(format!("cargo tree says {line:?}"));
    let (package, licence) = line.split_once('|').ok_or_else(odd)?;
    let mut words = package.split(' ');
    let name = words.next().ok_or_else(odd)?;
    let version = words.next().and_then(|word| word.strip_prefix('v')).ok_or_else(odd)?;
    // Before SPDX had `OR`, crates.io took a slash.
    let licence = licence.trim_end_matches(" (*)").replace(" / ", "/").replace('/', " OR ");
    Ok(Component { name: name.into(), version: version.into(), licence })
}

/// The bill of a package of this workspace for a target, `None` for this machine's.
pub fn bill(package: &str, target: Option<&str>) -> Result<Value> {
    let target = target.map(|target| format!(" --target {target}")).unwrap_or_default();
    let all = components(&format!("--edges normal --package {package}{target}"))?;
    let own = all.iter().find(|part| part.name == package);
    let own = own.ok_or_else(|| Error::new(format!("{package} is not in its own tree")))?;
    let parts: Vec<Value> = all.iter().filter(|part| *part != own).map(described).collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": described(own)},
        "components": parts,
    }))
}

fn described(part: &Component) -> Value {
    let Component { name, version, licence } = part;
    let purl = format!("pkg:cargo/{name}@{version}");
    json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": [{"expression": licence}],
    })
}

#[cfg(test)]
mod tests {
    use super::bill;

    #[test]
    fn a_bill_names_what_is_compiled_in_and_nothing_else() {
        let names = |package, target| {
            let bill = bill(package, target).expect("a bill");
            assert_eq!(bill["metadata"]["component"]["name"], package);
            let parts = bill["components"].as_array().expect("parts");
            let name = |part: &serde_json::Value| part["name"].as_str().map(str::to_owned);
            parts.iter().filter_map(name).collect::<Vec<_>>()
        };
        let module = names("pintle-module", Some("wasm32-wasip1"));
        for (name, there) in [("proxy-wasm", true), ("pintle-hostcalls", true), ("tokio", false)] {
            assert_eq!(module.contains(&name.to_owned()), there, "{name}: {module:?}");
        }
        let agent = names("pintle-agent", None);
        for (name, there) in [("etcd-client", true), ("proxy-wasm", false), ("proptest", false)] {
            assert_eq!(agent.contains(&name.to_owned()), there, "{name}: {agent:?}");
        }
    }
}
