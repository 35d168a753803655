//! `pintle register`: what its flags say beside the configuration.

use std::net::IpAddr;

use clap::Args;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use super::args::ConfigArgs;
use super::orders::origin;
use crate::config::LogConfig;
use crate::logs;
use crate::registration::{self, RegisterConfig};
use crate::source::EtcdConfig;

#[derive(Debug, Args)]
pub(super) struct RegisterArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// A member of the etcd cluster; repeatable. [env: PINTLE_ETCD=, comma-separated]
    #[arg(long, value_name = "URL")]
    pub(super) etcd: Vec<String>,
    /// The prefix of services in etcd. [env: PINTLE_PREFIX=] [default: /services/]
    #[arg(long, value_name = "PREFIX")]
    pub(super) prefix: Option<String>,
    /// In another framework's form, under its prefix or --prefix.
    #[arg(long, value_enum)]
    pub(super) format: Option<crate::source::FormatName>,
    /// The URL's scheme in that form, where it has one. [default: http]
    #[arg(long, requires = "format")]
    pub(super) scheme: Option<String>,
    /// The service; with --id, --address and --port one instance without a file.
    #[arg(long, requires_all = ["id", "address", "port"])]
    pub(super) service: Option<String>,
    /// The instance's id.
    #[arg(long)]
    pub(super) id: Option<String>,
    /// The instance's address.
    #[arg(long)]
    pub(super) address: Option<IpAddr>,
    /// The instance's port.
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// KEY=VALUE; repeatable. weight, zone, region, version and protocol have a meaning.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) metadata: Vec<String>,
    /// A tag; repeatable.
    #[arg(long)]
    pub(super) tag: Vec<String>,
    /// Healthy while GET of this path answers with 2xx.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["check_grpc", "check_tcp"])]
    pub(super) check_http: Option<String>,
    /// Healthy while grpc.health.v1 says so of this service (empty: the server).
    #[arg(long, value_name = "SERVICE", conflicts_with = "check_tcp")]
    pub(super) check_grpc: Option<String>,
    /// Healthy while a connection can be made.
    #[arg(long)]
    pub(super) check_tcp: bool,
    /// How often it is checked.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub(super) check_interval: String,
    /// The lease.
    #[arg(long, value_name = "DURATION")]
    pub(super) lease: Option<String>,
    /// How long it stays draining before it is deleted.
    #[arg(long, value_name = "DURATION")]
    pub(super) drain: Option<String>,
}

/// The `register` section that the flags come to.
fn registration(args: &RegisterArgs) -> Result<RegisterConfig, CliError> {
    let own = args.prefix.iter().filter(|_| args.format.is_none());
    let prefix: Vec<String> = own.cloned().collect();
    let origin = origin(&args.config, &[("etcd", &args.etcd), ("prefix", &prefix)]);
    let etcd: EtcdConfig = origin.part("etcd")?;
    let mut keys: Map<String, Value> = origin.part("register")?;
    if let Some(format) = args.format {
        keys.insert("format".to_owned(), json!(format.as_str()));
        if let Some(prefix) = &args.prefix {
            keys.insert("prefix".to_owned(), json!(prefix));
        }
        if let Some(scheme) = &args.scheme {
            keys.insert("scheme".to_owned(), json!(scheme));
        }
    }
    if let Some(service) = &args.service {
        keys.insert("instances".to_owned(), json!([instance(service, args)?]));
    }
    for (key, value) in [("lease", &args.lease), ("drain", &args.drain)] {
        if let Some(value) = value {
            keys.insert(key.to_owned(), json!(value));
        }
    }
    let config: RegisterConfig = pintle_settings::read("register", Value::Object(keys))
        .map_err(|error| CliError::Usage(error.to_string()))?;
    config.within(etcd).map_err(|error| CliError::Usage(error.to_string()))
}

/// The instance that the flags come to.
fn instance(service: &str, args: &RegisterArgs) -> Result<Value, CliError> {
    let mut metadata = Map::new();
    for entry in &args.metadata {
        let (key, value) = entry
            .split_once('=')
            .ok_or_else(|| CliError::Usage(format!("--metadata {entry:?} is not KEY=VALUE")))?;
        metadata.insert(key.to_owned(), value.into());
    }
    let interval = &args.check_interval;
    let check = if let Some(path) = &args.check_http {
        json!({ "http": path, "interval": interval })
    } else if let Some(service) = &args.check_grpc {
        json!({ "grpc": service, "interval": interval })
    } else if args.check_tcp {
        json!({ "tcp": true, "interval": interval })
    } else {
        Value::Null
    };
    Ok(json!({
        "name": service,
        "id": args.id,
        "address": args.address,
        "port": args.port,
        "metadata": metadata,
        "tags": args.tag,
        "check": check,
    }))
}

pub(super) async fn register(args: RegisterArgs) -> Result<(), CliError> {
    let config = registration(&args)?;
    logs::start(&LogConfig::default()).map_err(|error| CliError::Usage(error.to_string()))?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    });
    registration::register(config, stop).await;
    Ok(())
}
