//! A real Prometheus, which scrapes what a test tells it to and answers what a dashboard would ask.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, Server, Spec};
use crate::{Error, Port, Result, http, tools};

const READY: Duration = Duration::from_secs(30);
const CONFIG: &str = "prometheus.yaml";

/// One Prometheus server.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    port: Port,
}

impl Prometheus {
    /// A server with this configuration, beside which these files (names and texts) lie.
    pub async fn start(config: &str, files: &[(&str, &str)]) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-prometheus-")?;
        let port = Port::take()?;
        for (name, text) in files.iter().chain(&[(CONFIG, config)]) {
            std::fs::write(dir.path().join(name), text)?;
        }
        let path = |name| dir.path().join(name).display().to_string();
        let own = [
            ("--config.file", path(CONFIG)),
            ("--storage.tsdb.path", path("data")),
            ("--web.listen-address", port.addr().to_string()),
            ("--log.level", "warn".into()),
        ];
        let args = own.into_iter().map(|(flag, value)| format!("{flag}={value}")).collect();
        let program = tools::prometheus()?;
        let spec = Spec { name: "prometheus".into(), program, args, envs: Vec::new() };
        let mut process = Process::spawn(spec, dir)?;
        let addr = port.addr();
        let ready = async || http::get(addr, "/-/ready").await.is_ok_and(|r| r.status == 200);
        process.wait_ready(READY, ready).await?;
        Ok(Self { process, port })
    }

    /// Where it answers.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// The series that an expression comes to now; an error when it is none.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.ask(&format!("query?query={}", percent_encoded(expression))).await;
        let data = data.map_err(|e| e.during(expression))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// The names of all metrics that it has scraped.
    pub async fn names(&self) -> Result<BTreeSet<String>> {
        let data = self.ask("label/__name__/values").await?;
        let names = data.as_array().into_iter().flatten();
        Ok(names.filter_map(|name| Some(name.as_str()?.to_owned())).collect())
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> Result<BTreeSet<String>> {
        let data = self.ask("alerts").await?;
        let alerts = data["alerts"].as_array().into_iter().flatten();
        let firing = alerts.filter(|alert| alert["state"] == "firing");
        Ok(firing.filter_map(|it| Some(it["labels"]["alertname"].as_str()?.to_owned())).collect())
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = http::get(self.addr(), &format!("/api/v1/{path}")).await?.json()?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].clone()),
            false => Err(Error::new(answer["error"].to_string())),
        }
    }
}

impl Server for Prometheus {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
