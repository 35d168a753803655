//! What is said of a service that is not served, so that its reader knows where to look.

use pintle_state::Snapshot;

use crate::condition::service_of;
use crate::nearest::nearest;

/// Why there is no service `name`: its entries are refused, or it is called otherwise.
pub(super) fn absent(snapshot: &Snapshot, name: &str) -> String {
    let of_it = |it: &&pintle_state::Rejected| it.source != "event" && service_of(&it.key) == name;
    let refused: Vec<_> = snapshot.rejected.iter().filter(of_it).collect();
    if let Some(first) = refused.iter().find(|it| it.source == "registry").or(refused.first()) {
        return format!(
            "{name} has no endpoint here: {} of its entries {} refused, the first because {} \
             (pintle services --rejected)",
            refused.len(),
            if refused.len() == 1 { "is" } else { "are" },
            first.detail
        );
    }
    let alike = nearest(name, snapshot.services.keys().map(|name| &**name));
    match alike.as_slice() {
        [] => format!("no service {name} is registered here"),
        alike => format!("no service {name} is registered here, but {} is", alike.join(", ")),
    }
}
