//! The server's end of gRPC calls: streams and unary.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::{CallRef, UpstreamEvent, broken, event};
use crate::headers::Headers;
use crate::vm::Thread;
use crate::world::World;

/// The server's end of a gRPC stream.
#[derive(Clone)]
pub struct ServerStream {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) call: CallRef,
}

impl ServerStream {
    /// The gRPC service's full name.
    pub fn service(&self) -> String {
        self.call.borrow().service.clone()
    }

    /// The method's name.
    pub fn method(&self) -> String {
        self.call.borrow().method.clone()
    }

    /// The initial metadata that the guest sent.
    pub fn metadata(&self) -> Headers {
        self.call.borrow().headers.clone()
    }

    /// The thread of the VM that opened the stream. A server cannot know it; a test may.
    pub fn thread(&self) -> Thread {
        self.call.borrow().thread
    }

    /// The oldest message of the guest that was not taken.
    pub fn recv(&self) -> Option<Vec<u8>> {
        self.call.borrow_mut().inbox.pop_front()
    }

    /// Whether both ends are still there.
    pub fn is_open(&self) -> bool {
        let call = self.call.borrow();
        !call.server_done && !call.cancelled
    }

    /// Whether the guest said that it sends no more.
    pub fn half_closed(&self) -> bool {
        self.call.borrow().half_closed
    }

    /// Whether the guest's end is gone: it cancelled, or its VM was replaced.
    pub fn cancelled(&self) -> bool {
        self.call.borrow().cancelled
    }

    /// Answers with initial metadata. The first [`send`](Self::send) does it by itself.
    pub fn send_metadata(&self, metadata: impl Into<Headers>) {
        let metadata = metadata.into();
        let call = &mut *self.call.borrow_mut();
        if call.responded || call.server_done || call.cancelled {
            return;
        }
        call.responded = true;
        let mut headers = Headers::from([(":status", "200"), ("content-type", "application/grpc")]);
        metadata.iter().for_each(|(name, value)| headers.add(name, value));
        let event = event(call, UpstreamEvent::InitialMetadata(headers));
        self.world.borrow_mut().events.push_back(event);
    }

    /// Sends a message; false when the stream is over.
    pub fn send(&self, message: impl Into<Vec<u8>>) -> bool {
        if !self.is_open() {
            return false;
        }
        self.send_metadata(Headers::new());
        let event = event(&self.call.borrow(), UpstreamEvent::Message(message.into()));
        self.world.borrow_mut().events.push_back(event);
        true
    }

    /// Ends the stream with a status; 0 is a clean end. The guest sees Envoy's addition to the
    /// message.
    pub fn close(&self, status: u32, message: &str) {
        if !self.is_open() {
            return;
        }
        // An end without an answer is trailers alone: Envoy gives empty initial metadata first.
        let call = &mut *self.call.borrow_mut();
        let mut trailers = Headers::from([("grpc-status", status.to_string())]);
        if !message.is_empty() {
            trailers.add("grpc-message", message);
        }
        let message =
            if message.is_empty() { String::new() } else { format!("{message}{{via_upstream}}") };
        let mut world = self.world.borrow_mut();
        if !call.responded {
            world.events.push_back(event(call, UpstreamEvent::InitialMetadata(Headers::new())));
        }
        (call.responded, call.server_done) = (true, true);
        world.events.push_back(event(call, UpstreamEvent::TrailingMetadata(trailers)));
        world.events.push_back(event(call, UpstreamEvent::Close { status, message }));
    }

    /// Breaks the connection: status 13 when the stream was answered, else 14.
    pub fn reset(&self) {
        if self.is_open() {
            let events = broken(&mut self.call.borrow_mut());
            self.world.borrow_mut().events.extend(events);
        }
    }
}

/// The server's end of a unary gRPC call.
#[derive(Clone)]
pub struct UnaryCall {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) call: CallRef,
}

impl UnaryCall {
    /// The gRPC service's full name.
    pub fn service(&self) -> String {
        self.call.borrow().service.clone()
    }

    /// The method's name.
    pub fn method(&self) -> String {
        self.call.borrow().method.clone()
    }

    /// The initial metadata that the guest sent.
    pub fn metadata(&self) -> Headers {
        self.call.borrow().headers.clone()
    }

    /// The request message.
    pub fn message(&self) -> Vec<u8> {
        self.call.borrow().body.clone()
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

    /// Answers.
    pub fn reply(&self, message: impl Into<Vec<u8>>) {
        self.end(UpstreamEvent::Message(message.into()));
    }

    /// Fails with a gRPC status other than 0.
    pub fn fail(&self, status: u32, message: &str) {
        let message = format!("{message}{{via_upstream}}");
        self.end(UpstreamEvent::Close { status, message });
    }

    fn end(&self, what: UpstreamEvent) {
        if self.is_open() {
            let call = &mut *self.call.borrow_mut();
            call.server_done = true;
            self.world.borrow_mut().events.push_back(event(call, what));
        }
    }
}
