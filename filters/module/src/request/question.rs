//! What is asked of a request beside its endpoint: its service's name, and what the policy wants to
//! know.

use pintle_balance::RequestView;
use pintle_policy::Source;

use crate::boundary::{Headers, Proxy};

/// The service that a request is for.
pub(super) struct Named {
    pub(super) name: String,
    /// Whether its source says that it is one of ours.
    pub(super) claimed: bool,
}

/// The service that the request is for, from the first source that names one.
pub(super) fn named<P: Proxy>(
    sources: &[Source],
    proxy: &P,
    headers: &P::Headers,
) -> Option<Named> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(ToOwned::to_owned);
    let whole = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let found = |source: &Source| match source {
        Source::ClusterMetadata => whole(proxy.cluster_service()),
        Source::RouteMetadata => whole(proxy.route_service()),
        Source::Cluster(pattern) => {
            proxy.cluster().as_deref().and_then(|name| pattern.of(name)).and_then(text)
        }
        Source::Authority(pattern) => {
            headers.get(b":authority").map(without_port).and_then(|n| pattern.of(n)).and_then(text)
        }
        Source::Header(name) => headers.get(name.as_bytes()).and_then(text),
    };
    sources.iter().find_map(|source| {
        let name = found(source).filter(|name| !name.is_empty())?;
        Some(Named { name, claimed: source.claims() })
    })
}

fn without_port(authority: &[u8]) -> &[u8] {
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

/// A request as the policy asks about it; what is not in its headers is read only when asked for.
pub(super) struct Question<'a, H> {
    headers: &'a H,
    source: Option<Vec<u8>>,
    /// Values that the cluster's or the route's metadata ask for, by selector.
    pub(super) metadata: Vec<(usize, Vec<u8>)>,
}

impl<'a, H: Headers> Question<'a, H> {
    pub(super) fn read<P: Proxy<Headers = H>>(
        policy: &pintle_balance::Policy,
        proxy: &P,
        headers: &'a H,
    ) -> Self {
        let source = policy
            .hash_key
            .iter()
            .any(|part| matches!(part.source, pintle_balance::HashSource::SourceAddress))
            .then(|| proxy.source_address())
            .flatten()
            .map(|address| without_brackets(without_port(&address)).to_vec());
        let mut metadata = Vec::new();
        for (index, selector) in policy.subset.iter().enumerate() {
            let asked =
                headers.get(selector.header.as_bytes()).is_some_and(|asks| !asks.is_empty());
            if let pintle_balance::SelectorTarget::Metadata(key) = &selector.with {
                // A cluster's members are all that it can reach, whatever the request or the route
                // asks.
                let cluster = proxy.cluster_subset(key);
                let found =
                    if asked { cluster } else { cluster.or_else(|| proxy.route_subset(key)) };
                metadata.extend(found.map(|value| (index, value)));
            }
        }
        Self { headers, source, metadata }
    }
}

impl<H: Headers> RequestView for Question<'_, H> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name.as_bytes())
    }

    fn source_address(&self) -> Option<&[u8]> {
        self.source.as_deref()
    }
}
