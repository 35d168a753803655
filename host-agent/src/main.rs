//! The binary `pintle`; everything is in the library.

fn main() -> std::process::ExitCode {
    pintle_agent::cli::main()
}
