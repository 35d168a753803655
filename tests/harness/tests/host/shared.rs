//! What VMs share: data, queues, metrics, the clock.

use std::time::Duration;

use pintle_harness::{Envoy, RequestBuilder, Status, Thread};

use crate::guest::{module, note};

fn get() -> RequestBuilder {
    RequestBuilder::get("svc", "/")
}

/// Reads `k` as a request begins, and writes it with the number it had as the request ends.
const CAS: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «get» (call $get_shared «k» (i32.const 0) (i32.const 4) (i32.const 8)))
    (call $note «size» (i32.load (i32.const 4)))
    (i32.const 0))
(func (export "proxy_on_log") (param i32)
    (call $note «set» (call $set_shared «k» «v» (i32.load (i32.const 8)))))
"#;

#[test]
fn a_write_that_lost_the_race_is_a_cas_mismatch() {
    let mut envoy = Envoy::builder(&module(CAS)).workers(2).vm_id("a").build().unwrap();
    envoy.shared_data().set("k", "0");
    let slow = envoy.worker(0).request(get());
    let fast = envoy.worker(1).request(get());
    envoy.finish(fast, Default::default());
    assert_eq!(note(&envoy, "set"), 0);
    envoy.finish(slow, Default::default());
    assert_eq!(note(&envoy, "set"), i64::from(Status::CasMismatch.code()));
    assert_eq!(envoy.shared_data().get("k"), Some((b"v".to_vec(), 2)));
}

#[test]
fn a_stale_number_creates_an_absent_key() {
    let mut envoy = Envoy::builder(&module(CAS)).build().unwrap();
    let shared = envoy.shared_data();
    shared.set("k", "");
    let request = envoy.worker(0).request(get());
    assert_eq!((note(&envoy, "get"), note(&envoy, "size")), (0, 0), "an empty value is found");
    shared.wipe();
    envoy.finish(request, Default::default());
    assert_eq!(note(&envoy, "set"), 0);
    assert!(shared.get("k").is_some());
    assert_eq!(shared.cas("k", "x", 9999), Err(Status::CasMismatch));
}

#[test]
fn an_absent_key_is_not_found() {
    let mut envoy = Envoy::builder(&module(CAS)).build().unwrap();
    envoy.worker(0).request(get());
    assert_eq!(note(&envoy, "get"), 1);
}

/// Every VM registers `q`; a request puts an item in, the consumer counts what it takes out.
const QUEUE: &str = r#"
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $register «q» (i32.const 0))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «none» (call $resolve «» «nope» (i32.const 16)))
    (drop (call $resolve «» «q» (i32.const 16)))
    (drop (call $enqueue (i32.load (i32.const 16)) «item»))
    (i32.const 0))
(func (export "proxy_on_queue_ready") (param $context i32) (param $token i32)
    (call $count «woken»)
    (loop $more
        (if (i32.eqz (call $dequeue (local.get $token) (i32.const 0) (i32.const 4)))
            (then (call $count «taken») (br $more))))
    (call $note «then» (call $dequeue (local.get $token) (i32.const 0) (i32.const 4))))
"#;

#[test]
fn a_queue_wakes_the_last_that_registered_it() {
    let mut envoy = Envoy::builder(&module(QUEUE)).workers(3).vm_id("a").build().unwrap();
    assert_eq!(envoy.queues().consumer("q"), Some(Thread::Worker(2)));
    envoy.worker(0).request(get());
    envoy.worker(1).request(get());
    assert_eq!(envoy.queues().len("q"), Some(2));
    assert_eq!(note(&envoy, "none"), 1);
    envoy.settle();
    assert_eq!((note(&envoy, "taken"), note(&envoy, "woken")), (2, 2));
    assert_eq!(note(&envoy, "then"), i64::from(Status::Empty.code()));
}

#[test]
fn the_queue_of_a_dead_vm_keeps_its_items() {
    let mut envoy = Envoy::builder(&module(QUEUE)).workers(2).build().unwrap();
    envoy.kill_vm(Thread::Worker(1));
    envoy.worker(0).request(get());
    envoy.settle();
    assert_eq!(envoy.queues().len("q"), Some(1));
}

/// Defines each kind of metric and tries everything on it.
const METRICS: &str = r#"
(func $id (param $kind i32) (param $name i32) (param $len i32) (result i32)
    (drop (call $define (local.get $kind) (local.get $name) (local.get $len) (i32.const 0)))
    (i32.load (i32.const 0)))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (local $c i32) (local $g i32) (local $h i32)
    (local.set $c (call $id (i32.const 0) «c»))
    (local.set $g (call $id (i32.const 1) «g»))
    (local.set $h (call $id (i32.const 2) «h»))
    (call $note «c up» (call $increment (local.get $c) (i64.const 5)))
    (call $note «c zero» (call $increment (local.get $c) (i64.const 0)))
    (call $note «c down» (call $increment (local.get $c) (i64.const -1)))
    (call $note «c record» (call $record (local.get $c) (i64.const 50)))
    (call $note «g up» (call $increment (local.get $g) (i64.const 5)))
    (call $note «g down» (call $increment (local.get $g) (i64.const -8)))
    (call $note «h record» (call $record (local.get $h) (i64.const 7)))
    (call $note «h up» (call $increment (local.get $h) (i64.const 7)))
    (call $note «h get» (call $get_metric (local.get $h) (i32.const 8)))
    (call $note «unknown» (call $get_metric (i32.const 4001) (i32.const 8)))
    (call $note «kind 3» (call $define (i32.const 3) «x» (i32.const 8)))
    (call $note «new id» (i32.sub (call $id (i32.const 0) «c») (local.get $c)))
    (i32.const 0))
"#;

#[test]
fn metrics_have_the_manners_of_envoy() {
    let mut envoy = Envoy::builder(&module(METRICS)).workers(2).build().unwrap();
    envoy.worker(0).request(get());
    let rows = [
        ("c up", 0),
        ("c zero", 2),
        ("c down", 2),
        ("c record", 0),
        ("g up", 0),
        ("g down", 0),
        ("h record", 0),
        ("h up", 2),
        ("h get", 2),
        ("unknown", 1),
        ("kind 3", 2),
        ("new id", 4),
    ];
    for (name, expected) in rows {
        assert_eq!(note(&envoy, name), expected, "{name}");
    }
    assert_eq!(envoy.metrics().counter("c"), Some(55), "recording adds to a counter");
    assert_eq!(envoy.metrics().gauge("g"), Some(u64::MAX - 2), "a gauge wraps below zero");
    envoy.worker(1).request(get());
    assert_eq!(envoy.metrics().counter("c"), Some(110), "the other worker's is the same by name");
    assert_eq!(envoy.metrics().histogram("h").unwrap().samples, [7, 7]);
}

/// Ticks every 100 ms, and slower after the third one.
const TICK: &str = r#"
(global $n (mut i32) (i32.const 0))
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $set_tick (i32.const 100))))
(func (export "proxy_on_tick") (param i32)
    (call $count «ticks»)
    (drop (call $now (i32.const 0)))
    (call $note «second» (i32.wrap_i64 (i64.div_u (i64.load (i32.const 0)) (i64.const 1000000000))))
    (global.set $n (i32.add (global.get $n) (i32.const 1)))
    (if (i32.eq (global.get $n) (i32.const 3)) (then (drop (call $set_tick (i32.const 1000)))))
    (if (i32.eq (global.get $n) (i32.const 5)) (then (drop (call $set_tick (i32.const 0))))))
"#;

#[test]
fn every_vm_ticks_but_the_canary() {
    let mut envoy = Envoy::builder(&module(TICK))
        .workers(2)
        .start_time(Duration::from_secs(1000))
        .build()
        .unwrap();
    envoy.advance(Duration::from_millis(99));
    assert_eq!(envoy.metrics().gauge("ticks"), None);
    envoy.advance(Duration::from_millis(1));
    assert_eq!(note(&envoy, "ticks"), 3, "main and two workers");
    envoy.advance(Duration::from_millis(200));
    assert_eq!(note(&envoy, "ticks"), 9);
    envoy.advance(Duration::from_secs(60));
    assert_eq!(note(&envoy, "ticks"), 15, "slower, then off");
    assert_eq!(note(&envoy, "second"), 1002, "the clock stands at the tick's own time");
    assert_eq!(envoy.now(), Duration::from_millis(1_060_300));
}

#[test]
fn the_wall_clock_can_step_without_time_passing() {
    let mut envoy = Envoy::builder(&module(TICK)).build().unwrap();
    let before = envoy.now();
    envoy.step_wall_clock(-3_600_000_000_000);
    assert_eq!(envoy.now() + Duration::from_secs(3600), before);
    assert_eq!(envoy.elapsed(), Duration::ZERO);
    envoy.advance(Duration::from_millis(100));
    assert_eq!(note(&envoy, "ticks"), 2, "ticks follow the time that passes");
}

#[test]
fn randomness_is_the_seeds() {
    let guest = module(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $random (i32.const 0) (i32.const 4)))
            (call $note «random» (i32.load (i32.const 0)))
            (i32.const 0))"#,
    );
    let draw = |seed| {
        let mut envoy = Envoy::builder(&guest).seed(seed).build().unwrap();
        envoy.worker(0).request(get());
        note(&envoy, "random")
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}
