//! Trace headers of all formats, as a client may send them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use pintle_trace::{Config, Context, Edit, Edits, Kept, Policy, Spans, is_field_value, propagate};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::case;

/// Each format, and its headers.
const FORMATS: [(&str, &[&str]); 7] = [
    ("tracecontext", &["traceparent", "tracestate"]),
    ("baggage", &["baggage"]),
    ("b3", &["b3"]),
    (
        "b3multi",
        &["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"],
    ),
    ("jaeger", &["uber-trace-id"]),
    (
        "datadog",
        &[
            "x-datadog-trace-id",
            "x-datadog-parent-id",
            "x-datadog-sampling-priority",
            "x-datadog-tags",
        ],
    ),
    ("xray", &["x-amzn-trace-id"]),
];

/// Of which values are made.
const PIECES: [&[u8]; 40] = [
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more",
    b"0af7651916cd43dd8448eb211c80319c",
    b"b7ad6b7169203331",
    b"B7AD6B7169203331",
    b"00000000000000000000000000000000",
    b"0000000000000000",
    b"0",
    b"1",
    b"d",
    b"3",
    b"true",
    b"False",
    b"-",
    b"-1",
    b"2",
    b":",
    b"%3A",
    b",",
    b";",
    b"=",
    b" ",
    b"\t",
    b"a=1",
    b"pintle=0000000000000001",
    b"a=b;p=q;r",
    b"k;=",
    b"18446744073709551615",
    b"18446744073709551616",
    b"_dd.p.tid=0af7651916cd43dd",
    b"_dd.p.tid=",
    b"_dd.p.dm=-4",
    b"Root=1-0af76519-16cd43dd8448eb211c80319c",
    b"Parent=b7ad6b7169203331",
    b"Sampled=1",
    b"Sampled=?",
    b"Self=1-2",
    b"\r\n",
    b"\xc3\xa4\xff\0\"\\",
];

/// Bytes of a value that is written, at most: those of a list.
const LONGEST: usize = 8192;

#[derive(Debug, Arbitrary)]
enum Piece<'a> {
    Known(u8),
    /// Members of a list, each with a key of its own.
    Members(u8),
    Long(u8, u16),
    Bytes(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    seed: u64,
    extract: u8,
    first: u8,
    inject: u8,
    boundary: u8,
    spans: u8,
    ratio: u8,
    participate: Option<bool>,
    egress: bool,
    export: bool,
    member: bool,
    allow: bool,
    headers: Vec<(u8, bool, Vec<Piece<'a>>)>,
}

/// For each format, a hop that knows no other.
static NEXT: LazyLock<Vec<Config>> = LazyLock::new(|| {
    let only = |(format, _): &(&str, _)| {
        let config = json!({"extract": [format], "inject": [format], "participate": true});
        pintle_settings::read("trace", config).expect("a configuration")
    };
    FORMATS.iter().map(only).collect()
});

type Header = (String, Vec<u8>);

fn value(pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut value = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Known(n) => value.extend_from_slice(PIECES[usize::from(*n) % PIECES.len()]),
            Piece::Members(count) => {
                for n in 0..*count {
                    value.extend_from_slice(format!(",k{n}={n}").as_bytes());
                }
            }
            Piece::Long(byte, times) => {
                value.extend(std::iter::repeat_n(*byte, usize::from(*times % 10_000)));
            }
            Piece::Bytes(bytes) => value.extend_from_slice(bytes),
        }
    }
    value
}

fn formats(mask: u8, first: u8) -> Vec<usize> {
    let order = (0..FORMATS.len()).map(|n| (n + usize::from(first)) % FORMATS.len());
    order.filter(|n| mask >> n & 1 == 1).collect()
}

fn names(formats: &[usize]) -> Vec<&'static str> {
    formats.iter().map(|n| FORMATS[*n].0).collect()
}

struct Sent {
    context: Context,
    headers: Vec<Header>,
}

/// As Envoy applies it, with what is promised of every edit.
fn send(config: &Config, policy: &Policy, headers: &[Header], seed: u64) -> Sent {
    let mut edits = Edits::new();
    let mut rng = StdRng::seed_from_u64(seed);
    let borrowed = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_slice()));
    let context = propagate(config, policy, borrowed.clone(), &mut rng, &mut edits);

    let mut out: Vec<Header> =
        headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
    let mut edited = BTreeSet::new();
    for edit in edits.iter() {
        let (Edit::Set { name, .. } | Edit::Remove { name }) = edit;
        assert!(edited.insert(name), "{name} is edited twice");
        assert!(FORMATS.iter().any(|(_, names)| names.contains(&name)), "{name} is not ours");
        let before: Vec<Vec<u8>> =
            out.extract_if(.., |(there, _)| there == name).map(|(_, value)| value).collect();
        match edit {
            Edit::Remove { .. } => assert!(!before.is_empty(), "{name} was not there"),
            Edit::Set { value, .. } => {
                assert!(is_field_value(value), "{name}: {value:?}");
                assert!(value.len() <= LONGEST, "{name} has {} bytes", value.len());
                assert_ne!(before, [value], "{name} was that already");
                out.push((name.to_owned(), value.to_vec()));
            }
        }
    }
    let lower: Vec<_> = headers.iter().map(|(n, v)| (n.to_ascii_lowercase(), v)).collect();
    let kept = Kept::new(lower.iter().map(|(n, v)| (n.as_bytes(), v.as_slice())), &edits);
    assert!(kept.tracestate().len() <= 2050);
    Sent { context, headers: out }
}

fn values<'a>(headers: &'a [Header], name: &str) -> Vec<&'a [u8]> {
    let found = headers.iter().filter(|(there, _)| there.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_slice()).collect()
}

pub(crate) fn headers(data: &[u8]) {
    let Some(case) = case::<Case<'_>>(data) else { return };
    let (extract, inject) = (formats(case.extract, case.first), formats(case.inject, 0));
    let allow = case.allow.then_some(["a", "k1"]);
    let export = case.export.then(|| json!({"cluster": "otel", "service_name": "cart"}));
    let boundary = ["trust", "ignore_sampled", "restart"][usize::from(case.boundary % 3)];
    let spans = ["per_request", "per_attempt", "off"][usize::from(case.spans % 3)];
    let config: Config = pintle_settings::read(
        "trace",
        json!({
            "extract": names(&extract),
            "inject": names(&inject),
            "boundary": boundary,
            "direction": if case.egress { "egress" } else { "ingress" },
            "participate": case.participate,
            "tracestate_member": case.member.then_some("pintle"),
            "baggage_allow": allow,
            "export": export,
        }),
    )
    .expect("a configuration");
    let policy: Policy = pintle_settings::read(
        "trace",
        json!({
            "ratio": f64::from(case.ratio) / 255.0,
            "spans": spans,
        }),
    )
    .expect("a policy");
    let all: Vec<&str> = FORMATS.iter().flat_map(|(_, names)| *names).copied().collect();
    let headers: Vec<Header> = case
        .headers
        .iter()
        .take(100)
        .map(|(name, upper, pieces)| {
            let name = *all.get(usize::from(*name) % (all.len() + 1)).unwrap_or(&"x-other");
            let name = if *upper { name.to_ascii_uppercase() } else { name.to_owned() };
            (name, value(pieces))
        })
        .collect();

    let sent = send(&config, &policy, &headers, case.seed);
    let context = sent.context;
    check_context(&context, &config, &policy);
    assert_eq!(send(&config, &policy, &headers, case.seed).context, context, "not the same twice");

    for (n, (format, names)) in FORMATS.iter().enumerate() {
        for name in *names {
            let (before, after) = (values(&headers, name), values(&sent.headers, name));
            match (extract.contains(&n), inject.contains(&n)) {
                (false, false) => assert_eq!(before, after, "{format} is none of ours"),
                (true, false) => assert!(after.is_empty(), "{name} is still there"),
                _ => {}
            }
        }
    }
    assert_eq!(values(&headers, "x-other"), values(&sent.headers, "x-other"));
    if inject.contains(&0) && !context.forwarded {
        check_tracestate(&values(&sent.headers, "tracestate"));
    }
    if extract.contains(&1) && inject.contains(&1) {
        check_baggage(&values(&sent.headers, "baggage"), allow.as_ref().map(|a| &a[..]));
    }
    for n in inject.into_iter().filter(|n| *n != 1) {
        check_read_back(n, &policy, &headers, &sent, case.seed);
    }
}

fn check_context(context: &Context, config: &Config, policy: &Policy) {
    assert_ne!(context.trace_id, [0; 16]);
    assert_ne!(context.span_id, [0; 8]);
    assert!(!context.debug || context.sampled);
    assert!(!context.rejected || !context.sampled);
    assert_eq!(context.participates, config.participates(policy));
    assert!(!context.forwarded || (!context.participates && !context.own_span));
    assert!(context.own_span || context.parent_span_id.is_none());
    assert!(!context.new_root || (context.own_span && context.parent_span_id.is_none()));
    assert!(context.link.is_none() || context.new_root);
    assert!(!context.is_recorded() || (context.sampled && policy.spans != Spans::Off));
    // A span that is recorded is one that the upstream knows as its parent.
    assert!(!context.is_recorded() || context.own_span);
}

/// What the specification demands of a list that we have had in hand.
fn check_tracestate(lists: &[&[u8]]) {
    let [list] = lists else {
        assert!(lists.is_empty(), "several lists");
        return;
    };
    assert!(list.len() <= LONGEST);
    let members = list.split(|c| *c == b',').map(<[u8]>::trim_ascii).filter(|m| !m.is_empty());
    let mut keys = BTreeSet::new();
    for member in members {
        let at = member.iter().position(|c| *c == b'=').expect("a key and a value");
        let (key, value) = (&member[..at], &member[at + 1..]);
        assert!((1..=256).contains(&key.len()) && (1..=256).contains(&value.len()));
        assert!(value.iter().all(|c| matches!(c, b' '..=b'~') && !b",=".contains(c)));
        assert!(keys.insert(key), "a key twice");
    }
    assert!((1..=32).contains(&keys.len()), "{} members", keys.len());
}

/// What every platform must carry, and no more; with a list of keys, none but those.
fn check_baggage(values: &[&[u8]], allow: Option<&[&str]>) {
    let values: Vec<&[u8]> =
        values.iter().copied().filter(|value| !value.trim_ascii().is_empty()).collect();
    let members = || values.iter().flat_map(|value| value.split(|c| *c == b','));
    let bytes = values.iter().map(|value| value.len() + 1).sum::<usize>();
    assert!(values.is_empty() || bytes - 1 <= LONGEST, "{bytes} bytes");
    assert!(members().count() <= 64, "{} members", members().count());
    if let Some(allow) = allow {
        for member in members() {
            let key = member.split(|c| b"=;".contains(c)).next().unwrap_or_default().trim_ascii();
            assert!(allow.iter().any(|allowed| allowed.as_bytes() == key), "{member:?}");
        }
    }
}

/// The next hop, which knows this format alone, is in the same trace and below the same span; below
/// none where the caller named none and its headers went on untouched.
fn check_read_back(n: usize, policy: &Policy, received: &[Header], sent: &Sent, seed: u64) {
    let (format, names) = FORMATS[n];
    let context = &sent.context;
    let next = send(&NEXT[n], policy, &sent.headers, seed ^ 1).context;
    if format == "datadog" && context.trace_id[8..] == [0; 8] {
        // Cannot be said in this format.
        assert!(next.new_root);
        let left = names.iter().any(|name| !values(&sent.headers, name).is_empty());
        assert!(!left || context.forwarded);
        return;
    }
    assert!(!next.new_root, "{format} says nothing: {:?}", sent.headers);
    assert_eq!(next.trace_id, context.trace_id, "{format}");
    if next.parent_span_id.is_none() {
        assert!(context.forwarded && matches!(format, "datadog" | "xray"), "{format}");
        for name in names {
            assert_eq!(values(received, name), values(&sent.headers, name), "{format}");
        }
    } else {
        assert_eq!(next.parent_span_id, Some(context.span_id), "{format}");
    }
    assert_eq!(next.sampled, context.sampled, "{format}");
    if matches!(format, "b3" | "b3multi" | "jaeger" | "datadog") {
        assert_eq!(next.debug, context.debug, "{format}");
    }
}
