//! What the module needs from its host, and that no answer of the host's is a trap.

use std::time::Duration;

use pintle_harness::{Envoy, Fault, HostCall, Outcome, RequestBuilder, Thread};

use crate::support::{ALL, Run, TICK, builder, endpoints, get, list, module};

/// Everything that can fail at the boundary. A new line here is a new dependency: a clock read in a
/// pure crate would show as `clock_time_get`, a stray print as another use of `fd_write`.
const IMPORTS: &[&str] = &[
    "env::proxy_call_foreign_function",
    "env::proxy_continue_stream",
    "env::proxy_define_metric",
    "env::proxy_dequeue_shared_queue",
    "env::proxy_enqueue_shared_queue",
    "env::proxy_get_buffer_bytes",
    "env::proxy_get_current_time_nanoseconds",
    "env::proxy_get_header_map_pairs",
    "env::proxy_get_header_map_value",
    "env::proxy_get_property",
    "env::proxy_get_shared_data",
    "env::proxy_grpc_call",
    "env::proxy_grpc_cancel",
    "env::proxy_grpc_send",
    "env::proxy_grpc_stream",
    "env::proxy_increment_metric",
    "env::proxy_log",
    "env::proxy_register_shared_queue",
    "env::proxy_remove_header_map_value",
    "env::proxy_replace_header_map_value",
    "env::proxy_resolve_shared_queue",
    "env::proxy_send_local_response",
    "env::proxy_set_effective_context",
    "env::proxy_set_property",
    "env::proxy_set_shared_data",
    "env::proxy_set_tick_period_milliseconds",
];

const EXPORTS: &[&str] = &[
    "_initialize",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_grpc_close",
    "proxy_on_grpc_receive",
    "proxy_on_log",
    "proxy_on_memory_allocate",
    "proxy_on_queue_ready",
    "proxy_on_request_headers",
    "proxy_on_response_headers",
    "proxy_on_response_trailers",
    "proxy_on_tick",
    "proxy_on_vm_start",
];

#[test]
fn the_module_imports_what_it_uses_and_nothing_else() {
    let host: Vec<_> =
        module().imports().iter().filter(|import| import.starts_with("env::")).collect();
    assert_eq!(host, IMPORTS.iter().collect::<Vec<_>>());
    // The standard library brings these for panics and the hash seed; none of them reads a clock.
    let system: Vec<_> =
        module().imports().iter().filter(|import| !import.starts_with("env::")).collect();
    for import in &system {
        let name = import.rsplit("::").next().unwrap_or_default();
        let known = ["environ_get", "environ_sizes_get", "fd_write", "proc_exit", "random_get"];
        assert!(known.contains(&name), "{import} is new: {system:?}");
    }
}

#[test]
fn the_module_exports_the_callbacks_it_uses_and_nothing_else() {
    assert_eq!(module().exports(), EXPORTS);
}

/// What two machines build from the same sources is then the same, and a checksum says something.
#[test]
fn the_module_does_not_know_where_it_was_built() {
    let text = String::from_utf8_lossy(pintle_artifact::PINTLE);
    let root = pintle_tests::tools::root().canonicalize().expect("the workspace");
    for path in [root.to_str().expect("UTF-8"), "/registry/src/", "/.cargo/"] {
        assert!(!text.contains(path), "it names {path}");
    }
    // A panic names its file all the same.
    assert!(text.contains("filters/balance/src/") && text.contains("/proxy-wasm-"));
}

#[test]
fn a_configuration_that_is_wrong_is_refused_and_says_why() {
    let table = [
        (r#"{"selct": {}}"#, "selct"),
        (r#"{"select": {"strategy": "best"}}"#, "best"),
        (r#"{"select": {"header": "X-Upper"}}"#, "select.header"),
        (r#"{"breaker": {"max_ejection_percent": 101}}"#, "max_ejection_percent"),
        (r#"{"trace": {"ratio": 7}}"#, "ratio"),
        (r#"{"service": {"from": ["somewhere"]}}"#, "service.from"),
        (r#"{"addresses": {"allow": ["10.0.0.1/8"]}}"#, "addresses.allow"),
        (r#"{"services": {"orders": {"select": {"attempts": 0}}}}"#, "orders"),
        ("[]", "configuration"),
        ("{", "configuration"),
    ];
    for (json, named) in table {
        let error = builder(json).build().err();
        assert!(error.is_some(), "{json} was accepted");
        let mut good = builder("{}").build().expect("the module starts");
        assert!(good.reconfigure(json).is_err(), "{json} was accepted as an update");
        assert!(
            good.logged(pintle_harness::LogLevel::Error, named) > 0,
            "{json}: {:?}",
            good.logs()
        );
    }
}

#[test]
fn a_part_that_can_do_nothing_says_so() {
    let sync = r#""sync": {"cluster": "pintle_agent"}"#;
    let table = [
        (format!(r#"{{"breaker": {{}}, {sync}}}"#), Some("without select")),
        (r#"{"select": {}}"#.to_owned(), Some("without sync.cluster")),
        (format!(r#"{{"select": {{}}, "breaker": {{}}, {sync}}}"#), None),
        (r#"{"trace": {}}"#.to_owned(), None),
    ];
    for (json, warned) in table {
        let good = builder(&json).build().expect("the module starts");
        let count = |text| good.logged(pintle_harness::LogLevel::Warn, text);
        assert_eq!(count("does nothing") > 0, warned.is_some(), "{json}: {:?}", good.logs());
        assert!(warned.is_none_or(|text| count(text) > 0), "{json}: {:?}", good.logs());
    }
}

/// Nobody says that a configuration before is gone: it has stopped ticking, be there an agent or
/// not.
#[test]
fn configurations_that_were_replaced_go_and_leave_no_memory_behind() {
    const TIMES: usize = 40;
    let services: Vec<String> = (0..500)
        .map(|number| format!(r#""service-{number}": {{"select": {{"attempts": 2}}}}"#))
        .collect();
    let services = services.join(", ");
    for parts in [r#""trace": {}"#, r#""trace": {}, "sync": {"cluster": "pintle_agent"}"#] {
        let json = format!(r#"{{{parts}, "services": {{{services}}}}}"#);
        let mut envoy = builder(&json).build().expect("the module starts");
        let pages = |envoy: &Envoy| envoy.memory_pages(Thread::Worker(0));
        let replace = |envoy: &mut Envoy| {
            for _ in 0..TIMES {
                envoy.reconfigure(&json).expect("the module takes it");
                envoy.advance(Duration::from_secs(130));
            }
        };
        replace(&mut envoy);
        let before = pages(&envoy);
        replace(&mut envoy);
        println!("{before} pages, then {}", pages(&envoy));
        assert!(pages(&envoy) <= before + 1, "{} pages, {before} before", pages(&envoy));
    }
}

/// Everything that the module does, once: two workers, tables, requests that go well and badly, a
/// probe, a local answer, a sampled span and its export.
fn everything(run: &mut Run) {
    let policy = r#"{"select": {"sticky": {"cookie": {"name": "pin", "ttl": "1h"}}},
        "breaker": {"open": "1s", "jitter_percent": 0}}"#;
    run.table_with("orders", endpoints(3), policy);
    run.table_with("empty", Vec::new(), r#"{"select": {"panic_percent": 0}}"#);
    run.complete();
    for turn in 0..12 {
        let request = get("orders")
            .header("traceparent", "00-1234567890123456789012345678901a-123456789012345b-01");
        let request = run.envoy.worker(turn % 2).request(request);
        let first = list(&request).first().cloned().unwrap_or_default();
        run.envoy.finish(request, Outcome::refused(first));
        run.envoy.settle();
    }
    for cluster in ["empty", "nobody"] {
        let request =
            run.envoy.worker(0).request(get(cluster).header("x-pintle-endpoints", "1.2.3.4:5"));
        run.envoy.finish(request, Outcome::local_reply(503));
    }
    let request =
        run.envoy.worker(1).request(RequestBuilder::grpc("shop", "/pkg.Svc/M").cluster("orders"));
    run.envoy.finish(request, Outcome::grpc(14, "10.0.0.1:80"));
    for _ in 0..25 {
        run.tick();
        while let Some(call) = run.envoy.cluster("otel").next_call() {
            call.reply([]);
        }
    }
    run.stream.reset();
    for _ in 0..5 {
        run.tick();
    }
    if let Some(stream) = run.agent.accept() {
        run.stream = stream;
    }
}

const WITH_EXPORT: &str = r#"{
    "sync": {"cluster": "pintle_agent"}, "select": {}, "breaker": {},
    "trace": {"export": {"cluster": "otel", "service_name": "edge"}}
}"#;

#[test]
fn every_status_of_every_host_call_is_a_value() {
    let used: Vec<HostCall> = HostCall::ALL
        .iter()
        .copied()
        .filter(|call| IMPORTS.contains(&format!("env::{}", call.name()).as_str()))
        .collect();
    assert_eq!(used.len(), IMPORTS.len());
    let mut envoy = builder(WITH_EXPORT).build().expect("the module starts");
    // The numbers of the ABI, among them those the SDK has no name for, and one that nobody has.
    for status in [1_u32, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 99] {
        for call in &used {
            let mut run = Run::of(envoy);
            // Not the first call, so that different places are hit; then a run of them.
            let fault = Fault::new(*call, status).after(u64::from(status) % 4).times(3);
            run.envoy.inject(fault);
            everything(&mut run);
            assert_eq!(run.envoy.traps(), Vec::new(), "{} -> {status}", call.name());
            assert_eq!(run.envoy.violations(), Vec::<String>::new(), "{} -> {status}", call.name());
            run.envoy.clear_faults();
            envoy = builder(WITH_EXPORT).build().expect("the module starts");
        }
    }
}

#[test]
fn a_host_that_refuses_everything_gets_plain_envoy() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(3));
    for call in HostCall::ALL {
        run.envoy.inject(Fault::new(*call, 10_u32).always());
    }
    for turn in 0..20 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        assert!(request.continues(), "never break a request that plain Envoy would have served");
        run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
        run.envoy.advance(TICK);
    }
    assert_eq!(run.envoy.traps(), Vec::new());
}
