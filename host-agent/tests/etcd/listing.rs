//! etcd behind a front that lets its listings fail and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_tests::Etcd;
use tokio::net::{TcpListener, TcpStream};

use crate::put_many;
use crate::support::{Agent, key, secs, with_etcd};

type Body = Either<Incoming, Empty<Bytes>>;

/// Hands every request on to `etcd`, but for `Range` while `fails`.
async fn front(etcd: SocketAddr, fails: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, etcd, Arc::clone(&fails)));
        }
    });
    address
}

async fn connection(stream: TcpStream, etcd: SocketAddr, fails: Arc<AtomicBool>) {
    let upstream = TcpStream::connect(etcd).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(upstream));
    let (sender, link) = handshake.await.unwrap();
    tokio::spawn(link);
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut sender, fails) = (sender.clone(), Arc::clone(&fails));
        async move {
            if request.uri().path() == "/etcdserverpb.KV/Range" && fails.load(Ordering::Relaxed) {
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "14")
                    .header("grpc-message", "the disk is slow");
                return Ok(response.body(Body::Right(Empty::new())).unwrap());
            }
            sender.send_request(request).await.map(|response| response.map(Body::Left))
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // It ends with the agent.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

/// What is refused is longer than all that is accepted, and stands before it.
#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_the_budget_cost_themselves_and_are_taken_once_there_is_room() {
    let etcd = Etcd::start().await.unwrap();
    let mut client = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    for number in 0..40 {
        client.put(key("a", &format!("junk-{number}")), "x".repeat(60_000), None).await.unwrap();
    }
    // A transaction may be 1.5 MiB.
    for tenth in [0..10, 10..20, 20..30] {
        put_many(&etcd.url(), "orders", tenth, 60_000).await;
    }
    let mut config = with_etcd(vec![etcd.url()]);
    config.state.budget = 20 * 60_400;
    if let Some(etcd) = &mut config.etcd {
        etcd.reconcile = secs(1);
    }
    let agent = Agent::start(config);
    let refused = |a: &Agent, reason: &str| {
        a.snapshot().rejected.iter().filter(|it| it.reason == reason).count()
    };
    let all = |a: &Agent| (a.count(), refused(a, "json"), refused(a, "over_budget"));
    agent.until(secs(20), "twenty of thirty", |a| all(a) == (20, 40, 10)).await;
    put_many(&etcd.url(), "orders", 0..15, 0).await;
    agent.until(secs(20), "all", |a| all(a) == (30, 40, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_fails_leaves_the_watch_running_and_is_said_until_one_succeeds() {
    let etcd = Etcd::start().await.unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let address = etcd.url().trim_start_matches("http://").parse().unwrap();
    let front = front(address, Arc::clone(&fails)).await;
    put_many(&etcd.url(), "orders", 0..3, 0).await;
    let mut config = with_etcd(vec![format!("http://{front}")]);
    if let Some(etcd) = &mut config.etcd {
        // Three failures in a row, after which another connection is right, take six seconds.
        etcd.reconcile = secs(2);
    }
    let agent = Agent::start(config);
    agent.until(secs(20), "the first", |a| a.ids("orders").len() == 3).await;
    agent.watching().await;
    let warned = |a: &Agent| a.sources().etcd.warnings.contains_key("listing");
    fails.store(true, Ordering::Relaxed);
    agent.until(secs(20), "the failure, said", warned).await;
    let etcd_now = agent.sources().etcd;
    assert!(etcd_now.connected && etcd_now.connects == 1, "{etcd_now:?}");
    put_many(&etcd.url(), "orders", 3..4, 0).await;
    agent.until(secs(20), "the next, watched", |a| a.ids("orders").len() == 4).await;
    fails.store(false, Ordering::Relaxed);
    agent.until(secs(20), "listed again", |a| !warned(a)).await;
}
