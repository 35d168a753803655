//! What the agent was given, and how its own servers do: what `pintle check` needs to ask the rest.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{clean, time};
use crate::serve::eds::Refusal;
use crate::serve::quota::Usage;
use crate::serve::socket::SocketStatus;
use crate::source::SourcesConfig;

/// What the agent was started with, without secrets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// The proxies' socket.
    pub socket: PathBuf,
    /// The registry, if one.
    pub etcd: Option<EtcdJson>,
    /// NATS, if given.
    pub nats: Option<NatsJson>,
    /// The file of services, if one.
    pub file: Option<PathBuf>,
}

impl Given {
    /// What the configuration says.
    #[must_use]
    pub(crate) fn of(socket: PathBuf, sources: &SourcesConfig) -> Self {
        let hosts = |urls: &[String]| urls.iter().map(|url| without_user(url)).collect();
        Self {
            socket,
            etcd: sources.etcd.as_ref().map(|etcd| EtcdJson {
                endpoints: hosts(&etcd.endpoints),
                services: etcd.services.clone(),
                policies: etcd.policies.clone(),
            }),
            nats: sources.nats.as_ref().map(|nats| NatsJson {
                servers: hosts(&nats.servers),
                stream: nats.stream.clone(),
                prefix: nats.prefix.clone(),
            }),
            file: sources.file.as_ref().map(|file| file.path.clone()),
        }
    }
}

/// A URL without the user and password that may stand in it.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// `/v1/agent`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AgentJson {
    /// Its name in the fleet.
    pub agent: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub started: String,
    /// The proxies' socket.
    pub socket: SocketJson,
    /// The admin address.
    pub admin: String,
    /// The unix socket at which orders are taken.
    pub admin_socket: String,
    /// The registry it was given.
    pub etcd: Option<EtcdJson>,
    /// NATS as it was given.
    pub nats: Option<NatsJson>,
    /// The file of services it was given.
    pub file: Option<String>,
    /// What the proxies' server lets its peers hold.
    pub quotas: Vec<QuotaJson>,
    /// What Envoys have refused of discovery, and have not taken since.
    pub refusals: Vec<RefusalJson>,
}

/// The proxies' socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SocketJson {
    /// The file.
    pub path: String,
    /// Why the file is not there, while it is not.
    pub error: Option<String>,
    /// Times that it was made anew.
    pub renewed: u64,
}

/// The registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EtcdJson {
    /// Its members.
    pub endpoints: Vec<String>,
    /// The prefix of services.
    pub services: String,
    /// The prefix of policies.
    pub policies: String,
}

/// NATS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NatsJson {
    /// Its servers.
    pub servers: Vec<String>,
    /// The stream of events.
    pub stream: String,
    /// The first token of the events' subjects.
    pub prefix: String,
}

/// One quota of the proxies' server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct QuotaJson {
    /// Of what.
    pub kind: String,
    /// Held now, by all.
    pub used: usize,
    /// The limit for all.
    pub limit: usize,
    /// Refusals since the start.
    pub refused: u64,
    /// Whether somebody was refused within the last minute.
    pub full: bool,
}

/// A refusal of discovery.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RefusalJson {
    /// Whose.
    pub peer: String,
    /// `clusters` or `hosts`.
    pub what: String,
    /// Why, in Envoy's words.
    pub why: String,
    /// When.
    pub at: String,
}

impl AgentJson {
    /// Of the agent `agent`, started at `started` and answering at `admin`.
    #[must_use]
    pub(crate) fn of(
        agent: &str,
        started: std::time::SystemTime,
        (admin, admin_socket): (SocketAddr, &std::path::Path),
        given: &Given,
    ) -> Self {
        Self {
            agent: agent.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: time(started),
            socket: SocketJson {
                path: given.socket.display().to_string(),
                error: None,
                renewed: 0,
            },
            admin: admin.to_string(),
            admin_socket: admin_socket.display().to_string(),
            etcd: given.etcd.clone(),
            nats: given.nats.clone(),
            file: given.file.as_ref().map(|file| file.display().to_string()),
            quotas: Vec::new(),
            refusals: Vec::new(),
        }
    }

    /// How its server for the proxies does.
    pub(crate) fn serves(&mut self, file: &SocketStatus, usage: &[Usage], refusals: &[Refusal]) {
        self.socket.error = file.error.as_deref().map(clean);
        self.socket.renewed = file.renewed;
        let quota = |usage: &Usage| QuotaJson {
            kind: usage.kind.as_str().to_owned(),
            used: usage.used,
            limit: usage.limit,
            refused: usage.refused,
            full: usage.full,
        };
        self.quotas = usage.iter().map(quota).collect();
        let refusal = |it: &Refusal| RefusalJson {
            peer: it.peer.clone(),
            what: it.what.to_owned(),
            why: clean(&it.why),
            at: time(it.at),
        };
        self.refusals = refusals.iter().map(refusal).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_says_of_its_user_is_left_out() {
        for (url, shown) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("nats://me:secret@127.0.0.1:4222", "nats://127.0.0.1:4222"),
            ("me:se@cret@host:1", "host:1"),
        ] {
            assert_eq!(without_user(url), shown);
        }
    }
}
