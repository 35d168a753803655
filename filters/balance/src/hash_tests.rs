use rand::SeedableRng;

use super::*;
use crate::Dice;

#[derive(Default)]
struct Seen {
    headers: Vec<(&'static str, &'static str)>,
    address: Option<&'static str>,
}

impl RequestView for Seen {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes())
    }

    fn source_address(&self) -> Option<&[u8]> {
        self.address.map(str::as_bytes)
    }
}

fn key(policy: &str, headers: &[(&'static str, &'static str)]) -> HashKey {
    let policy = serde_json::from_str(&format!(r#"{{"hash_key":{policy}}}"#)).unwrap();
    let policy: Policy = pintle_settings::read("select", policy).unwrap();
    let seen = Seen { headers: headers.to_vec(), address: Some("192.0.2.7") };
    hash_key(&policy, &seen, &mut Dice::seed_from_u64(1))
}

fn hash(policy: &str, headers: &[(&'static str, &'static str)]) -> Option<u64> {
    key(policy, headers).hash
}

#[test]
fn each_source_hashes_the_bytes_that_envoy_hashes() {
    for (policy, headers, bytes) in [
        (r#"[{"header":"x-user"}]"#, &[("x-user", "ada")][..], Some("ada")),
        (r#"[{"header":"x-user"}]"#, &[("x-user", "")], Some("")),
        (r#"[{"header":"x-user"}]"#, &[], None),
        (r#"[{"cookie":{"name":"c"}}]"#, &[("cookie", "a=b; c=d")], Some("d")),
        (r#"[{"cookie":{"name":"c"}}]"#, &[("cookie", "c=\"d\"")], Some("d")),
        (r#"[{"cookie":{"name":"c"}}]"#, &[("cookie", "cc=d; c; xc=e")], None),
        (r#"[{"cookie":{"name":"c"}}]"#, &[("cookie", "c=")], None),
        (r#"[{"query":"q"}]"#, &[(":path", "/?p=1&q=a%20b&q=2")], Some("a%20b")),
        (r#"[{"query":"q"}]"#, &[(":path", "/?q&p=1")], Some("")),
        (r#"[{"query":"q"}]"#, &[(":path", "/q=1")], None),
        (r#"[{"path":true}]"#, &[(":path", "/a/b?q=1")], Some("/a/b")),
        (r#"[{"header":":path"}]"#, &[(":path", "/a/b?q=1")], Some("/a/b?q=1")),
        (r#"[{"source_address":true}]"#, &[], Some("192.0.2.7")),
        ("[]", &[("x-user", "ada")], None),
    ] {
        assert_eq!(hash(policy, headers), bytes.map(|b| xx(b.as_bytes())), "{policy} {headers:?}");
    }
}

#[test]
fn several_parts_combine_as_in_envoy() {
    let both = r#"[{"header":"a"},{"header":"b"}]"#;
    let (a, b) = (xx(b"1"), xx(b"2"));
    assert_eq!(hash(both, &[("a", "1"), ("b", "2")]), Some(a.rotate_left(1) ^ b));
    assert_eq!(hash(both, &[("b", "2")]), Some(b));
    // The same rule twice must not cancel itself out.
    let twice = r#"[{"header":"a"},{"header":"a"}]"#;
    assert_eq!(hash(twice, &[("a", "1")]), Some(a.rotate_left(1) ^ a));
}

#[test]
fn a_terminal_part_ends_the_search_once_there_is_a_hash() {
    let policy = r#"[{"header":"a","terminal":true},{"source_address":true}]"#;
    assert_eq!(hash(policy, &[("a", "1")]), Some(xx(b"1")));
    assert_eq!(hash(policy, &[]), Some(xx(b"192.0.2.7")));
}

#[test]
fn a_cookie_is_generated_when_a_ttl_is_given() {
    let made = key(r#"[{"cookie":{"name":"c","ttl":"1h","path":"/x"}}]"#, &[]);
    let text = made.set_cookie.unwrap();
    let value = text.split('"').nth(1).unwrap();
    assert_eq!(value.len(), 16);
    assert_eq!(text, format!("c=\"{value}\"; Max-Age=3600; Path=/x; HttpOnly"));
    assert_eq!(made.hash, Some(xx(value.as_bytes())));
    let session = key(r#"[{"cookie":{"name":"c","ttl":"0s"}}]"#, &[]).set_cookie.unwrap();
    assert!(session.ends_with("\"; HttpOnly") && !session.contains("Max-Age"), "{session}");
    let kept = key(r#"[{"cookie":{"name":"c","ttl":"1h"}}]"#, &[("cookie", "c=abc")]);
    assert_eq!(kept, HashKey { hash: Some(xx(b"abc")), set_cookie: None });
}

/// As Envoy says it: cut at each semicolon, each at its first equals sign.
fn plain<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    header.split(|&b| b == b';').find_map(|pair| {
        let pair = pair.trim_ascii_start();
        let at = pair.iter().position(|&b| b == b'=')?;
        let value = &pair[at + 1..];
        let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
        (&pair[..at] == name).then(|| bare.unwrap_or(value))
    })
}

proptest::proptest! {
    #[test]
    fn a_cookie_is_found_as_if_byte_by_byte(header in "[cd;= \"\t:\u{80}]{0,60}") {
        for name in ["c", "cd", "dcd"] {
            let (header, name) = (header.as_bytes(), name.as_bytes());
            proptest::prop_assert_eq!(cookie_value(header, name), plain(header, name));
        }
    }
}
