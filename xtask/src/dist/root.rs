//! `cargo xtask dist --check`: the Debian package in a clean root, as somebody has it who installs
//! it on a new machine: installed, started, upgraded over an edited configuration, removed, purged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pintle_tests::{Error, Result, tools};
use serde_json::Value;

use crate::setup::{Tool, bring};
use crate::shell::run;

/// Where the package came to be, inside.
const PACKAGE: &str = "pintle.deb";
const CONFIG: &str = "etc/pintle/agent.yaml";
const UNIT: &str = "usr/lib/systemd/system/pintle.service";
/// What programs write that install anything, whatever it is.
const OTHERS: [&str; 5] =
    ["/var/lib/dpkg", "/var/log", "/var/cache", "/var/lib/systemd", "/run/adduser"];

/// A Debian of its own, as small as may be.
struct Root(PathBuf);

/// Tries the package.
pub fn try_package(package: &Path) -> Result<()> {
    bring(&[Tool::Debootstrap, Tool::Lintian])?;
    super::deb::judge(package)?;
    let root = Root::new()?;
    let clean = root.holds()?;
    std::fs::copy(package, root.path(PACKAGE))?;

    root.run("dpkg --install /pintle.deb")?;
    root.installed()?;
    let config = std::fs::read_to_string(root.path(CONFIG))?;
    let edited = format!("{config}\n# Edited.\n");
    std::fs::write(root.path(CONFIG), &edited)?;
    root.run("dpkg --install /pintle.deb")?;
    expect(std::fs::read_to_string(root.path(CONFIG))? == edited, "an edited configuration stays")?;
    root.installed()?;

    root.run("dpkg --remove pintle")?;
    for gone in ["usr/bin/pintle", UNIT, "usr/share/man/man1/pintle.1.gz"] {
        expect(!root.path(gone).exists(), &format!("/{gone} goes with the package"))?;
    }
    expect(std::fs::read_to_string(root.path(CONFIG))? == edited, "it outlives the package")?;
    // What an agent leaves behind that ran by its unit.
    std::fs::create_dir_all(root.path("var/lib/pintle"))?;
    std::fs::write(root.path("var/lib/pintle/state"), "state")?;
    root.run("dpkg --purge pintle")?;
    std::fs::remove_file(root.path(PACKAGE))?;
    let left = root.holds()?;
    let more: Vec<&String> = left.difference(&clean).collect();
    expect(more.is_empty(), &format!("a purge leaves nothing, and left {more:?}"))?;
    println!("{}: installed, upgraded, removed and purged, nothing is left", package.display());
    Ok(std::fs::remove_dir_all(&root.0)?)
}

/// This machine's release as it comes, which is fetched once.
pub fn debian() -> Result<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.ok_or_else(|| Error::new("/etc/os-release has no VERSION_CODENAME"))?;
    let base = tools::target_dir().join("tools/debian").join(name);
    if !base.exists() {
        let new = base.with_extension("new");
        let with = "--variant=minbase --include=adduser,ca-certificates,procps,systemd,man-db";
        run(&format!("rm -rf {}", new.display()), &[])?;
        run(&format!("debootstrap {with} {name} {}", new.display()), &[])?;
        std::fs::rename(new, &base)?;
    }
    Ok(base)
}

/// An error unless it is so.
pub fn expect(holds: bool, what: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::new(format!("not so: {what}"))),
    }
}

impl Root {
    fn new() -> Result<Self> {
        let base = debian()?;
        let at = tools::target_dir().join("clean-root");
        run(&format!("rm -rf {}", at.display()), &[])?;
        run(&format!("cp -a {} {}", base.display(), at.display()), &[])?;
        Ok(Self(at))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn run(&self, command: &str) -> Result<()> {
        let line = format!("chroot {} {command}", self.0.display());
        run(&line, &[("DEBIAN_FRONTEND", "noninteractive")])
    }

    /// What a command says as this user, however it ends.
    fn says(&self, user: &str, command: &str) -> Result<String> {
        let mut inside = Command::new("chroot");
        inside.arg(format!("--userspec={user}")).arg(&self.0).args(command.split(' '));
        let done = inside.output().map_err(|e| Error::from(e).during(command))?;
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Whether all of it is there, and of use to its own user.
    fn installed(&self) -> Result<()> {
        let version = self.says("pintle", "pintle --version")?;
        expect(version.contains(env!("CARGO_PKG_VERSION")), "it runs, and says its version")?;
        let user = self.says("root", "getent passwd pintle")?;
        expect(user.trim_end().ends_with(":/nonexistent:/usr/sbin/nologin"), "nobody logs in so")?;
        let mode = self.says("root", &format!("stat -c %U:%G:%a /{CONFIG}"))?;
        expect(mode.trim() == "root:pintle:640", "the configuration is its group's to read")?;
        // Its servers are away here; the configuration itself it can use.
        let check = format!("pintle check --no-envoy -o json --config /{CONFIG}");
        let said: Value = serde_json::from_str(&self.says("pintle", &check)?)?;
        let mut findings = said["findings"].as_array().into_iter().flatten();
        let found = findings.find(|finding| finding["what"] == "configuration");
        let good = found.is_some_and(|finding| finding["state"] == "good");
        expect(good, "the shipped configuration is one that the agent takes")?;
        let unit = std::fs::read_to_string(self.path(UNIT))?;
        expect(unit.contains("\nExecStart=/usr/bin/pintle run"), "the unit starts it")?;
        if tools::on_path("systemd-analyze").is_some() {
            run(
                &format!("systemd-analyze verify --root={} pintle.service", self.0.display()),
                &[],
            )?;
        }
        let page = self.says("pintle", "man --no-hyphenation pintle-check")?;
        expect(page.contains("pintle-check"), "its manual can be read")?;
        self.run("bash -n /usr/share/bash-completion/completions/pintle")?;
        for shell in ["zsh/vendor-completions/_pintle", "fish/vendor_completions.d/pintle.fish"] {
            expect(self.path("usr/share").join(shell).exists(), shell)?;
        }
        Ok(())
    }

    /// The names of all that is there, and who is known.
    fn holds(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for name in self.says("root", "find / -xdev")?.lines() {
            // Programs that write who is known keep what it was before beside it.
            let kept = name.starts_with("/etc/") && name.ends_with('-');
            if !kept && !OTHERS.iter().any(|other| name.starts_with(other)) {
                all.insert(name.to_owned());
            }
        }
        for known in ["etc/passwd", "etc/group", "etc/shadow"] {
            let text = std::fs::read_to_string(self.path(known))?;
            all.extend(text.lines().map(|line| format!("{known}: {line}")));
        }
        Ok(all)
    }
}
