//! A compose file for the same agent and Envoy in containers, on the machine's own network, so that
//! the addresses in the other files hold in there as well.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pintle_policy::merge;
use serde_json::{Value, json};

use super::InitArgs;

/// The image that `cargo xtask dist` makes, and `docker build -f envoy/kubernetes/Dockerfile`.
const AGENT: &str = concat!("pintle:", env!("CARGO_PKG_VERSION"));
/// The newest that the tests run on.
const ENVOY: &str = "envoyproxy/envoy:v1.40.0";
const ETCD: &str = "gcr.io/etcd-development/etcd:v3.6.5";

/// The file; `dir` is where the others will be, and whose user runs all of it.
pub(super) fn file(args: &InitArgs, dir: &Path) -> Value {
    let mut services = BTreeMap::new();
    let mut volumes = BTreeMap::new();
    let here = format!("{0}:{0}:ro", dir.display());
    let run = args.socket.parent().unwrap_or(Path::new("/run/pintle"));
    let run = format!("run:{}", run.display());
    let user = owner(dir);
    let (uid, gid) = user;
    volumes.insert(
        "run",
        json!({"driver": "local", "driver_opts":
            {"type": "tmpfs", "device": "tmpfs", "o": format!("uid={uid},gid={gid},mode=0700")}}),
    );
    let mut mounts = vec![here.clone(), run.clone()];
    if let Some(state) = &args.state_dir {
        mounts.push(format!("{0}:{0}", state.display()));
    }
    let mut after = json!({});
    if args.etcd.is_empty() && args.services.iter().any(|it| it.hosts.is_empty()) {
        // Without --etcd the agent asks at this address, and a trial needs no other.
        let url = super::agent::ETCD;
        let command = json!([
            "etcd",
            "--data-dir",
            "/etcd",
            "--listen-client-urls",
            url,
            "--advertise-client-urls",
            url
        ]);
        let mounts = vec!["etcd:/etcd".to_owned()];
        let writes = json!({"read_only": false});
        services.insert("etcd", service(ETCD, &command, mounts, (0, 0), &writes));
        volumes.insert("etcd", json!({}));
        after = json!({"depends_on": ["etcd"]});
    }
    let agent = json!(["run", "--config", dir.join("agent.yaml")]);
    services.insert("agent", service(AGENT, &agent, mounts, user, &after));
    let mut mounts = vec![here, run];
    let module: PathBuf = dir.join(&args.module);
    if !module.starts_with(dir) {
        mounts.push(format!("{0}:{0}:ro", module.display()));
    }
    let envoy = json!(["envoy", "--disable-hot-restart", "-c", dir.join("envoy.yaml")]);
    let after = json!({"working_dir": dir, "depends_on": ["agent"]});
    services.insert("envoy", service(ENVOY, &envoy, mounts, user, &after));
    json!({"services": services, "volumes": volumes})
}

fn service(
    image: &str,
    command: &Value,
    volumes: Vec<String>,
    (uid, gid): (u32, u32),
    more: &Value,
) -> Value {
    let mut service = json!({
        "image": image,
        "command": command,
        "network_mode": "host",
        "user": format!("{uid}:{gid}"),
        "read_only": true,
        "cap_drop": ["ALL"],
        "volumes": volumes,
        "restart": "unless-stopped",
    });
    merge(&mut service, more);
    service
}

/// Whose the directory is; the agent admits proxies of its own user to the socket.
fn owner(dir: &Path) -> (u32, u32) {
    std::fs::metadata(dir).map_or((0, 0), |it| (it.uid(), it.gid()))
}
