//! go-zero's discov: `{Key}/{lease id}` -> `10.0.0.5:8080`, plain text, under a lease of 10 s.
//!
//! An instance that loses its lease comes back under another key while the old one still lives for
//! up to 10 s, so the address is the id: both keys are one instance, which goes when both have
//! gone.

use super::{Format, Found, Refusal, Written, address, split_last};

#[derive(Debug)]
pub(super) struct GoZero;

impl Format for GoZero {
    fn recognises(&self, key: &[u8], value: &[u8]) -> bool {
        let (_, id) = split_last(key);
        is_number(id)
            && text(value)
                .is_ok_and(|text| matches!(address::parse(text), Ok(_) | Err(Refusal::HostName(_))))
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal> {
        let (name, id) = split_last(key);
        if !is_number(id) {
            return Ok(Vec::new());
        }
        let address = text(value)?.to_owned();
        Ok(vec![Found { name: name.to_vec(), address, ..Found::default() }])
    }

    fn write(&self, it: &Written<'_>) -> Option<(String, String)> {
        let key = format!("{}/{}", it.name, it.lease);
        it.healthy.then(|| (key, it.address.to_string()))
    }
}

fn is_number(id: &[u8]) -> bool {
    (1..=20).contains(&id.len()) && id.iter().all(u8::is_ascii_digit)
}

fn text(value: &[u8]) -> Result<&str, Refusal> {
    let text = value.get(..512).map_or(Some(value), |_| None);
    let text = text.and_then(|value| std::str::from_utf8(value).ok());
    text.map(str::trim).ok_or(Refusal::Value("an address in plain text"))
}
