//! What `pintle check` says: findings, each with a code that stays, the cause and what to type.

use std::fmt::Display;

use serde::{Serialize, Serializer};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Works, and could be better or safer.
    Warn,
    /// Does not work, or is dangerous.
    Bad,
}

macro_rules! codes {
    ($($name:ident = $word:literal,)*) => {
        /// What is wrong, in a word that does not change; `docs/troubleshooting.md` has a section
        /// for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = concat!("`", $word, "`.")] $name,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

codes! {
    ConfigRefused = "config-refused",
    EtcdAway = "etcd-away",
    EtcdEmpty = "etcd-empty",
    FormatForeign = "format-foreign",
    SchemeForeign = "scheme-foreign",
    KeysUnread = "keys-unread",
    NatsAway = "nats-away",
    NatsStream = "nats-stream",
    NatsDenied = "nats-denied",
    NatsNoJetStream = "nats-no-jetstream",
    FileAway = "file-away",
    KubernetesAway = "kubernetes-away",
    SourcesNone = "sources-none",
    SourceImpaired = "source-impaired",
    SocketAbsent = "socket-absent",
    SocketClosed = "socket-closed",
    SocketRefuses = "socket-refuses",
    SocketOpen = "socket-open",
    QuotaFull = "quota-full",
    DiscoveryRefused = "discovery-refused",
    AgentAway = "agent-away",
    AgentNotReady = "agent-not-ready",
    AgentStale = "agent-stale",
    StateUnwritable = "state-unwritable",
    EntriesRefused = "entries-refused",
    EntriesAllRefused = "entries-all-refused",
    ValuesOverBudget = "values-over-budget",
    PolicyRefused = "policy-refused",
    PolicyTooCostly = "policy-too-costly",
    RemovalsHeld = "removals-held",
    IdsSeveral = "ids-several",
    BreakersOpen = "breakers-open",
    ServicePanics = "service-panics",
    EndpointsUnusable = "endpoints-unusable",
    FailoverUnmatched = "failover-unmatched",
    SwitchInForce = "switch-in-force",
    ServiceWithoutEndpoint = "service-without-endpoint",
    RingRefused = "ring-refused",
    ProxiesAbsent = "proxies-absent",
    ProxyGone = "proxy-gone",
    WorkersBehind = "workers-behind",
    ModuleOlder = "module-older",
    EnvoyAway = "envoy-away",
    EnvoyNotReady = "envoy-not-ready",
    ListenersNone = "listeners-none",
    NodeUnnamed = "node-unnamed",
    AmbientWaypoint = "ambient-waypoint",
    WasmAbsent = "wasm-absent",
    WasmInactive = "wasm-inactive",
    WasmTrapped = "wasm-trapped",
    WasmFailureOpen = "wasm-failure-open",
    WasmFailureClosed = "wasm-failure-closed",
    WasmBackoff = "wasm-backoff",
    WasmVmId = "wasm-vm-id",
    WasmPrecompiled = "wasm-precompiled",
    WasmUnchecked = "wasm-unchecked",
    PluginRefused = "plugin-refused",
    PluginTwice = "plugin-twice",
    PluginSyncCluster = "plugin-sync-cluster",
    PluginBreakerAlone = "plugin-breaker-alone",
    PluginHeaderUnread = "plugin-header-unread",
    AgentClusterAbsent = "agent-cluster-absent",
    AgentClusterHttp1 = "agent-cluster-http1",
    AgentClusterIdle = "agent-cluster-idle",
    ClientChoosesHost = "client-chooses-host",
    HeaderRemovedEarly = "header-removed-early",
    HeaderOnTheWire = "header-on-the-wire",
    OriginalDstHeader = "original-dst-header",
    EdsWaits = "eds-waits",
    ServiceUnknown = "service-unknown",
    MetadataUnread = "metadata-unread",
    OverrideHostAbsent = "override-host-absent",
    ChoiceInAggregate = "choice-in-aggregate",
    ChoiceInSession = "choice-in-session",
    RequestsInCache = "requests-in-cache",
    HostsForeign = "hosts-foreign",
    HostsMissing = "hosts-missing",
    HostsUnnamed = "hosts-unnamed",
    HostsByName = "hosts-by-name",
    RouteWithoutCluster = "route-without-cluster",
    RetriesUnfit = "retries-unfit",
    UpstreamLogAbsent = "upstream-log-absent",
    HealthBeside = "health-beside",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong; none when nothing is.
    pub code: Option<Code>,
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub todo: Option<String>,
}

impl Finding {
    pub(super) fn good(what: &str, detail: impl Into<String>) -> Self {
        Self {
            code: None,
            what: what.to_owned(),
            state: State::Good,
            detail: detail.into(),
            todo: None,
        }
    }

    pub(super) fn warn(
        code: Code,
        what: &str,
        detail: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        Self {
            code: Some(code),
            state: State::Warn,
            todo: Some(todo.into()),
            ..Self::good(what, detail)
        }
    }

    pub(super) fn bad(
        code: Code,
        what: &str,
        detail: impl Into<String>,
        todo: impl Into<String>,
    ) -> Self {
        Self { state: State::Bad, ..Self::warn(code, what, detail, todo) }
    }
}

/// `1 endpoint`, `2 endpoints`.
pub(super) fn plural<N: Display + PartialEq + From<u8>>(count: N, what: &str) -> String {
    let s = if count == N::from(1) { "" } else { "s" };
    format!("{count} {what}{s}")
}

/// At most `most` of the names, and how many there are beyond them.
pub(super) fn some<T: AsRef<str>>(names: impl IntoIterator<Item = T>, most: usize) -> String {
    let names: Vec<T> = names.into_iter().collect();
    let shown: Vec<&str> = names.iter().take(most).map(AsRef::as_ref).collect();
    let shown = shown.join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
