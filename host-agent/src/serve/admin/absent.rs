//! What is said of a service that is not served, so that its reader knows where to look.

use pintle_state::Snapshot;

use crate::condition::service_of;
use crate::nearest::{but, nearest};

/// Why there is no service `name`: its entries are refused, or it is called otherwise. What can be
/// no service's name is not looked for: it may be as long as a path.
pub(super) fn absent(snapshot: &Snapshot, name: &str) -> String {
    if !pintle_contract::is_name(name) {
        return "that is no service's name".to_owned();
    }
    let of_it = |it: &&pintle_state::Rejected| it.source != "event" && service_of(&it.key) == name;
    let refused: Vec<_> = snapshot.rejected.iter().filter(of_it).collect();
    if let Some(first) = refused.iter().find(|it| it.source == "registry").or(refused.first()) {
        return format!(
            "{name} has no endpoint here: {} of its entries {} refused, such as {}: {} \
             (pintle services --rejected)",
            refused.len(),
            if refused.len() == 1 { "is" } else { "are" },
            first.key,
            first.detail
        );
    }
    let alike = nearest(name, snapshot.services.keys().map(|name| &**name));
    format!("no service {name} is registered here{}", but(&alike))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use pintle_state::Rejected;

    use super::*;

    #[test]
    fn refusals_are_told_and_what_is_no_name_is_not_looked_for() {
        let refused = Rejected {
            source: "registry",
            key: "/services/orders/orders-1".to_owned(),
            reason: "port",
            detail: "port is not an integer from 1 to 65535".to_owned(),
            at: SystemTime::UNIX_EPOCH,
        };
        let snapshot = Snapshot { rejected: [refused].into(), ..Snapshot::default() };
        let said = absent(&snapshot, "orders");
        for part in ["1 of its entries is refused", "/services/orders/orders-1: port", "65535"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(absent(&snapshot, "billing"), "no service billing is registered here");
        assert_eq!(absent(&snapshot, "a\u{1b}b"), "that is no service's name");
        assert_eq!(absent(&snapshot, &"a".repeat(8_000)), "that is no service's name");
    }
}
