//! Blocks and commands of the pages. `sh` is typed by a test as it stands
//! (`tests/deploy/pages.rs`), so only that page has it; `console` shows what a person types on
//! machines that a test has none of, and its commands have the words and flags that the programs
//! know; `yaml` is YAML, and an agent's section is one that the agent takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use pintle_agent::config::{Config, Flags};
use pintle_tests::tools;
use serde_json::Value;

use crate::pages::pages;

/// A block: its language and its text.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let fenced = text.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

#[test]
fn each_block_is_of_a_kind_that_is_looked_after() {
    for (page, text) in pages() {
        for (language, block) in blocks(&text) {
            let typed = page == Path::new("docs/by-hand.md");
            let known =
                matches!(language, "console" | "text" | "yaml") || language == "sh" && typed;
            assert!(known, "{}: ```{language}\n{block}", page.display());
        }
    }
}

#[test]
fn what_is_shown_as_yaml_is_yaml_and_what_the_agent_reads_is_taken() {
    let mut taken = 0;
    for (page, text) in pages() {
        for (_, block) in blocks(&text).into_iter().filter(|(language, _)| *language == "yaml") {
            let tree: Result<Value, _> = serde_yaml_ng::from_str(block);
            let tree = tree.unwrap_or_else(|error| panic!("{}: {error}\n{block}", page.display()));
            if tree.get("etcd").is_some() {
                let read = Config::merge(tree, [], &Flags::new());
                assert!(read.is_ok(), "{}: {}", page.display(), read.unwrap_err());
                taken += 1;
            }
        }
    }
    assert!(taken > 0);
}

/// The commands that the pages name: in blocks for a person, and between backticks.
fn commands(text: &str) -> Vec<String> {
    let shown = blocks(text).into_iter().filter(|(language, _)| *language == "console");
    let joined = shown.map(|(_, block)| block.replace("\\\n", " ")).collect::<Vec<_>>().join("\n");
    let typed = joined.lines().filter_map(|line| line.trim().strip_prefix("$ "));
    let prose: String = text.split("```").step_by(2).collect();
    let named = prose.split('`').skip(1).step_by(2).map(|words| words.replace('\n', " "));
    let named: Vec<String> = named.collect();
    typed.map(str::to_owned).chain(named).collect()
}

/// What a command of the agent says of itself.
fn help(of: &[&str]) -> Option<String> {
    let agent = env!("CARGO_BIN_EXE_pintle");
    let done = Command::new(agent).args(of).arg("--help").output().unwrap();
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn each_command_that_is_named_is_there_with_its_flags() {
    let xtask = fs::read_to_string(tools::root().join("xtask/src/main.rs")).unwrap();
    let mut said: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut seen = 0;
    for (page, text) in pages() {
        for command in commands(&text) {
            let command = command.split('#').next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().collect();
            match words[..] {
                ["cargo", "xtask", name, ..] => {
                    let listed = format!("\n  {name} ");
                    assert!(xtask.contains(&listed), "{}: {command}", page.display());
                }
                ["pintle", name, ..] if name.chars().all(|c| c.is_ascii_lowercase()) => {
                    let rest = words[2..].iter().take_while(|word| !word.starts_with('-'));
                    let deeper = rest.take(1).map(|word| (*word).to_owned());
                    let path: Vec<String> = [name.to_owned()].into_iter().chain(deeper).collect();
                    let help = said.entry(path.clone()).or_insert_with(|| {
                        let path: Vec<&str> = path.iter().map(String::as_str).collect();
                        help(&path).or_else(|| help(&path[..1]))
                    });
                    let help = help.as_ref();
                    let help = help.unwrap_or_else(|| panic!("{}: {command}", page.display()));
                    let flags = words.iter().filter(|word| word.starts_with("--"));
                    for flag in flags.filter_map(|flag| flag.split('=').next()) {
                        let there = help.contains(&format!("{flag} "))
                            || help.contains(&format!("{flag}\n"));
                        assert!(there, "{}: {command}: {flag}", page.display());
                    }
                    seen += 1;
                }
                _ => {}
            }
        }
    }
    assert!(seen > 20, "{seen}");
}
