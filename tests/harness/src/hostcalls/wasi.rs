//! The part of WASI preview 1 that Envoy has, under both of its module names.
//!
//! Output becomes log lines, time is the virtual clock, randomness is seeded, the environment is
//! what the test set; there are no files. Numbers are WASI's errno.

use wasmtime::{Caller, Linker};

use super::{Call, Fail};
use crate::abi::{HostCall, LogLevel, Status};
use crate::vm::Guest;

const SUCCESS: u32 = 0;
const BADF: u32 = 8;
const FAULT: u32 = 21;
const NOSYS: u32 = 52;
const NOTSUP: u32 = 58;

/// Errno, or a bad pointer.
type Errno = Result<u32, Status>;

fn run(
    caller: Caller<'_, Guest>,
    call: HostCall,
    body: impl FnOnce(&mut Call<'_>) -> Errno,
) -> wasmtime::Result<u32> {
    let mut errno = SUCCESS;
    let injected = super::run(caller, call, |call| {
        errno = body(call).unwrap_or(FAULT);
        Ok::<(), Fail>(())
    })?;
    Ok(if injected == SUCCESS { errno } else { injected })
}

macro_rules! link {
    ($linker:ident, $module:ident, $($call:ident ($($arg:ident: $type:ty),*) $body:expr;)*) => {$(
        $linker.func_wrap(
            $module,
            HostCall::$call.name(),
            |caller: Caller<'_, Guest>, $($arg: $type),*| -> wasmtime::Result<u32> {
                $(let _ = $arg;)*
                let body: fn(&mut Call<'_>, $($type),*) -> Errno = $body;
                run(caller, HostCall::$call, |call| body(call, $($arg),*))
            },
        )?;
    )*};
}

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        link! { linker, module,
            FdWrite(fd: u32, iovs: u32, count: u32, written: u32) fd_write;
            FdRead(fd: u32, iovs: u32, count: u32, read: u32) |_, _, _, _, _| Ok(NOSYS);
            FdSeek(fd: u32, offset: i64, whence: u32, to: u32) |_, _, _, _, _| Ok(SUCCESS);
            FdClose(fd: u32) |_, _| Ok(SUCCESS);
            FdFdstatGet(fd: u32, to: u32) fd_fdstat_get;
            FdFdstatSetFlags(fd: u32, flags: u32) |_, _, _| Ok(NOSYS);
            FdPrestatGet(fd: u32, to: u32) |_, _, _| Ok(BADF);
            FdPrestatDirName(fd: u32, to: u32, len: u32) |_, _, _, _| Ok(BADF);
            PathOpen(fd: u32, dirflags: u32, path: u32, len: u32, oflags: u32, rights: i64,
                inherit: i64, flags: u32, to: u32) |_, _, _, _, _, _, _, _, _, _| Ok(BADF);
            EnvironGet(list: u32, text: u32) environ_get;
            EnvironSizesGet(count: u32, size: u32) environ_sizes_get;
            ArgsGet(list: u32, text: u32) |_, _, _| Ok(SUCCESS);
            ArgsSizesGet(count: u32, size: u32) |call, count, size| {
                call.write_u32(count, 0)?;
                call.write_u32(size, 0)?;
                Ok(SUCCESS)
            };
            ClockTimeGet(id: u32, precision: i64, to: u32) clock_time_get;
            RandomGet(to: u32, len: u32) random_get;
            SchedYield() |_| Ok(SUCCESS);
            PollOneoff(subs: u32, events: u32, count: u32, stored: u32) |_, _, _, _, _| Ok(NOSYS);
        }
        linker.func_wrap(
            module,
            HostCall::ProcExit.name(),
            |caller: Caller<'_, Guest>, code: u32| -> wasmtime::Result<()> {
                super::run(caller, HostCall::ProcExit, |_| Ok(()))?;
                Err(wasmtime::Error::msg(format!("proc_exit({code})")))
            },
        )?;
    }
    Ok(())
}

fn fd_write(call: &mut Call<'_>, fd: u32, iovs: u32, count: u32, written: u32) -> Errno {
    let level = match fd {
        1 => LogLevel::Info,
        2 => LogLevel::Error,
        _ => return Ok(BADF),
    };
    let mut text = Vec::new();
    for i in 0..count {
        let at = i.checked_mul(8).and_then(|o| iovs.checked_add(o));
        let iov = call.read(at.ok_or(Status::InvalidMemoryAccess)?, 8)?;
        let word = |at: usize| -> u32 {
            iov.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        text.extend_from_slice(call.slice(word(0), word(4))?);
    }
    let size = text.len() as u32;
    let line = text.strip_suffix(b"\n").unwrap_or(&text);
    let line = String::from_utf8_lossy(line).into_owned();
    let thread = call.guest().thread;
    if size > 0 {
        call.world().log(thread, level, line);
    }
    call.write_u32(written, size)?;
    Ok(SUCCESS)
}

fn fd_fdstat_get(call: &mut Call<'_>, fd: u32, to: u32) -> Errno {
    if fd != 1 && fd != 2 {
        return Ok(BADF);
    }
    // Zeroes, but for the one right that is there: to write.
    let mut stat = [0u8; 24];
    stat[8..16].copy_from_slice(&64u64.to_le_bytes());
    call.write(to, &stat)?;
    Ok(SUCCESS)
}

fn environ_get(call: &mut Call<'_>, list: u32, text: u32) -> Errno {
    let setup = std::rc::Rc::clone(&call.guest().setup);
    let (mut list, mut text) = (list, text);
    for (name, value) in &setup.environment {
        let entry = format!("{name}={value}\0");
        call.write_u32(list, text)?;
        call.write(text, entry.as_bytes())?;
        list = list.wrapping_add(4);
        text = text.wrapping_add(entry.len() as u32);
    }
    Ok(SUCCESS)
}

fn environ_sizes_get(call: &mut Call<'_>, count: u32, size: u32) -> Errno {
    let environment = &call.guest().setup.environment;
    let entries = environment.len() as u32;
    let bytes: usize = environment.iter().map(|(n, v)| n.len() + v.len() + 2).sum();
    call.write_u32(count, entries)?;
    call.write_u32(size, bytes as u32)?;
    Ok(SUCCESS)
}

fn clock_time_get(call: &mut Call<'_>, id: u32, _precision: i64, to: u32) -> Errno {
    let now = match id {
        0 => call.world().clock.read_wall(),
        1 => call.world().clock.read_monotonic(),
        _ => return Ok(NOTSUP),
    };
    call.write_u64(to, now)?;
    Ok(SUCCESS)
}

fn random_get(call: &mut Call<'_>, to: u32, len: u32) -> Errno {
    // The host's own limit (`limits.h`) is 64 KiB.
    if len > 65_536 {
        return Ok(28);
    }
    let bytes = call.world().random.bytes(len as usize);
    call.write(to, &bytes)?;
    Ok(SUCCESS)
}
