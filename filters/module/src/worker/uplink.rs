//! The line to the agent: the leader's stream, and what waits for it.
//!
//! Keys: none.

use std::collections::VecDeque;

use pintle_contract::{Hello, Message, Now, Schema, Up, Version};
use pintle_hostcalls as host;
use pintle_sync::{Action, Stream};

use crate::counters::{Count, Counters};

/// Messages that wait for the agent, at most; the oldest go first.
const MAX_OUTBOX: usize = 512;
/// Envoy's property with the id of this proxy.
const NODE_ID: &[u8] = b"xds\0node\0id";
/// The variable with the token that tells this Envoy from others with its node id, given by
/// `host_env_keys`. Only needed where the agent can't see the process of its peers: in another pid
/// namespace.
const TOKEN: &str = "PINTLE_TOKEN";
/// gRPC's status of a stream whose frames the agent can't use.
const INVALID_ARGUMENT: u32 = 3;
/// The metadata in which the token goes.
const TOKEN_HEADER: &str = "x-pintle-token";

/// The newest schema that this module reads, for the agent.
const READS: &[u8] = b"3";

/// The stream of one VM, open while it leads.
pub(crate) struct Uplink {
    proxy: String,
    stream: Stream,
    outbox: VecDeque<Vec<u8>>,
    /// What the agent has said that it reads, since the stream opened.
    schema: Schema,
    /// Frames of the agent's that could not be used.
    refused: u64,
    /// The version that the agent was last told this worker holds.
    told: Version,
}

impl Uplink {
    pub(crate) fn new() -> Self {
        let proxy = host::property(NODE_ID).unwrap_or_default();
        Self {
            proxy: String::from_utf8_lossy(&proxy).into_owned(),
            stream: Stream::default(),
            outbox: VecDeque::new(),
            schema: Schema::One,
            refused: 0,
            told: Version::default(),
        }
    }

    /// Opens the stream if it is time to, and ends it if it is silent. Whether it was opened: the
    /// hello has to follow.
    pub(crate) fn run(&mut self, cluster: &str, now: Now, random: u32) -> bool {
        match self.stream.tick(true, now, random) {
            Action::Nothing => false,
            Action::Cancel(token) => {
                let _ = host::cancel_grpc(token);
                false
            }
            Action::Open => {
                let token = std::env::var(TOKEN).unwrap_or_default();
                let mut metadata = vec![(Schema::HEADER, READS)];
                if !token.is_empty() {
                    metadata.push((TOKEN_HEADER, token.as_bytes()));
                }
                let service = "pintle.v1.Sync";
                let opened = host::open_grpc_stream(cluster, service, "Watch", metadata).ok();
                self.stream.opened(opened, now, random);
                self.schema = Schema::One;
                opened.is_some()
            }
        }
    }

    /// Whether there is a stream to the agent.
    pub(crate) fn is_open(&self) -> bool {
        self.stream.token().is_some()
    }

    /// Ends the stream, as this VM does not lead, or not under the same fence as before.
    pub(crate) fn stop(&mut self, now: Now) {
        if let Action::Cancel(token) = self.stream.tick(false, now, 0) {
            let _ = host::cancel_grpc(token);
        }
    }

    /// Says who asks, the first message of a stream.
    pub(crate) fn greet(&mut self, worker: u64, fence: u64, have: Version) {
        let Some(token) = self.stream.token() else { return };
        let hello = Hello { proxy: self.proxy.clone(), worker, fence, have };
        let _ = host::send_grpc_message(token, &Up::Hello(hello).encode());
        self.told = Version::default();
    }

    /// Whether this is a message of the open stream.
    pub(crate) fn heard(&mut self, token: u32, now: Now) -> bool {
        self.stream.heard(token, now)
    }

    /// A frame of the agent's was read: it says by it what it reads. Whether it is the first to say
    /// that the agent tells only what is wanted.
    pub(crate) fn learn(&mut self, frame: &[u8]) -> bool {
        let before = self.schema;
        self.schema = before.max(Schema::of(frame));
        before < Schema::Three && self.schema == Schema::Three
    }

    /// Whether there is an agent that tells only what is wanted.
    pub(crate) fn is_lazy(&self) -> bool {
        self.stream.token().is_some() && self.schema == Schema::Three
    }

    /// A frame of the agent's was refused; how many of this VM's were, where that is worth a line:
    /// a peer of another schema sends nothing else.
    pub(crate) const fn refused(&mut self) -> Option<u64> {
        self.refused = self.refused.saturating_add(1);
        if self.refused.is_power_of_two() { Some(self.refused) } else { None }
    }

    /// Envoy says that a stream has ended, with this gRPC status.
    pub(crate) fn closed(&mut self, token: u32, status: u32, now: Now, random: u32) {
        self.stream.closed(token, status == INVALID_ARGUMENT, now, random);
    }

    /// Queues a message and sends what can be sent. Of too many the oldest are dropped and counted.
    pub(crate) fn send(&mut self, message: Vec<u8>, counters: &mut Counters) {
        if self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
            counters.add(Count::ReportDropped);
        }
        self.outbox.push_back(message);
        self.flush();
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        let Some(token) = self.stream.token() else { return };
        while let Some(mut message) = self.outbox.pop_front() {
            // Waited for the stream, or came from a worker that doesn't know what the agent reads.
            if Schema::of(&message) > self.schema
                && let Ok(up) = Up::decode(&message)
            {
                if matches!(up, Up::Want(_)) {
                    // Such an agent tells everything.
                    continue;
                }
                message = up.encode_for(self.schema);
            }
            if host::send_grpc_message(token, &message).is_err() {
                self.outbox.push_front(message);
                return;
            }
        }
    }

    /// What waits, for another VM to send.
    pub(crate) fn take(&mut self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether the agent has yet to be told that this worker holds `version`; then it counts as
    /// told.
    pub(crate) fn is_news(&mut self, version: Version) -> bool {
        let news = version > self.told;
        if news {
            self.told = version;
        }
        news
    }

    /// The agent has to be told again which version this worker holds.
    pub(crate) fn tell_again(&mut self) {
        self.told = Version::default();
    }
}
