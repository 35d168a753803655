//! One error for all fixtures: a sentence. Nobody matches on why a fixture failed; somebody reads
//! it in a test's output, where `unwrap` prints it through `Debug`, so that prints the sentence as
//! well.

use std::fmt;

/// What went wrong, as a sentence for a person.
pub struct Error(String);

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that says `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same error with what was being done put before it.
    pub fn during(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

macro_rules! from {
    ($($source:ty),* $(,)?) => {$(
        impl From<$source> for Error {
            fn from(e: $source) -> Self {
                Self(e.to_string())
            }
        }
    )*};
}

from!(
    std::io::Error,
    serde_json::Error,
    serde_yaml_ng::Error,
    hyper::Error,
    ::http::Error,
    rcgen::Error,
    tokio_rustls::rustls::Error,
    tokio::time::error::Elapsed,
);
