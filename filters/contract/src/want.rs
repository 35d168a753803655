//! Which services a proxy is to be told of, where the agent does not tell all.

use crate::is_name;
use crate::wire::{DecodeError, Reader, Wire};

/// Services that one message names in either list, at most.
const MAX_WANTED: usize = 20_000;

/// What a proxy holds and what it lacks. The first of a stream names all that it holds; of services
/// that a later one wants and that are not there, the agent says so and forgets them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Services with a table, up to [`crate::Hello::have`].
    pub held: Vec<String>,
    /// Services whose tables are asked for.
    pub services: Vec<String>,
}

impl Wire for Want {
    fn put(&self, out: &mut Vec<u8>) {
        self.held.put(out);
        self.services.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let want = Self { held: Wire::take(reader)?, services: Wire::take(reader)? };
        if want.held.len() > MAX_WANTED || want.services.len() > MAX_WANTED {
            return Err(DecodeError::TooLong);
        }
        if !want.held.iter().chain(&want.services).all(|name| is_name(name)) {
            return Err(DecodeError::Invalid("service"));
        }
        Ok(want)
    }
}
