//! Keeping instances registered: `pintle register`, and the `register` section of `pintle run`.
//!
//! All instances of a process hang on one lease, which is kept alive three times in its life. The
//! values are written once, when something in them changes (`health`), and when they turn out to be
//! gone; never per beat, because a write per beat and instance is a storm for everybody who
//! watches. A session is one connection to one member. When it ends, the next one asks whether the
//! lease still lives before it makes another, and puts only what is not there, so that a lost
//! connection costs the registry nothing. Two registrars of one id do not fight: whoever starts
//! takes over and says so, and the other one says so, too, and stands by until the key is gone. At
//! shutdown the instances say `draining`, are given time for what is under way, and are deleted; if
//! etcd cannot be reached then, the lease's end says the same later.

mod config;
mod health;

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use etcd_client::{Client, GetOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use pintle_state::{now_of, show};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

pub use self::config::{Check, Instance, RegisterConfig};
use crate::source::Backoff;
use crate::source::etcd::{EtcdError, connect, within};
use crate::source::formats::{Writer, Written};

/// Draining and deleting are tried again for this long beyond the drain time itself.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Instances that are named in a line of the log.
const NAMED: usize = 3;

/// Keeps the instances registered until shutdown, then drains and deletes them.
///
/// Nothing that happens to etcd ends it: it is tried again with full jitter, at most 2 s.
pub async fn register(config: RegisterConfig, shutdown: CancellationToken) {
    let mut registrar = Registrar::new(config);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = registrar.keep() => {}
    }
    registrar.leave().await;
}

struct Seat {
    instance: Instance,
    /// Unknown until the first probe is over, and not registered before.
    health: watch::Receiver<Option<bool>>,
    /// What was last said, to know what to expect.
    put: Option<&'static str>,
    /// Where it stands; none while there is nothing to be found.
    key: Option<Vec<u8>>,
    /// Whether this process has ever put it: only then is another's key left alone.
    known: bool,
    /// Another registrar has the key.
    lost: bool,
}

struct Registrar {
    config: RegisterConfig,
    writer: Option<Writer>,
    seats: Vec<Seat>,
    /// Wakes when any health changes.
    changed: watch::Receiver<u64>,
    registered_at: String,
    lease: Option<i64>,
    member: usize,
    draining: bool,
}

/// The lease of a key: `None` where the key is not there, zero where it has none.
async fn lease_of(client: &mut Client, key: &[u8]) -> Result<Option<i64>, EtcdError> {
    let options = GetOptions::new().with_keys_only();
    let found = within("looking", client.get(key, Some(options))).await?;
    Ok(found.kvs().first().map(etcd_client::KeyValue::lease))
}

fn time() -> String {
    let now = i128::from(now_of(SystemTime::now()).0);
    // In range until the year 2554.
    jiff::Timestamp::from_nanosecond(now).unwrap_or_default().to_string()
}

impl Registrar {
    fn new(config: RegisterConfig) -> Self {
        let (wake, changed) = watch::channel(0u64);
        let wake = std::sync::Arc::new(wake);
        let seats = config.instances.iter().map(|instance| {
            let (sender, health) = watch::channel(None);
            tokio::spawn(health::watch_over(instance.clone(), sender));
            let (mut heard, wake) = (health.clone(), std::sync::Arc::clone(&wake));
            tokio::spawn(async move {
                while heard.changed().await.is_ok() {
                    wake.send_modify(|count| *count = count.wrapping_add(1));
                }
            });
            let instance = instance.clone();
            Seat { instance, health, put: None, key: None, known: false, lost: false }
        });
        Self {
            seats: seats.collect(),
            writer: config.source().as_ref().and_then(Writer::new),
            config,
            changed,
            registered_at: time(),
            lease: None,
            member: 0,
            draining: false,
        }
    }

    fn health(&self, seat: &Seat) -> Option<&'static str> {
        let healthy = (*seat.health.borrow())?;
        Some(match healthy {
            _ if self.draining => "draining",
            true => "healthy",
            false => "unhealthy",
        })
    }

    fn value(&self, seat: &Seat, health: &str) -> String {
        let instance = &seat.instance;
        json!({
            "id": instance.id,
            "name": instance.name,
            "address": instance.address.to_canonical().to_string(),
            "port": instance.port,
            "metadata": instance.metadata,
            "health": health,
            "tags": instance.tags,
            "registered_at": self.registered_at,
            "last_heartbeat": time(),
        })
        .to_string()
    }

    /// The key and the value; none while the form says "unhealthy" by being absent.
    fn entry(&self, seat: &Seat, health: &str) -> Option<(Vec<u8>, String)> {
        let instance = &seat.instance;
        if let Some(writer) = &self.writer {
            return writer.write(&Written {
                name: &instance.name,
                id: &instance.id,
                address: (instance.address.to_canonical(), instance.port).into(),
                metadata: &instance.metadata,
                healthy: health == "healthy",
                scheme: writer.scheme(),
                lease: self.lease.unwrap_or(0),
            });
        }
        let key = format!("{}{}/{}", self.config.etcd.services, instance.name, instance.id);
        Some((key.into_bytes(), self.value(seat, health)))
    }

    /// Sessions, for ever.
    async fn keep(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let Err(error) = self.session(&mut backoff).await;
            self.warn(
                &error,
                "not kept in the registry, and tried again; --etcd names its members",
            );
            self.member = self.member.wrapping_add(1);
            sleep_until(backoff.reconnect(began)).await;
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> Result<Infallible, EtcdError> {
        let mut client = connect(&self.config.etcd, self.member).await?;
        let mut alive = self.ensure_lease(&mut client).await?;
        self.put_what_differs(&mut client).await?;
        backoff.reset();
        let beat = self.config.lease / 3;
        let mut due = Instant::now() + beat;
        loop {
            let changed = tokio::select! {
                () = sleep_until(due) => false,
                changed = self.changed.changed() => changed.is_ok(),
            };
            if changed {
                self.put_what_differs(&mut client).await?;
                continue;
            }
            due = Instant::now() + beat;
            if !self.beat(&mut alive).await? {
                tracing::warn!("the lease is gone; registering again");
                self.lease = None;
                alive = self.ensure_lease(&mut client).await?;
            }
            self.find_what_is_gone(&mut client).await?;
            self.put_what_differs(&mut client).await?;
        }
    }

    fn warn(&self, error: &EtcdError, what: &'static str) {
        let endpoint = self.config.etcd.member(self.member);
        let instances = self.seats.iter().map(|seat| &seat.instance);
        let mut names: Vec<_> = instances.map(|it| format!("{}/{}", it.name, it.id)).collect();
        let more = names.split_off(names.len().min(NAMED)).len();
        let (instances, error) = (names.join(", "), show(error.to_string().as_bytes()));
        tracing::warn!(endpoint, %instances, more, %error, "{what}");
    }

    /// The lease that there is, if it still lives, or another.
    async fn ensure_lease(
        &mut self,
        client: &mut Client,
    ) -> Result<(LeaseKeeper, LeaseKeepAliveStream), EtcdError> {
        if let Some(lease) = self.lease {
            match within("keeping the lease", client.lease_keep_alive(lease)).await {
                Ok(alive) => {
                    self.find_what_is_gone(client).await?;
                    return Ok(alive);
                }
                // What the client says when the server answered with no time to live.
                Err(EtcdError::Client(etcd_client::Error::LeaseKeepAliveError(_))) => {}
                Err(error) => return Err(error),
            }
        }
        let ttl = i64::try_from(self.config.lease.as_secs()).unwrap_or(i64::MAX);
        let granted = within("granting a lease", client.lease_grant(ttl, None)).await?;
        self.lease = Some(granted.id());
        for seat in &mut self.seats {
            seat.put = None;
        }
        if self.draining {
            self.find_what_is_gone(client).await?;
        }
        within("keeping the lease", client.lease_keep_alive(granted.id())).await
    }

    /// One beat; whether the lease lives.
    async fn beat(
        &self,
        (keeper, answers): &mut (LeaseKeeper, LeaseKeepAliveStream),
    ) -> Result<bool, EtcdError> {
        within("keeping the lease", keeper.keep_alive()).await?;
        let answer = within("keeping the lease", answers.message()).await?;
        answer
            .map(|answer| answer.ttl() > 0)
            .ok_or_else(|| EtcdError::Cancelled("the lease's stream ended".into()))
    }

    /// Forgets what somebody has deleted; what another has put under its own lease is the other's.
    async fn find_what_is_gone(&mut self, client: &mut Client) -> Result<(), EtcdError> {
        let (ours, draining) = (self.lease, self.draining);
        for seat in &mut self.seats {
            let Some(key) = seat.key.clone() else { continue };
            let found = lease_of(client, &key).await?;
            if found.is_some() && found == ours {
                seat.lost = false;
                continue;
            }
            // One without a lease is nobody's who would keep it.
            let other = found.filter(|lease| *lease != 0);
            if let Some(lease) = other.filter(|_| !seat.lost) {
                tracing::warn!(
                    key = %show(&key), lease,
                    "another registrar has this id now; standing by until its key is gone"
                );
            }
            seat.lost = other.is_some();
            seat.put = (draining && found.is_some()).then_some("draining");
        }
        Ok(())
    }

    /// Puts every instance whose health is not the one that was put.
    async fn put_what_differs(&mut self, client: &mut Client) -> Result<(), EtcdError> {
        for at in 0..self.seats.len() {
            let Some(seat) = self.seats.get(at).filter(|seat| !seat.lost) else {
                continue;
            };
            let Some(health) = self.health(seat).filter(|health| seat.put != Some(*health)) else {
                continue;
            };
            let (known, before) = (seat.known, seat.key.clone());
            let Some((key, value)) = self.entry(seat, health) else {
                if let Some(key) = before {
                    within("leaving", client.delete(key.clone(), None)).await?;
                    tracing::info!(key = %show(&key), %health, "taken out");
                }
                if let Some(seat) = self.seats.get_mut(at) {
                    (seat.put, seat.key) = (Some(health), None);
                }
                continue;
            };
            let held = lease_of(client, &key).await?;
            let held = held.filter(|lease| *lease != 0 && Some(*lease) != self.lease);
            if let Some(lease) = held {
                if known {
                    tracing::warn!(
                        key = %show(&key), lease,
                        "another registrar has this id now; standing by until its key is gone"
                    );
                    if let Some(seat) = self.seats.get_mut(at) {
                        seat.lost = true;
                    }
                    continue;
                }
                tracing::warn!(
                    key = %show(&key), lease,
                    "taking this id over from another registrar, which may still run"
                );
            }
            let options = PutOptions::new().with_lease(self.lease.unwrap_or(0));
            within("registering", client.put(key.clone(), value, Some(options))).await?;
            tracing::info!(key = %show(&key), %health, "registered");
            if let Some(seat) = self.seats.get_mut(at) {
                (seat.put, seat.key, seat.known) = (Some(health), Some(key), true);
            }
        }
        Ok(())
    }

    /// Draining, waiting, deleting. The wait begins when etcd has been told, however often it is
    /// tried.
    async fn leave(&mut self) {
        self.draining = true;
        let most = self.config.drain.saturating_add(LAST_WORDS);
        let leaving = async {
            let mut backoff = Backoff::default();
            let mut until = None;
            while let Err(error) = self.try_leave(&mut until).await {
                self.warn(&error, "not yet deleted from the registry, and tried again");
                self.member = self.member.wrapping_add(1);
                sleep(backoff.next()).await;
            }
        };
        if timeout(most, leaving).await.is_err() {
            let lease = self.config.lease;
            tracing::warn!(
                ?lease,
                "not deleted in time; the lease's end takes it from the registry"
            );
        }
    }

    async fn try_leave(&mut self, until: &mut Option<Instant>) -> Result<(), EtcdError> {
        let Some(lease) = self.lease else {
            return Ok(());
        };
        let mut client = connect(&self.config.etcd, self.member).await?;
        if until.is_none_or(|until| Instant::now() < until) && !self.config.drain.is_zero() {
            let mut alive = self.ensure_lease(&mut client).await?;
            self.put_what_differs(&mut client).await?;
            let until = *until.get_or_insert_with(|| Instant::now() + self.config.drain);
            let beat = self.config.lease / 3;
            while Instant::now() < until {
                sleep_until(until.min(Instant::now() + beat)).await;
                self.beat(&mut alive).await?;
            }
        }
        // Deletes what is still ours, and nothing that another has put in its place.
        within("ending the lease", client.lease_revoke(self.lease.unwrap_or(lease))).await?;
        self.lease = None;
        tracing::info!("left the registry");
        Ok(())
    }
}
