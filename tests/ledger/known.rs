//! What today's module is known to book wrongly: a row of the table, and the columns that may be wrong in
//! it. At least one of them must be, so that whoever mends a row must take it away here.

/// Row, columns, and what is missing.
const TODAY: &[(&str, &[&str], &str)] = &[
    ("direct-response", &["drive"], "what goes to no cluster of ours is refused"),
    ("not-ours", &["drive"], "as direct-response"),
];

/// Rows of which `also` is wrong now and then: an endpoint whose first answer was slow, as any is when
/// this many rows begin at once, is hardly looked at again.
const NOW_AND_THEN: [&str; 3] = ["sse-left", "sse-again", "ws-client-closes"];

/// What may be wrong in a row.
pub struct Known {
    pub columns: &'static [&'static str],
    pub why: &'static str,
    /// Whether something must be.
    pub always: bool,
}

/// `None` where all must be right.
pub fn of(row: &str) -> Option<Known> {
    if NOW_AND_THEN.contains(&row) {
        let why = "the balancer is not fair to an endpoint that was slow once";
        return Some(Known { columns: &["also"], why, always: false });
    }
    let known = TODAY.iter().find(|(name, ..)| *name == row);
    known.map(|&(_, columns, why)| Known { columns, why, always: true })
}
