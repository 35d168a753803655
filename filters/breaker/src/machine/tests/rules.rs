//! What the machine promises beyond single transitions.

use super::*;
use crate::record::LAST_RESORT;

// === opening ===

#[test]
fn a_success_resets_the_row_and_a_soft_refusal_does_not() {
    let policy = policy();
    for (between, expect) in
        [(SUCCESS, State::Closed), (SOFT, State::Open), (Outcome::Ignored, State::Open)]
    {
        let mut record = state("c.4");
        record.apply(Input::Answer(between), &at(&policy, NOW));
        record.apply(Input::Answer(FAILURE), &at(&policy, NOW));
        assert_eq!(record.state, expect, "{between:?} between the 4th and the 5th failure");
    }
}

#[test]
fn with_consecutive_failures_off_only_the_rate_opens() {
    let policy = Policy { consecutive_failures: 0, ..policy() };
    let mut record = Record::default();
    for _ in 0..9 {
        assert_eq!(record.apply(Input::Answer(FAILURE), &at(&policy, NOW)), None);
    }
    let tenth = record.apply(Input::Answer(FAILURE), &at(&policy, after(250))).unwrap();
    assert_eq!(tenth.reason, Reason::Rate { failed: 10, total: 10 });
}

#[test]
fn a_rate_waits_until_the_other_workers_have_brought_in_their_counts() {
    let policy = Policy { consecutive_failures: 0, ..policy() };
    let mut record = Record::default();
    for _ in 0..10 {
        record.apply(Input::Answer(FAILURE), &at(&policy, NOW));
    }
    assert_eq!(record.apply(Input::Tick, &at(&policy, after(249))), None);
    assert!(record.apply(Input::Tick, &at(&policy, after(250))).is_some());
}

#[test]
fn a_rate_counts_soft_refusals_and_needs_its_minimum() {
    let policy = policy();
    for (answers, opens) in [(9, false), (10, true)] {
        let mut record = Record::default();
        for _ in 0..answers {
            record.apply(Input::Answer(SOFT), &at(&policy, NOW));
        }
        let opened = record.apply(Input::Tick, &at(&policy, after(300)));
        assert_eq!(opened.is_some(), opens, "{answers} soft refusals");
    }
}

#[test]
fn failures_that_left_the_window_open_nothing_and_end_the_watch() {
    let policy = Policy { consecutive_failures: 0, ..policy() };
    let mut record = Record::default();
    for _ in 0..9 {
        record.apply(Input::Answer(FAILURE), &at(&policy, NOW));
    }
    assert!(record.is_watched());
    assert_eq!(record.apply(Input::Answer(FAILURE), &at(&policy, after(10_000))), None);
    record.apply(Input::Answer(SUCCESS), &at(&policy, after(10_001)));
    assert_eq!(record.apply(Input::Tick, &at(&policy, after(20_000))), None);
    assert!(!record.is_watched() && record.is_quiet());
}

#[test]
fn slow_calls_do_nothing_unless_asked_for() {
    let policy = Policy { slow_call: None, ..policy() };
    let mut record = Record::default();
    for _ in 0..100 {
        record.apply(Input::Answer(SLOW), &at(&policy, NOW));
    }
    assert_eq!(record.apply(Input::Tick, &at(&policy, after(300))), None);
    assert!(record.is_quiet());
}

// === open, and back ===

/// Lets the breaker's probe fail as soon as it is owed; returns how long it stays open then.
fn fail_probe(record: &mut Record, policy: &Policy, random: u32) -> Duration {
    let now = record.until;
    let context = Context { random, ..at(policy, now) };
    let (ticket, _) = record.try_probe(&context);
    let id = ticket.unwrap().probe;
    record.apply(Input::Probe { id, outcome: FAILURE, at: now }, &context);
    record.until.since(now)
}

#[test]
fn every_trip_doubles_the_time_open_up_to_the_limit() {
    let policy = policy();
    let mut record = state("open");
    for seconds in [60, 120, 240, 300, 300] {
        assert_eq!(fail_probe(&mut record, &policy, 0), Duration::from_secs(seconds));
    }
    let jittered = Policy { jitter_percent: 50, ..policy };
    assert_eq!(fail_probe(&mut record, &jittered, u32::MAX), Duration::from_secs(450));
}

#[test]
fn a_trip_is_forgiven_for_every_clean_interval() {
    let policy = policy();
    // Trips before, clean time in ms, trips after the next trip.
    for (trips, clean, expect) in [
        (3, 9_999, 4),
        (3, 10_000, 3),
        (3, 29_999, 2),
        (3, 30_000, 1),
        (3, 3_600_000, 1),
        (0, 3_600_000, 1),
    ] {
        let mut record = Record { trips, clean_since: before(clean), ..state("c.4") };
        record.apply(Input::Answer(FAILURE), &at(&policy, NOW));
        assert_eq!(record.trips, expect, "{trips} trips, clean for {clean} ms");
    }
}

#[test]
fn a_failure_begins_a_new_clean_interval() {
    let policy = policy();
    let mut record = Record { trips: 2, clean_since: NOW, touched: NOW, ..Record::default() };
    record.apply(Input::Answer(FAILURE), &at(&policy, after(9_999)));
    record.apply(Input::Tick, &at(&policy, after(19_998)));
    assert_eq!(record.trips, 2, "9.999 s each, but no whole interval");
    record.apply(Input::Tick, &at(&policy, after(19_999)));
    assert_eq!(record.trips, 1);
}

#[test]
fn one_probe_at_a_time_and_two_successes_close() {
    let policy = policy();
    let mut record = state("o.due");
    let context = at(&policy, NOW);
    let (first, opened) = record.try_probe(&context);
    assert_eq!(opened.unwrap().reason, Reason::Probing);
    assert_eq!(record.try_probe(&context), (None, None), "the slot is taken");
    let success = |ticket: Ticket| Input::Probe { id: ticket.probe, outcome: SUCCESS, at: NOW };
    assert_eq!(record.apply(success(first.unwrap()), &context), None);
    let (second, _) = record.try_probe(&context);
    assert_eq!(record.apply(success(first.unwrap()), &context), None, "told twice counts once");
    let closed = record.apply(success(second.unwrap()), &context).unwrap();
    assert_eq!(closed.reason, Reason::ProbesSucceeded(2));
    assert!(record.is_quiet());
}

#[test]
fn as_many_probes_as_the_policy_allows() {
    for allowed in 1..=8 {
        let mut policy = policy();
        policy.half_open.probes = allowed;
        let mut record = state("o.due");
        let taken = (0..20).filter(|_| record.try_probe(&at(&policy, NOW)).0.is_some()).count();
        assert_eq!(taken, usize::from(allowed));
    }
}

#[test]
fn an_unanswered_probe_fails_and_frees_its_slot() {
    let policy = policy();
    let mut record = state("o.due");
    let (ticket, _) = record.try_probe(&at(&policy, NOW));
    assert_eq!(record.apply(Input::Tick, &at(&policy, after(9_999))), None);
    let expired = record.apply(Input::Tick, &at(&policy, after(10_000))).unwrap();
    assert_eq!((expired.to, expired.reason, expired.trips), (State::Open, Reason::ProbeExpired, 2));
    assert_eq!(record.probes_out(), 0);
    let late = Input::Probe { id: ticket.unwrap().probe, outcome: SUCCESS, at: after(10_001) };
    assert_eq!(record.apply(late, &at(&policy, after(10_001))), None, "its answer is too late");
    let (next, _) = record.try_probe(&at(&policy, after(70_000)));
    assert!(next.is_some());
}

#[test]
fn an_answer_in_time_counts_though_it_is_written_late() {
    let policy = policy();
    let mut record = state("h.last");
    let answer = Input::Probe { id: 7, outcome: SUCCESS, at: NOW };
    assert_eq!(record.apply(answer, &at(&policy, after(900))).unwrap().to, State::Closed);
}

#[test]
fn an_aborted_probe_gives_its_slot_back_without_a_verdict() {
    let policy = policy();
    let mut record = state("o.due");
    for _ in 0..1_000 {
        let (ticket, _) = record.try_probe(&at(&policy, NOW));
        let id = ticket.unwrap().probe;
        record.apply(Input::Probe { id, outcome: Outcome::Ignored, at: NOW }, &at(&policy, NOW));
    }
    assert_eq!((record.state, record.probes_out(), record.trips), (State::HalfOpen, 0, 1));
}

#[test]
fn a_policy_change_shortens_what_is_open_already() {
    let mut record = state("o.due");
    record.until = record.since.after(Duration::from_secs(300));
    let shorter = Policy {
        open: Duration::from_secs(1),
        open_max: Duration::from_secs(2),
        fleet_ttl: Duration::from_secs(1),
        ..policy()
    };
    assert_eq!(record.verdict(&shorter, NOW), Verdict::ProbeOwed);
    assert!(matches!(record.verdict(&policy(), NOW), Verdict::Blocked { .. }));
}

// === the last resort ===

/// Takes a probe as the last resort and lets it fail.
fn fail_last_resort(record: &mut Record, policy: &Policy, now: Now) -> Transition {
    let context = Context { last_resort: true, ..at(policy, now) };
    let (ticket, _) = record.try_probe(&context);
    let id = ticket.unwrap().probe;
    record.apply(Input::Probe { id, outcome: FAILURE, at: now }, &context).unwrap()
}

#[test]
fn the_last_resort_is_tried_twice_a_second() {
    let policy = policy();
    for column in ["open", "o.fleet"] {
        let mut record = Record { since: NOW, ..state(column) };
        let half = NOW.after(LAST_RESORT);
        let earlier = Now(half.0 - 1);
        assert_eq!(
            record.verdict_as_last_resort(&policy, earlier),
            Verdict::Blocked { until: half }
        );
        assert_eq!(record.verdict_as_last_resort(&policy, half), Verdict::ProbeOwed);
        fail_last_resort(&mut record, &policy, half);
        let next = half.after(LAST_RESORT);
        assert_eq!(record.verdict_as_last_resort(&policy, half), Verdict::Blocked { until: next });
    }
}

#[test]
fn the_last_resort_waits_no_longer_than_the_policy_says() {
    let short = Duration::from_millis(100);
    let policy = Policy { open: short, open_max: short, fleet_ttl: short, ..policy() };
    let record = Record { since: NOW, ..state("open") };
    let until = Verdict::Blocked { until: after(100) };
    assert_eq!(record.verdict_as_last_resort(&policy, NOW), until);
}

#[test]
fn a_last_resort_that_fails_is_as_if_it_had_not_been_tried() {
    let policy = policy();
    let mut record = state("open");
    let (trips, until) = (record.trips, record.until);
    for millis in (0..20_000).step_by(500) {
        let told = fail_last_resort(&mut record, &policy, after(millis));
        assert_eq!((told.trips, told.until), (trips, Some(until)), "after {millis} ms");
        assert_eq!(record.verdict(&policy, after(millis)), Verdict::Blocked { until });
    }
    // From then on it is due, and a failure is a trip.
    assert_eq!(fail_last_resort(&mut record, &policy, until).trips, trips + 1);
}

#[test]
fn a_last_resort_that_fails_when_its_time_is_up_is_a_trip() {
    let policy = policy();
    let mut record = state("open");
    let context = Context { last_resort: true, ..at(&policy, after(19_000)) };
    let (ticket, _) = record.try_probe(&context);
    assert!(ticket.is_some());
    let expired = record.apply(Input::Tick, &at(&policy, after(29_000))).unwrap();
    assert_eq!((expired.reason, expired.trips), (Reason::ProbeExpired, 2));
}

#[test]
fn a_last_resort_that_expires_before_its_time_is_none() {
    let policy = policy();
    let mut record = state("open");
    let context = Context { last_resort: true, ..at(&policy, NOW) };
    let (ticket, _) = record.try_probe(&context);
    assert!(ticket.is_some());
    let expired = record.apply(Input::Tick, &at(&policy, after(10_000))).unwrap();
    assert_eq!((expired.reason, expired.trips), (Reason::ProbeExpired, 1));
    assert_eq!(expired.until, Some(after(20_000)));
}

#[test]
fn a_last_resort_closes_like_any_other() {
    let policy = policy();
    let mut record = state("open");
    for millis in [0, 1] {
        // The second needs no last resort: it is half-open for everybody.
        let context = Context { last_resort: millis == 0, ..at(&policy, after(millis)) };
        let (ticket, _) = record.try_probe(&context);
        let id = ticket.unwrap().probe;
        record.apply(Input::Probe { id, outcome: SUCCESS, at: context.now }, &context);
    }
    assert!(record.is_quiet());
}

// === orders and opinions ===

#[test]
fn an_order_to_open_ends_with_a_probe() {
    let policy = policy();
    let mut record = state("closed");
    let order = Force { action: ForceAction::Open, until: after(3_600_000), stamp: 11 };
    record.apply(Input::Force(order), &at(&policy, NOW));
    assert_eq!(record.verdict(&policy, after(3_599_999)), Verdict::Blocked { until: order.until });
    assert_eq!(record.verdict(&policy, order.until), Verdict::ProbeOwed);
    assert_eq!(record.trips, 0, "an order is no trip");
}

#[test]
fn an_order_to_close_holds_against_failures_until_its_end() {
    let policy = policy();
    let mut record = state("open");
    let order = Force { action: ForceAction::Close, until: after(20_000), stamp: 11 };
    record.apply(Input::Force(order), &at(&policy, NOW));
    for millis in 0..100 {
        assert_eq!(record.apply(Input::Answer(FAILURE), &at(&policy, after(millis * 150))), None);
    }
    let opened = record.apply(Input::Answer(FAILURE), &at(&policy, after(20_000)));
    assert_eq!(opened.unwrap().reason, Reason::Consecutive(101));
}

#[test]
fn clear_forgets_once() {
    let policy = policy();
    let clear = Input::Force(Force { action: ForceAction::Clear, until: NOW, stamp: 11 });
    let mut record = Record { trips: 9, ..state("c.held") };
    record.apply(clear, &at(&policy, NOW));
    assert!(record.is_quiet() && record.trips == 0);
    record.apply(Input::Answer(FAILURE), &at(&policy, NOW));
    record.apply(clear, &at(&policy, NOW));
    assert_eq!(record.consecutive, 1, "the same order again does nothing");
}

#[test]
fn an_opinion_acts_once_however_often_and_in_whatever_order_it_comes() {
    let policy = Policy { fleet: Fleet::Enforce, ..policy() };
    let opinion =
        |seconds: u64| Input::Opinion(Opinion { expires_at: after(seconds * 1000), reporters: 1 });
    let mut record = Record::default();
    assert!(record.apply(opinion(20), &at(&policy, NOW)).is_some());
    for seconds in [20, 10, 20] {
        assert_eq!(record.apply(opinion(seconds), &at(&policy, NOW)), None);
    }
    let clear = Input::Force(Force { action: ForceAction::Clear, until: NOW, stamp: 1 });
    record.apply(clear, &at(&policy, NOW));
    assert_eq!(record.apply(opinion(20), &at(&policy, NOW)), None, "replayed");
    assert!(record.is_quiet());
}

#[test]
fn an_opinion_that_never_ends_ends_with_the_policys_limit() {
    let policy = Policy { fleet: Fleet::Enforce, ..policy() };
    let mut record = Record::default();
    let opinion = Opinion { expires_at: Now(u64::MAX), reporters: u32::MAX };
    record.apply(Input::Opinion(opinion), &at(&policy, NOW));
    assert_eq!(record.verdict(&policy, after(59_999)), Verdict::Blocked { until: after(60_000) });
    assert_eq!(record.verdict(&policy, after(60_000)), Verdict::ProbeOwed);
    assert_eq!(record.trips, 0);
}

#[test]
fn an_opinion_that_is_over_advises_nothing() {
    let policy = policy();
    let opinion = Some(Opinion { expires_at: NOW, reporters: 1 });
    let context = Context { opinion, ..at(&policy, NOW) };
    assert_eq!(Record::default().apply(Input::Answer(FAILURE), &context), None);
    let off = Policy { fleet: Fleet::Off, ..policy };
    let opinion = Some(Opinion { expires_at: after(1), reporters: 1 });
    let context = Context { opinion, ..at(&off, NOW) };
    assert_eq!(Record::default().apply(Input::Answer(FAILURE), &context), None);
}

#[test]
fn only_what_was_seen_here_is_told_to_the_fleet() {
    for (row, column, told) in [
        ("failure", "c.4", true),
        ("tick", "c.rate", true),
        ("probe: failure", "h.last", true),
        ("probe: success", "h.last", true),
        ("advised failure", "closed", false),
        ("enforced opinion", "closed", false),
        ("order: open", "closed", false),
    ] {
        let transition = step(row, &mut state(column)).unwrap();
        assert_eq!(transition.is_for_the_fleet(), told, "{row} in {column}");
    }
    // What the fleet opened stays the fleet's word when its probe fails.
    let mut record = Record { origin: Origin::Fleet, ..state("h.last") };
    assert!(!step("probe: failure", &mut record).unwrap().is_for_the_fleet());
}

// === the clock ===

#[test]
fn an_hour_back_keeps_what_is_left_of_every_time() {
    let policy = policy();
    const HOUR: u64 = 3_600_000;
    for column in COLUMNS {
        let mut record = Record { touched: NOW, ..state(column) };
        let was = record.verdict(&policy, NOW);
        record.apply(Input::Tick, &at(&policy, before(HOUR)));
        if let (Verdict::Blocked { until }, "open" | "o.fleet" | "o.order" | "h.last") =
            (was, column)
        {
            let moved = Verdict::Blocked { until: Now(until.0 - HOUR * 1_000_000) };
            assert_eq!(record.verdict(&policy, before(HOUR)), moved, "{column}");
        }
        // Nothing outlasts a minute of the new time, whatever it was.
        let later = before(HOUR - 60_000);
        record.apply(Input::Tick, &at(&policy, later));
        let (ticket, _) = record.try_probe(&at(&policy, later));
        let answers = record.state == State::Closed || ticket.is_some();
        let reopened = record.state == State::Open && record.since >= before(HOUR);
        assert!(answers || reopened, "{column}: wedged as {record:?}");
    }
}

#[test]
fn an_hour_forward_wedges_nothing() {
    let policy = policy();
    for column in COLUMNS {
        let mut record = state(column);
        let now = after(3_600_000);
        record.apply(Input::Tick, &at(&policy, now));
        record.apply(Input::Tick, &at(&policy, Now(now.0 + 90_000_000_000)));
        let (ticket, _) = record.try_probe(&at(&policy, Now(now.0 + 90_000_000_000)));
        assert!(record.state == State::Closed || ticket.is_some(), "{column}: {record:?}");
    }
}

#[test]
fn a_slightly_older_reading_of_the_clock_moves_nothing() {
    let policy = policy();
    let mut record = Record { touched: NOW, ..state("open") };
    let until = record.until;
    record.apply(Input::Tick, &at(&policy, before(900)));
    assert_eq!((record.until, record.touched), (until, NOW));
}

#[test]
fn every_time_follows_a_clock_that_was_set_back() {
    let policy = policy();
    let hour = |time: Now| Now(time.0 - 3_600_000_000_000);
    let mut record = Record {
        state: State::HalfOpen,
        since: before(4_000),
        until: after(3_000),
        touched: NOW,
        clean_since: before(5_000),
        watched_since: before(1_000),
        held_until: after(7_000),
        opinion_seen: after(8_000),
        ..Record::default()
    };
    record.probes[3] = Probe { id: 9, expires: after(9_000) };
    record.window.add(Counts { total: 9, failed: 9, slow: 9 }, NOW, 1_000_000_000);
    let was = record.clone();
    record.apply(Input::Tick, &at(&policy, hour(NOW)));
    let mut expect = Record {
        since: hour(was.since),
        until: hour(was.until),
        touched: hour(NOW),
        clean_since: hour(was.clean_since),
        watched_since: hour(was.watched_since),
        held_until: hour(was.held_until),
        window: Window::default(),
        ..was.clone()
    };
    expect.probes[3].expires = hour(was.probes[3].expires);
    assert_eq!(record, expect, "an opinion's expiry is the agent's time and stays");
}

#[test]
fn a_soft_probe_fails() {
    let policy = policy();
    let mut record = state("h.last");
    let soft = Outcome::Soft { retry_after: Some(Duration::from_secs(7)) };
    record.apply(Input::Probe { id: 7, outcome: soft, at: NOW }, &at(&policy, NOW));
    assert_eq!(record.state, State::Open);
}

#[test]
fn trips_are_counted_up_to_a_limit_from_which_they_are_forgiven_in_minutes() {
    let policy = policy();
    let mut record = state("open");
    for _ in 0..100 {
        fail_probe(&mut record, &policy, 0);
    }
    assert_eq!(record.trips, 32);
}

#[test]
fn no_probe_joins_one_that_is_overdue() {
    let mut policy = policy();
    policy.half_open.probes = 2;
    assert_eq!(state("h.last").verdict(&policy, NOW), Verdict::ProbeOwed, "a second slot is free");
    assert_eq!(state("h.overdue").verdict(&policy, NOW), Verdict::Blocked { until: NOW });
}

#[test]
fn an_opinion_holds_for_its_time_where_the_policys_own_is_shorter() {
    let short = Duration::from_millis(100);
    let fleet = Fleet::Enforce;
    let policy = Policy { open: short, open_max: short, fleet, ..policy() };
    let mut record = state("h.last");
    let opinion = Opinion { expires_at: after(9_000), reporters: 1 };
    record.apply(Input::Opinion(opinion), &at(&policy, NOW));
    let held = Verdict::Blocked { until: after(9_000) };
    assert_eq!(record.verdict(&policy, after(8_999)), held);
}

#[test]
fn whose_word_it_is_follows_the_evidence() {
    for (row, column, origin, expect) in [
        ("probe: failure", "h.last", Origin::Forced, Origin::Own),
        ("probe: failure", "h.last", Origin::Advised, Origin::Advised),
        ("enforced opinion", "half", Origin::Own, Origin::Own),
        ("enforced opinion", "open", Origin::Own, Origin::Own),
        ("enforced opinion", "closed", Origin::Own, Origin::Fleet),
    ] {
        let mut record = Record { origin, ..state(column) };
        step(row, &mut record);
        assert_eq!(record.origin, expect, "{row} in {column}, opened by {origin:?}");
    }
}

#[test]
fn an_opinion_does_not_lengthen_what_was_opened_here() {
    let policy = Policy { fleet: Fleet::Enforce, ..policy() };
    for (column, expect) in [("open", 20_000), ("o.fleet", 50_000)] {
        let mut record = state(column);
        let opinion = Opinion { expires_at: after(50_000), reporters: 1 };
        record.apply(Input::Opinion(opinion), &at(&policy, NOW));
        assert_eq!(record.until, after(expect), "{column}");
    }
}
