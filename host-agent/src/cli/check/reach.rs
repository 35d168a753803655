//! What is asked itself: etcd, NATS and the socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::finding::{Code, Finding};
use super::prefixes;
use crate::events::{Events, NatsError};
use crate::source::{EtcdConfig, NatsConfig};

const WITHIN: Duration = Duration::from_secs(5);
/// An agent that was stopped says nothing, and has refused nobody.
const SPEAKS_WITHIN: Duration = Duration::from_secs(1);

pub(super) async fn etcd(config: &EtcdConfig) -> Vec<Finding> {
    let todo = "start etcd, or name its members by --etcd or etcd.endpoints; with TLS or users, \
                see etcd.tls, etcd.user and etcd.password";
    let mut last = String::new();
    for member in 0..config.endpoints.len() {
        match timeout(WITHIN, prefixes::look(config, member)).await {
            Ok(Ok(findings)) => return findings,
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => "no answer within 5 s".clone_into(&mut last),
        }
    }
    let at = config.endpoints.join(", ");
    vec![Finding::bad(Code::EtcdAway, "etcd", format!("{at}: {last}"), todo)]
}

pub(super) async fn nats(config: &NatsConfig) -> Finding {
    let todo = "start nats-server with JetStream (-js), or name it by --nats or nats.servers; \
                without events the registry alone is followed";
    let at = config.servers.join(", ");
    let asked = async { Events::connect(config).await?.newest().await };
    match timeout(WITHIN, asked).await {
        Ok(Ok(newest)) => {
            Finding::good("nats", format!("answers; stream {} is at {newest}", config.stream))
        }
        Ok(Err(error)) => {
            let (code, todo) = match error {
                NatsError::Absent(_) => (
                    Code::NatsStream,
                    "name the stream that is meant (nats.stream; `nats stream ls` lists them), or \
                     let the agent create its own (nats.create: true)",
                ),
                NatsError::Denied { .. } => {
                    (Code::NatsDenied, "allow that subject for the agent's user at the server")
                }
                NatsError::NoJetStream { .. } => {
                    (Code::NatsNoJetStream, "start nats-server with -js, or set nats.domain")
                }
                _ => (Code::NatsAway, todo),
            };
            let text = error.to_string();
            let detail = if text.contains(&at) { text } else { format!("{at}: {text}") };
            Finding::bad(code, "nats", detail, todo)
        }
        Err(_) => Finding::bad(Code::NatsAway, "nats", format!("{at}: no answer within 5 s"), todo),
    }
}

/// Whether the agent refuses us: it speaks first to whom it admits (HTTP/2's SETTINGS).
async fn hangs_up(stream: &UnixStream) -> bool {
    let said = timeout(SPEAKS_WITHIN, stream.readable()).await;
    let gone = |read: io::Result<usize>| match read {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    matches!(said, Ok(Ok(()))) && gone(stream.try_read(&mut [0; 1]))
}

pub(super) async fn socket(path: &Path) -> Vec<Finding> {
    let shown = path.display();
    let start = "start the agent: pintle run; its --socket must be the path in Envoy's clusters";
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => there,
        Ok(_) => {
            let detail = format!("{shown} is no socket");
            return vec![Finding::bad(Code::SocketAbsent, "socket", detail, "name another path")];
        }
        Err(error) => {
            let detail = format!("{shown}: {error}");
            return vec![Finding::bad(Code::SocketAbsent, "socket", detail, start)];
        }
    };
    let mut findings = Vec::new();
    findings.push(match UnixStream::connect(path).await {
        Ok(stream) if hangs_up(&stream).await => Finding::bad(
            Code::SocketRefuses,
            "socket",
            format!("{shown} hangs up on this user"),
            "for a proxy's user that is a number, or a range of them, in socket.allow_uids; the \
             agent's log says who was refused",
        ),
        Ok(_) => Finding::good("socket", format!("{shown} accepts")),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::bad(
            Code::SocketClosed,
            "socket",
            format!("{shown}: {error}"),
            "run this as root or as the agent's user; Envoy's user needs socket.group with \
             socket.mode \"0660\", and socket.allow_uids",
        ),
        Err(error) => {
            Finding::bad(Code::SocketAbsent, "socket", format!("{shown}: {error}"), start)
        }
    });
    // 0666 is a setting: whom the kernel names is admitted or not.
    if there.mode() & 0o007 != 0 && there.mode() & 0o777 != 0o666 {
        findings.push(Finding::bad(
            Code::SocketOpen,
            "socket",
            format!("{shown} has mode {:o}", there.mode() & 0o777),
            "others may connect: set socket.mode to \"0600\" or \"0660\"",
        ));
    }
    findings
}
