//! pintle-policy
