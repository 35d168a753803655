//! Packages of real parts, read back by those who will read them.

use serde_json::Value;

use super::*;

fn said(line: &str) -> String {
    output(line).unwrap_or_else(|| panic!("`{line}` did not succeed"))
}

/// What `dist` would hold, with the agent as it is developed.
fn dist(at: &Path) -> Result<()> {
    stripped(&tools::agent()?, &at.join("pintle"))?;
    copy(&tools::module()?, &at.join("pintle.wasm"))?;
    help(at)?;
    pages(at)?;
    name_module(at)
}

/// Runs a program of a root as this machine's root or as nobody who calls himself that.
fn inside(root: &Path, program: &str) -> String {
    let root = root.display();
    match said("id -u").trim() {
        "0" => said(&format!("chroot {root} {program}")),
        _ => said(&format!("unshare --map-root-user chroot {root} {program}")),
    }
}

#[test]
fn packages_are_what_their_readers_expect() {
    let place = std::env::temp_dir().join(format!("pintle-dist-{}", std::process::id()));
    let (from, to) = (place.join("dist"), place.join("packages"));
    dist(&from).unwrap();
    pack(&from, &to).unwrap();
    let architecture = architecture().unwrap();
    let version = env!("CARGO_PKG_VERSION");

    // Images, by the tool that copies them to registries.
    for name in ["agent-image", "module-image", "module-artifact"] {
        let layout = format!("oci:{}:{version}", to.join(name).display());
        let manifest: Value =
            serde_json::from_str(&said(&format!("skopeo inspect --raw {layout}"))).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 1, "{name}");
        let copied = place.join(format!("{name}-copy"));
        said(&format!("skopeo copy -q {layout} dir:{}", copied.display()));
        let digest = manifest["layers"][0]["digest"].as_str().unwrap();
        let layer = copied.join(digest.strip_prefix("sha256:").unwrap());
        match name {
            "module-artifact" => {
                assert_eq!(sha256(&layer).unwrap(), sha256(&from.join("pintle.wasm")).unwrap());
            }
            "module-image" => {
                let names = said(&format!("tar -tzf {}", layer.display()));
                assert!(names.lines().any(|name| name == "./plugin.wasm"), "{names}");
            }
            _ => {
                let config = said(&format!("skopeo inspect --config {layout}"));
                let config: Value = serde_json::from_str(&config).unwrap();
                assert_eq!(config["config"]["User"], "65532:65532");
                assert_eq!(config["architecture"], architecture);
                let root = place.join("root");
                std::fs::create_dir_all(&root).unwrap();
                said(&format!("tar -xzf {} -C {}", layer.display(), root.display()));
                assert!(inside(&root, "/usr/local/bin/pintle --version").contains(version));
                rolled(&from, &root);
            }
        }
    }

    let tarball = to.join(format!("pintle-{version}-linux-{architecture}.tar.gz"));
    let names = said(&format!("tar -tzf {}", tarball.display()));
    let top = format!("pintle-{version}-linux-{architecture}/");
    assert!(names.lines().all(|name| name.starts_with(&top)), "{names}");
    for name in
        ["docs/SUMMARY.md", "docs/pictures/well-light.png", "man/pintle.1", "completions/_pintle"]
    {
        assert!(names.contains(&format!("{top}{name}")), "{names}");
    }

    let chart = to.join(format!("pintle-{version}.tgz"));
    let names = said(&format!("tar -tzf {}", chart.display()));
    for name in ["Chart.yaml", "values.schema.json", "templates/_agent.tpl"] {
        assert!(names.contains(&format!("pintle/{name}\n")), "{names}");
    }

    if deb::possible() {
        let package = to.join(format!("pintle_{version}_{architecture}.deb"));
        let package = package.display();
        assert_eq!(said(&format!("dpkg-deb --field {package} Package")).trim(), "pintle");
        let root = place.join("installed");
        said(&format!("dpkg-deb -x {package} {}", root.display()));
        let unit = std::fs::read_to_string(root.join("usr/lib/systemd/system/pintle.service"));
        assert!(
            unit.unwrap()
                .contains("\nExecStart=/usr/bin/pintle run --config /etc/pintle/agent.yaml\n")
        );
        let agent = root.join("usr/bin/pintle").display().to_string();
        assert!(said(&format!("{agent} --version")).contains(version));
        let man = root.join("usr/share/man/man1");
        let page = said(&format!("gzip -dc {}", man.join("pintle-check.1.gz").display()));
        assert!(page.contains("pintle\\-check"), "{page}");
        let completions = root.join("usr/share/bash-completion/completions/pintle");
        assert!(std::fs::read_to_string(completions).unwrap().contains("_pintle"));
    }
    signed(&place, &to);
    std::fs::remove_dir_all(&place).unwrap();
}

/// As the DaemonSet's init container has it: the manifests' module is where they say, and stays
/// there when the next release brings its own.
fn rolled(dist: &Path, root: &Path) {
    let manifests = std::fs::read_to_string(tools::root().join("envoy/kubernetes/agent.yaml"));
    let objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&manifests.unwrap())
        .map(|object| serde::Deserialize::deserialize(object).unwrap())
        .collect();
    let daemons = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let script = &daemons["spec"]["template"]["spec"]["initContainers"][0]["command"][2];
    let mut script = script.as_str().unwrap().to_owned();
    if said("id -u").trim() != "0" {
        // Another user's files can't be made by who is root to himself alone.
        script = script.replace(" -o 65532 -g 65532", "");
    }
    std::fs::write(root.join("init"), script).unwrap();
    inside(root, "/bin/sh -e /init");
    let plugin = std::fs::read_to_string(dist.join("envoy/istio/pintle.yaml")).unwrap();
    let url = plugin.lines().find_map(|line| line.trim().strip_prefix("url: file:///"));
    let named = root.join(url.unwrap());
    let module = sha256(&dist.join("pintle.wasm")).unwrap();
    assert!(named.to_str().unwrap().contains(&module[..16]), "{named:?}");
    assert_eq!(sha256(&named).unwrap(), module);
    for manifest in ["pintle", "gateway"] {
        let path = dist.join(format!("envoy/istio/{manifest}.yaml"));
        assert!(!std::fs::read_to_string(path).unwrap().contains(IN_PODS), "{manifest}");
    }

    let share = root.join("usr/share/pintle");
    std::fs::remove_dir_all(&share).unwrap();
    std::fs::create_dir(&share).unwrap();
    std::fs::write(share.join("pintle.wasm"), "next").unwrap();
    std::fs::write(share.join("pintle-next.wasm"), "next").unwrap();
    inside(root, "/bin/sh -e /init");
    assert_eq!(sha256(&named).unwrap(), module, "whose manifests are still applied");
    for name in ["pintle.wasm", "pintle-next.wasm"] {
        assert_eq!(std::fs::read_to_string(root.join("run/pintle").join(name)).unwrap(), "next");
    }
}

/// By a key of its own, read back with its public half; another byte is noticed.
fn signed(place: &Path, packages: &Path) {
    let (secret, public) = (place.join("key"), place.join("key.pub"));
    said(&format!("minisign -G -W -p {} -s {}", public.display(), secret.display()));
    sign(packages, &secret.display().to_string()).unwrap();
    let sums = packages.join("SHA256SUMS");
    let verify = format!("minisign -V -p {} -m {}", public.display(), sums.display());
    assert!(said(&verify).contains(concat!("pintle-", env!("CARGO_PKG_VERSION"))));
    std::fs::write(&sums, std::fs::read_to_string(&sums).unwrap() + "\n").unwrap();
    assert_eq!(output(&verify), None, "a changed file");
}
