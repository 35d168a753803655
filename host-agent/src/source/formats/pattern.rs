//! A key's pattern: `{name}/{id}`, `{name}/{network}@{address}`, `{name<}/{id}`.
//!
//! `{part}` is everything up to what follows it in the pattern, at least one byte and no slash.
//! `{part*}` may hold slashes and reaches as far as it can; `{part<}` likewise, and its segments
//! are turned round and joined by dots, as DNS names are stored (`local/acme/web` is
//! `web.acme.local`). Matching never goes back, so it takes as long as the key is.

/// A checked pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(Vec<u8>),
    Part { name: String, reach: Reach },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Segment,
    Deep,
    Reversed,
}

/// Parts of one pattern, at most.
const MAX_PARTS: usize = 16;

/// The parts of a key, by name.
pub(super) type Parts = Vec<(String, Vec<u8>)>;

impl Pattern {
    /// Reads a pattern; `None` where braces do not pair, two parts touch or share a name, or there
    /// is none.
    pub(super) fn new(text: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                tokens.push(Token::Literal(before.into()));
            } else if matches!(tokens.last(), Some(Token::Part { .. })) {
                return None;
            }
            let (part, after) = after.split_once('}')?;
            let (name, reach) = match part.as_bytes().last()? {
                b'*' => (part.strip_suffix('*')?, Reach::Deep),
                b'<' => (part.strip_suffix('<')?, Reach::Reversed),
                _ => (part, Reach::Segment),
            };
            let good = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
            if !good || names.contains(&name) || names.len() >= MAX_PARTS {
                return None;
            }
            names.push(name);
            tokens.push(Token::Part { name: name.to_owned(), reach });
            rest = after;
        }
        if rest.contains('}') || names.is_empty() {
            return None;
        }
        if !rest.is_empty() {
            tokens.push(Token::Literal(rest.into()));
        }
        Some(Self(tokens))
    }

    /// Whether it has this part.
    pub(super) fn has(&self, part: &str) -> bool {
        self.0.iter().any(|token| matches!(token, Token::Part { name, .. } if name == part))
    }

    /// The key's parts, if it is such a key.
    pub(super) fn parts(&self, key: &[u8]) -> Option<Parts> {
        let mut parts = Vec::new();
        let mut rest = key;
        let mut tokens = self.0.iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                Token::Literal(literal) => rest = rest.strip_prefix(literal.as_slice())?,
                Token::Part { name, reach } => {
                    let end = match tokens.peek() {
                        Some(Token::Literal(next)) => find(rest, next, *reach)?,
                        _ => rest.len(),
                    };
                    let (part, after) = rest.split_at_checked(end)?;
                    if part.is_empty() || (*reach == Reach::Segment && part.contains(&b'/')) {
                        return None;
                    }
                    let part = if *reach == Reach::Reversed { reversed(part) } else { part.into() };
                    parts.push((name.clone(), part));
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(parts)
    }

    /// The key that has these parts; `None` where one is missing.
    pub(super) fn fill(&self, part: impl Fn(&str) -> Option<String>) -> Option<String> {
        let mut key = String::new();
        for token in &self.0 {
            match token {
                Token::Literal(literal) => key.push_str(std::str::from_utf8(literal).ok()?),
                Token::Part { name, reach } => {
                    let part = part(name)?;
                    if *reach == Reach::Reversed {
                        let mut labels: Vec<&str> = part.split('.').collect();
                        labels.reverse();
                        key.push_str(&labels.join("/"));
                    } else {
                        key.push_str(&part);
                    }
                }
            }
        }
        Some(key)
    }
}

fn find(text: &[u8], next: &[u8], reach: Reach) -> Option<usize> {
    let mut places = text.windows(next.len()).enumerate().filter(|(_, window)| *window == next);
    match reach {
        Reach::Segment => places.next(),
        Reach::Deep | Reach::Reversed => places.next_back(),
    }
    .map(|(at, _)| at)
}

fn reversed(part: &[u8]) -> Vec<u8> {
    let mut labels: Vec<&[u8]> = part.split(|byte| *byte == b'/').collect();
    labels.reverse();
    labels.join(&b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_parts_of_its_pattern_or_none() {
        let table: &[(&str, &str, Option<&[&str]>)] = &[
            ("{name}/{id}", "orders/a", Some(&["orders", "a"])),
            ("{name}/{id}", "orders", None),
            ("{name}/{id}", "team/orders/a", None),
            ("{name}/{id}", "/a", None),
            ("{name*}/{id}", "team/orders/a", Some(&["team/orders", "a"])),
            ("{name}/{net}@{address}", "A/tcp@10.0.0.5:1", Some(&["A", "tcp", "10.0.0.5:1"])),
            ("{name}/{net}@{address}", "A", None),
            ("{name<}/{id}", "local/acme/web/1", Some(&["web.acme.local", "1"])),
            ("v1/{name}/x", "v1/orders/x", Some(&["orders"])),
            ("v1/{name}/x", "v1/orders/y", None),
        ];
        for (pattern, key, expect) in table {
            let pattern = Pattern::new(pattern).unwrap();
            let parts = pattern.parts(key.as_bytes());
            let texts: Option<Vec<_>> = parts.map(|parts| {
                parts.into_iter().map(|(_, part)| String::from_utf8(part).unwrap()).collect()
            });
            assert_eq!(
                texts.as_deref(),
                expect.map(|e| e.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).as_deref()
            );
        }
        for bad in ["", "orders", "{a}{b}", "{a}/{a}", "{}", "{a", "a}", "{a b}"] {
            assert_eq!(Pattern::new(bad), None, "{bad}");
        }
    }
}
