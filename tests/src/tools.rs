//! Where the binaries come from: an environment variable, PATH, or what `cargo xtask setup` put
//! under the target directory; and the two things that this workspace builds itself, always through
//! cargo, so that nothing stale is ever tested.

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{Error, Result};

/// The Envoy that everything here was measured with, and that `setup` fetches.
pub const ENVOY_VERSION: &str = "1.40.0";
/// The oldest Envoy that is supported, fetched as well.
pub const OLDEST_ENVOY: &str = "1.36.4";

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Cargo's target directory: `$CARGO_TARGET_DIR`, else `target` in the root.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where `setup` puts an Envoy of this version.
pub fn fetched_envoy(version: &str) -> PathBuf {
    target_dir().join("tools/envoy").join(version).join("envoy")
}

/// `$ETCD`, or `etcd` from PATH.
pub fn etcd() -> Result<PathBuf> {
    find("ETCD", "etcd", None, "apt-get install -y etcd-server")
}

/// `$NATS_SERVER`, or `nats-server` from PATH.
pub fn nats_server() -> Result<PathBuf> {
    find("NATS_SERVER", "nats-server", None, "apt-get install -y nats-server")
}

/// `$ENVOY`, or `envoy` from PATH, or the one that `setup` fetched.
pub fn envoy() -> Result<PathBuf> {
    find("ENVOY", "envoy", Some(fetched_envoy(ENVOY_VERSION)), "cargo xtask setup")
}

/// `$OLDEST_ENVOY`, or the one that `setup` fetched.
pub fn oldest_envoy() -> Result<PathBuf> {
    let fetched = fetched_envoy(OLDEST_ENVOY);
    find("OLDEST_ENVOY", "envoy-1.36", Some(fetched), "cargo xtask setup")
}

/// `$PROMTOOL`, or `promtool` from PATH.
pub fn promtool() -> Result<PathBuf> {
    find("PROMTOOL", "promtool", None, "apt-get install -y prometheus")
}

/// `$PROMETHEUS`, or `prometheus` from PATH.
pub fn prometheus() -> Result<PathBuf> {
    find("PROMETHEUS", "prometheus", None, "apt-get install -y prometheus")
}

/// `$HAPROXY`, or `haproxy` from PATH.
pub fn haproxy() -> Result<PathBuf> {
    find("HAPROXY", "haproxy", None, "apt-get install -y haproxy")
}

/// What `promtool check metrics` has to say of an exposition; nothing is `Ok`.
pub fn check_metrics(text: &str) -> Result<()> {
    let mut exposition = tempfile::tempfile()?;
    exposition.write_all(text.as_bytes())?;
    exposition.rewind()?;
    let done = Command::new(promtool()?).args(["check", "metrics"]).stdin(exposition).output()?;
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    match done.status.success() && said.is_empty() {
        true => Ok(()),
        false => Err(Error::new(format!("{said}\n{text}"))),
    }
}

/// `$CHROMIUM`, or `chromium` from PATH.
pub fn chromium() -> Result<PathBuf> {
    find("CHROMIUM", "chromium", None, "apt-get install -y chromium")
}

/// The first file on PATH with this name, if there is one.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps daemons where a plain user's PATH does not look.
    let extra = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|p| p.is_file())
}

fn find(variable: &str, name: &str, fetched: Option<PathBuf>, install: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        return match path.is_file() {
            true => Ok(path),
            false => Err(Error::new(format!("${variable} is {}: no such file", path.display()))),
        };
    }
    on_path(name).or_else(|| fetched.filter(|p| p.is_file())).ok_or_else(|| {
        Error::new(format!("{name} is not installed (PATH, ${variable}): run `{install}`"))
    })
}

/// What is built and tested natively. Always the whole of it, whichever part is wanted: cargo
/// unites the features of what it is asked for, and with `-p` it builds half of the dependencies a
/// second time.
pub const NATIVE: &str = "--workspace --exclude pintle-module --exclude pintle-picks-guest";

/// The agent's binary: `$PINTLE`, else built by cargo, once per process and fresh. A bench is
/// compiled with optimisation and gets the agent as it is released; a test gets it as it is
/// developed.
pub fn agent() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("PINTLE") {
        return Ok(path.into());
    }
    let built = BUILT.get_or_init(|| {
        let args = match cfg!(debug_assertions) {
            true => format!("{NATIVE} --bin pintle"),
            false => "--release -p pintle-agent --bin pintle".to_string(),
        };
        cargo_build(&args.split(' ').collect::<Vec<_>>(), |message| {
            let ours = message["target"]["name"] == "pintle";
            message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
        })
        .map_err(|e| e.to_string())
    });
    built.clone().map_err(Error::new)
}

/// `pintle.wasm`: `$PINTLE_WASM`, else what the build script of `pintle-artifact` compiled, once
/// per process and fresh.
pub fn module() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("PINTLE_WASM") {
        return Ok(path.into());
    }
    let built = BUILT.get_or_init(|| {
        // Its library alone would be built once more, with fewer features than the rest gives it.
        let args = format!("{NATIVE} --lib");
        cargo_build(&args.split(' ').collect::<Vec<_>>(), |message| {
            let ours = message["reason"] == "build-script-executed"
                && message["package_id"].as_str().is_some_and(|id| id.contains("artifact"));
            let out = message["out_dir"].as_str().filter(|_| ours)?;
            Some(Path::new(out).join("pintle.wasm")).filter(|p| p.is_file())
        })
        .map_err(|e| e.to_string())
    });
    built.clone().map_err(Error::new)
}

/// Runs `cargo build` with these arguments and picks a path out of its messages.
fn cargo_build(
    args: &[&str],
    pick: impl Fn(&serde_json::Value) -> Option<PathBuf>,
) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).arg("build").args(args);
    // A build that runs inside `cargo test` must see the environment that a plain build sees, or
    // its fingerprints differ and each rebuilds what the other built.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let inherited = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST");
        if inherited || text == "CARGO_CRATE_NAME" || text == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
    let done = command
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let errors = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        return Err(Error::new(format!("cargo build {}:\n{errors}", args.join(" "))));
    }
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let messages = out.lines().filter_map(|line| serde_json::from_str(line).ok());
    let found = messages.filter_map(|message| pick(&message)).last();
    found.ok_or_else(|| Error::new(format!("cargo build {}: no such artifact", args.join(" "))))
}
