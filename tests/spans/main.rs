//! Trace propagation and spans on a real Envoy with two workers: what the upstream receives, what
//! the collector receives, and what neither costs a request.
//!
//! The rules themselves are held by `filters/trace`, case by case. Here stands what only an Envoy
//! can show: that its header map keeps duplicates apart and in order, that its own tracer and the
//! module can be told who of them writes, that a retry is a retry, that 96 KiB of headers arrive
//! and are survived, and that a collector in any state is nothing to a request. Spans are decoded
//! with the published OpenTelemetry protocol, never with ours.

mod collector;
mod decision;
mod formats;
mod headers;
mod hostile;
mod native;
mod otlp;
mod sampling;
mod suite;
mod support;
