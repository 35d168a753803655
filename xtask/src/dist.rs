//! `cargo xtask dist`: what a user installs, in one directory, with its sums.

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use crate::sbom;
use crate::shell::{output, run};

/// Builds and collects everything into `target/dist`.
pub fn run_dist() -> Result<()> {
    crate::setup::bring()?;
    let dist = tools::target_dir().join("dist");
    if dist.exists() {
        std::fs::remove_dir_all(&dist)?;
    }
    run("cargo build --release --locked -p pintle-agent", &[])?;
    let mut files = vec![
        ("pintle".into(), tools::target_dir().join("release/pintle")),
        ("pintle.wasm".into(), tools::module()?),
    ];
    // As the repository has them, so that the pages' links lead somewhere.
    let pages = [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ];
    files.extend(pages.map(|page| (page.to_owned(), tools::root().join(page))));
    for file in ["docs", "envoy"].map(|folder| files_below(&tools::root().join(folder))) {
        for file in file? {
            let name = file.strip_prefix(tools::root()).unwrap_or(&file);
            files.push((name.display().to_string(), file.clone()));
        }
    }
    for (name, from) in files {
        copy(&from, &dist.join(name))?;
    }
    for (binary, package, target) in
        [("pintle", "pintle-agent", None), ("pintle.wasm", "pintle-module", Some("wasm32-wasip1"))]
    {
        let bill = serde_json::to_string_pretty(&sbom::bill(package, target)?)?;
        std::fs::write(dist.join(format!("{binary}.cdx.json")), bill)?;
    }
    let mut sums = String::new();
    let mut files = files_below(&dist)?;
    files.sort();
    for file in files {
        let name = file.strip_prefix(&dist).unwrap_or(&file).display();
        let line = output(&format!("sha256sum {}", file.display())).unwrap_or_default();
        let sum = line.split(' ').next().unwrap_or_default();
        println!("{sum}  {name}  {} bytes", file.metadata()?.len());
        sums += &format!("{sum}  {name}\n");
    }
    std::fs::write(dist.join("SHA256SUMS"), sums)?;
    println!("{}", dist.display());
    Ok(())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().unwrap_or(to))?;
    std::fs::copy(from, to).map_err(|e| Error::from(e).during(from.display()))?;
    Ok(())
}
