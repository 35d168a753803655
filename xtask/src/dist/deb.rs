//! A Debian package: the agent and its unit, the module, the configurations, the man pages and
//! completions.

use std::path::{Path, PathBuf};

use pintle_tests::{Result, tools};

use super::{copy, files_below};
use crate::shell::{output, run};

/// The user, unless somebody made one.
const AFTER: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ]; then
  getent passwd pintle >/dev/null || adduser --system --group --no-create-home \\
    --home /nonexistent --quiet pintle
  chgrp pintle /etc/pintle/agent.yaml
  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi
";
/// Started by whoever has configured it, and ended with it; requests go on meanwhile.
const BEFORE: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now pintle; fi
";
const GONE: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = purge ]; then
  rm -rf /var/lib/pintle /run/pintle
  if command -v deluser >/dev/null; then deluser --quiet --system pintle || true; fi
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
";
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pintle

Files: *
Copyright: 2026 the Pintle authors
License: Apache-2.0

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
";

/// What lintian is right about and is meant so.
const OVERRIDES: &str = "\
# A crate: the translation of libyaml into Rust, linked as all crates are.
pintle: embedded-library libyaml *
# It may hold passwords, and is the agent's group's to read.
pintle: non-standard-file-perm 0640 != 0644 [etc/pintle/agent.yaml]
";

/// Where the package is among the packages.
pub fn file(packages: &Path, architecture: &str) -> PathBuf {
    packages.join(format!("pintle_{}_{architecture}.deb", env!("CARGO_PKG_VERSION")))
}

/// Makes `to` of what `cargo xtask dist` has put into `dist`.
pub fn package(dist: &Path, version: &str, architecture: &str, to: &Path) -> Result<()> {
    let root = to.with_extension("root");
    let own = |path: &str| root.join(path);
    copy(&dist.join("pintle"), &own("usr/bin/pintle"))?;
    copy(&dist.join("pintle.wasm"), &own("usr/share/pintle/pintle.wasm"))?;
    copy(&dist.join("envoy/agent.yaml"), &own("etc/pintle/agent.yaml"))?;
    let unit = std::fs::read_to_string(dist.join("envoy/systemd/pintle.service"))?;
    // What the head of the unit tells is done by the package.
    let unit = unit.split_once("[Unit]").map_or(unit.as_str(), |(_, rest)| rest);
    let unit = format!("[Unit]{}", unit.replace("/usr/local/bin/pintle", "/usr/bin/pintle"));
    write(&own("usr/lib/systemd/system/pintle.service"), &unit)?;
    for folder in ["docs", "envoy"] {
        for file in files_below(&dist.join(folder))? {
            let name = file.strip_prefix(dist).unwrap_or(&file);
            copy(&file, &own("usr/share/doc/pintle").join(name))?;
        }
    }
    for page in ["README.md", "CHANGELOG.md", "SECURITY.md"] {
        copy(&dist.join(page), &own("usr/share/doc/pintle").join(page))?;
    }
    write(&own("usr/share/doc/pintle/copyright"), COPYRIGHT)?;
    write(&own("usr/share/lintian/overrides/pintle"), OVERRIDES)?;
    let changelog = own("usr/share/doc/pintle/changelog");
    write(&changelog, &history(version))?;
    run(&format!("gzip -n -9 {}", changelog.display()), &[])?;
    for (file, place) in [
        ("pintle", "usr/share/bash-completion/completions/pintle"),
        ("_pintle", "usr/share/zsh/vendor-completions/_pintle"),
        ("pintle.fish", "usr/share/fish/vendor_completions.d/pintle.fish"),
    ] {
        copy(&dist.join("completions").join(file), &own(place))?;
    }
    let man = own("usr/share/man/man1");
    for page in files_below(&dist.join("man"))? {
        copy(&page, &man.join(page.file_name().unwrap_or_default()))?;
    }
    run(&format!("gzip -n -9 -r {}", man.display()), &[])?;
    let files = files_below(&root)?;
    let bytes: u64 = files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let control = format!(
        "Package: pintle\nVersion: {version}\nArchitecture: {architecture}\n\
         Maintainer: {MAINTAINER}\nInstalled-Size: {}\nDepends: adduser, ca-certificates, \
         libc6 (>= 2.34), libgcc-s1, procps\nSection: net\nPriority: optional\n\
         Description: WebAssembly filters for Envoy with a small native agent\n \
         The agent reads services from etcd and orders from NATS. The module in\n \
         Envoy chooses endpoints, breaks circuits and propagates traces by what\n \
         the agent tells it.\n",
        bytes.div_ceil(1024)
    );
    write(&own("DEBIAN/control"), &control)?;
    write(&own("DEBIAN/conffiles"), "/etc/pintle/agent.yaml\n")?;
    for (name, script) in [("postinst", AFTER), ("prerm", BEFORE), ("postrm", GONE)] {
        write(&own("DEBIAN").join(name), script)?;
    }
    let shown = root.display();
    run(&format!("chmod -R u=rwX,go=rX {shown}"), &[])?;
    run(
        &format!("chmod 755 {shown}/DEBIAN/postinst {shown}/DEBIAN/prerm {shown}/DEBIAN/postrm"),
        &[],
    )?;
    run(&format!("chmod 640 {shown}/etc/pintle/agent.yaml"), &[])?;
    run(&format!("dpkg-deb --root-owner-group --build {shown} {}", to.display()), &[])?;
    Ok(std::fs::remove_dir_all(&root)?)
}

/// Debian's changelog: this release, at the time of its last commit.
fn history(version: &str) -> String {
    let date = output("git log -1 --format=%cD").or_else(|| output("date -R"));
    let date = date.unwrap_or_default();
    format!(
        "pintle ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md says what is new.\n\n \
         -- {MAINTAINER}  {}\n",
        date.trim()
    )
}

/// Has lintian judge the package, where it is installed; its complaints are an error.
pub fn judge(package: &Path) -> Result<()> {
    match tools::on_path("lintian") {
        Some(_) => {
            run(&format!("lintian --allow-root --fail-on error,warning {}", package.display()), &[])
        }
        None => {
            println!("lintian is not installed, and did not judge {}", package.display());
            Ok(())
        }
    }
}

/// Whoever passes the package on puts in a name.
const MAINTAINER: &str = "Pintle <pintle@pintle.invalid>";

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
    Ok(std::fs::write(path, text)?)
}

/// Whether this machine can make packages.
pub fn possible() -> bool {
    tools::on_path("dpkg-deb").is_some()
}
