//! The rings are those printed in Envoy's own `ring_hash_lb_test.cc`.

use proptest::prelude::*;

use super::*;
use crate::Policy;

fn ring(policy: &Policy, keys: &[&str], weights: &[u32]) -> Ring {
    let keys: Vec<String> = keys.iter().map(|k| (*k).to_owned()).collect();
    let sum: u32 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(sum)).collect();
    build(policy, keys, &shares, usize::MAX)
}

/// In slices of so many looks at the clock.
fn build(policy: &Policy, keys: Vec<String>, shares: &[f64], slice: usize) -> Ring {
    let mut build = RingBuild::new(&Shape::of(policy), keys, shares);
    loop {
        let mut looks = 0;
        let mut more = || {
            looks += 1;
            looks <= slice
        };
        if let Some(ring) = build.advance(&mut Pace::new(&mut more)) {
            return ring;
        }
    }
}

fn entries(ring: &Ring) -> Vec<(u64, u32)> {
    (0..ring.len()).map(|at| (ring.hashes.get(at).unwrap(), ring.at(at).unwrap())).collect()
}

fn ports(from: u16, n: u16) -> Vec<String> {
    (from..from + n).map(|p| format!("127.0.0.1:{p}")).collect()
}

fn of_size(minimum_ring_size: u64) -> Policy {
    Policy { minimum_ring_size, ..Policy::default() }
}

#[test]
fn six_endpoints_by_xxhash() {
    let keys = ports(90, 6);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let ring = ring(&of_size(12), &keys, &[1; 6]);
    assert_eq!(
        entries(&ring),
        [
            (833_437_586_790_550_860, 4),
            (928_266_305_478_181_108, 2),
            (1_033_482_794_131_418_490, 0),
            (3_551_244_743_356_806_947, 5),
            (3_851_675_632_748_031_481, 3),
            (5_583_722_120_771_150_861, 1),
            (6_311_230_543_546_372_928, 1),
            (7_700_377_290_971_790_572, 3),
            (13_144_177_310_400_110_813, 5),
            (13_444_792_449_719_432_967, 2),
            (15_516_499_411_664_133_160, 4),
            (16_117_243_373_044_804_889, 0),
        ]
    );
    for (hash, place) in [
        (0, 4),
        (u64::MAX, 4),
        (3_551_244_743_356_806_947, 5),
        (3_551_244_743_356_806_948, 3),
        (16_117_243_373_044_804_880, 0),
    ] {
        assert_eq!(ring.at(ring.locate(hash)), Some(place), "{hash}");
    }
}

#[test]
fn six_endpoints_by_murmur() {
    let policy = Policy { hash_function: HashFunction::Murmur2, ..of_size(12) };
    let keys = ports(80, 6);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(
        entries(&ring(&policy, &keys, &[1; 6])),
        [
            (1_358_027_074_129_602_068, 5),
            (4_361_834_613_929_391_114, 3),
            (7_224_494_972_555_149_682, 4),
            (7_701_421_856_454_313_576, 1),
            (8_649_315_368_077_433_379, 2),
            (8_739_448_859_063_030_639, 4),
            (9_887_544_217_113_020_895, 1),
            (10_150_910_876_324_007_731, 2),
            (15_168_472_011_420_622_455, 3),
            (15_427_156_902_705_414_897, 0),
            (16_375_050_414_328_759_093, 5),
            (17_613_279_263_364_193_813, 0),
        ]
    );
}

#[test]
fn a_size_that_does_not_divide_is_rounded_up() {
    let ring = ring(&of_size(3), &["127.0.0.1:80", "127.0.0.1:81"], &[1, 1]);
    assert_eq!(
        entries(&ring),
        [
            (5_454_692_015_285_649_509, 0),
            (7_859_399_908_942_313_493, 1),
            (13_838_424_394_637_650_569, 0),
            (16_064_866_803_292_627_174, 1),
        ]
    );
}

#[test]
fn weights_one_two_three_on_six_entries() {
    let policy = Policy { maximum_ring_size: 6, ..of_size(6) };
    let ring = ring(&policy, &["127.0.0.1:90", "127.0.0.1:91", "127.0.0.1:92"], &[1, 2, 3]);
    for (hash, place) in [
        (928_266_305_478_181_108, 2),
        (4_443_673_547_860_492_590, 2),
        (5_583_722_120_771_150_861, 1),
        (6_311_230_543_546_372_928, 1),
        (13_444_792_449_719_432_967, 2),
        (16_117_243_373_044_804_889, 0),
    ] {
        assert_eq!(ring.at(ring.locate(hash)), Some(place), "{hash}");
    }
    assert_eq!(ring.len(), 6);
}

#[test]
fn fractions_are_carried_to_the_next() {
    // Envoy's comment works this out: four endpoints on six entries get 2, 1, 2, 1.
    let policy = Policy { maximum_ring_size: 6, ..of_size(6) };
    let ring = ring(&policy, &["a:1", "b:1", "c:1", "d:1"], &[1; 4]);
    let count = |p| entries(&ring).iter().filter(|&&(_, place)| place == p).count();
    assert_eq!([count(0), count(1), count(2), count(3)], [2, 1, 2, 1]);
}

#[test]
fn no_endpoint_no_ring() {
    let ring = ring(&Policy::default(), &[], &[]);
    assert_eq!((ring.len(), ring.at(ring.locate(7))), (0, None));
}

/// Envoy's ring written out: hash all, sort all.
#[test]
fn slices_and_handfuls_give_the_sorted_ring() {
    for (minimum, weights) in
        [(1024, vec![1; 3]), (1024, vec![1, 1_000]), (40_000, (1..60).collect()), (1, vec![1])]
    {
        let sum: u32 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(sum)).collect();
        let keys = ports(1000, weights.len() as u16);
        let policy = of_size(minimum);
        let least = shares.iter().copied().fold(1.0, f64::min);
        let scale = (least * minimum as f64).ceil() / least;
        let (mut current, mut target, mut expect) = (0.0, 0.0, Vec::new());
        for ((place, key), share) in (0..).zip(&keys).zip(&shares) {
            target += scale * share;
            for i in 0.. {
                if current >= target {
                    break;
                }
                expect.push((xxh64(format!("{key}_{i}").as_bytes(), 0), place));
                current += 1.0;
            }
        }
        expect.sort_unstable();
        let cost = crate::Cost::of(
            &Policy { strategy: crate::policy::Strategy::RingHash, ..policy.clone() },
            weights.iter().copied(),
        );
        for slice in [1, usize::MAX] {
            let ring = build(&policy, keys.clone(), &shares, slice);
            assert_eq!(entries(&ring), expect, "{minimum} {weights:?}");
            assert!(ring.len() as u64 * 10 < cost.bytes, "{cost:?}");
            for hash in [0, 1, u64::MAX, expect[0].0, expect[expect.len() / 2].0 + 1] {
                let at = expect.partition_point(|&(h, _)| h < hash) % expect.len();
                assert_eq!(ring.locate(hash), at, "{hash}");
            }
        }
    }
}

proptest! {
    /// Envoy's search is ketama's, with its own arithmetic on both ends; ours must not differ
    /// anywhere.
    #[test]
    fn the_search_is_ketamas(mut hashes in prop::collection::vec(0_u64..40, 1..20), hash in 0_u64..45) {
        hashes.sort_unstable();
        hashes.dedup();
        let mut ring = Ring { starts: vec![0, hashes.len() as u32, hashes.len() as u32], ..Ring::default() };
        ring.places.grow(hashes.len(), 0);
        ring.hashes.grow(hashes.len(), 0);
        for (at, hash) in hashes.iter().enumerate() {
            *ring.hashes.get_mut(at).unwrap() = *hash;
        }
        let (mut low, mut high) = (0_i64, hashes.len() as i64);
        let expect = loop {
            let mid = (low + high) / 2;
            if mid == hashes.len() as i64 {
                break 0;
            }
            let value = hashes[mid as usize];
            let before = if mid == 0 { 0 } else { hashes[mid as usize - 1] };
            if hash <= value && hash > before {
                break mid;
            }
            if value < hash { low = mid + 1 } else { high = mid - 1 }
            if low > high {
                break 0;
            }
        };
        prop_assert_eq!(ring.locate(hash) as i64, expect);
    }

    #[test]
    fn digits_are_digits(i: u64) {
        let (mut buffer, text) = ([0; 20], i.to_string());
        prop_assert_eq!(decimal(i, &mut buffer), text.as_bytes());
    }
}
