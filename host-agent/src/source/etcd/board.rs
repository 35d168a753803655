//! What the board says of etcd.

use pintle_state::show;

use super::EtcdError;
use super::watch::Position;
use crate::source::{Context, EtcdConfig};

impl Context {
    /// Notes the loss; whether it is news.
    pub(super) fn etcd_lost(&self, text: &str) -> bool {
        let mut news = false;
        self.board.change(|sources| {
            news = sources.etcd.connected || sources.etcd.error.is_none();
            sources.etcd.connected = false;
            sources.etcd.error = Some(text.to_owned());
        });
        news
    }

    pub(super) fn etcd_connected(&self, endpoint: &str, config: &EtcdConfig) {
        self.board.change(|sources| {
            let etcd = &mut sources.etcd;
            etcd.connected = true;
            etcd.patience = config.reconcile.max(config.silence);
            etcd.error = None;
            etcd.endpoint = endpoint.to_owned();
            etcd.connects = etcd.connects.saturating_add(1);
        });
    }

    pub(super) fn etcd_heard(&self, revision: u64, beside: usize) {
        self.board.change(|sources| {
            sources.etcd.hear();
            sources.etcd.position = revision;
            sources.keys_beside = u64::try_from(beside).unwrap_or(u64::MAX);
        });
    }

    /// Why the registry can't be listed though its watch is well; told when it changes.
    pub(super) fn etcd_unlisted(&self, error: Option<&EtcdError>) {
        let text = error.map(|error| {
            let error = show(error.to_string().as_bytes());
            format!("a listing failed, its watch goes on: {error}")
        });
        let mut news = false;
        self.board.change(|sources| {
            let warnings = &mut sources.etcd.warnings;
            news = warnings.get("listing") != text.as_ref();
            match text.clone() {
                Some(text) => warnings.insert("listing", text),
                None => warnings.remove("listing"),
            };
        });
        match text {
            Some(text) if news => {
                tracing::warn!("etcd: {text}");
                self.tell(format!("etcd: {text}"));
            }
            None if news => tracing::info!("etcd: listed again"),
            _ => {}
        }
    }

    /// What of the prefixes may not be read; told when it changes.
    pub(super) fn etcd_denied(&self, position: &Position, prefixes: &[Vec<u8>]) {
        let denied = position.denied.iter().filter_map(|at| prefixes.get(*at));
        let names: Vec<String> = denied.map(|prefix| show(prefix)).collect();
        let text = (!names.is_empty())
            .then(|| format!("no permission to read {}; the rest is followed", names.join(", ")));
        let mut news = false;
        self.board.change(|sources| {
            news = text.is_some() && sources.etcd.error != text;
            sources.etcd.error.clone_from(&text);
        });
        if let Some(text) = text.filter(|_| news) {
            tracing::warn!("etcd: {text}");
            self.tell(format!("etcd: {text}"));
        }
    }
}
