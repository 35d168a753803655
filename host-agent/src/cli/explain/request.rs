//! What a request with certain headers would get: its subset, its pin, and where its hash leads.
//!
//! The choice itself is the proxies' own code on the agent's table, so that a ring's endpoint is
//! the one that they name. What only a proxy knows is left out: the client's address, loads, its
//! zone.

use pintle_contract::{Endpoint, Health, Now};
use pintle_policy::Policy;
use pintle_policy::select::{
    Balancer, Dice, HashSource, Picks, Request, RequestView, SelectorTarget, Sticky,
    SubsetFallback, Verdict, Wants, hash_key, pin,
};

use super::asked::Asked;
use crate::cli::CliError;
use crate::serve::admin::view::{EndpointJson, ServiceJson};

/// The headers of a request, names in lower case.
#[derive(Debug, Default)]
pub(super) struct Headers(Vec<(String, String)>);

impl RequestView for Headers {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_bytes())
    }

    fn source_address(&self) -> Option<&[u8]> {
        None
    }
}

impl Headers {
    /// # Errors
    /// What is no `NAME=VALUE`.
    pub(super) fn read(pairs: &[String]) -> Result<Self, CliError> {
        let pair = |pair: &String| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok((name.to_ascii_lowercase(), value.to_owned()))
            }
            _ => Err(CliError::Usage(format!("--header {pair:?} is not NAME=VALUE"))),
        };
        pairs.iter().map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// What these headers lead to, in words; what they ask for is added to `asked`.
    pub(super) fn find<'a>(
        &'a self,
        service: &ServiceJson,
        policy: &'a Policy,
        asked: &mut Asked<'a>,
    ) -> Vec<String> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let select = &policy.select;
        let mut notes = self.ask(service, policy, asked);
        let endpoints: Vec<Endpoint> = service.endpoints.iter().filter_map(endpoint).collect();
        let mut dice: Dice = rand::SeedableRng::seed_from_u64(0);
        let mut balancer = Balancer::new(&service.service, select, &endpoints, "", 0, Now(0));
        for endpoint in &service.endpoints {
            if let Some(index) = balancer.index_of(&endpoint.id) {
                balancer.set_verdict(index, verdict(endpoint));
            }
        }
        let wants = Wants::read(select, self);
        let key = hash_key(select, self, &mut dice);
        let pinned = select.sticky.as_ref().and_then(|sticky| pin(sticky, self));
        let request =
            Request { hash: key.hash, pinned, subset: wants.as_slice(), may_probe: false };
        let mut picks = Picks::new();
        balancer.pick(&request, Now(0), &mut dice, &mut picks);
        let mut list: Vec<&str> = Vec::new();
        for index in picks.as_slice() {
            let id = usize::try_from(*index).ok().and_then(|index| balancer.id_of(index));
            list.extend(id.filter(|id| !list.contains(id)));
        }
        if let Some(sticky) = &select.sticky {
            let place = match sticky {
                Sticky::Cookie(cookie) => format!("cookie {}", cookie.name),
                Sticky::Header(name) => format!("header {name}"),
            };
            let known = pinned.and_then(|pin| balancer.by_pin(pin));
            let known = known.and_then(|index| balancer.id_of(index)).unwrap_or("nobody here");
            notes.push(match pinned {
                None => format!("no pin in its {place}: the answer sets one"),
                Some(_) if picks.pinned() => format!("pinned to {known} by its {place}"),
                Some(_) => format!("its pin in {place} names {known}, and is set anew"),
            });
        }
        if select.strategy.is_hashing() && !picks.pinned() {
            let by_address = |source: &HashSource| matches!(source, HashSource::SourceAddress);
            notes.push(match key.hash {
                None if select.hash_key.iter().any(|part| by_address(&part.source)) => {
                    "hashed by the client's address, which is not known here".to_owned()
                }
                None => "nothing to hash: chosen as by p2c".to_owned(),
                Some(_) if key.set_cookie.is_some() => {
                    "no cookie to hash: the answer sets one, by which it is placed".to_owned()
                }
                Some(hash) => format!("hash {hash:016x} leads to {}", list.join(", then ")),
            });
        }
        notes
    }

    /// The subset that they ask for.
    fn ask<'a>(
        &'a self,
        service: &ServiceJson,
        policy: &'a Policy,
        asked: &mut Asked<'a>,
    ) -> Vec<String> {
        let select = &policy.select;
        let mut own = Asked::default();
        for want in Wants::read(select, self).as_slice() {
            let value = std::str::from_utf8(want.value).unwrap_or_default();
            match select.subset.get(want.selector).map(|selector| &selector.with) {
                Some(SelectorTarget::Metadata(key)) => own.metadata.push((key, value)),
                Some(SelectorTarget::Tag) => own.tags.push(value),
                None => {}
            }
        }
        let words = own.metadata.iter().map(|(key, value)| format!("{key}={value}"));
        let words: Vec<String> =
            words.chain(own.tags.iter().map(|tag| format!("tag {tag}"))).collect();
        if words.is_empty() {
            return Vec::new();
        }
        let words = words.join(" and ");
        let somebody = service.endpoints.iter().any(|endpoint| own.lacks(endpoint).is_none());
        let note = match select.subset_fallback {
            _ if somebody => format!("asks for {words}"),
            SubsetFallback::None => format!("asks for {words}, which nobody has: refused"),
            SubsetFallback::Any => {
                own = Asked::default();
                format!("asks for {words}, which nobody has: any endpoint takes it")
            }
            SubsetFallback::Default => {
                let default = &select.subset_default;
                let pairs = default.metadata.iter();
                own.metadata = pairs.map(|(key, value)| (key.as_str(), value.as_str())).collect();
                own.tags = default.tags.iter().map(String::as_str).collect();
                format!("asks for {words}, which nobody has: those of subset_default take it")
            }
        };
        asked.metadata.extend(own.metadata);
        asked.tags.extend(own.tags);
        vec![note]
    }
}

fn endpoint(told: &EndpointJson) -> Option<Endpoint> {
    let health = match told.health.as_str() {
        "draining" => Health::Draining,
        "unhealthy" => Health::Unhealthy,
        _ => Health::Healthy,
    };
    Some(Endpoint {
        weight: told.weight,
        health,
        zone: told.zone.clone(),
        tags: told.tags.clone().into(),
        metadata: told.metadata.clone().into_iter().collect(),
        ..Endpoint::new(&told.id, told.address.parse().ok()?)
    })
}

fn verdict(told: &EndpointJson) -> Verdict {
    let forced = told.force.as_ref().is_some_and(|force| force.action == "open");
    if forced || !told.breaker.on.is_empty() { Verdict::Blocked } else { Verdict::Pass }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(select: Value, headers: &[&str]) -> (String, usize) {
        let endpoints = ["a", "b", "c"].map(|id| {
            json!({
                "id": id, "address": format!("10.0.0.{}:80", id.as_bytes()[0]), "weight": 1,
                "health": "healthy", "zone": "", "tags": [], "metadata": {"version": id},
                "registered_at": null, "in_flight": 0, "latency_ms": 2.0, "requests": 0,
                "failures": 0, "minute_requests": 0, "minute_failures": 0, "rate": 0.0,
                "share": 0.0, "breaker": {"state": "closed", "trips": 0, "on": []},
                "opinion": null, "force": null,
            })
        });
        let service = json!({
            "service": "orders", "version": "1.2", "policy": {}, "requests": 0, "errors": 0,
            "rate": 0.0, "in_flight": 0, "mean_ms": null, "panics": 0, "no_endpoint": 0,
            "minute": {"requests": 0, "errors": 0, "mean_ms": null, "panics": 0, "no_endpoint": 0},
            "endpoints": endpoints,
        });
        let service: ServiceJson = serde_json::from_value(service).expect("a service");
        let policy = json!({ "select": select });
        let policy = Policy::resolve([&policy]).expect("a policy");
        let pairs: Vec<String> = headers.iter().map(|pair| (*pair).to_owned()).collect();
        let headers = Headers::read(&pairs).expect("headers");
        let mut asked = Asked::default();
        let notes = headers.find(&service, &policy, &mut asked).join("; ");
        let open = service.endpoints.iter().filter(|it| asked.lacks(it).is_none()).count();
        (notes, open)
    }

    #[test]
    fn a_hash_leads_to_the_ring_s_endpoint() {
        let ring = json!({"strategy": "ring_hash", "hash_key": [{"header": "x-user"}]});
        let (notes, open) = found(ring.clone(), &["X-User=7"]);
        assert!(notes.starts_with("hash ") && notes.contains(" leads to "), "{notes}");
        assert_eq!((notes.matches(", then ").count(), open), (2, 3), "{notes}");
        assert_eq!(found(ring.clone(), &["x-user=7"]).0, notes, "the same each time");
        assert_eq!(found(ring, &["x-other=7"]).0, "nothing to hash: chosen as by p2c");
        let address = json!({"strategy": "maglev", "hash_key": [{"source_address": true}]});
        let (notes, _) = found(address, &["x-user=7"]);
        assert_eq!(notes, "hashed by the client's address, which is not known here");
    }

    #[test]
    fn a_subset_is_what_the_policy_makes_of_the_headers() {
        let subset = |fallback: &str| {
            json!({"subset": [{"header": "x-version", "metadata": "version"}],
                "subset_fallback": fallback, "subset_default": {"metadata": {"version": "a"}}})
        };
        let of = |fallback, header| found(subset(fallback), &[header]);
        assert_eq!(of("none", "x-version=b"), ("asks for version=b".to_owned(), 1));
        let (notes, open) = of("none", "x-version=z");
        assert_eq!((&*notes, open), ("asks for version=z, which nobody has: refused", 0));
        assert_eq!(of("any", "x-version=z").1, 3);
        assert_eq!(of("default", "x-version=z").1, 1);
        assert_eq!(of("none", "x-other=z"), (String::new(), 3));
    }

    #[test]
    fn a_pin_is_followed_where_it_names_somebody() {
        let sticky = json!({"sticky": {"header": "x-pin"}});
        let (notes, _) = found(sticky.clone(), &["a=b"]);
        assert_eq!(notes, "no pin in its header x-pin: the answer sets one");
        let (notes, _) = found(sticky, &["x-pin=0123456789abcdef"]);
        assert_eq!(notes, "its pin in header x-pin names nobody here, and is set anew");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for odd in ["x-user", "=7"] {
            let error = Headers::read(&[odd.to_owned()]).expect_err(odd).to_string();
            assert!(error.contains("NAME=VALUE"), "{error}");
        }
    }
}
