//! The transition table of the machine.

use super::*;
use crate::classify::FailureKind;
use crate::policy::{Rate, SlowCall};

mod model;
mod rules;

/// Every test's present. Far from zero, so that an hour back is still a time.
const NOW: Now = Now::from_millis(1_700_000_000_000);

fn after(millis: u64) -> Now {
    Now(NOW.0 + millis * 1_000_000)
}

fn before(millis: u64) -> Now {
    Now(NOW.0 - millis * 1_000_000)
}

fn policy() -> Policy {
    let rate = Rate { percent: 50, min_requests: 10 };
    Policy {
        slow_call: Some(SlowCall { threshold: Duration::from_secs(1), rate }),
        jitter_percent: 0,
        ..Policy::unconfigured()
    }
}

fn at(policy: &Policy, now: Now) -> Context<'_> {
    Context { policy, opinion: None, last_resort: false, now, random: 0 }
}

const FAILURE: Outcome = Outcome::Failure(FailureKind::Reset);
const SUCCESS: Outcome = Outcome::Success { slow: false };
const SLOW: Outcome = Outcome::Success { slow: true };
const SOFT: Outcome = Outcome::Soft { retry_after: None };

/// The states in which the table puts a record at `NOW`, by the name of their column.
const COLUMNS: [&str; 13] = [
    "closed",    // quiet
    "c.4",       // four failures in a row
    "c.rate",    // six of ten failed, none in a row, watched for long enough
    "c.slow",    // six of ten were slow
    "c.held",    // four failures in a row, held closed by an operator
    "open",      // for another 20 s
    "o.due",     // its time is up
    "o.fleet",   // by the fleet, for another 20 s
    "o.order",   // by an operator, for another 20 s
    "half",      // no probe is out
    "h.last",    // one probe succeeded, probe 7 is out
    "h.overdue", // probe 7 is out and has expired
    "h.early",   // as the last resort, 20 s before its time; probe 7 is out
];

fn state(column: &str) -> Record {
    let watched = |failed, slow| {
        let mut record = Record { watched_since: before(300), ..Record::default() };
        let counts = Counts { total: 10, failed, slow };
        record.window.add(counts, NOW, Window::bucket_length(policy().window));
        record
    };
    let opened = |origin, until| Record {
        state: State::Open,
        origin,
        trips: 1,
        since: before(10_000),
        until,
        ..Record::default()
    };
    let half = |expires| {
        let mut record = opened(Origin::Own, Now(0));
        record.state = State::HalfOpen;
        record.last_probe = 7;
        record.probes[0] = expires;
        record
    };
    let four = Record { consecutive: 4, watched_since: before(10), ..Record::default() };
    let mut record = match column {
        "closed" => Record::default(),
        "c.4" => four,
        "c.rate" => watched(6, 0),
        "c.slow" => watched(0, 6),
        "c.held" => Record { held_until: after(20_000), ..four },
        "open" => opened(Origin::Own, after(20_000)),
        "o.due" => opened(Origin::Own, NOW),
        "o.fleet" => opened(Origin::Fleet, after(20_000)),
        "o.order" => opened(Origin::Forced, after(20_000)),
        "half" => half(Probe::default()),
        "h.last" => Record { probe_successes: 1, ..half(Probe { id: 7, expires: after(1) }) },
        "h.overdue" => half(Probe { id: 7, expires: NOW }),
        "h.early" => Record { until: after(20_000), ..half(Probe { id: 7, expires: after(1) }) },
        other => panic!("no such column: {other}"),
    };
    record.force_seen = 10;
    record.touched = before(5);
    record
}

/// The inputs, by the name of their row.
fn step(row: &str, record: &mut Record) -> Option<Transition> {
    let mut policy = policy();
    if row == "enforced opinion" {
        policy.fleet = Fleet::Enforce;
    }
    let opinion = Opinion { expires_at: after(9_000), reporters: 3 };
    let advised = row == "advised failure";
    let last_resort = row == "try last resort";
    let opinion_held = advised.then_some(opinion);
    let context = Context { opinion: opinion_held, last_resort, ..at(&policy, NOW) };
    let probe = |outcome| Input::Probe { id: 7, outcome, at: NOW };
    let force = |action, until, stamp| Input::Force(Force { action, until, stamp });
    let input = match row {
        "success" => Input::Answer(SUCCESS),
        "slow success" => Input::Answer(SLOW),
        "failure" | "advised failure" => Input::Answer(FAILURE),
        "soft" => Input::Answer(SOFT),
        "ignored" => Input::Answer(Outcome::Ignored),
        "probe: success" => probe(SUCCESS),
        "probe: slow success" => probe(SLOW),
        "probe: failure" => probe(FAILURE),
        "probe: soft" => probe(SOFT),
        "probe: ignored" => probe(Outcome::Ignored),
        "another probe" => Input::Probe { id: 6, outcome: FAILURE, at: NOW },
        "tick" => Input::Tick,
        "try probe" | "try last resort" => return record.try_probe(&context).1,
        "order: open" => force(ForceAction::Open, after(9_000), 11),
        "order: close" => force(ForceAction::Close, after(9_000), 11),
        "order: clear" => force(ForceAction::Clear, NOW, 11),
        "order: open, seen" => force(ForceAction::Open, after(9_000), 10),
        "order: clear, seen" => force(ForceAction::Clear, NOW, 10),
        "order: open, over" => force(ForceAction::Open, NOW, 11),
        "order: close, over" => force(ForceAction::Close, NOW, 11),
        "opinion" | "enforced opinion" => Input::Opinion(opinion),
        other => panic!("no such row: {other}"),
    };
    record.apply(input, &context)
}

/// What a cell of the table says: `.` is no transition; otherwise the new state and why.
fn cell(transition: Option<Transition>) -> &'static str {
    let Some(Transition { to, reason, .. }) = transition else {
        return ".";
    };
    match (to, reason) {
        (State::Open, Reason::Consecutive(5)) => "O:row",
        (State::Open, Reason::Rate { .. }) => "O:rate",
        (State::Open, Reason::Slow { .. }) => "O:slow",
        (State::Open, Reason::Advised { reporters: 3 }) => "O:adv",
        (State::Open, Reason::Fleet { reporters: 3 }) => "O:flt",
        (State::Open, Reason::Forced) => "O:ord",
        (State::Open, Reason::ProbeFailed) => "O:fail",
        (State::Open, Reason::ProbeExpired) => "O:exp",
        (State::HalfOpen, Reason::Probing) => "H",
        (State::Closed, Reason::ProbesSucceeded(2)) => "C:two",
        (State::Closed, Reason::Forced) => "C:ord",
        (State::Closed, Reason::Cleared) => "C:clr",
        _ => "impossible",
    }
}

#[rustfmt::skip]
const TABLE: &[(&str, [&str; 13])] = &[
    //                      closed   c.4      c.rate   c.slow   c.held   open     o.due    o.fleet  o.order  half     h.last   h.overdue h.early
    ("success",            [".",     ".",     "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("slow success",       [".",     ".",     "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("failure",            [".",     "O:row", "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("advised failure",    ["O:adv", "O:row", "O:adv", "O:adv", ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("soft",               [".",     ".",     "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("ignored",            [".",     ".",     "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("probe: success",     [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "C:two", ".",     "."]),
    ("probe: slow success",[".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "C:two", ".",     "."]),
    ("probe: failure",     [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "O:fail",".",     "O:fail"]),
    ("probe: soft",        [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "O:fail",".",     "O:fail"]),
    ("probe: ignored",     [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("another probe",      [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("tick",               [".",     ".",     "O:rate","O:slow",".",     ".",     ".",     ".",     ".",     ".",     ".",     "O:exp", "."]),
    ("try probe",          [".",     ".",     "O:rate","O:slow",".",     ".",     "H",     ".",     ".",     ".",     ".",     "O:exp", "."]),
    ("try last resort",    [".",     ".",     "O:rate","O:slow",".",     "H",     "H",     "H",     ".",     ".",     ".",     "O:exp", "."]),
    ("order: open",        ["O:ord", "O:ord", "O:ord", "O:ord", "O:ord", ".",     ".",     ".",     ".",     "O:ord", "O:ord", "O:ord", "O:ord"]),
    ("order: close",       [".",     ".",     ".",     ".",     ".",     "C:ord", "C:ord", "C:ord", "C:ord", "C:ord", "C:ord", "C:ord", "C:ord"]),
    ("order: clear",       [".",     ".",     ".",     ".",     ".",     "C:clr", "C:clr", "C:clr", "C:clr", "C:clr", "C:clr", "C:clr", "C:clr"]),
    ("order: open, seen",  [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("order: clear, seen", [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("order: open, over",  [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("order: close, over", [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("opinion",            [".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     ".",     "."]),
    ("enforced opinion",   ["O:flt", "O:flt", "O:flt", "O:flt", ".",     ".",     ".",     ".",     ".",     "O:flt", "O:flt", "O:flt", "O:flt"]),
];

#[test]
fn the_transition_table_is_exhaustive_and_correct() {
    for (row, cells) in TABLE {
        for (column, expect) in COLUMNS.iter().zip(cells) {
            let was = state(column);
            let mut is = was.clone();
            let transition = step(row, &mut is);
            assert_eq!(cell(transition), *expect, "{row} in {column}: {transition:?}");
            match transition {
                None => assert_eq!(is.state, was.state, "{row} in {column}: silent change"),
                Some(transition) => {
                    assert_eq!((transition.from, transition.to), (was.state, is.state));
                    assert_ne!(is.generation, was.generation, "{row} in {column}: generation");
                    assert_eq!(transition.generation, is.generation, "{row} in {column}");
                    let until = (is.state == State::Open).then_some(is.until);
                    assert_eq!(transition.until, until, "{row} in {column}: until");
                    assert!(is.window.is_empty() && is.consecutive == 0, "{row} in {column}");
                }
            }
        }
    }
}

#[test]
fn the_verdict_of_every_state() {
    let policy = policy();
    let blocked = |until| Verdict::Blocked { until };
    for (column, expect) in COLUMNS.iter().zip([
        Verdict::Pass,
        Verdict::Pass,
        Verdict::Pass,
        Verdict::Pass,
        Verdict::Pass,
        blocked(after(20_000)),
        Verdict::ProbeOwed,
        blocked(after(20_000)),
        blocked(after(20_000)),
        Verdict::ProbeOwed,
        blocked(after(1)),
        blocked(NOW),
        blocked(after(1)),
    ]) {
        let record = state(column);
        assert_eq!(record.verdict(&policy, NOW), expect, "{column}");
        let sooner = matches!(column, &"open" | &"o.fleet");
        let last = if sooner { Verdict::ProbeOwed } else { expect };
        assert_eq!(record.verdict_as_last_resort(&policy, NOW), last, "{column}, the last resort");
    }
}
