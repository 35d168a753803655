//! An Envoy in the harness with the agent's end of the stream in the test's hands.

use std::sync::OnceLock;
use std::time::Duration;

use pintle_artifact::PINTLE;
use pintle_contract::{Down, Endpoint, Initial, Message, Table, Up, Version};
use pintle_harness::{
    Builder, Cluster, Envoy, FailurePolicy, Module, RequestBuilder, ServerStream,
};

pub const TICK: Duration = Duration::from_millis(100);

/// Everything on, one service source, as `envoy/envoy.yaml` has it.
pub const ALL: &str = r#"{
    "service": {"from": ["cluster_metadata", "cluster"]},
    "sync": {"cluster": "pintle_agent"},
    "select": {}, "breaker": {}, "trace": {}
}"#;

pub fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| Module::new(PINTLE).expect("the module loads"))
}

pub fn builder(configuration: &str) -> Builder {
    builder_of(module(), configuration)
}

/// The same around another module.
pub fn builder_of(module: &Module, configuration: &str) -> Builder {
    Envoy::builder(module)
        .workers(2)
        .failure_policy(FailurePolicy::Reload(Duration::from_millis(10)))
        .vm_id("pintle")
        .plugin_configuration(configuration)
        .property(&["xds", "node", "id"], "proxy-1")
        .filter_state_object("envoy.network.transport_socket.original_dst_address")
        .cluster("pintle_agent")
        .cluster("otel")
}

/// An Envoy with its agent: the stream is open and the hello has come.
pub struct Run {
    pub envoy: Envoy,
    pub agent: Cluster,
    pub stream: ServerStream,
    pub sequence: u64,
}

impl Run {
    pub fn start(configuration: &str) -> Self {
        Self::of(builder(configuration).build().expect("the module starts"))
    }

    pub fn of(mut envoy: Envoy) -> Self {
        let agent = envoy.cluster("pintle_agent");
        let stream = accept(&mut envoy, &agent);
        // The leader notices the others with its next tick.
        envoy.advance(TICK);
        Self { envoy, agent, stream, sequence: 0 }
    }

    /// Accepts the next stream, after the one before has ended.
    pub fn reconnect(&mut self) {
        self.stream = accept(&mut self.envoy, &self.agent);
    }

    pub fn version(&self) -> Version {
        Version { epoch: 1, sequence: self.sequence }
    }

    /// A frame goes out, and whatever it causes happens.
    pub fn send(&mut self, down: &Down) {
        assert!(self.stream.send(down.encode()), "the stream is open");
        self.envoy.settle();
    }

    pub fn table(&mut self, service: &str, endpoints: Vec<Endpoint>) {
        self.table_with(service, endpoints, "");
    }

    pub fn table_with(&mut self, service: &str, endpoints: Vec<Endpoint>, policy: &str) {
        self.sequence += 1;
        let table = Table {
            service: service.to_owned(),
            version: self.version(),
            endpoints,
            policy: policy.to_owned(),
        };
        self.send(&Down::Table(table));
    }

    pub fn complete(&mut self) {
        let end = Initial { version: self.version(), full: true };
        self.send(&Down::InitialEnd(end));
    }

    /// Everything that has come up the stream and was not read yet.
    pub fn received(&self) -> Vec<Up> {
        let decode = |bytes: Vec<u8>| Up::decode(&bytes).expect("the module sends whole frames");
        std::iter::from_fn(|| self.stream.recv()).map(decode).collect()
    }

    /// Time passes with an agent that is alive, a heartbeat a second.
    pub fn live(&mut self, time: Duration) {
        let end = self.envoy.elapsed() + time;
        while self.envoy.elapsed() < end {
            self.send(&Down::Heartbeat(self.version()));
            self.envoy.advance(Duration::from_secs(1).min(end - self.envoy.elapsed()));
        }
    }

    pub fn tick(&mut self) {
        self.envoy.advance(TICK);
    }
}

/// Waits for the stream of the leader; the first election takes two ticks.
pub fn accept(envoy: &mut Envoy, agent: &Cluster) -> ServerStream {
    for _ in 0..60 {
        if let Some(stream) = agent.accept() {
            return stream;
        }
        envoy.advance(TICK);
    }
    panic!("no stream within six seconds; log: {:#?}", envoy.logs());
}

/// `a-0`, `a-1`, ... at 10.0.0.1, 10.0.0.2, ..., port 80.
pub fn endpoints(count: u8) -> Vec<Endpoint> {
    (0..count).map(endpoint).collect()
}

pub fn endpoint(number: u8) -> Endpoint {
    let address = std::net::SocketAddr::from(([10, 0, 0, number + 1], 80));
    Endpoint::new(format!("a-{number}"), address)
}

pub fn get(service: &str) -> RequestBuilder {
    RequestBuilder::get("shop.example", "/cart?id=7").cluster(service)
}

/// The list that the module gave Envoy.
pub fn list(request: &pintle_harness::Request) -> Vec<String> {
    let header = request.header("x-pintle-endpoints").unwrap_or_default();
    header.split(',').filter(|entry| !entry.is_empty()).map(ToOwned::to_owned).collect()
}
