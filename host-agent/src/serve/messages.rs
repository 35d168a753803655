//! The body of a request, cut where its gRPC messages end
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, Length-Prefixed-Message).
//!
//! A reader of messages keeps room for the largest that came. Envoy's first on a discovery stream
//! names all of its extensions (74 KB, 1.40), those after it a few names, and it opens a stream for
//! each cluster. Cut like this nothing of the next message is in a reader that has just given one,
//! so that another can take its place and the room is free.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec as _, Streaming};
use tonic_prost::ProstCodec;

/// Bytes of a message that a reader may keep room for.
const KEPT: usize = 8 << 10;
/// Bytes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A request's body for one reader after another.
#[derive(Clone)]
pub(in crate::serve) struct Messages(Arc<Mutex<Whole>>);

struct Whole {
    body: Body,
    /// What came and was not given on.
    rest: Bytes,
    cut: Cut,
}

/// How far a message is.
#[derive(Debug, Default)]
struct Cut {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that came.
    known: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// Bytes of the last whole message.
    last: usize,
}

impl Cut {
    /// How many of these bytes belong to the message that is under way.
    fn take(&mut self, data: &[u8]) -> usize {
        let mut taken = 0;
        while self.known < PREFIX {
            let Some(byte) = data.get(taken) else { return taken };
            if let Some(place) = self.prefix.get_mut(self.known) {
                *place = *byte;
            }
            (taken, self.known) = (taken + 1, self.known + 1);
            if self.known == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.last = self.left;
            }
        }
        let more = self.left.min(data.len() - taken);
        self.left -= more;
        if self.left == 0 {
            self.known = 0;
        }
        taken + more
    }
}

impl Messages {
    pub(in crate::serve) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Whole { body, rest: Bytes::new(), cut: Cut::default() })))
    }

    /// Whether whoever has read the last message should not be kept.
    pub(in crate::serve) fn was_large(&self) -> bool {
        self.lock().cut.last > KEPT
    }

    /// A reader of the messages to come, for after a message.
    pub(in crate::serve) fn reader<T>(&self) -> Streaming<T>
    where
        T: prost::Message + Default + Send + 'static,
    {
        let decoder = ProstCodec::<T, T>::default().decoder();
        Streaming::new_request(decoder, self.clone(), None, None)
    }

    fn lock(&self) -> MutexGuard<'_, Whole> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let whole = &mut *self.lock();
        if whole.rest.is_empty() {
            match ready!(Pin::new(&mut whole.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => whole.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let taken = whole.cut.take(&whole.rest);
        Poll::Ready(Some(Ok(Frame::data(whole.rest.split_to(taken)))))
    }

    fn is_end_stream(&self) -> bool {
        let whole = self.lock();
        whole.rest.is_empty() && whole.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
