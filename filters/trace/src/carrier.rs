//! The request headers that matter, picked out in one pass.
//!
//! Only references are kept. Headers that may legally come several times (`tracestate`, `baggage`)
//! keep their values in order, up to a bound; the others keep the first value and how often the
//! name came, because a header that came twice has no value that anyone can trust.

use crate::format::{Format, FormatSet};

/// The headers that come once, as indices into [`Carrier::single`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field {
    Traceparent,
    B3,
    B3TraceId,
    B3SpanId,
    B3ParentSpanId,
    B3Sampled,
    B3Flags,
    Jaeger,
    DatadogTraceId,
    DatadogParentId,
    DatadogPriority,
    DatadogTags,
    XRay,
}

const FIELDS: usize = 13;

impl Field {
    /// The header's name, as it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Traceparent => "traceparent",
            Self::B3 => "b3",
            Self::B3TraceId => "x-b3-traceid",
            Self::B3SpanId => "x-b3-spanid",
            Self::B3ParentSpanId => "x-b3-parentspanid",
            Self::B3Sampled => "x-b3-sampled",
            Self::B3Flags => "x-b3-flags",
            Self::Jaeger => "uber-trace-id",
            Self::DatadogTraceId => "x-datadog-trace-id",
            Self::DatadogParentId => "x-datadog-parent-id",
            Self::DatadogPriority => "x-datadog-sampling-priority",
            Self::DatadogTags => "x-datadog-tags",
            Self::XRay => "x-amzn-trace-id",
        }
    }
}

/// The name of the W3C header that accompanies `traceparent`.
pub(crate) const TRACESTATE: &str = "tracestate";
/// The name of the W3C baggage header.
pub(crate) const BAGGAGE: &str = "baggage";

/// Members of a list that are looked at, empty ones too. A list within its limits has far fewer; of
/// a longer one the rest is cut off unread, because reading it is all that its sender can have
/// wanted.
pub(crate) const LOOKED_AT: usize = 1024;

/// Values of a header that may come several times that cost no allocation: most come once, and to
/// lay out the place for all that may come would cost every request more than these few an
/// allocation.
const USUAL: usize = 4;

/// Values of a header that may come several times, in order.
#[derive(Debug)]
pub(crate) struct Values<'a, const N: usize> {
    usual: [Option<&'a [u8]>; USUAL],
    others: Vec<&'a [u8]>,
    kept: usize,
    /// How often the name came, empty values and those beyond `N` included.
    pub(crate) count: usize,
    /// Whether values beyond `N` were left out.
    pub(crate) cut: bool,
}

impl<'a, const N: usize> Values<'a, N> {
    const fn new() -> Self {
        Self { usual: [None; USUAL], others: Vec::new(), kept: 0, count: 0, cut: false }
    }

    fn push(&mut self, value: &'a [u8]) {
        self.count = self.count.saturating_add(1);
        // Empty ones mean nothing in either list, and must not push the others out.
        if trim(value).is_empty() {
            return;
        }
        match self.usual.get_mut(self.kept) {
            Some(slot) => *slot = Some(value),
            None if self.kept < N => self.others.push(value),
            None => {
                self.cut = true;
                return;
            }
        }
        self.kept = self.kept.saturating_add(1);
    }

    /// The values that are not empty, at most `N`, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a [u8]> + Clone + '_ {
        self.usual.iter().flatten().chain(&self.others).copied()
    }

    /// Their members without surrounding white space, empty ones too.
    pub(crate) fn members(&self) -> impl Iterator<Item = &'a [u8]> + Clone + '_ {
        self.iter().flat_map(|value| value.split(|c| *c == b',').map(trim))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Single<'a> {
    first: &'a [u8],
    count: u32,
}

/// The relevant headers of one request.
#[derive(Debug)]
pub(crate) struct Carrier<'a> {
    empty: bool,
    single: [Single<'a>; FIELDS],
    /// A list has at most 32 members, and each of these values holds at least one.
    pub(crate) tracestate: Values<'a, 32>,
    /// At least 64 members must pass, so as many headers with one member each.
    pub(crate) baggage: Values<'a, 64>,
}

impl<'a> Carrier<'a> {
    /// Picks the headers of `formats`; names match in any case.
    pub(crate) fn pick(
        formats: FormatSet,
        headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let mut carrier = Self {
            empty: true,
            single: [Single::default(); FIELDS],
            tracestate: Values::new(),
            baggage: Values::new(),
        };
        for (name, value) in headers {
            carrier.offer(formats, name, value);
        }
        carrier
    }

    fn offer(&mut self, formats: FormatSet, name: &[u8], value: &'a [u8]) {
        // The length tells nearly every other header apart before a byte is compared.
        let (format, field) = match name.len() {
            2 => (Format::B3, Field::B3),
            7 if is(name, BAGGAGE) => {
                if formats.contains(Format::Baggage) {
                    self.empty = false;
                    self.baggage.push(value);
                }
                return;
            }
            10 if is(name, TRACESTATE) => {
                if formats.contains(Format::TraceContext) {
                    self.empty = false;
                    self.tracestate.push(value);
                }
                return;
            }
            10 => (Format::B3Multi, Field::B3Flags),
            11 if is(name, "traceparent") => (Format::TraceContext, Field::Traceparent),
            11 => (Format::B3Multi, Field::B3SpanId),
            12 if is(name, "x-b3-traceid") => (Format::B3Multi, Field::B3TraceId),
            12 => (Format::B3Multi, Field::B3Sampled),
            13 => (Format::Jaeger, Field::Jaeger),
            14 => (Format::Datadog, Field::DatadogTags),
            15 => (Format::XRay, Field::XRay),
            17 => (Format::B3Multi, Field::B3ParentSpanId),
            18 => (Format::Datadog, Field::DatadogTraceId),
            19 => (Format::Datadog, Field::DatadogParentId),
            27 => (Format::Datadog, Field::DatadogPriority),
            _ => return,
        };
        if formats.contains(format)
            && is(name, field.name())
            && let Some(slot) = self.single.get_mut(field as usize)
        {
            self.empty = false;
            if slot.count == 0 {
                slot.first = trim(value);
            }
            slot.count = slot.count.saturating_add(1);
        }
    }

    /// Whether the request has none of the headers that were looked for.
    pub(crate) const fn is_empty(&self) -> bool {
        self.empty
    }

    fn slot(&self, field: Field) -> Single<'a> {
        self.single.get(field as usize).copied().unwrap_or_default()
    }

    /// The value, without surrounding white space, if the header came exactly once.
    pub(crate) fn get(&self, field: Field) -> Option<&'a [u8]> {
        let slot = self.slot(field);
        (slot.count == 1).then_some(slot.first)
    }

    /// Whether the header came at all.
    pub(crate) fn has(&self, field: Field) -> bool {
        self.slot(field).count > 0
    }
}

fn is(name: &[u8], ours: &str) -> bool {
    name.eq_ignore_ascii_case(ours.as_bytes())
}

/// Without spaces and tabs at either end, the optional white space of RFC 9110 section 5.6.3.
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
