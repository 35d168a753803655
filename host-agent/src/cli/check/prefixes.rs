//! What lies under the registry's prefixes, and whether it is what the configuration says.

use etcd_client::{Client, GetOptions, GetResponse};

use super::finding::{Code, Finding, plural};
use crate::nearest::nearest;
use crate::source::EtcdConfig;
use crate::source::etcd::{self, EtcdError};
use crate::source::formats::{FormatName, SourceConfig, groups, survey};

/// Keys of a prefix that are looked at; the rest is counted.
const SAMPLE: i64 = 200;

/// Asks one member.
pub(super) async fn look(config: &EtcdConfig, member: usize) -> Result<Vec<Finding>, EtcdError> {
    let mut client = etcd::connect(config, member).await?;
    let services = config.services.as_bytes().to_vec();
    let mut prefixes = vec![services.clone()];
    prefixes.extend(config.sources.iter().map(SourceConfig::prefix));
    prefixes.sort_unstable();
    prefixes.dedup();
    let mut findings = Vec::new();
    let mut found = 0;
    for prefix in &prefixes {
        let sources = config.sources.iter().filter(|source| source.prefix() == *prefix);
        let formats: Vec<FormatName> = sources.map(|source| source.format).collect();
        let answer = sample(&mut client, prefix).await?;
        found += answer.count();
        let own = *prefix == services;
        findings.extend(foreign(prefix, own, &formats, &answer));
        findings.extend(passed_by(config, prefix, &answer));
    }
    findings.extend(misspelt(&mut client, config).await);
    let shown = pintle_state::show(&prefixes.join(&b", "[..]));
    if found == 0 {
        for format in FormatName::WITH_PREFIX {
            let prefix = SourceConfig::new(format).prefix();
            let answer = sample(&mut client, &prefix).await?;
            findings.extend(foreign(&prefix, false, &[], &answer));
        }
        findings.insert(
            0,
            Finding::warn(
                Code::EtcdEmpty,
                "etcd",
                format!("answers; no instance below {shown}"),
                "register one (pintle register), or check etcd.services and etcd.sources",
            ),
        );
    } else {
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        let detail = format!("answers; {} below {shown}", plural(found, "instance"));
        findings.insert(0, Finding::good("etcd", detail));
    }
    Ok(findings)
}

async fn sample(client: &mut Client, prefix: &[u8]) -> Result<GetResponse, EtcdError> {
    let options = GetOptions::new().with_prefix().with_limit(SAMPLE);
    Ok(client.get(prefix, Some(options)).await?)
}

fn foreign(prefix: &[u8], own: bool, formats: &[FormatName], answer: &GetResponse) -> Vec<Finding> {
    let lines = survey(prefix, own, formats, pairs(prefix, answer)).into_iter();
    let todo = "add the prefix and its format to etcd.sources (docs/registries.md)";
    lines.map(|line| Finding::warn(Code::FormatForeign, "etcd", line, todo)).collect()
}

/// Instances that no source of the prefix takes, because each wants another scheme.
fn passed_by(config: &EtcdConfig, prefix: &[u8], answer: &GetResponse) -> Option<Finding> {
    let group = groups(config).into_iter().find(|group| group.prefix == prefix)?;
    let schemes = group.untaken(pairs(prefix, answer));
    if schemes.is_empty() {
        return None;
    }
    let schemes: Vec<_> = schemes.iter().map(|it| pintle_state::show(it.as_bytes())).collect();
    let schemes = schemes.join(", ");
    let prefix = pintle_state::show(prefix);
    let detail = format!("no key below {prefix} is served: their URLs are {schemes}");
    let todo = "name one of these by the source's `scheme` in etcd.sources";
    Some(Finding::bad(Code::SchemeForeign, "etcd", detail, todo))
}

/// Policies under a prefix that is like theirs and is not.
async fn misspelt(client: &mut Client, config: &EtcdConfig) -> Option<Finding> {
    let policies = config.policies.as_str();
    let (folder, name) = policies.trim_end_matches('/').rsplit_once('/')?;
    if folder.is_empty() {
        return None;
    }
    let options = GetOptions::new().with_prefix().with_keys_only().with_limit(SAMPLE);
    // Who may read the prefixes alone is told nothing of what lies beside them.
    let answer = client.get(format!("{folder}/"), Some(options)).await.ok()?;
    let keys = answer.kvs().iter().filter_map(|kv| std::str::from_utf8(kv.key()).ok());
    let alike = |key: &&str| {
        let rest = key.get(folder.len().saturating_add(1)..).unwrap_or_default();
        let other = rest.split_once('/').map_or("", |(other, _)| other);
        other != name && !nearest(other, std::iter::once(name)).is_empty()
    };
    let keys: Vec<&str> = keys.filter(alike).collect();
    let first = keys.first()?;
    let count = plural(keys.len(), "key");
    let detail = format!("{count} like policies, read by nobody, such as {first}");
    let todo = format!("policies are read below {policies}, each under its service's name");
    Some(Finding::warn(Code::KeysUnread, "etcd", detail, todo))
}

fn pairs<'a>(
    prefix: &'a [u8],
    answer: &'a GetResponse,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    answer.kvs().iter().filter_map(move |kv| Some((kv.key().strip_prefix(prefix)?, kv.value())))
}
