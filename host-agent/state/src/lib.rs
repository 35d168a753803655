//! pintle-state
