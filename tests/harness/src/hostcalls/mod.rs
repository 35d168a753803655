//! The imports: every function of the proxy-wasm ABI 0.2.1 and the WASI that Envoy has.
//!
//! Each is a plain function of a [`Call`] that answers `Ok`, a status, or a trap. Before it runs,
//! the call is counted and may be failed by the test. Pointers of the guest are checked at the one
//! place where memory is read or written, so a bad one is InvalidMemoryAccess and never a panic of
//! the host. Bytes are handed over in memory that the guest allocates; a guest whose allocator
//! traps traps in this call.

mod control;
mod headers;
mod metrics;
mod properties;
mod shared;
mod upstream;
mod wasi;

use std::cell::RefMut;

use wasmtime::{Caller, Linker};

use crate::abi::{HostCall, Status};
use crate::vm::Guest;
use crate::world::World;

pub(crate) use properties::FILTER_STATE_OBJECTS;

/// Why a host call did not succeed.
enum Fail {
    /// The guest is told.
    Status(Status),
    /// The guest ends.
    Trap(wasmtime::Error),
}

impl From<Status> for Fail {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<wasmtime::Error> for Fail {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

type Done = Result<(), Fail>;

/// A host call under way: the guest's memory and everything around it.
struct Call<'a> {
    caller: Caller<'a, Guest>,
}

impl<'a> Call<'a> {
    fn new(caller: Caller<'a, Guest>) -> Self {
        Self { caller }
    }

    fn guest(&self) -> &Guest {
        self.caller.data()
    }

    fn guest_mut(&mut self) -> &mut Guest {
        self.caller.data_mut()
    }

    fn world(&self) -> RefMut<'_, World> {
        self.caller.data().world.borrow_mut()
    }

    /// The memory; looked up by name while a start function runs, before it is known.
    fn memory(&mut self) -> Result<wasmtime::Memory, Status> {
        if let Some(memory) = self.guest().memory {
            return Ok(memory);
        }
        let export = self.caller.get_export("memory").and_then(wasmtime::Extern::into_memory);
        export.ok_or(Status::InvalidMemoryAccess)
    }

    fn slice(&mut self, at: u32, len: u32) -> Result<&[u8], Status> {
        let memory = self.memory()?;
        let (at, len) = (at as usize, len as usize);
        let data = memory.data(&self.caller);
        at.checked_add(len).and_then(|end| data.get(at..end)).ok_or(Status::InvalidMemoryAccess)
    }

    fn read(&mut self, at: u32, len: u32) -> Result<Vec<u8>, Status> {
        self.slice(at, len).map(<[u8]>::to_vec)
    }

    fn read_text(&mut self, at: u32, len: u32) -> Result<String, Status> {
        self.slice(at, len).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Status> {
        let memory = self.memory()?;
        let place = memory
            .data_mut(&mut self.caller)
            .get_mut(at as usize..)
            .and_then(|place| place.get_mut(..bytes.len()))
            .ok_or(Status::InvalidMemoryAccess)?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn write_u32(&mut self, at: u32, value: u32) -> Result<(), Status> {
        self.write(at, &value.to_le_bytes())
    }

    fn write_u64(&mut self, at: u32, value: u64) -> Result<(), Status> {
        self.write(at, &value.to_le_bytes())
    }

    /// Memory of the guest's for `bytes`, filled; null for no bytes.
    fn allocate(&mut self, bytes: &[u8]) -> Result<u32, Fail> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let len = u32::try_from(bytes.len()).map_err(|_| Status::InvalidMemoryAccess)?;
        let allocate = self.guest().allocate.clone().ok_or(Status::InvalidMemoryAccess)?;
        let at = allocate.call(&mut self.caller, len)?;
        if at == 0 {
            return Err(Status::InvalidMemoryAccess.into());
        }
        self.write(at, bytes)?;
        Ok(at)
    }

    /// Hands bytes to the guest: pointer and size are written where it wants them.
    fn give(&mut self, bytes: &[u8], pointer_at: u32, size_at: u32) -> Done {
        let at = self.allocate(bytes)?;
        self.write_u32(pointer_at, at)?;
        self.write_u32(size_at, bytes.len() as u32)?;
        Ok(())
    }
}

/// Counts a call, fails it if the test wants that, else does it.
fn run(
    caller: Caller<'_, Guest>,
    call: HostCall,
    body: impl FnOnce(&mut Call<'_>) -> Done,
) -> wasmtime::Result<u32> {
    let mut context = Call::new(caller);
    let thread = context.guest().thread;
    if let Some(status) = context.world().faults.enter(call, thread) {
        return Ok(status);
    }
    match body(&mut context) {
        Ok(()) => Ok(Status::Ok.code()),
        Err(Fail::Status(status)) => Ok(status.code()),
        Err(Fail::Trap(error)) => Err(error),
    }
}

macro_rules! link {
    ($linker:ident, $($call:ident => $function:path, ($($arg:ident: $type:ty),*);)*) => {$(
        $linker.func_wrap(
            HostCall::$call.module(),
            HostCall::$call.name(),
            |caller: Caller<'_, Guest>, $($arg: $type),*| -> wasmtime::Result<u32> {
                run(caller, HostCall::$call, |call| $function(call, $($arg),*))
            },
        )?;
    )*};
}

/// Links all imports.
pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    link! { linker,
        Log => control::log, (level: u32, at: u32, len: u32);
        GetLogLevel => control::get_log_level, (to: u32);
        GetStatus => control::get_status, (code: u32, at: u32, len: u32);
        SetTickPeriod => control::set_tick_period, (millis: u32);
        GetCurrentTime => control::get_current_time, (to: u32);
        SetEffectiveContext => control::set_effective_context, (context: u32);
        Done => control::done, ();
        SendLocalResponse => control::send_local_response,
            (code: u32, d: u32, dl: u32, b: u32, bl: u32, h: u32, hl: u32, grpc: u32);
        ContinueStream => control::continue_stream, (kind: u32);
        CloseStream => control::close_stream, (kind: u32);
        CallForeignFunction => properties::call_foreign_function,
            (n: u32, nl: u32, a: u32, al: u32, to: u32, tol: u32);
        GetProperty => properties::get_property, (p: u32, pl: u32, to: u32, tol: u32);
        SetProperty => properties::set_property, (p: u32, pl: u32, v: u32, vl: u32);
        GetSharedData => shared::get_shared_data, (k: u32, kl: u32, to: u32, tol: u32, cas: u32);
        SetSharedData => shared::set_shared_data, (k: u32, kl: u32, v: u32, vl: u32, cas: u32);
        RegisterSharedQueue => shared::register_queue, (n: u32, nl: u32, to: u32);
        ResolveSharedQueue => shared::resolve_queue, (v: u32, vl: u32, n: u32, nl: u32, to: u32);
        DequeueSharedQueue => shared::dequeue, (token: u32, to: u32, tol: u32);
        EnqueueSharedQueue => shared::enqueue, (token: u32, v: u32, vl: u32);
        GetHeaderMapValue => headers::get_value, (map: u32, k: u32, kl: u32, to: u32, tol: u32);
        AddHeaderMapValue => headers::add_value, (map: u32, k: u32, kl: u32, v: u32, vl: u32);
        ReplaceHeaderMapValue => headers::replace_value,
            (map: u32, k: u32, kl: u32, v: u32, vl: u32);
        RemoveHeaderMapValue => headers::remove_value, (map: u32, k: u32, kl: u32);
        GetHeaderMapPairs => headers::get_pairs, (map: u32, to: u32, tol: u32);
        SetHeaderMapPairs => headers::set_pairs, (map: u32, at: u32, len: u32);
        GetHeaderMapSize => headers::get_size, (map: u32, to: u32);
        GetBufferBytes => headers::get_buffer, (kind: u32, from: u32, len: u32, to: u32, tol: u32);
        GetBufferStatus => headers::get_buffer_status, (kind: u32, len: u32, flags: u32);
        SetBufferBytes => headers::set_buffer, (kind: u32, from: u32, len: u32, v: u32, vl: u32);
        HttpCall => upstream::http_call,
            (u: u32, ul: u32, h: u32, hl: u32, b: u32, bl: u32, t: u32, tl: u32, ms: u32, to: u32);
        GrpcCall => upstream::grpc_call,
            (u: u32, ul: u32, s: u32, sl: u32, m: u32, ml: u32, h: u32, hl: u32, b: u32, bl: u32,
             ms: u32, to: u32);
        GrpcStream => upstream::grpc_stream,
            (u: u32, ul: u32, s: u32, sl: u32, m: u32, ml: u32, h: u32, hl: u32, to: u32);
        GrpcSend => upstream::grpc_send, (token: u32, at: u32, len: u32, end: u32);
        GrpcCancel => upstream::grpc_cancel, (token: u32);
        GrpcClose => upstream::grpc_close, (token: u32);
        DefineMetric => metrics::define, (kind: u32, n: u32, nl: u32, to: u32);
        IncrementMetric => metrics::increment, (id: u32, by: i64);
        RecordMetric => metrics::record, (id: u32, value: u64);
        GetMetric => metrics::get, (id: u32, to: u32);
    }
    wasi::link(linker)
}
