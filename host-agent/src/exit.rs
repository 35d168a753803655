//! Exit codes, after sysexits.h.

/// The answer is no.
pub(crate) const EX_NO: u8 = 1;
/// The command or its configuration can't be used.
pub(crate) const EX_USAGE: u8 = 64;
/// Whoever it takes can't be reached.
pub(crate) const EX_UNAVAILABLE: u8 = 69;
/// A task of the agent ended, panicked or stood still.
pub(crate) const EX_SOFTWARE: u8 = 70;
