//! Why settings are refused.

use std::fmt;

use serde_json::Value;

/// A key that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The key with its whole path, such as `breaker.half_open.probes`.
    pub field: String,
    /// What the key accepts; for a key that is not known, the known ones.
    pub accepts: String,
    /// What was found in its place.
    pub found: Found,
}

/// What was found where a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A key that nobody knows.
    UnknownKey,
    /// No value, although there must be one.
    Nothing,
    /// This value, as text that fits a log line.
    Value(String),
    /// A value that is not repeated: a secret, or one that only another key makes wrong.
    Untold,
}

impl Invalid {
    /// A key whose value cannot be told or needs no telling.
    pub fn new(field: impl Into<String>, accepts: impl Into<String>) -> Self {
        Self { field: field.into(), accepts: accepts.into(), found: Found::Untold }
    }

    /// The same below `path`.
    #[must_use]
    pub fn below(self, path: &str) -> Self {
        Self { field: format!("{path}.{}", self.field), ..self }
    }

    /// The same, with the value that was found.
    #[must_use]
    pub fn found(self, value: &Value) -> Self {
        Self { found: Found::of(value), ..self }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, accepts, found } = self;
        match found {
            Found::UnknownKey => write!(f, "unknown key {field}, accepted are {accepts}"),
            Found::Nothing => write!(f, "{field} must be {accepts}, found nothing"),
            Found::Value(found) => write!(f, "{field} must be {accepts}, found {found}"),
            Found::Untold => write!(f, "{field} must be {accepts}"),
        }
    }
}

impl std::error::Error for Invalid {}

impl Found {
    /// A text is quoted and cut to 64 characters; of a list or an object only the kind is told.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        const LONGEST: usize = 64;
        Self::Value(match value {
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
            Value::String(text) if text.chars().nth(LONGEST).is_some() => {
                let cut: String = text.chars().take(LONGEST).collect();
                format!("{} and more", Value::String(cut))
            }
            plain => plain.to_string(),
        })
    }
}
