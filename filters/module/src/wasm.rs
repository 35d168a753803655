//! The boundary by proxy-wasm host calls.

use pintle_contract::Now;
use pintle_hostcalls::{self as host, HeaderMap};

use crate::boundary::{Headers, LocalResponse, Proxy, Refused};

const CLUSTER: &[u8] = b"xds\0cluster_name";
const CLUSTER_SERVICE: &[u8] = b"xds\0cluster_metadata\0filter_metadata\0pintle\0service";
const ROUTE_SERVICE: &[u8] = b"xds\0route_metadata\0filter_metadata\0pintle\0service";
/// With the metadata key of a subset behind it, as the next.
const CLUSTER_SUBSET: &[u8] = b"xds\0cluster_metadata\0filter_metadata\0pintle\0subset\0";
const ROUTE_SUBSET: &[u8] = b"xds\0route_metadata\0filter_metadata\0pintle\0subset\0";
const SOURCE_ADDRESS: &[u8] = b"source\0address";
const UPSTREAM_ADDRESS: &[u8] = b"upstream\0address";
const ATTEMPTS: &[u8] = b"upstream\0request_attempt_count";
const CODE: &[u8] = b"response\0code";
const FLAGS: &[u8] = b"response\0flags";
const DETAILS: &[u8] = b"response\0code_details";

/// The stream whose callback is running: host calls name none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wasm;

impl Headers for HeaderMap {
    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        Self::iter(self)
    }
}

fn done(result: host::Result<()>) -> Result<(), Refused> {
    result.map_err(|_| Refused)
}

fn number<T: TryFrom<u64>>(path: &[u8]) -> Option<T> {
    host::property_u64(path).ok().and_then(|number| T::try_from(number).ok())
}

impl Proxy for Wasm {
    type Headers = HeaderMap;

    fn now(&self) -> Now {
        host::now()
    }

    fn request_headers(&self) -> Option<HeaderMap> {
        host::request_headers().ok()
    }

    fn request_header(&self, name: &str) -> Option<Vec<u8>> {
        host::request_header(name.as_bytes()).ok()
    }

    fn lacks_request_header(&self, name: &str) -> bool {
        host::lacks_request_header(name.as_bytes())
    }

    fn set_request_header(&self, name: &str, value: &[u8]) -> Result<(), Refused> {
        done(host::set_request_header(name.as_bytes(), value))
    }

    fn remove_request_header(&self, name: &str) -> Result<(), Refused> {
        done(host::remove_request_header(name.as_bytes()))
    }

    fn set_response_header(&self, name: &str, value: &[u8]) -> Result<(), Refused> {
        done(host::set_response_header(name.as_bytes(), value))
    }

    fn remove_response_header(&self, name: &str) -> Result<(), Refused> {
        done(host::remove_response_header(name.as_bytes()))
    }

    fn response_header(&self, name: &str) -> Option<Vec<u8>> {
        host::response_header(name.as_bytes()).ok()
    }

    fn response_trailer(&self, name: &str) -> Option<Vec<u8>> {
        host::response_trailer(name.as_bytes()).ok()
    }

    fn set_filter_state(&self, name: &str, value: &str) -> Result<(), Refused> {
        done(host::set_filter_state(name.as_bytes(), value.as_bytes()))
    }

    fn set_original_destination(&self, address: &str) -> Result<(), Refused> {
        const KEY: &str = "envoy.network.transport_socket.original_dst_address";
        // SetEnvoyFilterStateArguments {path = 1, value = 2, span = 3 (0: the filter chain)}.
        let mut arguments = Vec::with_capacity(96);
        for (tag, text) in [(0x0a, KEY), (0x12, address)] {
            arguments.push(tag);
            arguments.push(u8::try_from(text.len()).unwrap_or_default());
            arguments.extend_from_slice(text.as_bytes());
        }
        arguments.extend_from_slice(&[0x18, 0]);
        done(host::call_foreign_function("set_envoy_filter_state", &arguments).map(drop))
    }

    fn respond(&self, response: &LocalResponse<'_>) -> Result<(), Refused> {
        let LocalResponse { status, grpc_status, headers } = *response;
        done(host::send_local_response(status, "pintle", headers, b"", grpc_status))
    }

    fn cluster(&self) -> Option<Vec<u8>> {
        host::property(CLUSTER).ok()
    }

    fn cluster_service(&self) -> Option<Vec<u8>> {
        host::property(CLUSTER_SERVICE).ok()
    }

    fn route_service(&self) -> Option<Vec<u8>> {
        host::property(ROUTE_SERVICE).ok()
    }

    fn cluster_subset(&self, key: &str) -> Option<Vec<u8>> {
        host::property(&[CLUSTER_SUBSET, key.as_bytes()].concat()).ok()
    }

    fn route_subset(&self, key: &str) -> Option<Vec<u8>> {
        host::property(&[ROUTE_SUBSET, key.as_bytes()].concat()).ok()
    }

    fn source_address(&self) -> Option<Vec<u8>> {
        host::property(SOURCE_ADDRESS).ok()
    }

    fn response_code(&self) -> Option<u16> {
        number(CODE).filter(|code| *code > 0)
    }

    fn response_flags(&self) -> u64 {
        number(FLAGS).unwrap_or_default()
    }

    fn response_details(&self) -> Option<Vec<u8>> {
        host::property(DETAILS).ok()
    }

    fn attempts(&self) -> u32 {
        number(ATTEMPTS).unwrap_or_default()
    }

    fn upstream_address(&self) -> Option<Vec<u8>> {
        host::property(UPSTREAM_ADDRESS).ok()
    }
}
