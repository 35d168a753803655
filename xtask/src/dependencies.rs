//! Dependencies, held to the lists of `deny.toml` without the network: their licences, where they
//! come from, and that none is there in two versions unless somebody gave a reason. Advisories are
//! the workflow's, where `cargo deny` can fetch them.

use std::collections::{BTreeMap, BTreeSet};

use pintle_tests::tools;
use serde_json::Value;

use crate::sbom::{Component, components};

/// The allowed words of a list in `deny.toml`.
fn listed(section: &str, list: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(tools::root().join("deny.toml")).expect("deny.toml");
    let all: Value = toml::from_str(&text).expect("TOML");
    all[section][list].as_array().expect("a list").clone()
}

/// What is compiled for this machine, tests and tools included.
fn all() -> BTreeSet<Component> {
    let all = components("--workspace --edges normal,build,dev").expect("the tree");
    assert!(all.len() > 300, "{}", all.len());
    all
}

#[test]
fn every_licence_is_as_permissive_as_ours() {
    let allowed = listed("licenses", "allow");
    for part in all() {
        let licence = spdx::Expression::parse(&part.licence).expect("SPDX");
        let permitted = |of: &spdx::LicenseReq| {
            of.license.id().is_some_and(|id| allowed.iter().any(|name| name == id.name))
        };
        assert!(licence.evaluate(permitted), "{part:?}");
    }
}

/// `rand@0.9`, as far as a version says which others it goes with.
fn line_of(part: &Component) -> String {
    let numbers: Vec<&str> = part.version.split('.').collect();
    let shown = if numbers.first() == Some(&"0") { 2 } else { 1 };
    format!("{}@{}", part.name, numbers.into_iter().take(shown).collect::<Vec<_>>().join("."))
}

#[test]
fn a_second_version_of_a_crate_is_there_for_a_reason() {
    let mut versions: BTreeMap<String, Vec<Component>> = BTreeMap::new();
    for part in all() {
        versions.entry(part.name.clone()).or_default().push(part);
    }
    let number = |part: &Component| {
        let numbers = part.version.split('.').map(|number| number.parse::<u64>().unwrap_or(0));
        numbers.collect::<Vec<_>>()
    };
    let older = versions.into_values().flat_map(|mut parts| {
        parts.sort_by_key(number);
        parts.pop();
        parts.iter().map(line_of).collect::<Vec<_>>()
    });
    let older: BTreeSet<String> = older.collect();
    let skipped = listed("bans", "skip");
    let reasons = skipped.iter().filter(|entry| entry["reason"].is_string());
    assert_eq!(reasons.count(), skipped.len(), "each has a reason");
    let skipped = skipped.iter().filter_map(|entry| entry["crate"].as_str().map(str::to_owned));
    assert_eq!(older, skipped.collect(), "found, and what deny.toml skips");
}

#[test]
fn every_dependency_is_from_the_one_registry() {
    let lock = std::fs::read_to_string(tools::root().join("Cargo.lock")).expect("the lock");
    let sources: BTreeSet<&str> =
        lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    let registry = "\"registry+https://github.com/rust-lang/crates.io-index\"";
    assert_eq!(sources, BTreeSet::from([registry]));
}
