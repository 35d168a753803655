//! Questions of speed and endurance, one file each; here is how each of them ends.

use std::process::ExitCode;

use pintle_tests::Result;
use serde_json::{Value, json};

/// Runs a bench by its options, `None` where it was only to be built (`cargo test --benches`), and tells what
/// came of it: whatever falls short, then the figures as a last line of JSON. The code is 0, or 1 when it
/// falls short and `check` minds, 64 for options that are none.
pub async fn conclude<O>(
    name: &str,
    options: std::result::Result<Option<O>, String>,
    check: impl Fn(&O) -> bool,
    measure: impl AsyncFnOnce(&O) -> Result<(Value, Vec<String>)>,
) -> ExitCode {
    let options = match options {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            return ExitCode::from(64);
        }
    };
    match measure(&options).await {
        Ok((mut figures, short)) => {
            short.iter().for_each(|short| println!("SHORT: {short}"));
            figures["bench"] = json!(name);
            figures["met"] = json!(short.is_empty());
            figures["short"] = json!(short);
            println!("{figures}");
            ExitCode::from(u8::from(check(&options) && !short.is_empty()))
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
