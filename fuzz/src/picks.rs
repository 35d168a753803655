//! The promises of a pick, whatever the table, the breakers, the other workers and the clock say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use arbitrary::Arbitrary;
use pintle_balance::{
    Balancer, Choice, Dice, LoadEntry, Nothing, Picks, Policy, Request, Sample, Strategy, Ticket,
    Verdict, Want,
};
use pintle_contract::{Endpoint, Health, Now};
use rand::SeedableRng;
use serde_json::json;

use crate::case;

const WEIGHTS: [u32; 8] = [1, 0, 2, 3, 1, 100, 1_000_000, 1];
const BASE: u64 = 1_700_000_000_000_000_000;

#[derive(Debug, Arbitrary)]
struct Case {
    seed: u64,
    rules: Rules,
    spots: Vec<Spot>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Arbitrary)]
struct Rules {
    strategy: u8,
    panic: u8,
    attempts: u8,
    balance: bool,
    fallback: u8,
    slow_start: bool,
    zones: bool,
}

/// One endpoint of a table.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Spot {
    id: u8,
    weight: u8,
    health: u8,
    local: bool,
    version: bool,
    age: u8,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Verdict(u8, u8),
    Pick { hash: Option<u64>, subset: u8, pin: Option<u8>, may_probe: bool, send: bool },
    Finish(u8, u32, bool, Option<u8>),
    Abandon(u8, Option<u32>),
    Remote(u8, Vec<(u8, u16, u32, u32)>, u32),
    Vanish(u8),
    Wait(i32),
    Update(Vec<Spot>),
    Rule(Rules),
}

/// What the balancer was told, kept as plainly as can be.
struct World {
    balancer: Balancer,
    rules: Rules,
    spots: Vec<Spot>,
    verdicts: BTreeMap<u8, Verdict>,
    tickets: Vec<(u8, Ticket)>,
    remote: BTreeMap<u8, Vec<(u8, u16)>>,
    now: Now,
    dice: Dice,
}

pub(crate) fn picks(data: &[u8]) {
    let Some(case) = case::<Case>(data) else { return };
    let (spots, now) = (table(&case.spots), Now(BASE));
    let mut world = World {
        balancer: Balancer::new("s", &policy(&case.rules), &endpoints(&spots), "a", case.seed, now),
        rules: case.rules,
        spots,
        verdicts: BTreeMap::new(),
        tickets: Vec::new(),
        remote: BTreeMap::new(),
        now,
        dice: Dice::seed_from_u64(case.seed),
    };
    for step in case.steps.into_iter().take(80) {
        world.run(step);
        world.check_load();
    }
}

fn policy(rules: &Rules) -> Policy {
    let slow_start = rules.slow_start.then(|| json!({"window": "200s", "aggression": 1.5}));
    let panic_percent = [50, 0, 100, 1][usize::from(rules.panic % 4)];
    let fallback = ["none", "any", "default"][usize::from(rules.fallback % 3)];
    pintle_settings::read(
        "select",
        json!({
            "strategy": Strategy::NAMES[usize::from(rules.strategy) % Strategy::NAMES.len()].0,
            "panic_percent": panic_percent,
            "attempts": rules.attempts % 16 + 1,
            "table_size": 101,
            "minimum_ring_size": 64,
            "maximum_ring_size": 256,
            "hash_balance_factor": if rules.balance { 120 } else { 0 },
            "slow_start": slow_start,
            "zone_aware": rules.zones,
            "subset": [{"header": "x-version", "metadata": "version"}],
            "subset_fallback": fallback,
            "subset_default": {"metadata": {"version": "1"}},
        }),
    )
    .expect("a policy")
}

/// As the agent sends it: sorted, ids unique.
fn table(spots: &[Spot]) -> Vec<Spot> {
    let by_id: BTreeMap<u8, Spot> = spots
        .iter()
        .take(40)
        .map(|spot| (spot.id % 48, Spot { id: spot.id % 48, ..*spot }))
        .collect();
    by_id.into_values().collect()
}

fn id_of(id: u8) -> String {
    format!("e{id:02}")
}

fn endpoints(spots: &[Spot]) -> Vec<Endpoint> {
    spots
        .iter()
        .map(|spot| {
            let registered =
                if spot.age == 0 { 0 } else { BASE - u64::from(spot.age) * 1_000_000_000 };
            Endpoint {
                weight: weight(spot),
                health: health(spot),
                zone: if spot.local { "a" } else { "b" }.into(),
                metadata: [("version".into(), if spot.version { "1" } else { "2" }.into())].into(),
                registered_at: Now(registered),
                ..Endpoint::new(id_of(spot.id), SocketAddr::from(([10, 0, 0, spot.id], 80)))
            }
        })
        .collect()
}

fn weight(spot: &Spot) -> u32 {
    WEIGHTS[usize::from(spot.weight) % WEIGHTS.len()]
}

fn health(spot: &Spot) -> Health {
    [Health::Healthy, Health::Healthy, Health::Unhealthy, Health::Draining]
        [usize::from(spot.health % 4)]
}

impl World {
    fn index(&self, id: u8) -> Option<usize> {
        let found = self.balancer.index_of(&id_of(id % 48));
        assert_eq!(found, self.spots.iter().position(|spot| spot.id == id % 48));
        found
    }

    fn verdict(&self, spot: &Spot) -> Verdict {
        self.verdicts.get(&spot.id).copied().unwrap_or_default()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Verdict(id, verdict) => {
                let verdicts = [Verdict::Pass, Verdict::Blocked, Verdict::Probe];
                let verdict = verdicts[usize::from(verdict % 3)];
                if let Some(index) = self.index(id) {
                    self.balancer.set_verdict(index, verdict);
                    self.verdicts.insert(id % 48, verdict);
                }
            }
            Step::Pick { hash, subset, pin, may_probe, send } => {
                self.pick(hash, subset, pin, may_probe, send);
            }
            Step::Finish(ticket, micros, failed, retry) => {
                if let Some(ticket) = self.take(ticket) {
                    let sample = Sample {
                        latency: Some(Duration::from_micros(micros.into())),
                        failed,
                        retry_after: retry.map(|s| Duration::from_secs(s.into())),
                    };
                    self.balancer.finished(ticket, self.now, sample);
                }
            }
            Step::Abandon(ticket, waited) => {
                if let Some(ticket) = self.take(ticket) {
                    let waited = waited.map(|micros| Duration::from_micros(micros.into()));
                    self.balancer.abandoned(ticket, self.now, waited);
                }
            }
            Step::Remote(worker, told, ago) => {
                let told: Vec<_> = told.into_iter().take(20).collect();
                let key = |id: u8| {
                    // Also of one that is not there, or not any more.
                    self.index(id).and_then(|i| self.balancer.key_of(i)).unwrap_or(u64::from(id))
                };
                let then = Now(self.now.0.saturating_sub(ago.into()));
                let entries: Vec<_> = told
                    .iter()
                    .map(|(id, in_flight, latency_us, failures_milli)| LoadEntry {
                        key: key(*id),
                        in_flight: (*in_flight).into(),
                        waiting: (*in_flight).into(),
                        latency_us: *latency_us,
                        failures_milli: *failures_milli,
                        sampled_at: then,
                        retry_at: then,
                    })
                    .collect();
                let there = told.iter().filter(|(id, ..)| self.index(*id).is_some());
                let there = there.map(|(id, in_flight, ..)| (id % 48, *in_flight)).collect();
                self.remote.insert(worker, there);
                self.balancer.set_remote_load(worker.into(), &entries, self.now);
            }
            Step::Vanish(worker) => {
                self.remote.remove(&worker);
                self.balancer.remove_worker(worker.into());
            }
            Step::Wait(micros) => {
                self.now = Now(self.now.0.saturating_add_signed(i64::from(micros) * 10_000));
            }
            Step::Update(spots) => {
                self.spots = table(&spots);
                let there: BTreeSet<u8> = self.spots.iter().map(|spot| spot.id).collect();
                self.verdicts.retain(|id, _| there.contains(id));
                self.tickets.retain(|(id, _)| there.contains(id));
                self.update();
            }
            Step::Rule(rules) => {
                self.rules = rules;
                self.update();
            }
        }
    }

    fn update(&mut self) {
        let (policy, endpoints) = (policy(&self.rules), endpoints(&self.spots));
        self.balancer.update(&policy, &endpoints, "a", self.now);
        assert_eq!(self.balancer.len(), self.spots.len());
    }

    fn take(&mut self, at: u8) -> Option<Ticket> {
        let at = usize::from(at).checked_rem(self.tickets.len())?;
        Some(self.tickets.swap_remove(at).1)
    }

    /// What is in flight is what was sent and has not ended, here and elsewhere.
    fn check_load(&self) {
        for (index, spot) in self.spots.iter().enumerate() {
            let here = self.tickets.iter().filter(|(id, _)| *id == spot.id).count();
            let told = self.remote.values().flatten().filter(|(id, _)| *id == spot.id);
            let elsewhere: u32 = told.map(|(_, in_flight)| u32::from(*in_flight)).sum();
            assert_eq!(self.balancer.in_flight(index), (here as u32, elsewhere), "{}", spot.id);
        }
    }

    fn pick(
        &mut self,
        hash: Option<u64>,
        subset: u8,
        pin: Option<u8>,
        may_probe: bool,
        send: bool,
    ) {
        let value: &[u8] = [b"1", b"2", b"3"][usize::from(subset % 3)];
        let wants = [Want { selector: 0, value }];
        let subset: &[Want<'_>] = if subset < 128 { &[] } else { &wants };
        let pinned = pin.and_then(|id| self.index(id));
        let request = Request {
            hash,
            pinned: pinned.and_then(|index| self.balancer.pin_of(index)),
            subset,
            may_probe,
        };
        let mut picks = Picks::new();
        let choice = self.balancer.pick(&request, self.now, &mut self.dice, &mut picks);
        self.check(&request, pinned, choice, &picks);
        if picks.probe() {
            let left = picks.lose_probe();
            assert_eq!(left, !picks.as_slice().is_empty());
            let lost = |i: &u32| self.verdict(&self.spots[*i as usize]) == Verdict::Probe;
            assert!(!picks.as_slice().iter().any(lost), "a lost probe is still named");
            if !left {
                let request = Request { may_probe: false, ..request };
                let choice = self.balancer.pick(&request, self.now, &mut self.dice, &mut picks);
                self.check(&request, pinned, choice, &picks);
            }
        }
        if send && let Some(index) = picks.first() {
            let ticket = self.balancer.started(index, self.now).expect("it is in the table");
            self.tickets.push((self.spots[index].id, ticket));
        }
    }

    /// From the table and the verdicts alone: who might be chosen, and was it one of them.
    fn check(&self, request: &Request<'_>, pinned: Option<usize>, choice: Choice, picks: &Picks) {
        let policy = self.balancer.policy();
        let list: Vec<usize> = picks.as_slice().iter().map(|&i| i as usize).collect();
        if self.spots.is_empty() {
            assert_eq!((choice, list.len()), (Choice::None(Nothing::Empty), 0));
            return;
        }
        let Some(pool) = self.pool(request) else {
            assert_eq!((choice, list.len()), (Choice::None(Nothing::Subset), 0));
            return;
        };
        let weightless = self.spots.iter().all(|spot| weight(spot) == 0);
        let weighs = |i: &usize| weightless || weight(&self.spots[*i]) > 0;
        let health = |i: &usize| health(&self.spots[*i]);
        let verdict = |i: &usize| self.verdict(&self.spots[*i]);
        let fit = |i: &usize| weighs(i) && health(i) == Health::Healthy;
        let open = |i: &usize| fit(i) && verdict(i) == Verdict::Pass;
        let probe = |i: &usize| fit(i) && verdict(i) == Verdict::Probe;
        let awake = |i: &usize| health(i) != Health::Draining;
        let count = |of: &dyn Fn(&usize) -> bool| pool.iter().filter(|i| of(i)).count();

        let counted = count(&|i| weighs(i) && awake(i));
        let (opens, probes, awakes) = (count(&open), count(&probe), count(&awake));
        let eligible = opens + if request.may_probe { probes } else { 0 };
        let percent = policy.panic_percent as usize;
        let panics = percent > 0
            && !pool.is_empty()
            && (eligible == 0 || eligible * 100 < percent * counted);
        let panicked = if awakes > 0 { awakes } else { pool.len() };
        let stays = pinned.filter(|i| {
            pool.contains(i)
                && weighs(i)
                && health(i) != Health::Unhealthy
                && verdict(i) == Verdict::Pass
        });

        assert_eq!(picks.pinned(), stays.is_some());
        if let Some(stays) = stays {
            assert_eq!(list[0], stays, "a session that may stay stays");
        }
        if !panics && eligible == 0 && stays.is_none() {
            assert_eq!((choice, list.len()), (Choice::None(Nothing::Ineligible), 0));
            return;
        }
        if panics {
            assert_eq!(choice, Choice::Panic { candidates: panicked as u32 });
        } else {
            // Probes that this request may not take are counted, but not chosen.
            let candidates = (opens + probes) as u32;
            assert_eq!(choice, Choice::Eligible { candidates });
        }
        let first_is_probe = picks.probe();
        assert!(!first_is_probe || (request.may_probe && !panics && stays.is_none()));
        assert_eq!(list.len(), policy.attempts + usize::from(first_is_probe));
        let may = |i: &usize| if panics { awake(i) || awakes == 0 } else { open(i) };
        let others = count(&|i| may(i) && stays != Some(*i));
        for (place, i) in list.iter().enumerate() {
            assert!(pool.contains(i), "{i} has not what was asked for");
            // A probe comes again only where there is nobody else.
            let probes = first_is_probe && probe(i) && (place == 0 || others == 0);
            assert!(may(i) || probes || stays == Some(*i), "{i} of {list:?}");
        }
        let distinct = list.iter().collect::<BTreeSet<_>>().len();
        let available = others + usize::from(stays.is_some()) + usize::from(first_is_probe);
        assert_eq!(distinct, available.min(list.len()), "{list:?} of {available}");
    }

    /// Who has what was asked for, or the fallback.
    fn pool(&self, request: &Request<'_>) -> Option<Vec<usize>> {
        let all: Vec<usize> = (0..self.spots.len()).collect();
        let Some(want) = request.subset.first() else { return Some(all) };
        let having = |value: &[u8]| -> Vec<usize> {
            let has = |i: &usize| value == if self.spots[*i].version { b"1" } else { b"2" };
            all.iter().copied().filter(has).collect()
        };
        let found = having(want.value);
        if !found.is_empty() {
            return Some(found);
        }
        match self.rules.fallback % 3 {
            0 => None,
            1 => Some(all),
            _ => Some(having(b"1")).filter(|found| !found.is_empty()),
        }
    }
}
