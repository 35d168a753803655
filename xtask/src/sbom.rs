//! What the distribution is made of: a bill of materials (CycloneDX 1.5) for each of its two
//! binaries.

use std::collections::{BTreeMap, BTreeSet};

use pintle_tests::{Error, Result, tools};
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

/// The bill of a package of this workspace for a target, `None` for this machine's, and of the
/// binary with this SHA-256 that was made of it.
pub fn bill(package: &str, target: Option<&str>, binary: &str) -> Result<Value> {
    let target = target.map(|target| format!(" --target {target}")).unwrap_or_default();
    let all = components(&format!("--edges normal --package {package}{target}"))?;
    let own = all.iter().find(|part| part.name == package);
    let own = own.ok_or_else(|| Error::new(format!("{package} is not in its own tree")))?;
    let sums = checksums()?;
    let part = |part: &Component| {
        let mut value = described(part);
        if let Some(sum) = sums.get(&(part.name.clone(), part.version.clone())) {
            value["hashes"] = hashes(sum);
        }
        value
    };
    let parts: Vec<Value> = all.iter().filter(|part| *part != own).map(part).collect();
    let mut made = described(own);
    made["hashes"] = hashes(binary);
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(binary),
        "version": 1,
        "metadata": {"component": made},
        "components": parts,
    }))
}

/// A number of the binary's own, so that the same binary has the same bill: a UUID of version 8
/// (RFC 9562).
fn serial(sha256: &str) -> String {
    let digits = |from: usize, to: usize| sha256.get(from..to).unwrap_or_default();
    format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        digits(0, 8),
        digits(8, 12),
        digits(12, 15),
        digits(15, 18),
        digits(18, 30)
    )
}

fn hashes(sha256: &str) -> Value {
    json!([{"alg": "SHA-256", "content": sha256}])
}

/// The checksum of each crate's archive by name and version, as `Cargo.lock` has them.
fn checksums() -> Result<BTreeMap<(String, String), String>> {
    let lock = std::fs::read_to_string(tools::root().join("Cargo.lock"))?;
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.map(|text| text.trim_matches('"').to_owned())
    };
    let sum = |package: &str| {
        let key = (field(package, "name")?, field(package, "version")?);
        Some((key, field(package, "checksum")?))
    };
    Ok(lock.split("[[package]]").filter_map(sum).collect())
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
            let sum = "0123456789abcdef".repeat(4);
            let bill = bill(package, target, &sum).expect("a bill");
            assert_eq!(bill["metadata"]["component"]["name"], package);
            assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], sum);
            assert_eq!(bill["serialNumber"], "urn:uuid:01234567-89ab-8cde-8f01-23456789abcd");
            // Of the registry's crates each, of our own none.
            for part in bill["components"].as_array().expect("parts") {
                let own = part["name"].as_str().expect("a name").starts_with("pintle-");
                assert_eq!(part.get("hashes").is_some(), !own, "{part}");
            }
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
