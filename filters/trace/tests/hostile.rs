//! Any bytes in any header: nothing panics, and nothing invalid is written.
//!
//! Values are made of pieces of real ones, because random bytes alone would be refused at the first
//! character and test nothing behind it.

mod common;

use common::{config, policy, send_bytes};
use proptest::prelude::*;

const NAMES: [&str; 17] = [
    "traceparent",
    "TraceParent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-amzn-trace-id",
    "x-other",
];

const PIECES: [&[u8]; 34] = [
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-",
    b"0af7651916cd43dd8448eb211c80319c",
    b"b7ad6b7169203331",
    b"00000000000000000000000000000000",
    b"0",
    b"1",
    b"d",
    b"true",
    b"-",
    b":",
    b"%3A",
    b",",
    b";",
    b"=",
    b" ",
    b"\t",
    b"foo=1",
    b"a=b;p=q;r",
    b"18446744073709551615",
    b"-1",
    b"2",
    b"_dd.p.tid=0af7651916cd43dd",
    b"_dd.p.tid=",
    b"Root=1-0af76519-16cd43dd8448eb211c80319c",
    b"Parent=b7ad6b7169203331",
    b"Sampled=1",
    b"Self=",
    b"\r\n",
    b"\0",
    b"\x80\xff",
    b"\xc3\xa4",
    b"\"\\",
    b"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk",
];

const CONFIGS: [&str; 6] = [
    "{}",
    r#"{"participate": true, "tracestate_member": "pintle", "baggage_allow": ["a", "foo"]}"#,
    r#"{"participate": true,
        "extract": ["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray", "baggage"],
        "inject": ["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray", "baggage"]}"#,
    r#"{"extract": ["xray", "datadog", "jaeger", "b3multi", "b3", "tracecontext"],
        "inject": ["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray"],
        "boundary": "ignore_sampled"}"#,
    r#"{"extract": ["b3multi", "xray"], "inject": ["datadog", "xray", "tracecontext"],
        "boundary": "restart"}"#,
    r#"{"extract": ["b3", "b3multi", "jaeger", "datadog", "xray", "baggage"], "inject": []}"#,
];

fn value() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => proptest::sample::select(&PIECES[..]).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..8),
    ];
    prop_oneof![
        4 => proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat()),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    proptest::collection::vec((proptest::sample::select(&NAMES[..]), value()), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    // `send_bytes` asserts that each value written is a field value.
    #[test]
    fn no_bytes_panic_and_every_value_written_is_valid(
        headers in headers(),
        json in proptest::sample::select(&CONFIGS[..]),
        ratio in 0.0..=1.0_f64,
    ) {
        let config = config(json);
        let policy = policy(&format!(r#"{{"ratio": {ratio}, "spans": "per_attempt"}}"#));
        let borrowed: Vec<_> = headers.iter().map(|(n, v)| (n.as_bytes(), &v[..])).collect();
        let sent = send_bytes(&config, &policy, &borrowed);
        let context = sent.context;
        prop_assert_ne!(context.trace_id, [0; 16]);
        prop_assert_ne!(context.span_id, [0; 8]);
        prop_assert!(!context.debug || context.sampled);
        prop_assert!(!context.forwarded || context.link.is_none());
        for (name, value) in &borrowed {
            let name = String::from_utf8_lossy(name);
            if name == "x-other" {
                prop_assert!(sent.headers.iter().any(|(n, v)| *n == name && v == value));
            }
        }
    }

    #[test]
    fn what_was_written_is_understood_and_then_left_alone(
        headers in headers(),
        participate in any::<bool>(),
    ) {
        let all = r#"["tracecontext", "b3", "b3multi", "jaeger", "xray"]"#;
        let config =
            config(&format!(r#"{{"participate": {participate}, "extract": {all}, "inject": {all}}}"#));
        let borrowed: Vec<_> = headers.iter().map(|(n, v)| (n.as_bytes(), &v[..])).collect();
        let sent = send_bytes(&config, &policy("{}"), &borrowed);
        let again: Vec<_> = sent.headers.iter().map(|(n, v)| (n.as_bytes(), &v[..])).collect();
        let second = send_bytes(&config, &policy("{}"), &again);
        prop_assert_eq!(second.context.trace_id, sent.context.trace_id);
        prop_assert!(!second.context.new_root);
        if participate {
            prop_assert_eq!(second.context.parent_span_id, Some(sent.context.span_id));
        } else {
            prop_assert_eq!(second.context.span_id, sent.context.span_id);
        }
    }
}
