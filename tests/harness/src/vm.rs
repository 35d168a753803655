//! One VM: an instance of the module on one thread of Envoy, with its contexts.
//!
//! A callback that traps kills the VM, as in Envoy: nothing of the instance is called again,
//! whatever arrives for it. Only callbacks that the module exports are called. A host call runs
//! while the guest does and finds everything it needs in [`Guest`], the store's data; the context
//! it acts for is the one that was called, or the one that `proxy_set_effective_context` named.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use wasmtime::{
    Instance, Memory, Store, StoreLimits, StoreLimitsBuilder, TypedFunc, WasmParams, WasmResults,
};

use crate::abi::LogLevel;
use crate::builder::Setup;
use crate::error::Error;
use crate::headers::Headers;
use crate::metrics::Kind;
use crate::module::Module;
use crate::stream::StreamRef;
use crate::world::World;

/// Where a VM lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Thread {
    /// The VM that Envoy starts and configures first to see whether it can, and drops.
    Canary,
    /// The main thread's copy: it ticks and is called back, but never sees a request.
    Main,
    /// A worker, counted from 0.
    Worker(usize),
}

impl fmt::Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Canary => f.write_str("canary"),
            Self::Main => f.write_str("main"),
            Self::Worker(i) => write!(f, "worker {i}"),
        }
    }
}

/// A trap, or any other end of a VM inside of a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The thread of the VM.
    pub thread: Thread,
    /// The callback that was running.
    pub callback: &'static str,
    /// What wasmtime says, with the guest's stack.
    pub message: String,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trap in {} on {}: {}", self.callback, self.thread, self.message)
    }
}

/// What came of a callback.
pub(crate) enum Called<R> {
    /// The module does not export it.
    Absent,
    /// The VM was dead, or is now.
    Dead,
    Value(R),
}

/// The store's data: what host calls of this VM act on.
pub(crate) struct Guest {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) setup: Rc<Setup>,
    pub(crate) vm: u64,
    pub(crate) thread: Thread,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    limits: StoreLimits,
    pub(crate) roots: Vec<Root>,
    pub(crate) streams: HashMap<u32, (u32, StreamRef)>,
    next_context: u32,
    pub(crate) current: u32,
    pub(crate) effective: u32,
    pub(crate) callback: &'static str,
    /// Cells of the metrics by id: (id - type) / 4 - 1.
    pub(crate) metric_cells: [Vec<usize>; 3],
    pub(crate) incoming: Incoming,
}

/// A root context: one plugin in this VM.
pub(crate) struct Root {
    pub(crate) id: u32,
    pub(crate) configuration: Rc<[u8]>,
    pub(crate) tick_nanos: u64,
    pub(crate) next_tick: Option<u64>,
    pub(crate) next_grpc_token: u32,
    pub(crate) next_http_token: u32,
    /// The request that a root context logs, when it is an access logger.
    pub(crate) logs: Option<StreamRef>,
}

/// What a callback of an upstream brings, in reach only while it runs.
#[derive(Default)]
pub(crate) struct Incoming {
    pub(crate) configuration: Option<Rc<[u8]>>,
    pub(crate) initial_metadata: Option<Headers>,
    pub(crate) trailing_metadata: Option<Headers>,
    pub(crate) message: Option<Vec<u8>>,
    pub(crate) http: Option<(Headers, Vec<u8>, Headers)>,
    pub(crate) status: (u32, String),
}

impl Guest {
    /// The context that a host call acts for.
    pub(crate) fn context(&self) -> u32 {
        let exists = |id| self.streams.contains_key(&id) || self.roots.iter().any(|r| r.id == id);
        if self.effective != 0 && exists(self.effective) { self.effective } else { self.current }
    }

    /// The request of that context, if it has one.
    pub(crate) fn stream(&self) -> Option<StreamRef> {
        let context = self.context();
        if let Some((_, stream)) = self.streams.get(&context) {
            return Some(Rc::clone(stream));
        }
        self.roots.iter().find(|r| r.id == context)?.logs.clone()
    }

    /// The root of that context.
    pub(crate) fn root_id(&self) -> u32 {
        let context = self.context();
        self.streams.get(&context).map_or(context, |(root, _)| *root)
    }

    pub(crate) fn root_mut(&mut self) -> Option<&mut Root> {
        let id = self.root_id();
        self.roots.iter_mut().find(|r| r.id == id)
    }

    pub(crate) fn metric(&self, id: u32) -> Option<(Kind, usize)> {
        let kind = Kind::from_code(id & 3)?;
        let at = (id >> 2).checked_sub(1)? as usize;
        Some((kind, *self.metric_cells[kind as usize].get(at)?))
    }
}

macro_rules! callbacks {
    ($($field:ident $name:literal ($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The callbacks that the module exports.
        #[derive(Clone)]
        pub(crate) struct Callbacks {
            $(pub(crate) $field: Option<TypedFunc<($($arg,)*), callbacks!(@ret $($ret)?)>>,)*
        }

        impl Callbacks {
            fn find(instance: &Instance, store: &mut Store<Guest>) -> Result<Self, Error> {
                Ok(Self { $($field: typed(instance, store, $name)?,)* })
            }
        }
    };
    (@ret) => { () };
    (@ret $ret:ty) => { $ret };
}

callbacks! {
    initialize "_initialize" ();
    start "_start" ();
    context_create "proxy_on_context_create" (u32, u32);
    vm_start "proxy_on_vm_start" (u32, u32) -> u32;
    configure "proxy_on_configure" (u32, u32) -> u32;
    tick "proxy_on_tick" (u32);
    queue_ready "proxy_on_queue_ready" (u32, u32);
    request_headers "proxy_on_request_headers" (u32, u32, u32) -> u32;
    request_body "proxy_on_request_body" (u32, u32, u32) -> u32;
    request_trailers "proxy_on_request_trailers" (u32, u32) -> u32;
    response_headers "proxy_on_response_headers" (u32, u32, u32) -> u32;
    response_body "proxy_on_response_body" (u32, u32, u32) -> u32;
    response_trailers "proxy_on_response_trailers" (u32, u32) -> u32;
    log "proxy_on_log" (u32);
    done "proxy_on_done" (u32) -> u32;
    delete "proxy_on_delete" (u32);
    http_response "proxy_on_http_call_response" (u32, u32, u32, u32, u32);
    grpc_initial "proxy_on_grpc_receive_initial_metadata" (u32, u32, u32);
    grpc_receive "proxy_on_grpc_receive" (u32, u32, u32);
    grpc_trailing "proxy_on_grpc_receive_trailing_metadata" (u32, u32, u32);
    grpc_close "proxy_on_grpc_close" (u32, u32, u32);
}

fn typed<P: WasmParams, R: WasmResults>(
    instance: &Instance,
    store: &mut Store<Guest>,
    name: &'static str,
) -> Result<Option<TypedFunc<P, R>>, Error> {
    if instance.get_func(&mut *store, name).is_none() {
        return Ok(None);
    }
    let func = instance.get_typed_func(store, name);
    func.map(Some).map_err(|source| Error::ExportType { name, source })
}

/// A running or a dead VM.
pub(crate) struct Vm {
    store: Store<Guest>,
    pub(crate) callbacks: Callbacks,
    pub(crate) id: u64,
    pub(crate) thread: Thread,
    pub(crate) dead: bool,
    fuel: Option<u64>,
}

impl Vm {
    /// Instantiates the module and starts it; no plugin yet.
    pub(crate) fn start(
        module: &Module,
        world: &Rc<RefCell<World>>,
        setup: &Rc<Setup>,
        id: u64,
        thread: Thread,
    ) -> Result<Self, Error> {
        let guest = Guest {
            world: Rc::clone(world),
            setup: Rc::clone(setup),
            vm: id,
            thread,
            memory: None,
            allocate: None,
            limits: StoreLimitsBuilder::new().memory_size(setup.memory_limit).build(),
            roots: Vec::new(),
            streams: HashMap::new(),
            next_context: 1,
            current: 0,
            effective: 0,
            callback: "start",
            metric_cells: Default::default(),
            incoming: Incoming::default(),
        };
        let mut store = Store::new(module.pre().module().engine(), guest);
        store.limiter(|guest| &mut guest.limits);
        if module.counts_fuel() {
            let _ = store.set_fuel(setup.fuel.unwrap_or(u64::MAX));
        }
        let instance = module
            .pre()
            .instantiate(&mut store)
            .map_err(|error| Error::Trapped(trap(&store, "start", &error)))?;
        store.data_mut().memory = instance.get_memory(&mut store, "memory");
        let allocate = match typed(&instance, &mut store, "proxy_on_memory_allocate")? {
            Some(allocate) => Some(allocate),
            None => typed(&instance, &mut store, "malloc")?,
        };
        store.data_mut().allocate = allocate;
        let callbacks = Callbacks::find(&instance, &mut store)?;
        let fuel = module.counts_fuel().then(|| setup.fuel.unwrap_or(u64::MAX));
        let mut vm = Self { store, callbacks, id, thread, dead: false, fuel };
        // A reactor has the one, a command the other; Envoy prefers the reactor's.
        let (name, start) = match vm.callbacks.initialize.clone() {
            Some(initialize) => ("_initialize", Some(initialize)),
            None => ("_start", vm.callbacks.start.clone()),
        };
        let called = vm.call(0, name, start, ());
        vm.checked(called)?;
        Ok(vm)
    }

    /// Adds a plugin: its root context, and for the first one the VM's own start.
    pub(crate) fn add_root(&mut self, configuration: Rc<[u8]>) -> Result<u32, Error> {
        let first = self.guest().roots.is_empty();
        let id = self.new_context();
        let size = configuration.len() as u32;
        let guest = self.guest_mut();
        guest.incoming.configuration = Some(Rc::clone(&configuration));
        guest.roots.push(Root {
            id,
            configuration,
            tick_nanos: 0,
            next_tick: None,
            next_grpc_token: 1,
            next_http_token: 1,
            logs: None,
        });
        let create = self.callbacks.context_create.clone();
        let called = self.call(id, "proxy_on_context_create", create, (id, 0));
        self.checked(called)?;
        if first {
            let vm_size = self.guest().setup.vm_configuration.len() as u32;
            let start = self.callbacks.vm_start.clone();
            // The plugin's configuration is out of reach in the VM's start.
            self.guest_mut().incoming.configuration = None;
            let called = self.call(id, "proxy_on_vm_start", start, (id, vm_size));
            let started = self.checked(called)?;
            if started == Some(0) {
                return Err(Error::StartRefused);
            }
            let configuration = self.guest().roots.last().map(|r| Rc::clone(&r.configuration));
            self.guest_mut().incoming.configuration = configuration;
        }
        let configure = self.callbacks.configure.clone();
        let called = self.call(id, "proxy_on_configure", configure, (id, size));
        let answer = self.checked(called)?;
        self.guest_mut().incoming.configuration = None;
        if answer == Some(0) {
            return Err(Error::ConfigureRefused);
        }
        Ok(id)
    }

    pub(crate) fn new_context(&mut self) -> u32 {
        let guest = self.guest_mut();
        let id = guest.next_context;
        guest.next_context += 1;
        id
    }

    pub(crate) fn guest(&self) -> &Guest {
        self.store.data()
    }

    pub(crate) fn guest_mut(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    pub(crate) fn memory_pages(&self) -> u64 {
        self.guest().memory.map_or(0, |memory| memory.size(&self.store))
    }

    /// Calls the guest for a context, unless the VM is dead.
    pub(crate) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        name: &'static str,
        callback: Option<TypedFunc<P, R>>,
        params: P,
    ) -> Called<R> {
        if self.dead {
            return Called::Dead;
        }
        let Some(callback) = callback else {
            return Called::Absent;
        };
        if let Some(fuel) = self.fuel {
            let _ = self.store.set_fuel(fuel);
        }
        let guest = self.store.data_mut();
        (guest.current, guest.effective, guest.callback) = (context, 0, name);
        match callback.call(&mut self.store, params) {
            Ok(value) => {
                if let (Some(given), Ok(left)) = (self.fuel, self.store.get_fuel()) {
                    let mut world = self.store.data().world.borrow_mut();
                    *world.instructions.entry(name).or_default() += given.saturating_sub(left);
                }
                Called::Value(value)
            }
            Err(error) => {
                self.dead = true;
                let trap = trap(&self.store, name, &error);
                let mut world = self.store.data().world.borrow_mut();
                world.log(self.thread, LogLevel::Critical, trap.to_string());
                world.traps.push(trap);
                Called::Dead
            }
        }
    }

    /// A trap in a start-up callback is an error; the trap itself is on record.
    fn checked<R>(&self, called: Called<R>) -> Result<Option<R>, Error> {
        match called {
            Called::Absent => Ok(None),
            Called::Value(value) => Ok(Some(value)),
            Called::Dead => {
                let trap = self.guest().world.borrow().traps.last().cloned();
                Err(Error::Trapped(trap.unwrap_or(Trap {
                    thread: self.thread,
                    callback: "start",
                    message: "the VM is dead".into(),
                })))
            }
        }
    }
}

impl Drop for Vm {
    /// Envoy cancels what a VM has open when it is replaced, not when it traps.
    fn drop(&mut self) {
        let guest = self.store.data();
        if let Ok(mut world) = guest.world.try_borrow_mut() {
            world.upstreams.forget_vm(guest.vm);
        }
    }
}

fn trap(store: &Store<Guest>, callback: &'static str, error: &wasmtime::Error) -> Trap {
    Trap { thread: store.data().thread, callback, message: format!("{error:?}") }
}
