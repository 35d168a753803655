//! How an Envoy is set up: what its configuration would say, and the seeds of a deterministic run.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use crate::abi::{LogLevel, Status};
use crate::envoy::Envoy;
use crate::error::Error;
use crate::faults::Fault;
use crate::hostcalls::FILTER_STATE_OBJECTS;
use crate::module::Module;
use crate::property::{Value, join};
use crate::world::World;

/// What Envoy does for requests to a filter whose VM is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// 503, for ever. Envoy's default.
    Closed,
    /// The filter is left out.
    Open,
    /// The VM is made anew by the next request, if it was loaded at least so long ago; 503 until
    /// then. Envoy's default is 1 s and adds up to half of it by chance, which this host does not.
    Reload(Duration),
}

/// A foreign function: the guest's bytes in, bytes or a status out.
pub type ForeignFunction = Rc<dyn Fn(&[u8]) -> Result<Vec<u8>, Status>>;

/// What does not change while the Envoy runs.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) vm_id: String,
    pub(crate) plugin_name: String,
    pub(crate) root_id: String,
    pub(crate) vm_configuration: Vec<u8>,
    pub(crate) logger_configuration: Option<Rc<[u8]>>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) properties: BTreeMap<Vec<u8>, Value>,
    pub(crate) log_level: LogLevel,
    pub(crate) failure_policy: FailurePolicy,
    pub(crate) filter_state_objects: BTreeSet<String>,
    pub(crate) foreign_functions: HashMap<String, ForeignFunction>,
    pub(crate) fuel: Option<u64>,
    pub(crate) memory_limit: usize,
}

/// Sets up an [`Envoy`].
#[derive(Clone)]
#[must_use]
pub struct Builder {
    module: Module,
    setup: Setup,
    configuration: Vec<u8>,
    workers: usize,
    clusters: Vec<String>,
    down: Vec<String>,
    faults: Vec<Fault>,
    start: Duration,
    step: Duration,
    seed: u64,
}

impl Builder {
    pub(crate) fn new(module: &Module) -> Self {
        Self {
            module: module.clone(),
            setup: Setup {
                vm_id: String::new(),
                plugin_name: "plugin".into(),
                root_id: String::new(),
                vm_configuration: Vec::new(),
                logger_configuration: None,
                environment: Vec::new(),
                properties: BTreeMap::new(),
                log_level: LogLevel::Info,
                failure_policy: FailurePolicy::Closed,
                filter_state_objects: FILTER_STATE_OBJECTS.map(str::to_owned).into(),
                foreign_functions: HashMap::new(),
                fuel: None,
                // proxy-wasm-cpp-host's limit.
                memory_limit: 1 << 30,
            },
            configuration: Vec::new(),
            workers: 1,
            clusters: Vec::new(),
            down: Vec::new(),
            faults: Vec::new(),
            // A date of no meaning, far from 0 so that time arithmetic shows its mistakes.
            start: Duration::from_secs(1_700_000_000),
            step: Duration::ZERO,
            seed: 0,
        }
    }

    /// The number of workers, 1 by default. With 0 it is a bootstrap singleton: canary and main
    /// thread.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// `vm_config.vm_id`: whom shared data and queues are shared with. Empty by default, as in
    /// Istio.
    pub fn vm_id(mut self, vm_id: &str) -> Self {
        self.setup.vm_id = vm_id.to_owned();
        self
    }

    /// `name` of the plugin.
    pub fn plugin_name(mut self, name: &str) -> Self {
        self.setup.plugin_name = name.to_owned();
        self
    }

    /// `root_id` of the plugin.
    pub fn root_id(mut self, root_id: &str) -> Self {
        self.setup.root_id = root_id.to_owned();
        self
    }

    /// `configuration` of the plugin.
    pub fn plugin_configuration(mut self, configuration: impl AsRef<[u8]>) -> Self {
        self.configuration = configuration.as_ref().to_vec();
        self
    }

    /// `vm_config.configuration`.
    pub fn vm_configuration(mut self, configuration: impl AsRef<[u8]>) -> Self {
        self.setup.vm_configuration = configuration.as_ref().to_vec();
        self
    }

    /// Adds a Wasm access logger of the same module, vm_id and VM configuration: a second plugin in
    /// the same VMs, whose root context gets `proxy_on_log` after the filter's.
    pub fn access_logger(mut self, configuration: impl AsRef<[u8]>) -> Self {
        self.setup.logger_configuration = Some(configuration.as_ref().into());
        self
    }

    /// `vm_config.environment_variables`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.setup.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A property of every request; one whose path begins with `node`, `xds.node`, `plugin_` or
    /// `listener_` is also there without a request.
    pub fn property(mut self, path: &[&str], value: impl Into<Value>) -> Self {
        self.setup.properties.insert(join(path), value.into());
        self
    }

    /// Lines below this level are dropped, and the guest can ask for it. Info by default, as in
    /// Envoy.
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.setup.log_level = level;
        self
    }

    /// `failure_policy`.
    pub fn failure_policy(mut self, policy: FailurePolicy) -> Self {
        self.setup.failure_policy = policy;
        self
    }

    /// A cluster that filters can call; its server is up.
    pub fn cluster(mut self, name: &str) -> Self {
        self.clusters.push(name.to_owned());
        self
    }

    /// A cluster whose server is down from the start.
    pub fn cluster_down(mut self, name: &str) -> Self {
        self.down.push(name.to_owned());
        self.cluster(name)
    }

    /// A further name that `set_envoy_filter_state` accepts.
    pub fn filter_state_object(mut self, name: &str) -> Self {
        self.setup.filter_state_objects.insert(name.to_owned());
        self
    }

    /// A further foreign function, or another one under a known name.
    pub fn foreign_function(
        mut self,
        name: &str,
        function: impl Fn(&[u8]) -> Result<Vec<u8>, Status> + 'static,
    ) -> Self {
        self.setup.foreign_functions.insert(name.to_owned(), Rc::new(function));
        self
    }

    /// A host call that will fail, from the canary on.
    pub fn inject(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// A callback that needs more than `units` of wasmtime's fuel (about one per instruction)
    /// traps. Needs a module made by [`Module::with_fuel`].
    pub fn fuel_per_callback(mut self, units: u64) -> Self {
        self.setup.fuel = Some(units);
        self
    }

    /// The most memory a VM may have, in bytes; 1 GiB by default, as in Envoy.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.setup.memory_limit = bytes;
        self
    }

    /// The wall clock at the start, since 1970.
    pub fn start_time(mut self, since_epoch: Duration) -> Self {
        self.start = since_epoch;
        self
    }

    /// How far the clock goes each time it is read. Zero by default; in Envoy time moves in a
    /// callback.
    pub fn clock_step(mut self, step: Duration) -> Self {
        self.step = step;
        self
    }

    /// The seed of `random_get`; 0 by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Starts it as Envoy does: a canary VM is configured and dropped, then the main thread's VM,
    /// then one for each worker.
    ///
    /// # Errors
    /// When any VM traps in its start, or refuses its configuration: Envoy would not start.
    pub fn build(self) -> Result<Envoy, Error> {
        if self.setup.fuel.is_some() && !self.module.counts_fuel() {
            return Err(Error::NoFuel);
        }
        let (start, step) = (self.start.as_nanos() as u64, self.step.as_nanos() as u64);
        let mut world = World::new(start, step, self.seed);
        for name in &self.clusters {
            world.upstreams.add(name);
        }
        for name in &self.down {
            if let Some(cluster) = world.upstreams.clusters.get_mut(name) {
                cluster.up = false;
            }
        }
        world.faults.pending = self.faults;
        let world = Rc::new(RefCell::new(world));
        Envoy::start(self.module, Rc::new(self.setup), world, self.configuration, self.workers)
    }
}
