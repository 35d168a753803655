//! What a request must bring to be told why it went where it went.

use pintle_hostcalls::{self as host, Level};
use pintle_policy::DebugHeader;

/// A token that is shorter could be guessed.
const SHORTEST: usize = 16;

/// The token, from the environment of the VM.
pub(crate) struct Token(Vec<u8>);

impl Token {
    /// From the VM's environment; what is amiss is said once a VM.
    pub(crate) fn read(debug: &DebugHeader) -> Option<Self> {
        let name = &debug.token_env;
        let value = std::env::var(name).unwrap_or_default();
        if value.len() < SHORTEST {
            let why = "is not in the VM's host_env_keys, or shorter than 16 bytes";
            let text = format!("pintle: debug answers nobody: {name} {why}");
            host::log(Level::Warn, &text);
            return None;
        }
        Some(Self(value.into_bytes()))
    }

    /// In a time that says nothing of where two differ.
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        let differs = self.0.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differs) == 0 && self.0.len() == other.len()
    }
}
