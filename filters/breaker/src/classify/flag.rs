//! Envoy's response flags: bit `n` is the `n`th of `CoreResponseFlag` in its `stream_info.h`.

/// LH: this Envoy's own health check failed.
pub const LOCAL_HEALTH: u64 = 1;
/// UH: no healthy upstream.
pub const NO_HEALTHY_UPSTREAM: u64 = 1 << 1;
/// UT: the request timed out upstream, per try or as a whole.
pub const UPSTREAM_TIMEOUT: u64 = 1 << 2;
/// LR: Envoy's codec reset the stream.
pub const LOCAL_RESET: u64 = 1 << 3;
/// UR: the endpoint reset the stream.
pub const UPSTREAM_RESET: u64 = 1 << 4;
/// UF: the connection could not be made.
pub const CONNECTION_FAILURE: u64 = 1 << 5;
/// UC: the connection was closed.
pub const CONNECTION_TERMINATION: u64 = 1 << 6;
/// UO: the cluster's own limits were reached.
pub const OVERFLOW: u64 = 1 << 7;
/// NR: no route.
pub const NO_ROUTE: u64 = 1 << 8;
/// DI: a delay was injected.
pub const DELAY_INJECTED: u64 = 1 << 9;
/// FI: a fault was injected.
pub const FAULT_INJECTED: u64 = 1 << 10;
/// RL: limited by the local rate limit.
pub const RATE_LIMITED: u64 = 1 << 11;
/// UAEX: refused by the authorization service.
pub const UNAUTHORIZED: u64 = 1 << 12;
/// RLSE: the rate limit service failed.
pub const RATE_LIMIT_SERVICE: u64 = 1 << 13;
/// DC: the client closed the connection.
pub const CLIENT_GONE: u64 = 1 << 14;
/// URX: retries or connection attempts are used up. Comes with the cause.
pub const RETRIES_EXHAUSTED: u64 = 1 << 15;
/// SI: the stream was idle for too long, on whichever side.
pub const STREAM_IDLE: u64 = 1 << 16;
/// IH: the client's `x-envoy-*` headers were refused.
pub const INVALID_HEADERS: u64 = 1 << 17;
/// DPE: the client broke the protocol.
pub const CLIENT_PROTOCOL: u64 = 1 << 18;
/// UMSDR: the configured longest stream duration was reached.
pub const MAX_STREAM_DURATION: u64 = 1 << 19;
/// RFCF: answered from a cache.
pub const FROM_CACHE: u64 = 1 << 20;
/// NFCF: a filter's configuration never came.
pub const NO_FILTER_CONFIG: u64 = 1 << 21;
/// DT: the client's connection reached its longest duration.
pub const CLIENT_DURATION: u64 = 1 << 22;
/// UPE: the endpoint broke the protocol, or stopped in the middle of a body.
pub const UPSTREAM_PROTOCOL: u64 = 1 << 23;
/// NC: the cluster does not exist.
pub const NO_CLUSTER: u64 = 1 << 24;
/// OM: the overload manager ended the stream.
pub const OVERLOAD_MANAGER: u64 = 1 << 25;
/// DF: the name did not resolve.
pub const DNS: u64 = 1 << 26;
/// DO: dropped by `drop_overload`.
pub const DROP_OVERLOAD: u64 = 1 << 27;
/// DR: the client reset the stream.
pub const CLIENT_RESET: u64 = 1 << 28;
/// UDO: dropped by a `drop_overload` of 100 %.
pub const UNCONDITIONAL_DROP: u64 = 1 << 29;

/// The client ended it.
pub const CLIENT: u64 =
    CLIENT_GONE | CLIENT_RESET | CLIENT_PROTOCOL | CLIENT_DURATION | INVALID_HEADERS;

/// This Envoy ended it because its time was up.
pub const WAITED: u64 = UPSTREAM_TIMEOUT | STREAM_IDLE | MAX_STREAM_DURATION;

/// This Envoy ended or answered it, on its own account.
pub const LOCAL: u64 = LOCAL_HEALTH
    | NO_HEALTHY_UPSTREAM
    | OVERFLOW
    | NO_ROUTE
    | FAULT_INJECTED
    | RATE_LIMITED
    | UNAUTHORIZED
    | RATE_LIMIT_SERVICE
    | FROM_CACHE
    | NO_FILTER_CONFIG
    | NO_CLUSTER
    | OVERLOAD_MANAGER
    | DNS
    | DROP_OVERLOAD
    | UNCONDITIONAL_DROP;

/// The transport to the endpoint failed.
pub const TRANSPORT: u64 =
    LOCAL_RESET | UPSTREAM_RESET | CONNECTION_FAILURE | CONNECTION_TERMINATION | UPSTREAM_PROTOCOL;

/// Any of these decides, whatever the code, as long as no head has come.
pub const DECIDES: u64 = CLIENT | WAITED | LOCAL | TRANSPORT;
