//! The status page: one file, without any other.
//!
//! It asks nothing of any other origin (the policy below would not let it), takes its state from
//! `/v1/events?state=1`, and writes what it gets as text, never as HTML. It orders nothing: where
//! something can be done, it shows what to type.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::response::{IntoResponse, Response};

/// The page.
pub(crate) const HTML: &str = include_str!("page.html");

/// Own inline script and style alone, own origin alone, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The page with its headers.
pub(crate) async fn page() -> Response {
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-store"),
        ],
        HTML,
    )
        .into_response()
}

#[cfg(test)]
mod tests;
