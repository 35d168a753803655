//! What a request asks for of its endpoints.

use crate::serve::admin::view::EndpointJson;

/// What a request would ask for: `KEY=VALUE` of metadata, or a tag.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) metadata: Vec<(&'a str, &'a str)>,
    pub(super) tags: Vec<&'a str>,
}

impl Asked<'_> {
    /// What of it an endpoint lacks.
    pub(super) fn lacks(&self, endpoint: &EndpointJson) -> Option<String> {
        let of = |key: &str| match key {
            "zone" => Some(endpoint.zone.as_str()),
            _ => endpoint.metadata.get(key).map(String::as_str),
        };
        let metadata = self.metadata.iter().find(|(key, value)| of(key) != Some(*value));
        let metadata = metadata.map(|(key, value)| format!("{key}={value}"));
        let tag = self.tags.iter().find(|tag| !endpoint.tags.iter().any(|has| has == *tag));
        let lacks = metadata.or_else(|| tag.map(|tag| format!("tag {tag}")))?;
        Some(format!("not of the subset: {lacks}"))
    }
}
