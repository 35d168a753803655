//! Requests that go elsewhere than where the module sent them.

use serde_json::json;

use crate::config::route;
use crate::row::Row;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("mirror", 15, |site| async move {
            site.gets(12, "ok", 200).await;
        })
        .strays(1)
        .placed(|config, upstreams| {
            let mut config =
                config.service("shadow").static_hosts("shadow", &[upstreams[1].addr()]);
            route(&mut config, "mirror")["request_mirror_policies"] =
                json!([{"cluster": "shadow"}]);
            config
        })
        .also(|site| {
            let told =
                |entry: &crate::upstream::Entry| entry.headers.contains_key("x-pintle-endpoints");
            match site.upstreams.iter().any(|one| one.log().iter().any(told)) {
                true => Err("the upstream was told the list".into()),
                false => Ok(()),
            }
        }),
    ]
}
