//! A filter that does nothing but pick: ten thousand times a request, so that the crossings into it
//! do not show. `benches/picks.rs` runs it in the harness.

#![expect(missing_docs, reason = "the SDK's macro makes a public function and no line about it")]

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use pintle_balance::{Balancer, Dice, Picks, Policy, Request, Sample};
use pintle_contract::{Endpoint, Now};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};
use rand::SeedableRng;

/// Picks a request.
const PICKS: u64 = 10_000;
const NOW: Now = Now::from_millis(1_000_000);

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

struct Bench {
    balancer: Balancer,
    dice: Dice,
    out: Picks,
    hash: u64,
}

#[derive(Default)]
struct Root {
    bench: Option<Rc<RefCell<Bench>>>,
}

impl Context for Root {}

impl RootContext for Root {
    /// `STRATEGY COUNT ATTEMPTS`.
    fn on_configure(&mut self, _: usize) -> bool {
        let text = self.get_plugin_configuration().and_then(|bytes| String::from_utf8(bytes).ok());
        let bench = text.as_deref().and_then(|text| {
            let mut words = text.split(' ');
            let (strategy, count, attempts) = (words.next()?, words.next()?, words.next()?);
            Bench::new(strategy, count.parse().ok()?, attempts.parse().ok()?)
        });
        self.bench = bench.map(|bench| Rc::new(RefCell::new(bench)));
        self.bench.is_some()
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Turn(self.bench.clone()?)))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Bench {
    fn new(strategy: &str, count: u16, attempts: u8) -> Option<Self> {
        let policy = format!(r#"{{"strategy": "{strategy}", "attempts": {attempts}}}"#);
        let policy: Policy =
            pintle_settings::read("select", serde_json::from_str(&policy).ok()?).ok()?;
        let endpoint = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Endpoint::new(format!("e-{n:05}"), SocketAddr::from(([10, 0, high, low], 80)))
        };
        let endpoints: Vec<Endpoint> = (0..count).map(endpoint).collect();
        let mut balancer = Balancer::new("s", &policy, &endpoints, "", 1, NOW);
        // Every endpoint has answered once, so that none is a newcomer.
        for index in 0..count {
            let latency = Some(Duration::from_millis(2 + u64::from(index % 7)));
            balancer.observed(index.into(), NOW, Sample { latency, ..Sample::default() });
        }
        let dice = Dice::seed_from_u64(1);
        Some(Self { balancer, dice, out: Picks::new(), hash: 1 })
    }
}

struct Turn(Rc<RefCell<Bench>>);

impl Context for Turn {}

impl HttpContext for Turn {
    /// Refuses the request where a pick named nobody.
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let mut bench = self.0.borrow_mut();
        let Bench { balancer, dice, out, hash } = &mut *bench;
        let mut named = 0;
        for _ in 0..PICKS {
            *hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            let request = Request { hash: Some(*hash), ..Request::default() };
            balancer.pick(&request, NOW, dice, out);
            named += u64::from(out.first().is_some());
        }
        if named == PICKS { Action::Continue } else { Action::Pause }
    }
}
