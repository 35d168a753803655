//! Log lines: structured, as text or JSON, and safe to look at.
//!
//! Two things stand between an event and the terminal. A token bucket per call site lets a burst
//! through and then a few a second, and says every ten seconds how many it left out: a flood of bad
//! frames must not become a flood of lines. Breaker transitions have a much larger bucket, because
//! each of them is promised a line. And the writer escapes control characters, whoever put them in
//! a node id or a registry key, and cuts what is too long; secrets never reach a field (their type
//! does not print). Lines of libraries and panics go the same way.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogConfig, LogFormat};
use crate::log_level::{LevelError, directives};

/// How often what was left out is said.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(10);
const BURST: f64 = 50.0;
const EVERY_SECOND: f64 = 5.0;
/// Bytes of a line, at most.
const MAX_LINE: usize = 8 << 10;
/// Bytes that a field of a JSON line keeps, when the line is too long.
const MAX_FIELD: usize = 1 << 10;
/// What ends a text that was cut.
const CUT: &str = "... (cut)";
/// A service of 1,000 endpoints may trip at once.
const TRANSITION_BURST: f64 = 2_000.0;
const TRANSITIONS_EVERY_SECOND: f64 = 200.0;

/// Why the agent does not log as it is told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The level is not one.
    #[error(transparent)]
    Level(#[from] LevelError),
    /// Logging has begun already.
    #[error(transparent)]
    Begun(#[from] tracing_subscriber::util::TryInitError),
    /// The lines' filter is gone.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

/// What can be changed while the agent runs.
#[derive(Clone)]
pub(crate) struct Logs {
    level: reload::Handle<EnvFilter, Registry>,
    limit: Limit,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

/// Begins to log to standard error.
///
/// # Errors
/// The level is not one, or logging has begun already.
pub(crate) fn start(config: &LogConfig) -> Result<Logs, LogError> {
    let (filter, level) = reload::Layer::new(directives(&config.level)?);
    let limit = Limit::default();
    let lines = tracing_subscriber::fmt::layer().with_writer(Escaped(io::stderr));
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_filter(limit.clone()))
        .try_init()?;
    std::panic::set_hook(Box::new(panicked));
    Ok(Logs { level, limit })
}

/// A panic as a line: the standard hook would write several, as they are.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("-").to_owned();
    tracing::error!(place, thread, "panicked: {text}");
}

impl Logs {
    /// Changes the level; the format stays.
    ///
    /// # Errors
    /// The level is not one.
    pub(crate) fn reload(&self, config: &LogConfig) -> Result<(), LogError> {
        let filter = directives(&config.level)?;
        Ok(self.level.reload(filter)?)
    }

    /// Says what was left out since the last time.
    pub(crate) fn report(&self) {
        for (message, left_out) in self.limit.take() {
            tracing::warn!(left_out, message, "repeated lines are left out");
        }
    }
}

/// The token buckets, by call site. There are as many as there are log statements in the program.
#[derive(Clone, Debug, Default)]
struct Limit(Arc<Mutex<HashMap<Identifier, Bucket>>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    left_out: u64,
    name: &'static str,
}

impl Limit {
    fn admits(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let (burst, rate) = if metadata.target() == "pintle::transition" {
            (TRANSITION_BURST, TRANSITIONS_EVERY_SECOND)
        } else {
            (BURST, EVERY_SECOND)
        };
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(metadata.callsite()).or_insert_with(|| Bucket {
            tokens: burst,
            at: now,
            left_out: 0,
            name: metadata.name(),
        });
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.at = now;
        bucket.tokens = (bucket.tokens + passed * rate).min(burst);
        if bucket.tokens < 1.0 {
            bucket.left_out += 1;
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn take(&self) -> Vec<(&'static str, u64)> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .values_mut()
            .filter(|bucket| bucket.left_out > 0)
            .map(|bucket| (bucket.name, std::mem::take(&mut bucket.left_out)))
            .collect()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

/// A writer behind which no control character is left but the end of the line.
struct Escaped<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaped<M> {
    type Writer = Escaped<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escaped(self.0.make_writer())
    }
}

impl<W: Write> Write for Escaped<W> {
    /// One event comes in one call, with one line feed, the last byte, and leaves in one, so that
    /// lines of two threads stay lines.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = if text.len() > MAX_LINE { shortened(&text).into() } else { text };
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if body.contains(char::is_control) {
            let mut safe = String::with_capacity(text.len() + 16);
            for c in body.chars() {
                if c.is_control() {
                    // Four digits and no braces: the line may be JSON.
                    let _ = write!(safe, "\\u{:04x}", u32::from(c));
                } else {
                    safe.push(c);
                }
            }
            safe.push_str(&text[body.len()..]);
            self.0.write_all(safe.as_bytes())?;
        } else {
            self.0.write_all(text.as_bytes())?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A line that is too long, cut; one of JSON stays JSON, its longest fields cut.
fn shortened(line: &str) -> String {
    if let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(line) {
        for value in fields.values_mut() {
            let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            if text.len() > MAX_FIELD {
                *value = (cut(&text, MAX_FIELD).to_owned() + CUT).into();
            }
        }
        let text = serde_json::Value::Object(fields).to_string();
        if text.len() <= MAX_LINE {
            return text + "\n";
        }
    }
    format!("{}{CUT}\n", cut(line, MAX_LINE))
}

/// The first characters of a text, in at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(json: bool, work: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let out = buffer.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(Escaped(move || out.clone()));
        let lines = if json { lines.json().boxed() } else { lines.with_ansi(false).boxed() };
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(Limit::default()));
        tracing::subscriber::with_default(subscriber, work);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        for json in [false, true] {
            let text = log(json, || {
                tracing::warn!(key = "a\u{1b}[31m\r\nfake\u{9b}2J\u{7f}\0", "bad\u{1b}");
            });
            assert_eq!(text.lines().count(), 1, "{text:?}");
            let body = text.strip_suffix('\n').unwrap();
            assert!(!body.contains(char::is_control), "{text:?}");
            assert!(body.contains("fake"), "{text:?}");
            if json {
                let line: serde_json::Value = serde_json::from_str(body).unwrap();
                let key = line["fields"]["key"].as_str().unwrap();
                assert!(key.ends_with("fake\u{9b}2J\u{7f}\0"), "{key:?}");
            }
        }
    }

    #[test]
    fn a_line_of_a_library_is_cut_and_json_stays_json() {
        let long = "x".repeat(100_000);
        for json in [false, true] {
            let text = log(json, || {
                tracing::warn!(target: "async_nats", long, "{}", "\u{e9}".repeat(50_000));
            });
            assert_eq!(text.lines().count(), 1);
            assert!(text.len() <= MAX_LINE + CUT.len() + 1, "{}", text.len());
            assert!(text.contains(CUT) && text.contains("async_nats"), "{text}");
            if json {
                let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(line["level"], "WARN");
            }
        }
    }

    #[test]
    fn a_flood_from_one_place_is_cut_and_other_places_are_not() {
        let text = log(false, || {
            for _ in 0..1_000 {
                tracing::warn!("flood");
            }
            tracing::warn!("other");
        });
        let floods = text.lines().filter(|line| line.contains("flood")).count();
        assert!((50..=60).contains(&floods), "{floods}");
        assert!(text.contains("other"));
    }
}
