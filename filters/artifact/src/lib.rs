//! pintle-artifact
