//! `cargo xtask dist`: what a user installs, in one directory with its sums, and as packages beside
//! it.

mod container;
mod deb;
mod oci;
mod root;

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use crate::sbom;
use crate::shell::{output, run};

/// The same files make the same archive: sorted, of no time, root's.
const TAR: &str =
    "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX";

/// Builds and collects everything into `target/dist`; with a secret key of minisign's, the sums of
/// both directories are signed by it; the Debian package is tried in a clean root, and the
/// Dockerfile by a container engine, where that is asked for.
pub fn run_dist(key: Option<&str>, check: bool) -> Result<()> {
    crate::setup::bring(crate::setup::BUILD)?;
    let dist = tools::target_dir().join("dist");
    if dist.exists() {
        std::fs::remove_dir_all(&dist)?;
    }
    run("cargo build --release --locked -p pintle-agent", &[])?;
    stripped(&tools::target_dir().join("release/pintle"), &dist.join("pintle"))?;
    copy(&tools::module()?, &dist.join("pintle.wasm"))?;
    pages(&dist)?;
    name_module(&dist)?;
    help(&dist)?;
    for (binary, package, target) in
        [("pintle", "pintle-agent", None), ("pintle.wasm", "pintle-module", Some("wasm32-wasip1"))]
    {
        let bill = sbom::bill(package, target, &sha256(&dist.join(binary))?)?;
        let bill = serde_json::to_string_pretty(&bill)?;
        std::fs::write(dist.join(format!("{binary}.cdx.json")), bill)?;
    }
    sum(&dist)?;
    let packages = tools::target_dir().join("packages");
    if packages.exists() {
        std::fs::remove_dir_all(&packages)?;
    }
    pack(&dist, &packages)?;
    if let Some(key) = key {
        crate::setup::bring(&[crate::setup::Tool::Minisign])?;
        sign(&dist, key)?;
        sign(&packages, key)?;
    }
    if check {
        root::try_package(&deb::file(&packages, architecture()?))?;
        container::try_dockerfile(&dist)?;
    }
    println!("{}\n{}", dist.display(), packages.display());
    Ok(())
}

/// The pages and the configurations, as the repository has them, so that links lead somewhere.
fn pages(dist: &Path) -> Result<()> {
    for page in [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ] {
        copy(&tools::root().join(page), &dist.join(page))?;
    }
    for folder in ["docs", "envoy"] {
        for file in files_below(&tools::root().join(folder))? {
            copy(&file, &dist.join(file.strip_prefix(tools::root()).unwrap_or(&file)))?;
        }
    }
    Ok(())
}

/// The module once more under a name with its hash, which the shipped manifests then have: a proxy
/// that starts during a roll loads what its configuration means, the release before or this one.
fn name_module(dist: &Path) -> Result<()> {
    let module = dist.join("pintle.wasm");
    let name = hashed(&module)?;
    copy(&module, &dist.join(&name))?;
    for manifest in ["envoy/istio/pintle.yaml", "envoy/istio/gateway.yaml"] {
        let path = dist.join(manifest);
        let text = std::fs::read_to_string(&path)?;
        if !text.contains(IN_PODS) {
            return Err(Error::new(format!("{manifest} does not name {IN_PODS}")));
        }
        std::fs::write(path, text.replace(IN_PODS, &format!("/run/pintle/{name}")))?;
    }
    Ok(())
}

/// Where a proxy's pod finds the module, before it has a hash.
const IN_PODS: &str = "/run/pintle/pintle.wasm";

/// `pintle-` and 16 digits of the module's SHA-256.
fn hashed(module: &Path) -> Result<String> {
    let hash = sha256(module)?;
    Ok(format!("pintle-{}.wasm", hash.get(..16).unwrap_or(&hash)))
}

/// What the agent says of itself: man pages, and completions under the names that shells look for.
fn help(dist: &Path) -> Result<()> {
    let agent = dist.join("pintle").display().to_string();
    run(&format!("{agent} man {}", dist.join("man").display()), &[])?;
    std::fs::create_dir_all(dist.join("completions"))?;
    for (shell, file) in [("bash", "pintle"), ("zsh", "_pintle"), ("fish", "pintle.fish")] {
        let line = format!("{agent} completions {shell}");
        let said = output(&line).ok_or_else(|| Error::new(format!("`{line}` did not succeed")))?;
        std::fs::write(dist.join("completions").join(file), said)?;
    }
    Ok(())
}

/// The packages of what is in `dist`: tarball, Helm chart, Debian package, images as OCI layouts.
fn pack(dist: &Path, packages: &Path) -> Result<()> {
    let (version, architecture) = (env!("CARGO_PKG_VERSION"), architecture()?);
    std::fs::create_dir_all(packages)?;
    let name = format!("pintle-{version}-linux-{architecture}");
    let tar = packages.join(format!("{name}.tar"));
    run(
        &format!("{TAR} --transform=s,^\\.,{name}, -cf {} -C {} .", tar.display(), dist.display()),
        &[],
    )?;
    run(&format!("gzip -n -9 {}", tar.display()), &[])?;
    let chart = packages.join(format!("pintle-{version}.tar"));
    let charts = tools::root().join("envoy/helm");
    run(&format!("{TAR} -cf {} -C {} pintle", chart.display(), charts.display()), &[])?;
    run(&format!("gzip -n -9 -S .tgz {}", chart.display()), &[])?;
    std::fs::rename(chart.with_extension("tar.tgz"), chart.with_extension("tgz"))?;
    if deb::possible() {
        let package = deb::file(packages, architecture);
        deb::package(dist, version, architecture, &package)?;
        deb::judge(&package)?;
    }
    let (agent, module) = (dist.join("pintle"), dist.join("pintle.wasm"));
    oci::agent_image(&packages.join("agent-image"), version, &agent, &module)?;
    oci::module_image(&packages.join("module-image"), version, &module)?;
    oci::module_artifact(&packages.join("module-artifact"), version, &module)?;
    sum(packages)
}

/// Writes the sums of all files below, and prints them.
fn sum(dir: &Path) -> Result<()> {
    let mut files = files_below(dir)?;
    files.sort();
    let mut sums = String::new();
    for file in files {
        let (name, sum) = (file.strip_prefix(dir).unwrap_or(&file).display(), sha256(&file)?);
        println!("{sum}  {name}  {} bytes", file.metadata()?.len());
        sums += &format!("{sum}  {name}\n");
    }
    Ok(std::fs::write(dir.join("SHA256SUMS"), sums)?)
}

/// Signs the sums of a directory, and with them every file that they name: `SHA256SUMS.minisig`.
fn sign(dir: &Path, key: &str) -> Result<()> {
    let (sums, version) = (dir.join("SHA256SUMS"), env!("CARGO_PKG_VERSION"));
    run(&format!("minisign -S -s {key} -m {} -t pintle-{version}", sums.display()), &[])
}

fn sha256(file: &Path) -> Result<String> {
    let line = format!("sha256sum {}", file.display());
    let sum = output(&line).and_then(|said| Some(said.split(' ').next()?.to_owned()));
    sum.ok_or_else(|| Error::new(format!("`{line}` did not succeed")))
}

/// This machine's, as Debian and OCI call it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(Error::new(format!("no package is made for {other}"))),
    }
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

/// A program without the symbols that nobody needs to run it, as Debian wants it.
fn stripped(from: &Path, to: &Path) -> Result<()> {
    copy(from, to)?;
    run(&format!("strip {}", to.display()), &[])
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().unwrap_or(to))?;
    std::fs::copy(from, to).map_err(|e| Error::from(e).during(from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests;
