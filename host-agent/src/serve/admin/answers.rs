//! How much of what was answered may wait for its readers.
//!
//! An answer is on the account until the connection has taken it over into the kernel or ended.
//! When [`MAX_BYTES`] wait already, the next large one is refused with 503; health is small and
//! always answered. The text of `/metrics` is made at most once in [`FRESH`] and shared by all who
//! ask for it meanwhile, so that scraping costs the same however many scrape.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fail;
use crate::serve::metrics::Metrics;

/// Bytes of answers that wait for their readers.
const MAX_BYTES: usize = 64 << 20;
/// Answers up to this size are not counted: the connections are.
const SMALL: u64 = 16 << 10;
/// Bytes that are handed to the connection at once.
const PIECE: usize = 64 << 10;
/// Answers that are being made at once; the next one waits.
const MAKERS: usize = 4;
/// How old a text of `/metrics` may be.
const FRESH: Duration = Duration::from_millis(250);

/// The accounts.
#[derive(Debug)]
pub(super) struct Answers {
    bytes: Arc<Semaphore>,
    makers: Semaphore,
    texts: Mutex<Vec<Text>>,
}

/// A text of `/metrics`.
#[derive(Clone, Debug)]
struct Text {
    made: Instant,
    kind: &'static str,
    body: Bytes,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(MAX_BYTES >> 10)),
            makers: Semaphore::new(MAKERS),
            texts: Mutex::default(),
        }
    }

    /// The exposition for `accept`, with its type.
    pub(super) fn metrics(&self, metrics: &Metrics, accept: &str) -> (&'static str, Bytes) {
        let kind = Metrics::kind(accept);
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        texts.retain(|text| text.made.elapsed() < FRESH);
        if let Some(text) = texts.iter().find(|text| text.kind == kind) {
            return (kind, text.body.clone());
        }
        let body = Bytes::from(metrics.expose(accept).1);
        texts.push(Text { made: Instant::now(), kind, body: body.clone() });
        (kind, body)
    }
}

/// Lets few answers be made at once, and few bytes wait. Health passes by, and so does `/metrics`,
/// whose bytes are shared.
pub(super) async fn bounded(
    State(answers): State<Arc<Answers>>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(request.uri().path(), "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    let shared = request.uri().path() == "/metrics";
    let response = {
        let _maker = answers.makers.acquire().await;
        next.run(request).await
    };
    let size = response.body().size_hint().exact().unwrap_or(0);
    if shared || size <= SMALL {
        return response;
    }
    let kilobytes = u32::try_from(size >> 10).unwrap_or(u32::MAX);
    let Ok(place) = Arc::clone(&answers.bytes).try_acquire_many_owned(kilobytes) else {
        return fail(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many answers wait for readers that are slow; try again",
        );
    };
    let (head, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(rest) => Response::from_parts(head, Body::new(Held { rest, _place: place })),
        Err(error) => fail(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A body on the account. It goes in pieces that are copies: hyper takes no more than it can write
/// soon, and what it has taken keeps none of the rest alive.
struct Held {
    rest: Bytes,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = PIECE.min(self.rest.len());
        let piece = self.rest.split_to(piece);
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn answers_that_nobody_takes_are_bounded() {
        let answers = Arc::new(Answers::new());
        let router = Router::new()
            .route("/v1/services", get(|| async { vec![7_u8; 20 << 20] }))
            .route("/readyz", get(|| async { "ready" }))
            .layer(from_fn_with_state(Arc::clone(&answers), bounded));
        let ask = async |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap()
        };
        let mut held = Vec::new();
        for status in [200, 200, 200, 503] {
            held.push(ask("/v1/services").await);
            assert_eq!(held.last().unwrap().status(), status);
        }
        assert_eq!(ask("/readyz").await.status(), 200);
        let taken = to_bytes(held.remove(0).into_body(), usize::MAX).await.unwrap();
        assert_eq!(taken.len(), 20 << 20);
        assert_eq!(ask("/v1/services").await.status(), 200, "there is room again");
    }
}
