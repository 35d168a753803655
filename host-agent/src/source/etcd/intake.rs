//! A listing on its way to the state: page by page where there is no form but our own, so that what
//! is refused, and what is held already, is in memory for as long as its page. Of other forms
//! several keys may stand for one instance, so they are gathered, translated, and told together.

use std::collections::BTreeMap;

use pintle_state::{Change, Item, Listed as End, Page as Told, Unread, Update};

use super::EtcdError;
use super::list::{Listed, Page};
use crate::source::Context;
use crate::source::formats::{Read, Translator};

/// What is kept of a listing until it ends.
#[derive(Debug, Default)]
pub(super) struct Intake {
    begun: bool,
    /// Where there are other forms.
    gathered: Vec<Read>,
    /// Its bytes.
    bytes: usize,
    unread: Unread,
}

impl Intake {
    pub(super) async fn page(
        &mut self,
        page: Page,
        translator: &mut Translator,
        context: &Context,
    ) -> Result<(), EtcdError> {
        let read = translator.read_all(page.items);
        if translator.is_foreign() {
            self.gather(read, context);
            return Ok(());
        }
        let begins = !std::mem::replace(&mut self.begun, true);
        if begins {
            translator.begin();
        }
        let items = translator.page(read, &mut self.unread);
        send(context, Update::Page(Told { begins, revision: page.revision, items })).await
    }

    fn gather(&mut self, read: Vec<Read>, context: &Context) {
        let budget = context.config.borrow().state.budget;
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        for mut read in read {
            let bytes = self.bytes.saturating_add(read.bytes());
            if bytes > budget {
                read.refuse(budget);
            } else {
                self.bytes = bytes;
            }
            self.gathered.push(read);
        }
    }

    /// The listing is read; `newer` is what the watches told meanwhile.
    pub(super) async fn end(
        mut self,
        listed: &Listed,
        newer: Vec<Change>,
        translator: &mut Translator,
        (prefixes, context): (&[Vec<u8>], &Context),
    ) -> Result<(), EtcdError> {
        let (revision, denied) = (listed.revision, &listed.denied);
        if translator.is_foreign() {
            let read = catch_up(self.gathered, newer, revision, translator);
            let denied: Vec<&[u8]> =
                denied.iter().filter_map(|at| prefixes.get(*at)).map(Vec::as_slice).collect();
            let translated = translator.listing(read, &denied);
            self.unread = translated.unread;
            let items = translated.told;
            send(context, Update::Page(Told { begins: true, revision, items })).await?;
        }
        let without_policies = denied.contains(&prefixes.len().saturating_sub(1));
        send(context, Update::Listed(End { without_policies })).await?;
        self.unread.whole = true;
        send(context, Update::Unread(self.unread)).await
    }
}

async fn send(context: &Context, update: Update) -> Result<(), EtcdError> {
    context.updates.send(update).await.map_err(|_| EtcdError::Gone)
}

/// What was listed at `revision`, brought up to date with what the watches told while it was read.
fn catch_up(
    read: Vec<Read>,
    newer: Vec<Change>,
    revision: u64,
    translator: &Translator,
) -> Vec<Read> {
    let mut all: BTreeMap<Vec<u8>, Read> =
        read.into_iter().map(|read| (read.item.key.clone(), read)).collect();
    for change in newer.into_iter().filter(|change| change.revision > revision) {
        let Change { key, value, revision, created, lease } = change;
        let Some(value) = value else {
            all.remove(&key);
            continue;
        };
        let item = Item { key: key.clone(), value, revision, created, lease };
        all.extend(translator.read_all(vec![item]).into_iter().map(|read| (key.clone(), read)));
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use pintle_contract::AddressPolicy;

    use super::*;

    #[test]
    fn a_listing_takes_over_what_changed_while_it_was_read() {
        let translator =
            Translator::new(Vec::new(), "/services/", b"/policies/", AddressPolicy::default());
        let item = |key: &str, revision| Item {
            key: key.into(),
            value: b"old".to_vec(),
            revision,
            ..Item::default()
        };
        let change = |key: &str, value: Option<&str>, revision| Change {
            key: key.into(),
            value: value.map(Into::into),
            revision,
            ..Change::default()
        };
        let listed = translator.read_all(vec![item("a", 1), item("b", 2), item("c", 3)]);
        let newer = vec![
            change("a", Some("older than the listing"), 5),
            change("b", None, 6),
            change("c", Some("new"), 7),
            change("d", Some("new"), 8),
        ];
        let items = catch_up(listed, newer, 5, &translator);
        let keys: Vec<_> = items.iter().map(|it| (it.item.key[0], it.item.revision)).collect();
        assert_eq!(keys, [(b'a', 1), (b'c', 7), (b'd', 8)]);
    }
}
