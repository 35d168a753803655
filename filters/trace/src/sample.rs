//! The sampling ratio, decided by the trace id.
//!
//! Two services that sample the same ratio must keep the same traces, whatever they are written
//! in, or traces arrive with holes. So this is not merely a fair coin: it is the computation of
//! OpenTelemetry's TraceIdRatioBased as the Go and Rust SDKs have it (opentelemetry-go
//! `sdk/trace/sampling.go`): the last eight bytes of the id as a big-endian number, shifted right
//! by one, sampled if below `ratio * 2^63`. The product is taken in `f64` and cut, like theirs, so
//! that the border case falls on the same side. Java compares the absolute value of the signed
//! number instead; it agrees on one half of all ids and gives the same share.

/// A sampling ratio from 0 (no trace) to 1 (every trace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// `ratio * 2^63`; the number of 63-bit values that are sampled.
    threshold: u64,
}

/// 2^63, the number of values that the decision distinguishes.
const SCALE: f64 = 9_223_372_036_854_775_808.0;

impl Ratio {
    /// Every trace.
    pub const ALWAYS: Self = Self { threshold: 1 << 63 };
    /// No trace.
    pub const NEVER: Self = Self { threshold: 0 };

    /// From a number of 0 to 1; `None` for anything else, not-a-number included.
    #[must_use]
    pub fn new(ratio: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&ratio) {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "cutting the fraction is the algorithm"
        )]
        #[expect(clippy::cast_sign_loss, reason = "the range was checked")]
        Some(Self { threshold: (ratio * SCALE) as u64 })
    }

    /// As a number of 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for display and comparison by people")]
    pub fn get(self) -> f64 {
        self.threshold as f64 / SCALE
    }

    /// Whether a trace with this id is sampled.
    #[must_use]
    pub const fn samples(self, trace_id: &[u8; 16]) -> bool {
        let [_, _, _, _, _, _, _, _, low @ ..] = *trace_id;
        u64::from_be_bytes(low) >> 1 < self.threshold
    }
}
