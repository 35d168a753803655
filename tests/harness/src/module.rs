//! A compiled module and what can be known of it without running it.
//!
//! Compiling is the expensive part (Cranelift, seconds for a large filter in a debug build), so it
//! is done once: a `Module` is cheap to clone, `Send` and `Sync`, and callers keep one in a
//! `OnceLock` for all of their tests. Linking happens here too, so that an import that Envoy lacks
//! fails with its name before any VM exists.

use std::sync::Arc;

use wasmtime::{Config, Engine, InstancePre, Linker};

use crate::abi::HostCall;
use crate::error::Error;
use crate::hostcalls;
use crate::vm::Guest;

/// A compiled and linked proxy-wasm module.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Inner>,
}

struct Inner {
    pre: InstancePre<Guest>,
    imports: Vec<String>,
    exports: Vec<String>,
    fuel: bool,
}

impl Module {
    /// Compiles and links `wasm`.
    ///
    /// # Errors
    /// When the bytes are no module, import something unknown or with another type, or lack
    /// `memory`, an allocator (`proxy_on_memory_allocate` or `malloc`) or the mark of ABI 0.2.
    pub fn new(wasm: &[u8]) -> Result<Self, Error> {
        Self::compile(wasm, false)
    }

    /// As [`new`](Self::new), with instructions counted, so that
    /// [`Builder::fuel_per_callback`](crate::Builder::fuel_per_callback) can stop an endless loop.
    /// Slower.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_fuel(wasm: &[u8]) -> Result<Self, Error> {
        Self::compile(wasm, true)
    }

    fn compile(wasm: &[u8], fuel: bool) -> Result<Self, Error> {
        let mut config = Config::new();
        config.consume_fuel(fuel);
        let engine = Engine::new(&config).map_err(Error::Compile)?;
        let module = wasmtime::Module::new(&engine, wasm).map_err(Error::Compile)?;
        for import in module.imports() {
            let known = HostCall::from_name(import.name()).is_some_and(|call| {
                import.module() == call.module()
                    || (call.module() != "env" && import.module() == "wasi_unstable")
            });
            if !known {
                let (module, name) = (import.module().to_owned(), import.name().to_owned());
                return Err(Error::UnknownImport { module, name });
            }
        }
        let mut imports: Vec<_> =
            module.imports().map(|i| format!("{}::{}", i.module(), i.name())).collect();
        imports.sort();
        let mut exports: Vec<_> = module.exports().map(|e| e.name().to_owned()).collect();
        exports.sort();
        let has = |name: &str| exports.binary_search_by(|e| e.as_str().cmp(name)).is_ok();
        if !has("memory") {
            return Err(Error::MissingExport("memory"));
        }
        if !has("proxy_on_memory_allocate") && !has("malloc") {
            return Err(Error::MissingExport("proxy_on_memory_allocate"));
        }
        if !has("proxy_abi_version_0_2_1") && !has("proxy_abi_version_0_2_0") {
            return Err(Error::MissingExport("proxy_abi_version_0_2_1"));
        }
        let mut linker = Linker::new(&engine);
        hostcalls::link(&mut linker).map_err(Error::Link)?;
        let pre = linker.instantiate_pre(&module).map_err(Error::Link)?;
        Ok(Self { inner: Arc::new(Inner { pre, imports, exports, fuel }) })
    }

    /// All imports as `module::name`, sorted: the boundary, for a golden file.
    pub fn imports(&self) -> &[String] {
        &self.inner.imports
    }

    /// The names of all exports, sorted. Envoy calls every callback it finds among them.
    pub fn exports(&self) -> &[String] {
        &self.inner.exports
    }

    pub(crate) fn pre(&self) -> &InstancePre<Guest> {
        &self.inner.pre
    }

    pub(crate) fn counts_fuel(&self) -> bool {
        self.inner.fuel
    }
}
