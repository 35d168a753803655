//! The ratio's decision against values that another implementation computed: the rows were made in
//! Python as `(low >> 1) < int(ratio * 2.0**63)`, the formula of the OpenTelemetry Go and Rust
//! SDKs. For each ratio there are both sides of its border.

use pintle_trace::Ratio;

const ROWS: [(f64, u64, bool); 50] = [
    (0.0, 0x0000_0000_0000_0000, false),
    (0.0, 0xffff_ffff_ffff_ffff, false),
    (0.0, 0xf2a7_4de4_52e6_b438, false),
    (0.0, 0x6513_270e_269e_0d37, false),
    (1e-09, 0x0000_0000_0000_0000, true),
    (1e-09, 0xffff_ffff_ffff_ffff, false),
    (1e-09, 0x0000_0004_4b82_fa07, true),
    (1e-09, 0x0000_0004_4b82_fa08, false),
    (1e-09, 0x0c5c_7fd0_a6a3_a450, false),
    (1e-09, 0xd23f_0824_128b_2f33, false),
    (0.001, 0x0000_0000_0000_0000, true),
    (0.001, 0xffff_ffff_ffff_ffff, false),
    (0.001, 0x0041_8937_4bc6_a7ef, true),
    (0.001, 0x0041_8937_4bc6_a7f0, false),
    (0.001, 0x1818_e811_892f_902b, false),
    (0.001, 0x9531_985d_5d9d_c9f8, false),
    (0.01, 0x0000_0000_0000_0000, true),
    (0.01, 0xffff_ffff_ffff_ffff, false),
    (0.01, 0x028f_5c28_f5c2_8f5f, true),
    (0.01, 0x028f_5c28_f5c2_8f60, false),
    (0.01, 0xe8e2_5d94_0ed9_0475, false),
    (0.01, 0x36f6_75cc_81e7_4ef5, false),
    (0.1, 0x0000_0000_0000_0000, true),
    (0.1, 0xffff_ffff_ffff_ffff, false),
    (0.1, 0x1999_9999_9999_99ff, true),
    (0.1, 0x1999_9999_9999_9a00, false),
    (0.1, 0x1600_a35a_0999_50d8, true),
    (0.1, 0x6b0d_549b_6f03_675a, false),
    (0.3333333333333333, 0x0000_0000_0000_0000, true),
    (0.3333333333333333, 0xffff_ffff_ffff_ffff, false),
    (0.3333333333333333, 0x5555_5555_5555_53ff, true),
    (0.3333333333333333, 0x5555_5555_5555_5400, false),
    (0.3333333333333333, 0x3d9c_1724_11e2_0b8f, true),
    (0.3333333333333333, 0x8d11_6ece_1738_f7d9, false),
    (0.5, 0x0000_0000_0000_0000, true),
    (0.5, 0xffff_ffff_ffff_ffff, false),
    (0.5, 0x7fff_ffff_ffff_ffff, true),
    (0.5, 0x8000_0000_0000_0000, false),
    (0.5, 0x0f21_ddb6_6cad_4a26, true),
    (0.5, 0x90c1_92cf_d3ac_94af, false),
    (0.999, 0x0000_0000_0000_0000, true),
    (0.999, 0xffff_ffff_ffff_ffff, false),
    (0.999, 0xffbe_76c8_b439_57ff, true),
    (0.999, 0xffbe_76c8_b439_5800, false),
    (0.999, 0xf28c_105d_1fb1_7c23, true),
    (0.999, 0xa170_b338_3926_3059, true),
    (1.0, 0x0000_0000_0000_0000, true),
    (1.0, 0xffff_ffff_ffff_ffff, true),
    (1.0, 0x953f_48f1_a09f_76b5, true),
    (1.0, 0x0fd6_30f1_f29d_0da9, true),
];

#[test]
fn the_decision_is_opentelemetrys_for_every_row() {
    for (ratio, low, sampled) in ROWS {
        let decided = Ratio::new(ratio);
        // The upper half of the id has no say.
        for high in [0, u64::MAX] {
            let id = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
            assert_eq!(decided.map(|r| r.samples(&id)), Some(sampled), "{ratio} {low:016x}");
        }
    }
}

#[test]
fn a_higher_ratio_samples_all_that_a_lower_one_does() {
    let ratios = [0.0, 1e-6, 0.01, 0.25, 0.5, 0.99, 1.0].map(Ratio::new);
    for n in 0..10_000_u128 {
        let id = n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes();
        let decisions = ratios.map(|r| r.is_some_and(|r| r.samples(&id)));
        assert!(decisions.is_sorted(), "{n} {decisions:?}");
    }
}

#[test]
fn a_ratio_out_of_range_is_none() {
    for ratio in [-0.1, 1.000_001, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(Ratio::new(ratio), None, "{ratio}");
    }
    assert_eq!(Ratio::new(1.0), Some(Ratio::ALWAYS));
    assert_eq!(Ratio::new(0.0), Some(Ratio::NEVER));
    assert_eq!(Ratio::new(0.25).map(Ratio::get), Some(0.25));
}
