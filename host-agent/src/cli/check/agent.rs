//! What a running agent says of itself, asked once.

use http::Method;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::finding::{Code, Finding};
use crate::cli::CliError;
use crate::cli::client::{AGENT, Client};
use crate::cli::reads::all_services;
use crate::serve::admin::view::{
    AgentJson, HeldJson, HeldRowJson, OverlayJson, OverlaysJson, ProxiesJson, ProxyJson, ReadyJson,
    RejectedJson, RejectedRowJson, ServiceJson, SourcesJson,
};
use std::time::Duration;

/// A proxy that is behind is asked for once more after this long: a change that was made just now
/// is on its way.
const ONCE_MORE: Duration = Duration::from_millis(1_500);

/// Everything that the agent knows.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) given: AgentJson,
    pub(super) ready: ReadyJson,
    pub(super) sources: SourcesJson,
    pub(super) services: Vec<ServiceJson>,
    pub(super) proxies: Vec<ProxyJson>,
    pub(super) overlays: Vec<OverlayJson>,
    pub(super) held: Vec<HeldRowJson>,
    pub(super) rejected: Vec<RejectedRowJson>,
}

impl Agent {
    /// Asks the agent at `address`, or says why that can't be done.
    pub(super) async fn ask(address: &str) -> Result<Self, Finding> {
        let client = Client::new(address, AGENT);
        let (_, ready) = client.ask(Method::GET, "/readyz").await.map_err(|error| {
            let todo = "start it (pintle run), or name its admin address by --admin";
            Finding::bad(Code::AgentAway, "agent", error.to_string(), todo)
        })?;
        let stranger = |why: String| {
            let detail = format!("what answers at {address} is no agent of this version: {why}");
            let todo = "name the agent's admin address by --admin, or upgrade it";
            Finding::bad(Code::AgentAway, "agent", detail, todo)
        };
        let ready = serde_json::from_slice(&ready).map_err(|error| stranger(error.to_string()))?;
        let all = async {
            let mut agent = Self {
                given: get(&client, "/v1/agent").await?,
                ready,
                sources: get(&client, "/v1/sources").await?,
                services: all_services(&client).await?.services,
                proxies: get::<ProxiesJson>(&client, "/v1/proxies").await?.proxies,
                overlays: get::<OverlaysJson>(&client, "/v1/overlays").await?.overlays,
                held: get::<HeldJson>(&client, "/v1/held").await?.held,
                rejected: get::<RejectedJson>(&client, "/v1/rejected").await?.rejected,
            };
            if agent.proxies.iter().any(|proxy| proxy.connected && !proxy.current) {
                sleep(ONCE_MORE).await;
                agent.proxies = get::<ProxiesJson>(&client, "/v1/proxies").await?.proxies;
            }
            Ok::<_, CliError>(agent)
        };
        all.await.map_err(|error| stranger(error.to_string()))
    }
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, CliError> {
    client.get(path).await
}

/// Readiness, the disk and the server for proxies.
pub(super) fn health(agent: &Agent) -> Vec<Finding> {
    let ready = &agent.ready;
    let mut findings = vec![match (ready.serves, ready.stale) {
        (true, false) => Finding::good("agent", format!("ready at version {}", ready.version)),
        (true, true) => Finding::bad(
            Code::AgentStale,
            "agent",
            ready.detail.clone(),
            "bring the registry back (`pintle sources` says how it does); traffic goes on with the last good state",
        ),
        (false, _) => Finding::bad(
            Code::AgentNotReady,
            "agent",
            ready.detail.clone(),
            "bring the registry back: the agent has nothing that it could tell an Envoy",
        ),
    }];
    if let Some(error) = &agent.sources.disk_error {
        findings.push(Finding::bad(
            Code::StateUnwritable,
            "state",
            format!("the last good state can't be written: {error}"),
            "free some room, or correct the permissions of state.dir",
        ));
    }
    if let Some(error) = &agent.given.socket.error {
        findings.push(Finding::bad(
            Code::SocketAbsent,
            "socket",
            format!("{}: {error}", agent.given.socket.path),
            "remove what stands in the way; the agent tries again every second",
        ));
    }
    for quota in agent.given.quotas.iter().filter(|quota| quota.full) {
        findings.push(Finding::bad(
            Code::QuotaFull,
            "socket",
            format!(
                "a peer was refused within the last minute: its quota of {} is used up \
                 ({} of {} in use, {} refused)",
                quota.kind, quota.used, quota.limit, quota.refused
            ),
            "look for \"quota is used up\" in the agent's log: it names the user and the process",
        ));
    }
    for refusal in &agent.given.refusals {
        findings.push(Finding::bad(
            Code::DiscoveryRefused,
            "discovery",
            format!("an Envoy ({}) refuses the agent's {}: {}", refusal.peer, refusal.what, refusal.why),
            "correct what it names (serve.clusters in agent.yaml for clusters); it keeps what it had",
        ));
    }
    findings
}

/// The sources, by the agent's own word. Those that were asked themselves are left out when they
/// were found ill.
pub(super) fn sources(sources: &SourcesJson, ill: &[Code]) -> Vec<Finding> {
    let all = [
        ("etcd", &sources.etcd, Code::EtcdAway),
        ("nats", &sources.nats, Code::NatsAway),
        ("kubernetes", &sources.kubernetes, Code::KubernetesAway),
        ("file", &sources.file, Code::FileAway),
    ];
    if all.iter().all(|(_, source, _)| !source.enabled) {
        return vec![Finding::bad(
            Code::SourcesNone,
            "sources",
            "the agent has no source of services",
            "start it with --etcd URL or --file PATH, or give it a kubernetes section",
        )];
    }
    let away = all
        .iter()
        .filter(|(_, source, code)| source.enabled && !source.connected && !ill.contains(code));
    let away = away.map(|(name, source, code)| {
        let why = source.error.as_deref().unwrap_or("no answer");
        Finding::bad(
            *code,
            name,
            format!("the agent has no connection to {}: {why}", source.endpoint),
            match *code {
                Code::EtcdAway => {
                    "start etcd, or mend the way there; nothing new is learnt until then"
                }
                Code::NatsAway => "start NATS, or mend the way there; no order arrives until then",
                Code::KubernetesAway => {
                    "give the agent's service account get, list and watch of endpointslices in \
                     discovery.k8s.io, or mend the way to the API server"
                }
                _ => "bring the file back, or correct file.path",
            },
        )
    });
    // What is missing of a source that answers: its own words name the remedy.
    let answering = all.iter().filter(|(_, source, _)| source.enabled && source.connected);
    let lacks = answering.flat_map(|(name, source, _)| {
        let said = source.error.iter().chain(&source.warnings);
        said.map(|line| {
            let todo = "grant or change what it names, or what the configuration asks for";
            Finding::bad(Code::SourceImpaired, name, line.clone(), todo)
        })
    });
    away.chain(lacks).collect()
}
