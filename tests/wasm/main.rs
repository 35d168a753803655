//! The whole module, `pintle.wasm` as it is shipped, in the harness.
//!
//! | file | claims about |
//! |---|---|
//! | `abi` | what the module imports and exports; every status of every host call |
//! | `sync` | leadership, the stream, tables in every worker, reload |
//! | `unread` | what nobody asks for, and its first request |
//! | `names` | services that come and go leave nothing in a VM |
//! | `patches` | what changed of a table, in every worker and beside an older module |
//! | `select` | the list, the service's name, local answers, spoofed headers |
//! | `budget` | bytes and time that policies, weights and subsets may cost a VM |
//! | `breaker` | one state for all workers, probes, leaks |
//! | `heads` | the head of a response is the answer |
//! | `trace` | headers out, spans to a collector, hostile headers |
//! | `switches` | what operators turn off: bypass and shadow |
//! | `debug` | who brings the token is told why a request went where it went |
//! | `wants` | what an agent that tells only what is wanted is asked for, and which requests wait |
//! | `cost` | how many host calls a request makes |

mod abi;
mod breaker;
mod budget;
mod cost;
mod debug;
mod heads;
mod names;
mod patches;
mod select;
mod support;
mod switches;
mod sync;
mod trace;
mod unread;
mod wants;
