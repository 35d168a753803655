//! Several attempts for one request: retries of failures and of what is none, hedges.

use pintle_tests::{EnvoyConfig, assert_eventually};
use serde_json::json;

use crate::config::{policy, retry, route};
use crate::row::{Followed, Row};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("retry-5xx", 0, |site| async move {
            site.upstreams[0].always("status/503");
            for _ in 0..4 {
                site.gets(1, "ok", 200).await;
            }
        })
        .endpoints(2)
        .configured(|mut config| {
            retry(&mut config, "retry-5xx", "5xx", 2, &json!(null));
            config
        }),
        Row::new("retry-404", 7, |site| async move { site.gets(12, "status/404", 404).await })
            .endpoints(3)
            .configured(|mut config| {
                let codes = json!({"retriable_status_codes": [404]});
                retry(&mut config, "retry-404", "retriable-status-codes", 2, &codes);
                any(config, "retry-404")
            })
            .followed(Followed::Unknown),
        Row::new("retry-409", 7, |site| async move { site.gets(12, "status/409", 409).await })
            .endpoints(3)
            .configured(|mut config| {
                retry(&mut config, "retry-409", "retriable-4xx", 2, &json!(null));
                any(config, "retry-409")
            })
            .followed(Followed::Unknown),
        // An answer that is none, and then one that is.
        Row::new("retry-404-then-well", 7, |site| async move {
            site.upstreams[0].always("status/404");
            site.gets(12, "ok", 200).await;
        })
        .endpoints(2)
        .configured(|mut config| {
            let codes = json!({"retriable_status_codes": [404]});
            retry(&mut config, "retry-404-then-well", "retriable-status-codes", 2, &codes);
            any(config, "retry-404-then-well")
        })
        .followed(Followed::Unknown),
        // One answers late and wins, once the other, which hangs, has seen the request as well.
        Row::new("hedge", 8, |site| async move {
            site.upstreams[0].always("held/ok");
            site.upstreams[1].always("hang");
            for turn in 1..=14 {
                let both = async {
                    let seen = || site.upstreams.iter().all(|one| one.log().len() >= turn);
                    assert_eventually!(crate::PATIENCE, seen(), "attempts of request {turn}");
                    site.upstreams[0].release();
                };
                tokio::join!(site.gets(1, "ok", 200), both);
            }
        })
        .endpoints(2)
        .configured(|mut config| {
            let more = json!({"per_try_timeout": "0.1s"});
            retry(&mut config, "hedge", "5xx", 1, &more);
            route(&mut config, "hedge")["hedge_policy"] = json!({"hedge_on_per_try_timeout": true});
            any(config, "hedge")
        })
        .followed(Followed::Unknown),
        Row::new("more-attempts", 9, |site| async move {
            site.get("status/503").await;
        })
        .endpoints(2)
        .configured(|mut config| {
            retry(&mut config, "more-attempts", "5xx", 4, &json!(null));
            config
        })
        .followed(Followed::Unknown),
        // Beyond the list Envoy goes on among endpoints that are not in it.
        Row::new("more-attempts-elsewhere", 9, |site| async move {
            for _ in 0..4 {
                site.get("status/503").await;
            }
        })
        .endpoints(4)
        .configured(|mut config| {
            retry(&mut config, "more-attempts-elsewhere", "5xx", 3, &json!(null));
            let select = json!({"select": {"attempts": 1}});
            policy(config, "more-attempts-elsewhere", select)
        })
        .followed(Followed::Unknown),
    ]
}

/// Retries that follow whatever an endpoint says.
fn any(config: EnvoyConfig, name: &str) -> EnvoyConfig {
    policy(config, name, json!({"breaker": {"retries": "any"}}))
}
