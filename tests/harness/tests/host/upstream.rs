//! The test as a server: gRPC streams, unary gRPC, HTTP.

use std::time::Duration;

use pintle_harness::{Envoy, FailurePolicy, Headers, RequestBuilder, Status, Thread};

use crate::guest::{module, note};

fn get() -> RequestBuilder {
    RequestBuilder::get("svc", "/")
}

fn tick(envoy: &mut Envoy) {
    envoy.advance(Duration::from_millis(10));
}

/// Opens a stream from the first tick, greets, and sends back what it gets.
const STREAM: &str = r#"
(global $token (mut i32) (i32.const 0))
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $set_tick (i32.const 10))))
(func (export "proxy_on_tick") (param i32)
    (if (i32.eqz (global.get $token)) (then
        (call $note «open» (call $grpc_stream «agent» «a.Sync» «Watch»
            «\01\00\00\00\01\00\00\00\01\00\00\00k\00v\00» (i32.const 0)))
        (global.set $token (i32.load (i32.const 0)))
        (call $note «hello» (call $grpc_send (global.get $token) «hello» (i32.const 0))))))
(func (export "proxy_on_grpc_receive_initial_metadata") (param i32 i32 i32)
    (call $note «initial» (local.get 2)))
(func (export "proxy_on_grpc_receive") (param i32 i32 i32)
    (drop (call $get_buffer (i32.const 5) (i32.const 0) (local.get 2) (i32.const 0) (i32.const 4)))
    (drop (call $grpc_send (local.get 1) (i32.load (i32.const 0)) (i32.load (i32.const 4)) (i32.const 0))))
(func (export "proxy_on_grpc_receive_trailing_metadata") (param i32 i32 i32)
    (call $note «trailing» (local.get 2)))
(func (export "proxy_on_grpc_close") (param i32 i32 i32)
    (call $note «close» (local.get 2))
    (drop (call $get_status (i32.const 0) (i32.const 4) (i32.const 8)))
    (drop (call $log (i32.const 3) (i32.load (i32.const 4)) (i32.load (i32.const 8))))
    (global.set $token (i32.const 0)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «from request» (call $grpc_send (global.get $token) «report» (i32.const 0)))
    (i32.const 0))
"#;

#[test]
fn a_stream_carries_messages_both_ways() {
    let mut envoy = Envoy::builder(&module(STREAM)).workers(1).cluster("agent").build().unwrap();
    let agent = envoy.cluster("agent");
    assert!(agent.accept().is_none(), "the canary and a configured VM open nothing by themselves");
    tick(&mut envoy);
    let (main, worker) = (agent.accept().unwrap(), agent.accept().unwrap());
    assert_eq!((main.thread(), worker.thread()), (Thread::Main, Thread::Worker(0)));
    assert_eq!((worker.service(), worker.method()), ("a.Sync".into(), "Watch".into()));
    assert_eq!(worker.metadata(), Headers::from([("k", "v")]));
    assert_eq!(worker.recv().as_deref(), Some(&b"hello"[..]));
    assert!(worker.send("one") && worker.send("two"));
    envoy.settle();
    assert_eq!(note(&envoy, "initial"), 2);
    assert_eq!(worker.recv().as_deref(), Some(&b"one"[..]));
    assert_eq!(worker.recv().as_deref(), Some(&b"two"[..]));
    envoy.worker(0).request(get());
    assert_eq!(note(&envoy, "from request"), 0, "a request's context may use the root's stream");
    assert_eq!(worker.recv().as_deref(), Some(&b"report"[..]));
    main.close(7, "nope");
    envoy.settle();
    assert_eq!(note(&envoy, "close"), 7);
    assert_eq!(envoy.logs().last().unwrap().message, "nope{via_upstream}");
    assert!(worker.is_open() && !main.is_open());
}

#[test]
fn a_server_that_is_down_lets_a_stream_open_and_fail() {
    let mut envoy =
        Envoy::builder(&module(STREAM)).workers(0).cluster_down("agent").build().unwrap();
    let agent = envoy.cluster("agent");
    tick(&mut envoy);
    assert_eq!(note(&envoy, "open"), 0);
    assert_eq!(
        (note(&envoy, "initial"), note(&envoy, "trailing"), note(&envoy, "close")),
        (0, 4, 14)
    );
    assert!(agent.accept().is_none());
    agent.up();
    tick(&mut envoy);
    let stream = agent.accept().unwrap();
    stream.send("x");
    envoy.settle();
    agent.down();
    envoy.settle();
    assert_eq!((note(&envoy, "trailing"), note(&envoy, "close")), (0, 13), "died after an answer");
    assert_eq!(agent.opened(), 2);
    assert_eq!(agent.active(), 0);
    assert!(!stream.send("late"));
}

#[test]
fn a_missing_cluster_is_a_parse_failure() {
    let mut envoy = Envoy::builder(&module(STREAM)).build().unwrap();
    tick(&mut envoy);
    assert_eq!(note(&envoy, "open"), i64::from(Status::ParseFailure.code()));
}

#[test]
fn the_stream_of_a_dead_vm_stays_open_until_the_vm_is_replaced() {
    let mut envoy = Envoy::builder(&module(STREAM))
        .cluster("agent")
        .failure_policy(FailurePolicy::Reload(Duration::from_secs(1)))
        .build()
        .unwrap();
    tick(&mut envoy);
    let agent = envoy.cluster("agent");
    let (main, worker) = (agent.accept().unwrap(), agent.accept().unwrap());
    envoy.kill_vm(Thread::Worker(0));
    envoy.advance(Duration::from_secs(2));
    assert!(worker.is_open(), "nobody told the server");
    worker.send("into the void");
    envoy.settle();
    envoy.worker(0).request(get());
    assert!(worker.cancelled() && !main.cancelled());
}

#[test]
fn a_configuration_update_ends_the_old_roots_streams() {
    let mut envoy = Envoy::builder(&module(STREAM)).workers(0).cluster("agent").build().unwrap();
    tick(&mut envoy);
    let old = envoy.cluster("agent").accept().unwrap();
    envoy.reconfigure("new").unwrap();
    assert!(old.cancelled());
}

#[test]
fn a_stream_opened_in_the_close_callback_is_on_record() {
    let guest = module(
        r#"(func $open (drop (call $grpc_stream «agent» «s» «m» «» (i32.const 0))))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $open) (i32.const 1))
        (func (export "proxy_on_grpc_close") (param i32 i32 i32) (call $open))"#,
    );
    let mut envoy = Envoy::builder(&guest).workers(0).cluster_down("agent").build().unwrap();
    let delivered = envoy.settle();
    assert_eq!(delivered, 100_000, "a hot loop, cut");
    assert!(envoy.violations().iter().any(|v| v.contains("proxy_on_grpc_close opened")));
    assert!(envoy.violations().iter().any(|v| v.contains("event storm")));
}

#[test]
fn what_the_canary_opened_is_cancelled() {
    let guest = module(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $grpc_stream «agent» «s» «m» «» (i32.const 0))))"#,
    );
    let envoy = Envoy::builder(&guest).workers(0).cluster("agent").build().unwrap();
    let agent = envoy.cluster("agent");
    let (canary, main) = (agent.accept().unwrap(), agent.accept().unwrap());
    assert_eq!((canary.thread(), canary.cancelled()), (Thread::Canary, true));
    assert_eq!((main.thread(), main.cancelled()), (Thread::Main, false));
}

/// Makes a unary call with a timeout of 100 ms from each request, and notes what comes of it.
const UNARY: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «call» (call $grpc_call «otlp» «o.Trace» «Export» «» «spans» (i32.const 100) (i32.const 0)))
    (call $note «token» (i32.load (i32.const 0)))
    (i32.const 0))
(func (export "proxy_on_grpc_receive") (param i32 i32 i32) (call $note «received» (local.get 2)))
(func (export "proxy_on_grpc_close") (param i32 i32 i32) (call $note «close» (local.get 2)))
"#;

#[test]
fn a_unary_call_is_answered_fails_or_times_out() {
    let mut envoy = Envoy::builder(&module(UNARY)).cluster("otlp").build().unwrap();
    let otlp = envoy.cluster("otlp");
    envoy.worker(0).request(get());
    let call = otlp.next_call().unwrap();
    assert_eq!((call.method(), call.message()), ("Export".into(), b"spans".to_vec()));
    assert_eq!(call.timeout(), Some(Duration::from_millis(100)));
    call.reply("thanks");
    envoy.settle();
    assert_eq!(note(&envoy, "received"), 6);
    assert_eq!(envoy.metrics().gauge("close"), None, "an answer needs no close");
    assert_eq!(note(&envoy, "token") % 2, 1);

    envoy.worker(0).request(get());
    otlp.next_call().unwrap().fail(8, "full");
    envoy.settle();
    assert_eq!(note(&envoy, "close"), 8);

    envoy.worker(0).request(get());
    let late = otlp.next_call().unwrap();
    envoy.advance(Duration::from_millis(100));
    assert_eq!(note(&envoy, "close"), 14);
    assert!(!late.is_open());

    otlp.max_requests(1);
    envoy.worker(0).request(get());
    assert_eq!(note(&envoy, "call"), 0);
    envoy.worker(0).request(get());
    assert_eq!(note(&envoy, "call"), i64::from(Status::InternalFailure.code()));
    assert_eq!(otlp.active(), 1);
}

/// An HTTP call to the cluster that the request's `to` header names.
const HTTP: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $get_header (i32.const 0) «to» (i32.const 0) (i32.const 4)))
    (call $note «call» (call $http_call (i32.load (i32.const 0)) (i32.load (i32.const 4))
        «\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\02\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/x\00:authority\00a\00»
        «body» «» (i32.const 50) (i32.const 8)))
    (call $note «short» (call $http_call (i32.load (i32.const 0)) (i32.load (i32.const 4))
        «\00\00\00\00» «body» «» (i32.const 50) (i32.const 8)))
    (i32.const 0))
(func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
    (call $note «headers» (local.get 2))
    (call $note «body» (local.get 3))
    (call $note «status» (call $get_header (i32.const 6) «:status» (i32.const 0) (i32.const 4)))
    (if (i32.eqz (call $get_header (i32.const 6) «:status» (i32.const 0) (i32.const 4)))
        (then (call $note «digits» (i32.load (i32.load (i32.const 0)))))))
"#;

#[test]
fn an_http_call_is_answered_broken_or_replied_to_by_envoy() {
    let digits = |envoy: &Envoy| (note(envoy, "digits") as u32 & 0xff_ffff).to_le_bytes();
    let mut envoy =
        Envoy::builder(&module(HTTP)).cluster("web").cluster_down("gone").build().unwrap();
    let web = envoy.cluster("web");
    envoy.worker(0).request(get().header("to", "nowhere"));
    assert_eq!(note(&envoy, "call"), 2, "no such cluster");
    envoy.worker(0).request(get().header("to", "web"));
    assert_eq!((note(&envoy, "call"), note(&envoy, "short")), (0, 2));
    let call = web.next_http_call().unwrap();
    assert_eq!(call.headers().text(":path").as_deref(), Some("/x"));
    assert_eq!(call.body(), b"body");
    call.reply(200, [("etag", "1")], "hello");
    envoy.settle();
    assert_eq!((note(&envoy, "headers"), note(&envoy, "body")), (2, 5));
    assert_eq!(&digits(&envoy)[..3], b"200");

    envoy.worker(0).request(get().header("to", "web"));
    web.next_http_call().unwrap().reset();
    envoy.settle();
    assert_eq!((note(&envoy, "headers"), note(&envoy, "status")), (0, 2), "no headers to read");

    envoy.worker(0).request(get().header("to", "web"));
    envoy.advance(Duration::from_millis(50));
    assert_eq!(&digits(&envoy)[..3], b"504");

    envoy.worker(0).request(get().header("to", "gone"));
    envoy.settle();
    assert_eq!(&digits(&envoy)[..3], b"503");
}
