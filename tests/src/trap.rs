//! A module that traps on demand: ours has no trap to offer.

use walrus::ir::BinaryOp;
use walrus::{ExportItem, FunctionBuilder, InstrSeqBuilder, Module, ValType};

use crate::{Error, Result};

/// The callback that traps; its second parameter is the number of headers.
const CALLBACK: &str = "proxy_on_request_headers";

/// The module, but that a request with at least so many headers traps its VM before the module sees
/// it. Envoy accepts 100, and adds a few of its own.
pub fn trapping(module: &[u8], headers: i32) -> Result<Vec<u8>> {
    let wrong = |what: String| Error::new(format!("a module that traps: {what}"));
    let mut module = Module::from_buffer(module).map_err(|error| wrong(error.to_string()))?;
    let export = module.exports.iter_mut().find(|export| export.name == CALLBACK);
    let export = export.ok_or_else(|| wrong(format!("no {CALLBACK}")))?;
    let ExportItem::Function(ours) = export.item else {
        return Err(wrong(format!("{CALLBACK} is no function")));
    };
    let id = export.id();
    let i32s = [ValType::I32; 3];
    let mut wrapper = FunctionBuilder::new(&mut module.types, &i32s, &i32s[..1]);
    let [context, count, end] = i32s.map(|ty| module.locals.add(ty));
    let mut body = wrapper.func_body();
    body.local_get(count).i32_const(headers).binop(BinaryOp::I32GeS);
    let trap = |then: &mut InstrSeqBuilder<'_>| {
        then.unreachable();
    };
    body.if_else(None, trap, |_| ());
    body.local_get(context).local_get(count).local_get(end).call(ours);
    let wrapper = wrapper.finish(vec![context, count, end], &mut module.funcs);
    module.exports.get_mut(id).item = ExportItem::Function(wrapper);
    Ok(module.emit_wasm())
}
