//! The life of the Watch stream, seen from the leader.
//!
//! ```text
//!            tick, leading, due          opened
//!   Idle ───────────────────────▶ Open ─────────▶ Open (Hello sent by the caller)
//!    ▲  wait: full jitter, up to 250 ms  │  any frame: alive, back-off forgotten
//!    └────── closed | silent 5 s | not leading any more ┘
//! ```
//! A stream is opened from a tick only. Opening from the callback that reports its end was seen to
//! loop 18,726 times in 2.5 s while the agent was down, and to crash Envoy at shutdown.

use std::time::Duration;

use pintle_contract::Now;

/// The first wait after a stream ended; a restarted agent is found again within a tick or two.
const WAIT_MIN: Duration = Duration::from_millis(50);
/// The longest wait. The agent is on this machine and serves this proxy: there is no herd to
/// spread, and what it learns on its return should be in force within a second of it.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// The wait after the agent could not use what it was sent: the same again is no better.
const WAIT_REFUSED: Duration = Duration::from_secs(5);
/// The agent sends a heartbeat a second. Five missed ones are a stopped process or a dead socket.
const SILENCE: Duration = Duration::from_secs(5);

/// What the caller has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Open the stream and tell [`Stream::opened`].
    Open,
    /// Cancel the stream with this token; it is forgotten already.
    Cancel(u32),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle { due: Now },
    Open { token: u32, heard: Now },
}

/// The stream of one VM.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    state: State,
    /// The longest that the next wait may be.
    wait: Duration,
}

impl Default for Stream {
    fn default() -> Self {
        Self { state: State::Idle { due: Now(0) }, wait: WAIT_MIN }
    }
}

impl Stream {
    /// Once a tick. `random` spreads the waits.
    pub fn tick(&mut self, leading: bool, now: Now, random: u32) -> Action {
        match self.state {
            State::Open { token, heard } if !leading || now.since(heard) > SILENCE => {
                if leading {
                    self.wait_for(now, random);
                } else {
                    // A later term starts afresh.
                    *self = Self::default();
                }
                Action::Cancel(token)
            }
            // A due time that a wait could not have set comes from a clock that stepped back.
            State::Idle { due } if leading && (due <= now || due > now.after(WAIT_REFUSED)) => {
                Action::Open
            }
            _ => Action::Nothing,
        }
    }

    /// How opening went: the token, or `None` when the host refused.
    pub fn opened(&mut self, token: Option<u32>, now: Now, random: u32) {
        match token {
            Some(token) => self.state = State::Open { token, heard: now },
            None => self.wait_for(now, random),
        }
    }

    /// A message came. Whether it is of the stream that counts.
    pub fn heard(&mut self, token: u32, now: Now) -> bool {
        match &mut self.state {
            State::Open { token: current, heard } if *current == token => {
                *heard = now;
                self.wait = WAIT_MIN;
                true
            }
            _ => false,
        }
    }

    /// The host says that the stream has ended; `refused`: for what was sent on it. Whether it was
    /// the one that counts.
    pub fn closed(&mut self, token: u32, refused: bool, now: Now, random: u32) -> bool {
        let current = self.token() == Some(token);
        if current && refused {
            self.state = State::Idle { due: now.after(WAIT_REFUSED) };
        } else if current {
            self.wait_for(now, random);
        }
        current
    }

    /// The open stream's token.
    #[must_use]
    pub const fn token(&self) -> Option<u32> {
        match self.state {
            State::Open { token, .. } => Some(token),
            State::Idle { .. } => None,
        }
    }

    fn wait_for(&mut self, now: Now, random: u32) {
        let share = f64::from(random) / f64::from(u32::MAX);
        self.state = State::Idle { due: now.after(self.wait.mul_f64(share)) };
        self.wait = self.wait.saturating_mul(2).min(WAIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now::from_millis(1_000_000 + millis)
    }

    #[test]
    fn only_the_leader_opens_and_a_lost_term_cancels() {
        let mut stream = Stream::default();
        assert_eq!(stream.tick(false, at(0), 0), Action::Nothing);
        assert_eq!(stream.tick(true, at(100), 0), Action::Open);
        stream.opened(Some(7), at(100), 0);
        assert_eq!(stream.tick(true, at(200), 0), Action::Nothing);
        assert_eq!(stream.tick(false, at(300), 0), Action::Cancel(7));
        assert_eq!(stream.token(), None);
    }

    #[test]
    fn waits_double_to_a_quarter_of_a_second_and_a_message_resets_them() {
        let mut stream = Stream::default();
        let mut now = at(0);
        for longest in [50, 100, 200, 250, 250] {
            stream.opened(None, now, u32::MAX);
            assert_eq!(
                stream.tick(true, now.after(Duration::from_millis(longest - 1)), 0),
                Action::Nothing
            );
            now = now.after(Duration::from_millis(longest));
            assert_eq!(stream.tick(true, now, 0), Action::Open, "after {longest} ms");
        }
        stream.opened(Some(1), now, 0);
        assert!(stream.heard(1, now));
        assert!(stream.closed(1, false, now, u32::MAX));
        assert_eq!(stream.tick(true, now.after(Duration::from_millis(50)), 0), Action::Open);
    }

    #[test]
    fn an_agent_that_refuses_is_left_alone_for_five_seconds() {
        let mut stream = Stream::default();
        stream.opened(Some(1), at(0), 0);
        assert!(stream.closed(1, true, at(10), 0));
        assert_eq!(stream.tick(true, at(5_009), 0), Action::Nothing);
        assert_eq!(stream.tick(true, at(5_010), 0), Action::Open);
    }

    #[test]
    fn five_silent_seconds_end_a_stream() {
        let mut stream = Stream::default();
        stream.opened(Some(1), at(0), 0);
        assert!(stream.heard(1, at(4_000)));
        assert_eq!(stream.tick(true, at(9_000), 0), Action::Nothing);
        assert_eq!(stream.tick(true, at(9_001), 0), Action::Cancel(1));
    }

    #[test]
    fn what_an_old_stream_says_counts_for_nothing() {
        let mut stream = Stream::default();
        stream.opened(Some(2), at(0), 0);
        assert!(!stream.heard(1, at(1)));
        assert!(!stream.closed(1, false, at(1), 0));
        assert_eq!(stream.token(), Some(2));
    }

    #[test]
    fn a_clock_that_steps_back_an_hour_does_not_delay_the_next_try() {
        let mut stream = Stream::default();
        stream.opened(None, at(3_600_000), u32::MAX);
        assert_eq!(stream.tick(true, at(0), 0), Action::Open);
    }
}
