//! How common failures and slow answers are where all is well, and so how much one of them says.
//!
//! Of a service that never fails, one failure says that its endpoint is ill. Of one that answers 1
//! % of its requests with errors it says little, and if it were believed the traffic would chase
//! whichever endpoint had not failed for a second. So an answer counts by the logarithm of how much
//! likelier it is from an ill endpoint, one of whose answers half are bad, than from this service
//! as it is.

/// No service is believed to be better than this: one answer in a thousand.
const LEAST: f32 = 1e-3;
/// Of an ill endpoint's answers.
const ILL: f32 = 0.5;
/// The part of each answer in the share.
const STEP: f32 = 1e-3;

/// The share of bad answers of endpoints that are not ill.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Baseline(f32);

impl Baseline {
    /// An endpoint that is not ill answered.
    pub(crate) fn count(&mut self, bad: bool) {
        self.0 += STEP * (f32::from(u8::from(bad)) - self.0);
    }

    /// What a bad answer says: 1 where none are known, 0 where half of all are bad.
    pub(crate) fn surprise(&self) -> f32 {
        ((ILL / self.0.max(LEAST)).ln() / (ILL / LEAST).ln()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_common_says_little() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.surprise(), 1.0);
        for (every, least, most) in
            [(1_000, 0.9, 1.0), (100, 0.6, 0.7), (10, 0.2, 0.3), (2, 0.0, 0.1)]
        {
            (0..20_000).for_each(|i| baseline.count(i % every == 0));
            let surprise = baseline.surprise();
            assert!((least..=most).contains(&surprise), "1 in {every}: {surprise}");
        }
    }
}
