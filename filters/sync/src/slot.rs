//! Slots: which VMs are there, and how each is woken.
//!
//! No VM knows its worker's number, and a queue is never freed, so a reloaded VM must find a queue
//! that its predecessor left. Slot `n` is a key in shared data that one VM holds by a lease and a
//! queue with that number in its name. A new VM takes the first slot that is free.

use std::time::Duration;

use pintle_contract::{Now, Slot};

/// Slots that are looked at, at most: more threads than an Envoy has.
pub const MAX_SLOTS: u32 = 256;

/// Ten ticks: a slot taken from a worker that is only slow would split its notes between two VMs.
const HELD: Duration = Duration::from_secs(1);

/// Whether the slot's holder is alive.
#[must_use]
pub fn is_live(slot: &Slot, now: Now) -> bool {
    slot.expires_at > now && slot.expires_at <= now.after(HELD)
}

/// Whether `worker` may take or keep the slot.
#[must_use]
pub fn is_free(slot: Option<&Slot>, worker: u64, now: Now) -> bool {
    slot.is_none_or(|slot| slot.worker == worker || !is_live(slot, now))
}

/// What `worker` writes into its slot at every tick.
#[must_use]
pub fn renewed(worker: u64, now: Now) -> Slot {
    Slot { worker, at: now, expires_at: now.after(HELD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_absent_mine_expired_or_from_the_far_future() {
        let now = Now::from_millis(1_000_000);
        let held = |worker, millis| Slot { worker, at: now, expires_at: Now::from_millis(millis) };
        let table = [
            ("absent", None, true),
            ("mine", Some(held(1, 1_000_500)), true),
            ("another's", Some(held(2, 1_000_500)), false),
            ("another's to the full", Some(held(2, 1_001_000)), false),
            ("expired", Some(held(2, 1_000_000)), true),
            ("from the far future", Some(held(2, 1_001_001)), true),
        ];
        for (name, slot, free) in table {
            assert_eq!(is_free(slot.as_ref(), 1, now), free, "{name}");
        }
    }

    #[test]
    fn renewal_holds_the_slot_for_a_second() {
        let now = Now::from_millis(5_000);
        let slot = renewed(7, now);
        assert!(is_live(&slot, now.after(Duration::from_millis(999))));
        assert!(!is_live(&slot, now.after(Duration::from_secs(1))));
    }
}
