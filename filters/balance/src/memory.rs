//! The bytes that the rings, tables and pools of all services of one VM may hold.
//!
//! What something will hold is known before it is made ([`crate::Cost`]), and it is made only with
//! a [`Hold`] on as many bytes. A ring or table that replaces another stands beside it for as long
//! as it is built, so the first one of its place leaves room for the largest of all to be built
//! anew.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The account of one VM. Clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Rc<Account>);

#[derive(Debug)]
struct Account {
    budget: u64,
    held: Cell<u64>,
    /// How often something was given back, or was built.
    returns: Cell<u64>,
    /// Tables that are being built.
    building: Cell<u32>,
    /// Whether a table was refused since anything was given back.
    short: Cell<bool>,
    /// Bytes of the rings and tables, and how many of each size there are.
    tables: RefCell<BTreeMap<u64, u32>>,
}

/// The budget does not hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes, and {reserve} to build it anew, do not fit beside {held} of {budget}")]
pub struct OverBudget {
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes that have to stay free.
    pub reserve: u64,
    /// Bytes held by others.
    pub held: u64,
    /// Bytes in all.
    pub budget: u64,
}

/// Bytes taken from the account; dropping it gives them back.
#[derive(Debug)]
pub struct Hold {
    memory: Memory,
    bytes: u64,
    is_table: bool,
}

/// One table that is being built; dropping it says that it is not any more.
#[derive(Debug)]
pub(crate) struct Building(Memory);

/// `memory.budget` where nothing is said: a quarter of what Envoy lets a VM have.
pub const DEFAULT_BUDGET: u64 = 256 << 20;

impl Default for Memory {
    fn default() -> Self {
        Self::new(DEFAULT_BUDGET)
    }
}

impl Memory {
    /// An account of so many bytes.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self(Rc::new(Account {
            budget,
            held: Cell::new(0),
            returns: Cell::new(0),
            building: Cell::new(0),
            short: Cell::new(false),
            tables: RefCell::default(),
        }))
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.held.get()
    }

    /// Tables that are being built now, of all services.
    #[must_use]
    pub fn building(&self) -> u32 {
        self.0.building.get()
    }

    /// Whether a ring or table was refused, and nothing was given back since.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.short.get()
    }

    /// How often something was given back, or was built: what was refused before may fit now.
    pub(crate) fn returns(&self) -> u64 {
        self.0.returns.get()
    }

    /// Takes so many bytes, for what is no ring or table.
    ///
    /// # Errors
    /// [`OverBudget`]; then nothing was taken.
    pub fn take(&self, bytes: u64) -> Result<Hold, OverBudget> {
        self.take_beside(bytes, 0, false)
    }

    /// For a ring or table; `replaces`: whether one stands in its place already.
    pub(crate) fn take_for_table(&self, bytes: u64, replaces: bool) -> Result<Hold, OverBudget> {
        let largest = self.0.tables.borrow().last_key_value().map_or(0, |(bytes, _)| *bytes);
        let reserve = if replaces { 0 } else { largest.max(bytes) };
        let taken = self.take_beside(bytes, reserve, true);
        if taken.is_err() {
            self.0.short.set(true);
        }
        taken
    }

    fn take_beside(&self, bytes: u64, reserve: u64, is_table: bool) -> Result<Hold, OverBudget> {
        let Account { budget, held, tables, .. } = &*self.0;
        let (held_now, budget) = (held.get(), *budget);
        if held_now.saturating_add(bytes).saturating_add(reserve) > budget {
            return Err(OverBudget { wanted: bytes, reserve, held: held_now, budget });
        }
        held.set(held_now.saturating_add(bytes));
        if is_table {
            *tables.borrow_mut().entry(bytes).or_default() += 1;
        }
        Ok(Hold { memory: self.clone(), bytes, is_table })
    }

    pub(crate) fn begin(&self) -> Building {
        self.0.building.set(self.building().saturating_add(1));
        Building(self.clone())
    }
}

impl Hold {
    pub(crate) fn is_missed(&self) -> bool {
        self.memory.is_short()
    }

    /// How many.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Account { held, returns, tables, short, .. } = &*self.memory.0;
        short.set(false);
        held.set(held.get().saturating_sub(self.bytes));
        returns.set(returns.get().wrapping_add(1));
        if self.is_table {
            let mut tables = tables.borrow_mut();
            let left = tables.get(&self.bytes).map_or(0, |count| count.saturating_sub(1));
            if left == 0 {
                tables.remove(&self.bytes);
            } else {
                tables.insert(self.bytes, left);
            }
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let Account { building, returns, .. } = &*self.0.0;
        building.set(building.get().saturating_sub(1));
        returns.set(returns.get().wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_table_leaves_room_to_build_the_largest_anew() {
        let memory = Memory::new(300);
        let first = memory.take_for_table(100, false).unwrap();
        let second = memory.take_for_table(50, false).unwrap();
        let refused = memory.take_for_table(60, false).unwrap_err();
        assert_eq!(refused, OverBudget { wanted: 60, reserve: 100, held: 150, budget: 300 });
        let anew = memory.take_for_table(100, true).unwrap();
        assert_eq!(memory.held(), 250);
        let returns = memory.returns();
        drop(first);
        assert_ne!(memory.returns(), returns);
        drop((second, anew));
        assert_eq!(memory.held(), 0);
        assert!(memory.take_for_table(150, false).is_ok(), "nothing is reserved for what is gone");
    }

    #[test]
    fn what_is_being_built_is_counted() {
        let memory = Memory::default();
        let (one, two) = (memory.begin(), memory.begin());
        assert_eq!(memory.building(), 2);
        drop((one, two));
        assert_eq!(memory.building(), 0);
    }
}
