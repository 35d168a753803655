//! The root context: what Envoy calls outside of requests. Every callback is one line of
//! [`Worker`].

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use pintle_hostcalls::{self as host, Level};
use pintle_policy::Config;
use proxy_wasm::traits::{Context, RootContext};

use crate::counters::Count;
use crate::streams;
use crate::worker::Worker;

/// One plugin configuration in one VM.
pub(crate) struct Plugin {
    pub(crate) id: u32,
}

impl Plugin {
    fn with(&self, act: impl FnOnce(&mut Worker)) {
        let Some(worker) = streams::worker(self.id) else { return };
        match worker.try_borrow_mut() {
            Ok(mut worker) => act(&mut worker),
            Err(_) => return streams::drop_callback(),
        }
        streams::resume(self.id);
    }
}

impl RootContext for Plugin {
    /// Refuses a configuration that is wrong, so that Envoy keeps the one before. Makes nothing
    /// that anybody else could see: the canary VM configures too, and is thrown away.
    fn on_configure(&mut self, size: usize) -> bool {
        let json = if size == 0 { Ok(Vec::new()) } else { host::plugin_configuration(size) };
        let config = match json.map(|json| Config::parse(&json)) {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => {
                host::log(Level::Error, &format!("pintle: configuration refused: {error}"));
                return false;
            }
            Err(status) => {
                let text = format!("pintle: configuration cannot be read: status {}", status.0);
                host::log(Level::Error, &text);
                return false;
            }
        };
        announce(&config);
        let period = period(&config);
        let worker = Worker::new(Rc::new(config));
        streams::add_root(self.id, Rc::new(RefCell::new(worker)));
        host::set_tick_period(period).is_ok()
    }

    fn on_tick(&mut self) {
        let mut ticked = None;
        self.with(|worker| {
            if worker.is_short_tick() {
                return;
            }
            let dropped = streams::take_dropped();
            worker.local.counters.add_many(Count::CallbackDropped, dropped);
            worker.tick();
            ticked = Some((worker.ticks(), period(&worker.local.config)));
        });
        if let Some((ticks, period)) = ticked {
            streams::sweep(self.id, ticks, period);
        }
    }

    fn on_queue_ready(&mut self, _queue: u32) {
        self.with(Worker::on_queue);
    }
}

impl Context for Plugin {
    fn on_grpc_stream_message(&mut self, token: u32, size: usize) {
        self.with(|worker| worker.on_message(token, size));
    }

    fn on_grpc_stream_close(&mut self, token: u32, status: u32) {
        self.with(|worker| worker.on_stream_closed(token, status));
    }

    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.with(|worker| worker.on_call_answer(token, status, size));
    }
}

/// From one tick to the next.
fn period(config: &Config) -> Duration {
    if config.agent.is_some() || config.exports() { pintle_sync::TICK } else { streams::IDLE }
}

/// Says once, at configuration, what the module will do, and what it was asked for and can't.
fn announce(config: &Config) {
    let (on, amiss) = (config.parts_on(), config.remarks());
    let level = if on.is_empty() { Level::Warn } else { Level::Info };
    let on = if on.is_empty() {
        "nothing is on: no select, breaker or trace".into()
    } else {
        on.join(" ")
    };
    host::log(level, &format!("pintle: configured: {on}"));
    for remark in amiss {
        host::log(Level::Warn, &format!("pintle: {remark}"));
    }
}
