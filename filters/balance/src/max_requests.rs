//! The setting `max_requests`: a number, a word, or the word with its bounds.

use pintle_settings::{Section, whole};

/// How many requests one endpoint has in flight over all workers of this Envoy, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxRequests {
    /// Any number.
    #[default]
    Any,
    /// So many, 1 to 1,000,000.
    Fixed(u32),
    /// As many as it takes before they wait for each other, within 1 to 1,000,000.
    Adaptive {
        /// So many in any case. Default 4.
        min: u32,
        /// The ceiling, not below the floor. Default 1,000.
        max: u32,
    },
}

const MOST: u32 = 1_000_000;
const MIN: u32 = 4;
const MAX: u32 = 1_000;

impl MaxRequests {
    pub(crate) fn read(keys: &mut Section) -> Self {
        const KEY: &str = "max_requests";
        if keys.rest().get(KEY).is_some_and(|value| value.is_object()) {
            let adaptive = keys.section_with(KEY, |keys| {
                let written = keys.has("adaptive");
                keys.ensure(written, "adaptive", "an object of keys");
                keys.section_or_default("adaptive", Self::adaptive)
            });
            return adaptive.unwrap_or_default();
        }
        let accepts = format!("a whole number from 0 to {MOST}, or adaptive");
        let read = keys.parse(KEY, accepts, |value| {
            if value.as_str() == Some("adaptive") {
                return Some(Self::Adaptive { min: MIN, max: MAX });
            }
            let most = u32::try_from(whole(value.as_number()?)?).ok();
            match most.filter(|most| *most <= MOST)? {
                0 => Some(Self::Any),
                most => Some(Self::Fixed(most)),
            }
        });
        read.unwrap_or_default()
    }

    fn adaptive(keys: &mut Section) -> Self {
        let min = keys.whole("min", 1..=MOST, MIN);
        let max = keys.whole("max", 1..=MOST, MAX.max(min));
        keys.ensure(min <= max, "max", "at least min");
        Self::Adaptive { min, max }
    }

    /// Floor and ceiling, where it adapts.
    pub(crate) const fn range(self) -> Option<(u32, u32)> {
        match self {
            Self::Adaptive { min, max } => Some((min, max)),
            Self::Any | Self::Fixed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<MaxRequests, String> {
        let value = serde_json::from_str(json).expect("JSON");
        let read = pintle_settings::read_with("select", value, MaxRequests::read);
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn a_number_a_word_or_the_word_with_its_bounds() {
        let adaptive = |min, max| MaxRequests::Adaptive { min, max };
        for (json, expect) in [
            ("{}", MaxRequests::Any),
            (r#"{"max_requests": 0}"#, MaxRequests::Any),
            (r#"{"max_requests": 7.0}"#, MaxRequests::Fixed(7)),
            (r#"{"max_requests": "adaptive"}"#, adaptive(4, 1_000)),
            (r#"{"max_requests": {"adaptive": {}}}"#, adaptive(4, 1_000)),
            (r#"{"max_requests": {"adaptive": {"min": 2, "max": 9}}}"#, adaptive(2, 9)),
            (r#"{"max_requests": {"adaptive": {"min": 5000}}}"#, adaptive(5_000, 5_000)),
        ] {
            assert_eq!(parse(json), Ok(expect), "{json}");
        }
    }

    #[test]
    fn a_refusal_names_the_field_and_what_it_accepts() {
        for (json, says) in [
            (
                r#""some""#,
                "select.max_requests must be a whole number from 0 to 1000000, or adaptive",
            ),
            ("-1", "select.max_requests must be a whole number"),
            ("1000001", "select.max_requests must be a whole number"),
            ("{}", "select.max_requests.adaptive must be an object of keys"),
            (r#"{"fixed": 1}"#, "unknown key select.max_requests.fixed, accepted are adaptive"),
            (r#"{"adaptive": 7}"#, "select.max_requests.adaptive must be an object of keys"),
            (r#"{"adaptive": {"min": 0}}"#, "adaptive.min must be a whole number from 1"),
            (r#"{"adaptive": {"min": 9, "max": 8}}"#, "adaptive.max must be at least min"),
            (r#"{"adaptive": {"low": 9}}"#, "unknown key select.max_requests.adaptive.low"),
        ] {
            let error = parse(&format!(r#"{{"max_requests": {json}}}"#)).expect_err(json);
            assert!(error.contains(says), "{json}: {error}");
        }
    }
}
