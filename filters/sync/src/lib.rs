//! pintle-sync
