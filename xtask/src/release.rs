//! `cargo xtask release`: whether a version can be given out, and what is done for it.
//!
//! It builds what users get and makes the tag, here alone; pushing the tag and putting the files
//! where people find them is typed by a person. `--dry-run` does all but the tag.

use pintle_tests::{Error, Result, tools};

use crate::shell::{output, run};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a release is judged by.
#[derive(Clone, Copy, Debug, Default)]
struct Facts<'a> {
    version: &'a str,
    changelog: &'a str,
    /// The tags that there are, one a line.
    tags: &'a str,
    /// What `git status --porcelain` says; `None` where there is no repository.
    changed: Option<&'a str>,
}

/// Everything that stands in the way, as sentences with what to do.
fn obstacles(facts: &Facts<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let Facts { version, changelog, tags, changed } = facts;
    if version.split('.').filter(|part| part.parse::<u64>().is_ok()).count() != 3 {
        found.push(format!("{version} is not MAJOR.MINOR.PATCH: change it in Cargo.toml"));
    }
    if !changelog.lines().any(|line| line == format!("## {version}")) {
        let coming = changelog.lines().find(|line| line.starts_with("## To come"));
        let coming = coming.map(|line| format!("; it has \"{line}\"")).unwrap_or_default();
        found.push(format!("CHANGELOG.md has no section \"## {version}\"{coming}"));
    }
    if tags.lines().any(|tag| tag == format!("v{version}")) {
        found.push(format!("the tag v{version} is there: raise the version in Cargo.toml"));
    }
    match changed {
        None => found.push("there is no git repository to put a tag into".to_owned()),
        Some("") => {}
        Some(files) => {
            let count = files.lines().count();
            found.push(format!("{count} files are changed or not added: commit them"));
        }
    }
    found
}

/// The `release` command.
pub fn release(dry: bool) -> Result<()> {
    println!("== 1 of 3, whether {VERSION} can be given out");
    let changelog = std::fs::read_to_string(tools::root().join("CHANGELOG.md"))?;
    let (tags, changed) = (output("git tag"), output("git status --porcelain"));
    let facts = Facts {
        version: VERSION,
        changelog: &changelog,
        tags: tags.as_deref().unwrap_or_default(),
        changed: changed.as_deref(),
    };
    let obstacles = obstacles(&facts);
    for obstacle in &obstacles {
        println!("not yet: {obstacle}");
    }
    if !dry && !obstacles.is_empty() {
        return Err(Error::new(format!("{} things stand in the way", obstacles.len())));
    }
    println!("\n== 2 of 3, what users get: cargo xtask dist; minutes, it is built anew");
    crate::dist::run_dist(None, false)?;
    let tag = format!("git tag --annotate v{VERSION} --message v{VERSION}");
    println!("\n== 3 of 3, the tag: {tag}");
    match dry {
        true => println!("not done, this is a dry run"),
        false => run(&tag, &[])?,
    }
    println!("then, by a person: git push origin v{VERSION}, and the files of target/packages");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Facts, obstacles};

    #[test]
    fn what_stands_in_the_way_is_named() {
        let changelog = "# Changelog\n\n## 0.2.0\n\n## 0.1.0\n";
        let good = Facts { version: "0.2.0", changelog, tags: "v0.1.0", changed: Some("") };
        assert!(obstacles(&good).is_empty(), "{:?}", obstacles(&good));
        for (facts, expected) in [
            (Facts { version: "0.2", ..good }, "MAJOR.MINOR.PATCH"),
            (Facts { version: "0.3.0", ..good }, "no section \"## 0.3.0\""),
            (Facts { tags: "v0.1.0\nv0.2.0", ..good }, "the tag v0.2.0 is there"),
            (Facts { changed: Some(" M a\n?? b"), ..good }, "2 files are changed"),
            (Facts { changed: None, ..good }, "no git repository"),
        ] {
            let found = obstacles(&facts).join("\n");
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }
}
