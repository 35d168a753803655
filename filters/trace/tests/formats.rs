//! B3, Jaeger, Datadog and X-Ray: each alone, and every conversion between two of them.

mod common;
#[path = "common/table.rs"]
mod table;

use common::{Sent, config, policy, send, send_bytes};
use table::FORMATS;

/// The same headers with the decision "not sampled".
fn unsampled(headers: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let turn = |name: &'static str, value: &str| match name {
        "x-datadog-sampling-priority" | "x-b3-sampled" => (name, "0".to_owned()),
        "traceparent" => (name, value.replace("-01", "-00")),
        "b3" => (name, value.replace("31-1", "31-0")),
        "uber-trace-id" => (name, value.replace(":0:1", ":0:0")),
        _ => (name, value.replace("Sampled=1", "Sampled=0")),
    };
    headers.iter().map(|(name, value)| turn(name, value)).collect()
}

/// Forwards from one format to another, so that the ids that go in come out.
fn convert(from: &str, to: &str, headers: &[(&str, &str)]) -> Sent {
    send(&format!(r#"{{"extract": ["{from}"], "inject": ["{to}"]}}"#), headers)
}

#[test]
fn any_format_converts_into_any_other_and_the_old_headers_are_gone() {
    for (from, received) in FORMATS {
        for (to, expected) in FORMATS {
            let sent = convert(from, to, received);
            assert_eq!(sent.headers.len(), expected.len(), "{from} to {to}: {sent:?}");
            for (name, value) in expected {
                assert_eq!(sent.get(name), Some(*value), "{from} to {to}");
            }
            let sent = send_bytes(
                &config(&format!(r#"{{"extract": ["{from}"], "inject": ["{to}"]}}"#)),
                &policy("{}"),
                &unsampled(received)
                    .iter()
                    .map(|(n, v)| (n.as_bytes(), v.as_bytes()))
                    .collect::<Vec<_>>(),
            );
            for (name, value) in unsampled(expected) {
                assert_eq!(sent.get(name), Some(&*value), "{from} to {to}, not sampled");
            }
        }
    }
}

#[test]
fn all_injected_formats_tell_the_same_story() {
    let inject = FORMATS.map(|(name, _)| format!("\"{name}\"")).join(",");
    let json = format!(r#"{{"participate": true, "inject": [{inject}]}}"#);
    let sent = send(&json, FORMATS[0].1);
    for (from, headers) in FORMATS {
        let these: Vec<_> =
            headers.iter().filter_map(|(name, _)| Some((*name, sent.get(name)?))).collect();
        let again = convert(from, "tracecontext", &these);
        assert_eq!(again.get("traceparent"), sent.get("traceparent"), "{from}");
    }
    let parent = sent.get("x-b3-parentspanid");
    assert_eq!(parent, Some("b7ad6b7169203331"), "B3 alone names the parent's parent");
}

#[test]
fn the_first_format_of_the_ordered_list_that_names_a_trace_wins() {
    let (w3c, b3) = (FORMATS[0].1[0], ("b3", "1111111111111111-2222222222222222-1"));
    let first = r#"{"extract": ["b3", "tracecontext"], "inject": ["tracecontext"]}"#;
    assert_eq!(send(first, &[w3c, b3]).traceparent()[2], "2222222222222222");
    let second = r#"{"extract": ["tracecontext", "b3"], "inject": ["tracecontext"]}"#;
    assert_eq!(send(second, &[w3c, b3]).traceparent()[2], "b7ad6b7169203331");
    // What is malformed does not name a trace.
    assert_eq!(send(second, &[("traceparent", "x"), b3]).traceparent()[2], "2222222222222222");
}

#[test]
fn a_list_that_belongs_to_another_trace_is_not_sent_on() {
    let json = r#"{"extract": ["b3", "tracecontext"], "inject": ["tracecontext"]}"#;
    let headers = [FORMATS[0].1[0], FORMATS[1].1[0], ("tracestate", "foo=1")];
    assert_eq!(send(json, &headers).get("tracestate"), None);
}

#[test]
fn nothing_of_a_format_that_is_neither_extracted_nor_injected_is_touched() {
    for (chosen, own) in FORMATS {
        let json =
            format!(r#"{{"participate": true, "extract": ["{chosen}"], "inject": ["{chosen}"]}}"#);
        let others: Vec<_> = FORMATS
            .iter()
            .filter(|(name, _)| *name != chosen)
            .flat_map(|(_, headers)| headers.iter().copied())
            .chain([("x-datadog-origin", "synthetics"), ("uberctx-a", "b")])
            .collect();
        let sent = send(&json, &[own, &others[..]].concat());
        for (name, value) in others {
            assert_eq!(sent.get(name), Some(value), "{chosen}");
        }
    }
}

#[test]
fn debug_is_kept_wherever_a_format_knows_it_and_is_sampled_elsewhere() {
    let debug: [(&str, &[(&str, &str)]); 4] = [
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-d")]),
        (
            "b3multi",
            &[
                ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
                ("x-b3-spanid", "b7ad6b7169203331"),
                ("x-b3-flags", "1"),
            ],
        ),
        ("jaeger", &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:3")]),
        (
            "datadog",
            &[
                ("x-datadog-trace-id", "9532127138774266268"),
                ("x-datadog-parent-id", "13235353014750950193"),
                ("x-datadog-sampling-priority", "2"),
                ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd"),
            ],
        ),
    ];
    for (from, received) in debug {
        for (to, expected) in debug {
            let sent = convert(from, to, received);
            assert_eq!(sent.headers.len(), expected.len(), "{from} to {to}");
            for (name, value) in expected {
                assert_eq!(sent.get(name), Some(*value), "{from} to {to}");
            }
        }
        for (to, expected) in [FORMATS[0], FORMATS[5]] {
            assert_eq!(convert(from, to, received).get(expected[0].0), Some(expected[0].1));
        }
        let boundary =
            format!(r#"{{"extract": ["{from}"], "inject": ["b3"], "boundary": "ignore_sampled"}}"#);
        let sent = send(&boundary, received);
        assert!(sent.context.sampled && !sent.context.debug, "a stranger's debug forces nothing");
    }
}

#[test]
fn ids_of_64_bits_are_padded_on_the_left_and_come_back_as_they_were() {
    let short: [(&str, &[(&str, &str)]); 4] = [
        ("b3", &[("b3", "8448eb211c80319c-b7ad6b7169203331-1")]),
        (
            "b3multi",
            &[
                ("x-b3-traceid", "8448eb211c80319c"),
                ("x-b3-spanid", "b7ad6b7169203331"),
                ("x-b3-sampled", "1"),
            ],
        ),
        ("jaeger", &[("uber-trace-id", "8448eb211c80319c:b7ad6b7169203331:0:1")]),
        (
            "datadog",
            &[
                ("x-datadog-trace-id", "9532127138774266268"),
                ("x-datadog-parent-id", "13235353014750950193"),
                ("x-datadog-sampling-priority", "1"),
            ],
        ),
    ];
    for (from, received) in short {
        for (to, expected) in short {
            let sent = convert(from, to, received);
            assert_eq!(sent.headers.len(), expected.len(), "{from} to {to}");
            for (name, value) in expected {
                assert_eq!(sent.get(name), Some(*value), "{from} to {to}");
            }
        }
        let sent = convert(from, "tracecontext", received);
        assert_eq!(sent.traceparent()[1], "00000000000000008448eb211c80319c", "{from}");
    }
}

#[test]
fn an_id_that_does_not_fit_is_refused_and_never_cut() {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let cases: [(&str, &[(&str, &str)]); 23] = [
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c1-b7ad6b7169203331-1")]),
        ("b3", &[("b3", "af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1")]),
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-1")]),
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-0000000000000000-1")]),
        ("b3", &[("b3", "0000000000000000-b7ad6b7169203331-1")]),
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-x")]),
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-b7ad6b7169203331-")]),
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-zz")]),
        ("b3multi", &[("x-b3-traceid", trace), ("x-b3-sampled", "1")]),
        ("b3multi", &[("x-b3-spanid", "b7ad6b7169203331")]),
        (
            "b3multi",
            &[
                ("x-b3-traceid", trace),
                ("x-b3-traceid", trace),
                ("x-b3-spanid", "b7ad6b7169203331"),
            ],
        ),
        ("jaeger", &[("uber-trace-id", "10af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1")]),
        ("jaeger", &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:1b7ad6b7169203331:0:1")]),
        ("jaeger", &[("uber-trace-id", "0:b7ad6b7169203331:0:1")]),
        ("jaeger", &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0")]),
        ("jaeger", &[("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:123")]),
        (
            "datadog",
            &[("x-datadog-trace-id", "18446744073709551616"), ("x-datadog-parent-id", "1")],
        ),
        ("datadog", &[("x-datadog-trace-id", "-1"), ("x-datadog-parent-id", "1")]),
        ("datadog", &[("x-datadog-trace-id", "0"), ("x-datadog-parent-id", "1")]),
        ("datadog", &[("x-datadog-trace-id", "1"), ("x-datadog-parent-id", "x")]),
        (
            "datadog",
            &[
                ("x-datadog-trace-id", "1"),
                ("x-datadog-parent-id", "1"),
                ("x-datadog-tags", "_dd.p.tid=abc"),
            ],
        ),
        (
            "xray",
            &[(
                "x-amzn-trace-id",
                "Root=1-0af76519-16cd43dd8448eb211c80319;Parent=b7ad6b7169203331",
            )],
        ),
        ("xray", &[("x-amzn-trace-id", "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7")]),
    ];
    for (from, headers) in cases {
        let sent = convert(from, "tracecontext", headers);
        assert!(sent.context.new_root, "{from} {headers:?}: {:?}", sent.context);
    }
}

/// What names a trace and no span yet: synthetic tests and browsers, load balancers.
const ROOTS: [(&str, &[(&str, &str)]); 6] = [
    ("datadog", &[("x-datadog-trace-id", "7"), ("x-datadog-parent-id", "0")]),
    ("datadog", &[("x-datadog-trace-id", "7")]),
    (
        "datadog",
        &[
            ("x-datadog-trace-id", "7"),
            ("x-datadog-parent-id", "0"),
            ("x-datadog-sampling-priority", "1"),
            ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd,_dd.p.dm=-4"),
            ("x-datadog-origin", "synthetics"),
        ],
    ),
    ("xray", &[("x-amzn-trace-id", "Root=1-0af76519-16cd43dd8448eb211c80319c")]),
    ("xray", &[("x-amzn-trace-id", "Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1")]),
    ("xray", &[("x-amzn-trace-id", "Self=1-0af76519-0;Root=1-0af76519-16cd43dd8448eb211c80319c")]),
];

#[test]
fn a_trace_without_a_span_goes_on_byte_for_byte_where_nobody_exports() {
    for (format, headers) in ROOTS {
        for ratio in [0, 1] {
            let json = format!(r#"{{"extract": ["{format}"], "inject": ["{format}"]}}"#);
            let policy = policy(&format!(r#"{{"ratio": {ratio}}}"#));
            let bytes: Vec<_> = headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            let sent = send_bytes(&config(&json), &policy, &bytes);
            assert!(!sent.context.new_root && sent.context.forwarded, "{format} {headers:?}");
            assert_eq!(sent.edits, 0, "{format} {headers:?}: {sent:?}");
        }
    }
}

#[test]
fn a_trace_without_a_span_goes_on_under_the_proxys_own_where_it_takes_part() {
    for (format, headers) in ROOTS {
        let json = format!(
            r#"{{"participate": true, "extract": ["{format}"],
                "inject": ["{format}", "tracecontext"]}}"#
        );
        let sent = send(&json, headers);
        let context = sent.context;
        assert!(!context.new_root && context.own_span && context.link.is_none(), "{headers:?}");
        assert_eq!(context.parent_span_id, None, "{headers:?}");
        let [low @ .., _, _, _, _, _, _, _, _] = &context.trace_id;
        let ours = sent.traceparent()[2].to_owned();
        match format {
            "xray" => {
                assert_eq!(low[0], 0x0a);
                assert!(sent.get("x-amzn-trace-id").unwrap().contains(&format!("Parent={ours}")));
            }
            _ => {
                let parent = u64::from_str_radix(&ours, 16).unwrap().to_string();
                assert_eq!(sent.get("x-datadog-trace-id"), Some("7"));
                assert_eq!(sent.get("x-datadog-parent-id"), Some(&*parent));
            }
        }
    }
}

#[test]
fn a_decision_that_is_left_to_the_receiver_is_made_by_the_ratio() {
    let open: [(&str, &[(&str, &str)]); 5] = [
        ("b3", &[("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331")]),
        (
            "b3multi",
            &[
                ("x-b3-traceid", "0af7651916cd43dd8448eb211c80319c"),
                ("x-b3-spanid", "b7ad6b7169203331"),
            ],
        ),
        ("datadog", &FORMATS[4].1[..2]),
        (
            "xray",
            &[(
                "x-amzn-trace-id",
                "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331",
            )],
        ),
        (
            "xray",
            &[(
                "x-amzn-trace-id",
                "Sampled=?;parent=b7ad6b7169203331; ROOT=1-0af76519-16cd43dd8448eb211c80319c",
            )],
        ),
    ];
    for (from, headers) in open {
        for ratio in [0, 1] {
            let json = format!(r#"{{"extract": ["{from}"], "inject": ["tracecontext"]}}"#);
            let policy = policy(&format!(r#"{{"ratio": {ratio}}}"#));
            let headers: Vec<_> =
                headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            let sent = send_bytes(&config(&json), &policy, &headers);
            assert!(!sent.context.new_root, "{from}");
            assert_eq!(sent.context.sampled, ratio == 1, "{from}");
        }
    }
}

#[test]
fn b3_without_ids_decides_about_the_trace_that_begins_here() {
    for (from, headers, sampled, debug) in [
        ("b3", &[("b3", "0")][..], false, false),
        ("b3", &[("b3", "1")], true, false),
        ("b3", &[("b3", "d")], true, true),
        ("b3multi", &[("x-b3-sampled", "0")], false, false),
        ("b3multi", &[("X-B3-Sampled", "false")], false, false),
        ("b3multi", &[("x-b3-sampled", "TRUE")], true, false),
        ("b3multi", &[("X-B3-Flags", "1"), ("x-b3-sampled", "0")], true, true),
    ] {
        let sent = convert(from, from, headers);
        let context = sent.context;
        assert_eq!((context.sampled, context.debug, context.new_root), (sampled, debug, true));
    }
}

#[test]
fn jaeger_ids_may_lack_zeroes_and_its_colons_may_be_encoded() {
    for value in
        ["af7651916cd43dd8448eb211c80319c:1:0:1", "0AF7651916CD43DD8448EB211C80319C%3A01%3a0%3A1"]
    {
        let sent = convert("jaeger", "tracecontext", &[("Uber-Trace-Id", value)]);
        let expect = "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01";
        assert_eq!(sent.get("traceparent"), Some(expect), "{value}");
    }
}

#[test]
fn datadog_tags_and_a_users_rejection_go_on_with_their_context_only() {
    let json = r#"{"participate": true, "extract": ["datadog"], "inject": ["datadog"]}"#;
    let headers = [
        ("x-datadog-trace-id", "42"),
        ("x-datadog-parent-id", "43"),
        ("x-datadog-sampling-priority", "-1"),
        ("x-datadog-tags", "_dd.p.dm=-4,_dd.p.tid=00000000000000ff,_dd.p.usr=x y"),
        ("x-datadog-origin", "rum"),
    ];
    let sent = send(json, &headers);
    assert_eq!(sent.get("x-datadog-trace-id"), Some("42"));
    assert_eq!(sent.get("x-datadog-sampling-priority"), Some("-1"));
    let tags = "_dd.p.dm=-4,_dd.p.usr=x y,_dd.p.tid=00000000000000ff";
    assert_eq!(sent.get("x-datadog-tags"), Some(tags));
    assert_eq!(sent.get("x-datadog-origin"), Some("rum"));
    // The same tags beside another format's trace are another trace's tags.
    let json = r#"{"extract": ["tracecontext", "datadog"], "inject": ["datadog"]}"#;
    let sent = send(json, &[&headers[..], FORMATS[0].1].concat());
    assert_eq!(sent.get("x-datadog-tags"), Some("_dd.p.tid=0af7651916cd43dd"));
}

#[test]
fn a_trace_id_that_datadog_cannot_say_is_not_said_in_its_format() {
    let value = "00-0af7651916cd43dd0000000000000000-b7ad6b7169203331-01";
    let json = r#"{"inject": ["tracecontext", "datadog"]}"#;
    let sent = send(json, &[("traceparent", value), ("x-datadog-trace-id", "1")]);
    assert_eq!((sent.get("traceparent"), sent.get("x-datadog-trace-id")), (Some(value), None));
}

#[test]
fn an_xray_root_without_a_parent_names_the_trace_and_its_other_fields_are_kept() {
    let json = r#"{"participate": true, "extract": ["xray"], "inject": ["xray"]}"#;
    let value = "Self=1-67891234-12456789abcdef012345678;Root=1-0af76519-16cd43dd8448eb211c80319c";
    let sent = send(json, &[("X-Amzn-Trace-Id", value)]);
    let got = sent.get("x-amzn-trace-id").unwrap_or_default();
    assert!(got.starts_with("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent="), "{got}");
    assert!(got.ends_with(";Sampled=1;Self=1-67891234-12456789abcdef012345678"), "{got}");
    assert!(!sent.context.new_root && sent.context.parent_span_id.is_none());
}

#[test]
fn forwarding_leaves_the_source_format_byte_for_byte() {
    for (name, headers) in FORMATS {
        let sent = convert(name, name, headers);
        assert_eq!(sent.edits, 0, "{name}");
    }
    let odd = [("b3", "0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331")];
    assert_eq!(convert("b3", "b3", &odd).edits, 0);
}
