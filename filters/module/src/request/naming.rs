//! What is asked of a request beside its endpoint: its service's name, and what the policy wants to know.

use super::*;

/// The name of the service that the request is for, from the first source that has one.
pub(super) fn service_name(sources: &[Source], headers: &Pairs) -> Option<String> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(ToOwned::to_owned);
    let whole = |path| host::property(path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let found = |source: &Source| match source {
        Source::ClusterMetadata => whole(keys::CLUSTER_SERVICE),
        Source::RouteMetadata => whole(keys::ROUTE_SERVICE),
        Source::Cluster(pattern) => {
            host::property(keys::CLUSTER).ok().as_deref().and_then(|n| pattern.of(n)).and_then(text)
        }
        Source::Authority(pattern) => {
            headers.get(b":authority").map(without_port).and_then(|n| pattern.of(n)).and_then(text)
        }
        Source::Header(name) => headers.get(name.as_bytes()).and_then(text),
    };
    sources.iter().find_map(|source| found(source).filter(|name| !name.is_empty()))
}

pub(super) fn without_port(authority: &[u8]) -> &[u8] {
    let colon = authority.iter().rposition(|byte| *byte == b':');
    let digits = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    match colon.map(|at| authority.split_at(at)) {
        Some((host, port)) if port.get(1..).is_some_and(digits) => host,
        _ => authority,
    }
}

/// An address as Envoy hashes it: it writes IPv6 in brackets only beside a port.
fn without_brackets(host: &[u8]) -> &[u8] {
    host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host)
}

/// What the policy asks of the request beside its headers, read only when it asks.
pub(super) struct View<'a> {
    headers: &'a Pairs,
    source: Option<Vec<u8>>,
    /// Values that the route's metadata ask for, by selector.
    pub(super) route: Vec<(usize, Vec<u8>)>,
}

impl<'a> View<'a> {
    pub(super) fn read(policy: &pintle_balance::Policy, headers: &'a Pairs) -> Self {
        let source = policy
            .hash_key
            .iter()
            .any(|part| matches!(part.source, pintle_balance::HashSource::SourceAddress))
            .then(|| host::property(keys::SOURCE_ADDRESS).ok())
            .flatten()
            .map(|address| without_brackets(without_port(&address)).to_vec());
        let mut route = Vec::new();
        for (index, selector) in policy.subset.iter().enumerate() {
            let asked =
                headers.get(selector.header.as_bytes()).is_some_and(|asks| !asks.is_empty());
            if let pintle_balance::SelectorTarget::Metadata(key) = &selector.with
                && !asked
            {
                let path = [keys::ROUTE_SUBSET, key.as_bytes()].concat();
                route.extend(host::property(&path).ok().map(|value| (index, value)));
            }
        }
        Self { headers, source, route }
    }
}

impl RequestView for View<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name.as_bytes())
    }

    fn source_address(&self) -> Option<&[u8]> {
        self.source.as_deref()
    }
}
