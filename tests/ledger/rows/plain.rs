//! Ordinary answers over HTTP/1.1 and HTTP/2: what always held.

use pintle_tests::http;

use crate::row::Row;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("plain", 0, |site| async move {
            site.gets(20, "ok", 200).await;
            site.gets(4, "status/404", 404).await;
            site.gets(2, "status/500", 500).await;
            site.gets(4, "status/204", 204).await;
            site.gets(4, "status/304", 304).await;
            site.gets(4, "status/302", 302).await;
            site.gets(4, "trailers", 200).await;
        })
        .endpoints(2),
        Row::new("http2", 0, |site| async move {
            for act in ["ok", "trailers", "status/404", "status/500", "ok"] {
                site.sending();
                let request = site.request("GET", act);
                http::send_h2(site.tcp, request).await.expect("an answer");
            }
        }),
        Row::new("methods", 0, |site| async move {
            for method in ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND"] {
                let reply = site.send(site.request(method, "ok")).await;
                assert_eq!(reply.status, 200, "{method}");
            }
        }),
        Row::new("expect-continue", 0, |site| async move {
            site.sending();
            let head = "POST /ok HTTP/1.1\r\nhost: expect-continue\r\nexpect: 100-continue\r\n\
                        content-length: 4\r\nconnection: close\r\n\r\nbody";
            let said = http::raw(site.tcp, head.as_bytes(), crate::PATIENCE).await;
            let said = String::from_utf8_lossy(&said.expect("an answer")).into_owned();
            assert!(said.starts_with("HTTP/1.1 100") && said.contains("HTTP/1.1 200"), "{said}");
        }),
        Row::new("failing", 0, |site| async move {
            // Turns, but where a breaker is open.
            site.upstreams[1].always("status/503");
            for _ in 0..40 {
                site.get("ok").await;
            }
        })
        .endpoints(2)
        .configured(|config| {
            config.plugin(|plugin| {
                plugin["services"]["failing"] = serde_json::json!({
                "select": {"strategy": "round_robin", "panic_percent": 0}});
            })
        })
        .opens(&[1]),
    ]
}
