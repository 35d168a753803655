//! Routes: whether further attempts are made for what the breakers take them for.
//!
//! By `breaker.retries: failures` an attempt that another one followed has failed. A route that
//! sends a request again after an answer that is none would charge healthy endpoints, and so would
//! a hedge, which asks the next while the one before may yet answer. By `logged` the router must
//! tell of each.

use std::collections::{BTreeMap, BTreeSet};

use pintle_policy::Config;
use pintle_policy::breaker::{Policy, Retries};
use serde_json::Value;

use super::clusters::service;
use super::dump::{Dump, Object, at, text, visit};
use crate::cli::check::finding::{Code, Finding, some};
use crate::serve::admin::view::ServiceJson;

/// Words of `retry_on` that are a failure by any policy: no head came, or one with the gRPC status
/// of a server's mistake. `cancelled` is in the retries that istiod gives every route; a server
/// that ends a call so has not served it.
const FAILURES: [&str; 9] = [
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "http3-post-connect-failure",
    "deadline-exceeded",
    "internal",
    "unavailable",
    "cancelled",
];

/// What routes are held against.
struct Known<'a> {
    clusters: BTreeMap<&'a str, &'a Object>,
    plugins: Vec<Config>,
    /// Whether a router logs its attempts to a Wasm module.
    logs: bool,
    services: &'a [ServiceJson],
}

/// Every route to a service of ours whose attempts follow what is no failure, where the service's
/// policy says that they do, and every service whose attempts are to be logged and are not. What
/// the agent tells of `services` goes over the plugins' configuration.
pub(super) fn retries(dump: &Dump<'_>, services: &[ServiceJson]) -> Vec<Finding> {
    let plugins = dump.plugins().into_iter().map(|(_, plugin)| plugin);
    let plugins = plugins.filter(|plugin| plugin.breaker).collect();
    let mut logs = false;
    for log in dump.all.iter().filter_map(|object| object.get("upstream_log")) {
        visit(log, &mut |object| logs |= object.contains_key("vm_config"));
    }
    let known = Known { clusters: dump.clusters(), plugins, logs, services };
    each(dump).flat_map(|(host, route)| known.of_route(host, route)).collect()
}

/// Routes of an Envoy that runs to clusters that it does not have: it was not sent them, or refused
/// them.
pub(super) fn lost(dump: &Dump<'_>) -> Option<Finding> {
    let clusters = dump.clusters();
    let actions = each(dump).filter_map(|(_, route)| route.get("route")?.as_object());
    let lost: BTreeSet<&str> =
        actions.flat_map(named).filter(|name| !clusters.contains_key(name)).collect();
    let first = lost.first()?;
    Some(Finding::bad(
        Code::RouteWithoutCluster,
        "routes",
        format!(
            "they lead to what this Envoy has no cluster of, and answers 503: {}",
            some(&lost, 3)
        ),
        format!(
            "look for \"{first}\" in Envoy's log, which says why it refuses a cluster: override_host \
             stands neither beside settings of localities nor in a cluster without hosts"
        ),
    ))
}

/// Every route with its virtual host.
fn each<'a>(dump: &Dump<'a>) -> impl Iterator<Item = (&'a Object, &'a Object)> {
    let hosts = dump.all.iter().copied().filter(|it| it.contains_key("domains"));
    hosts.flat_map(|host| {
        let routes = host.get("routes").and_then(Value::as_array).into_iter().flatten();
        routes.filter_map(Value::as_object).map(move |route| (host, route))
    })
}

/// The clusters that a route names.
fn named(action: &Object) -> impl Iterator<Item = &str> {
    let weighted = at(action, &["weighted_clusters", "clusters"]).and_then(Value::as_array);
    let weighted = weighted.into_iter().flatten().filter_map(|it| it.get("name")?.as_str());
    text(action, "cluster").into_iter().chain(weighted)
}

impl<'a> Known<'a> {
    fn of_route(&self, host: &Object, route: &Object) -> Vec<Finding> {
        let Some(action) = route.get("route").and_then(Value::as_object) else {
            return Vec::new();
        };
        // A route's own takes the place of its virtual host's, and that the place of the cluster's.
        let own = |key: &str| [action, host].into_iter().find_map(|it| it.get(key)?.as_object());
        let mut findings = Vec::new();
        for name in self.targets(action) {
            let Some(cluster) = self.clusters.get(name) else { continue };
            let Some(service) = service(name, cluster) else { continue };
            let Some(attempts) = own("retry_policy").or_else(|| of_cluster(cluster)) else {
                continue;
            };
            let policies = self.plugins.iter().filter_map(|plugin| self.policy(plugin, service));
            let policies: Vec<Policy> = policies.collect();
            let whys: BTreeSet<String> = policies
                .iter()
                .filter(|policy| policy.retries == Retries::Failures)
                .flat_map(|policy| no_failures(attempts, own("hedge_policy"), policy))
                .collect();
            if policies.iter().any(|policy| policy.retries == Retries::Logged) && !self.logs {
                findings.push(Finding::bad(
                    Code::UpstreamLogAbsent,
                    &format!("service {service}"),
                    "its policy leaves attempts to the router's log, and no router logs to the \
                     module: all but the last of a request are unknown",
                    "give the router the upstream_log that envoy/envoy.yaml has as a comment, or \
                     set breaker.retries to failures or any",
                ));
            }
            if whys.is_empty() {
                continue;
            }
            let route = text(route, "name").or(text(host, "name")).unwrap_or("(no name)");
            findings.push(Finding::bad(
                Code::RetriesUnfit,
                &format!("route {route}"),
                format!(
                    "it has several attempts at {service} after what is no failure ({}), and each \
                     but the last is charged as one",
                    some(whys, 4)
                ),
                format!(
                    "give {service} the policy {{\"breaker\": {{\"retries\": \"any\"}}}}, or \"logged\" \
                     with the router's upstream_log"
                ),
            ));
        }
        findings
    }

    /// The clusters that a route may lead to; by a header, any.
    fn targets<'b>(&self, action: &'b Object) -> BTreeSet<&'b str>
    where
        'a: 'b,
    {
        if action.contains_key("cluster_header") {
            return self.clusters.keys().copied().collect();
        }
        named(action).collect()
    }

    /// How a plugin's breakers are for a service.
    fn policy(&self, plugin: &Config, service: &str) -> Option<Policy> {
        let told = self.services.iter().find(|it| it.service == service);
        let told = told.and_then(|it| it.policy.as_ref()).map(Value::to_string);
        Some(plugin.policy(service, &told.unwrap_or_default()).ok()?.breaker)
    }
}

/// A cluster's own retry policy, which Envoy knows from 1.37 on.
fn of_cluster(cluster: &Object) -> Option<&Object> {
    let mut found = None;
    visit(cluster.get("typed_extension_protocol_options")?, &mut |object| {
        found = found.or_else(|| object.get("retry_policy")?.as_object());
    });
    found
}

/// What a retry policy follows that is no failure by the breaker's.
fn no_failures(attempts: &Object, hedge: Option<&Object>, policy: &Policy) -> BTreeSet<String> {
    let never = attempts.get("num_retries").and_then(Value::as_u64) == Some(0);
    let on = text(attempts, "retry_on").unwrap_or_default();
    if never || on.is_empty() {
        return BTreeSet::new();
    }
    let good = |code: u16| !policy.failure_codes.contains(code);
    let of_codes = |word: &str, codes: Vec<u16>| {
        codes.into_iter().find(|code| good(*code)).map(|code| format!("{word}: {code}"))
    };
    let listed = attempts.get("retriable_status_codes").and_then(Value::as_array);
    let listed = listed.into_iter().flatten();
    let listed = listed.filter_map(|code| u16::try_from(code.as_u64()?).ok()).collect::<Vec<_>>();
    let mut whys: BTreeSet<String> = on
        .split(',')
        .map(str::trim)
        .filter_map(|word| match word {
            "" => None,
            word if FAILURES.contains(&word) => None,
            "5xx" => of_codes(word, (500..600).collect()),
            "gateway-error" => of_codes(word, (502..505).collect()),
            "retriable-4xx" => of_codes(word, vec![409]),
            "retriable-status-codes" => of_codes(word, listed.clone()),
            word => Some(word.to_owned()),
        })
        .collect();
    if hedge.and_then(|it| it.get("hedge_on_per_try_timeout")) == Some(&Value::Bool(true)) {
        whys.insert("hedge_on_per_try_timeout".to_owned());
    }
    whys
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(attempts: &Value, breaker: &Value) -> Vec<String> {
        let policy = json!({"breaker": breaker});
        let policy = pintle_policy::Policy::resolve([&policy]).unwrap().breaker;
        let attempts = attempts.as_object().unwrap();
        no_failures(attempts, None, &policy).into_iter().collect()
    }

    #[test]
    fn words_of_retry_on_are_held_against_the_breakers_own_failures() {
        let default = json!({});
        for (attempts, breaker, expect) in [
            (json!({}), &default, vec![]),
            (json!({"retry_on": "5xx,reset, connect-failure,unavailable"}), &default, vec![]),
            (json!({"retry_on": "gateway-error"}), &default, vec![]),
            (json!({"retry_on": "retriable-4xx", "num_retries": 0}), &default, vec![]),
            (json!({"retry_on": "retriable-4xx"}), &default, vec!["retriable-4xx: 409"]),
            // istiod's default.
            (
                json!({"retry_on": "connect-failure,refused-stream,unavailable,cancelled,\
                    retriable-status-codes", "retriable_status_codes": [503]}),
                &default,
                vec![],
            ),
            (json!({"retry_on": "resource-exhausted"}), &default, vec!["resource-exhausted"]),
            (
                json!({"retry_on": "envoy-ratelimited,retriable-headers,5xx"}),
                &default,
                vec!["envoy-ratelimited", "retriable-headers"],
            ),
            (
                json!({"retry_on": "retriable-status-codes", "retriable_status_codes": [503, 404]}),
                &default,
                vec!["retriable-status-codes: 404"],
            ),
            (
                json!({"retry_on": "retriable-status-codes", "retriable_status_codes": [503]}),
                &default,
                vec![],
            ),
            // By the operator's own set.
            (
                json!({"retry_on": "retriable-4xx,5xx,gateway-error"}),
                &json!({"failure_codes": ["409", "502-599"]}),
                vec!["5xx: 500"],
            ),
        ] {
            assert_eq!(of(&attempts, breaker), expect, "{attempts} by {breaker}");
        }
    }
}
