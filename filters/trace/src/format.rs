//! The propagation formats and sets of them.
//!
//! A set is a bit mask, so that "is any header of this format of interest" costs one instruction
//! for each request header.

/// A way to write a trace context, or baggage, into request headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// W3C Trace Context Level 2: `traceparent`, `tracestate`.
    TraceContext,
    /// W3C Baggage: `baggage`.
    Baggage,
    /// B3 in one header: `b3`.
    B3,
    /// B3 in several headers: `x-b3-*`.
    B3Multi,
    /// Jaeger: `uber-trace-id`.
    Jaeger,
    /// Datadog: `x-datadog-*`, 128-bit ids through the tag `_dd.p.tid`.
    Datadog,
    /// AWS X-Ray: `x-amzn-trace-id`.
    XRay,
}

impl Format {
    /// Every format, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::TraceContext,
        Self::Baggage,
        Self::B3,
        Self::B3Multi,
        Self::Jaeger,
        Self::Datadog,
        Self::XRay,
    ];

    /// Each with its name in configuration.
    pub(crate) const NAMES: [(&str, Self); 7] = [
        ("tracecontext", Self::TraceContext),
        ("baggage", Self::Baggage),
        ("b3", Self::B3),
        ("b3multi", Self::B3Multi),
        ("jaeger", Self::Jaeger),
        ("datadog", Self::Datadog),
        ("xray", Self::XRay),
    ];
}

/// A set of formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatSet(u8);

impl FormatSet {
    /// Whether `format` is in the set.
    #[must_use]
    pub const fn contains(self, format: Format) -> bool {
        self.0 & (1 << format as u8) != 0
    }

    /// The set with `format` in it.
    #[must_use]
    pub const fn with(self, format: Format) -> Self {
        Self(self.0 | (1 << format as u8))
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Format> for FormatSet {
    fn from_iter<I: IntoIterator<Item = Format>>(formats: I) -> Self {
        formats.into_iter().fold(Self::default(), Self::with)
    }
}
