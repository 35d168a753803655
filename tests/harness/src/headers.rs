//! A header map as Envoy keeps it: ordered, duplicates apart, names in lower case, values as bytes.
//!
//! A real Envoy never joins duplicates for the guest: reading a name gives the first value, writing
//! it leaves one, adding appends. `host` is looked up as `:authority`, the only form in which it is
//! stored. Not modelled: the few inline headers whose values Envoy joins with a comma when one is
//! added.

use std::fmt;

/// An ordered list of headers or trailers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first value of `name`, in any case.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = key(name.as_ref());
        self.0.iter().find(|(k, _)| *k == name).map(|(_, v)| v.as_slice())
    }

    /// The first value of `name` as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self, name: impl AsRef<[u8]>) -> Option<String> {
        self.get(name).map(|v| String::from_utf8_lossy(v).into_owned())
    }

    /// All values of `name`, in order.
    pub fn get_all(&self, name: impl AsRef<[u8]>) -> Vec<&[u8]> {
        let name = key(name.as_ref());
        self.0.iter().filter(|(k, _)| *k == name).map(|(_, v)| v.as_slice()).collect()
    }

    /// Leaves one value of `name`: at the place of the first one, or at the end.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = key(name.as_ref());
        let mut value = Some(value.as_ref().to_vec());
        self.0.retain_mut(|(k, v)| {
            if *k != name {
                return true;
            }
            value.take().map(|new| *v = new).is_some()
        });
        if let Some(value) = value {
            self.0.push((name, value));
        }
    }

    /// Appends a value; others of that name stay.
    pub fn add(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.0.push((key(name.as_ref()), value.as_ref().to_vec()));
    }

    /// Removes every value of `name`.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) {
        let name = key(name.as_ref());
        self.0.retain(|(k, _)| *k != name);
    }

    /// All headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    /// The number of headers, duplicates counted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all names and values.
    pub fn byte_size(&self) -> usize {
        self.0.iter().map(|(k, v)| k.len() + v.len()).sum()
    }

    /// Whether this is a gRPC message by its content type.
    pub fn is_grpc(&self) -> bool {
        self.get("content-type").is_some_and(|v| {
            v.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+', ..]))
        })
    }
}

fn key(name: &[u8]) -> Vec<u8> {
    let name = name.to_ascii_lowercase();
    if name == b"host" { b":authority".to_vec() } else { name }
}

impl<K: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(K, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.add(name, value);
        }
        headers
    }
}

impl<K: AsRef<[u8]>, V: AsRef<[u8]>, const N: usize> From<[(K, V); N]> for Headers {
    fn from(pairs: [(K, V); N]) -> Self {
        pairs.into_iter().collect()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (name, value) in &self.0 {
            map.entry(&String::from_utf8_lossy(name), &String::from_utf8_lossy(value));
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_stay_apart_and_set_leaves_one_in_place() {
        let mut headers = Headers::from([("X-A", "1"), ("b", "2"), ("x-a", "3")]);
        assert_eq!(headers.get("x-A"), Some(&b"1"[..]));
        assert_eq!(headers.get_all("x-a"), [b"1", b"3"]);
        headers.set("x-a", "9");
        assert_eq!(headers, Headers::from([("x-a", "9"), ("b", "2")]));
        headers.remove("X-a");
        assert_eq!(headers, Headers::from([("b", "2")]));
    }

    #[test]
    fn host_is_the_authority() {
        let headers = Headers::from([(":authority", "svc:80")]);
        assert_eq!(headers.text("Host").as_deref(), Some("svc:80"));
    }
}
