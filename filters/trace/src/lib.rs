//! pintle-trace
