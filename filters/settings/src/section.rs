//! The keys of one object, each read once with its range and default.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Number, Value};

use crate::duration::{duration_text, parse_duration};
use crate::invalid::{Found, Invalid};
use crate::size::{parse_size, size_text};

/// What can be read from a section.
pub trait Settings: Sized {
    /// Takes every key that the type knows. A key that is refused gives its default, and
    /// [`crate::read`] then fails, so that nobody sees that value.
    fn read(keys: &mut Section) -> Self;
}

/// Reads `T` from the object `value`; `path` is what errors call it, empty for the top.
///
/// # Errors
/// The first key that is not known, or else the first whose value is refused.
pub fn read<T: Settings>(path: &str, value: Value) -> Result<T, Invalid> {
    read_with(path, value, T::read)
}

/// As [`read`], for keys that have no type of their own.
///
/// # Errors
/// As [`read`].
pub fn read_with<T>(
    path: &str,
    value: Value,
    read: impl FnOnce(&mut Section) -> T,
) -> Result<T, Invalid> {
    let mut section = Section::of(path.to_owned(), value)?;
    let settings = read(&mut section);
    section.end().map(|()| settings)
}

/// Everything that was written, unread.
impl Settings for Map<String, Value> {
    fn read(keys: &mut Section) -> Self {
        std::mem::take(&mut keys.keys)
    }
}

/// The keys of an object that have not been read yet, and what was wrong with those that were.
#[derive(Debug, Default)]
pub struct Section {
    path: String,
    keys: Map<String, Value>,
    known: Vec<&'static str>,
    refused: Option<Invalid>,
}

impl Section {
    fn of(path: String, value: Value) -> Result<Self, Invalid> {
        match value {
            Value::Object(keys) => Ok(Self { path, keys, ..Self::default() }),
            Value::Null => Ok(Self { path, ..Self::default() }),
            other => {
                let field = if path.is_empty() { "the whole".to_owned() } else { path };
                Err(Invalid::new(field, "an object of keys").found(&other))
            }
        }
    }

    fn end(self) -> Result<(), Invalid> {
        match self.keys.keys().next() {
            None => self.refused.map_or(Ok(()), Err),
            Some(unknown) => Err(Invalid {
                field: joined(&self.path, unknown),
                accepts: self.known.join(", "),
                found: Found::UnknownKey,
            }),
        }
    }

    /// The value of `key` as it was written; `None` where it is absent or null.
    pub fn take(&mut self, key: &'static str) -> Option<Value> {
        self.know(key);
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    /// Whether `key`, which is a known one, was written and has not been read yet. A null is
    /// dropped here, because nobody reads a key that is not there.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.know(key);
        if self.keys.get(key).is_some_and(Value::is_null) {
            self.keys.remove(key);
        }
        self.keys.contains_key(key)
    }

    /// Puts a value where none was written.
    pub fn preset(&mut self, key: &'static str, value: Value) {
        self.keys.insert(key.to_owned(), value);
    }

    /// What has not been read yet.
    #[must_use]
    pub const fn rest(&self) -> &Map<String, Value> {
        &self.keys
    }

    fn know(&mut self, key: &'static str) {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
    }

    /// Refuses `key`; of several refusals the first one is told. `key` may be empty for the section
    /// itself, and may lead further down (`cookie.name`).
    pub fn refuse(&mut self, key: &str, accepts: impl Into<String>, found: Found) {
        let field = joined(&self.path, key);
        self.report(Invalid { field, accepts: accepts.into(), found });
    }

    /// Refuses with an error that names its field already.
    pub fn report(&mut self, error: Invalid) {
        self.refused.get_or_insert(error);
    }

    /// Refuses `key` without its value unless `good`.
    pub fn ensure(&mut self, good: bool, key: &str, accepts: impl Into<String>) {
        if !good {
            self.refuse(key, accepts, Found::Untold);
        }
    }

    /// What `parse` makes of the value of `key`; where it makes nothing of it, the key is refused.
    pub fn parse<T>(
        &mut self,
        key: &'static str,
        accepts: impl Display,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.refuse(key, accepts.to_string(), Found::of(&value));
        }
        parsed
    }

    /// As [`Self::parse`], for a key that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        accepts: impl Display,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.refuse(key, accepts.to_string(), Found::Nothing);
        }
        self.parse(key, accepts, parse)
    }

    /// A whole number within `range`; without a default the key must be there.
    pub fn whole<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
        default: impl Into<Option<T>>,
    ) -> T
    where
        T: Copy + TryFrom<u64> + TryInto<u64>,
    {
        let default = default.into();
        let [low, high] =
            [*range.start(), *range.end()].map(|end| end.try_into().unwrap_or(u64::MAX));
        let accepts = Range("a whole number", &low, &high);
        let parse =
            |value: &Value| whole(value.as_number()?).filter(|found| (low..=high).contains(found));
        let found = self.optional(key, &accepts, default.is_none(), &parse);
        found.and_then(|found| T::try_from(found).ok()).or(default).unwrap_or(*range.start())
    }

    /// A number within `range`; without a default the key must be there.
    pub fn real(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
        default: impl Into<Option<f64>>,
    ) -> f64 {
        let [low, high] = [*range.start(), *range.end()].map(Value::from);
        let accepts = Range("a number", &low, &high);
        let parse = |value: &Value| value.as_f64().filter(|real| range.contains(real));
        let default = default.into();
        let found = self.optional(key, &accepts, default.is_none(), &parse);
        found.or(default).unwrap_or(*range.start())
    }

    /// A duration within `range`, as text; without a default the key must be there.
    pub fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: impl Into<Option<Duration>>,
    ) -> Duration {
        let accepts = duration_range(&range);
        let parse = |value: &Value| duration(value, &range);
        let default = default.into();
        let found = self.optional(key, &accepts, default.is_none(), &parse);
        found.or(default).unwrap_or(*range.start())
    }

    /// A size in bytes within `range`, as text with a unit or as a whole number.
    pub fn size(&mut self, key: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let [low, high] = [*range.start(), *range.end()].map(size_text);
        let accepts = format!("a size from {low} to {high}");
        let parse = |value: &Value| {
            let bytes = match value {
                Value::String(text) => parse_size(text),
                value => whole(value.as_number()?),
            };
            bytes.filter(|bytes| range.contains(bytes))
        };
        self.parse(key, accepts, parse).unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.parse(key, "true or false", Value::as_bool).unwrap_or(default)
    }

    /// One of the words.
    pub fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        default: T,
    ) -> T {
        let found = self.take(key).map(|value| word(&joined(&self.path, key), &value, words));
        found.and_then(|found| self.accept(found)).unwrap_or(default)
    }

    /// A text of so many bytes; without a default the key must be there.
    pub fn text(
        &mut self,
        key: &'static str,
        bytes: RangeInclusive<usize>,
        default: impl Into<Option<String>>,
    ) -> String {
        let accepts = format!("text of {} to {} bytes", bytes.start(), bytes.end());
        let parse = |value: &Value| {
            value.as_str().filter(|text| bytes.contains(&text.len())).map(ToOwned::to_owned)
        };
        let default = default.into();
        self.optional(key, &accepts, default.is_none(), &parse).or(default).unwrap_or_default()
    }

    /// A section below this one.
    pub fn section<T: Settings>(&mut self, key: &'static str) -> Option<T> {
        self.section_with(key, T::read)
    }

    /// As [`Self::section`], for keys that have no type of their own.
    pub fn section_with<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let value = self.take(key)?;
        let read = read_with(&joined(&self.path, key), value, read);
        self.accept(read)
    }

    /// As [`Self::section_with`]; where the section is absent, it is read as an empty one.
    pub fn section_or_default<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let value = self.take(key).unwrap_or_default();
        let path = joined(&self.path, key);
        let mut section = Self::of(path, value).unwrap_or_else(|error| {
            self.report(error);
            Self::default()
        });
        let settings = read(&mut section);
        self.accept(section.end());
        settings
    }

    /// A list of so many values, each read by `read`, which is told the value's path.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        count: RangeInclusive<usize>,
        read: impl Fn(&str, Value) -> Result<T, Invalid>,
    ) -> Option<Vec<T>> {
        let list = match self.take(key)? {
            Value::Array(list) if count.contains(&list.len()) => list,
            other => {
                let found = match &other {
                    Value::Array(list) => Found::Value(list.len().to_string()),
                    // Not repeated: the address of a server may have a password in it.
                    Value::String(_) => Found::Value("text".to_owned()),
                    other => Found::of(other),
                };
                self.refuse(key, format!("a list of {} to {}", count.start(), count.end()), found);
                return None;
            }
        };
        let path = joined(&self.path, key);
        let items = list.into_iter().enumerate();
        let items = items.map(|(at, item)| read(&format!("{path}[{at}]"), item)).collect();
        self.accept(items)
    }

    /// A list of texts.
    pub fn texts(
        &mut self,
        key: &'static str,
        count: RangeInclusive<usize>,
    ) -> Option<Vec<String>> {
        self.list(key, count, |path, value| match value {
            Value::String(text) => Ok(text),
            other => Err(Invalid::new(path, "text").found(&other)),
        })
    }

    /// An object of texts, at most `most` of them.
    pub fn labels(&mut self, key: &'static str, most: usize) -> Option<BTreeMap<String, String>> {
        let labels = match self.take(key)? {
            Value::Object(labels) if labels.len() <= most => labels,
            other => {
                let accepts = format!("an object of at most {most} texts");
                self.refuse(key, accepts, Found::of(&other));
                return None;
            }
        };
        let path = joined(&self.path, key);
        let texts = labels.into_iter().map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            other => Err(Invalid::new(joined(&path, &key), "text").found(&other)),
        });
        self.accept(texts.collect())
    }

    /// The value, or the error kept.
    pub fn accept<T>(&mut self, result: Result<T, Invalid>) -> Option<T> {
        result.map_err(|error| self.report(error)).ok()
    }

    fn optional<T>(
        &mut self,
        key: &'static str,
        accepts: &dyn Display,
        must: bool,
        parse: &dyn Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        if must { self.required(key, accepts, parse) } else { self.parse(key, accepts, parse) }
    }
}

/// What a range accepts, as text: made from the range itself, so that the two cannot differ.
struct Range<'a, T>(&'static str, &'a T, &'a T);

impl<T: Display> Display for Range<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.0, self.1, self.2)
    }
}

struct Words<'a, T>(&'a [(&'static str, T)]);

impl<T> Display for Words<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (word, _)) in self.0.iter().enumerate() {
            let before = match at {
                0 => "",
                _ if at.saturating_add(1) == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{before}{word}")?;
        }
        Ok(())
    }
}

fn joined(path: &str, key: &str) -> String {
    match (path, key) {
        ("", key) => key.to_owned(),
        (path, "") => path.to_owned(),
        (path, key) => format!("{path}.{key}"),
    }
}

/// A whole number, also where it was written as `3.0`: Envoy's `Struct` has no numbers but doubles.
#[must_use]
pub fn whole(number: &Number) -> Option<u64> {
    /// Beyond it a double does not tell one whole number from the next.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    number.as_u64().or_else(|| {
        let real = number.as_f64().filter(|real| (0.0..=EXACT).contains(real))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within what a double counts exactly, and not below 0"
        )]
        (real.fract() == 0.0).then_some(real as u64)
    })
}

fn duration(value: &Value, range: &RangeInclusive<Duration>) -> Option<Duration> {
    parse_duration(value.as_str()?).ok().filter(|duration| range.contains(duration))
}

/// What a range of durations accepts, as text.
#[must_use]
pub fn duration_range(range: &RangeInclusive<Duration>) -> String {
    let [low, high] = [*range.start(), *range.end()].map(duration_text);
    Range("a duration", &low, &high).to_string()
}

/// What one of the words stands for; `path` is what an error calls the value.
///
/// # Errors
/// It is none of them.
pub fn word<T: Copy>(path: &str, value: &Value, words: &[(&'static str, T)]) -> Result<T, Invalid> {
    let named = |text: &str| words.iter().find(|(word, _)| *word == text);
    match value.as_str().and_then(named) {
        Some((_, meaning)) => Ok(*meaning),
        None => Err(Invalid::new(path, Words(words).to_string()).found(value)),
    }
}

#[cfg(test)]
mod tests;
