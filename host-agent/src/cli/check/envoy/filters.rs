//! Filters of Envoy's own that go past the module's choice (seen on 1.40.0, `tests/ledger`).

use super::dump::{Dump, overridden, text};
use crate::cli::check::finding::{Code, Finding};

/// Beside clusters that would follow the choice.
pub(super) fn past(dump: &Dump<'_>) -> Vec<Finding> {
    if !dump.clusters().values().any(|cluster| overridden(cluster)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if dump.all.iter().any(|object| object.contains_key("session_state")) {
        findings.push(Finding::warn(
            Code::ChoiceInSession,
            "filter stateful_session",
            "a request of one of its sessions goes to the session's host, whatever the module \
             chooses",
            "remove it and set select.sticky, which leaves a host that is ill",
        ));
    }
    let caches = ["filters.http.cache.v3.CacheConfig", "filters.http.cache_v2.v3.CacheV2Config"];
    let typed = |kind: &str| caches.iter().any(|cache| kind.ends_with(cache));
    if dump.all.iter().any(|object| text(object, "@type").is_some_and(typed)) {
        findings.push(Finding::warn(
            Code::RequestsInCache,
            "filter cache",
            "it sends requests of its own: where it stands before the module nobody chooses for \
             them, and behind it nobody books what became of them",
            "let its route lead to an internal listener that has the module, as Envoy's \
             documentation of the filter says",
        ));
    }
    findings
}
