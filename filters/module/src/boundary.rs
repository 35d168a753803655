//! What a request needs of the proxy that carries it.
//!
//! Reading, deciding and applying are written once, over [`Proxy`]; `wasm` is its implementation by
//! host calls. Each call is a crossing with a price (docs/benchmarks.md), so nothing is asked
//! twice.

use pintle_contract::Now;

/// The proxy did not do what it was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused;

/// All headers of a request, read in one call.
pub(crate) trait Headers {
    /// Names in lower case and raw values, in order.
    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone;

    /// The first value of `name`, which must be lower-case.
    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
    }
}

/// The answer of this filter in the place of an endpoint's.
pub(crate) struct LocalResponse<'a> {
    pub(crate) status: u32,
    /// The status for a gRPC client.
    pub(crate) grpc_status: i32,
    pub(crate) headers: &'a [(&'a [u8], &'a [u8])],
}

/// The proxy's side of one HTTP stream. What cannot be read is `None`.
pub(crate) trait Proxy {
    type Headers: Headers;

    /// The wall clock; zero if the proxy refuses.
    fn now(&self) -> Now;

    /// All request headers; while the request's headers pass.
    fn request_headers(&self) -> Option<Self::Headers>;
    /// The first value of a request header; while the request's headers pass, or an attempt is
    /// logged.
    fn request_header(&self, name: &str) -> Option<Vec<u8>>;
    /// Whether the request has no such header; cheaper than reading one that is there.
    fn lacks_request_header(&self, name: &str) -> bool;
    /// Makes `value` the only value of a request header.
    fn set_request_header(&self, name: &str, value: &[u8]) -> Result<(), Refused>;
    /// Removes every value of a request header.
    fn remove_request_header(&self, name: &str) -> Result<(), Refused>;
    /// Makes `value` the only value of a response header; while the response's headers pass.
    fn set_response_header(&self, name: &str, value: &[u8]) -> Result<(), Refused>;
    /// Removes every value of a response header; while the response's headers pass.
    fn remove_response_header(&self, name: &str) -> Result<(), Refused>;
    /// The first value of a response header; while the response's headers pass, or an attempt is
    /// logged.
    fn response_header(&self, name: &str) -> Option<Vec<u8>>;
    /// The first value of a response trailer; while the response's trailers pass, or an attempt is
    /// logged.
    fn response_trailer(&self, name: &str) -> Option<Vec<u8>>;

    /// Leaves a value for the route's `response_headers_to_add`.
    fn set_filter_state(&self, name: &str, value: &str) -> Result<(), Refused>;
    /// Names the address that an `ORIGINAL_DST` cluster goes to.
    fn set_original_destination(&self, address: &str) -> Result<(), Refused>;
    /// Answers the request; at most once, and the stream must pause afterwards.
    fn respond(&self, response: &LocalResponse<'_>) -> Result<(), Refused>;

    /// The cluster that the route chose.
    fn cluster(&self) -> Option<Vec<u8>>;
    /// `filter_metadata.pintle.service` of the cluster.
    fn cluster_service(&self) -> Option<Vec<u8>>;
    /// `filter_metadata.pintle.service` of the route.
    fn route_service(&self) -> Option<Vec<u8>>;
    /// The value of `key` in `filter_metadata.pintle.subset` of the cluster.
    fn cluster_subset(&self, key: &str) -> Option<Vec<u8>>;
    /// The value of `key` in `filter_metadata.pintle.subset` of the route.
    fn route_subset(&self, key: &str) -> Option<Vec<u8>>;
    /// The client's address and port.
    fn source_address(&self) -> Option<Vec<u8>>;

    /// The status of the response, or of the attempt that is logged; `None` when there was none.
    fn response_code(&self) -> Option<u16>;
    /// Envoy's response flags, zero for none (`pintle_breaker::classify::flag`).
    fn response_flags(&self) -> u64;
    /// Why the stream ended, in Envoy's words.
    fn response_details(&self) -> Option<Vec<u8>>;
    /// How often the router sent the request; zero when another filter answered.
    fn attempts(&self) -> u32;
    /// Where the last attempt went, as `ip:port`.
    fn upstream_address(&self) -> Option<Vec<u8>>;
}
