//! The server's end of HTTP calls.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::{CallRef, MAX_HTTP_BODY, UpstreamEvent, event};
use crate::headers::Headers;
use crate::vm::Thread;
use crate::world::World;

/// The server's end of an HTTP call.
#[derive(Clone)]
pub struct HttpCall {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) call: CallRef,
}

impl HttpCall {
    /// The request's headers.
    pub fn headers(&self) -> Headers {
        self.call.borrow().headers.clone()
    }

    /// The request's body.
    pub fn body(&self) -> Vec<u8> {
        self.call.borrow().body.clone()
    }

    /// The request's trailers.
    pub fn trailers(&self) -> Headers {
        self.call.borrow().trailers.clone()
    }

    /// The timeout that the guest gave; `None` is for ever.
    pub fn timeout(&self) -> Option<Duration> {
        self.call.borrow().timeout
    }

    /// The thread of the VM that called.
    pub fn thread(&self) -> Thread {
        self.call.borrow().thread
    }

    /// Whether the guest still waits.
    pub fn is_open(&self) -> bool {
        let call = self.call.borrow();
        !call.server_done && !call.cancelled
    }

    /// Answers. A body of more than 32 MiB fails, as in Envoy: the guest gets no headers.
    pub fn reply(&self, status: u32, headers: impl Into<Headers>, body: impl Into<Vec<u8>>) {
        let (extra, body) = (headers.into(), body.into());
        if body.len() > MAX_HTTP_BODY {
            return self.reset();
        }
        let mut headers = Headers::from([(":status", status.to_string())]);
        extra.iter().for_each(|(name, value)| headers.add(name, value));
        self.end(UpstreamEvent::HttpResponse { headers, body, trailers: Headers::new() });
    }

    /// Breaks the call: the guest's callback has no headers.
    pub fn reset(&self) {
        self.end(UpstreamEvent::HttpFailure);
    }

    fn end(&self, what: UpstreamEvent) {
        if self.is_open() {
            let call = &mut *self.call.borrow_mut();
            call.server_done = true;
            self.world.borrow_mut().events.push_back(event(call, what));
        }
    }
}
