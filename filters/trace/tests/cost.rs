//! Bounds of time and memory: nothing is allocated on the common path, and 96 KiB of hostile
//! headers cost less than a millisecond and a mebibyte.

#![expect(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use common::{PARTICIPATING, config, policy};
use pintle_contract::Now;
use pintle_trace::{Attempt, Context, Decision, Edits, Exporter, Span, propagate};
use rand::SeedableRng;
use rand::rngs::StdRng;

struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(size: usize) {
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
    let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + size as u64));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        unsafe { System.realloc(ptr, layout, size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls to the allocator and bytes asked of it while `f` runs, on this thread.
fn allocated<T>(f: impl FnOnce() -> T) -> (u64, u64, T) {
    let before = (CALLS.get(), BYTES.get());
    let value = f();
    (CALLS.get() - before.0, BYTES.get() - before.1, value)
}

const ALL: &str = r#"{"participate": true, "tracestate_member": "pintle",
    "extract": ["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray", "baggage"],
    "inject": ["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray", "baggage"]}"#;

#[test]
fn propagation_allocates_nothing_once_warm() {
    let headers: [(&[u8], &[u8]); 8] = [
        (b":method", b"GET"),
        (b":path", b"/"),
        (b"user-agent", b"curl"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        (b"tracestate", b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
        (b"tracestate", b"more=1"),
        (b"baggage", b"userId=alice"),
        (b"x-datadog-tags", b"_dd.p.dm=-4"),
    ];
    for json in ["{}", PARTICIPATING, ALL] {
        let (config, policy) = (config(json), policy("{}"));
        let mut rng = StdRng::seed_from_u64(1);
        let mut edits = Edits::new();
        let mut run = |headers: &[(&'static [u8], &'static [u8])]| {
            propagate(&config, &policy, headers.iter().copied(), &mut rng, &mut edits);
            edits.iter().count()
        };
        // Both cases once: a trace that goes on, and one that begins here.
        run(&headers);
        run(&[]);
        let (calls, _, edits) = allocated(|| run(&headers) + run(&[]));
        assert_eq!(calls, 0, "{json}: {edits} edits");
    }
}

fn context() -> Context {
    let mut rng = StdRng::seed_from_u64(1);
    propagate(&config(PARTICIPATING), &policy("{}"), [], &mut rng, &mut Edits::new())
}

#[test]
fn a_span_allocates_nothing_once_the_queue_has_its_size() {
    let export =
        r#"{"export": {"cluster": "otel", "service_name": "s", "queue": 64, "batch": 64}}"#;
    let mut exporter = Exporter::new(&config(export), 1).unwrap();
    let context = context();
    let attempts = [Attempt { endpoint: b"10.0.0.1:80", status: Some(503), ..Attempt::default() }];
    let span = Span {
        context: &context,
        start: Now(1),
        end: Now(2),
        method: b"GET",
        path: b"/a/path?with=query",
        scheme: b"http",
        authority: b"service.example:8080",
        client: b"10.0.0.9:4711",
        upstream: b"10.0.0.2:80",
        status: Some(200),
        grpc_status: None,
        error: None,
        user_agent: b"curl/8",
        tracestate: b"",
        resend_count: 1,
        decision: Decision { strategy: "p2c", endpoint: b"10.0.0.1:80", ..Decision::default() },
        attempts: &attempts,
    };
    let mut rng = StdRng::seed_from_u64(1);
    let mut round = |now: u64| {
        let pushed = (0..64).all(|_| exporter.push(&span, &mut rng, Now(now)));
        let sent = exporter.poll(Now(now)).map(<[u8]>::len);
        exporter.on_answer(pintle_trace::Answer::Accepted { rejected: 0 }, Now(now));
        (pushed, sent.is_some())
    };
    assert_eq!(round(1), (true, true));
    let (calls, _, done) = allocated(|| round(2));
    // The head of a batch is put together anew: one small buffer for 64 spans.
    assert!(calls <= 1, "{calls}");
    assert_eq!(done, (true, true));
}

type Headers = Vec<(&'static [u8], Vec<u8>)>;

/// About 96 KiB in the shapes that cost a parser most.
fn hostile() -> Vec<(&'static str, Headers)> {
    const SIZE: usize = 96 * 1024;
    const PARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fill = |piece: &[u8]| piece.iter().copied().cycle().take(SIZE).collect::<Vec<_>>();
    let list = |n: usize, width: usize| {
        (0..n).map(|n| format!("{n:0width$}=v")).collect::<Vec<_>>().join(",").into_bytes()
    };
    let with = |name: &'static [u8], value: Vec<u8>| {
        vec![(&b"traceparent"[..], PARENT.to_vec()), (name, value)]
    };
    let each = |name: &'static [u8], n: usize, size: usize| -> Vec<_> {
        let value = |n: usize| format!("k{n}={}", "v".repeat(size)).into_bytes();
        std::iter::once((&b"traceparent"[..], PARENT.to_vec()))
            .chain((0..n).map(|n| (name, value(n))))
            .collect()
    };
    vec![
        ("members with equally long keys", with(b"tracestate", list(1000, 90))),
        ("many short members", with(b"tracestate", list(12_000, 6))),
        ("commas", with(b"tracestate", fill(b","))),
        ("spaces", with(b"tracestate", fill(b" "))),
        ("one long member", with(b"tracestate", fill(b"k"))),
        ("many tracestate headers", each(b"tracestate", 1000, 80)),
        ("baggage members", with(b"baggage", list(12_000, 6))),
        ("baggage commas", with(b"baggage", fill(b",;="))),
        ("baggage properties", with(b"baggage", fill(b"a=b;c"))),
        ("many baggage headers", each(b"baggage", 1000, 80)),
        ("tags", with(b"x-datadog-tags", fill(b"_dd.p.tid=0000000000000001,"))),
        ("fields", with(b"x-amzn-trace-id", fill(b"Root=1-0af76519-16cd43dd8448eb211c80319c;"))),
        ("dashes", with(b"b3", fill(b"-"))),
        ("colons", with(b"uber-trace-id", fill(b":"))),
        ("a long traceparent", vec![(b"traceparent", [PARENT, &fill(b"-")].concat())]),
        ("many other headers", each(b"x-something", 1000, 80)),
    ]
}

#[test]
fn hostile_headers_of_96_kib_cost_less_than_a_millisecond_and_a_mebibyte() {
    // An unoptimised build is an order of magnitude slower, and only there to catch a square.
    let bound = Duration::from_millis(if cfg!(debug_assertions) { 30 } else { 1 });
    for (name, headers) in hostile() {
        for allow in ["", r#""baggage_allow": ["000001", "a"], "#] {
            let config = config(&ALL.replacen('{', &format!("{{{allow}"), 1));
            let policy = policy("{}");
            let mut rng = StdRng::seed_from_u64(1);
            let mut best = Duration::MAX;
            for _ in 0..10 {
                let mut edits = Edits::new();
                let from = Instant::now();
                let (_, bytes, _) = allocated(|| {
                    let headers = headers.iter().map(|(n, v)| (*n, &v[..]));
                    propagate(&config, &policy, headers, &mut rng, &mut edits)
                });
                best = best.min(from.elapsed());
                assert!(bytes < 1024 * 1024, "{name}: {bytes} bytes");
            }
            println!("{best:?} {name} {allow}");
            assert!(best < bound, "{name} {allow}: {best:?}");
        }
    }
}
