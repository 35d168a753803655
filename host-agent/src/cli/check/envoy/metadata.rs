//! What clusters and routes tell the module by their metadata.

use std::collections::BTreeSet;

use super::dump::{Dump, at};
use crate::cli::check::finding::{Code, Finding};
use crate::nearest::{but, nearest};

/// What the module reads of the namespace `pintle`.
const READ: [&str; 2] = ["service", "subset"];

/// Keys that nobody reads.
pub(super) fn unread(dump: &Dump<'_>) -> Vec<Finding> {
    let spaces = dump.all.iter().filter_map(|object| at(object, &["filter_metadata", "pintle"]));
    let keys = spaces.filter_map(|space| space.as_object()).flat_map(|space| space.keys());
    let unread: BTreeSet<&str> =
        keys.map(String::as_str).filter(|key| !READ.contains(key)).collect();
    let finding = |key: &str| {
        let near = nearest(key, READ.into_iter());
        Finding::bad(
            Code::MetadataUnread,
            "metadata",
            format!("filter_metadata.pintle.{key} is read by nobody{}", but(&near)),
            "name it service or subset, which are what the module reads of clusters and routes",
        )
    };
    unread.into_iter().map(finding).collect()
}
