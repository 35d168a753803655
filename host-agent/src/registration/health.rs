//! Health checks: HTTP, gRPC, TCP, with thresholds.
//!
//! One failed probe is noise and one good one may be luck, so health changes after so many in a
//! row. The very first probe decides alone, since there is nothing to doubt yet.

use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Endpoint;

use super::config::{Check, Instance};
use crate::words;

/// What a check has found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    healthy: Option<bool>,
    /// Probes in a row that said otherwise.
    against: u32,
}

impl Verdict {
    /// Takes a probe's result; the health that follows.
    pub(crate) const fn take(&mut self, good: bool, check: &Check) -> bool {
        let Some(healthy) = self.healthy else {
            self.healthy = Some(good);
            return good;
        };
        if good == healthy {
            self.against = 0;
            return healthy;
        }
        self.against = self.against.saturating_add(1);
        let needed = if healthy { check.unhealthy_after } else { check.healthy_after };
        if self.against >= needed {
            self.against = 0;
            self.healthy = Some(good);
            return good;
        }
        healthy
    }
}

/// Checks an instance until nobody listens any more. Nothing is said before the first probe is
/// over.
pub(crate) async fn watch_over(instance: Instance, health: watch::Sender<Option<bool>>) {
    let Some(check) = &instance.check else {
        health.send_replace(Some(true));
        health.closed().await;
        return;
    };
    let mut verdict = Verdict::default();
    let mut ticks = interval(check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = health.closed() => return,
        }
        let result = probe(&instance, check).await;
        let healthy = verdict.take(result.is_ok(), check);
        let changed = health.send_if_modified(|current| {
            let changed = *current != Some(healthy);
            *current = Some(healthy);
            changed
        });
        if changed {
            let (name, id) = (&instance.name, &instance.id);
            let why = result.err().map(|why| why.to_string()).unwrap_or_default();
            tracing::info!(service = %name, instance = %id, healthy, %why, "health changed");
        }
    }
}

/// Why an instance is not healthy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unhealthy {
    /// Nobody takes the connection.
    #[error("{0}")]
    Connect(#[from] std::io::Error),
    /// What answers does not speak HTTP/1.1.
    #[error("{}", words::of(.0))]
    Http(#[from] hyper::Error),
    /// The path can't be asked for.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The answer's status is not 2xx.
    #[error("status {0}")]
    Status(http::StatusCode),
    /// What answers does not speak HTTP/2.
    #[error("{}", words::of(.0))]
    Transport(#[from] tonic::transport::Error),
    /// The call of `grpc.health.v1.Health/Check` failed.
    #[error("{}", words::of_status(.0))]
    Call(#[from] Box<tonic::Status>),
    /// A serving status other than `SERVING`.
    #[error("its serving status is {}", serving(*.0))]
    NotServing(i32),
    /// No answer within the check's timeout.
    #[error("no answer in time")]
    Late,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
fn serving(status: i32) -> &'static str {
    match status {
        1 => "SERVING",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}

/// Asks once.
pub(crate) async fn probe(instance: &Instance, check: &Check) -> Result<(), Unhealthy> {
    let asked = async {
        if let Some(path) = &check.http {
            http(instance, path).await
        } else if let Some(service) = &check.grpc {
            grpc(instance, service, check.timeout).await
        } else {
            tcp(instance).await.map(drop)
        }
    };
    match timeout(check.timeout, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(Unhealthy::Late),
    }
}

async fn tcp(instance: &Instance) -> Result<TcpStream, Unhealthy> {
    Ok(TcpStream::connect((instance.address, instance.port)).await?)
}

async fn http(instance: &Instance, path: &str) -> Result<(), Unhealthy> {
    let stream = TokioIo::new(tcp(instance).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let at = std::net::SocketAddr::from((instance.address, instance.port));
    let request = http::Request::get(path)
        .header(http::header::HOST, at.to_string())
        .header(http::header::USER_AGENT, "pintle-health")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer?.status();
    if status.is_success() { Ok(()) } else { Err(Unhealthy::Status(status)) }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` in `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

async fn grpc(instance: &Instance, service: &str, wait: Duration) -> Result<(), Unhealthy> {
    let at = std::net::SocketAddr::from((instance.address, instance.port));
    let endpoint = Endpoint::from_shared(format!("http://{at}"))?.connect_timeout(wait);
    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = HealthCheckRequest { service: service.to_owned() };
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let asked = client.unary(tonic::Request::new(request), path, codec).await;
    let answer = asked.map_err(Box::new)?;
    match answer.into_inner().status {
        SERVING => Ok(()),
        other => Err(Unhealthy::NotServing(other)),
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::{header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    #[tokio::test]
    async fn a_good_answer_in_time_is_healthy_and_everything_else_says_why_not() {
        let server = MockServer::start().await;
        let late = ResponseTemplate::new(200).set_delay(Duration::from_secs(5));
        for (at, answer) in [
            ("/ok", ResponseTemplate::new(200)),
            ("/empty", ResponseTemplate::new(204)),
            ("/moved", ResponseTemplate::new(301).insert_header("location", "/ok")),
            ("/broken", ResponseTemplate::new(500)),
            ("/late", late),
        ] {
            Mock::given(method("GET"))
                .and(path(at))
                .and(header("user-agent", "pintle-health"))
                .respond_with(answer)
                .mount(&server)
                .await;
        }
        for (at, expect) in [
            ("/ok", Ok(())),
            ("/empty", Ok(())),
            ("/moved", Err("status 301 Moved Permanently")),
            ("/absent", Err("status 404 Not Found")),
            ("/broken", Err("status 500 Internal Server Error")),
            ("/late", Err("no answer in time")),
        ] {
            let timeout = if at == "/late" { "300ms" } else { "10s" };
            let check = serde_json::json!({"http": at, "timeout": timeout});
            let instance: Instance = pintle_settings::read(
                "instance",
                serde_json::json!({
                    "name": "orders", "id": "1", "address": "127.0.0.1",
                    "port": server.address().port(), "check": check,
                }),
            )
            .unwrap();
            let check = instance.check.clone().unwrap();
            let found = probe(&instance, &check).await.map_err(|why| why.to_string());
            assert_eq!(found, expect.map_err(str::to_owned), "{at}");
        }
    }

    #[test]
    fn health_changes_after_so_many_in_a_row_and_the_first_decides_alone() {
        let check: Check = pintle_settings::read(
            "check",
            serde_json::json!({
                "tcp": true, "unhealthy_after": 3, "healthy_after": 2
            }),
        )
        .unwrap();
        let mut verdict = Verdict::default();
        let table = [
            (true, true),
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (row, (good, expect)) in table.into_iter().enumerate() {
            assert_eq!(verdict.take(good, &check), expect, "row {row}");
        }
        assert!(!Verdict::default().take(false, &check));
    }
}
