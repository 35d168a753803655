//! shell
proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}
struct Root;
impl proxy_wasm::traits::Context for Root {}
impl proxy_wasm::traits::RootContext for Root {
    fn on_tick(&mut self) {
        let _ = pintle_host::open_grpc_stream("a", "b", "c");
        let _ = pintle_host::grpc_call("a", "b", "c", &[], std::time::Duration::ZERO);
    }
}
