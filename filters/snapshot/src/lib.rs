//! pintle-snapshot
