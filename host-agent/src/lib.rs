//! pintle-agent
