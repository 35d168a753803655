//! `pintle init`: the files of a first installation, made of the shipped ones.
//!
//! Envoy's is `envoy/envoy.yaml` with a cluster and a route for each service, the reasons beside
//! the settings included. What is written has been read back by what will read it: the agent's
//! files by the agent's own configuration, Envoy's as YAML.

mod agent;
mod compose;
mod envoy;
mod service;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use self::service::Service;
use super::CliError;
use crate::config::{ADMIN, SOCKET};

/// What the files are about.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Where the files go; it is made.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// NAME, and behind commas what it is: grpc; tls=SERVER_NAME, ca=FILE; domain=NAME
    /// (repeatable); static=ADDRESS:PORT (repeatable), for hosts that are no registry's.
    /// Repeatable.
    #[arg(long = "service", value_name = "SERVICE", required = true)]
    services: Vec<Service>,
    /// Where Envoy listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:10000")]
    listen: SocketAddr,
    /// Where Envoy's admin interface listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    envoy_admin: SocketAddr,
    /// The module, as Envoy finds it.
    #[arg(long, value_name = "PATH", default_value = "pintle.wasm")]
    module: PathBuf,
    /// A member of the etcd cluster; repeatable.
    /// [default: http://127.0.0.1:2379, where a service is not static]
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// A NATS server; repeatable. Without one there are no events.
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
    /// A range in which loopback and private endpoint addresses are good; repeatable.
    /// [default: the private networks, and loopback where a static host is there]
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// The proxies' socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// The agent's admin address.
    #[arg(long, value_name = "ADDR", default_value = ADMIN)]
    admin: SocketAddr,
    /// Where the last good state is kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Writes over files that are there.
    #[arg(long)]
    force: bool,
}

/// Writes the files and says what to type next.
pub(super) fn init(args: &InitArgs) -> Result<(), CliError> {
    fs::create_dir_all(&args.dir).map_err(|error| not_written(&args.dir, &error))?;
    let dir = args.dir.canonicalize().map_err(|error| not_written(&args.dir, &error))?;
    let files = files(args, &dir)?;
    let there = files.keys().map(|name| dir.join(name)).find(|path| path.exists());
    if let Some(path) = there.filter(|_| !args.force) {
        return Err(CliError::No(format!("{} is there; --force writes over it", path.display())));
    }
    let mut out = stdout().lock();
    for (name, text) in &files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| not_written(&path, &error))?;
        writeln!(out, "written  {}", path.display())?;
    }
    let dir = dir.display();
    writeln!(out, "\npintle check --config {dir}/agent.yaml --envoy-config {dir}/envoy.yaml")?;
    writeln!(out, "pintle run --config {dir}/agent.yaml")?;
    writeln!(out, "envoy -c {dir}/envoy.yaml")?;
    writeln!(out, "or, in containers: docker compose -f {dir}/compose.yaml up")?;
    Ok(())
}

fn not_written(path: &Path, error: &std::io::Error) -> CliError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            CliError::Usage(format!("{}: {error}", path.display()))
        }
        _ => CliError::No(format!("{}: {error}", path.display())),
    }
}

/// The files by name.
fn files(args: &InitArgs, dir: &Path) -> Result<BTreeMap<&'static str, String>, CliError> {
    let mut names: Vec<&str> = args.services.iter().map(|it| it.name.as_str()).collect();
    names.sort_unstable();
    if let Some([twice, _]) = names.array_windows().find(|[one, other]| one == other) {
        return Err(CliError::Usage(format!("--service {twice} is there twice")));
    }
    let bootstrap = envoy::bootstrap(args);
    // Only a shipped file without the places that are looked for makes none; a test looks for them.
    let bootstrap =
        bootstrap.ok_or_else(|| CliError::No("no envoy.yaml can be made".to_owned()))?;
    let mut files = agent::files(args, dir)?;
    files.insert("envoy.yaml", bootstrap);
    let compose = compose::file(args, dir);
    files.insert("compose.yaml", agent::yaml("docs/by-hand.md says how", &compose)?);
    Ok(files)
}

#[cfg(test)]
mod tests;
