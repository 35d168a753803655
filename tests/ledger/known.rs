//! What today's module is known to book wrongly: a row of the table, and the columns that may be wrong in it.
//! At least one of them must be, so that whoever mends a row must take it away here.

/// Row, columns, and what is missing.
const TODAY: &[(&str, &[&str], &str)] = &[
    ("h3", &H3, "a stream of HTTP/3 ends without `proxy_on_log`"),
    ("h3-statuses", &H3, "as h3"),
    ("h3-breaker", &H3, "as h3"),
    ("h3-reset-before", &["requests"], "an attempt without an outcome is not counted"),
    ("gone-before-head", &["requests"], "as h3-reset-before"),
    ("grpc-deadline-client", &["requests"], "as h3-reset-before"),
    ("grpc-deadline-server", &["requests"], "as h3-reset-before"),
    ("sse-left", &["also"], "the life of a stream is taken for its latency"),
    ("sse-again", &["also"], "as sse-left"),
    ("ws-client-closes", &["also"], "as sse-left"),
    ("retry-404", &ATTEMPTS, "an earlier attempt is taken for failed"),
    ("retry-409", &ATTEMPTS, "as retry-404"),
    ("more-attempts", &["unknown"], "attempts past the list's end are not counted as unknown"),
    ("hedge", &ATTEMPTS, "as retry-404"),
    (
        "idle-in-request",
        &["failures", "breakers"],
        "no head is seen where the request is not whole",
    ),
    ("canary", &["requests", "failures", "unknown", "breakers"], "whoever answers is not known"),
    ("stray", &["requests", "failures", "unknown", "breakers"], "as canary"),
    ("reroute", &["requests", "failures", "unknown", "breakers"], "as canary"),
    ("aggregate", &["requests", "failures", "unknown", "breakers"], "as canary"),
    ("direct-response", &["drive"], "what goes to no cluster of ours is refused"),
    ("not-ours", &["drive"], "as direct-response"),
];

const H3: [&str; 7] =
    ["requests", "failures", "in flight", "breakers", "answers", "spans", "drive"];
const ATTEMPTS: [&str; 2] = ["failures", "breakers"];

/// The columns of this row that may be wrong, and why; none where it must be right.
pub fn of(row: &str) -> Option<(&'static [&'static str], &'static str)> {
    TODAY.iter().find(|(name, ..)| *name == row).map(|(_, columns, why)| (*columns, *why))
}
