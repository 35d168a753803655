//! A real Envoy with a patched copy of the shipped configuration, two workers unless told
//! otherwise: what is shared between workers is what most often breaks, and one worker never shows
//! it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::{Process, Server, Spec};
use crate::{EnvoyConfig, Error, Patience, Port, Result, http, tools};

/// Compiling the module takes under a second on an idle machine; this is for a busy one.
const READY: Duration = Duration::from_secs(60);

/// One Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    http: Port,
    admin: Port,
    hot: Option<Hot>,
}

/// What the lives of an Envoy share that hand over to each other.
#[derive(Debug)]
struct Hot {
    epoch: u32,
    /// The life that drains.
    before: Option<Child>,
    /// `hot_restart_impl.cc` makes this file and leaves it behind.
    memory: PathBuf,
}

impl Envoy {
    /// Two workers; ready means that the listener accepts.
    pub async fn start(config: EnvoyConfig) -> Result<Self> {
        Self::start_with(config, 2, &[]).await
    }

    /// The same with so many seconds for draining, and [`Envoy::hot_restart`] is allowed.
    pub async fn start_restartable(config: EnvoyConfig, drain: u32) -> Result<Self> {
        let (http, admin) = (Port::take()?, Port::take()?);
        // Hot restart takes a name of the machine: ten of them from each base, and no port is taken
        // twice.
        let base = u32::from(admin.number());
        let memory = PathBuf::from(format!("/dev/shm/envoy_shared_memory_{}", base * 10));
        let (base, end, drain) = (base.to_string(), (drain + 1).to_string(), drain.to_string());
        let drain = ["--drain-time-s", &drain, "--parent-shutdown-time-s", &end];
        let args = [&drain[..], &["--base-id", &base, "--restart-epoch", "0"]].concat();
        let mut envoy = Self::launch_at(tools::envoy()?, config, (http, admin), 2, &args)?;
        envoy.hot = Some(Hot { epoch: 0, before: None, memory });
        envoy.wait_ready().await?;
        Ok(envoy)
    }

    /// The oldest Envoy that is supported, two workers.
    pub async fn start_oldest(config: EnvoyConfig) -> Result<Self> {
        let mut envoy = Self::launch_of(tools::oldest_envoy()?, config, 2, &[])?;
        envoy.wait_ready().await?;
        Ok(envoy)
    }

    /// So many workers, and more arguments, for example `["-l", "debug"]`.
    pub async fn start_with(config: EnvoyConfig, workers: u32, args: &[&str]) -> Result<Self> {
        let mut envoy = Self::launch(config, workers, args)?;
        envoy.wait_ready().await?;
        Ok(envoy)
    }

    /// As this user of root's group, from copies of the binary and the module that everybody may
    /// read; whoever calls is root.
    pub async fn start_as(user: u32, config: EnvoyConfig) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-envoy-as-")?;
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), all.clone())?;
        let (program, module) = (dir.path().join("envoy"), dir.path().join("pintle.wasm"));
        std::fs::copy(tools::envoy()?, &program)?;
        std::fs::copy(tools::module()?, &module)?;
        std::fs::set_permissions(&program, all)?;
        let mut envoy = Self::launch(config.wasm(&module), 2, &[])?;
        let spec = envoy.process.spec();
        let become_user = format!(
            "chmod -R a+rX $(dirname $2) && exec setpriv --reuid {user} --regid 0 --clear-groups -- {} \"$@\"",
            program.display()
        );
        spec.program = "sh".into();
        spec.args.splice(0..0, ["-c".to_owned(), become_user, "sh".to_owned()]);
        envoy.process.restart()?;
        envoy.wait_ready().await?;
        Ok(envoy)
    }

    /// Starts without waiting, for tests of the start itself.
    pub fn launch(config: EnvoyConfig, workers: u32, args: &[&str]) -> Result<Self> {
        Self::launch_of(tools::envoy()?, config, workers, args)
    }

    fn launch_of(
        program: PathBuf,
        config: EnvoyConfig,
        workers: u32,
        args: &[&str],
    ) -> Result<Self> {
        let ports = (Port::take()?, Port::take()?);
        let own = ["--disable-hot-restart", "--drain-time-s", "1", "--parent-shutdown-time-s", "2"];
        let args = [&own, args].concat();
        Self::launch_at(program, config, ports, workers, &args)
    }

    fn launch_at(
        program: PathBuf,
        mut config: EnvoyConfig,
        (http, admin): (Port, Port),
        workers: u32,
        args: &[&str],
    ) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-envoy-")?;
        config.listen(admin.addr(), http.addr());
        let file = dir.path().join("envoy.json");
        std::fs::write(&file, config.to_json())?;
        let (file, workers) = (file.display().to_string(), workers.to_string());
        let own = ["-c", &file, "--concurrency", &workers];
        let args = own.iter().chain(args).map(|a| (*a).to_string()).collect();
        let spec = Spec { name: "envoy".into(), program, args, envs: Vec::new() };
        Ok(Self { process: Process::spawn(spec, dir)?, http, admin, hot: None })
    }

    /// Waits until the server says that it is live and the listener accepts.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let (admin, listener) = (self.admin.addr(), self.http.addr());
        let live = async || {
            let reply = http::get(admin, "/ready").await;
            reply.is_ok_and(|r| r.status == 200) && TcpStream::connect(listener).await.is_ok()
        };
        self.process.wait_ready(READY, live).await
    }

    /// Whether Envoy accepts this configuration (`--mode validate`); its complaint when not.
    pub async fn validate(mut config: EnvoyConfig) -> Result<()> {
        let dir = TempDir::with_prefix("pintle-envoy-")?;
        let (http, admin) = (Port::take()?, Port::take()?);
        config.listen(admin.addr(), http.addr());
        let file = dir.path().join("envoy.json");
        std::fs::write(&file, config.to_json())?;
        let mut command = tokio::process::Command::new(tools::envoy()?);
        command.args(["--mode", "validate", "-l", "warn", "-c"]).arg(&file).kill_on_drop(true);
        let done = tokio::time::timeout(READY, command.output()).await??;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // A deprecated field is a warning today and an error in the next version.
        match done.status.success() && !said.contains("[warning]") {
            true => Ok(()),
            false => Err(Error::new(said)),
        }
    }

    /// Where requests go.
    pub fn addr(&self) -> SocketAddr {
        self.http.addr()
    }

    /// The admin interface.
    pub fn admin(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// Starts it again on the same ports with the same configuration.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait_ready().await
    }

    /// A new process takes the listeners over; the one before drains, see [`Envoy::drained`].
    pub async fn hot_restart(&mut self) -> Result<()> {
        let hot = self.hot.as_mut().ok_or_else(not_hot)?;
        hot.epoch += 1;
        let (epoch, admin) = (hot.epoch, self.admin.addr());
        if let Some(last) = self.process.spec().args.last_mut() {
            *last = epoch.to_string();
        }
        hot.before = Some(self.process.start_successor()?);
        // The one before gives up the admin address first.
        let took_over = async || {
            let info = http::get(admin, "/server_info").await.and_then(|reply| reply.json());
            info.is_ok_and(|info| {
                let now = &info["command_line_options"]["restart_epoch"];
                info["state"] == "LIVE" && *now == epoch
            })
        };
        self.process.wait_ready(READY, took_over).await
    }

    /// Waits until the process before the last hot restart has ended.
    pub async fn drained(&mut self) -> Result<()> {
        let hot = self.hot.as_mut().ok_or_else(not_hot)?;
        let Some(mut before) = hot.before.take() else { return Ok(()) };
        let mut patience = Patience::new(READY);
        while before.try_wait()?.is_none() {
            if !patience.lasts().await {
                return Err(Error::new(format!("what epoch {} replaced does not end", hot.epoch)));
            }
        }
        Ok(())
    }

    /// SIGTERM, as a service manager would; an error when it does not end within `budget` or ends
    /// by a signal (a crash on the way out counts as one).
    pub async fn terminate(&mut self, budget: Duration) -> Result<()> {
        let status = self.process.terminate(budget).await?;
        match status.code() {
            Some(0) => Ok(()),
            _ => Err(Error::new(format!("envoy ended with {status}"))),
        }
    }

    /// All counters and gauges by name.
    pub async fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let json = http::get(self.admin(), "/stats?format=json").await?.json()?;
        let stats = json["stats"].as_array().into_iter().flatten();
        let pair = |s: &Value| Some((s["name"].as_str()?.to_string(), s["value"].as_u64()?));
        Ok(stats.filter_map(pair).collect())
    }

    /// One counter or gauge; `None` when Envoy has no such name.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        self.stats().await.ok()?.get(name).copied()
    }

    /// The sum of all whose names contain this.
    pub async fn stat_sum(&self, part: &str) -> Result<u64> {
        let stats = self.stats().await?;
        Ok(stats.iter().filter(|(name, _)| name.contains(part)).map(|(_, value)| value).sum())
    }

    /// How often a Wasm VM was rebuilt, or waits to be: 0 unless something trapped.
    pub async fn vm_reloads(&self) -> Result<u64> {
        self.stat_sum("vm_reload").await
    }

    /// What Prometheus would scrape.
    pub async fn prometheus(&self) -> Result<String> {
        Ok(http::get(self.admin(), "/stats/prometheus").await?.text())
    }

    /// `/clusters` as JSON: hosts, their health flags and counters.
    pub async fn clusters(&self) -> Result<Value> {
        http::get(self.admin(), "/clusters?format=json").await?.json()
    }

    /// The addresses that Envoy has as hosts of a cluster, sorted.
    pub async fn hosts(&self, cluster: &str) -> Result<Vec<SocketAddr>> {
        let clusters = self.clusters().await?;
        let statuses = clusters["cluster_statuses"].as_array().into_iter().flatten();
        let hosts = statuses
            .filter(|c| c["name"] == cluster)
            .flat_map(|c| c["host_statuses"].as_array().into_iter().flatten());
        let address = |host: &Value| {
            let socket = &host["address"]["socket_address"];
            let port = u16::try_from(socket["port_value"].as_u64()?).ok()?;
            Some(SocketAddr::new(socket["address"].as_str()?.parse().ok()?, port))
        };
        let mut found: Vec<SocketAddr> = hosts.filter_map(address).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// `/listeners` as JSON.
    pub async fn listeners(&self) -> Result<Value> {
        http::get(self.admin(), "/listeners?format=json").await?.json()
    }

    /// `/config_dump`, with EDS.
    pub async fn config_dump(&self) -> Result<Value> {
        http::get(self.admin(), "/config_dump?include_eds").await?.json()
    }

    /// Pages of 64 KiB that all VMs together have as their memories: each is the start of a guarded
    /// reservation of gigabytes.
    pub fn wasm_pages(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.process.pid()));
        let maps = maps.unwrap_or_default();
        let mut before = None;
        let mut bytes = 0;
        for line in maps.lines() {
            let Some((range, rest)) = line.split_once(' ') else { continue };
            let Some((from, to)) = range.split_once('-') else { continue };
            let at = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            let (from, to) = (at(from), at(to));
            if rest.starts_with("---p") && to - from > 1 << 31 {
                bytes += before.filter(|(end, _)| *end == from).map_or(0, |(_, size)| size);
            }
            before = rest.starts_with("rw-p").then_some((to, to - from));
        }
        bytes / 65_536
    }

    /// CPU time and resident bytes of the process.
    pub fn usage(&self) -> (Duration, u64) {
        (self.process.threads_time(), self.process.resident_bytes())
    }
}

fn not_hot() -> Error {
    Error::new("this Envoy was started without hot restart")
}

impl Drop for Hot {
    fn drop(&mut self) {
        if let Some(before) = &mut self.before {
            let _ = before.kill();
            let _ = before.wait();
        }
        let _ = std::fs::remove_file(&self.memory);
    }
}

impl Server for Envoy {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
