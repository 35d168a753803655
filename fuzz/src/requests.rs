//! What a request's own bytes decide: its hash, its session, its subset.

use arbitrary::Unstructured;
use pintle_balance::{Dice, Pin, Policy, RequestView, Sticky, Wants, hash_key, pin};
use pintle_trace::is_field_value;
use rand::SeedableRng;

use crate::document::vary;
use crate::policies::POLICY;

/// Cookies, paths and headers as anybody may send them.
struct Request<'a> {
    headers: Vec<(&'static str, &'a [u8])>,
    address: Option<&'a [u8]>,
}

impl RequestView for Request<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(there, _)| *there == name).map(|(_, value)| *value)
    }

    fn source_address(&self) -> Option<&[u8]> {
        self.address
    }
}

pub(crate) fn requests(data: &[u8]) {
    let _ = read(data);
}

fn read(data: &[u8]) -> arbitrary::Result<()> {
    let mut u = Unstructured::new(data);
    let mut headers = Vec::new();
    for name in [":path", "cookie", "x-user", "x-version", ":authority"] {
        if u.arbitrary()? {
            headers.push((name, u.arbitrary::<&[u8]>()?));
        }
    }
    let request = Request { headers, address: u.arbitrary()? };
    let select = vary(&POLICY["select"], &mut u)?;
    let Ok(policy) = pintle_settings::read::<Policy>("select", select) else { return Ok(()) };

    let hash = |seed| hash_key(&policy, &request, &mut Dice::seed_from_u64(seed));
    let key = hash(1);
    assert_eq!(key, hash(1), "equal requests hash alike");
    match &key.set_cookie {
        None => assert_eq!(key, hash(2), "only a new cookie is chance"),
        Some(cookie) => {
            assert!(is_field_value(cookie.as_bytes()), "{cookie:?}");
            assert!(key.hash.is_some());
        }
    }
    assert!(key.hash.is_none() || !policy.hash_key.is_empty());

    let pinned = Pin::read(&policy, &request);
    assert_eq!(pinned, policy.sticky.as_ref().and_then(|sticky| pin(sticky, &request)));
    if let Some(pinned) = pinned {
        let text = pinned.to_string();
        assert_eq!(Pin::parse(text.as_bytes()), Some(pinned));
        if let Some(Sticky::Cookie(cookie)) = &policy.sticky {
            // What is set is what the client then sends, up to the first attribute.
            let set = cookie.set(&text);
            let sent = set.split(';').next().unwrap_or_default().as_bytes();
            let next = Request { headers: vec![("cookie", sent)], address: None };
            assert_eq!(Pin::read(&policy, &next), Some(pinned));
        }
    }
    let wants = Wants::read(&policy, &request);
    assert!(wants.as_slice().len() <= policy.subset.len());
    assert!(wants.as_slice().iter().all(|want| !want.value.is_empty()));
    Ok(())
}
