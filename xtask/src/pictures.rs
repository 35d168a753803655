//! `cargo xtask pictures`: the status page as a browser shows it, in four states, light and dark,
//! for `docs/pictures`. Everything in them is real: etcd, NATS, agent, Envoy, services and
//! requests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_tests::{
    Behaviour, Error, Fault, Instance, Load, Result, Server as _, Upstream, browser, http, tools,
};

use crate::stage::{World, quick};
use crate::{setup, shell};

const SIZE: (u32, u32) = (900, 600);
/// Bytes of one picture, at most: they are part of the repository.
const MOST: u64 = 100_000;
/// Bytes of one that shows something.
const LEAST: usize = 20_000;
/// Until the rates are those of a load that has been there for a while.
const SETTLE: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(30);

/// The `pictures` command.
pub fn take() -> Result<()> {
    println!("pictures: 1 of 3, what they are taken of");
    setup::bring(setup::SERVERS)?;
    setup::bring(&[setup::Tool::Chromium])?;
    println!("pictures: 2 of 3, the agent and the module");
    shell::run(&format!("cargo build --quiet {} --bin pintle", tools::NATIVE), &[])?;
    tools::module()?;
    println!("pictures: 3 of 3, four states, light and dark: about a minute and a half");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(states())
}

async fn states() -> Result<()> {
    // Open for as long as the browser may take.
    let mut world = World::start("300s").await?;
    let dir = tools::root().join("docs/pictures");
    std::fs::create_dir_all(&dir)?;
    let mut orders = Vec::new();
    for (number, zone) in [(1, "eu-1a"), (2, "eu-1a"), (3, "eu-1b")] {
        let upstream = quick(&format!("orders-{number}")).await?;
        let instance = Instance::of("orders", &upstream).metadata("zone", zone);
        world.etcd.register(&instance).await?;
        orders.push(upstream);
    }
    let payments = quick("payments-1").await?;
    world.etcd.register(&Instance::of("payments", &payments)).await?;
    let envoy = world.envoy.addr();
    let loads = ["orders", "payments"].map(|it| Load::to(envoy).host(it).rate(150.0).start());
    let shot = Shots { url: format!("http://{}/", world.agent.admin()), dir };

    shot.of("well").await?;
    world.etcd.kill9();
    shot.of("etcd-gone").await?;
    world.etcd.restart().await?;
    let ill = Behaviour::failing(Fault::Status(503));
    orders.first().into_iter().for_each(|first: &Upstream| first.set(ill.clone()));
    opened(&world, 1).await?;
    shot.of("one-ill").await?;
    orders.iter().for_each(|upstream| upstream.set(ill.clone()));
    opened(&world, orders.len()).await?;
    shot.of("all-open").await?;
    for load in loads {
        load.stop().await;
    }
    Ok(())
}

/// Waits until so many breakers are open.
async fn opened(world: &World, count: usize) -> Result<()> {
    let began = std::time::Instant::now();
    loop {
        let reply = http::get(world.agent.admin(), "/v1/breakers").await?.json()?;
        let all = reply["breakers"].as_array().into_iter().flatten();
        if all.filter(|it| it["breaker"]["state"] == "open").count() == count {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("{count} open breakers are waited for: {reply}")));
        }
        pintle_tests::pause().await;
    }
}

struct Shots {
    url: String,
    dir: PathBuf,
}

impl Shots {
    /// Both pictures of a state.
    async fn of(&self, state: &str) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        for (scheme, dark) in [("light", false), ("dark", true)] {
            let to = self.dir.join(format!("{state}-{scheme}.png"));
            browser::picture(&self.url, &to, SIZE, dark, LEAST).await?;
            let bytes = bytes(&to)?;
            println!("{}: {bytes} bytes", to.display());
            if bytes > MOST {
                return Err(Error::new(format!("{} has more than {MOST} bytes", to.display())));
            }
        }
        Ok(())
    }
}

fn bytes(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file)?.len())
}
