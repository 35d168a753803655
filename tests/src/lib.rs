//! pintle-tests
