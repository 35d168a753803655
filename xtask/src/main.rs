//! `cargo xtask`: what does not fit `cargo` itself. Bringing servers, running every check in one
//! go, the demo on real parts, the distribution.
//!
//! Not a build system: every step is a cargo command that a person could type, and is printed as
//! such. This package must build on a machine that has nothing but Rust, because it is what
//! installs the rest; so it depends on the fixtures' library and on nothing that wants protoc.

#[cfg(test)]
mod chart;
#[cfg(test)]
mod containers;
mod counts;
mod demo;
#[cfg(test)]
mod dependencies;
mod dist;
mod fuzz;
#[cfg(test)]
mod gateway;
mod matrix;
mod pictures;
mod release;
mod rolling;
mod sbom;
mod setup;
mod shell;
mod stage;
mod story;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask <command>

  setup            install what is missing of all that is used here; each command below installs
                   what it uses itself
  test [--quick]   every check there is, about 40 minutes; the last line counts the tests
                   --quick: format, the pure crates and the harness, without any server
  demo [--check]   a story on real etcd, NATS, Envoy and agent; stays up until Ctrl-C
                   --check: ends by itself, exits 1 when a figure is out of bounds, last line JSON
  bench [NAME] [ARGS]  one bench (or all) of benches/, release build
  fuzz [TARGET] [--runs N | --seconds N]  one target (or all) of fuzz/, a minute each unless said;
                   last lines: runs, edges reached, crashes
  matrix [VERSION]...  the core of the tests on each Envoy that is supported, and the table of it
  rolling          everything rolled under load, three rounds, with the agent of the release before
  dist [--sign KEY] [--check]  target/dist: pintle.wasm, the agent, what they are made of (CycloneDX),
                   docs/, envoy/, SHA256SUMS; target/packages: a tarball, a Debian package, a Helm
                   chart, the images of agent and module as OCI layouts
                   --sign: the sums of both by this secret key of minisign's (SHA256SUMS.minisig)
                   --check: installs, upgrades, removes and purges the package in a clean root;
                   builds and runs the Dockerfile's image
  pictures         docs/pictures: the status page in four states, light and dark
  release [--dry-run]  says what stands in the way of this version, builds it by dist, makes its
                   tag (not with --dry-run); pushes nothing
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["setup"] => setup::bring(setup::ALL),
        ["test"] => test::run_all(),
        ["test", "--quick"] => test::run_quick(),
        ["demo"] => demo::run(false),
        ["demo", "--check"] => demo::run(true),
        ["bench", rest @ ..] => test::bench(rest),
        ["fuzz", rest @ ..] => fuzz::run_fuzz(rest),
        ["matrix", versions @ ..] => matrix::run(versions),
        ["rolling"] => rolling::run_long(),
        ["dist"] => dist::run_dist(None, false),
        ["dist", "--check"] => dist::run_dist(None, true),
        ["dist", "--sign", key] => dist::run_dist(Some(key), false),
        ["dist", "--sign", key, "--check"] => dist::run_dist(Some(key), true),
        ["pictures"] => pictures::take(),
        ["release"] => release::release(false),
        ["release", "--dry-run"] => release::release(true),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            // EX_USAGE
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}
