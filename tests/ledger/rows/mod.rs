//! The kinds of traffic, by family.

mod attempts;
mod elsewhere;
mod ends;
mod grpc;
mod http3;
mod plain;
mod streams;

use crate::row::Row;

/// Every kind.
pub fn all() -> Vec<Row> {
    [
        plain::rows(),
        http3::rows(),
        streams::rows(),
        grpc::rows(),
        attempts::rows(),
        elsewhere::rows(),
        ends::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Those whose protocols Envoy has changed most between its versions.
pub fn protocols() -> Vec<Row> {
    [http3::rows(), streams::rows(), grpc::rows()].into_iter().flatten().collect()
}
