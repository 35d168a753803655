//! `cargo xtask dist`: what a user installs, in one directory, with its sums.

use std::path::Path;

use pintle_tests::{Result, tools};

use crate::shell::{output, run};

/// Files of `envoy/` that go along.
const CONFIGURATION: [&str; 3] = ["envoy.yaml", "original-dst.yaml", "clusters.yaml"];

/// Builds and collects everything into `target/dist`.
pub fn run_dist() -> Result<()> {
    crate::setup::bring()?;
    let dist = tools::target_dir().join("dist");
    if dist.exists() {
        std::fs::remove_dir_all(&dist)?;
    }
    std::fs::create_dir_all(&dist)?;
    run("cargo build --release --locked -p pintle-agent", &[])?;
    copy(&tools::target_dir().join("release/pintle"), &dist, "pintle")?;
    copy(&tools::module()?, &dist, "pintle.wasm")?;
    for file in CONFIGURATION {
        copy(&tools::root().join("envoy").join(file), &dist, file)?;
    }
    let mut sums = String::new();
    let mut files: Vec<_> = std::fs::read_dir(&dist)?.filter_map(|e| e.ok()).collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let line = output(&format!("sha256sum {}", file.path().display())).unwrap_or_default();
        let sum = line.split(' ').next().unwrap_or_default();
        let (name, bytes) = (file.file_name().display().to_string(), file.metadata()?.len());
        println!("{sum}  {name}  {bytes} bytes");
        sums += &format!("{sum}  {name}\n");
    }
    std::fs::write(dist.join("SHA256SUMS"), sums)?;
    println!("{}", dist.display());
    Ok(())
}

fn copy(from: &Path, dist: &Path, name: &str) -> Result<()> {
    std::fs::copy(from, dist.join(name))
        .map_err(|e| pintle_tests::Error::from(e).during(from.display()))?;
    Ok(())
}
