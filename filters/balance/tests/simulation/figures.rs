//! What is read off a run.

use crate::world::{Answer, MS, World};

/// Of the requests that were due from some time on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) errors: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Of the requests, those that went to the endpoints below a number.
    pub(crate) share: f64,
}

impl Figures {
    pub(crate) fn of(answers: &[Answer], from: u64, ill: usize) -> Self {
        let counted: Vec<&Answer> = answers.iter().filter(|a| a.due >= from).collect();
        let mut took: Vec<u64> = counted.iter().filter(|a| !a.stalled).map(|a| a.took).collect();
        took.sort_unstable();
        let percent = |n: usize| n as f64 * 100.0 / counted.len() as f64;
        let ms = |share: usize| took[took.len() * share / 100] as f64 / MS as f64;
        Self {
            errors: percent(counted.iter().filter(|a| a.failed).count()),
            p50: ms(50),
            p99: ms(99),
            share: percent(counted.iter().filter(|a| a.endpoint < ill).count()),
        }
    }

    /// The worst of both.
    pub(crate) fn worse(self, other: Self) -> Self {
        Self {
            errors: self.errors.max(other.errors),
            p50: self.p50.max(other.p50),
            p99: self.p99.max(other.p99),
            share: self.share.max(other.share),
        }
    }
}

/// Of each endpoint's requests in a window of `length` ns, beside its share by weight: the least
/// and the most in any window that begins from `from` on, in steps of an eighth.
pub(crate) fn shares(world: &World, answers: &[Answer], from: u64, length: u64) -> (f64, f64) {
    let step = length / 8;
    let sum: u32 = world.weights.iter().sum();
    let mut sent = vec![vec![0_u32; (world.length / step) as usize + 1]; world.weights.len()];
    for answer in answers {
        sent[answer.endpoint][(answer.due / step) as usize] += 1;
    }
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    let first = from.div_ceil(step) as usize;
    for at in first..(world.length / step) as usize - 7 {
        let of = |i: usize| f64::from(sent[i][at..at + 8].iter().sum::<u32>());
        let all: f64 = (0..sent.len()).map(of).sum();
        for (i, weight) in world.weights.iter().enumerate() {
            let ratio = of(i) / (all * f64::from(*weight) / f64::from(sum));
            (least, most) = (least.min(ratio), most.max(ratio));
        }
    }
    (least, most)
}

/// The longest that any endpoint went unasked from `from` on: in its turns, each as long as it
/// takes the requests to come round to it by its weight, and in ns.
pub(crate) fn longest_wait(world: &World, answers: &[Answer], from: u64) -> (f64, u64) {
    let counted = answers.iter().filter(|a| a.due >= from);
    let mut in_order: Vec<(u64, usize)> = counted.map(|a| (a.due, a.endpoint)).collect();
    in_order.sort_unstable();
    let sum: u32 = world.weights.iter().sum();
    let (mut turns, mut ns) = (0.0_f64, 0);
    for (endpoint, weight) in world.weights.iter().enumerate() {
        let asked = in_order.iter().zip(0..).filter(|((_, asked), _)| *asked == endpoint);
        let asked = asked.map(|((at, _), turn)| (*at, turn));
        let mut last = (from, 0);
        for (at, turn) in asked.chain([(world.length, in_order.len())]) {
            let requests = (turn - last.1) as f64;
            turns = turns.max(requests * f64::from(*weight) / f64::from(sum));
            ns = ns.max(at - last.0);
            last = (at, turn);
        }
    }
    (turns, ns)
}
