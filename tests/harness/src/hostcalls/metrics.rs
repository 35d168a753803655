//! Metrics.

use super::{Call, Done};
use crate::abi::Status;
use crate::metrics::Kind;

pub(super) fn define(call: &mut Call<'_>, kind: u32, name: u32, name_len: u32, to: u32) -> Done {
    let name = call.read(name, name_len)?;
    let kind = Kind::from_code(kind).ok_or(Status::BadArgument)?;
    let cell = call.world().metrics.define(kind, &name);
    let cells = &mut call.guest_mut().metric_cells[kind as usize];
    cells.push(cell);
    let id = ((cells.len() as u32) << 2) | kind as u32;
    Ok(call.write_u32(to, id)?)
}

pub(super) fn increment(call: &mut Call<'_>, id: u32, by: i64) -> Done {
    // A histogram cannot be incremented, known or not.
    if matches!(Kind::from_code(id & 3), None | Some(Kind::Histogram)) {
        return Err(Status::BadArgument.into());
    }
    let (kind, cell) = call.guest().metric(id).ok_or(Status::NotFound)?;
    Ok(call.world().metrics.increment(kind, cell, by)?)
}

pub(super) fn record(call: &mut Call<'_>, id: u32, value: u64) -> Done {
    let (kind, cell) = call.guest().metric(id).ok_or(Status::NotFound)?;
    Ok(call.world().metrics.record(kind, cell, value)?)
}

pub(super) fn get(call: &mut Call<'_>, id: u32, to: u32) -> Done {
    if matches!(Kind::from_code(id & 3), None | Some(Kind::Histogram)) {
        return Err(Status::BadArgument.into());
    }
    let (_, cell) = call.guest().metric(id).ok_or(Status::NotFound)?;
    let value = call.world().metrics.get(cell)?;
    Ok(call.write_u64(to, value)?)
}
