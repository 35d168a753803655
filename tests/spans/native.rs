//! Beside Envoy's own OpenTelemetry tracer: who of the two writes the headers, and which setting
//! makes it right. The setting is the one in `envoy/tracing.yaml`, taken out of the comment that
//! users copy.

use pintle_tests::{Envoy, EnvoyConfig, tools};
use serde_json::{Value, json};

use crate::support::{PARENT, Rig, SPAN, TRACE, attribute, exporting, hex, spans_of};

/// The block `tracing:` of the shipped file.
fn shipped() -> Value {
    let text = std::fs::read_to_string(tools::root().join("envoy/tracing.yaml")).unwrap();
    let block = text.lines().skip_while(|line| *line != "# tracing:");
    let block = block.map_while(|line| line.strip_prefix("# ")).collect::<Vec<_>>().join("\n");
    let value: Value = serde_yaml_ng::from_str(&block).unwrap();
    assert_eq!(value["tracing"]["no_context_propagation"], json!(true), "{block}");
    value["tracing"].clone()
}

fn with_tracer(config: EnvoyConfig, tracing: &Value) -> EnvoyConfig {
    let mut config = config;
    config.http_connection_manager()["tracing"] = tracing.clone();
    config
}

/// Service name, trace id, span id and parent of every span that came, until these services are
/// there.
async fn spans_by_service(rig: &Rig, services: &[&str]) -> Vec<(String, String, String, String)> {
    let mut found = Vec::new();
    pintle_tests::assert_eventually!(
        crate::support::SOON,
        {
            for resource in rig.resources() {
                let attributes = resource.resource.clone().unwrap_or_default().attributes;
                let service = attribute(&attributes, "service.name").unwrap_or_default();
                for span in spans_of(resource) {
                    let ids = (hex(&span.trace_id), hex(&span.span_id), hex(&span.parent_span_id));
                    found.push((service.clone(), ids.0, ids.1, ids.2));
                }
            }
            services.iter().all(|service| found.iter().any(|span| span.0 == *service))
        },
        "of {services:?} there is {found:?}"
    );
    found
}

#[tokio::test]
async fn with_envoys_tracer_off_the_module_writes_and_reports() {
    let rig = Rig::start(exporting(json!({}))).await;
    let (trace, span, _) = rig.sent(&[("traceparent", PARENT)]).await.parent();
    assert_eq!(trace, TRACE);
    let spans = spans_by_service(&rig, &["edge"]).await;
    assert_eq!(spans, [("edge".into(), TRACE.into(), span, SPAN.into())]);
    rig.end().await;
}

#[tokio::test]
async fn with_no_context_propagation_the_module_wins_and_both_report() {
    let tracing = shipped();
    let rig = Rig::with(exporting(json!({})), |config| with_tracer(config, &tracing)).await;
    let sent = rig.sent(&[("traceparent", PARENT), ("tracestate", "a=1")]).await;
    let (trace, span, _) = sent.parent();
    assert_eq!((trace.as_str(), sent.one("tracestate").as_deref()), (TRACE, Some("a=1")));
    let spans = spans_by_service(&rig, &["edge", "envoy"]).await;
    let ours = spans.iter().find(|span| span.0 == "edge").unwrap();
    let native = spans.iter().find(|span| span.0 == "envoy").unwrap();
    assert_eq!((&ours.2, ours.3.as_str()), (&span, SPAN), "what the upstream got is our span");
    assert_ne!(native.2, span);
    rig.end().await;
}

#[tokio::test]
async fn without_it_envoys_tracer_wins_whatever_the_module_wrote() {
    let mut tracing = shipped();
    tracing.as_object_mut().unwrap().remove("no_context_propagation");
    let rig = Rig::with(exporting(json!({})), |config| with_tracer(config, &tracing)).await;
    let (trace, span, _) = rig.sent(&[("traceparent", PARENT)]).await.parent();
    assert_eq!(trace, TRACE, "Envoy's tracer continues the client's trace");
    let spans = spans_by_service(&rig, &["edge", "envoy"]).await;
    let ours = spans.iter().find(|span| span.0 == "edge").unwrap();
    assert_ne!(ours.2, span, "ours is a span that the upstream has never heard of");
    assert!(spans.iter().any(|native| native.0 == "envoy" && native.2 == span), "{spans:?}");
    rig.end().await;

    // It writes where it samples nothing, too: the decision of the client's trace is kept by both.
    tracing["random_sampling"] = json!({"value": 0});
    let rig = Rig::with(exporting(json!({})), |config| with_tracer(config, &tracing)).await;
    let (_, span, flags) = rig.sent(&[]).await.parent();
    let spans = spans_by_service(&rig, &["edge"]).await;
    assert!(spans.iter().all(|ours| ours.2 != span), "{spans:?}");
    assert_eq!(flags & 1, 0, "and the upstream is told that nothing is sampled");
    rig.end().await;
}

#[tokio::test]
async fn with_propagation_left_to_envoys_tracer_the_module_can_stay_on_for_everything_else() {
    // The setting that makes the third combination right: no "trace" in the plugin's configuration.
    let mut tracing = shipped();
    tracing.as_object_mut().unwrap().remove("no_context_propagation");
    let rig = Rig::with(json!({}), |config| {
        let config = config.plugin(|plugin| *plugin = json!({}));
        with_tracer(config, &tracing)
    });
    let rig = rig.await;
    let (trace, span, _) = rig.sent(&[("traceparent", PARENT)]).await.parent();
    assert_eq!(trace, TRACE);
    let spans = spans_by_service(&rig, &["envoy"]).await;
    assert!(spans.iter().any(|native| native.2 == span), "{spans:?}");
    rig.end().await;
}

#[tokio::test]
async fn envoy_accepts_the_shipped_file_both_ways_and_merges_it_as_its_header_says() {
    let config = EnvoyConfig::shipped().unwrap().clusters_from("tracing.yaml").unwrap();
    let checked = Envoy::validate(with_tracer(config.without_filter(), &shipped())).await;
    assert!(checked.is_ok(), "{}", checked.unwrap_err());

    let yaml = std::fs::read_to_string(tools::root().join("envoy/tracing.yaml")).unwrap();
    let config = EnvoyConfig::shipped().unwrap().without_filter();
    let envoy = Envoy::start_with(config, 1, &["--config-yaml", &yaml]).await.unwrap();
    let clusters = envoy.clusters().await.unwrap();
    let all = clusters["cluster_statuses"].as_array().unwrap();
    assert!(all.iter().any(|c| c["name"] == "otlp"), "{clusters}");
}
