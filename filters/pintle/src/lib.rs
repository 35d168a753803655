//! pintle
