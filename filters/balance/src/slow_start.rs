//! A newcomer's weight: `weight x max(10 %, (age / window)^(1 / aggression))`, Envoy's formula.
//!
//! Weights are kept in grains, a thousandth of a registered weight, so that a tenth of weight 1 is
//! still a whole number and sums stay exact while endpoints come and go. The age counts from the
//! registration; an endpoint that does not say when it registered has its full weight.

use std::time::Duration;

use pintle_contract::Now;

use crate::policy::SlowStart;

/// Grains of weight 1.
pub(crate) const GRAINS: u64 = 1000;

/// How long a weight may be out of date while somebody is in its window. A thousandth of the
/// shortest useful window, and at 10,000 endpoints the recomputation is a few per mille of one
/// core.
pub(crate) const STEP: Duration = Duration::from_millis(100);

/// The weight at `now`, in grains; 0 only for weight 0.
pub(crate) fn grains(weight: u32, registered_at: Now, now: Now, policy: Option<&SlowStart>) -> u64 {
    let full = u64::from(weight) * GRAINS;
    let Some(policy) = policy else { return full };
    if full == 0 || registered_at == Now(0) {
        return full;
    }
    let age = now.since(registered_at);
    if age >= policy.window {
        return full;
    }
    let grown = (age.as_secs_f64() / policy.window.as_secs_f64()).powf(1.0 / policy.aggression);
    ((full as f64 * grown.max(policy.min_fraction)) as u64).clamp(1, full)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: SlowStart =
        SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_fraction: 0.1 };

    #[test]
    fn a_newcomer_grows_to_its_weight() {
        let born = Now::from_millis(1_000_000);
        for (age_s, aggression, expect) in [
            (0, 1.0, 1000),
            (5, 1.0, 1000),
            (50, 1.0, 5000),
            (25, 2.0, 5000),
            (100, 1.0, 10_000),
            (5000, 1.0, 10_000),
        ] {
            let policy = SlowStart { aggression, ..POLICY };
            let now = born.after(Duration::from_secs(age_s));
            let got = grains(10, born, now, Some(&policy));
            assert!(got.abs_diff(expect) <= 1, "{age_s} s, {aggression}: {got}");
        }
    }

    #[test]
    fn no_policy_no_birthday_and_a_clock_before_it() {
        let now = Now::from_millis(50);
        assert_eq!(grains(3, now, now, None), 3000);
        assert_eq!(grains(3, Now(0), now, Some(&POLICY)), 3000);
        assert_eq!(grains(3, Now::from_millis(900), now, Some(&POLICY)), 300);
        assert_eq!(grains(0, now, now, Some(&POLICY)), 0);
    }
}
