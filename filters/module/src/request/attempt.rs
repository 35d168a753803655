//! What the router's `upstream_log` says of one attempt, where that log is a Wasm logger of this
//! module (a comment of `envoy/envoy.yaml` has it) and the service's policy has
//! `breaker.retries: logged`.
//!
//! As seen on 1.36.4 and 1.40.0: the log is a `proxy_on_log` of the logger's root context. In reach
//! are the request's headers, the attempt's own response headers and trailers, `upstream.address`,
//! `response.code` and `response.flags`; no code details, no attempt count, and nothing that a
//! filter has set, so that `x-request-id` alone leads to the request. (`source.address` ends Envoy
//! 1.36.4 with a segmentation fault.) What another attempt follows is logged before it, and what
//! was outrun before the head of the answer passes; the attempt that answers, and one whose client
//! left, behind that. A time-out per try has the flag UT, also where the attempt answers
//! afterwards; one that was outrun has neither code nor flag.

use std::hash::{DefaultHasher, Hasher as _};

use pintle_breaker::classify::{flag, parse_retry_after};
use pintle_breaker::{Logged, Report};

use super::charge::find;
use super::{Exchange, grpc_status};
use crate::boundary::Proxy;

/// Attempts of one request that are kept, at most; what comes beyond is unknown.
const MAX_LOGGED: usize = 64;

/// By what the log of an attempt finds its request: a hash of `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId(u64);

impl RequestId {
    pub(crate) fn of(header: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(header);
        Self(hasher.finish())
    }
}

impl<P: Proxy> Exchange<P> {
    /// By what the logs of its attempts find this request, if anybody wants them.
    pub(crate) const fn id(&self) -> Option<RequestId> {
        self.id
    }

    /// Whether this request may have gone to `address`: requests to several services can have one
    /// id.
    pub(crate) fn may_go_to(&self, address: std::net::SocketAddr) -> bool {
        let Ok(worker) = self.worker.try_borrow() else { return false };
        let service = self.service_at(&worker.local).and_then(|at| worker.local.services.at(at));
        service.is_some_and(|service| service.balancer.by_address(address).is_some())
    }

    /// Keeps what the log says of an attempt of this request, as long as no answer's head has come.
    /// `None` where the worker is in the middle of something else.
    pub(crate) fn attempted(&mut self, address: &[u8]) -> Option<()> {
        let shared = self.worker.clone();
        let worker = shared.try_borrow().ok()?;
        let at = self.service_at(&worker.local);
        let Some(service) = at.and_then(|at| worker.local.services.at(at)) else { return Some(()) };
        let grpc = self.said.grpc;
        let Some(sent) = &mut self.sent else { return Some(()) };
        if sent.head.is_some() || sent.logged.len() >= MAX_LOGGED {
            return Some(());
        }
        let proxy = &self.proxy;
        // A line of another log than the router's is of the whole request.
        if proxy.attempts() > 0 {
            return Some(());
        }
        let flags = proxy.response_flags();
        // For want of room in the cluster nobody was asked.
        if flags & flag::OVERFLOW != 0 {
            return Some(());
        }
        let code = proxy.response_code();
        let status = || {
            let trailer = grpc_status(proxy.response_trailer("grpc-status"));
            trailer.or_else(|| grpc_status(proxy.response_header("grpc-status")))
        };
        let wishes = grpc || code == Some(429);
        let wish = if wishes { proxy.response_header("retry-after") } else { None };
        let report = Report {
            code,
            flags,
            head: code.is_some(),
            upstream: true,
            grpc: grpc.then(status).flatten(),
            retry_after: wish.and_then(|value| parse_retry_after(&value, proxy.now())),
            ..Report::default()
        };
        let number = u32::try_from(sent.logged.len()).unwrap_or(u32::MAX).saturating_add(1);
        let to = find(sent, service, number, Some(address));
        let outcome = pintle_breaker::classify(&report, &service.policy.breaker);
        sent.logged.push(Logged { to, outcome });
        Some(())
    }
}
