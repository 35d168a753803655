//! pintle-balance
