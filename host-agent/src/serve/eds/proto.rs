//! What `build.rs` generated from `proto/`, in modules named as the packages are.

#![allow(missing_docs, reason = "generated; the .proto files hold the words")]
#![allow(
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    unused_qualifications,
    elided_lifetimes_in_paths,
    reason = "generated"
)]

pub mod envoy {
    pub mod config {
        pub mod endpoint {
            pub mod v3 {
                tonic::include_proto!("envoy.config.endpoint.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
        pub mod endpoint {
            pub mod v3 {
                tonic::include_proto!("envoy.service.endpoint.v3");
            }
        }
    }
}
