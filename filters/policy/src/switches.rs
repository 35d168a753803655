//! What operators turn off, whole services at a time.

use pintle_settings::{Section, Settings};

/// The switches of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `bypass`: the service is left to Envoy's own policy. No endpoint is selected, no breaker is
    /// asked or told, and traces stay as they are set.
    pub bypass: bool,
    /// `"mode": "shadow"`: everything is decided and counted, and Envoy's own policy is what
    /// happens.
    pub shadow: bool,
}

impl Switches {
    /// The key of the first one that leaves the choice to Envoy, if one does.
    pub(crate) const fn leaving_to_envoy(self) -> Option<&'static str> {
        match self {
            Self { bypass: true, .. } => Some("bypass"),
            Self { shadow: true, .. } => Some("mode"),
            Self { .. } => None,
        }
    }
}

/// Values of `mode`, and whether each is a shadow.
const MODES: [(&str, bool); 2] = [("active", false), ("shadow", true)];

impl Settings for Switches {
    fn read(keys: &mut Section) -> Self {
        Self { bypass: keys.flag("bypass", false), shadow: keys.word("mode", &MODES, false) }
    }
}
