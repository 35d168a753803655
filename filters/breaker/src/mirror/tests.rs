//! Several workers over one store.

use pintle_contract::ForceAction;

use super::*;
use crate::classify::FailureKind;
use crate::machine::Reason;
use crate::policy::Rate;
use crate::record::{Origin, Verdict};

mod interleaved;

const FAILURE: Outcome = Outcome::Failure(FailureKind::Reset);
const SUCCESS: Outcome = Outcome::Success { slow: false };

fn at(millis: u64) -> Now {
    Now::from_millis(1_700_000_000_000 + millis)
}

/// The shared store: one value, compare-and-swap.
#[derive(Default)]
struct Store {
    bytes: Vec<u8>,
    cas: u64,
}

impl Store {
    fn read(&self) -> (Option<Record>, u64) {
        (Record::decode(&self.bytes).ok(), self.cas)
    }

    fn write(&mut self, record: &Record, cas: u64) -> bool {
        let accepted = cas == self.cas;
        if accepted {
            record.encode(&mut self.bytes);
            self.cas += 1;
        }
        accepted
    }

    fn record(&self) -> Record {
        self.read().0.unwrap_or_default()
    }
}

/// What the shell does on [`Need::Sync`]. Returns the transitions and whether it woke the others.
fn sync(
    store: &mut Store,
    mirror: &mut Mirror,
    policy: &Policy,
    now: Now,
) -> (Vec<Transition>, bool) {
    let (fresh, cas) = store.read();
    let merged = mirror.merge(fresh, policy, now, 0);
    assert!(!merged.changed || store.write(&merged.record, cas));
    let wake = merged.wake;
    (mirror.commit(merged), wake)
}

fn claim(store: &mut Store, mirror: &mut Mirror, policy: &Policy, now: Now) -> Option<Ticket> {
    let (fresh, cas) = store.read();
    let merged = mirror.claim(fresh, policy, false, now, 0);
    assert!(!merged.changed || store.write(&merged.record, cas));
    let ticket = merged.ticket;
    let _ = mirror.commit(merged);
    ticket
}

/// An answer at a worker, with whatever it makes necessary.
fn answer(
    store: &mut Store,
    mirror: &mut Mirror,
    outcome: Outcome,
    policy: &Policy,
    now: Now,
) -> Vec<Transition> {
    let ticket = mirror.record().ticket();
    match mirror.observe(ticket, outcome, policy, now) {
        Need::Nothing => Vec::new(),
        Need::Sync => sync(store, mirror, policy, now).0,
    }
}

/// Every worker reads what was written, and writes if it has to.
fn wake(store: &mut Store, mirrors: &mut [Mirror], policy: &Policy, now: Now) {
    for mirror in mirrors {
        if mirror.refresh(store.record(), now) == Need::Sync {
            sync(store, mirror, policy, now);
        }
    }
}

fn workers<const N: usize>() -> [Mirror; N] {
    std::array::from_fn(|_| Mirror::default())
}

/// A store with a breaker that opened at 0, and workers that know it.
fn opened<const N: usize>(policy: &Policy) -> (Store, [Mirror; N]) {
    let mut store = Store::default();
    let mut mirrors = workers::<N>();
    for _ in 0..5 {
        answer(&mut store, &mut mirrors[0], FAILURE, policy, at(0));
    }
    wake(&mut store, &mut mirrors, policy, at(0));
    assert_eq!(store.record().state(), State::Open);
    (store, mirrors)
}

fn plain() -> Policy {
    Policy { jitter_percent: 0, ..Policy::unconfigured() }
}

// === what touches the store ===

#[test]
fn a_success_at_a_quiet_endpoint_touches_nothing() {
    let policy = plain();
    let mut mirror = Mirror::default();
    for millis in 0..100_000 {
        let ticket = mirror.record().ticket();
        assert_eq!(mirror.observe(ticket, SUCCESS, &policy, at(millis)), Need::Nothing);
    }
    assert_eq!(mirror.tick(at(100_000)), Need::Nothing);
}

#[test]
fn the_first_failure_brings_in_the_whole_window_and_wakes_the_others() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = (Store::default(), workers());
    for _ in 0..40 {
        answer(&mut store, &mut a, SUCCESS, &policy, at(0));
        answer(&mut store, &mut b, SUCCESS, &policy, at(0));
    }
    assert_eq!(store.cas, 0);
    let ticket = a.record().ticket();
    assert_eq!(a.observe(ticket, FAILURE, &policy, at(1)), Need::Sync);
    assert!(sync(&mut store, &mut a, &policy, at(1)).1, "the others are to be woken");
    assert_eq!(store.record().counts(&policy, at(1)).total, 41);
    wake(&mut store, std::slice::from_mut(&mut b), &policy, at(2));
    assert_eq!(store.record().counts(&policy, at(2)).total, 81);
}

#[test]
fn a_watched_endpoint_is_written_by_ticks_and_not_by_successes() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    answer(&mut store, &mut mirror, FAILURE, &policy, at(0));
    answer(&mut store, &mut mirror, SUCCESS, &policy, at(1));
    let writes = store.cas;
    for millis in 2..200 {
        answer(&mut store, &mut mirror, SUCCESS, &policy, at(millis));
    }
    assert_eq!(store.cas, writes, "the row is broken already");
    assert_eq!(mirror.tick(at(250)), Need::Sync);
    sync(&mut store, &mut mirror, &policy, at(250));
    assert_eq!(store.record().counts(&policy, at(250)).total, 200);
    sync(&mut store, &mut mirror, &policy, at(500));
    assert_eq!(store.cas, writes + 1, "nothing new, nothing written");
    sync(&mut store, &mut mirror, &policy, at(12_000));
    assert_eq!(mirror.tick(at(12_250)), Need::Nothing, "the window is clean again");
}

/// What this worker has to bring in is brought in with every tick; time alone is asked for where it
/// may change something.
#[test]
fn a_watched_endpoint_where_nothing_is_counted_is_read_once_a_second() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = (Store::default(), workers());
    answer(&mut store, &mut a, FAILURE, &policy, at(0));
    wake(&mut store, std::slice::from_mut(&mut b), &policy, at(0));
    let mut read = Vec::new();
    for now in (1..=30).map(|tick| tick * 100) {
        if a.tick(at(now)) == Need::Sync {
            read.push(now);
            sync(&mut store, &mut a, &policy, at(now));
        }
    }
    assert_eq!(read, [300, 1_300, 2_300]);
    answer(&mut store, &mut b, SUCCESS, &policy, at(3_000));
    answer(&mut store, &mut b, SUCCESS, &policy, at(3_001));
    assert_eq!(b.tick(at(3_002)), Need::Sync, "counts wait");
}

#[test]
fn an_endpoint_that_an_operator_holds_is_read_when_that_ends() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    let force = Force { action: ForceAction::Close, stamp: 1, until: at(5_000) };
    assert_eq!(mirror.overlay(None, Some(force), &policy, at(0)), Need::Sync);
    sync(&mut store, &mut mirror, &policy, at(0));
    assert!(store.record().is_held_closed(at(4_999)));
    let read = (1..60).find(|tick| mirror.tick(at(tick * 100)) == Need::Sync);
    assert_eq!(read, Some(50));
}

// === one state for all ===

/// Of thousands that one request each found dead, ticks read none again.
#[test]
fn a_failure_that_is_over_costs_no_tick_and_still_counts() {
    let policy = plain();
    let (mut store, [mut worker]) = (Store::default(), workers());
    let failed = |store: &mut Store, worker: &mut Mirror, now| {
        answer(store, worker, FAILURE, &policy, now);
    };
    failed(&mut store, &mut worker, at(0));
    let mut ticks = 0;
    for now in (1..=1_200).map(|tick| at(tick * 100)) {
        if worker.tick(now) == Need::Sync {
            ticks += 1;
            sync(&mut store, &mut worker, &policy, now);
        }
    }
    let window = policy.window.as_millis() / 100;
    assert!(ticks <= window + window / 2, "{ticks} ticks");
    assert_eq!(store.record().consecutive(), 1);
    (1..5).for_each(|n| failed(&mut store, &mut worker, at(120_000 + n)));
    assert_eq!(store.record().state(), State::Open, "five in a row");
}

#[test]
fn five_failures_open_it_wherever_they_are_seen() {
    let policy = plain();
    let (mut store, mut mirrors) = (Store::default(), workers::<5>());
    let mut transitions = Vec::new();
    for (mirror, millis) in mirrors.iter_mut().zip(0..) {
        transitions.extend(answer(&mut store, mirror, FAILURE, &policy, at(millis)));
    }
    let [opened] = transitions[..] else { panic!("one transition, not {transitions:?}") };
    assert_eq!(opened.reason, Reason::Consecutive(5));
    assert!(matches!(mirrors[4].record().verdict(&policy, at(9)), Verdict::Blocked { .. }));
    wake(&mut store, &mut mirrors, &policy, at(9));
    for mirror in &mirrors {
        assert!(matches!(mirror.record().verdict(&policy, at(9)), Verdict::Blocked { .. }));
    }
}

#[test]
fn successes_of_the_others_keep_a_rate_from_opening_it() {
    let policy = Policy { consecutive_failures: 0, ..plain() };
    for (good, opens) in [(0, true), (12, true), (13, false), (200, false)] {
        let (mut store, [mut a, mut b]) = (Store::default(), workers());
        for _ in 0..good {
            answer(&mut store, &mut b, SUCCESS, &policy, at(0));
        }
        for millis in 0..12 {
            answer(&mut store, &mut a, FAILURE, &policy, at(millis));
        }
        wake(&mut store, std::slice::from_mut(&mut b), &policy, at(20));
        sync(&mut store, &mut a, &policy, at(260));
        let open = store.record().state() == State::Open;
        assert_eq!(open, opens, "12 failures here, {good} successes elsewhere");
    }
}

#[test]
fn a_success_anywhere_breaks_the_row() {
    let policy = Policy { failure_rate: Rate { percent: 0, min_requests: 1 }, ..plain() };
    let (mut store, mut mirrors) = (Store::default(), workers::<2>());
    for round in 0..10 {
        for _ in 0..4 {
            answer(&mut store, &mut mirrors[0], FAILURE, &policy, at(round * 3_000));
        }
        wake(&mut store, &mut mirrors, &policy, at(round * 3_000));
        for _ in 0..5 {
            answer(&mut store, &mut mirrors[1], SUCCESS, &policy, at(round * 3_000));
        }
        wake(&mut store, &mut mirrors, &policy, at(round * 3_000));
    }
    assert_eq!((store.record().state(), store.record().consecutive()), (State::Closed, 0));
}

#[test]
fn answers_from_before_the_opening_change_nothing() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    let stray = mirror.record().ticket();
    for _ in 0..5 {
        answer(&mut store, &mut mirror, FAILURE, &policy, at(0));
    }
    let open = store.record();
    for outcome in [SUCCESS, FAILURE, Outcome::Soft { retry_after: None }, Outcome::Ignored] {
        assert_eq!(mirror.observe(stray, outcome, &policy, at(1)), Need::Nothing);
    }
    assert_eq!(store.record(), open);
    // Nor once it is half-open, nor once it is closed.
    for millis in [30_000, 30_001] {
        let ticket = claim(&mut store, &mut mirror, &policy, at(millis)).unwrap();
        assert_eq!(mirror.observe(stray, FAILURE, &policy, at(millis)), Need::Nothing);
        let _ = mirror.observe(ticket, SUCCESS, &policy, at(millis));
        sync(&mut store, &mut mirror, &policy, at(millis));
    }
    assert_eq!(store.record().state(), State::Closed);
    assert_eq!(mirror.observe(stray, FAILURE, &policy, at(40_000)), Need::Nothing);
}

#[test]
fn what_a_worker_counted_before_an_opening_it_missed_is_dropped() {
    let policy = Policy { consecutive_failures: 5, ..plain() };
    let (mut store, [mut a, mut b]) = (Store::default(), workers());
    answer(&mut store, &mut b, SUCCESS, &policy, at(0));
    for _ in 0..5 {
        answer(&mut store, &mut a, FAILURE, &policy, at(1));
    }
    // b has not heard of it, and its request fails.
    let missed = answer(&mut store, &mut b, FAILURE, &policy, at(2));
    assert_eq!(missed, []);
    assert_eq!(b.record(), &store.record(), "it has heard now");
    assert!(store.record().counts(&policy, at(2)).is_zero());
}

// === probes ===

#[test]
fn of_two_workers_at_the_same_instant_one_gets_the_probe() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = opened(&policy);
    let now = at(30_000);
    let (fresh, cas) = store.read();
    let first = a.claim(fresh.clone(), &policy, false, now, 1);
    let second = b.claim(fresh, &policy, false, now, 2);
    assert!(first.ticket.is_some() && second.ticket.is_some(), "both think that they have it");
    assert!(store.write(&first.record, cas));
    assert!(!store.write(&second.record, cas), "but only one can write it");
    let _ = a.commit(first);
    assert_eq!(claim(&mut store, &mut b, &policy, now), None);
    assert_eq!(store.record().probes_out(), 1);
}

#[test]
fn a_worker_that_missed_the_closing_learns_of_it_when_it_wants_to_probe() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = opened(&policy);
    for _ in 0..2 {
        let ticket = claim(&mut store, &mut a, &policy, at(30_000)).unwrap();
        let _ = a.observe(ticket, SUCCESS, &policy, at(30_010));
        sync(&mut store, &mut a, &policy, at(30_010));
    }
    assert_eq!(b.record().verdict(&policy, at(30_020)), Verdict::ProbeOwed);
    assert_eq!(claim(&mut store, &mut b, &policy, at(30_020)), None);
    assert_eq!(b.record().verdict(&policy, at(30_020)), Verdict::Pass);
}

#[test]
fn streams_aborted_at_every_phase_leave_no_slot_behind() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = opened(&policy);
    for round in 0..10_000u64 {
        let now = at(30_000 + round);
        let ticket = claim(&mut store, &mut a, &policy, now).unwrap();
        assert_eq!(claim(&mut store, &mut b, &policy, now), None, "round {round}");
        // The request never left, or its client did.
        assert_eq!(a.observe(ticket, Outcome::Ignored, &policy, now), Need::Sync);
        sync(&mut store, &mut a, &policy, now);
        assert_eq!(store.record().probes_out(), 0);
    }
}

#[test]
fn the_probe_of_a_worker_that_died_expires() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = opened(&policy);
    claim(&mut store, &mut a, &policy, at(30_000)).unwrap();
    drop(a);
    assert_eq!(b.refresh(store.record(), at(30_001)), Need::Sync, "somebody has to wait for it");
    let (transitions, _) = sync(&mut store, &mut b, &policy, at(40_000));
    assert_eq!(transitions[0].reason, Reason::ProbeExpired);
    assert!(claim(&mut store, &mut b, &policy, at(100_000)).is_some());
}

// === what happens to the store ===

#[test]
fn a_reloaded_vm_finds_the_breaker_open() {
    let policy = plain();
    let (store, _) = opened::<1>(&policy);
    let mut reloaded = Mirror::default();
    assert_eq!(reloaded.refresh(store.record(), at(1)), Need::Nothing);
    assert!(matches!(reloaded.record().verdict(&policy, at(1)), Verdict::Blocked { .. }));
}

#[test]
fn a_wiped_or_damaged_store_is_restored_by_whoever_knows() {
    let policy = plain();
    for damage in [vec![], vec![0; 17]] {
        let (mut store, [mut mirror]) = opened(&policy);
        let known = store.record();
        store.bytes = damage;
        assert_eq!(mirror.refresh(store.record(), at(1)), Need::Sync);
        sync(&mut store, &mut mirror, &policy, at(1));
        assert_eq!(store.record().state(), known.state());
        assert_eq!(store.record().generation(), known.generation());
    }
}

#[test]
fn a_store_that_refuses_every_write_loses_nothing_within_bounds() {
    let policy = Policy {
        consecutive_failures: 1_000,
        failure_rate: Rate { percent: 0, min_requests: 1 },
        ..plain()
    };
    let (mut store, [mut mirror]) = (Store::default(), workers());
    for _ in 0..MAX_PENDING {
        let ticket = mirror.record().ticket();
        assert_eq!(mirror.observe(ticket, FAILURE, &policy, at(0)), Need::Sync);
        assert!(mirror.merge(None, &policy, at(0), 0).changed, "but it is not accepted");
    }
    assert_eq!(mirror.tick(at(250)), Need::Sync);
    sync(&mut store, &mut mirror, &policy, at(250));
    assert_eq!(store.record().consecutive() as usize, MAX_PENDING);

    for _ in 0..10 * MAX_PENDING {
        let ticket = mirror.record().ticket();
        let _ = mirror.observe(ticket, FAILURE, &policy, at(300));
    }
    assert_eq!(mirror.pending.len(), MAX_PENDING);
    sync(&mut store, &mut mirror, &policy, at(300));
    let failed = store.record().counts(&policy, at(300)).failed as usize;
    assert_eq!(failed, 11 * MAX_PENDING, "the window holds them all");
}

#[test]
fn a_clock_set_back_is_followed_once() {
    let policy = plain();
    let (mut store, mut mirrors) = opened::<2>(&policy);
    let now = Now(at(0).0 - 3_600_000_000_000);
    assert_eq!(mirrors[0].tick(now), Need::Sync);
    sync(&mut store, &mut mirrors[0], &policy, now);
    wake(&mut store, &mut mirrors, &policy, now);
    let writes = store.cas;
    for mirror in &mut mirrors {
        assert_eq!(mirror.tick(now), Need::Nothing);
        assert_eq!(mirror.record().verdict(&policy, now.after(policy.open)), Verdict::ProbeOwed);
    }
    assert_eq!(store.cas, writes);
}

// === orders and opinions ===

#[test]
fn an_order_in_the_table_is_carried_out_once_by_all_workers_together() {
    let policy = plain();
    let (mut store, mut mirrors) = (Store::default(), workers::<3>());
    let order = Force { action: ForceAction::Open, until: at(60_000), stamp: 1 };
    let mut transitions = Vec::new();
    for mirror in &mut mirrors {
        assert_eq!(mirror.overlay(None, Some(order), &policy, at(0)), Need::Sync);
        transitions.extend(sync(&mut store, mirror, &policy, at(0)).0);
    }
    assert_eq!(transitions.len(), 1);
    assert_eq!(transitions[0].origin, Origin::Forced);
    for mirror in &mut mirrors {
        assert_eq!(mirror.overlay(None, Some(order), &policy, at(1)), Need::Nothing);
    }
}

#[test]
fn advice_makes_one_failure_enough_while_it_lasts() {
    let policy = plain();
    let opinion = Some(Opinion { expires_at: at(20_000), reporters: 2 });
    for (millis, opens) in [(0, true), (19_999, true), (20_000, false)] {
        let (mut store, [mut mirror]) = (Store::default(), workers());
        assert_eq!(mirror.overlay(opinion, None, &policy, at(0)), Need::Nothing);
        assert_eq!(mirror.is_advised(&policy, at(millis)), opens);
        let transitions = answer(&mut store, &mut mirror, FAILURE, &policy, at(millis));
        assert_eq!(!transitions.is_empty(), opens, "a failure at {millis} ms");
    }
}

#[test]
fn advice_stretched_by_a_clock_that_was_set_back_opens_nothing() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    let opinion = Some(Opinion { expires_at: at(20_000), reporters: 2 });
    let _ = mirror.overlay(opinion, None, &policy, at(0));
    let now = Now(at(0).0 - 3_600_000_000_000);
    assert_eq!(answer(&mut store, &mut mirror, FAILURE, &policy, now), []);
}

#[test]
fn advice_lasts_no_longer_than_the_policys_limit_whatever_it_says() {
    let policy = plain();
    let mut mirror = Mirror::default();
    let opinion = Some(Opinion { expires_at: Now(u64::MAX), reporters: 2 });
    let _ = mirror.overlay(opinion, None, &policy, at(0));
    // The same opinion with every new table does not begin anew.
    let _ = mirror.overlay(opinion, None, &policy, at(50_000));
    assert!(mirror.is_advised(&policy, at(59_999)));
    assert!(!mirror.is_advised(&policy, at(60_000)));
    assert!(!mirror.is_advised(&policy, Now(0)), "a clock set back does not stretch it");
}

#[test]
fn an_enforced_opinion_opens_at_once_and_is_reported_once() {
    let policy = Policy { fleet: Fleet::Enforce, ..plain() };
    let (mut store, mut mirrors) = (Store::default(), workers::<3>());
    let opinion = Some(Opinion { expires_at: at(20_000), reporters: 2 });
    let mut transitions = Vec::new();
    for mirror in &mut mirrors {
        if mirror.overlay(opinion, None, &policy, at(0)) == Need::Sync {
            transitions.extend(sync(&mut store, mirror, &policy, at(0)).0);
        }
    }
    assert_eq!(transitions.len(), 1);
    assert!(!transitions[0].is_for_the_fleet());
    assert_eq!(store.record().verdict(&policy, at(0)), Verdict::Blocked { until: at(20_000) });
}

#[test]
fn what_was_counted_before_an_opening_is_not_added_after_the_closing() {
    let short = Duration::from_millis(100);
    let policy = Policy { open: short, open_max: short, ..plain() };
    for learns_first in [false, true] {
        let (mut store, [mut a, mut b]) = (Store::default(), workers());
        // b counts, and its failure waits for a store that refuses it.
        answer(&mut store, &mut b, SUCCESS, &policy, at(0));
        let ticket = b.record().ticket();
        let _ = b.observe(ticket, FAILURE, &policy, at(0));
        for _ in 0..5 {
            answer(&mut store, &mut a, FAILURE, &policy, at(1));
        }
        for _ in 0..2 {
            let probe = claim(&mut store, &mut a, &policy, at(200)).unwrap();
            let _ = a.observe(probe, SUCCESS, &policy, at(200));
            sync(&mut store, &mut a, &policy, at(200));
        }
        assert_eq!(store.record().state(), State::Closed);
        if learns_first {
            let _ = b.refresh(store.record(), at(300));
        }
        let (transitions, wake) = sync(&mut store, &mut b, &policy, at(300));
        assert_eq!((transitions.len(), wake), (0, false));
        let record = store.record();
        assert_eq!((record.consecutive(), record.counts(&policy, at(300)).total), (0, 0));
        assert!(record.is_quiet(), "learns first: {learns_first}");
    }
}

#[test]
fn a_success_between_failures_that_wait_breaks_their_row() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    for outcome in [FAILURE, FAILURE, FAILURE, FAILURE, SUCCESS, FAILURE] {
        let ticket = mirror.record().ticket();
        let _ = mirror.observe(ticket, outcome, &policy, at(0));
    }
    sync(&mut store, &mut mirror, &policy, at(0));
    assert_eq!((store.record().state(), store.record().consecutive()), (State::Closed, 1));
}

#[test]
fn a_quiet_record_from_the_future_is_written_once() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    let touched = Record { touched: at(3_600_000), revision: 1, ..Record::default() };
    touched.encode(&mut store.bytes);
    assert_eq!(mirror.refresh(store.record(), at(0)), Need::Sync);
    sync(&mut store, &mut mirror, &policy, at(0));
    assert_eq!(mirror.refresh(store.record(), at(0)), Need::Nothing);
    assert_eq!(store.cas, 1);
}

#[test]
fn the_answer_of_a_probe_outlives_news_of_another_generation() {
    let policy = plain();
    let (mut store, [mut a, mut b]) = opened(&policy);
    let probe = claim(&mut store, &mut a, &policy, at(30_000)).unwrap();
    assert_eq!(b.refresh(store.record(), at(30_000)), Need::Sync);
    // The answer was seen where the record was last known as open.
    let mut late = Mirror::default();
    let _ = late.observe(probe, Outcome::Ignored, &policy, at(30_001));
    assert_eq!(late.refresh(store.record(), at(30_001)), Need::Sync);
    sync(&mut store, &mut late, &policy, at(30_001));
    assert_eq!(store.record().probes_out(), 0);
}

#[test]
fn the_others_are_woken_by_what_they_must_act_on() {
    let policy = plain();
    let (mut store, [mut mirror]) = (Store::default(), workers());
    for (outcome, expect, why) in [
        (FAILURE, true, "a watch begins, and a row that their successes break"),
        (FAILURE, false, "the row goes on"),
        (SUCCESS, false, "the row ends, and whoever does not know writes nothing new"),
        (FAILURE, true, "a row begins"),
    ] {
        let ticket = mirror.record().ticket();
        assert_eq!(mirror.observe(ticket, outcome, &policy, at(0)), Need::Sync);
        assert_eq!(sync(&mut store, &mut mirror, &policy, at(0)).1, expect, "{why}");
    }
    for (action, until, stamp) in [
        (ForceAction::Close, 60_000, 1),
        (ForceAction::Open, 60_000, 2),
        (ForceAction::Open, 90_000, 3),
    ] {
        let order = Force { action, until: at(until), stamp };
        let _ = mirror.overlay(None, Some(order), &policy, at(1));
        assert!(sync(&mut store, &mut mirror, &policy, at(1)).1, "order {stamp}");
    }
}
