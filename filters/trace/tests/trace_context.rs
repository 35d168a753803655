//! W3C Trace Context Level 2, as claims. Names of tests are the specification's sentences; the
//! section is named where it is not plain. The inputs follow those of the specification's own test
//! suite where it has them.

mod common;

use std::collections::HashSet;

use common::{FORWARDING, PARENT, PARTICIPATING, Sent, TRACE, send};
use pintle_trace::{Edits, propagate};
use rand::SeedableRng;
use rand::rngs::StdRng;

const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A participating proxy continues the trace with a span of its own.
fn assert_continued(sent: &Sent, what: &str) {
    let [version, trace, span, _] = sent.traceparent();
    assert_eq!((version, trace), ("00", TRACE), "{what}");
    assert_ne!(span, PARENT, "{what}");
    assert!(!sent.context.new_root && sent.context.parent_span_id.is_some(), "{what}");
}

/// A new trace began, and nothing of the old list goes on.
fn assert_restarted(sent: &Sent, what: &str) {
    let [version, trace, span, flags] = sent.traceparent();
    assert_eq!(version, "00", "{what}");
    assert_ne!(trace, TRACE, "{what}");
    assert_ne!((trace, span), (&*"0".repeat(32), &*"0".repeat(16)), "{what}");
    assert_eq!(flags, "03", "{what}: sampled by the ratio, and the id is random");
    assert!(sent.context.new_root && sent.context.parent_span_id.is_none(), "{what}");
    assert_eq!(sent.get("tracestate"), None, "{what}");
}

fn state(list: &str) -> Sent {
    send(PARTICIPATING, &[("traceparent", VALID), ("tracestate", list)])
}

// Traceparent

#[test]
fn header_names_must_be_expected_in_any_case() {
    for (parent, list) in [
        ("traceparent", "tracestate"),
        ("TraceParent", "TraceState"),
        ("TRACEPARENT", "TRACESTATE"),
        ("TrAcEpArEnT", "TrAcEsTaTe"),
    ] {
        let sent = send(PARTICIPATING, &[(parent, VALID), (list, "foo=1")]);
        assert_continued(&sent, parent);
        assert_eq!(sent.get("tracestate"), Some("foo=1"), "{list}");
    }
}

#[test]
fn other_names_are_not_traceparent_nor_tracestate() {
    for name in ["trace-parent", "trace.parent", "traceparents", "xtraceparent"] {
        let sent = send(PARTICIPATING, &[(name, VALID)]);
        assert!(sent.context.new_root, "{name}");
        assert_eq!(sent.get(name), Some(VALID), "{name}");
    }
    for name in ["trace-state", "trace.state"] {
        let sent = send(PARTICIPATING, &[("traceparent", VALID), (name, "foo=1")]);
        assert_eq!((sent.get("tracestate"), sent.get(name)), (None, Some("foo=1")));
    }
}

#[test]
fn a_valid_traceparent_must_be_sent_on_with_a_new_parent_id() {
    let sent = send(PARTICIPATING, &[("traceparent", VALID)]);
    assert_continued(&sent, "valid");
    assert_eq!(sent.traceparent()[3], "01");
    assert_eq!(sent.edits, 1);
}

#[test]
fn an_invalid_traceparent_must_be_ignored_and_its_tracestate_not_parsed() {
    for value in [
        "",
        "00",
        "00-",
        // version
        ".0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0.-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "000-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0000-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0A-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        // trace-id
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-.af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319.-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c3-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        // parent-id
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319c-.7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333.-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692033311-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
        "00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
        // trace-flags
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-.0",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0A",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-001",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        // delimiters, and a tail that version 00 does not have
        "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331_01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
    ] {
        for config in [PARTICIPATING, FORWARDING] {
            let sent = send(config, &[("traceparent", value), ("tracestate", "foo=1,bar=2")]);
            assert_restarted(&sent, value);
        }
    }
}

#[test]
fn version_ff_is_forbidden() {
    let sent = send(PARTICIPATING, &[("traceparent", &VALID.replacen("00", "ff", 1))]);
    assert_restarted(&sent, "ff");
}

#[test]
fn a_duplicated_traceparent_restarts_the_trace_even_if_both_are_equal() {
    let other = VALID.replace('b', "c");
    for second in [VALID, &other] {
        let headers = [("traceparent", VALID), ("TraceParent", second), ("tracestate", "foo=1")];
        for config in [PARTICIPATING, FORWARDING] {
            assert_restarted(&send(config, &headers), second);
        }
    }
    let joined = format!("{VALID},{other}");
    assert_restarted(&send(PARTICIPATING, &[("traceparent", &joined)]), "joined");
}

#[test]
fn white_space_around_traceparent_is_not_part_of_it() {
    for value in
        [format!(" {VALID}"), format!("\t{VALID}"), format!("{VALID} "), format!("\t {VALID} \t")]
    {
        assert_continued(&send(PARTICIPATING, &[("traceparent", &value)]), &value);
    }
}

#[test]
fn a_higher_version_must_be_parsed_as_far_as_known_and_answered_as_00() {
    let cc = VALID.replacen("00", "cc", 1);
    for value in [cc.clone(), format!("{cc}-what-the-future-will-be-like"), format!("{cc}-")] {
        let sent = send(PARTICIPATING, &[("traceparent", &value), ("tracestate", "foo=1")]);
        assert_continued(&sent, &value);
        assert_eq!((sent.traceparent()[3], sent.get("tracestate")), ("01", Some("foo=1")));
    }
}

#[test]
fn the_flags_of_a_higher_version_must_end_the_value_or_be_followed_by_a_dash() {
    let cc = VALID.replacen("00", "cc", 1);
    for tail in [".what", "0", "1-x", " x"] {
        let value = format!("{cc}{tail}");
        assert_restarted(&send(PARTICIPATING, &[("traceparent", &value)]), &value);
    }
    assert_restarted(&send(PARTICIPATING, &[("traceparent", &cc[..54])]), "too short");
}

#[test]
fn the_sampled_flag_is_one_bit_and_unknown_bits_must_be_set_to_zero() {
    for (received, sent_flags) in
        [("00", "00"), ("01", "01"), ("08", "00"), ("09", "01"), ("ff", "03"), ("fc", "00")]
    {
        let value = format!("00-{TRACE}-{PARENT}-{received}");
        let sent = send(PARTICIPATING, &[("traceparent", &value)]);
        assert_continued(&sent, &value);
        assert_eq!(sent.traceparent()[3], sent_flags, "{received}");
    }
}

#[test]
fn the_random_flag_must_keep_its_value_while_the_trace_id_does() {
    for (received, random) in [("00", false), ("01", false), ("02", true), ("03", true)] {
        let value = format!("00-{TRACE}-{PARENT}-{received}");
        for boundary in ["trust", "ignore_sampled"] {
            let config = format!(r#"{{"participate": true, "boundary": "{boundary}"}}"#);
            let sent = send(&config, &[("traceparent", &value)]);
            assert_eq!(sent.context.random, random, "{received} {boundary}");
        }
    }
}

#[test]
fn the_random_flag_is_set_where_a_trace_begins_and_must_be_zero_for_a_padded_id() {
    assert_eq!(send(PARTICIPATING, &[]).traceparent()[3], "03");
    let config = r#"{"participate": true, "extract": ["b3"], "inject": ["tracecontext"]}"#;
    let sent = send(config, &[("b3", "53ce929d0e0e4736-b7ad6b7169203331-1")]);
    let [_, trace, _, flags] = sent.traceparent();
    assert_eq!((trace, flags), ("000000000000000053ce929d0e0e4736", "01"));
}

/// Level 2: with the flag set, at least the right-most seven bytes must be random.
#[test]
fn the_right_most_seven_bytes_of_an_id_that_says_so_must_be_random() {
    const IDS: u32 = 4_000;
    let config = common::config(PARTICIPATING);
    let policy = common::policy("{}");
    let (mut rng, mut edits) = (StdRng::seed_from_u64(3), Edits::new());
    let (mut seen, mut ones) = (HashSet::new(), [0_u32; 56]);
    for _ in 0..IDS {
        let context = propagate(&config, &policy, [], &mut rng, &mut edits);
        assert!(context.random);
        let id = u128::from_be_bytes(context.trace_id) & ((1 << 56) - 1);
        assert!(seen.insert(id), "{id:x} twice");
        for (bit, count) in ones.iter_mut().enumerate() {
            *count += u32::from(id >> bit & 1 == 1);
        }
    }
    // Of a fair bit six standard deviations are 190.
    assert!(ones.iter().all(|count| count.abs_diff(IDS / 2) < 190), "{ones:?}");
}

#[test]
fn a_received_tracestate_must_be_sent_on_and_nothing_but_the_named_mutations_made() {
    for (config, flags) in [(PARTICIPATING, "01"), (FORWARDING, "01"), (PARTICIPATING, "02")] {
        let value = format!("00-{TRACE}-{PARENT}-{flags}");
        let headers = [("traceparent", &*value), ("tracestate", "foo=1,bar=2"), ("x-other", "1")];
        let sent = send(config, &headers);
        let [version, trace, _, sent_flags] = sent.traceparent();
        assert_eq!((version, trace, sent_flags), ("00", TRACE, flags), "{config}");
        assert_eq!(sent.get("tracestate"), Some("foo=1,bar=2"), "{config}");
        assert_eq!(sent.headers.len(), 3, "{config}: {sent:?}");
    }
}

#[test]
fn the_sampled_flag_may_only_be_changed_together_with_the_parent_id() {
    // A forwarding proxy keeps the parent id, so where it distrusts the flag it must make a new
    // one.
    let config = r#"{"boundary": "ignore_sampled"}"#;
    let headers = |flags: &str| format!("00-{TRACE}-{PARENT}-{flags}");
    let same = send(config, &[("traceparent", &headers("01"))]);
    assert_eq!((same.edits, same.traceparent()[2]), (0, PARENT));
    let changed = send(config, &[("traceparent", &headers("00"))]);
    assert_eq!(changed.traceparent()[3], "01");
    assert_ne!(changed.traceparent()[2], PARENT);
}

// Forwarding (section "Mutating the traceparent Field")

#[test]
fn tracestate_must_not_be_modified_if_traceparent_is_not() {
    // Not even where it is malformed, too long, or in several headers.
    let long = (0..40).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    for list in ["foo=1 , bar=2,,", "not a list", "", &long] {
        let headers = [("traceparent", VALID), ("tracestate", list), ("tracestate", "z=1")];
        let sent = send(FORWARDING, &headers);
        assert_eq!(sent.edits, 0, "{list}");
        assert!(sent.context.forwarded && !sent.context.is_recorded());
    }
}

#[test]
fn a_forwarding_proxy_does_not_analyse_the_version() {
    let future = format!("{}-more", VALID.replacen("00", "cc", 1));
    assert_eq!(send(FORWARDING, &[("traceparent", &future)]).edits, 0);
}

#[test]
fn a_proxy_participates_exactly_when_its_spans_are_exported_unless_told_otherwise() {
    let export = r#""export": {"cluster": "otel", "service_name": "s"}"#;
    for (json, policy, participates) in [
        ("{}".to_owned(), "{}", false),
        (format!("{{{export}}}"), "{}", true),
        (format!("{{{export}}}"), r#"{"spans": "off"}"#, false),
        (format!(r#"{{"participate": false, {export}}}"#), "{}", false),
        (r#"{"participate": true}"#.to_owned(), "{}", true),
    ] {
        let headers = [(&b"traceparent"[..], VALID.as_bytes())];
        let sent = common::send_bytes(&common::config(&json), &common::policy(policy), &headers);
        assert_eq!(sent.context.forwarded, !participates, "{json} {policy}");
        // A trace that begins here is recorded by the same rule.
        let sent = common::send_bytes(&common::config(&json), &common::policy(policy), &[]);
        assert_eq!(sent.context.is_recorded(), participates, "{json} {policy}");
    }
}

#[test]
fn in_a_trace_that_is_not_sampled_an_exporter_leaves_the_caller_the_parent() {
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let exporting = r#"{"tracestate_member": "pintle",
        "export": {"cluster": "otel", "service_name": "s"}}"#;
    let sent = send(exporting, &[("traceparent", UNSAMPLED), ("tracestate", "a=1,pintle=2")]);
    assert_eq!(sent.edits, 0, "valid headers are not touched: {sent:?}");
    assert!(!sent.context.own_span && !sent.context.is_recorded());
    // All that the specification asks is done, beside the caller's span.
    for (flags, becomes) in [("02", "02"), ("fc", "00"), ("fe", "02")] {
        let value = format!("{}{flags}", &UNSAMPLED[..53]);
        let sent = send(exporting, &[("traceparent", &value)]);
        assert_eq!(sent.traceparent(), ["00", TRACE, PARENT, becomes], "{flags}");
    }
    let future = format!("{}-more", UNSAMPLED.replacen("00", "cc", 1));
    assert_eq!(send(exporting, &[("traceparent", &future)]).get("traceparent"), Some(UNSAMPLED));
    let lists = [("traceparent", UNSAMPLED), ("tracestate", "a=1"), ("tracestate", "b=2")];
    assert_eq!(send(exporting, &lists).get("tracestate"), Some("a=1,b=2"));
    let malformed = [("traceparent", UNSAMPLED), ("tracestate", "a=1,=")];
    assert_eq!(send(exporting, &malformed).get("tracestate"), None);
    // Sampled, or told to take part, or where a decision changes: a span of ours.
    let ignoring = r#"{"boundary": "ignore_sampled",
        "export": {"cluster": "otel", "service_name": "s"}}"#;
    for (config, value) in
        [(exporting, VALID), (r#"{"participate": true}"#, UNSAMPLED), (ignoring, UNSAMPLED)]
    {
        let sent = send(config, &[("traceparent", value)]);
        let [_, trace, span, _] = sent.traceparent();
        assert!(trace == TRACE && span != PARENT && sent.context.own_span, "{config} {value}");
    }
    // B3 names the caller's parent, too, which only a span of ours can replace.
    let b3 = r#"{"extract": ["b3"], "inject": ["b3"],
        "export": {"cluster": "otel", "service_name": "s"}}"#;
    let value = format!("{TRACE}-{PARENT}-0-00f067aa0ba902b7");
    let sent = send(b3, &[("b3", &value)]);
    assert!(sent.context.own_span && sent.get("b3").unwrap().ends_with(&format!("-0-{PARENT}")));
}

// Tracestate

#[test]
fn tracestate_without_traceparent_must_not_be_parsed_nor_sent_on() {
    for config in [PARTICIPATING, FORWARDING] {
        assert_restarted(&send(config, &[("tracestate", "foo=1,bar=2")]), config);
    }
}

#[test]
fn failure_to_parse_tracestate_must_not_affect_traceparent_and_drops_the_list() {
    let key257 = format!("{}=1", "k".repeat(257));
    let value257 = format!("k={}", "v".repeat(257));
    for list in [
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "@foo=1",
        "_foo=1",
        "=1",
        "foo",
        "foo=",
        "foo= ",
        "foo=bar=baz",
        "foo=\u{7f}",
        "foo=a\tb",
        "foo=ä",
        "bar=1,foo",
        &key257,
        &value257,
    ] {
        let sent = state(list);
        assert_continued(&sent, list);
        assert_eq!(sent.get("tracestate"), None, "{list}");
    }
}

#[test]
fn a_key_must_begin_with_a_letter_or_digit_and_have_up_to_256_of_its_characters() {
    let long = format!("{}=1", "k".repeat(256));
    for list in ["foo=1", "0foo=1", "a_-*/@b=1", "tenant@vendor=1", &long] {
        let sent = state(list);
        assert_eq!((sent.get("tracestate"), sent.edits), (Some(list), 1), "{list}");
    }
}

#[test]
fn all_allowed_characters_of_a_value_and_leading_spaces_must_be_preserved() {
    let all: String = (0x20..=0x7e_u8).map(char::from).filter(|c| !",=".contains(*c)).collect();
    for list in [format!("foo={all}"), "foo=  1".to_owned(), format!("foo={}", "v".repeat(256))] {
        let two = send(
            PARTICIPATING,
            &[("traceparent", VALID), ("tracestate", &list), ("tracestate", "z=1")],
        );
        assert_eq!(two.get("tracestate"), Some(&*format!("{list},z=1")));
    }
}

#[test]
fn several_tracestate_headers_must_be_combined_in_their_order() {
    let headers = [
        ("traceparent", VALID),
        ("tracestate", "foo=1,bar=2"),
        ("TraceState", ""),
        ("tracestate", " rojo=1 ,\tcongo=2"),
        ("tracestate", "baz=3"),
    ];
    let sent = send(PARTICIPATING, &headers);
    assert_eq!(sent.get("tracestate"), Some("foo=1,bar=2,rojo=1,congo=2,baz=3"));
}

#[test]
fn empty_headers_and_members_must_be_accepted_and_are_not_sent() {
    for list in ["", " ", ",", " , ,\t"] {
        let sent = state(list);
        assert_continued(&sent, list);
        assert_eq!(sent.get("tracestate"), None, "{list:?}");
    }
    // A list with something in it is left as it came.
    let sent = state("foo=1,, \t,bar=2,");
    assert_eq!(sent.get("tracestate"), Some("foo=1,, \t,bar=2,"));
}

#[test]
fn only_one_entry_per_key_is_allowed_and_the_left_most_is_kept() {
    assert_eq!(state("foo=1,bar=2,foo=3").get("tracestate"), Some("foo=1,bar=2"));
}

#[test]
fn there_can_be_32_members_and_the_order_must_be_preserved() {
    let list = |n: usize| (0..n).map(|n| format!("k{n:03}=v")).collect::<Vec<_>>().join(",");
    for received in [31, 32] {
        let sent = state(&list(received));
        assert_eq!(sent.get("tracestate"), Some(&*list(received)), "{received}");
    }
    for received in [33, 64, 1000] {
        let sent = state(&list(received));
        assert_continued(&sent, "too many members");
        assert_eq!(sent.get("tracestate"), None, "{received}");
        let forwarded = send("{}", &[("traceparent", VALID), ("tracestate", &list(received))]);
        assert_eq!(forwarded.get("tracestate"), Some(&*list(received)), "not ours to change");
    }
    // Each in a header of its own.
    for (received, expect) in [(32, Some(list(32))), (33, None)] {
        let one: Vec<String> = (0..received).map(|n| format!("k{n:03}=v")).collect();
        let mut headers = vec![("traceparent", VALID)];
        headers.extend(one.iter().map(|member| ("tracestate", member.as_str())));
        assert_eq!(send(PARTICIPATING, &headers).get("tracestate"), expect.as_deref());
    }
}

#[test]
fn a_list_is_read_as_far_as_it_can_be_valid() {
    for (list, expect) in [
        ("k=v,".repeat(24_000), None),
        (",".repeat(96_000), None),
        (format!("{}late=1", ",".repeat(1_023)), Some(())),
        (format!("{}late=1", ",".repeat(1_024)), None),
    ] {
        let sent = state(&list);
        assert_continued(&sent, "long");
        assert_eq!(sent.get("tracestate"), expect.map(|()| &*list), "{}", list.len());
    }
}

#[test]
fn whole_entries_must_be_truncated_and_those_over_128_characters_go_first() {
    let long = |key: &str| format!("{key}={}", "x".repeat(128));
    let short: Vec<String> = (0..30).map(|n| format!("k{n:03}=v")).collect();
    let short = short.join(",");
    // Our own makes it 33 members: one has to go, the long one further right.
    let config = r#"{"participate": true, "tracestate_member": "rojo"}"#;
    let list = format!("{},{},{short}", long("a"), long("b"));
    let sent = send(config, &[("traceparent", VALID), ("tracestate", &list)]);
    let ours = format!("rojo={}", sent.traceparent()[2]);
    assert_eq!(sent.get("tracestate"), Some(&*format!("{ours},{},{short}", long("a"))));
}

#[test]
fn at_least_512_characters_must_be_propagated_and_at_most_8192_are() {
    let member = |n: usize| format!("k{n:02}={}", "v".repeat(256));
    let list = |n: usize| (0..n).map(member).collect::<Vec<_>>().join(",");
    assert_eq!(state(&list(2)).get("tracestate"), Some(&*list(2)));
    let sent = state(&list(32));
    let got = sent.get("tracestate").unwrap_or_default();
    assert_eq!(got, list(31));
    assert!(got.len() <= 8192 && got.len() + 261 > 8192, "{}", got.len());
}

#[test]
fn our_member_must_be_the_first_and_replace_our_former_one() {
    let config = r#"{"participate": true, "tracestate_member": "rojo"}"#;
    for (list, rest) in [
        ("congo=t61rcWkgMzE", ",congo=t61rcWkgMzE"),
        ("congo=1,rojo=old,x=2", ",congo=1,x=2"),
        ("rojo=old", ""),
        ("", ""),
        ("not a list", ""),
    ] {
        let sent = send(config, &[("traceparent", VALID), ("tracestate", list)]);
        let expect = format!("rojo={}{rest}", sent.traceparent()[2]);
        assert_eq!(sent.get("tracestate"), Some(&*expect), "{list}");
    }
    let list = |n: usize| (0..n).map(|n| format!("k{n:03}=v")).collect::<Vec<_>>().join(",");
    let sent = send(config, &[("traceparent", VALID), ("tracestate", &list(32))]);
    let expect = format!("rojo={},{}", sent.traceparent()[2], list(31));
    assert_eq!(sent.get("tracestate"), Some(&*expect));
}

#[test]
fn a_new_trace_has_our_member_alone() {
    let config = r#"{"participate": true, "tracestate_member": "rojo"}"#;
    let sent = send(config, &[("tracestate", "foo=1")]);
    assert_eq!(sent.get("tracestate"), Some(&*format!("rojo={}", sent.traceparent()[2])));
}

// Trust boundary

#[test]
fn restart_regenerates_everything_and_links_to_the_old_trace() {
    let config = r#"{"participate": true, "boundary": "restart"}"#;
    let sent = send(config, &[("traceparent", VALID), ("tracestate", "foo=1")]);
    assert_restarted(&sent, "restart");
    let link = sent.context.link.map(|l| (u128::from_be_bytes(l.trace_id), l.sampled));
    assert_eq!(link, Some((0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, true)));
    assert_eq!(send(config, &[]).context.link, None);
}

#[test]
fn ignore_sampled_keeps_the_ids_and_decides_by_the_ratio() {
    let config = common::config(r#"{"participate": true, "boundary": "ignore_sampled"}"#);
    let never = common::policy(r#"{"ratio": 0}"#);
    let sent = common::send_bytes(&config, &never, &[(b"traceparent", VALID.as_bytes())]);
    assert_continued(&sent, "ignore_sampled");
    assert_eq!(sent.traceparent()[3], "00");
}

#[test]
fn trust_follows_the_parent_whatever_the_ratio() {
    let config = common::config(PARTICIPATING);
    for (flags, ratio) in [("00", "1"), ("01", "0")] {
        let policy = common::policy(&format!(r#"{{"ratio": {ratio}}}"#));
        let value = format!("00-{TRACE}-{PARENT}-{flags}");
        let sent = common::send_bytes(&config, &policy, &[(b"traceparent", value.as_bytes())]);
        assert_eq!(sent.traceparent()[3], flags, "ratio {ratio}");
    }
}
