//! What lies under the registry's prefixes, and whether it is what the configuration says.

use etcd_client::{Client, GetOptions, GetResponse};

use super::finding::{Code, Finding, plural};
use crate::source::EtcdConfig;
use crate::source::etcd::{self, EtcdError};
use crate::source::formats::{FormatName, SourceConfig, groups, survey, untaken};

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
    let schemes = untaken(&group, pairs(prefix, answer));
    if schemes.is_empty() {
        return None;
    }
    let schemes = schemes.into_iter().collect::<Vec<_>>().join(", ");
    let prefix = pintle_state::show(prefix);
    let detail = format!("no key below {prefix} is served: their URLs are {schemes}");
    let todo = "name one of these by the source's `scheme` in etcd.sources";
    Some(Finding::bad(Code::SchemeForeign, "etcd", detail, todo))
}

fn pairs<'a>(
    prefix: &'a [u8],
    answer: &'a GetResponse,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    answer.kvs().iter().filter_map(move |kv| Some((kv.key().strip_prefix(prefix)?, kv.value())))
}
