//! gRPC by tonic: unary calls, streams of both directions, statuses in every place.

use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::PathAndQuery;
use pintle_tests::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::config::{http2, retry};
use crate::row::{Row, Site};

/// Every status that a server may send, and one that is not a server's fault in between.
const STATUSES: [i32; 9] = [0, 2, 0, 5, 8, 12, 13, 14, 16];

pub fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new("grpc-headers", 20, |site| async move {
            // Status 0 without a message is a client's error.
            for status in STATUSES.into_iter().filter(|status| *status > 0) {
                assert_eq!(unary(&site, &format!("grpc/{status}")).await, Code::from(status));
            }
        }),
        Row::new("grpc-trailers", 20, |site| async move {
            for status in STATUSES {
                let act = format!("grpc/trailers/{status}");
                assert_eq!(unary(&site, &act).await, Code::from(status));
            }
        }),
        Row::new("grpc-unavailable", 20, |site| async move {
            for _ in 0..6 {
                assert_eq!(unary(&site, "grpc/trailers/14").await, Code::Unavailable);
            }
        })
        .opens(&[0]),
        // What answers does not speak gRPC; without a status it is a failure, as by status 2.
        Row::new("grpc-page", 20, |site| async move {
            for _ in 0..6 {
                assert_ne!(unary(&site, "page").await, Code::Ok);
            }
        })
        .failed(|_| true)
        .opens(&[0]),
        Row::new("grpc-stream", 2, |site| async move {
            let mut client = client(&site).await;
            let path = PathAndQuery::from_static("/grpc/stream/2000");
            let codec = ProstCodec::<String, String>::default();
            let answer = client.server_streaming(Request::new(String::new()), path, codec).await;
            let mut messages = answer.expect("a stream").into_inner();
            let mut count = 0;
            while messages.message().await.expect("messages").is_some() {
                count += 1;
            }
            assert_eq!(count, 20);
        }),
        Row::new("grpc-stream-left", 2, |site| async move {
            let mut client = client(&site).await;
            let path = PathAndQuery::from_static("/grpc/stream/8000");
            let codec = ProstCodec::<String, String>::default();
            let answer = client.server_streaming(Request::new(String::new()), path, codec).await;
            let mut messages = answer.expect("a stream").into_inner();
            for _ in 0..5 {
                assert!(messages.message().await.expect("a message").is_some());
            }
            drop(messages);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }),
        Row::new("grpc-bidi", 2, |site| async move {
            let mut client = client(&site).await;
            let path = PathAndQuery::from_static("/grpc/echo");
            let codec = ProstCodec::<String, String>::default();
            let words = futures::stream::iter(["one", "two", "three"].map(String::from));
            let answer = client.streaming(Request::new(words), path, codec).await;
            let mut messages = answer.expect("a stream").into_inner();
            let mut said = Vec::new();
            while let Some(word) = messages.message().await.expect("a message") {
                said.push(word);
            }
            assert_eq!(said, ["one", "two", "three"]);
        }),
        // Each client gives up at its deadline, which the endpoint does not keep.
        Row::new("grpc-deadline-client", 24, |site| async move {
            for _ in 0..10 {
                let deadline = async {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    site.arrived().await;
                };
                tokio::select! {
                    biased;
                    status = patient(&site, "hang", "30m") => panic!("{status:?}"),
                    () = deadline => {}
                }
            }
        }),
        // The endpoint gives up when its client does, and the client waits to hear it.
        Row::new("grpc-deadline-server", 24, |site| async move {
            for _ in 0..10 {
                assert_eq!(patient(&site, "grpc/deadline", "30m").await, Some(4));
            }
        })
        .failed(|_| false),
        // Its own time-out, long before the client's.
        Row::new("grpc-own-deadline", 24, |site| async move {
            for _ in 0..6 {
                assert_eq!(patient(&site, "grpc/4", "5000m").await, Some(4));
            }
        })
        .opens(&[0]),
        Row::new("grpc-retried-out", 20, |site| async move {
            for _ in 0..2 {
                assert_eq!(unary(&site, "grpc/14").await, Code::Unavailable);
            }
        })
        .endpoints(2)
        .configured(|mut config| {
            retry(&mut config, "grpc-retried-out", "unavailable", 1, &serde_json::Value::Null);
            config
        }),
        // Status and message are in the body, and nothing of it in the headers.
        Row::new("grpc-web", 20, |site| async move {
            for _ in 0..8 {
                let mut request = site.request("POST", "ok");
                let kind = "application/grpc-web+proto".parse().expect("a value");
                request.headers_mut().insert("content-type", kind);
                assert_eq!(site.send(request).await.status, 200);
            }
        }),
    ];
    for row in &mut rows {
        let name = row.name;
        if name == "grpc-web" {
            continue;
        }
        let configure = std::mem::replace(&mut row.configure, Box::new(|config, _| config));
        row.configure =
            Box::new(move |config, upstreams| http2(configure(config, upstreams), name));
    }
    rows
}

async fn client(site: &Site) -> tonic::client::Grpc<Channel> {
    let origin: Uri = format!("http://{}", site.name).parse().expect("a name");
    let endpoint = Endpoint::from_shared(format!("http://{}", site.tcp)).expect("an address");
    let channel = endpoint.origin(origin).connect().await.expect("Envoy accepts");
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("a channel");
    site.sending();
    client
}

async fn unary(site: &Site, act: &str) -> Code {
    let mut client = client(site).await;
    let path = format!("/{act}").parse().expect("a path");
    let codec = ProstCodec::<String, String>::default();
    let answer = client.unary(Request::new(String::new()), path, codec).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// A call whose client says when it would leave, and stays; the status.
async fn patient(site: &Site, act: &str, limit: &str) -> Option<u32> {
    let mut request = site.request("POST", act);
    for (name, value) in
        [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", limit)]
    {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    site.sending();
    let reply = http::send_h2(site.tcp, request).await.expect("an answer");
    let status = reply.headers.get("grpc-status").or(reply.trailers.get("grpc-status"));
    status.and_then(|status| status.to_str().ok()?.parse().ok())
}
