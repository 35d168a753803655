//! How the file descriptors of the process are shared out, so that no peer takes the last one.
//!
//! The limit is the kernel's (`ulimit -n`), read once. [`OWN`] of it are the agent's: sources,
//! files, listeners, and the health checks, which must answer when everything else is full. Of the
//! rest three quarters go to the proxies and one to the admin address.

use std::fs;

/// Descriptors kept for the agent itself: 12 connections to three members of etcd and NATS, state,
/// log and listeners, and 8 for health.
const OWN: usize = 40;
/// Connections of proxies at most. A machine runs a handful of Envoys, with a few connections each.
const MAX_PROXIES: usize = 1024;
/// Connections to the admin address at most.
const MAX_ADMIN: usize = 256;
/// What is assumed where the kernel does not say: the usual soft limit.
const USUAL: usize = 1024;

/// Connections that the proxies' server may hold, 8 to 1024.
#[must_use]
pub(crate) fn proxies() -> usize {
    (free(limit()) / 4 * 3).clamp(8, MAX_PROXIES)
}

/// Connections that the admin address may hold, 4 to 256.
#[must_use]
pub(crate) fn admin() -> usize {
    (free(limit()) / 4).clamp(4, MAX_ADMIN)
}

const fn free(limit: usize) -> usize {
    limit.saturating_sub(OWN)
}

fn limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    soft(&limits).unwrap_or(USUAL)
}

/// The soft limit in the text of `/proc/self/limits`; `unlimited` is the usual one, which is
/// plenty.
fn soft(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             1024                 2048                 processes \n\
                    Max open files            64                   4096                 files     \n";
        assert_eq!(soft(text), Some(64));
        assert_eq!(soft("Max open files            unlimited            unlimited"), None);
        assert!(limit() >= 64, "{}", limit());
    }
}
