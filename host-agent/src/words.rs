//! What libraries say of a failed connection, in the words of who has to mend it.
//!
//! A transport's own words name neither cause nor remedy ("operation was canceled", "http2 error"),
//! and what is below them prints its types. So an error is told with all that lies below it, each
//! said once, and where its meaning is known, that is said instead.

use std::error::Error;
use std::io::{self, ErrorKind};

const NOT_HTTP: &str = "what answers there does not speak HTTP";
const NOT_GRPC: &str = "what answers there does not speak gRPC";
const NOT_NATS: &str = "what answers there does not speak NATS";
const NOT_TLS: &str =
    "what answers there does not speak TLS: take a URL without TLS, or the port that has it";
const UNTRUSTED: &str = "its certificate is of no authority that is trusted here";
const HUNG_UP: &str =
    "it closed the connection; if it always does, it is another kind of server, or wants TLS";

/// What rustls 0.23, tonic 0.14, hyper 1 and async-nats 0.51 say, and what it means; the first that
/// fits counts. `tests/cli/servers.rs` has servers of most kinds.
const MEANS: [(&str, &str); 17] = [
    ("InvalidContentType", NOT_TLS),
    (
        "tls handshake eof",
        "it ends the TLS handshake: it has no TLS, or wants a client's certificate",
    ),
    ("CertificateRequired", "it wants a client's certificate"),
    ("UnknownIssuer", UNTRUSTED),
    // An authority of the same name, with another key.
    ("BadSignature", UNTRUSTED),
    ("NotValidForName", "its certificate is for another name"),
    ("deadline has elapsed", "no answer in time"),
    ("invalid HTTP version", NOT_HTTP),
    ("http2 error", NOT_GRPC),
    ("expected INFO, got nothing", HUNG_UP),
    ("expected INFO", NOT_NATS),
    ("Unknown Protocol Operation", NOT_NATS),
    ("invalid server operation", NOT_NATS),
    ("operation was canceled", HUNG_UP),
    ("connection closed before message completed", HUNG_UP),
    ("connection error", HUNG_UP),
    ("end of file before message length reached", HUNG_UP),
];

/// Texts that say nothing where something lies below them.
const EMPTY: [&str; 3] = ["transport error", "connection error", "IO error"];

/// An error in words: what it is known to mean, else its own and those that lie below it.
pub(crate) fn of(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut cut, mut next) = (String::new(), false, Some(error));
    while let Some(here) = next {
        next = here.source();
        let more = here.to_string();
        cut |= here.downcast_ref::<io::Error>().is_some_and(is_cut);
        if text.contains(&more) || (next.is_some() && EMPTY.contains(&more.as_str())) {
            continue;
        }
        let colon = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{colon}{more}");
    }
    match meaning(&text) {
        Some(meant) => meant.to_owned(),
        None if cut => HUNG_UP.to_owned(),
        None => text,
    }
}

/// What a text is known to mean.
pub(crate) fn meaning(text: &str) -> Option<&'static str> {
    MEANS.iter().find(|(said, _)| text.contains(said)).map(|(_, meant)| *meant)
}

/// A call's status in words: the server's own, or what became of the connection.
pub(crate) fn of_status(status: &tonic::Status) -> String {
    match (status.source(), status.message()) {
        (Some(below), _) => of(below),
        (None, "") => status.code().to_string(),
        (None, said) => said.to_owned(),
    }
}

fn is_cut(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error over another.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Over(&'static str, #[source] io::Error);

    #[test]
    fn an_error_says_what_it_means_and_what_lies_below_it() {
        let system = |kind: ErrorKind| io::Error::from(kind);
        for (error, expect) in [
            (Over("transport error", system(ErrorKind::ConnectionReset)), HUNG_UP),
            (Over("transport error", io::Error::other("tls: InvalidContentType")), NOT_TLS),
            (Over("IO error", io::Error::other("expected INFO, got nothing")), HUNG_UP),
            (Over("IO error", io::Error::other("expected INFO, got PING")), NOT_NATS),
            (Over("transport error", system(ErrorKind::HostUnreachable)), "host unreachable"),
            (Over("reading", io::Error::other("no such thing")), "reading: no such thing"),
        ] {
            assert_eq!(of(&error), expect, "{error:?}");
        }
        let said = tonic::Status::permission_denied("etcdserver: permission denied");
        assert_eq!(of_status(&said), "etcdserver: permission denied");
        assert!(!of_status(&tonic::Status::unavailable("")).contains('{'));
    }
}
