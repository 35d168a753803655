//! pintle-harness
