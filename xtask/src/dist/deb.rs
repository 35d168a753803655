//! A Debian package: the agent and its unit, the module, the configurations, the man pages and completions.

use std::path::Path;

use pintle_tests::{Result, tools};

use super::{copy, files_below};
use crate::shell::run;

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
if [ \"$1\" = purge ]; then rm -rf /var/lib/pintle; fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
";
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pintle

Files: *
Copyright: the Pintle authors
License: Apache-2.0

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
";

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
         libc6 (>= 2.34), libgcc-s1\nSection: net\nPriority: optional\n\
         Description: WebAssembly filters for Envoy with a small native agent\n \
         The agent reads services from etcd and orders from NATS, and the module in Envoy\n \
         chooses endpoints, breaks circuits and propagates traces by what the agent tells it.\n",
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

/// Whoever passes the package on puts in a name.
const MAINTAINER: &str = "Pintle <pintle@localhost>";

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
    Ok(std::fs::write(path, text)?)
}

/// Whether this machine can make packages.
pub fn possible() -> bool {
    tools::on_path("dpkg-deb").is_some()
}
