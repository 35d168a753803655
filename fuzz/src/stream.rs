//! What a VM reads of the agent and of its neighbours: frames, leases, slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arbitrary::Arbitrary;
use pintle_contract::{
    Down, Index, Initial, Lease, Message as _, Now, Removed, Slot, Table, Version,
};
use pintle_sync::{
    Action, Effect, Election, Inbox, LEASE, Refused, Step as Verdict, Stream, in_force, is_free,
    is_live, renewed,
};

use crate::case;
use crate::frames::framed;

const BASE_MS: u64 = 1_700_000_000_000;

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    frames: Vec<Frame<'a>>,
    moves: Vec<(u16, Move)>,
    slots: Vec<(u64, u64, i32)>,
}

#[derive(Debug, Arbitrary)]
enum Frame<'a> {
    Begin,
    Table(u8, u8),
    Remove(u8, u8),
    End(u8, bool),
    Heartbeat(u8),
    Payload(u8, &'a [u8]),
    Bytes(&'a [u8]),
    /// A new leader takes over what shared data holds, which anybody may have written.
    Resume(&'a [u8]),
    Handover,
}

#[derive(Debug, Arbitrary)]
enum Move {
    Decide(u8),
    Write(u8),
    Tick(bool, u32),
    Opened(Option<u32>, u32),
    Heard(u32),
    Closed(u32, u32),
}

pub(crate) fn stream(data: &[u8]) {
    let Some(case) = case::<Case<'_>>(data) else { return };
    read_frames(&case.frames);
    elect(&case.moves);
    keep_stream(&case.moves);
    for (holder, me, ahead) in case.slots {
        check_slot(holder, me, ahead);
    }
}

fn version(n: u8) -> Version {
    // Two epochs, so that a restarted agent is among them.
    Version { epoch: u64::from(n >> 7), sequence: u64::from(n & 0x7f) }
}

fn name(n: u8) -> String {
    format!("s{}", n % 6)
}

fn read_frames(frames: &[Frame<'_>]) {
    let mut inbox = Inbox::default();
    // While a start goes on: what it has mentioned.
    let mut mentioned: Option<BTreeSet<String>> = None;
    for frame in frames.iter().take(200) {
        let bytes = match frame {
            Frame::Begin => {
                inbox.begin();
                mentioned = Some(BTreeSet::new());
                continue;
            }
            Frame::Resume(payload) => {
                if let Ok(index) = Index::decode(&framed(49, payload)) {
                    inbox = Inbox::resume(index);
                    mentioned = None;
                }
                continue;
            }
            Frame::Handover => {
                let index = Index::decode(&inbox.index().encode()).expect("its own index");
                inbox = Inbox::resume(index.clone());
                assert_eq!(inbox.index(), index, "the next leader knows what this one knew");
                mentioned = None;
                continue;
            }
            Frame::Table(service, at) => Down::Table(Table {
                service: name(*service),
                version: version(*at),
                endpoints: Vec::new(),
                policy: String::new(),
            })
            .encode(),
            Frame::Remove(service, at) => {
                Down::Remove(Removed { service: name(*service), version: version(*at) }).encode()
            }
            Frame::End(at, full) => {
                Down::InitialEnd(Initial { version: version(*at), full: *full }).encode()
            }
            Frame::Heartbeat(at) => Down::Heartbeat(version(*at)).encode(),
            Frame::Payload(kind, payload) => framed(kind % 6, payload),
            Frame::Bytes(bytes) => bytes.to_vec(),
        };
        check_frame(&mut inbox, &bytes, &mut mentioned);
    }
}

fn check_frame(inbox: &mut Inbox, bytes: &[u8], mentioned: &mut Option<BTreeSet<String>>) {
    let before = inbox.index();
    let held: BTreeMap<String, Version> = before.services.iter().cloned().collect();
    let read = Down::decode(bytes);
    let taken = inbox.frame(bytes);
    let after = inbox.index();
    assert!(after.services.is_sorted_by(|a, b| a.0 < b.0));
    assert!(after.version >= before.version, "the version went back");
    // Also what is refused is there.
    if let (Ok(Down::Table(table)), Some(mentioned)) = (&read, mentioned.as_mut()) {
        mentioned.insert(table.service.clone());
    }
    if let (Ok(Down::Patch(patch)), Some(mentioned)) = (&read, mentioned.as_mut()) {
        mentioned.insert(patch.service.clone());
    }
    let effects = match taken {
        Ok(effects) => effects,
        Err(refused) => {
            assert!(!refused.reason().is_empty());
            assert_eq!(read.is_err(), matches!(refused, Refused::Malformed(_)));
            assert_eq!(after, before, "what is refused changes nothing");
            return;
        }
    };
    let now: BTreeMap<String, Version> = after.services.iter().cloned().collect();
    let read = read.expect("what does not decode is refused");
    for effect in &effects {
        match effect {
            Effect::Store(table) => {
                assert_eq!(now.get(&table.service), Some(&table.version));
                assert!(held.get(&table.service).is_none_or(|held| *held < table.version));
            }
            Effect::Amend(patch) => {
                assert_eq!(held.get(&patch.service), Some(&patch.from));
                assert_eq!(now.get(&patch.service), Some(&patch.version));
            }
            Effect::Lost(_) => assert_eq!(after, before),
            Effect::Remove(service) => {
                assert!(held.contains_key(service) && !now.contains_key(service));
            }
            Effect::Absent(service) => {
                assert!(!held.contains_key(service) && !now.contains_key(service));
            }
            Effect::Complete(version) => assert_eq!(*version, after.version),
        }
    }
    match read {
        Down::Table(table) => assert_eq!(now.get(&table.service), Some(&table.version)),
        Down::Patch(_) => assert_eq!(effects.len(), 1),
        Down::Remove(removed) => assert!(!now.contains_key(&removed.service)),
        Down::Heartbeat(_) => assert_eq!((effects.len(), &after), (0, &before)),
        Down::InitialEnd(initial) => {
            assert!(matches!(effects.last(), Some(Effect::Complete(_))));
            match mentioned.take() {
                Some(mentioned) if initial.full => {
                    assert!(now.keys().all(|service| mentioned.contains(service)));
                }
                // Who has not heard the start from its beginning takes nobody away.
                _ => assert_eq!(now, held),
            }
        }
    }
    // Nothing changes that nobody is told of.
    let told = |name: &String| {
        effects.iter().any(|effect| match effect {
            Effect::Store(table) => table.service == *name,
            Effect::Amend(patch) => patch.service == *name,
            Effect::Remove(service) => service == name,
            Effect::Complete(_) | Effect::Lost(_) | Effect::Absent(_) => false,
        })
    };
    let changed = now.keys().chain(held.keys()).filter(|name| now.get(*name) != held.get(*name));
    assert!(changed.into_iter().all(told));
}

/// Three VMs and one lease, written by compare-and-swap: never two leaders, and fences that grow.
fn elect(moves: &[(u16, Move)]) {
    let mut elections = [Election::new(1), Election::new(2), Election::new(3)];
    let mut begun: [Option<(Lease, u64)>; 3] = [None; 3];
    let mut stored: (Option<Lease>, u64) = (None, 0);
    let mut ms = BASE_MS;
    for (millis, step) in moves.iter().take(200) {
        ms += u64::from(millis % 700);
        let now = Now::from_millis(ms);
        match step {
            Move::Decide(who) => {
                let who = usize::from(who % 3);
                begun[who] = match elections[who].decide(stored.0.as_ref(), who as u32, now) {
                    Verdict::Follow => {
                        let lease = stored.0.expect("somebody leads");
                        assert!(in_force(&lease, now) && lease.worker != who as u64 + 1);
                        None
                    }
                    Verdict::Write(lease) => {
                        assert!(in_force(&lease, now));
                        assert_eq!(lease.expires_at, now.after(LEASE));
                        Some((lease, stored.1))
                    }
                };
            }
            Move::Write(who) => {
                let who = usize::from(who % 3);
                if let Some((lease, cas)) = begun[who].take() {
                    let won = cas == stored.1;
                    if won {
                        if let Some(before) = stored.0 {
                            let grows = lease.fence > before.fence;
                            assert!(grows || lease.worker == before.worker);
                        }
                        stored = (Some(lease), cas + 1);
                    }
                    elections[who].written(lease, won);
                }
            }
            _ => {}
        }
        let leaders: Vec<u64> =
            elections.iter().filter_map(|election| election.leads(now)).collect();
        assert!(leaders.len() <= 1, "{} leaders", leaders.len());
        if let ([fence], Some(lease)) = (&leaders[..], stored.0) {
            assert_eq!(*fence, lease.fence);
        }
    }
}

fn keep_stream(moves: &[(u16, Move)]) {
    let mut stream = Stream::default();
    let mut ms = BASE_MS;
    let mut may_open = false;
    for (millis, step) in moves.iter().take(200) {
        ms += u64::from(*millis);
        let now = Now::from_millis(ms);
        let before = stream.token();
        match step {
            Move::Tick(leading, random) => match stream.tick(*leading, now, *random) {
                Action::Nothing => assert_eq!(stream.token(), before),
                Action::Open => {
                    assert!(*leading && before.is_none());
                    may_open = true;
                }
                Action::Cancel(token) => {
                    assert_eq!((Some(token), stream.token()), (before, None));
                }
            },
            Move::Opened(token, random) if may_open => {
                may_open = false;
                stream.opened(*token, now, *random);
                assert_eq!(stream.token(), *token);
            }
            Move::Heard(token) => assert_eq!(stream.heard(*token, now), before == Some(*token)),
            Move::Closed(token, random) => {
                let current = stream.closed(*token, *random % 2 == 0, now, *random);
                assert_eq!(current, before == Some(*token));
                assert_eq!(stream.token(), before.filter(|_| !current));
            }
            _ => {}
        }
    }
    // Whatever happened, a leader without a stream opens one within a quarter of a second.
    let now = Now::from_millis(ms + 250);
    if stream.token().is_none() {
        assert_eq!(stream.tick(true, now, 0), Action::Open);
    }
}

fn check_slot(holder: u64, me: u64, ahead: i32) {
    let now = Now::from_millis(BASE_MS);
    let expires_at = Now(now.0.saturating_add_signed(i64::from(ahead) * 1_000_000));
    let slot = Slot { worker: holder, at: now, expires_at };
    assert_eq!(is_free(Some(&slot), me, now), holder == me || !is_live(&slot, now));
    assert!(is_free(None, me, now));
    // Nobody holds a slot for longer than a second without a word, whatever was written.
    assert!(is_free(Some(&slot), me, now.after(Duration::from_secs(2))) || ahead > 1000);
    let mine = renewed(me, now);
    assert!(is_live(&mine, now) && !is_free(Some(&mine), me.wrapping_add(1), now));
    assert_eq!(Slot::decode(&mine.encode()), Ok(mine));
}
