//! A child process that cannot outlive its owner.
//!
//! Three ways to lose a child, three answers. The owner is dropped: it kills and waits. The owner's
//! process dies without unwinding: `PR_SET_PDEATHSIG` kills the child. The *thread* that forked
//! ends: the kernel counts that as the parent's death too, and tests end threads all the time, so
//! every fork happens on one thread that never ends. Children get their own process group, so that
//! a Ctrl-C reaches the owner alone, which then ends them in its own order.
//!
//! Output goes to a log file in the fixture's directory. When a test panics, the end of it is
//! printed and the directory stays.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Error, Result};

/// How many bytes of a log a failed test prints: the last page, not the history.
const TAIL_BYTES: usize = 6_000;

/// What to start: kept, so that a restart is the same command again.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How this child is named in messages.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What its environment has besides ours.
    pub envs: Vec<(String, String)>,
}

/// A running (or killed) child, its directory and its log.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Child,
    dir: Option<TempDir>,
    log: PathBuf,
}

/// What every server fixture can do to its process.
pub trait Server {
    /// The process behind this fixture.
    fn process(&mut self) -> &mut Process;

    /// Its process id.
    fn pid(&mut self) -> u32 {
        self.process().pid()
    }

    /// SIGKILL: no last words. Returns when the process is gone.
    fn kill9(&mut self) {
        self.process().kill9();
    }

    /// SIGSTOP: alive for the kernel, which goes on accepting connections, and silent.
    fn stop(&mut self) {
        self.process().stop();
    }

    /// SIGCONT: the end of [`Server::stop`].
    fn cont(&mut self) {
        self.process().signal(libc::SIGCONT);
    }

    /// Everything it has written, over all its lives.
    fn log(&mut self) -> String {
        self.process().log()
    }
}

impl Process {
    /// Starts the child. `dir` is where its log goes; it is removed with this value, unless a test
    /// fails.
    pub fn spawn(spec: Spec, dir: TempDir) -> Result<Self> {
        let log = dir.path().join(format!("{}.log", spec.name));
        let child = launch(&spec, &log)?;
        Ok(Self { spec, child, dir: Some(dir), log })
    }

    /// The process id of the present life.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory that this process owns.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("."), TempDir::path)
    }

    /// Whether it has not ended yet (a stopped one has not).
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&mut self, signal: i32) {
        // Only a child that has not been waited for still owns its pid.
        if self.is_running() {
            // SAFETY: kill takes two integers and touches no memory of ours.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
    }

    /// SIGSTOP, then waits until it has stopped: of two pending signals the kernel delivers the
    /// lower number first, so that a SIGTERM sent right after would overtake it.
    pub fn stop(&mut self) {
        self.signal(libc::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        let began = Instant::now();
        while self.is_running() && began.elapsed() < Duration::from_secs(1) {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            if text.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGKILL, then waits: afterwards its ports are free.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for at most `budget`; its exit status, or an error when it is still
    /// there.
    pub async fn terminate(&mut self, budget: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > budget {
                let name = &self.spec.name;
                return Err(Error::new(format!("{name} ignored SIGTERM for {budget:?}")));
            }
            crate::pause().await;
        }
    }

    /// Kills it when it still runs and starts the same command again.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        self.child = launch(&self.spec, &self.log)?;
        Ok(())
    }

    /// Starts the command beside the present life, which goes on by itself and is returned.
    pub fn start_successor(&mut self) -> Result<Child> {
        let successor = launch(&self.spec, &self.log)?;
        Ok(std::mem::replace(&mut self.child, successor))
    }

    /// The command that the next [`Process::restart`] runs.
    pub fn spec(&mut self) -> &mut Spec {
        &mut self.spec
    }

    /// Everything it has written to its standard outputs.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Resident memory in bytes, 0 once it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()));
        let pages = text.ok().and_then(|t| t.split(' ').nth(1)?.parse::<u64>().ok());
        pages.unwrap_or(0) * 4096
    }

    /// User and system time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let text =
            std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The second field is the command in parentheses and may contain anything.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// Processor time of the threads that it has now: to the nanosecond, where user and system time
    /// go by steps of 10 ms.
    pub fn threads_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let used = |thread: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(threads.into_iter().flatten().filter_map(used).sum())
    }

    /// Asks `ready` until it says yes; an error with the end of the log when the process ends first
    /// or the budget is used up.
    pub async fn wait_ready(
        &mut self,
        budget: Duration,
        mut ready: impl AsyncFnMut() -> bool,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            if ready().await {
                return Ok(());
            }
            let name = self.spec.name.clone();
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::new(format!("{name} ended ({status}):\n{}", self.tail())));
            }
            if began.elapsed() > budget {
                let tail = self.tail();
                return Err(Error::new(format!("{name} not ready within {budget:?}:\n{tail}")));
            }
            crate::pause().await;
        }
    }

    fn tail(&self) -> String {
        let log = self.log();
        let mut from = log.len().saturating_sub(TAIL_BYTES);
        while !log.is_char_boundary(from) {
            from += 1;
        }
        log[from..].to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let path = self.log.display();
            eprintln!("--- {} ({path}), the end:\n{}", self.spec.name, self.tail());
            if let Some(dir) = self.dir.take() {
                let _ = dir.keep();
            }
        }
    }
}

fn launch(spec: &Spec, log: &Path) -> Result<Child> {
    let out = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.args)
        // Ours, and the agent refuses what it does not know under its prefix.
        .env_remove("PINTLE_WASM")
        .env_remove("PINTLE_OUTAGE_SECONDS")
        .env_remove("PINTLE_SERVICES")
        .envs(spec.envs.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0);
    let owner = std::process::id();
    // SAFETY: between fork and exec only prctl, getppid and signal run, all async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // The owner died before the line above took effect.
            if libc::getppid() as u32 != owner {
                return Err(std::io::Error::other("the owner is gone"));
            }
            // A shell that runs the tests in the background has them ignore it.
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    let child = fork_on_the_lasting_thread(command);
    child.map_err(|e| Error::from(e).during(format!("starting {}", spec.program.display())))
}

type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);

fn fork_on_the_lasting_thread(command: Command) -> std::io::Result<Child> {
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = || std::io::Error::other("the spawning thread is gone");
    orders.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
