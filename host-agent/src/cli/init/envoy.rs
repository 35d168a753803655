//! Envoy's bootstrap: the shipped file, its one service copied for each.

use std::fmt::Write as _;

use serde_json::json;

use super::InitArgs;
use super::service::Service;

/// The file that the tests boot and users read.
const SHIPPED: &str = include_str!("../../../../envoy/envoy.yaml");
/// Its only service.
const ONE: &str = "orders";
/// Where a system keeps its authorities (Debian, Alpine; Envoy's images).
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The bootstrap; `None` where the shipped file has not the places that are looked for.
pub(super) fn bootstrap(args: &InitArgs) -> Option<String> {
    let (head, host, rest) = cut(SHIPPED, "            - name: all\n", "\n  clusters:\n")?;
    let (middle, cluster, tail) = cut(rest, "  # One service.", "  # The agent beside")?;
    let head = swap(head, "address: 0.0.0.0, port_value: 10000", &address(args.listen))?;
    let head = swap(&head, "address: 127.0.0.1, port_value: 9901", &address(args.envoy_admin))?;
    let module = json!(args.module).to_string();
    let head = swap(&head, "filename: pintle.wasm", &format!("filename: {module}"))?;
    let named = "            name: local\n";
    let head =
        swap(&head, named, &format!("{named}            ignore_port_in_host_matching: true\n"))?;
    let socket = json!(args.socket).to_string();
    let tail = swap(tail, "path: /run/pintle/agent.sock", &format!("path: {socket}"))?;
    let mut text = head;
    for (number, service) in args.services.iter().enumerate() {
        text += &route(&commented(host, number == 0), service, number == 0)?;
    }
    text += middle;
    for (number, service) in args.services.iter().enumerate() {
        text += &hosts(&commented(cluster, number == 0), service)?;
    }
    Some(text + &tail)
}

/// `text` before, from `from` on, and from `to` on.
fn cut<'a>(text: &'a str, from: &str, to: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text.split_at_checked(text.find(from)?)?;
    let (block, after) = rest.split_at_checked(rest.find(to)?)?;
    Some((before, block, after))
}

/// `text` with another word in the place of the only one.
fn swap(text: &str, from: &str, to: &str) -> Option<String> {
    (text.matches(from).count() == 1).then(|| text.replace(from, to))
}

/// The reasons stand beside the first service alone.
fn commented(block: &str, first: bool) -> String {
    let reason = |line: &&str| line.trim_start().starts_with('#');
    let lines = block.split_inclusive('\n').filter(|line| first || !reason(line));
    lines.collect()
}

fn address(address: std::net::SocketAddr) -> String {
    format!("address: {}, port_value: {}", json!(address.ip()), address.port())
}

/// A virtual host; what is nobody's goes to the first.
fn route(block: &str, service: &Service, first: bool) -> Option<String> {
    let name = json!(service.name).to_string();
    let mut domains = service.domains.clone();
    if domains.is_empty() {
        domains.push(service.name.clone());
    }
    if first && !domains.iter().any(|domain| domain == "*") {
        domains.push("*".to_owned());
    }
    let block = swap(block, "- name: all", &format!("- name: {name}"))?;
    let block = swap(&block, "domains: [\"*\"]", &format!("domains: {}", json!(domains)))?;
    let block = swap(&block, &format!("- name: {ONE}"), &format!("- name: {name}"))?;
    // A stream may take as long as it likes.
    let timeout = if service.grpc { "0s" } else { "15s" };
    let to = format!("{{cluster: {name}, timeout: {timeout}}}");
    swap(&block, &format!("{{cluster: {ONE}, timeout: 15s}}"), &to)
}

/// A cluster.
fn hosts(block: &str, service: &Service) -> Option<String> {
    let name = json!(service.name).to_string();
    let block = swap(block, &format!("- name: {ONE}"), &format!("- name: {name}"))?;
    let block = swap(&block, &format!("{{service: {ONE}}}"), &format!("{{service: {name}}}"))?;
    let mut block =
        swap(&block, &format!("service_name: {ONE}"), &format!("service_name: {name}"))?;
    if !service.hosts.is_empty() {
        let (before, _, after) =
            cut(&block, "    eds_cluster_config:", "    load_balancing_policy:")?;
        let hosts = service.hosts.iter().map(|host| {
            format!("      - endpoint: {{address: {{socket_address: {{{}}}}}}}\n", address(*host))
        });
        let hosts: String = hosts.collect();
        let assignment = format!(
            "    load_assignment:\n      cluster_name: {name}\n      endpoints:\n      \
             - lb_endpoints:\n{}",
            hosts.replace("      - endpoint", "        - endpoint")
        );
        block = format!("{}{assignment}{after}", swap(before, "type: EDS", "type: STATIC")?);
    }
    if service.grpc {
        let keepalive = "{connection_keepalive: {interval: 10s, timeout: 5s}}";
        let to = format!("{{http2_protocol_options: {keepalive}}}");
        block = swap(&block, "{http_protocol_options: {}}", &to)?;
    }
    let mut block = block.trim_end().to_owned();
    if let Some(server) = &service.tls {
        block += &tls(service, server);
    }
    block += "\n\n";
    Some(block)
}

fn tls(service: &Service, server: &str) -> String {
    let server = json!(server);
    let ca = json!(service.ca.as_deref().unwrap_or(AUTHORITIES));
    let mut text = format!(
        r#"
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: {server}
        common_tls_context:
          # Without a CA and a name Envoy encrypts and believes anybody.
          validation_context:
            trusted_ca: {{filename: {ca}}}
            match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {server}}}}}]"#
    );
    if service.grpc {
        let _ = write!(text, "\n          alpn_protocols: [h2]");
    }
    text
}
