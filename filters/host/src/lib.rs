//! pintle-host
