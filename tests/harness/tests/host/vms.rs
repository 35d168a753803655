//! VMs: what is refused at the start, traps, policies, limits.

use std::time::Duration;

use pintle_harness::{
    Envoy, Error, FailurePolicy, HostCall, LogLevel, Module, Outcome, RequestBuilder, Thread,
};

use crate::guest::{module, note, source};

fn get() -> RequestBuilder {
    RequestBuilder::get("svc", "/")
}

#[test]
fn an_unknown_import_is_refused_by_name() {
    let wasm = wat::parse_str(
        r#"(module (import "env" "proxy_frobnicate" (func (param i32) (result i32))))"#,
    );
    let error = Module::new(&wasm.unwrap()).err().unwrap();
    assert_eq!(error.to_string(), "unknown import `env::proxy_frobnicate`");
}

/// The types of the specification: `i` is i32, `I` is i64; all answer an i32 but the last.
const TYPES: &[(&str, &str)] = &[
    ("proxy_log", "iii"),
    ("proxy_get_log_level", "i"),
    ("proxy_get_status", "iii"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_get_property", "iiii"),
    ("proxy_set_property", "iiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_continue_stream", "i"),
    ("proxy_close_stream", "i"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_close", "i"),
    ("proxy_define_metric", "iiii"),
    ("proxy_increment_metric", "iI"),
    ("proxy_record_metric", "iI"),
    ("proxy_get_metric", "ii"),
    ("proxy_set_effective_context", "i"),
    ("proxy_done", ""),
    ("proxy_call_foreign_function", "iiiiii"),
    ("fd_write", "iiii"),
    ("fd_read", "iiii"),
    ("fd_seek", "iIii"),
    ("fd_close", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_prestat_get", "ii"),
    ("fd_prestat_dir_name", "iii"),
    ("path_open", "iiiiiIIii"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_time_get", "iIi"),
    ("random_get", "ii"),
    ("sched_yield", ""),
    ("poll_oneoff", "iiii"),
    ("proc_exit", "i"),
];

#[test]
fn every_import_links_with_the_type_of_the_specification() {
    let names: Vec<_> = HostCall::ALL.iter().map(|c| c.name()).collect();
    assert_eq!(names, TYPES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    let mut imports = String::new();
    for (call, (name, params)) in HostCall::ALL.iter().zip(TYPES) {
        let params = params.replace('i', "i32 ").replace('I', "i64 ");
        let result = if *name == "proc_exit" { "" } else { "(result i32)" };
        let module = call.module();
        imports += &format!(r#"(import "{module}" "{name}" (func (param {params}) {result}))"#);
    }
    let text = format!(
        r#"(module {imports} (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#
    );
    let module = Module::new(&wat::parse_str(text).unwrap()).unwrap();
    assert_eq!(module.imports().len(), TYPES.len());
    Envoy::builder(&module).build().unwrap();
}

#[test]
fn a_module_is_shared_by_all_tests_of_a_process() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Module>();
}

#[test]
fn a_module_without_the_marks_of_the_abi_is_refused() {
    let rows = [
        (r#"(module)"#, "memory"),
        (r#"(module (memory (export "memory") 1))"#, "proxy_on_memory_allocate"),
        (
            r#"(module (memory (export "memory") 1)
                (func (export "malloc") (param i32) (result i32) (i32.const 0)))"#,
            "proxy_abi_version_0_2_1",
        ),
    ];
    for (text, missing) in rows {
        let error = Module::new(&wat::parse_str(text).unwrap()).err().unwrap();
        assert!(matches!(error, Error::MissingExport(name) if name == missing), "{error}");
    }
    assert!(matches!(Module::new(b"not wasm"), Err(Error::Compile(_))));
}

#[test]
fn imports_and_exports_are_sorted_lists() {
    let module = module("");
    assert!(module.imports().is_sorted() && module.exports().is_sorted());
    assert!(module.imports().contains(&"wasi_snapshot_preview1::fd_write".to_owned()));
    assert_eq!(module.exports(), ["memory", "proxy_abi_version_0_2_1", "proxy_on_memory_allocate"]);
}

#[test]
fn a_filter_that_refuses_its_configuration_keeps_envoy_from_starting() {
    let refuse = |callback: &str| {
        let text =
            format!(r#"(func (export "{callback}") (param i32 i32) (result i32) (i32.const 0))"#);
        Envoy::builder(&module(&text)).build().err().unwrap()
    };
    assert!(matches!(refuse("proxy_on_configure"), Error::ConfigureRefused));
    assert!(matches!(refuse("proxy_on_vm_start"), Error::StartRefused));
    let trap = module(
        r#"(func (export "proxy_on_configure") (param i32 i32) (result i32) (unreachable))"#,
    );
    let Err(Error::Trapped(trap)) = Envoy::builder(&trap).build() else { panic!("it started") };
    assert_eq!((trap.callback, trap.thread), ("proxy_on_configure", Thread::Canary));
}

#[test]
fn each_thread_is_configured_and_the_canary_first() {
    let guest = module(
        r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32)
            (call $note «early» (call $get_buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))
            (drop (call $get_buffer (i32.const 6) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
            (drop (call $log (i32.const 2) (i32.load (i32.const 0)) (i32.load (i32.const 4))))
            (i32.const 1))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $get_buffer (i32.const 7) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
            (drop (call $log (i32.const 2) (i32.load (i32.const 0)) (i32.load (i32.const 4))))
            (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $note «later» (call $get_buffer (i32.const 7) (i32.const 0) (i32.const 9) (i32.const 0) (i32.const 4)))
            (i32.const 0))"#,
    );
    let mut envoy = Envoy::builder(&guest)
        .workers(2)
        .vm_configuration("vm")
        .plugin_configuration("plugin")
        .build()
        .unwrap();
    let lines: Vec<_> = envoy.logs().into_iter().map(|l| (l.thread, l.message)).collect();
    let threads = [Thread::Canary, Thread::Main, Thread::Worker(0), Thread::Worker(1)];
    let expected: Vec<_> = threads
        .into_iter()
        .flat_map(|t| [(t, "vm".to_owned()), (t, "plugin".to_owned())])
        .collect();
    assert_eq!(lines, expected);
    envoy.worker(0).request(get());
    assert_eq!((note(&envoy, "early"), note(&envoy, "later")), (1, 1), "out of reach");
}

/// Traps on a request with `x-trap`, and in the tick if a gauge says so; counts its requests.
const TRAP: &str = r#"
(func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $set_tick (i32.const 100))))
(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $get_header (i32.const 0) «x-trap» (i32.const 0) (i32.const 4)))
        (then (unreachable)))
    (call $count «seen») (i32.const 0))
(func (export "proxy_on_tick") (param i32) (call $count «ticks»))
(func (export "proxy_on_log") (param i32) (call $count «logged»))
"#;

fn trap(envoy: &mut Envoy, worker: usize) {
    let request = envoy.worker(worker).request(get().header("x-trap", ""));
    assert_eq!(request.local_reply().unwrap().status, 503, "the request itself fails");
    let response = envoy.finish(request, Outcome::default());
    assert_eq!(response.status, Some(503));
}

#[test]
fn a_trap_kills_one_workers_vm_and_what_is_in_it() {
    let mut envoy = Envoy::builder(&module(TRAP)).workers(2).build().unwrap();
    let waiting = envoy.worker(0).request(get());
    trap(&mut envoy, 0);
    assert!(!envoy.is_alive(Thread::Worker(0)) && envoy.is_alive(Thread::Worker(1)));
    assert_eq!(envoy.finish(waiting, Outcome::ok("10.0.0.1:80")).status, Some(503));
    assert_eq!(envoy.metrics().gauge("logged"), None, "no callback reaches a dead VM");
    envoy.advance(Duration::from_millis(100));
    assert_eq!(note(&envoy, "ticks"), 2, "main and the other worker");
    let trap = &envoy.traps()[0];
    assert_eq!((trap.thread, trap.callback), (Thread::Worker(0), "proxy_on_request_headers"));
    assert!(trap.message.contains("unreachable"), "{}", trap.message);
    assert_eq!(envoy.logged(LogLevel::Critical, "unreachable"), 1);
}

#[test]
fn a_trap_in_the_response_headers_is_a_503() {
    let guest = module(
        r#"(func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
            (unreachable))"#,
    );
    let mut envoy = Envoy::builder(&guest).build().unwrap();
    let request = envoy.worker(0).request(get());
    assert!(request.continues());
    assert_eq!(envoy.finish(request, Outcome::ok("10.0.0.1:80")).status, Some(503));
    assert_eq!(envoy.traps().len(), 1);
}

#[test]
fn a_dead_vm_is_treated_as_the_policy_says() {
    // Policy, how long after the trap, and then: status for the client, whether the filter saw it.
    let reload = FailurePolicy::Reload(Duration::from_secs(1));
    let rows = [
        (FailurePolicy::Closed, 60_000, Some(503), false),
        (FailurePolicy::Open, 0, Some(200), false),
        (FailurePolicy::Open, 60_000, Some(200), false),
        (reload, 0, Some(503), false),
        (reload, 999, Some(503), false),
        (reload, 1000, Some(200), true),
    ];
    for (policy, millis, status, sees) in rows {
        let mut envoy = Envoy::builder(&module(TRAP)).failure_policy(policy).build().unwrap();
        trap(&mut envoy, 0);
        envoy.advance(Duration::from_millis(millis));
        let request = envoy.worker(0).request(get());
        let response = envoy.finish(request, Outcome::ok("10.0.0.1:80"));
        assert_eq!(response.status, status, "{policy:?} after {millis} ms");
        assert_eq!(envoy.metrics().gauge("seen").is_some(), sees, "{policy:?} after {millis} ms");
    }
}

#[test]
fn the_backoff_counts_from_the_last_load() {
    let policy = FailurePolicy::Reload(Duration::from_secs(1));
    let mut envoy = Envoy::builder(&module(TRAP)).failure_policy(policy).build().unwrap();
    envoy.advance(Duration::from_secs(5));
    trap(&mut envoy, 0);
    assert!(envoy.worker(0).request(get()).continues(), "loaded long ago: repaired at once");
    trap(&mut envoy, 0);
    assert!(!envoy.worker(0).request(get()).continues(), "loaded just now: not yet");
    let stats = envoy.stats();
    assert_eq!((stats.reload_success, stats.reload_backoff, stats.reload_failure), (1, 1, 0));
}

#[test]
fn the_main_threads_vm_never_comes_back() {
    let policy = FailurePolicy::Reload(Duration::from_secs(1));
    let mut envoy = Envoy::builder(&module(TRAP)).failure_policy(policy).build().unwrap();
    envoy.kill_vm(Thread::Main);
    envoy.advance(Duration::from_secs(60));
    assert!(envoy.worker(0).request(get()).continues());
    assert!(!envoy.is_alive(Thread::Main));
}

#[test]
fn the_access_logger_runs_in_a_vm_made_anew() {
    let policy = FailurePolicy::Reload(Duration::from_secs(1));
    let builder = Envoy::builder(&module(TRAP)).failure_policy(policy).access_logger("");
    let mut envoy = builder.build().unwrap();
    envoy.advance(Duration::from_secs(5));
    trap(&mut envoy, 0);
    assert_eq!(note(&envoy, "logged"), 1, "by the logger: the filter's own is dead");
    assert_eq!(envoy.stats().reload_success, 1);
}

#[test]
fn an_endless_loop_runs_out_of_fuel() {
    let text = source(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (loop $again (br $again)) (i32.const 0))"#,
    );
    let wasm = wat::parse_str(text).unwrap();
    assert!(matches!(
        Envoy::builder(&Module::new(&wasm).unwrap()).fuel_per_callback(1).build(),
        Err(Error::NoFuel)
    ));
    let module = Module::with_fuel(&wasm).unwrap();
    let mut envoy = Envoy::builder(&module).fuel_per_callback(100_000).build().unwrap();
    assert!(!envoy.worker(0).request(get()).continues());
    assert!(envoy.traps()[0].message.contains("fuel"), "{}", envoy.traps()[0].message);
}

#[test]
fn memory_grows_to_its_limit_and_never_shrinks() {
    let guest = module(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $note «grown» (memory.grow (i32.const 2))) (i32.const 0))"#,
    );
    let mut envoy = Envoy::builder(&guest).memory_limit(4 * 65_536).build().unwrap();
    assert_eq!(envoy.memory_pages(Thread::Worker(0)), 1);
    envoy.worker(0).request(get());
    assert_eq!((note(&envoy, "grown"), envoy.memory_pages(Thread::Worker(0))), (1, 3));
    envoy.worker(0).request(get());
    assert_eq!((note(&envoy, "grown"), envoy.memory_pages(Thread::Worker(0))), (-1, 3));
    assert_eq!(envoy.memory_pages(Thread::Main), 1);
    assert_eq!(envoy.open_contexts(Thread::Worker(0)), 2);
}

#[test]
fn what_a_guest_prints_is_logged() {
    let guest = module(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (i32.store (i32.const 0) (i32.const 2048))
            (i32.store (i32.const 4) (i32.const 3))
            (i32.store (i32.const 2048) (i32.const 0x0a6948))
            (call $note «stderr» (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
            (call $note «file» (call $fd_write (i32.const 3) (i32.const 0) (i32.const 1) (i32.const 8)))
            (call $note «wild» (call $fd_write (i32.const 2) (i32.const -1) (i32.const 9) (i32.const 8)))
            (drop (call $log (i32.const 1) «quiet»))
            (i32.const 0))"#,
    );
    let mut envoy = Envoy::builder(&guest).build().unwrap();
    envoy.worker(0).request(get());
    let lines = envoy.logs();
    assert_eq!((lines.len(), lines[0].message.as_str()), (1, "Hi"), "debug is below the level");
    assert_eq!((lines[0].level, lines[0].thread), (LogLevel::Error, Thread::Worker(0)));
    let noted = (note(&envoy, "stderr"), note(&envoy, "file"), note(&envoy, "wild"));
    assert_eq!(noted, (0, 8, 21));
}
