//! Why a module or an Envoy could not be made.

use crate::vm::Trap;

/// Why a module was refused, or a VM did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a valid WebAssembly module.
    #[error("the module does not compile: {0:?}")]
    Compile(#[source] wasmtime::Error),
    /// The module imports what neither this host nor Envoy has.
    #[error("unknown import `{module}::{name}`")]
    UnknownImport {
        /// The import's module.
        module: String,
        /// The import's name.
        name: String,
    },
    /// An import has another type than the ABI says.
    #[error("the module does not link: {0:?}")]
    Link(#[source] wasmtime::Error),
    /// The module lacks an export that the host needs.
    #[error("the module does not export `{0}`")]
    MissingExport(&'static str),
    /// An exported callback has another type than the ABI says.
    #[error("the export `{name}` has the wrong type: {source:?}")]
    ExportType {
        /// The export's name.
        name: &'static str,
        /// What wasmtime says of it.
        source: wasmtime::Error,
    },
    /// A limit on fuel was asked of a module that was not compiled for it.
    #[error("fuel needs a module made by `Module::with_fuel`")]
    NoFuel,
    /// The guest trapped while it was started or configured.
    #[error("{0}")]
    Trapped(Trap),
    /// `proxy_on_vm_start` answered false.
    #[error("proxy_on_vm_start answered false")]
    StartRefused,
    /// `proxy_on_configure` answered false.
    #[error("proxy_on_configure answered false")]
    ConfigureRefused,
}
