//! Which lines the agent logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// A level or directives as a filter.
///
/// # Errors
/// [`LEVELS`], and what is wrong.
pub(crate) fn directives(level: &str) -> Result<EnvFilter, String> {
    // The parser takes a lone word that is no level for the name of a target.
    let lone = level.split(',').map(str::trim).find(|part| {
        !part.contains(['=', '[']) && !part.is_empty() && part.parse::<LevelFilter>().is_err()
    });
    match lone {
        Some(lone) => Err(format!("{LEVELS}: {lone:?} is no level")),
        None => EnvFilter::builder().parse(level).map_err(|error| format!("{LEVELS}: {error}")),
    }
}

/// What a level may be.
pub(crate) const LEVELS: &str =
    "error, warn, info, debug, trace, or directives like info,pintle_agent=debug";
