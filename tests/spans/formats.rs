//! B3, Jaeger, Datadog and X-Ray as an upstream receives them.

#[path = "../../filters/trace/tests/common/table.rs"]
mod table;

use serde_json::{Value, json};
use table::FORMATS;

use crate::support::{PARENT, Rig, exporting, hex};

fn names() -> Vec<&'static str> {
    FORMATS.iter().map(|(name, _)| *name).collect()
}

#[tokio::test]
async fn any_format_arrives_as_every_other() {
    let rig = Rig::start(json!({"extract": names(), "inject": names()})).await;
    for (from, headers) in FORMATS {
        let sent = rig.sent(headers).await;
        for (to, expected) in FORMATS {
            for (name, value) in expected {
                assert_eq!(sent.one(name).as_deref(), Some(*value), "{from} to {to}");
            }
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn what_is_extracted_and_not_injected_is_gone_and_what_is_neither_is_untouched() {
    let rig = Rig::start(json!({"extract": ["b3", "jaeger"], "inject": ["tracecontext"]})).await;
    let sent = rig
        .sent(&[
            ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
            ("uber-trace-id", "1:2:0:0"),
            ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
            ("x-datadog-trace-id", "not even a number"),
            ("x-amzn-trace-id", "Root=?"),
            ("baggage", "not=baggage;;,"),
        ])
        .await;
    assert_eq!(sent.one("traceparent").as_deref(), Some(PARENT), "the first of the list wins");
    assert_eq!((sent.one("b3"), sent.one("uber-trace-id")), (None, None));
    for (name, value) in [
        ("x-b3-traceid", "463ac35c9f6413ad48485a3953bb6124"),
        ("x-datadog-trace-id", "not even a number"),
        ("x-amzn-trace-id", "Root=?"),
        ("baggage", "not=baggage;;,"),
    ] {
        assert_eq!(sent.one(name).as_deref(), Some(value), "{name}");
    }
    rig.end().await;
}

#[tokio::test]
async fn sampled_debug_and_64_bit_ids_survive_the_conversion_to_the_span() {
    let rows: [(&str, &str, u8, &str); 6] = [
        ("b3", "463ac35c9f6413ad-a2fb4a1d1a96d312-d", 1, "0000000000000000463ac35c9f6413ad"),
        ("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-0", 0, ""),
        (
            "uber-trace-id",
            "463ac35c9f6413ad:a2fb4a1d1a96d312:0:3",
            1,
            "0000000000000000463ac35c9f6413ad",
        ),
        ("uber-trace-id", "463ac35c9f6413ad:a2fb4a1d1a96d312:0:0", 0, ""),
        (
            "x-amzn-trace-id",
            "Sampled=1;Root=1-463ac35c-9f6413ad48485a3953bb6124;Parent=a2fb4a1d1a96d312",
            1,
            "463ac35c9f6413ad48485a3953bb6124",
        ),
        ("b3", "0", 0, ""),
    ];
    let trace =
        json!({"extract": ["b3", "jaeger", "xray"], "inject": ["tracecontext", "b3", "jaeger"]});
    let rig = Rig::start(exporting(trace)).await;
    for (name, value, flags, exported) in rows {
        let sent = rig.sent(&[(name, value)]).await;
        assert_eq!(sent.parent().2 & 1, flags, "{value}");
        let b3 = sent.one("b3").unwrap();
        let debug = value.ends_with("-d") || value.ends_with(":3");
        let state = match (debug, flags) {
            (true, _) => "d",
            (false, 1) => "1",
            _ => "0",
        };
        // Behind the state is the parent's id, where there is a parent.
        assert_eq!(b3.split('-').nth(2), Some(state), "{value} became {b3}");
        if flags == 1 {
            let span = rig.span().await;
            assert_eq!(hex(&span.trace_id), exported, "{value}");
            assert_eq!(hex(&span.parent_span_id), "a2fb4a1d1a96d312", "{value}");
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn an_id_that_does_not_fit_begins_a_new_trace_and_is_never_cut() {
    let all: Value = json!({"extract": names(), "inject": ["tracecontext"]});
    let rig = Rig::start(all).await;
    for headers in [
        &[("b3", "0af7651916cd43dd8448eb211c80319c00-b7ad6b7169203331-1")][..],
        &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c00:b7ad6b7169203331:0:1")],
        &[("x-datadog-trace-id", "18446744073709551616"), ("x-datadog-parent-id", "1")],
        &[
            ("x-datadog-trace-id", "9532127138774266268"),
            ("x-datadog-parent-id", "13235353014750950193"),
            ("x-datadog-tags", "_dd.p.tid=0af7651916cd43"),
        ],
        &[(
            "x-amzn-trace-id",
            "Root=1-0af76519-16cd43dd8448eb211c80319c00;Parent=b7ad6b7169203331",
        )],
    ] {
        let (trace, _, _) = rig.sent(headers).await.parent();
        assert!(!trace.contains("8448eb211c80319c"), "{headers:?} became {trace}");
    }
    rig.end().await;
}
