//! `pintle policy`: what is in force for a service and where each key comes from, and whether a
//! file would be taken.

use std::collections::BTreeMap;
use std::io::{Read as _, Write, stdout};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::args::AdminArgs;
use super::reads::{agent, escaped, print_json};
use super::table::Table;
use crate::run::check_policy;
use crate::serve::admin::view::PolicyJson;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Shows what the agent tells the proxies of a service, and where each key comes from.
    #[command(after_help = "Example:\n  pintle policy show orders")]
    Show {
        #[command(flatten)]
        admin: AdminArgs,
        /// The service.
        service: String,
    },
    /// Says whether a policy would be taken, and what is wrong with it; asks nothing that runs.
    #[command(after_help = "Examples:\n  pintle policy validate orders.json\n  \
        etcdctl get --print-value-only /pintle/policies/orders | pintle policy validate -")]
    Validate {
        /// JSON; - is standard input.
        file: PathBuf,
    },
}

/// Bytes of a policy; the state takes no more.
const MAX_BYTES: u64 = 64 << 10;

pub(super) async fn policy(command: PolicyCommand, json: bool) -> Result<(), CliError> {
    match command {
        PolicyCommand::Show { admin, service } => {
            if !pintle_contract::is_name(&service) {
                return Err(CliError::Usage(format!("{service:?} is no service's name")));
            }
            let path = format!("/v1/policies/{}", escaped(&service));
            let policy: PolicyJson = agent(&admin).get(&path).await?;
            if json {
                return print_json(&policy);
            }
            stdout().write_all(show(&policy).as_bytes())?;
            Ok(())
        }
        PolicyCommand::Validate { file } => validate(&file, json),
    }
}

fn show(policy: &PolicyJson) -> String {
    let mut table = Table::new(&["key", "value", "from"]);
    for (key, value) in leaves(&policy.effective) {
        let from = policy.layers.iter().rev().find(|layer| sets(&layer.policy, &key, &value));
        let from = from.map_or("-", |layer| layer.layer.as_str());
        table.row([key, value.to_string(), from.to_owned()]);
    }
    let rows = table.render("No source and no event has a policy for it.");
    let left_out = policy.layers.iter().filter(|layer| layer.left_out);
    let left_out: String = left_out
        .map(|layer| {
            format!("The policy from {} is left out: it does not go with the rest.\n", layer.layer)
        })
        .collect();
    format!(
        "{rows}{left_out}All other keys are those of the plugin's configuration in Envoy, or their \
         defaults.\n"
    )
}

/// The values of a policy by their keys, such as `select.strategy`. Lists are values.
fn leaves(policy: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut rest = vec![(String::new(), policy)];
    while let Some((key, value)) = rest.pop() {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let dot = if key.is_empty() { "" } else { "." };
                rest.extend(
                    fields.iter().map(|(name, value)| (format!("{key}{dot}{name}"), value)),
                );
            }
            Value::Null if key.is_empty() => {}
            value => {
                found.insert(key, value.clone());
            }
        }
    }
    found
}

fn sets(policy: &Value, key: &str, value: &Value) -> bool {
    leaves(policy).get(key) == Some(value)
}

fn validate(file: &Path, json: bool) -> Result<(), CliError> {
    let name = file.display();
    let policy = read(file)?;
    match check_policy(&policy) {
        Ok(()) if json => print_json(&json!({ "good": true, "error": null })),
        Ok(()) => Ok(writeln!(stdout(), "{name} is a policy that would be taken")?),
        Err(error) => {
            if json {
                print_json(&json!({ "good": false, "error": error.to_string() }))?;
            }
            Err(CliError::No(format!("{name}: {error}")))
        }
    }
}

fn read(file: &Path) -> Result<Value, CliError> {
    let name = file.display();
    let failed = |error: std::io::Error| CliError::Usage(format!("{name}: {error}"));
    let mut text = String::new();
    let most = MAX_BYTES.saturating_add(1);
    if file == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(file).map_err(failed)?;
        file.take(most).read_to_string(&mut text).map_err(failed)?;
    }
    if text.len() as u64 > MAX_BYTES {
        return Err(CliError::No(format!("{name}: longer than {MAX_BYTES} bytes")));
    }
    // JSON first: agents read nothing else, and its errors name line and column of what they take.
    serde_json::from_str(&text).map_err(|error| {
        CliError::No(format!("{name} is not JSON, as a policy in etcd must be: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::admin::view::policy::LayerJson;

    #[test]
    fn each_key_is_shown_with_the_layer_that_set_it() {
        let layer =
            |layer: &str, policy| LayerJson { layer: layer.to_owned(), policy, left_out: false };
        let policy = PolicyJson {
            service: "orders".to_owned(),
            effective: json!({"select": {"strategy": "random", "attempts": 2}, "breaker": {}}),
            layers: vec![
                layer("the registry", json!({"select": {"strategy": "p2c", "attempts": 2}})),
                layer("an event", json!({"select": {"strategy": "random"}, "breaker": {}})),
            ],
        };
        let text = show(&policy);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        assert_eq!(
            lines[..4],
            [
                "KEY VALUE FROM",
                "breaker {} an event",
                "select.attempts 2 the registry",
                "select.strategy \"random\" an event",
            ]
        );
    }
}
