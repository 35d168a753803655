//! The words of the proxy-wasm ABI 0.2.1: statuses, levels, actions, the names of all imports, and
//! the serialised form of a list of pairs.
//!
//! Numbers and names are those of the specification (`proxy-wasm/spec`, abi-versions/v0.2.1) and of
//! proxy-wasm-cpp-host's `exports.h`, which is what Envoy links. The list of imports is closed on
//! purpose: Envoy refuses a module that imports anything else, and so does this host.

use std::fmt;

/// What a host call answers, as the ABI numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Status {
    /// The call did what it says.
    Ok = 0,
    /// No such key, property, queue, token, metric or function.
    NotFound = 1,
    /// An argument outside of its range, or a map that cannot be reached in this callback.
    BadArgument = 2,
    /// A value could not be serialised.
    SerializationFailure = 3,
    /// A value could not be parsed; for gRPC: no such cluster.
    ParseFailure = 4,
    /// A CEL expression did not parse.
    BadExpression = 5,
    /// A pointer of the guest points outside of its memory.
    InvalidMemoryAccess = 6,
    /// The queue is empty.
    Empty = 7,
    /// The compare-and-swap number is not the current one.
    CasMismatch = 8,
    /// A result has another size than expected.
    ResultMismatch = 9,
    /// Everything else that went wrong; also a call outside of the allowed capabilities.
    InternalFailure = 10,
    /// The connection broke.
    BrokenConnection = 11,
    /// Not implemented by the host.
    Unimplemented = 12,
}

impl Status {
    /// Every status of the specification, in order: the rows of an injection table.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::NotFound,
        Self::BadArgument,
        Self::SerializationFailure,
        Self::ParseFailure,
        Self::BadExpression,
        Self::InvalidMemoryAccess,
        Self::Empty,
        Self::CasMismatch,
        Self::ResultMismatch,
        Self::InternalFailure,
        Self::BrokenConnection,
        Self::Unimplemented,
    ];

    /// The number that the guest sees.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

impl From<Status> for u32 {
    fn from(status: Status) -> Self {
        status.code()
    }
}

/// A log level of `proxy_log`; the order is the numbers' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// 0
    Trace = 0,
    /// 1
    Debug = 1,
    /// 2; what the guest prints to stdout arrives here.
    Info = 2,
    /// 3
    Warn = 3,
    /// 4; what the guest prints to stderr (a panic message) arrives here.
    Error = 4,
    /// 5
    Critical = 5,
}

impl LogLevel {
    pub(crate) const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 => Self::Error,
            5 => Self::Critical,
            _ => return None,
        })
    }
}

/// What a header callback answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The request goes on to the next filter.
    Continue,
    /// The request waits: for a local reply or for `proxy_continue_stream`.
    Pause,
}

macro_rules! host_calls {
    ($($variant:ident $module:literal $name:literal),* $(,)?) => {
        /// Every import that this host links: the proxy-wasm ABI 0.2.1 and the part of WASI preview
        /// 1 that Envoy has.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum HostCall {
            $(#[doc = concat!("`", $module, "::", $name, "`")] $variant,)*
        }

        impl HostCall {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The import's name, without its module.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The import's module: `env` or `wasi_snapshot_preview1`.
            pub const fn module(self) -> &'static str {
                match self { $(Self::$variant => $module,)* }
            }

            /// The call of that name, if this host has it.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

host_calls! {
    Log "env" "proxy_log",
    GetLogLevel "env" "proxy_get_log_level",
    GetStatus "env" "proxy_get_status",
    SetTickPeriod "env" "proxy_set_tick_period_milliseconds",
    GetCurrentTime "env" "proxy_get_current_time_nanoseconds",
    GetProperty "env" "proxy_get_property",
    SetProperty "env" "proxy_set_property",
    GetSharedData "env" "proxy_get_shared_data",
    SetSharedData "env" "proxy_set_shared_data",
    RegisterSharedQueue "env" "proxy_register_shared_queue",
    ResolveSharedQueue "env" "proxy_resolve_shared_queue",
    DequeueSharedQueue "env" "proxy_dequeue_shared_queue",
    EnqueueSharedQueue "env" "proxy_enqueue_shared_queue",
    GetHeaderMapValue "env" "proxy_get_header_map_value",
    AddHeaderMapValue "env" "proxy_add_header_map_value",
    ReplaceHeaderMapValue "env" "proxy_replace_header_map_value",
    RemoveHeaderMapValue "env" "proxy_remove_header_map_value",
    GetHeaderMapPairs "env" "proxy_get_header_map_pairs",
    SetHeaderMapPairs "env" "proxy_set_header_map_pairs",
    GetHeaderMapSize "env" "proxy_get_header_map_size",
    GetBufferBytes "env" "proxy_get_buffer_bytes",
    GetBufferStatus "env" "proxy_get_buffer_status",
    SetBufferBytes "env" "proxy_set_buffer_bytes",
    SendLocalResponse "env" "proxy_send_local_response",
    ContinueStream "env" "proxy_continue_stream",
    CloseStream "env" "proxy_close_stream",
    HttpCall "env" "proxy_http_call",
    GrpcCall "env" "proxy_grpc_call",
    GrpcStream "env" "proxy_grpc_stream",
    GrpcSend "env" "proxy_grpc_send",
    GrpcCancel "env" "proxy_grpc_cancel",
    GrpcClose "env" "proxy_grpc_close",
    DefineMetric "env" "proxy_define_metric",
    IncrementMetric "env" "proxy_increment_metric",
    RecordMetric "env" "proxy_record_metric",
    GetMetric "env" "proxy_get_metric",
    SetEffectiveContext "env" "proxy_set_effective_context",
    Done "env" "proxy_done",
    CallForeignFunction "env" "proxy_call_foreign_function",
    FdWrite "wasi_snapshot_preview1" "fd_write",
    FdRead "wasi_snapshot_preview1" "fd_read",
    FdSeek "wasi_snapshot_preview1" "fd_seek",
    FdClose "wasi_snapshot_preview1" "fd_close",
    FdFdstatGet "wasi_snapshot_preview1" "fd_fdstat_get",
    FdFdstatSetFlags "wasi_snapshot_preview1" "fd_fdstat_set_flags",
    FdPrestatGet "wasi_snapshot_preview1" "fd_prestat_get",
    FdPrestatDirName "wasi_snapshot_preview1" "fd_prestat_dir_name",
    PathOpen "wasi_snapshot_preview1" "path_open",
    EnvironGet "wasi_snapshot_preview1" "environ_get",
    EnvironSizesGet "wasi_snapshot_preview1" "environ_sizes_get",
    ArgsGet "wasi_snapshot_preview1" "args_get",
    ArgsSizesGet "wasi_snapshot_preview1" "args_sizes_get",
    ClockTimeGet "wasi_snapshot_preview1" "clock_time_get",
    RandomGet "wasi_snapshot_preview1" "random_get",
    SchedYield "wasi_snapshot_preview1" "sched_yield",
    PollOneoff "wasi_snapshot_preview1" "poll_oneoff",
    ProcExit "wasi_snapshot_preview1" "proc_exit",
}

impl fmt::Display for HostCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// proxy-wasm-cpp-host's `limits.h`: a list of pairs from the guest is at most 1 MiB and 1024 pairs
/// long.
const MAX_PAIRS: usize = 1024;
const MAX_PAIRS_BYTES: usize = 1 << 20;

/// A list of pairs: a count, then the two lengths of every pair, then the bytes, each closed by a
/// NUL. All numbers are little-endian and 32 bits wide.
pub fn encode_pairs<'a>(pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let pairs: Vec<_> = pairs.into_iter().collect();
    let bytes: usize = pairs.iter().map(|(k, v)| 10 + k.len() + v.len()).sum();
    let mut out = Vec::with_capacity(4 + bytes);
    out.extend_from_slice(&(pairs.len() as u32).to_le_bytes());
    for (key, value) in &pairs {
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    }
    for (key, value) in pairs {
        out.extend_from_slice(key);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
    out
}

/// The list of pairs in `bytes`; `None` for anything that is not one (Envoy then goes on with an
/// empty list), and for more than 1024 pairs or 1 MiB.
pub fn decode_pairs(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    if bytes.len() > MAX_PAIRS_BYTES {
        return None;
    }
    let word = |at: usize| -> Option<usize> {
        let word = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(word.try_into().ok()?) as usize)
    };
    let count = word(0)?;
    if count > MAX_PAIRS {
        return None;
    }
    let mut at = 4 + count * 8;
    let mut take = |len: usize| -> Option<Vec<u8>> {
        let end = at.checked_add(len)?;
        let part = bytes.get(at..end)?.to_vec();
        if *bytes.get(end)? != 0 {
            return None;
        }
        at = end + 1;
        Some(part)
    };
    let mut pairs = Vec::with_capacity(count);
    for i in 0..count {
        let key = take(word(4 + i * 8)?)?;
        let value = take(word(8 + i * 8)?)?;
        pairs.push((key, value));
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_pair_list_are_those_of_the_specification() {
        let bytes = encode_pairs([(&b"a"[..], &b"bc"[..]), (b"", b"")]);
        let expected = b"\x02\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0a\0bc\0\0\0";
        assert_eq!(bytes, expected);
        let back = decode_pairs(&bytes).unwrap();
        assert_eq!(back, [(b"a".to_vec(), b"bc".to_vec()), (vec![], vec![])]);
    }

    #[test]
    fn a_cut_pair_list_is_none_at_every_length() {
        let bytes = encode_pairs([(&b"name"[..], &b"value"[..]), (b"x", b"y")]);
        for len in 0..bytes.len() {
            assert_eq!(decode_pairs(&bytes[..len]), None, "cut at {len}");
        }
        assert_eq!(decode_pairs(&u32::MAX.to_le_bytes()), None);
    }

    #[test]
    fn every_import_is_found_by_its_name() {
        for call in HostCall::ALL {
            assert_eq!(HostCall::from_name(call.name()), Some(*call));
        }
    }
}
