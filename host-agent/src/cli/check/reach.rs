//! What is asked itself: etcd, NATS and the socket.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::finding::{Code, Finding};
use super::prefixes;
use crate::events::{Events, NatsError};
use crate::source::{EtcdConfig, NatsConfig};

const WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn etcd(config: &EtcdConfig) -> Vec<Finding> {
    let todo = "start etcd, or name its members by --etcd or etcd.endpoints; with TLS or users, \
                see etcd.tls, etcd.user and etcd.password";
    let mut away = Vec::new();
    let ask =
        |member| async move { (member, timeout(WITHIN, prefixes::look(config, member)).await) };
    // Side by side, and in their order.
    let mut answers: FuturesOrdered<_> = (0..config.endpoints.len()).map(ask).collect();
    while let Some((member, answer)) = answers.next().await {
        let why = match answer {
            Ok(Ok(findings)) => return findings,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 5 s".to_owned(),
        };
        away.push(format!("{}: {why}", config.member(member)));
    }
    vec![Finding::bad(Code::EtcdAway, "etcd", away.join("; "), todo)]
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

/// Whether the server answers the beginning of HTTP/2 with a frame of SETTINGS, as it must first
/// (RFC 9113, 3.4).
///
/// # Errors
/// It ends the connection.
async fn greeted(mut stream: UnixStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS: u8 = 4;
    stream.write_all(PREFACE).await?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    Ok(head.get(3) == Some(&SETTINGS))
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
        Ok(stream) => match timeout(WITHIN, greeted(stream)).await {
            Ok(Ok(true)) => Finding::good("socket", format!("{shown} accepts and answers")),
            Ok(Ok(false)) => {
                let detail = format!("what answers at {shown} does not speak gRPC");
                Finding::bad(Code::SocketAbsent, "socket", detail, start)
            }
            Ok(Err(_)) => Finding::bad(
                Code::SocketRefuses,
                "socket",
                format!("{shown} hangs up on this user"),
                "for a proxy's user that is a number, or a range of them, in socket.allow_uids; the \
                 agent's log says who was refused",
            ),
            Err(_) => {
                let detail = format!("{shown} accepts, and no answer comes within 5 s");
                let todo = "the agent behind it is stopped or hangs: restart it";
                Finding::bad(Code::SocketAbsent, "socket", detail, todo)
            }
        },
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
