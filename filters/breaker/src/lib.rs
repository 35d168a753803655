//! pintle-breaker
