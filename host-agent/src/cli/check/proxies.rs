//! The Envoys of the agent: whether any is there, and whether all their workers have the newest
//! tables.

use pintle_contract::Schema;

use super::agent::Agent;
use super::finding::{Code, Finding, plural};

/// `wanted`: whether an Envoy is looked for on this machine.
pub(super) fn look(agent: &Agent, wanted: bool) -> Vec<Finding> {
    let connected = agent.proxies.iter().filter(|proxy| proxy.connected).count();
    let mut findings = Vec::new();
    if connected == 0 && wanted {
        findings.push(Finding::bad(
            Code::ProxiesAbsent,
            "proxies",
            "no Envoy is connected to the agent",
            format!(
                "give the module's sync.cluster the pipe {}, and let Envoy's user open it \
                 (socket.allow_uids, socket.mode)",
                agent.given.socket.path
            ),
        ));
    } else if connected > 0 {
        findings.push(Finding::good("proxies", format!("{connected} connected")));
    }
    for proxy in &agent.proxies {
        let what = format!("proxy {}", proxy.proxy);
        if !proxy.connected {
            findings.push(Finding::warn(
                Code::ProxyGone,
                &what,
                format!("was connected until {}", proxy.since),
                "if it was stopped, this is right and soon forgotten; if not, look at its log",
            ));
            continue;
        }
        if proxy.schema < Schema::Two as u8 {
            findings.push(Finding::warn(
                Code::ModuleOlder,
                &what,
                format!("its module speaks schema {} of the release before", proxy.schema),
                "give that Envoy this release's pintle.wasm; the next agent will not speak it any more",
            ));
        }
        if !proxy.current {
            let spoke = proxy.workers.len();
            let expected = proxy.expected as usize;
            let detail = if spoke < expected {
                format!("{spoke} of {} have reported", plural(expected, "worker"))
            } else {
                let behind = proxy.workers.iter().filter(|it| it.version != agent.ready.version);
                format!(
                    "{} of {} hold an older version than {}",
                    behind.count(),
                    plural(spoke, "worker"),
                    agent.ready.version
                )
            };
            findings.push(Finding::bad(
                Code::WorkersBehind,
                &what,
                detail,
                "look for \"pintle: frame from the agent refused\" in Envoy's log; the same release \
                 of agent and module helps, or a restart of that Envoy",
            ));
        }
    }
    findings
}
