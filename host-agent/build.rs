//! Compiles the own subset of Envoy's discovery API in `proto/`.
//!
//! Own, because the published crates pin what the workspace cannot use: `xds-api` 0.2 wants tonic
//! 0.12 and prost 0.13 beside the agent's 0.14. Protobuf skips fields that it does not know, so a
//! subset with Envoy's own names and field numbers speaks the same bytes; `serve/eds/tests.rs` pins
//! them. `protoc` is needed, as it is for etcd-client.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .compile_protos(
            &["proto/xds.proto", "proto/eds.proto", "proto/endpoint.proto"],
            &["proto"],
        )?;
    Ok(())
}
