//! Every input that is kept, replayed: what a fuzzer once reached stays reached, and what it once
//! broke stays mended.

use std::path::Path;

use pintle_fuzz::TARGETS;

/// A corpus is read on every test run, so it stays small: the fewest inputs that reach the most
/// (libFuzzer's `-set_cover_merge=1` finds them), and those that once broke something.
const FILES: std::ops::RangeInclusive<usize> = 10..=200;
const MAX_FILE: usize = 16 << 10;

#[test]
fn every_input_of_every_corpus_keeps_its_targets_promises() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let dir = root.join(name);
        let entries = std::fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("{name} has no corpus at {}: {error}", dir.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(FILES.contains(&files.len()), "{name} has a corpus of {} inputs", files.len());
        for file in files {
            let data = std::fs::read(&file).unwrap();
            assert!(data.len() <= MAX_FILE, "{} is {} bytes long", file.display(), data.len());
            // Said first: a target that panics cannot say which input it had.
            println!("{}", file.display());
            target(&data);
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for entry in std::fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|(known, _)| *known == name), "{name:?} is no target");
    }
}
