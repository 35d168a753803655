//! Names of services and endpoints: one spelling in subjects, commands, labels and cookies.

use crate::MAX_NAME;

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':')
}

/// Whether `text` may name a service or an endpoint: 1 to 253 of `[A-Za-z0-9._:-]`, and not only
/// dots. Any other byte is written `%XX` in upper case (RFC 3986, 2.1), and no byte that need not
/// be.
#[must_use]
pub fn is_name(text: &str) -> bool {
    if !(1..=MAX_NAME).contains(&text.len()) || text.bytes().all(|b| b == b'.') {
        return false;
    }
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return true,
            [b'%', high, low, rest @ ..] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) if !is_plain(high << 4 | low) => rest,
                _ => return false,
            },
            [byte, rest @ ..] if is_plain(*byte) => rest,
            _ => return false,
        };
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
        b'A'..=b'F' => Some(byte.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// The one spelling of a name of any bytes; `None` where it is empty, too long, or only dots.
#[must_use]
pub fn encode_name(bytes: &[u8]) -> Option<String> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if is_plain(*byte) {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            for half in [byte >> 4, byte & 15] {
                text.push(DIGITS.get(usize::from(half)).copied().map_or('0', char::from));
            }
        }
        if text.len() > MAX_NAME {
            return None;
        }
    }
    is_name(&text).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_have_one_spelling_and_no_other_is_a_name() {
        for (bytes, expect) in [
            (&b"orders"[..], Some("orders")),
            (b"10.0.0.5:8080", Some("10.0.0.5:8080")),
            (b"[2001:db8::1]:80", Some("%5B2001:db8::1%5D:80")),
            (b"team/user.rpc", Some("team%2Fuser.rpc")),
            (b"100%", Some("100%25")),
            (b"a b\xff", Some("a%20b%FF")),
            (b"", None),
            (b"..", None),
        ] {
            assert_eq!(encode_name(bytes).as_deref(), expect);
        }
        assert_eq!(encode_name(&[b'n'; 253]).map(|name| name.len()), Some(253));
        assert_eq!(encode_name(&[b'n'; 254]), None);
        assert_eq!(encode_name(&[b'/'; 85]), None);
        for text in ["a%2fb", "a%41", "a%", "a%2", "%zz", "a/b", "a b", "\u{e4}", ".", ""] {
            assert!(!is_name(text), "{text}");
        }
    }
}
