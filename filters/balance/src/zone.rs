//! The own zone first, the others when it is short.
//!
//! Envoy's zone-aware routing needs to know how the callers are spread over the zones; a filter
//! does not. What it does know is which part of its own zone's endpoints can take traffic, so this
//! is Envoy's rule for priorities instead: the zone is held to be provisioned with 40 % to spare,
//! and once the eligible part, times 1.4, is less than the whole, the missing fraction goes to the
//! other zones in proportion to their eligible weight. With 5 of 10 local endpoints left, 70 %
//! stays.

/// Envoy's `overprovisioning_factor`.
const OVERPROVISIONED: f64 = 1.4;

/// The probability of staying in the own zone, as a threshold for 32 random bits; `None` is always.
///
/// All three are sums of weights: eligible in the zone, registered there, eligible elsewhere.
pub(crate) fn stay(eligible: u64, registered: u64, elsewhere: u64) -> Option<u32> {
    if elsewhere == 0 {
        return None;
    }
    if eligible == 0 || registered == 0 {
        return Some(0);
    }
    let share = OVERPROVISIONED * (eligible as f64 / registered as f64);
    if share >= 1.0 { None } else { Some((share * 4_294_967_296.0) as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(eligible: u64, registered: u64, elsewhere: u64) -> u32 {
        stay(eligible, registered, elsewhere)
            .map_or(100, |t| (f64::from(t) / 42_949_672.96).round() as u32)
    }

    #[test]
    fn the_missing_fraction_spills() {
        for (eligible, registered, elsewhere, stays) in [
            (10, 10, 10, 100),
            (8, 10, 10, 100),
            (5, 10, 10, 70),
            (1, 10, 10, 14),
            (0, 10, 10, 0),
            (1, 10, 0, 100),
            (0, 0, 10, 0),
        ] {
            assert_eq!(percent(eligible, registered, elsewhere), stays, "{eligible}/{registered}");
        }
    }
}
