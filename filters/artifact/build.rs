//! Builds `pintle.wasm` whenever a source of it changed, and finishes it for Envoy.
//!
//! Four things the compiler and the linker cannot do are done on the linked module:
//! - *rename*: requests are served by functions of `filters/hostcalls`, under the names of the
//!   SDK's;
//! - *prune*: the SDK exports every callback there is, and Envoy calls every export it finds, so
//!   the exports that the module does not use are removed, and the code behind them with them;
//! - *narrow*: the SDK's traits have default methods for every host call, which their tables keep
//!   alive though nothing calls them; imports that `filters/hostcalls` does not declare answer
//!   "internal failure" inside, so that what the module imports is what it uses;
//! - *fold*: two imports are called by the SDK, whose wrappers panic on a status they do not list.
//!   Unlisted statuses become "internal failure" on the way in, so that no status is a trap.
//!
//! The module has a target folder of its own: the outer cargo holds the lock of the usual one.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use walrus::ir::{BinaryOp, Value};
use walrus::{ExportItem, FunctionId, ImportKind, Module, ValType};

/// What Envoy needs to find, and nothing else.
const EXPORTS: [&str; 16] = [
    "memory",
    "_initialize",
    "proxy_abi_version_0_2_1",
    "proxy_on_memory_allocate",
    "proxy_on_vm_start",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_tick",
    "proxy_on_queue_ready",
    "proxy_on_request_headers",
    "proxy_on_response_headers",
    "proxy_on_response_trailers",
    "proxy_on_log",
    "proxy_on_delete",
    "proxy_on_grpc_receive",
    "proxy_on_grpc_close",
];

/// What `filters/hostcalls` exports in the place of the SDK's: `pintle_on_…` becomes `proxy_on_…`.
const RENAMED: [&str; 6] =
    ["context_create", "request_headers", "response_headers", "response_trailers", "log", "delete"];

/// Imports that the SDK calls itself, and the statuses beside OK that its wrappers expect.
const FOLDED: [(&str, &[i32]); 2] = [("proxy_grpc_stream", &[4]), ("proxy_grpc_call", &[4])];

/// What `filters/hostcalls` calls, itself or through the SDK.
const IMPORTS: [&str; 26] = [
    "proxy_call_foreign_function",
    "proxy_continue_stream",
    "proxy_define_metric",
    "proxy_dequeue_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_get_buffer_bytes",
    "proxy_get_current_time_nanoseconds",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_grpc_call",
    "proxy_grpc_cancel",
    "proxy_grpc_send",
    "proxy_grpc_stream",
    "proxy_increment_metric",
    "proxy_log",
    "proxy_register_shared_queue",
    "proxy_remove_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_resolve_shared_queue",
    "proxy_send_local_response",
    "proxy_set_effective_context",
    "proxy_set_property",
    "proxy_set_shared_data",
    "proxy_set_tick_period_milliseconds",
];

/// The SDK sets the effective context before gRPC callbacks, to the one that is effective already,
/// and unwraps the answer. Nothing is lost when it is always told OK.
const CONSTANT_OK: &str = "proxy_set_effective_context";
/// What `filters/hostcalls` calls in earnest, by a name that keeps it apart from the SDK's.
const EFFECTIVE: &str = "pintle_set_effective_context";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = here.ancestors().nth(2).ok_or("no workspace above this package")?.to_path_buf();
    // target/<profile>/build/<package>/out -> target/module
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not where cargo puts it")?.join("module");

    let status = Command::new(env::var("CARGO")?)
        .current_dir(&root)
        .args(["build", "--quiet", "--locked", "--package", "pintle-module"])
        .args(["--target", "wasm32-wasip1", "--profile", "wasm"])
        .arg("--target-dir")
        .arg(&target)
        // What the outer cargo or clippy set for the native build is not for this one.
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", remap()?)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    if !status.success() {
        return Err(
            "the module did not build; is the target there? (rustup target add wasm32-wasip1)"
                .into(),
        );
    }

    let linked = target.join("wasm32-wasip1/wasm/pintle.wasm");
    let mut module = Module::from_file(&linked)?;
    rename(&mut module)?;
    prune(&mut module)?;
    fold(&mut module)?;
    narrow(&mut module)?;
    walrus::passes::gc::run(&mut module);
    fs::write(out.join("pintle.wasm"), module.emit_wasm())?;

    watch(&linked.with_extension("d"), &root)
}

/// Takes the builder's own folder off the names of dependencies' files, which panics carry: the
/// same sources become the same bytes on any machine, and the module tells nothing about the one it
/// is from.
fn remap() -> Result<String, Box<dyn Error>> {
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var("HOME")?).join(".cargo"),
    };
    Ok(format!("--remap-path-prefix={}=", home.join("registry/src/").display()))
}

fn rename(module: &mut Module) -> Result<(), Box<dyn Error>> {
    for callback in RENAMED {
        let (ours, sdks) = (format!("pintle_on_{callback}"), format!("proxy_on_{callback}"));
        let find = |name: &str| module.exports.iter().find(|e| e.name == name).map(|e| e.id());
        let (Some(own), Some(other)) = (find(&ours), find(&sdks)) else {
            return Err(format!("the module does not export {ours} and {sdks}").into());
        };
        module.exports.delete(other);
        module.exports.get_mut(own).name = sdks;
    }
    Ok(())
}

fn prune(module: &mut Module) -> Result<(), Box<dyn Error>> {
    let wanted = |name: &str| EXPORTS.contains(&name);
    for name in EXPORTS {
        if !module.exports.iter().any(|export| export.name == name) {
            return Err(format!("the module does not export {name}").into());
        }
    }
    let unwanted: Vec<_> =
        module.exports.iter().filter(|export| !wanted(&export.name)).map(|e| e.id()).collect();
    for export in unwanted {
        module.exports.delete(export);
    }
    // A table or global exported under a wanted name would be a surprise worth stopping for.
    let odd = module
        .exports
        .iter()
        .find(|export| export.name != "memory" && !matches!(export.item, ExportItem::Function(_)));
    odd.map_or(Ok(()), |export| Err(format!("{} is not a function", export.name).into()))
}

fn fold(module: &mut Module) -> Result<(), Box<dyn Error>> {
    for (name, listed) in FOLDED {
        let Some(import) = imported(module, name)? else {
            continue;
        };
        let ty = module.funcs.get(import).ty();
        let (real, _) = module.add_import_func("env", name, ty);
        let status = module.locals.add(ValType::I32);
        module.replace_imported_func(import, |(body, arguments)| {
            for argument in arguments {
                body.local_get(*argument);
            }
            body.call(real).local_set(status);
            // status if it is 0 or listed, else 10 (internal failure)
            body.local_get(status)
                .i32_const(10)
                .local_get(status)
                .unop(walrus::ir::UnaryOp::I32Eqz);
            for code in listed {
                body.local_get(status).const_(Value::I32(*code)).binop(BinaryOp::I32Eq);
                body.binop(BinaryOp::I32Or);
            }
            body.select(Some(ValType::I32));
        })?;
    }
    if let Some(import) = imported(module, CONSTANT_OK)? {
        module.replace_imported_func(import, |(body, _)| {
            body.i32_const(0);
        })?;
    }
    let own = module.imports.find("env", EFFECTIVE);
    let own = own.ok_or_else(|| format!("the module does not import {EFFECTIVE}"))?;
    CONSTANT_OK.clone_into(&mut module.imports.get_mut(own).name);
    Ok(())
}

fn narrow(module: &mut Module) -> Result<(), Box<dyn Error>> {
    let unused: Vec<FunctionId> = module
        .imports
        .iter()
        .filter(|import| import.module == "env" && !IMPORTS.contains(&import.name.as_str()))
        .filter_map(|import| match import.kind {
            ImportKind::Function(id) => Some(id),
            _ => None,
        })
        .collect();
    for import in unused {
        module.replace_imported_func(import, |(body, _)| {
            body.i32_const(10);
        })?;
    }
    Ok(())
}

fn imported(module: &Module, name: &str) -> Result<Option<FunctionId>, Box<dyn Error>> {
    let mut found = module.imports.iter().filter(|i| i.module == "env" && i.name == name);
    let first = found.next();
    if found.next().is_some() {
        return Err(format!("{name} is imported twice; which one is the SDK's?").into());
    }
    match first.map(|import| &import.kind) {
        None => Ok(None),
        Some(ImportKind::Function(id)) => Ok(Some(*id)),
        Some(_) => Err(format!("{name} is not a function").into()),
    }
}

/// Runs again when any source that went into the module changes.
fn watch(dependencies: &Path, root: &Path) -> Result<(), Box<dyn Error>> {
    let listed = fs::read_to_string(dependencies)?;
    for path in listed.split_once(": ").map_or("", |(_, paths)| paths).split_whitespace() {
        println!("cargo::rerun-if-changed={path}");
    }
    for path in ["Cargo.toml", "Cargo.lock", "filters/artifact/build.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    // A new file of a crate is in no list yet; its manifest or an old file names it.
    for path in ["contract", "balance", "breaker", "trace", "policy", "sync", "hostcalls", "module"]
    {
        println!(
            "cargo::rerun-if-changed={}",
            root.join("filters").join(path).join("Cargo.toml").display()
        );
    }
    Ok(())
}
