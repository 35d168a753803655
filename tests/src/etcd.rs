//! A real etcd, alone or three of them, spoken to through its own JSON gateway.
//!
//! The gateway, not a client crate: a client crate wants protoc at build time, and
//! `cargo xtask setup`, which installs protoc, links this library. Data is thrown away, so an
//! election happens after a second at most, as in production; nothing else about the server is
//! tuned.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::etcd_peers::Peers;
use crate::process::{Process, Server, Spec};
use crate::text::{base64, now_rfc3339, unbase64};
use crate::{Error, Patience, Port, Result, Upstream, http, tools};

const READY: Duration = Duration::from_secs(30);

/// One etcd server.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    client: Port,
    _peer: Port,
}

/// Several members of one cluster.
#[derive(Debug)]
pub struct EtcdCluster {
    /// The members, in the order of their names `m0`, `m1`, ...
    pub members: Vec<Etcd>,
    peers: Peers,
    /// Where each is known to the others.
    links: Vec<Port>,
}

/// What a write returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The store's revision after the write.
    pub revision: i64,
}

/// A registry entry, with exactly the contract's fields.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The service's name, as in the key.
    pub service: String,
    /// The instance's id, as in the key.
    pub id: String,
    /// An IP address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// `weight`, `zone`, `region`, `version`, `protocol` have a meaning.
    pub metadata: Vec<(String, String)>,
    /// `healthy`, `unhealthy` or `draining`.
    pub health: String,
    /// Its tags.
    pub tags: Vec<String>,
}

impl Instance {
    /// A healthy instance without metadata.
    pub fn new(service: &str, id: &str, addr: SocketAddr) -> Self {
        Self {
            service: service.into(),
            id: id.into(),
            address: addr.ip().to_string(),
            port: addr.port(),
            metadata: Vec::new(),
            health: "healthy".into(),
            tags: Vec::new(),
        }
    }

    /// An upstream of ours under its own name.
    pub fn of(service: &str, upstream: &Upstream) -> Self {
        Self::new(service, upstream.name(), upstream.addr())
    }

    /// The same with one more metadata entry.
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// The same with another health.
    pub fn health(mut self, health: &str) -> Self {
        self.health = health.into();
        self
    }

    /// `/services/{service}/{id}`.
    pub fn key(&self) -> String {
        format!("/services/{}/{}", self.service, self.id)
    }

    /// The value that goes under the key.
    pub fn value(&self) -> Value {
        let metadata: serde_json::Map<String, Value> =
            self.metadata.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let now = now_rfc3339();
        json!({
            "id": self.id, "name": self.service, "address": self.address, "port": self.port,
            "metadata": metadata, "health": self.health, "tags": self.tags,
            "registered_at": now, "last_heartbeat": now,
        })
    }
}

impl Etcd {
    /// One member, ready to serve.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// One member with more arguments, for example `--client-cert-auth`.
    pub async fn start_with(args: &[&str]) -> Result<Self> {
        let (client, peer) = (Port::take()?, Port::take()?);
        let cluster = format!("m0=http://{}", peer.addr());
        let known_at = peer.addr();
        let mut etcd = Self::launch("m0", client, peer, known_at, &cluster, args)?;
        etcd.wait_ready().await?;
        Ok(etcd)
    }

    fn launch(
        name: &str,
        client: Port,
        peer: Port,
        known_at: SocketAddr,
        cluster: &str,
        args: &[&str],
    ) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-etcd-")?;
        let url = |addr: SocketAddr| format!("http://{addr}");
        let (client_url, peer_url) = (url(client.addr()), url(peer.addr()));
        let data = dir.path().join("data").display().to_string();
        let own = [
            ("--name", name),
            ("--data-dir", &data),
            ("--listen-client-urls", &client_url),
            ("--advertise-client-urls", &client_url),
            ("--listen-peer-urls", &peer_url),
            ("--initial-advertise-peer-urls", &url(known_at)),
            ("--initial-cluster", cluster),
            ("--initial-cluster-token", "pintle-tests"),
        ];
        let own = own.iter().flat_map(|(k, v)| [(*k).to_string(), (*v).to_string()]);
        let args = own.chain(args.iter().map(|a| (*a).to_string())).collect();
        let spec = Spec { name: "etcd".into(), program: tools::etcd()?, args, envs: Vec::new() };
        Ok(Self { process: Process::spawn(spec, dir)?, client, _peer: peer })
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let addr = self.client.addr();
        let healthy = async || {
            let reply = http::get(addr, "/health").await;
            reply.is_ok_and(|r| r.text().contains("\"true\""))
        };
        self.process.wait_ready(READY, healthy).await
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.client.addr()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Starts it again on the same ports with the same data, and waits until it serves.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait_ready().await
    }

    /// Starts it again *without* its data: what a restore from nothing looks like to a watcher, a
    /// revision that goes back.
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.process.kill9();
        std::fs::remove_dir_all(self.process.dir().join("data"))?;
        self.restart().await
    }

    /// Calls the gateway, for example `("/v3/kv/range", ..)`; anything but 200 is an error.
    pub async fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let reply = http::post(self.addr(), path, &body.to_string()).await?;
        match reply.status {
            200 => reply.json(),
            status => Err(Error::new(format!("etcd {path}: {status} {}", reply.text()))),
        }
    }

    /// What the member says of itself.
    async fn status(&self) -> Result<Value> {
        self.call("/v3/maintenance/status", &json!({})).await
    }

    /// Writes a key.
    pub async fn put(&self, key: &str, value: &str) -> Result<Written> {
        let body = json!({"key": base64(key.as_bytes()), "value": base64(value.as_bytes())});
        written(&self.call("/v3/kv/put", &body).await?)
    }

    /// Writes a key under a lease.
    pub async fn put_leased(&self, key: &str, value: &str, lease: &str) -> Result<Written> {
        let (key, value) = (base64(key.as_bytes()), base64(value.as_bytes()));
        let body = json!({"key": key, "value": value, "lease": lease});
        written(&self.call("/v3/kv/put", &body).await?)
    }

    /// Grants a lease of so many seconds; its id, as the gateway writes it.
    pub async fn grant(&self, ttl_secs: u32) -> Result<String> {
        let lease = self.call("/v3/lease/grant", &json!({ "TTL": ttl_secs })).await?;
        let id = lease["ID"].as_str().map(str::to_string);
        id.ok_or_else(|| Error::new(format!("etcd granted no lease: {lease}")))
    }

    /// Deletes a key.
    pub async fn delete(&self, key: &str) -> Result<Written> {
        written(&self.call("/v3/kv/deleterange", &json!({"key": base64(key.as_bytes())})).await?)
    }

    /// Deletes every key that begins with the prefix, in one revision.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<Written> {
        let body = json!({"key": base64(prefix.as_bytes()), "range_end": base64(&after(prefix))});
        written(&self.call("/v3/kv/deleterange", &body).await?)
    }

    /// The value of a key, if it is there.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        let found = self.call("/v3/kv/range", &json!({"key": base64(key.as_bytes())})).await?;
        Ok(pairs(&found).into_iter().next().map(|(_, value)| value))
    }

    /// All keys with the prefix and their values, sorted by key.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let body = json!({"key": base64(prefix.as_bytes()), "range_end": base64(&after(prefix))});
        Ok(pairs(&self.call("/v3/kv/range", &body).await?))
    }

    /// Forgets all revisions before this one.
    pub async fn compact(&self, revision: i64) -> Result<()> {
        let body = json!({"revision": revision.to_string(), "physical": true});
        self.call("/v3/kv/compaction", &body).await.map(|_| ())
    }

    /// Puts an instance, without a lease.
    pub async fn register(&self, instance: &Instance) -> Result<Written> {
        self.put(&instance.key(), &instance.value().to_string()).await
    }

    /// Deletes an instance.
    pub async fn deregister(&self, service: &str, id: &str) -> Result<Written> {
        self.delete(&format!("/services/{service}/{id}")).await
    }
}

impl Server for Etcd {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl EtcdCluster {
    /// So many members with a leader among them.
    pub async fn start(size: usize) -> Result<Self> {
        let mut peers = Peers::new();
        let (mut ports, mut links) = (Vec::new(), Vec::new());
        for _ in 0..size {
            let (client, peer, link) = (Port::take()?, Port::take()?, Port::take()?);
            peers.link(link.addr(), peer.addr()).await?;
            ports.push((client, peer));
            links.push(link);
        }
        let named = links.iter().enumerate();
        let all: Vec<String> =
            named.map(|(i, link)| format!("m{i}=http://{}", link.addr())).collect();
        let all = all.join(",");
        let mut members = Vec::new();
        for (i, ((client, peer), link)) in ports.into_iter().zip(&links).enumerate() {
            let name = format!("m{i}");
            members.push(Etcd::launch(&name, client, peer, link.addr(), &all, &[])?);
        }
        for member in &mut members {
            member.wait_ready().await?;
        }
        Ok(Self { members, peers, links })
    }

    /// Cuts a member off from the others; its clients still reach it.
    pub async fn cut_off(&self, member: usize) -> Result<()> {
        let no_member = || Error::new(format!("there is no member {member}"));
        let link = self.links.get(member).ok_or_else(no_member)?;
        let status = self.members.get(member).ok_or_else(no_member)?.status().await?;
        let id = status["header"]["member_id"].as_str().and_then(|id| id.parse().ok());
        self.peers.cut_off(link.addr(), id.ok_or_else(no_member)?);
        Ok(())
    }

    /// The members reach each other again.
    pub fn heal(&self) {
        self.peers.heal();
    }

    /// All members' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(Etcd::url).collect()
    }

    /// The index of the present leader, asked of every member that answers; during an election, the
    /// one that comes of it.
    pub async fn leader(&self) -> Result<usize> {
        let mut patience = Patience::new(READY);
        loop {
            for (i, member) in self.members.iter().enumerate() {
                let Ok(status) = member.status().await else { continue };
                let own = &status["header"]["member_id"];
                if status["leader"].is_string() && status["leader"] == *own {
                    return Ok(i);
                }
            }
            if !patience.lasts().await {
                return Err(Error::new("no member of the etcd cluster says that it leads"));
            }
        }
    }
}

fn written(reply: &Value) -> Result<Written> {
    let revision = reply["header"]["revision"].as_str().and_then(|r| r.parse().ok());
    let revision = revision.ok_or_else(|| Error::new(format!("no revision in {reply}")))?;
    Ok(Written { revision })
}

fn pairs(reply: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| {
        let bytes = v.as_str().and_then(unbase64).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let kvs = reply["kvs"].as_array().cloned().unwrap_or_default();
    kvs.iter().map(|kv| (text(&kv["key"]), text(&kv["value"]))).collect()
}

/// The first key after all that begin with the prefix.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
