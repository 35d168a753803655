//! Shared data and shared queues.

use super::{Call, Done};
use crate::abi::Status;

pub(super) fn get_shared_data(
    call: &mut Call<'_>,
    key: u32,
    key_len: u32,
    to: u32,
    to_len: u32,
    cas_at: u32,
) -> Done {
    let key = call.read(key, key_len)?;
    let vm_id = &call.guest().setup.vm_id;
    let found = call.world().shared.get(vm_id, &key).cloned();
    let (value, cas) = found.ok_or(Status::NotFound)?;
    call.give(&value, to, to_len)?;
    Ok(call.write_u32(cas_at, cas)?)
}

pub(super) fn set_shared_data(
    call: &mut Call<'_>,
    key: u32,
    key_len: u32,
    value: u32,
    value_len: u32,
    cas: u32,
) -> Done {
    let (key, value) = (call.read(key, key_len)?, call.read(value, value_len)?);
    let vm_id = &call.guest().setup.vm_id;
    call.world().shared.set(vm_id, &key, value, cas)?;
    Ok(())
}

pub(super) fn register_queue(call: &mut Call<'_>, name: u32, name_len: u32, to: u32) -> Done {
    let name = call.read(name, name_len)?;
    let guest = call.guest();
    let (root, thread) = (guest.root_id(), guest.thread);
    let token = call.world().queues.register(&guest.setup.vm_id, &name, thread, root);
    Ok(call.write_u32(to, token)?)
}

pub(super) fn resolve_queue(
    call: &mut Call<'_>,
    vm_id: u32,
    vm_id_len: u32,
    name: u32,
    name_len: u32,
    to: u32,
) -> Done {
    let mut vm_id = call.read_text(vm_id, vm_id_len)?;
    let name = call.read(name, name_len)?;
    if vm_id.is_empty() {
        vm_id.clone_from(&call.guest().setup.vm_id);
    }
    let token = call.world().queues.resolve(&vm_id, &name).ok_or(Status::NotFound)?;
    Ok(call.write_u32(to, token)?)
}

pub(super) fn dequeue(call: &mut Call<'_>, token: u32, to: u32, to_len: u32) -> Done {
    let item = call.world().queues.dequeue(token)?;
    call.give(&item, to, to_len)
}

pub(super) fn enqueue(call: &mut Call<'_>, token: u32, value: u32, value_len: u32) -> Done {
    let item = call.read(value, value_len)?;
    let mut world = call.world();
    let event = world.queues.enqueue(token, item)?;
    world.events.push_back(event);
    Ok(())
}
