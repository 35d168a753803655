//! A breaker's record from anywhere, whatever happens to it next, and what a request's end says of
//! it.

use std::time::Duration;

use arbitrary::Arbitrary;
use pintle_breaker::classify::parse_retry_after;
use pintle_breaker::machine::{Context, Input};
use pintle_breaker::{
    Answered, Attempts, FailureKind, Fleet, LAST_RESORT, Logged, MAX_PROBES, Origin, Outcome,
    Policy, RECORD_BYTES, Record, Report, Retries, SlowCall, State, Ticket, Transition, Verdict,
    classify,
};
use pintle_contract::{Force, ForceAction, Now, Opinion};
use xxhash_rust::xxh64::xxh64;

use crate::case;

pub(crate) const BASE_MS: u64 = 1_700_000_000_000;
/// Trips are counted no further.
const MAX_TRIPS: u32 = 32;

/// A policy within its documented ranges.
#[derive(Debug, Arbitrary)]
pub(crate) struct Rules {
    consecutive: u8,
    percent: u8,
    min_requests: u8,
    slow: bool,
    open: u16,
    jitter: u8,
    probes: u8,
    successes: u8,
    timeout: u8,
    fleet: u8,
    fleet_ttl: u8,
    window: u8,
}

impl Rules {
    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::unconfigured();
        policy.consecutive_failures = (self.consecutive % 7).into();
        policy.failure_rate.percent = self.percent % 101;
        policy.failure_rate.min_requests = u32::from(self.min_requests % 20) + 1;
        policy.slow_call = self
            .slow
            .then_some(SlowCall { threshold: Duration::from_secs(1), rate: policy.failure_rate });
        policy.open = Duration::from_millis(u64::from(self.open) + 100);
        policy.open_max = policy.open * 4;
        policy.jitter_percent = self.jitter % 101;
        policy.half_open.probes = self.probes % 8 + 1;
        policy.half_open.successes = self.successes % 4 + 1;
        policy.half_open.timeout = Duration::from_millis(u64::from(self.timeout) * 100 + 100);
        policy.fleet = [Fleet::Advise, Fleet::Enforce, Fleet::Off][usize::from(self.fleet % 3)];
        policy.fleet_ttl = Duration::from_secs(u64::from(self.fleet_ttl % 120) + 1);
        policy.window = Duration::from_secs(u64::from(self.window % 60) + 1);
        policy
    }
}

#[derive(Clone, Copy, Debug, Arbitrary)]
pub(crate) enum Said {
    Success(bool),
    Failure,
    Status(u16),
    Soft(Option<u16>),
    Ignored,
}

impl Said {
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Success(slow) => Outcome::Success { slow },
            Self::Failure => Outcome::Failure(FailureKind::Reset),
            Self::Status(code) => Outcome::Failure(FailureKind::Status(code)),
            Self::Soft(after) => {
                Outcome::Soft { retry_after: after.map(|s| Duration::from_secs(s.into())) }
            }
            Self::Ignored => Outcome::Ignored,
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    rules: Rules,
    /// What a neighbour has written, instead of nothing.
    written: Option<&'a [u8]>,
    steps: Vec<(u32, Step)>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Wait(u16),
    Jump(i32),
    Answer(Said),
    Take(bool),
    AnswerProbe(u8, Said, u16),
    Tick,
    Opinion(u16, u32),
    Order(u8, u16),
}

/// Where a record keeps no field, and nothing is read.
const UNUSED: std::ops::Range<usize> = 76..84;

/// Bytes as somebody who has the codec would write them.
pub(crate) fn written(bytes: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_BYTES];
    record[..5].copy_from_slice(b"PBRK\x01");
    for (to, from) in record[5..RECORD_BYTES - 8].iter_mut().zip(bytes) {
        *to = *from;
    }
    record[UNUSED].fill(0);
    let checksum = xxh64(&record[..RECORD_BYTES - 8], 0);
    record[RECORD_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
    record
}

pub(crate) fn check_codec(record: &Record) {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(Record::decode(&bytes).as_ref(), Ok(record), "a machine's record is refused");
}

pub(crate) fn check_transition(transition: &Transition) {
    assert_ne!(transition.from, transition.to);
    assert_eq!(transition.until.is_some(), transition.to == State::Open);
    assert!(!transition.is_for_the_fleet() || transition.origin == Origin::Own);
    assert!(transition.trips <= MAX_TRIPS || transition.to != State::Open);
    assert!(!transition.reason.to_string().is_empty());
}

pub(crate) fn breakers(data: &[u8]) {
    let _ = Record::decode(data);
    let Some(case) = case::<Case<'_>>(data) else { return };
    let policy = case.rules.policy();
    let (mut record, alien) = match case.written {
        None => (Record::default(), false),
        Some(bytes) => {
            let bytes = written(bytes);
            let Ok(record) = Record::decode(&bytes) else { return };
            let mut again = Vec::new();
            record.encode(&mut again);
            assert_eq!(again, bytes, "equal records are equal bytes");
            (record, true)
        }
    };
    let mut ms = BASE_MS;
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut stamp = 0;
    for (random, step) in case.steps.into_iter().take(150) {
        let now = Now::from_millis(ms);
        let mut context =
            Context { policy: &policy, opinion: None, last_resort: false, now, random };
        if random % 3 == 0 {
            context.opinion = Some(Opinion { expires_at: now.after(LAST_RESORT), reporters: 2 });
        }
        let (state, generation) = (record.state(), record.generation());
        let transition = match step {
            Step::Wait(millis) => {
                ms += u64::from(millis);
                continue;
            }
            Step::Jump(seconds) => {
                let millis = i64::from(seconds % 100_000) * 1000;
                ms = ms.saturating_add_signed(millis).max(BASE_MS / 2);
                continue;
            }
            Step::Answer(said) => record.apply(Input::Answer(said.outcome()), &context),
            Step::Take(last_resort) => {
                context.last_resort = last_resort;
                let (ticket, transition) = record.try_probe(&context);
                assert!(ticket.is_none_or(Ticket::is_probe));
                assert!(ticket.is_none() || record.state() == State::HalfOpen);
                tickets.extend(ticket);
                transition
            }
            Step::AnswerProbe(ago, said, late) => {
                // Numbers are given out in a row, so the last ones are known without the tickets.
                let id = (tickets.len() as u32).saturating_sub(u32::from(ago % 8));
                let at = Now(now.0.saturating_sub(u64::from(late) * 1_000_000));
                record.apply(Input::Probe { id, outcome: said.outcome(), at }, &context)
            }
            Step::Tick => record.apply(Input::Tick, &context),
            Step::Opinion(seconds, reporters) => {
                let expires_at = now.after(Duration::from_secs(seconds.into()));
                record.apply(Input::Opinion(Opinion { expires_at, reporters }), &context)
            }
            Step::Order(action, seconds) => {
                stamp += 1;
                let actions = [ForceAction::Open, ForceAction::Close, ForceAction::Clear];
                let force = Force {
                    action: actions[usize::from(action % 3)],
                    until: now.after(Duration::from_secs(u64::from(seconds % 600))),
                    stamp,
                };
                record.apply(Input::Force(force), &context)
            }
        };
        check_codec(&record);
        check_record(&record, &policy, now);
        assert!(record.probes_out() <= MAX_PROBES);
        if !alien {
            assert!(record.probes_out() <= usize::from(policy.half_open.probes));
            assert!(record.trips() <= MAX_TRIPS);
        }
        match transition {
            None => assert_eq!(record.state(), state, "a change that nobody is told of"),
            Some(transition) => {
                check_transition(&transition);
                assert_eq!((transition.from, transition.to), (state, record.state()));
                assert_eq!(transition.generation, record.generation());
                assert_eq!(record.generation(), generation.wrapping_add(1));
                assert_eq!(transition.at, now);
            }
        }
    }
    // What an operator, or who forged the word of one, holds open stays so for as long as was said.
    let forged = alien && record.origin() == Origin::Forced;
    if !forged {
        check_unwedged(record, &policy, ms);
    }
}

fn check_record(record: &Record, policy: &Policy, now: Now) {
    let (verdict, sooner) =
        (record.verdict(policy, now), record.verdict_as_last_resort(policy, now));
    match record.state() {
        State::Closed => assert_eq!((verdict, sooner), (Verdict::Pass, Verdict::Pass)),
        State::Open | State::HalfOpen => {
            assert_ne!(verdict, Verdict::Pass);
            if let (Verdict::Blocked { until: sooner }, Verdict::Blocked { until }) =
                (sooner, verdict)
            {
                assert!(sooner <= until);
            }
            assert!(verdict != Verdict::ProbeOwed || sooner == Verdict::ProbeOwed);
            assert_eq!(record.consecutive(), 0);
            assert!(!record.is_watched());
        }
    }
    assert!(record.state() == State::HalfOpen || record.probes_out() == 0);
    assert!(!record.is_quiet() || record.state() == State::Closed);
    assert_eq!(record.severity().is_none(), record.state() == State::Closed);
}

/// Once everybody is quiet, a request passes again in time.
fn check_unwedged(mut record: Record, policy: &Policy, ms: u64) {
    let longest = policy.open_at_most().max(policy.fleet_ttl).max(Duration::from_secs(600));
    let limit = Now::from_millis(ms).after(longest * 2 + Duration::from_secs(300));
    let mut now = Now::from_millis(ms);
    loop {
        let context = Context { policy, opinion: None, last_resort: false, now, random: 0 };
        record.apply(Input::Tick, &context);
        let Verdict::Blocked { until } = record.verdict(policy, now) else { return };
        now = until.max(now.after(Duration::from_millis(100)));
        assert!(now <= limit, "blocked until {now:?}, {record:?}");
    }
}

#[derive(Debug, Arbitrary)]
struct End<'a> {
    rules: Rules,
    code: Option<u16>,
    flags: u64,
    details: &'a [u8],
    upstream: bool,
    logged: bool,
    grpc: Option<u32>,
    took: Option<u32>,
    logged_well: bool,
    retry_after: &'a [u8],
    now: u64,
    head: bool,
    connect: bool,
    overdue: bool,
    attempts: u32,
    list: u8,
    endpoints: u32,
    percent: u8,
    answered: Option<u8>,
    any: bool,
}

/// What Envoy reports of a request's end, down to the header that an endpoint wrote.
pub(crate) fn outcomes(data: &[u8]) {
    let Some(end) = case::<End<'_>>(data) else { return };
    let policy = end.rules.policy();
    let now = Now(end.now);
    let retry_after = parse_retry_after(end.retry_after, now);
    if let Some(after) = retry_after {
        let written = end.retry_after.trim_ascii();
        let date = written.len() == 29 && written.ends_with(b" GMT");
        assert!(date || after <= Duration::from_secs(u32::MAX.into()));
    }
    let report = Report {
        code: end.code,
        flags: end.flags,
        head: end.head,
        connect: end.connect,
        overdue: end.overdue,
        details: end.details,
        upstream: end.upstream,
        grpc: end.grpc,
        took: end.took.map(|micros| Duration::from_micros(micros.into())),
        retry_after,
    };
    let outcome = classify(&report, &policy);
    // What is not asked for is not needed.
    if !report.asks_upstream() {
        let other = Report { upstream: !report.upstream, ..report };
        assert_eq!(classify(&other, &policy), outcome);
    }
    match outcome {
        Outcome::Success { slow } => assert!(!slow || policy.slow_call.is_some()),
        Outcome::Failure(FailureKind::Status(code)) => {
            assert!(policy.failure_codes.contains(code) && Some(code) == report.code);
        }
        Outcome::Failure(kind) => assert!(kind.as_str().is_some()),
        Outcome::Soft { .. } | Outcome::Ignored => {}
    }
    let listed = usize::from(end.list % 18);
    let answered = match end.answered.map(usize::from) {
        Some(at) if at < listed => Answered::Entry(at),
        Some(at) if at % 2 == 0 => Answered::Other(at as u64),
        Some(_) => Answered::Stranger,
        None => Answered::Nowhere,
    };
    let retries = match (end.logged, end.any) {
        (true, _) => Retries::Logged,
        (false, true) => Retries::Any,
        (false, false) => Retries::Failures,
    };
    let said = match end.logged_well {
        true => Outcome::Success { slow: false },
        false => Outcome::Failure(FailureKind::Reset),
    };
    let logged = [Logged { to: Answered::Entry(0), outcome: said }];
    let attempts =
        Attempts { made: end.attempts, listed, answered, last: outcome, retries, logged: &logged };
    let failed = |at: &usize| attempts.entry(*at) == Outcome::Failure(FailureKind::Attempt);
    let failed = (0..listed).filter(failed).count();
    let inferred = retries == Retries::Failures && matches!(answered, Answered::Entry(_));
    assert!(failed == 0 || inferred);
    assert!(failed as u64 + u64::from(attempts.unknown()) <= u64::from(end.attempts));
    if let (Answered::Entry(at), 1..) = (answered, end.attempts) {
        assert_eq!(attempts.entry(at), outcome);
    }
    assert!(attempts.other() == Outcome::Ignored || matches!(answered, Answered::Other(_)));

    let allowed = pintle_breaker::allowed(end.endpoints as usize, end.percent);
    let exact = u64::from(end.endpoints) * u64::from(end.percent.min(100)) / 100;
    assert_eq!(allowed as u64, exact);
}
