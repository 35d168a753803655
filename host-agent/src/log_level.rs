//! Which lines the agent logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};

/// Why a text is no level.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LevelError {
    /// A lone word that names no level.
    #[error("{LEVELS}: {0:?} is no level")]
    Word(String),
    /// The directives do not parse.
    #[error("{LEVELS}: {0}")]
    Directives(#[from] ParseError),
}

/// What async-nats logs of each attempt to connect: without the address, and the agent says it as
/// well.
const QUIET: &str = "async_nats::connector=off";

/// A level or directives as a filter.
///
/// # Errors
/// [`LevelError`]: a word that is no level, or directives that do not parse.
pub(crate) fn directives(level: &str) -> Result<EnvFilter, LevelError> {
    // The parser takes a lone word that is no level for the name of a target.
    let lone = level.split(',').map(str::trim).find(|part| {
        !part.contains(['=', '[']) && !part.is_empty() && part.parse::<LevelFilter>().is_err()
    });
    match lone {
        Some(lone) => Err(LevelError::Word(lone.to_owned())),
        None => Ok(EnvFilter::builder().parse(format!("{QUIET},{level}"))?),
    }
}

/// What a level may be.
pub(crate) const LEVELS: &str =
    "error, warn, info, debug, trace, or directives like info,pintle_agent=debug";
