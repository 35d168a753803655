//! The way of a request: maps, pairs, properties, replies, logs.

use std::time::Duration;

use pintle_harness::{Action, Envoy, Headers, LogLevel, Outcome, RequestBuilder, Status};

use crate::guest::{module, note};

fn get() -> RequestBuilder {
    RequestBuilder::get("svc", "/")
}

/// Reads all request headers and writes them back as they are.
const ECHO: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «get» (call $get_pairs (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $note «set» (call $set_pairs (i32.const 0) (i32.load (i32.const 0)) (i32.load (i32.const 4))))
    (i32.const 0))
(func (export "proxy_on_log") (param i32)
    (call $note «log» (call $get_pairs (i32.const 0) (i32.const 0) (i32.const 4)))
    (call $note «late» (call $set_pairs (i32.const 0) (i32.load (i32.const 0)) (i32.load (i32.const 4)))))
"#;

#[test]
fn pairs_carry_duplicates_order_and_any_bytes() {
    let mut envoy = Envoy::builder(&module(ECHO)).build().unwrap();
    let sent = get().header("X-A", [0xff, 0x80]).header("empty", "").header("x-a", "second");
    let request = envoy.worker(0).request(&sent);
    let expected = Headers::from([
        (":method", b"GET".to_vec()),
        (":scheme", b"http".to_vec()),
        (":authority", b"svc".to_vec()),
        (":path", b"/".to_vec()),
        ("x-a", vec![0xff, 0x80]),
        ("empty", vec![]),
        ("x-a", b"second".to_vec()),
    ]);
    assert_eq!(*request.headers(), expected);
    assert_eq!(request.route_cache_clears(), 1);
    envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    assert_eq!((note(&envoy, "get"), note(&envoy, "set"), note(&envoy, "log")), (0, 0, 0));
    assert_eq!(note(&envoy, "late"), 2, "nothing can be written in on_log");
}

/// Tries the request's headers in every callback.
const REACH: &str = r#"
(func $try (param $name i32) (param $len i32)
    (call $note (local.get $name) (local.get $len)
        (call $get_header (i32.const 0) «:path» (i32.const 0) (i32.const 4))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $try «request») (i32.const 0))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $try «response»)
    (call $note «pairs» (call $get_pairs (i32.const 0) (i32.const 8) (i32.const 12)))
    (call $note «bytes» (i32.load (i32.const 12)))
    (call $note «status» (call $get_header (i32.const 2) «:status» (i32.const 0) (i32.const 4)))
    (call $note «absent» (call $get_header (i32.const 2) «nope» (i32.const 0) (i32.const 4)))
    (call $note «map 8» (call $get_header (i32.const 8) «nope» (i32.const 0) (i32.const 4)))
    (drop (call $add_header (i32.const 2) «x-seen» «yes»))
    (i32.const 0))
(func (export "proxy_on_log") (param i32) (call $try «log»))
(func (export "proxy_on_done") (param i32) (result i32) (call $try «done») (i32.const 1))
(func (export "proxy_on_delete") (param i32) (call $try «delete»))
(func (export "proxy_on_configure") (param i32 i32) (result i32) (call $try «root») (i32.const 1))
"#;

#[test]
fn request_headers_are_in_reach_in_request_callbacks_and_the_log_only() {
    let mut envoy = Envoy::builder(&module(REACH)).build().unwrap();
    let request = envoy.worker(0).request(get());
    let response = envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    let rows = [
        ("root", 2),
        ("request", 0),
        ("response", 2),
        ("pairs", 0),
        ("bytes", 0),
        ("status", 0),
        ("absent", 1),
        ("map 8", 2),
        ("log", 0),
        ("done", 2),
        ("delete", 2),
    ];
    for (name, expected) in rows {
        assert_eq!(note(&envoy, name), expected, "{name}");
    }
    assert_eq!(response.headers.text("x-seen").as_deref(), Some("yes"));
}

/// Reads a property whose path the request's `p` header names, into its status, size and first 8
/// bytes.
const PROPERTY: &str = r#"
(func $read
    (i32.store (i32.const 4) (i32.const 0))
    (if (i32.eqz (call $get_header (i32.const 0) «p» (i32.const 16) (i32.const 20)))
        (then (call $note «status» (call $get_property
                  (i32.load (i32.const 16)) (i32.load (i32.const 20)) (i32.const 0) (i32.const 4)))))
    (call $note «size» (i32.load (i32.const 4)))
    (if (i32.load (i32.const 4))
        (then (call $note «number» (i32.load (i32.load (i32.const 0)))))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «set» (call $set_property «mark» «1234»))
    (call $note «set long» (call $set_property «a\00b» «1234»))
    (call $read) (i32.const 0))
(func (export "proxy_on_log") (param i32) (call $read))
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (call $note «root set» (call $set_property «mark» «1234»))
    (call $note «root node» (call $get_property «node\00id» (i32.const 0) (i32.const 4)))
    (call $note «root path» (call $get_property «request\00path» (i32.const 0) (i32.const 4)))
    (i32.const 1))
"#;

#[test]
fn properties_are_typed_bytes() {
    let mut envoy = Envoy::builder(&module(PROPERTY))
        .property(&["node", "id"], "n")
        .property(&["xds", "cluster_name"], "cluster")
        .build()
        .unwrap();
    assert_eq!(note(&envoy, "root set"), 1, "no request, no filter state");
    assert_eq!((note(&envoy, "root node"), note(&envoy, "root path")), (0, 1));
    // Path, then status, size and number in on_log.
    let rows: [(&str, i64, i64, i64); 12] = [
        ("response\0code", 0, 8, 503),
        ("response\0flags", 0, 8, 32),
        ("response\0grpc_status", 0, 8, 14),
        ("upstream\0request_attempt_count", 0, 8, 3),
        ("upstream\0address", 0, 9, i64::from(i32::from_le_bytes(*b"10.0"))),
        ("request\0duration", 0, 8, 7_000_000),
        ("xds\0cluster_name", 0, 7, i64::from(i32::from_le_bytes(*b"clus"))),
        ("mark", 0, 4, i64::from(i32::from_le_bytes(*b"1234"))),
        ("filter_state\0wasm.mark", 0, 4, i64::from(i32::from_le_bytes(*b"1234"))),
        ("a\0b", 1, 0, 0),
        ("wasm\0mark", 1, 0, 0),
        ("response\0backend_latency", 1, 0, 0),
    ];
    for (path, status, size, number) in rows {
        let request = envoy.worker(0).request(get().header("p", path));
        envoy.metrics().set_gauge("number", 0);
        envoy.advance(Duration::from_millis(7));
        envoy.finish(request.clone(), Outcome::refused("10.0.0.1:").attempts(3));
        let noted = (note(&envoy, "status"), note(&envoy, "size"), note(&envoy, "number"));
        assert_eq!(noted, (status, size, number), "{path:?}");
        assert_eq!(request.filter_state_names(), ["wasm.a\0b", "wasm.mark"]);
    }
    envoy.worker(0).request(get().header("p", "upstream\0request_attempt_count"));
    assert_eq!((note(&envoy, "size"), note(&envoy, "number")), (8, 0), "0 before the router");
    envoy.worker(0).request(get().header("p", "response\0code"));
    assert_eq!(note(&envoy, "status"), 1, "no code before a response");
}

/// `set_envoy_filter_state` with the request's `args` header, read from on_request_headers.
const FOREIGN: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $get_header (i32.const 0) «args» (i32.const 0) (i32.const 4)))
    (call $note «status» (call $foreign «set_envoy_filter_state»
        (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 0) (i32.const 0)))
    (call $note «unknown» (call $foreign «nope» «» (i32.const 0) (i32.const 0)))
    (i32.const 0))
"#;

#[test]
fn filter_state_takes_registered_names_and_valid_values() {
    const ADDRESS: &str = "envoy.network.transport_socket.original_dst_address";
    let mut envoy = Envoy::builder(&module(FOREIGN)).build().unwrap();
    let arguments = |name: &str, value: &str| {
        let mut bytes = vec![0x0a, name.len() as u8];
        bytes.extend(name.as_bytes());
        bytes.extend([0x12, value.len() as u8]);
        bytes.extend(value.as_bytes());
        bytes.extend([0x18, 0]);
        bytes
    };
    let rows = [
        (arguments(ADDRESS, "127.0.0.1:80"), Status::Ok),
        (arguments(ADDRESS, "localhost:80"), Status::BadArgument),
        (arguments("envoy.string", "anything"), Status::Ok),
        (
            arguments("envoy.load_balancing_policies.override_host.filter_state", "127.0.0.1:80"),
            Status::NotFound,
        ),
        (vec![0x0a, 9, 1], Status::BadArgument),
    ];
    for (bytes, expected) in rows {
        let request = envoy.worker(0).request(get().header("args", &bytes));
        assert_eq!(note(&envoy, "status"), i64::from(expected.code()), "{bytes:?}");
        assert_eq!(request.filter_state_names().len(), usize::from(expected == Status::Ok));
    }
    assert_eq!(note(&envoy, "unknown"), 1);
    let request = envoy.worker(0).request(get().header("args", arguments(ADDRESS, "[::1]:80")));
    assert_eq!(request.filter_state(ADDRESS).as_deref(), Some(&b"[::1]:80"[..]));
}

/// Answers twice, which only the first time does anything.
const REPLY: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $reply (i32.const 503) «no_endpoint» «sorry»
        «\01\00\00\00\01\00\00\00\01\00\00\00x\00y\00» (i32.const -1)))
    (call $note «again» (call $reply (i32.const 500) «» «» «» (i32.const -1)))
    (i32.const 0))
"#;

#[test]
fn a_local_reply_stops_the_request_and_is_the_response() {
    let mut envoy = Envoy::builder(&module(REPLY)).build().unwrap();
    let request = envoy.worker(0).request(get());
    assert_eq!(request.action(), Action::Pause, "whatever the callback returned");
    let reply = request.local_reply().unwrap();
    assert_eq!((reply.status, reply.details.as_str()), (503, "no_endpoint"));
    let response = envoy.finish(request, Outcome::ok("not asked"));
    assert_eq!((response.status, response.body.as_slice()), (Some(503), &b"sorry"[..]));
    assert_eq!(response.headers.text("x").as_deref(), Some("y"));
    assert_eq!(note(&envoy, "again"), 0);
    assert_eq!(envoy.violations().len(), 1, "a second reply crashes a real Envoy");
}

#[test]
fn a_local_reply_after_the_response_is_on_record() {
    let guest = module(
        r#"(func (export "proxy_on_log") (param i32)
            (drop (call $reply (i32.const 500) «» «» «» (i32.const -1))))"#,
    );
    let mut envoy = Envoy::builder(&guest).build().unwrap();
    let request = envoy.worker(0).request(get());
    assert_eq!(envoy.finish(request.clone(), Outcome::ok("10.0.0.1:80")).status, Some(200));
    assert_eq!((request.local_reply(), envoy.violations().len()), (None, 1));
}

#[test]
fn a_grpc_client_gets_a_local_reply_as_a_status() {
    let mut envoy = Envoy::builder(&module(REPLY)).build().unwrap();
    let request = envoy.worker(0).request(RequestBuilder::grpc("svc", "/a.B/C"));
    let response = envoy.finish(request, Outcome::default());
    assert_eq!(response.status, Some(200));
    assert_eq!(response.headers.text("grpc-status").as_deref(), Some("14"));
    assert_eq!(response.headers.text("grpc-message").as_deref(), Some("sorry"));
}

/// Waits in the request's headers; the tick lets context 2 go on.
const PAUSE: &str = r#"
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $set_tick (i32.const 10))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
(func (export "proxy_on_tick") (param i32)
    (call $note «effective» (call $set_effective (i32.const 2)))
    (call $note «path» (call $get_header (i32.const 0) «:path» (i32.const 0) (i32.const 4)))
    (drop (call $replace_header (i32.const 0) «x-late» «1»))
    (call $note «continue» (call $continue (i32.const 0)))
    (call $note «after» (call $get_header (i32.const 0) «:path» (i32.const 0) (i32.const 4))))
"#;

#[test]
fn a_paused_request_goes_on_when_the_filter_says_so() {
    // The main thread's VM ticks first and has no context 2; the worker's notes are the last.
    let mut envoy = Envoy::builder(&module(PAUSE)).build().unwrap();
    let request = envoy.worker(0).request(get());
    assert_eq!(request.action(), Action::Pause);
    envoy.advance(Duration::from_millis(10));
    assert_eq!(request.action(), Action::Continue);
    assert_eq!(request.header("x-late").as_deref(), Some("1"));
    assert_eq!((note(&envoy, "effective"), note(&envoy, "path")), (0, 0));
    assert_eq!(note(&envoy, "after"), 2, "the headers have gone on");
}

/// Writes the order of its callbacks.
const ORDER: &str = r#"
(func $say (param $at i32) (param $len i32)
    (drop (call $log (i32.const 2) (local.get $at) (local.get $len))))
(func (export "proxy_on_context_create") (param i32 i32) (if (local.get 1) (then (call $say «create»))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $say «request») (i32.const 0))
(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $say «response») (i32.const 0))
(func (export "proxy_on_response_trailers") (param i32 i32) (result i32)
    (call $say «trailers») (i32.const 0))
(func (export "proxy_on_log") (param i32)
    (if (i32.eq (local.get 0) (i32.const 2)) (then (call $say «access log»)) (else (call $say «log»))))
(func (export "proxy_on_done") (param i32) (result i32) (call $say «done») (i32.const 1))
(func (export "proxy_on_delete") (param i32) (call $say «delete»))
"#;

fn order(envoy: &mut Envoy) -> Vec<String> {
    let lines = envoy.logs().into_iter().map(|l| l.message).collect();
    envoy.clear_logs();
    lines
}

#[test]
fn callbacks_come_in_envoys_order() {
    let mut envoy = Envoy::builder(&module(ORDER)).access_logger("").build().unwrap();
    envoy.clear_logs();
    let request = envoy.worker(0).request(get());
    envoy.log_attempt(&request, Outcome::status(503, "10.0.0.1:80"));
    envoy.finish(request.clone(), Outcome::grpc(0, "10.0.0.2:80").attempts(2));
    let expected = [
        "create",
        "request",
        "access log",
        "response",
        "trailers",
        "log",
        "access log",
        "done",
        "delete",
    ];
    assert_eq!(order(&mut envoy), expected);
    envoy.finish(request, Outcome::ok("10.0.0.2:80"));
    assert!(order(&mut envoy).is_empty(), "a request ends once");

    let request = envoy.worker(0).request(get());
    envoy.finish(request, Outcome::client_gone("10.0.0.1:80"));
    let expected = ["create", "request", "log", "access log", "done", "delete"];
    assert_eq!(order(&mut envoy), expected, "no response, no response callbacks");

    envoy.worker(0).reject(Outcome::headers_too_large());
    let expected = ["create", "log", "access log", "done", "delete"];
    assert_eq!(order(&mut envoy), expected, "refused before the filters");
    assert_eq!(envoy.logged(LogLevel::Warn, ""), 0);
}

#[test]
fn an_update_of_the_configuration_keeps_the_vm() {
    let mut envoy = Envoy::builder(&module(ORDER)).workers(1).build().unwrap();
    let created = envoy.stats().created;
    envoy.clear_logs();
    envoy.reconfigure("new").unwrap();
    assert_eq!(
        order(&mut envoy),
        ["done", "delete", "done", "delete"],
        "old roots, main and worker"
    );
    assert_eq!(envoy.stats().created, created + 1, "a canary and nothing else");
    let request = envoy.worker(0).request(get());
    assert!(request.continues());
}
