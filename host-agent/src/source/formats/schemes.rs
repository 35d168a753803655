//! Instances whose every URL has another scheme than the source's: passed by, because another source may
//! take them.

use std::collections::BTreeSet;

use pintle_contract::AddressPolicy;
use serde_json::Value;

use super::reader::{Group, Reading};
use super::{address, fields};

/// The schemes of a prefix whose keys give no instance at all; none where any does, or is refused.
/// `pairs` are keys without the prefix, and values.
pub(crate) fn untaken<'a>(
    group: &Group,
    pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> BTreeSet<String> {
    let allowed = AddressPolicy::default();
    let mut schemes = BTreeSet::new();
    for (key, value) in pairs {
        if group.read(key, value, &allowed) != Reading::Beside {
            return BTreeSet::new();
        }
        schemes.extend(of(value));
    }
    schemes
}

/// The schemes of the URLs in lists of a value.
fn of(value: &[u8]) -> Vec<String> {
    let Ok(said) = fields::object(value) else { return Vec::new() };
    let texts = said.values().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let urls = texts.filter_map(address::split_url);
    let secure = |query: &str| query.split('&').any(|pair| pair == "isSecure=true");
    urls.map(|(scheme, _, query)| {
        // As a source names it: kratos' `isSecure=true` is the scheme's secure sister.
        let s = if secure(query) && !scheme.ends_with('s') { "s" } else { "" };
        format!("{}{s}", pintle_state::show(scheme.as_bytes()))
    })
    .collect()
}
