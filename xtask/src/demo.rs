//! `cargo xtask demo`: when it ends, and what it says at the end.
//!
//! The servers and the bounds are in `stage`, the story in `story`.

use pintle_tests::tools::NATIVE;
use pintle_tests::{Error, Result, tools};
use tokio::signal::unix::{SignalKind, signal};

use crate::sbom::components;
use crate::shell::build;
use crate::stage::{Figures, World};
use crate::{setup, story};

/// The demo; with `check` it ends by itself and fails when a bound does not hold.
pub fn run(check: bool) -> Result<()> {
    println!("demo: 1 of 3, what it runs on");
    setup::bring(setup::SERVERS)?;
    println!("demo: 2 of 3, the agent and the module; minutes where nothing has been built yet");
    let crates = components("--package pintle-agent --edges normal,build")?.len();
    build(&format!("cargo build {NATIVE} --bin pintle"), crates)?;
    tools::agent()?;
    tools::module()?;
    println!("demo: 3 of 3, the story: about a minute{}", if check { "" } else { ", then yours" });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = play(check) => done,
            // Everything `play` owns is dropped, and with it every child.
            ended = asked_to_end() => ended.and(Err(Error::new("interrupted"))),
        }
    })
}

async fn play(check: bool) -> Result<()> {
    // Nobody watches a demo for the 30 s that the default stays open.
    let mut world = World::start("2s").await?;
    let mut figures = Figures::default();
    let cast = story::tell(&mut world, &mut figures).await?;
    figures.vm_reloads = world.envoy.vm_reloads().await?;
    if check {
        let broken = figures.broken();
        for what in &broken {
            println!("out of bounds: {what}");
        }
        println!("{}", figures.json());
        return match broken.len() {
            0 => Ok(()),
            count => Err(Error::new(format!("{count} figures out of bounds"))),
        };
    }
    println!("\nfigures: {}", figures.json());
    world.invite();
    let ended = asked_to_end().await;
    drop(cast);
    println!("ending everything");
    ended
}

/// Waits for Ctrl-C or SIGTERM.
async fn asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => Ok(pressed?),
        _ = terminate.recv() => Ok(()),
    }
}
