//! The kinds of traffic, by family.

mod attempts;
mod between;
mod elsewhere;
mod ends;
mod filters;
mod grpc;
mod http3;
mod logged;
mod odd;
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
        logged::rows(),
        elsewhere::rows(),
        ends::rows(),
        odd::rows(),
        between::rows(),
        filters::rows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Those whose protocols Envoy has changed most between its versions, and those that rest on what
/// it logs.
pub fn protocols() -> Vec<Row> {
    [http3::rows(), streams::rows(), grpc::rows(), logged::rows()].into_iter().flatten().collect()
}
