//! `cargo xtask dist --check`: the Dockerfile, built and run by a container engine.
//!
//! A Debian as debootstrap makes it stands for the image that it begins from, so that no registry
//! of images is needed.

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use super::root::{debian, expect};
use crate::setup::{Tool, bring};
use crate::shell::{output, run};

const FILE: &str = "envoy/kubernetes/Dockerfile";
const IMAGE: &str = "localhost/pintle:check";

/// Buildah with a store of its own.
struct Engine(PathBuf);

/// Builds the image from what is distributed, and runs it.
pub fn try_dockerfile(dist: &Path) -> Result<()> {
    bring(&[Tool::Debootstrap, Tool::Buildah])?;
    let file = tools::root().join(FILE);
    let text = std::fs::read_to_string(&file)?;
    let from = text.lines().find_map(|line| line.strip_prefix("FROM "));
    let from = from.ok_or_else(|| Error::new(format!("{FILE} has no FROM")))?;
    let engine = Engine(tools::target_dir().join("containers"));
    engine.clear()?;

    let base = engine.says("from scratch")?;
    engine.run(&format!("copy --quiet {base} {} /", debian()?.display()))?;
    engine.run(&format!("commit --quiet {base} docker.io/library/{from}"))?;
    let build = "bud --quiet --isolation chroot --pull-never --tag";
    engine.run(&format!("{build} {IMAGE} --file {} {}", file.display(), dist.display()))?;

    let user = "inspect --type image --format {{.OCIv1.Config.User}}";
    expect(engine.says(&format!("{user} {IMAGE}"))? == "65532:65532", "it is nobody's image")?;
    let made = engine.says(&format!("from --pull-never {IMAGE}"))?;
    let inside =
        |command: &str| engine.says(&format!("run --isolation chroot {made} -- {command}"));
    let version = inside("/usr/local/bin/pintle --version")?;
    expect(version.contains(env!("CARGO_PKG_VERSION")), "the agent runs in it")?;
    expect(inside("id -u")? == "65532", "by a user who owns nothing")?;
    inside("test -r /usr/share/pintle/pintle.wasm")?;
    inside("test -r /etc/ssl/certs/ca-certificates.crt")?;
    println!("{FILE}: built from {from}, run as 65532: {version}");
    engine.clear()
}

impl Engine {
    fn line(&self, rest: &str) -> String {
        let at = self.0.display();
        format!("buildah --root {at}/images --runroot {at}/run --storage-driver vfs {rest}")
    }

    fn run(&self, rest: &str) -> Result<()> {
        run(&self.line(rest), &[])
    }

    fn says(&self, rest: &str) -> Result<String> {
        let line = self.line(rest);
        let said = output(&line).ok_or_else(|| Error::new(format!("`{line}` did not succeed")))?;
        Ok(said.trim().to_owned())
    }

    fn clear(&self) -> Result<()> {
        run(&format!("rm -rf {}", self.0.display()), &[])
    }
}
