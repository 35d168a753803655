use pintle_contract::Now;
use proptest::prelude::{any, prop, prop_assert_eq, proptest};

use super::*;
use crate::load::Load;

/// The C++ standard fixes the 10,000th number of the default seed.
#[test]
fn the_twister_is_the_standards() {
    let mut twister = Twister::new(5489);
    let last = (0..10_000).map(|_| twister.next()).last();
    assert_eq!(last, Some(4_123_659_995));
}

fn policy(factor: u32) -> Policy {
    Policy { strategy: Strategy::Maglev, hash_balance_factor: factor, ..Policy::default() }
}

fn sites(weights: &[u32]) -> Vec<(SocketAddr, u32)> {
    (1000_u16..).zip(weights).map(|(p, &w)| (SocketAddr::from(([10, 0, 0, 1], p)), w)).collect()
}

fn build(policy: &Policy, sites: Sites) -> Hashing {
    let hosts: Vec<u32> = (0..sites.len() as u32).collect();
    let mut build = Build::new(policy, sites.clone());
    let mut hashing = build.advance(&mut Pace::new(&mut || true)).unwrap();
    hashing.seat(&sites, &hosts, &[], policy.hash_balance_factor);
    hashing
}

fn pick(hashing: &mut Hashing, active: &[u32], shut: &[usize], hash: u64) -> Picks {
    let mut field = Field::new(&Policy::default(), Now(0));
    let load = |&elsewhere: &u32| {
        let mut load = Load::new(&field.clock);
        load.elsewhere = elsewhere;
        load
    };
    field.loads = active.iter().map(load).collect();
    field.states = vec![State::Open; active.len()];
    for &i in shut {
        field.states[i] = State::Shut;
    }
    let key =
        Placement { hash, active: active.iter().map(|&n| u64::from(n)).sum(), may_probe: true };
    let mut picks = Picks::new();
    hashing.fill(&field, key, (active.len() - shut.len()) as u32, &mut picks, 3);
    picks
}

/// Envoy's algorithm with its vector of indices written out.
fn envoy(shares: &[f64], owner: usize, active: &[u32], factor: u32, hash: u64) -> usize {
    let all: u32 = active.iter().sum();
    let overload = |i: usize| {
        let slots = ((all + 1) * factor).div_ceil(100);
        f64::from(active[i]) / (f64::from(slots) * shares[i]).ceil().max(1.0)
    };
    let mut low = (owner, overload(owner));
    if low.1 <= 1.0 {
        return owner;
    }
    let n = active.len();
    let mut index: Vec<usize> = (0..n).collect();
    let mut random = Twister::new(hash as u32);
    for i in 0..n {
        let k = (n - i) as u64;
        let j = loop {
            let x = u64::from(random.next()) / ((1_u64 << 32) / k);
            if x < k {
                break x as usize;
            }
        };
        index.swap(i, i + j);
        let other = index[i];
        if other == owner {
            continue;
        }
        if overload(other) <= 1.0 {
            return other;
        }
        if low.1 > overload(other) {
            low = (other, overload(other));
        }
    }
    low.0
}

#[test]
fn an_overloaded_owner_gives_way_as_in_envoy() {
    for weights in [[1_u32; 8], [1, 2, 3, 4, 5, 6, 7, 8]] {
        let sum: u32 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(sum)).collect();
        let mut hashing = build(&policy(120), sites(&weights));
        let mut moved = 0;
        for hash in (0..400_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let owner = hashing.at(hashing.locate(hash)).unwrap() as usize;
            let mut active = [3_u32; 8];
            for i in 0..8 {
                active[(owner + i) % 8] = [30, 20, 9, 9, 2, 9, 9, 25][i];
            }
            let expect = envoy(&shares, owner, &active, 120, hash);
            moved += usize::from(expect != owner);
            let got = pick(&mut hashing, &active, &[], hash);
            assert_eq!(got.first(), Some(expect), "{hash:x} {weights:?}");
        }
        assert!(moved > 100, "{moved}");
    }
}

#[test]
fn everybody_overloaded_is_answered_by_the_least_overloaded() {
    let mut hashing = build(&policy(100), sites(&[1; 4]));
    let owner = hashing.at(hashing.locate(77)).unwrap() as usize;
    // 100 of 101 slots each is room; with a factor of 100 somebody always has some.
    let mut active = [50; 4];
    active[owner] = 60;
    let expect = envoy(&[0.25; 4], owner, &active, 100, 77);
    assert_eq!(pick(&mut hashing, &active, &[], 77).first(), Some(expect));
    assert_ne!(expect, owner);
}

#[test]
fn a_shut_owner_has_one_stand_in_and_the_rest_keep_their_keys() {
    let mut hashing = build(&policy(0), sites(&[1; 5]));
    let mut stand_ins = [0; 5];
    for hash in 0..2000_u64 {
        let whole = pick(&mut hashing, &[0; 5], &[], hash);
        let without = pick(&mut hashing, &[0; 5], &[2], hash);
        if whole.first() == Some(2) {
            stand_ins[without.first().unwrap()] += 1;
            // It is the one that a retry would have gone to.
            assert_eq!(Some(&(without.first().unwrap() as u32)), whole.as_slice().get(1));
        } else {
            assert_eq!(whole.first(), without.first(), "{hash}");
        }
        assert!(!without.as_slice().contains(&2));
    }
    assert_eq!(stand_ins[2], 0);
    assert!(stand_ins.iter().enumerate().all(|(i, &n)| i == 2 || n > 40), "{stand_ins:?}");
}

/// A table stands for the endpoints as they are: who is gone is passed over, whoever moved is
/// found.
#[test]
fn a_table_of_before_serves_those_who_are_still_there() {
    let (old, sites) = (sites(&[1; 5]), sites(&[1; 4]));
    let mut hashing = build(&policy(0), old.clone());
    let before: Vec<_> = (0..500).map(|hash| pick(&mut hashing, &[0; 5], &[], hash)).collect();
    hashing.seat(&sites, &[3, 2, 1, 0], &[], 150);
    assert!(!hashing.is(Shape::of(&policy(0)), &sites));
    assert!(hashing.is(Shape::of(&policy(150)), &old));
    assert_eq!(hashing.balance, 150);
    hashing.balance = 0;
    for (hash, before) in (0..500).zip(before) {
        let now = pick(&mut hashing, &[0; 4], &[], hash);
        let before: Vec<u32> = before.as_slice().iter().copied().filter(|&i| i != 4).collect();
        let moved: Vec<u32> = before.iter().map(|i| 3 - i).collect();
        assert!(now.as_slice().starts_with(&moved), "{hash}: {now:?} {moved:?}");
    }
}

proptest! {
    /// Whoever came, went or has another address: the table finds its own.
    #[test]
    fn who_stands_in_it_is_found_again_wherever_the_table_has_it(
        stood in prop::collection::vec(0_u8..12, 1..20),
        stand in prop::collection::vec((0_u8..12, any::<bool>()), 1..20),
    ) {
        let at = |&port: &u8| SocketAddr::from(([10, 0, 0, 1], u16::from(port)));
        let policy = Policy { strategy: Strategy::RingHash, minimum_ring_size: 16, ..Policy::default() };
        let mut hashing = build(&policy, stood.iter().map(|port| (at(port), 1)).collect());
        let mut places: Vec<(SocketAddr, u32)> =
            stand.iter().zip(0..).map(|((port, _), index)| (at(port), index)).collect();
        // Not all of the table stand in it.
        let (sites, hosts): (Sites, Vec<u32>) = stand.iter().zip(0_u32..).filter(|((_, it), _)| *it)
            .map(|((port, _), index)| ((at(port), 1), index)).unzip();
        places.sort();
        hashing.seat(&sites, &hosts, &places, 0);
        for (port, host) in stood.iter().zip(&hashing.hosts) {
            let is_there = sites.iter().any(|(site, _)| *site == at(port));
            let found = hosts.iter().position(|it| it == host).map(|place| sites[place].0);
            prop_assert_eq!(found, is_there.then(|| at(port)));
            prop_assert_eq!(*host == GONE, !is_there);
        }
    }
}
