//! What `cargo fuzz` builds: the target that `FUZZ_TARGET` names, driven by libFuzzer.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pintle_fuzz::{TARGETS, Target};

/// A target that is not there is not to be mistaken for one without findings.
static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => *target,
        None => {
            let known: Vec<_> = TARGETS.iter().map(|(known, _)| *known).collect();
            eprintln!("FUZZ_TARGET is {name:?}, expected one of {known:?}");
            std::process::exit(64)
        }
    }
});

fuzz_target!(|data: &[u8]| CHOSEN(data));
