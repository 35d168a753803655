//! The cases of W3C's own test suite for Trace Context (github.com/w3c/trace-context, `test/`), by
//! their inputs and what they want, on a real Envoy in each mode. Of the suite's texts the one for
//! Level 2 counts: `@` may stand anywhere in a key but first, and of a repeated key one is kept.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::support::{Rig, Sent, exporting};

const TRACE: &str = "12345678901234567890123456789012";
const SPAN: &str = "1234567890123456";

/// One request: its headers, and what must hold of what came of them.
type Probe = (Vec<(&'static str, String)>, Box<dyn Fn(&Context) -> bool>);
type Case = (&'static str, Vec<Probe>);

/// What an upstream is told of a trace.
struct Context {
    trace: String,
    span: String,
    state: Vec<(String, String)>,
}

/// `None` where it is none: another number of headers than one, or a malformed one.
fn context(sent: &Sent) -> Option<Context> {
    let [parent] = &sent.all("traceparent")[..] else { return None };
    let parts: Vec<&str> = parent.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return None };
    let hex = |text: &str, len| {
        text.len() == len && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    };
    let whole = version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    let zero = |text: &str| text.bytes().all(|c| c == b'0');
    if !whole || zero(trace) || zero(span) {
        return None;
    }
    let mut state: Vec<(String, String)> = Vec::new();
    for list in sent.all("tracestate") {
        for member in list.split(',').map(|member| member.trim_matches([' ', '\t'])) {
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            let of_key =
                |c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
            let of_value = |c| matches!(c, b' '..=b'~') && c != b',' && c != b'=';
            let first = key.bytes().next()?;
            let well = first.is_ascii_lowercase() || first.is_ascii_digit();
            let sized = key.len() <= 256 && (1..=256).contains(&value.len());
            if !well || !sized || !key.bytes().all(of_key) || !value.bytes().all(of_value) {
                return None;
            }
            if state.iter().all(|(other, _)| other != key) {
                state.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    Some(Context { trace: trace.into(), span: span.into(), state })
}

fn parent(value: impl Into<String>) -> Vec<(&'static str, String)> {
    vec![("traceparent", value.into())]
}

fn on(value: impl Into<String>) -> Probe {
    (parent(value), Box::new(|found| found.trace == TRACE))
}

fn anew(value: impl Into<String>) -> Probe {
    (parent(value), Box::new(|found| found.trace != TRACE))
}

/// Of a trace that is not sampled, with these lists under this name; what must be in the one that
/// goes on, in this order and alone.
fn listed<S: Into<String>>(
    name: &'static str,
    lists: impl IntoIterator<Item = S>,
    expect: &[(&str, &str)],
) -> Probe {
    let mut headers = parent(format!("00-{TRACE}-{SPAN}-00"));
    headers.extend(lists.into_iter().map(|list| (name, list.into())));
    let expect: Vec<(String, String)> =
        expect.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    (headers, Box::new(move |found| found.trace == TRACE && found.state == expect))
}

fn list<const N: usize>(lists: [&str; N], expect: &[(&str, &str)]) -> Probe {
    listed("tracestate", lists, expect)
}

const FOO: &[(&str, &str)] = &[("foo", "1")];

fn parents() -> Vec<Case> {
    let ok = format!("00-{TRACE}-{SPAN}-01");
    let of = |version: &str, more: &str| format!("{version}-{TRACE}-{SPAN}-01{more}");
    let trace = |id: &str| format!("00-{id}-{SPAN}-01");
    let span = |id: &str| format!("00-{TRACE}-{id}-01");
    let flags = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
    let named = |name, well: bool| -> Probe {
        (vec![(name, ok.clone())], Box::new(move |found| (found.trace == TRACE) == well))
    };
    let other = |value: String, id: String| -> Probe {
        (parent(value), Box::new(move |found| found.trace != TRACE && found.trace != id))
    };
    let zero = "0".repeat(32);
    let one = format!("{}1", &TRACE[..31]);
    let mut twice = parent(trace(&one));
    twice.extend(parent(ok.clone()));
    vec![
        ("nothing", vec![(Vec::new(), Box::new(|_| true))]),
        (
            "traceparent alone",
            vec![(parent(ok.clone()), Box::new(|it| it.trace == TRACE && it.span != SPAN))],
        ),
        (
            "traceparent twice",
            vec![(twice, Box::new(move |it| it.trace != TRACE && it.trace != one))],
        ),
        ("wrong names", vec![named("trace-parent", false), named("trace.parent", false)]),
        (
            "any case",
            ["TraceParent", "TrAcEpArEnT", "TRACEPARENT"].map(|name| named(name, true)).into(),
        ),
        ("00 and more", vec![anew(of("00", ".")), anew(of("00", "-what-the-future-will-be-like"))]),
        (
            "version cc",
            vec![
                on(of("cc", "")),
                on(of("cc", "-what-the-future-will-be-like")),
                anew(of("cc", ".what-the-future-will-be-like")),
            ],
        ),
        ("version ff", vec![anew(of("ff", ""))]),
        ("version illegal", vec![anew(of(".0", "")), anew(of("0.", ""))]),
        ("version long", vec![anew(of("000", "")), anew(of("0000", ""))]),
        ("version short", vec![anew(of("0", ""))]),
        ("trace id zero", vec![other(trace(&zero), zero.clone())]),
        (
            "trace id illegal",
            vec![
                anew(trace(".2345678901234567890123456789012")),
                anew(trace("1234567890123456789012345678901.")),
            ],
        ),
        (
            "trace id long",
            vec![other(
                trace("123456789012345678901234567890123"),
                "23456789012345678901234567890123".into(),
            )],
        ),
        ("trace id short", vec![anew(trace(&TRACE[..31]))]),
        ("parent id zero", vec![anew(span("0000000000000000"))]),
        ("parent id illegal", vec![anew(span(".234567890123456")), anew(span("123456789012345."))]),
        ("parent id long", vec![anew(span("12345678901234567"))]),
        ("parent id short", vec![anew(span("123456789012345"))]),
        ("flags illegal", vec![anew(flags(".0")), anew(flags("0."))]),
        ("flags long", vec![anew(flags("001"))]),
        ("flags short", vec![anew(flags("1"))]),
        (
            "white space around traceparent",
            [" {}", "\t{}", "{} ", "{}\t", "\t {} \t"].map(|it| on(it.replace("{}", &ok))).into(),
        ),
    ]
}

fn lists() -> Vec<Case> {
    let alone = |list: &str| -> Probe {
        (vec![("tracestate", list.into())], Box::new(|found| found.state.is_empty()))
    };
    let all = "abcdefghijklmnopqrstuvwxyz0123456789_-*/";
    let tenant = format!("{all}@a-z0-9_-*/");
    let value: String = (' '..='~').filter(|c| !matches!(c, ',' | '=')).collect();
    let member =
        |key: &str| listed("tracestate", [format!("{key}={value}")], &[(key, value.as_str())]);
    let three: &[(&str, &str)] = &[("foo", "1"), ("bar", "2"), ("baz", "3")];
    let bars = |from: usize, to: usize| {
        (from..=to).map(|n| format!("bar{n:02}={n:02}")).collect::<Vec<_>>().join(",")
    };
    let many = |last: usize| vec![bars(1, 10), bars(11, 20), bars(21, 30), bars(31, last)];
    let names: Vec<(String, String)> =
        (1..=32).map(|n| (format!("bar{n:02}"), format!("{n:02}"))).collect();
    let names: Vec<(&str, &str)> = names.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let long = |len: usize| ["foo=1".to_owned(), format!("{}=1", "z".repeat(len))];
    let longest = "z".repeat(256);
    vec![
        ("tracestate alone", vec![alone("foo=1"), alone("foo=1,bar=2")]),
        ("both", vec![list(["foo=1,bar=2"], &three[..2])]),
        (
            "wrong names of tracestate",
            vec![listed("trace-state", ["foo=1"], &[]), listed("trace.state", ["foo=1"], &[])],
        ),
        (
            "tracestate in any case",
            ["TraceState", "TrAcEsTaTe", "TRACESTATE"].map(|it| listed(it, ["foo=1"], FOO)).into(),
        ),
        ("empty lists", vec![list([""], &[]), list(["foo=1", ""], FOO), list(["", "foo=1"], FOO)]),
        (
            "several lists",
            vec![list(
                ["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
                &[("foo", "1"), ("bar", "2"), ("rojo", "1"), ("congo", "2"), ("baz", "3")],
            )],
        ),
        (
            "a key twice",
            vec![
                list(["foo=1,foo=1"], FOO),
                list(["foo=1,foo=2"], FOO),
                list(["foo=1", "foo=1"], FOO),
                list(["foo=1", "foo=2"], FOO),
            ],
        ),
        ("all characters", vec![member(all), member(&tenant)]),
        (
            "white space around members",
            vec![
                list(["foo=1 \t , \t bar=2, \t baz=3"], three),
                list(["foo=1\t \t,\t \tbar=2,\t \tbaz=3"], three),
                list([" foo=1"], FOO),
                list(["\tfoo=1"], FOO),
                list(["foo=1 "], FOO),
                list(["foo=1\t"], FOO),
                list(["\t foo=1 \t"], FOO),
            ],
        ),
        (
            "an illegal key",
            vec![list(["foo =1"], &[]), list(["FOO=1"], &[]), list(["foo.bar=1"], &[])],
        ),
        ("a key that begins with @", vec![list(["@foo=1,bar=2"], &[])]),
        (
            "32 and 33 members",
            vec![listed("tracestate", many(32), &names), listed("tracestate", many(33), &[])],
        ),
        (
            "a long key",
            vec![
                listed("tracestate", long(256), &[("foo", "1"), (&longest, "1")]),
                listed("tracestate", long(257), &[]),
            ],
        ),
        ("an illegal value", vec![list(["foo=bar=baz"], &[]), list(["foo=,bar=3"], &[])]),
    ]
}

/// Three requests of the same headers, whose spans must be three.
const TRIPLES: [(&str, Option<&str>); 3] = [
    ("three with traceparent", Some("00-12345678901234567890123456789012-1234567890123456-01")),
    ("three without", None),
    ("three with an illegal one", Some("00-00000000000000000000000000000000-1234567890123456-01")),
];

async fn ask(rig: &Rig, headers: &[(&'static str, String)]) -> Option<Context> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    context(&rig.sent(&headers).await)
}

/// The names of the cases that fail, and how many there are.
async fn failing(rig: &Rig) -> (Vec<&'static str>, usize) {
    let mut verdicts = BTreeMap::new();
    for (name, probes) in parents().into_iter().chain(lists()) {
        let mut well = true;
        for (headers, holds) in probes {
            well &= ask(rig, &headers).await.is_some_and(|found| holds(&found));
        }
        verdicts.insert(name, well);
    }
    for (name, value) in TRIPLES {
        let headers = value.map(parent).unwrap_or_default();
        let mut found = Vec::new();
        for _ in 0..3 {
            found.extend(ask(rig, &headers).await);
        }
        let spans: BTreeSet<_> = found.iter().map(|it| &it.span).collect();
        let same = found.iter().all(|it| (it.trace == TRACE) == name.ends_with("traceparent"));
        verdicts.insert(name, spans.len() == 3 && same);
    }
    let failing = verdicts.iter().filter(|(_, well)| !**well).map(|(name, _)| *name).collect();
    (failing, verdicts.len())
}

#[tokio::test]
async fn the_cases_of_the_specifications_own_suite_hold_where_the_proxy_takes_part() {
    // A proxy that forwards leaves what it got, and is no span of its own.
    let left = [
        "32 and 33 members",
        "a key that begins with @",
        "a long key",
        "an illegal key",
        "an illegal value",
        "three with traceparent",
        "traceparent alone",
        "version cc",
    ];
    for (mode, trace, expect) in [
        ("participate", json!({"participate": true}), &[][..]),
        ("export", exporting(json!({})), &[]),
        ("forward", json!({}), &left),
    ] {
        let rig = Rig::start(trace).await;
        let (failing, all) = failing(&rig).await;
        println!("{mode}: {} of {all}", all - failing.len());
        assert_eq!(failing, expect, "{mode}");
        rig.end().await;
    }
}
