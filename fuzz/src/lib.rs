//! Everything that reads what others wrote, as functions of bytes that assert what was promised.
//!
//! A target takes any bytes, makes a case of them (a list of headers, a table, a history of a
//! breaker), runs it and panics when a promise is broken; it never just looks for a crash.
//! libFuzzer drives it with an eye on the code that was reached (`cargo xtask fuzz`), and
//! `tests/corpus.rs` replays what it found worth keeping on every test run.
//!
//! The property tests beside the crates draw their cases by chance and from small domains. Here an
//! input that reaches new code is kept and varied, so that the rare case behind three others is
//! found as well.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what panics here is a finding"
)]

mod breakers;
mod document;
mod frames;
mod headers;
mod picks;
mod policies;
mod registry;
mod requests;
mod spans;
mod state;
mod stream;
mod workers;

use std::fmt::Debug;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};

/// What one input is given to.
pub type Target = fn(&[u8]);

/// By name, in the order of the data's way.
pub const TARGETS: &[(&str, Target)] = &[
    ("frames", frames::frames),
    ("headers", headers::headers),
    ("spans", spans::spans),
    ("policies", policies::policies),
    ("requests", requests::requests),
    ("picks", picks::picks),
    ("breakers", breakers::breakers),
    ("outcomes", breakers::outcomes),
    ("workers", workers::workers),
    ("stream", stream::stream),
    ("registry", registry::registry),
    ("events", state::events),
    ("state", state::state),
];

/// Whether to print each case, for a person who has one input that breaks something.
static SHOW: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_SHOW").is_some());

/// The case that the bytes make; too few make none.
fn case<'a, T: Arbitrary<'a> + Debug>(data: &'a [u8]) -> Option<T> {
    let case = T::arbitrary_take_rest(Unstructured::new(data)).ok()?;
    if *SHOW {
        println!("{case:#?}");
    }
    Some(case)
}

/// Bytes that may be many although the input is short.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Text<'a> {
    bytes: &'a [u8],
    times: u8,
}

impl Text<'_> {
    /// At most 4 KiB.
    fn spell(self) -> Vec<u8> {
        let times = usize::from(self.times).max(1).min(4096 / self.bytes.len().max(1));
        self.bytes.repeat(times.max(1))
    }
}
