//! The state to and from what is kept on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pintle_contract::ForceAction;

use crate::event::MAX_TTL;
use crate::overlay::{Effect, Key, Slot};
use crate::saved::{Saved, SavedEffect, SavedKey, SavedOverlay, SavedService, SavedValue};
use crate::service::{Registration, Service};
use crate::state::State;
use crate::update::{Moment, Source, now_of};

/// The form that is written and read here.
const FORM: u32 = 1;

impl State {
    /// What to keep.
    #[must_use]
    pub fn save(&self, now: Moment) -> Saved {
        let (services, overlays, settings, revision) = self.parts();
        let at_ms = |mono: Duration| {
            let ago = now.mono.saturating_sub(mono);
            let wall = now.wall.checked_sub(ago).unwrap_or(now.wall);
            now_of(wall).as_millis()
        };
        let services = services.iter().map(|(name, model)| SavedService {
            name: name.clone(),
            registry: keys(name, model, Source::Registry),
            kubernetes: keys(name, model, Source::Kubernetes),
            file: keys(name, model, Source::File),
            departing: departing(name, model),
            created: created(model),
            untested_ms: model.untested().map(at_ms),
            registry_policy: model.registry_policy.as_ref().map(|it| it.value.to_string()),
            file_policy: model.file_policy.as_ref().map(|it| it.value.to_string()),
        });
        let overlays = overlays.iter().map(|(service, key, slot)| SavedOverlay {
            service: service.to_owned(),
            key: key.save(),
            effect: slot.effect.as_ref().map(Effect::save),
            generation: slot.place.0,
            sequence: slot.place.1,
            source: slot.source.clone(),
            until_ms: now_of(slot.until_wall).as_millis(),
            forget_ms: now_of(now.wall_after(slot.forget.saturating_sub(now.mono))).as_millis(),
        });
        Saved {
            form: FORM,
            epoch: settings.epoch,
            services: services.collect(),
            overlays: overlays.collect(),
            revision,
            stream: (self.stream().generation > 0).then(|| self.stream()),
        }
    }

    /// Takes over what was kept and publishes it, still stale. For a state that has seen nothing
    /// yet.
    pub fn restore(&mut self, saved: Saved, now: Moment) {
        if saved.form != FORM {
            return;
        }
        for service in saved.services {
            let name = service.name;
            for (source, list, policy) in [
                (Source::Registry, service.registry, service.registry_policy),
                (Source::Kubernetes, service.kubernetes, None),
                (Source::File, service.file, service.file_policy),
            ] {
                for (id, value) in list {
                    let created = service.created.get(&id).copied().unwrap_or_default();
                    self.restore_endpoint(source, (&name, &id), &value.text(), created, now);
                }
                if let Some(policy) = policy {
                    self.restore_policy(source, &name, &policy);
                }
            }
            for (id, value) in service.departing {
                self.restore_departure(&name, &id, &value.text(), now);
            }
            if let Some(at_ms) = service.untested_ms {
                // A clock that was ahead then has kept nobody from going since.
                let ago = now_of(now.wall).as_millis().saturating_sub(at_ms);
                self.restore_untested(&name, Duration::from_millis(ago), now);
            }
        }
        let (overlays, stream, revision) = self.restore_parts();
        *revision = saved.revision;
        *stream = saved.stream.unwrap_or_default();
        for overlay in saved.overlays {
            let Some(forget) = left(overlay.forget_ms, now.wall) else {
                continue;
            };
            let until = left(overlay.until_ms, now.wall);
            let effect = overlay.effect.filter(|_| until.is_some());
            let until = until.unwrap_or_default();
            let slot = Slot::new(
                (overlay.generation, overlay.sequence),
                effect.map(SavedEffect::load),
                overlay.source,
                (now.mono.saturating_add(until), now.wall_after(until)),
                now.mono.saturating_add(forget),
            );
            overlays.set(&overlay.service, overlay.key.load(), slot);
        }
        // What an earlier release kept beyond today's bounds is nobody's news.
        overlays.gave_way();
        let names = self.names();
        self.settle_restored(&names, now);
        self.publish(names.iter().map(String::as_str), true, now);
    }
}

/// The keys of one source.
fn keys(name: &str, model: &Service, source: Source) -> Vec<(String, SavedValue)> {
    values(name, model.registrations.of(source).values())
}

/// Those that have no key any more.
fn departing(name: &str, model: &Service) -> Vec<(String, SavedValue)> {
    values(name, model.departures().map(|departure| &departure.registration))
}

fn values<'a>(
    name: &str,
    registrations: impl Iterator<Item = &'a Registration>,
) -> Vec<(String, SavedValue)> {
    let name: Arc<str> = name.into();
    let value = |it: &Registration| {
        let value = SavedValue::Endpoint(Arc::clone(&name), Box::new(it.endpoint.clone()));
        (it.endpoint.id.clone(), value)
    };
    registrations.map(value).collect()
}

/// When the keys were created that share their address with others.
fn created(model: &Service) -> BTreeMap<String, u64> {
    let registrations = &model.registrations;
    let shares = |at| registrations.ids(at).nth(1).is_some();
    let registry = registrations.of(Source::Registry).iter();
    let shared = registry.filter(|(_, it)| it.created > 0 && shares(it.endpoint.socket_addr()));
    shared.map(|(id, it)| (id.clone(), it.created)).collect()
}

/// What is left until `at_ms`; never more than the longest ttl, whatever the clocks did meanwhile.
fn left(at_ms: u64, now: SystemTime) -> Option<Duration> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms))?;
    let left = at.duration_since(now).ok()?;
    (!left.is_zero()).then_some(left.min(MAX_TTL))
}

impl Key {
    fn save(&self) -> SavedKey {
        match self.clone() {
            Self::Drain(id) => SavedKey::Drain(id),
            Self::Eject(id) => SavedKey::Eject(id),
            Self::Weight(id) => SavedKey::Weight(id),
            Self::Force(id) => SavedKey::Force(id),
            Self::Reporter { endpoint, agent, proxy } => SavedKey::Reporter(endpoint, agent, proxy),
            Self::Policy => SavedKey::Policy,
            Self::Bypass => SavedKey::Bypass,
            Self::Shadow => SavedKey::Shadow,
            Self::Failover => SavedKey::Failover,
            Self::Trace => SavedKey::Trace,
        }
    }
}

impl SavedKey {
    fn load(self) -> Key {
        match self {
            Self::Drain(id) => Key::Drain(id),
            Self::Eject(id) => Key::Eject(id),
            Self::Weight(id) => Key::Weight(id),
            Self::Force(id) => Key::Force(id),
            Self::Reporter(endpoint, agent, proxy) => Key::Reporter { endpoint, agent, proxy },
            Self::Policy => Key::Policy,
            Self::Bypass => Key::Bypass,
            Self::Shadow => Key::Shadow,
            Self::Failover => Key::Failover,
            Self::Trace => Key::Trace,
        }
    }
}

impl Effect {
    fn save(&self) -> SavedEffect {
        match self {
            Self::Drain => SavedEffect::Drain,
            Self::Eject => SavedEffect::Eject,
            Self::Weight(weight) => SavedEffect::Weight(*weight),
            Self::Force { action, stamp } => match action {
                ForceAction::Open => SavedEffect::ForceOpen(*stamp),
                ForceAction::Close => SavedEffect::ForceClose(*stamp),
                ForceAction::Clear => SavedEffect::Clear(*stamp),
            },
            Self::Open => SavedEffect::Open,
            Self::Policy(patch) => SavedEffect::Policy(patch.clone()),
            Self::Trace(ratio) => SavedEffect::Trace(*ratio),
        }
    }
}

impl SavedEffect {
    fn load(self) -> Effect {
        let force = |action, stamp| Effect::Force { action, stamp };
        match self {
            Self::Drain => Effect::Drain,
            Self::Eject => Effect::Eject,
            Self::Weight(weight) => Effect::Weight(weight),
            Self::ForceOpen(stamp) => force(ForceAction::Open, stamp),
            Self::ForceClose(stamp) => force(ForceAction::Close, stamp),
            Self::Clear(stamp) => force(ForceAction::Clear, stamp),
            Self::Open => Effect::Open,
            Self::Policy(patch) => Effect::Policy(patch),
            Self::Trace(ratio) => Effect::Trace(ratio),
        }
    }
}
