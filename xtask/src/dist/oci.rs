//! Images as OCI layouts (image-spec 1.1), made of files and of nothing that has to be fetched.

use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result};
use serde_json::{Value, json};

use super::{TAR, architecture, copy, hashed, sha256};
use crate::shell::{output, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Who the agent is in its image, as in `envoy/kubernetes/agent.yaml`.
const USER: &str = "65532:65532";
/// What the init container of `envoy/kubernetes/agent.yaml` runs.
const TOOLS: [&str; 3] = ["/bin/sh", "/usr/bin/install", "/usr/bin/mv"];
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A layout under way.
struct Layout {
    dir: PathBuf,
}

/// A blob as a manifest names it.
fn descriptor(media: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": size})
}

impl Layout {
    fn at(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join("blobs/sha256"))?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Moves a file among the blobs.
    fn take(&self, media: &str, file: &Path) -> Result<Value> {
        let (digest, size) = (sha256(file)?, file.metadata()?.len());
        std::fs::rename(file, self.dir.join("blobs/sha256").join(&digest))?;
        Ok(descriptor(media, &digest, size))
    }

    fn text(&self, media: &str, value: &Value) -> Result<Value> {
        let file = self.dir.join("blobs/text");
        std::fs::write(&file, value.to_string())?;
        self.take(media, &file)
    }

    /// A layer of all that is below `root`, and the digest of it before it is packed.
    fn layer(&self, root: &Path) -> Result<(Value, String)> {
        let tar = self.dir.join("blobs/layer.tar");
        run(&format!("{TAR} -cf {} -C {} .", tar.display(), root.display()), &[])?;
        let unpacked = sha256(&tar)?;
        run(&format!("gzip -n -9 -f {}", tar.display()), &[])?;
        Ok((self.take(LAYER, &self.dir.join("blobs/layer.tar.gz"))?, unpacked))
    }

    /// The index, with the one manifest under this tag.
    fn end(&self, tag: &str, manifest: &Value) -> Result<()> {
        let mut entry = self.text(MANIFEST, manifest)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(self.dir.join("index.json"), index.to_string())?;
        Ok(())
    }
}

fn image(dir: &Path, tag: &str, root: &Path, run_as: &Value) -> Result<()> {
    let layout = Layout::at(dir)?;
    let (layer, unpacked) = layout.layer(root)?;
    let config = json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": run_as,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{unpacked}")]},
    });
    let config = layout.text(CONFIG, &config)?;
    layout.end(
        tag,
        &json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": config, "layers": [layer]}),
    )
}

/// The module for whoever wants an image with `plugin.wasm` in it: Istio, Envoy Gateway.
pub fn module_image(dir: &Path, tag: &str, module: &Path) -> Result<()> {
    let root = dir.with_extension("root");
    copy(module, &root.join("plugin.wasm"))?;
    image(dir, tag, &root, &json!({}))?;
    Ok(std::fs::remove_dir_all(root)?)
}

/// The module as an artifact whose layer is the module itself, the other form that Istio takes
/// (solo-io's wasm image specification, 0.0.0).
pub fn module_artifact(dir: &Path, tag: &str, module: &Path) -> Result<()> {
    let layout = Layout::at(dir)?;
    let config = layout.text("application/vnd.module.wasm.config.v1+json", &json!({}))?;
    let file = dir.join("blobs/module");
    copy(module, &file)?;
    let mut layer = layout.take("application/vnd.module.wasm.content.layer.v1+wasm", &file)?;
    layer["annotations"] = json!({"org.opencontainers.image.title": "plugin.wasm"});
    layout.end(
        tag,
        &json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": config, "layers": [layer]}),
    )
}

/// The agent with the libraries that it asks for, the system's authorities, the module under both
/// of its names, and the tools of the init container; nobody special runs it.
pub fn agent_image(dir: &Path, tag: &str, agent: &Path, module: &Path) -> Result<()> {
    let root = dir.with_extension("root");
    copy(agent, &root.join("usr/local/bin/pintle"))?;
    for name in ["pintle.wasm", &hashed(module)?] {
        copy(module, &root.join("usr/share/pintle").join(name))?;
    }
    copy(Path::new(AUTHORITIES), &below(&root, Path::new(AUTHORITIES)))?;
    let user = "root:x:0:0::/:/bin/sh\npintle:x:65532:65532::/:/bin/sh\n";
    std::fs::write(root.join("etc/passwd"), user)?;
    std::fs::write(root.join("etc/nsswitch.conf"), "passwd: files\nhosts: files dns\n")?;
    for program in [agent].into_iter().chain(TOOLS.map(Path::new)) {
        if program != agent {
            copy(program, &below(&root, program))?;
        }
        for library in libraries(program)? {
            copy(&library, &below(&root, &library))?;
        }
    }
    let run_as = json!({
        "User": USER,
        "Entrypoint": ["/usr/local/bin/pintle"],
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
    });
    image(dir, tag, &root, &run_as)?;
    Ok(std::fs::remove_dir_all(root)?)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The files that the loader would load, the loader among them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let line = format!("ldd {}", program.display());
    let said = output(&line).ok_or_else(|| Error::new(format!("`{line}` did not succeed")))?;
    let words =
        said.lines().filter_map(|line| line.split_whitespace().find(|it| it.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}
