//! Failing and counting host calls, and pointers that lead nowhere.

use pintle_harness::{Envoy, Fault, HostCall, Outcome, RequestBuilder, Status, Thread};

use crate::guest::{module, note};

fn get() -> RequestBuilder {
    RequestBuilder::get("svc", "/")
}

/// Reads and writes shared data in each request.
const GUEST: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (i32.store (i32.const 0) (i32.const 99))
    (call $note «get» (call $get_shared «k» (i32.const 0) (i32.const 4) (i32.const 8)))
    (call $note «pointer» (i32.load (i32.const 0)))
    (call $note «set» (call $set_shared «k» «v» (i32.const 0)))
    (i32.const 0))
"#;

#[test]
fn any_call_can_answer_any_status_once() {
    let mut envoy = Envoy::builder(&module(GUEST)).build().unwrap();
    envoy.shared_data().set("k", "before");
    let unknown = [77, u32::MAX];
    for status in Status::ALL.map(Status::code).into_iter().chain(unknown) {
        envoy.inject(Fault::new(HostCall::GetSharedData, status));
        envoy.worker(0).request(get());
        assert_eq!(note(&envoy, "get") as u32, status);
        assert_eq!(note(&envoy, "pointer"), 99, "nothing was written");
        envoy.worker(0).request(get());
        assert_eq!(note(&envoy, "get"), 0, "once");
    }
}

#[test]
fn a_failed_call_did_nothing() {
    let mut envoy = Envoy::builder(&module(GUEST)).build().unwrap();
    envoy.inject(Fault::new(HostCall::SetSharedData, Status::InternalFailure));
    envoy.worker(0).request(get());
    assert_eq!(note(&envoy, "set"), 10);
    assert_eq!(envoy.shared_data().get("k"), None);
}

#[test]
fn a_fault_can_wait_last_and_keep_to_a_thread() {
    let statuses = |fault: Fault| -> Vec<i64> {
        let mut envoy = Envoy::builder(&module(GUEST)).workers(2).inject(fault).build().unwrap();
        let requests = [0, 1, 0, 1, 0, 1].map(|worker| {
            envoy.worker(worker).request(get());
            note(&envoy, "set")
        });
        requests.to_vec()
    };
    let fault = Fault::new(HostCall::SetSharedData, Status::Empty);
    assert_eq!(statuses(fault.clone()), [7, 0, 0, 0, 0, 0]);
    assert_eq!(statuses(fault.clone().after(2).times(2)), [0, 0, 7, 7, 0, 0]);
    assert_eq!(statuses(fault.clone().on(Thread::Worker(1)).after(1)), [0, 0, 0, 7, 0, 0]);
    assert_eq!(statuses(fault.always()), [7; 6]);
}

#[test]
fn faults_reach_the_start_and_can_be_cleared() {
    let guest = module(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $set_tick (i32.const 5))))"#,
    );
    let fault = Fault::new(HostCall::SetTickPeriod, Status::InternalFailure);
    assert!(Envoy::builder(&guest).inject(fault.clone()).build().is_err(), "by the canary");
    let mut envoy = Envoy::builder(&guest).inject(fault.after(10)).build().unwrap();
    assert_eq!(envoy.clear_faults(), 1);
    assert_eq!(envoy.calls().get(HostCall::SetTickPeriod), 3);
}

#[test]
fn the_calls_of_a_request_are_counted() {
    let mut envoy = Envoy::builder(&module(GUEST)).build().unwrap();
    let before = envoy.calls();
    let request = envoy.worker(0).request(get());
    envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    let made = envoy.calls().since(&before);
    assert_eq!(
        made.made(),
        [
            (HostCall::GetSharedData, 1),
            (HostCall::SetSharedData, 1),
            (HostCall::DefineMetric, 3),
            (HostCall::RecordMetric, 3),
        ]
    );
    assert_eq!(made.total(), 8);
}

/// Host calls with pointers that lead out of the guest's memory.
const WILD: &str = r#"
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $note «in» (call $get_shared (i32.const 65530) (i32.const 7) (i32.const 0) (i32.const 4) (i32.const 8)))
    (call $note «wrap» (call $log (i32.const 2) (i32.const -1) (i32.const -1)))
    (call $note «out» (call $get_header (i32.const 0) «:path» (i32.const 65533) (i32.const 4)))
    (call $note «time» (call $now (i32.const -4)))
    (call $note «edge» (call $log (i32.const 2) (i32.const 65536) (i32.const 0)))
    (call $note «pairs» (call $set_pairs (i32.const 0) (i32.const 65000) (i32.const 9999)))
    (call $note «metric» (call $define (i32.const 0) «m» (i32.const 65534)))
    (i32.const 0))
"#;

#[test]
fn a_bad_pointer_is_an_invalid_memory_access() {
    let mut envoy = Envoy::builder(&module(WILD)).build().unwrap();
    assert!(envoy.worker(0).request(get()).continues());
    for name in ["in", "wrap", "out", "time", "pairs", "metric"] {
        assert_eq!(note(&envoy, name), i64::from(Status::InvalidMemoryAccess.code()), "{name}");
    }
    assert_eq!(note(&envoy, "edge"), 0, "no bytes at the very end are no bad pointer");
    assert!(envoy.traps().is_empty());
}

#[test]
fn a_trap_in_the_guests_allocator_is_the_callbacks() {
    let text = r#"(module
        (import "env" "proxy_get_header_map_value"
            (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) ":path")
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) (unreachable))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $get_header (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 0) (i32.const 4))))"#;
    let module = pintle_harness::Module::new(&wat::parse_str(text).unwrap()).unwrap();
    let mut envoy = Envoy::builder(&module).build().unwrap();
    assert!(!envoy.worker(0).request(get()).continues());
    assert_eq!(envoy.traps().len(), 1);
}
