//! The pages: their length, their links, and the fragments that they show of shipped files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pintle_tests::tools;
use serde_json::Value;

/// Folders with pages for users.
const FOLDERS: [&str; 4] = ["", "docs", "docs/migration", "envoy"];

/// Every page, by its path below the root.
pub(crate) fn pages() -> Vec<(PathBuf, String)> {
    let root = tools::root();
    let files = FOLDERS.iter().flat_map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let pages = paths.filter(|path| path.extension().is_some_and(|it| it == "md"));
    let page = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(&root).unwrap().to_owned(), text)
    };
    pages.map(page).collect()
}

/// The targets of the links of a page that lead into the repository, without blocks of code.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let targets = prose.flat_map(|prose| prose.split("](").skip(1));
    let targets = targets.filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// A heading as its link calls it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn the_readme_is_read_in_five_minutes() {
    let text = fs::read_to_string(tools::root().join("README.md")).unwrap();
    let words = text.split_whitespace().count();
    assert!(words <= 1_300, "{words} words");
    for command in ["$ cargo xtask demo ", "$ cargo xtask test "] {
        assert!(text.contains(command), "{command}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for (page, text) in pages() {
        for link in links(&text) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let folder = page.parent().unwrap_or(Path::new(""));
            let to = match path {
                "" => tools::root().join(&page),
                path => tools::root().join(folder).join(path),
            };
            assert!(to.exists(), "{}: {link}", page.display());
            if !fragment.is_empty() {
                let there = fs::read_to_string(&to).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|heading| anchor(heading) == fragment);
                assert!(found, "{}: {link}", page.display());
            }
        }
    }
}

/// The distribution has these folders as the repository has them.
#[test]
fn every_path_in_backticks_is_there() {
    let tops = ["docs/", "envoy/", "tests/", "benches/", "filters/", "host-agent/", "fuzz/"];
    let root = tools::root();
    for (page, text) in pages() {
        let words = text.split('`').skip(1).step_by(2);
        let paths = words.filter(|word| tops.iter().any(|top| word.starts_with(top)));
        for path in paths.filter(|path| !path.contains([' ', '{', '*', '\n'])) {
            assert!(root.join(path).exists(), "{}: {path}", page.display());
        }
    }
}

#[test]
fn the_book_has_every_page() {
    let docs = tools::root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<PathBuf> = links(&summary).into_iter().map(PathBuf::from).collect();
    let there = pages().into_iter().filter_map(|(page, _)| {
        let page = page.strip_prefix("docs").ok()?.to_owned();
        (page != Path::new("SUMMARY.md")).then_some(page)
    });
    assert_eq!(listed, there.collect());
}

/// Whether all that `part` says is said by `whole`: objects key by key, texts of JSON as JSON.
fn says(whole: &Value, part: &Value) -> bool {
    let json = |value: &Value| value.as_str().and_then(|text| serde_json::from_str(text).ok());
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| says(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| says(w, p))
        }
        (Value::String(_), Value::String(_)) if whole != part => {
            let (whole, part): (Option<Value>, Option<Value>) = (json(whole), json(part));
            whole.is_some_and(|whole| part.is_some_and(|part| says(&whole, &part)))
        }
        _ => whole == part,
    }
}

/// Whether some place of `whole` says what `part` says.
fn somewhere(whole: &Value, part: &Value) -> bool {
    let below = match whole {
        Value::Object(entries) => entries.values().any(|value| somewhere(value, part)),
        Value::Array(entries) => entries.iter().any(|value| somewhere(value, part)),
        _ => false,
    };
    below || says(whole, part)
}

#[test]
fn the_fragments_of_the_readme_are_those_of_the_file_that_is_tested() {
    let root = tools::root();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let file = fs::read_to_string(root.join("envoy/envoy.yaml")).unwrap();
    let whole: Value = serde_yaml_ng::from_str(&file).unwrap();
    let blocks = readme.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let fragments: Vec<&str> = blocks.collect();
    assert_eq!(fragments.len(), 4);
    for fragment in fragments {
        let parts = match serde_yaml_ng::from_str(fragment).unwrap() {
            Value::Array(entries) => entries,
            one => vec![one],
        };
        for part in parts {
            assert!(somewhere(&whole, &part), "{part}");
        }
    }
}
