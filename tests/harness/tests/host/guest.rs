//! Guests in WebAssembly text, with what all of them need: the imports, memory, an allocator, and
//! `$note`.

use std::collections::BTreeMap;

use pintle_harness::{Envoy, Module};

const IMPORTS: &str = r#"
(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
(import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
(import "env" "proxy_set_tick_period_milliseconds" (func $set_tick (param i32) (result i32)))
(import "env" "proxy_get_status" (func $get_status (param i32 i32 i32) (result i32)))
(import "env" "proxy_get_property" (func $get_property (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_set_property" (func $set_property (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_get_shared_data" (func $get_shared (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_set_shared_data" (func $set_shared (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
(import "env" "proxy_resolve_shared_queue" (func $resolve (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
(import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
(import "env" "proxy_get_header_map_value" (func $get_header (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_add_header_map_value" (func $add_header (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_replace_header_map_value" (func $replace_header (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_remove_header_map_value" (func $remove_header (param i32 i32 i32) (result i32)))
(import "env" "proxy_get_header_map_pairs" (func $get_pairs (param i32 i32 i32) (result i32)))
(import "env" "proxy_set_header_map_pairs" (func $set_pairs (param i32 i32 i32) (result i32)))
(import "env" "proxy_get_buffer_bytes" (func $get_buffer (param i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
(import "env" "proxy_set_effective_context" (func $set_effective (param i32) (result i32)))
(import "env" "proxy_http_call" (func $http_call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_grpc_call" (func $grpc_call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_grpc_stream" (func $grpc_stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "env" "proxy_grpc_send" (func $grpc_send (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_grpc_cancel" (func $grpc_cancel (param i32) (result i32)))
(import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
(import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
(import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
(import "env" "proxy_get_metric" (func $get_metric (param i32 i32) (result i32)))
(import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
"#;

const PRELUDE: &str = r#"
(memory (export "memory") 1)
(global $heap (mut i32) (i32.const 32768))
(func (export "proxy_abi_version_0_2_1"))
(func (export "proxy_on_memory_allocate") (param $n i32) (result i32)
    (if (i32.gt_u (i32.add (global.get $heap) (local.get $n)) (i32.const 65000))
        (then (global.set $heap (i32.const 32768))))
    (global.get $heap)
    (global.set $heap (i32.add (global.get $heap) (local.get $n))))
;; Writes a gauge; defines it anew each time, since a value goes by its name.
(func $note (param $name i32) (param $len i32) (param $value i32)
    (drop (call $define (i32.const 1) (local.get $name) (local.get $len) (i32.const 512)))
    (drop (call $record (i32.load (i32.const 512)) (i64.extend_i32_s (local.get $value)))))
;; Adds one to a gauge.
(func $count (param $name i32) (param $len i32)
    (drop (call $define (i32.const 1) (local.get $name) (local.get $len) (i32.const 512)))
    (drop (call $increment (i32.load (i32.const 512)) (i64.const 1))))
"#;

/// The text of a guest: `«text»` in `body` stands for the address and the length of that text.
pub(crate) fn source(body: &str) -> String {
    let mut texts = BTreeMap::new();
    let (mut out, mut data, mut next) = (String::new(), String::new(), 1024);
    let mut rest = body;
    while let Some((before, after)) = rest.split_once('«') {
        let (text, after) = after.split_once('»').expect("« without »");
        let len = wat_len(text);
        let at = *texts.entry(text.to_owned()).or_insert_with(|| {
            let at = next;
            data.push_str(&format!("(data (i32.const {at}) \"{text}\")\n"));
            next += len + 1;
            at
        });
        out.push_str(before);
        out.push_str(&format!("(i32.const {at}) (i32.const {len})"));
        rest = after;
    }
    out.push_str(rest);
    format!("(module {IMPORTS} {PRELUDE} {data} {out})")
}

/// The bytes of a text with WebAssembly's `\hh` escapes.
fn wat_len(text: &str) -> usize {
    text.len() - 2 * text.matches('\\').count()
}

pub(crate) fn module(body: &str) -> Module {
    let source = source(body);
    let wasm = wat::parse_str(&source).unwrap_or_else(|e| panic!("{e}"));
    Module::new(&wasm).expect("the guest loads")
}

/// A gauge as a signed number; what was never noted is a test's mistake.
pub(crate) fn note(envoy: &Envoy, name: &str) -> i64 {
    let value = envoy.metrics().gauge(name);
    value.unwrap_or_else(|| panic!("nothing noted under {name}")) as i64
}
