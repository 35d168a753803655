//! Compiles the own subset of Envoy's discovery API in `proto/`.
//!
//! Own, because the published crates pin what the workspace cannot use: `xds-api` 0.2 wants tonic
//! 0.12 and prost 0.13 beside the agent's 0.14. Protobuf skips fields that it does not know, so a
//! subset with Envoy's own names and field numbers speaks the same bytes; `serve/eds/tests.rs` pins
//! them. `protoc` is needed, as it is for etcd-client.
//!
//! Of a cluster (`proto/clusters`) only the descriptors are used: a template is read and encoded by
//! them.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().build_client(true).build_server(true).compile_protos(
        &["proto/xds.proto", "proto/eds.proto", "proto/endpoint.proto"],
        &["proto"],
    )?;
    let out = std::env::var("OUT_DIR")?;
    let unused = Path::new(&out).join("clusters");
    std::fs::create_dir_all(&unused)?;
    let files = [
        "cluster",
        "override_host",
        "round_robin",
        "random",
        "least_request",
        "http",
        "header_mutation",
        "upstream_codec",
        "tls",
    ];
    let files = files.map(|file| format!("proto/clusters/{file}.proto"));
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .out_dir(unused)
        .file_descriptor_set_path(Path::new(&out).join("clusters.bin"))
        .compile_protos(&files, &["proto".to_owned()])?;
    Ok(())
}
