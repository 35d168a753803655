//! Names that look like one that is not there.

/// Names that are proposed.
const NEAREST: usize = 3;
/// Names less alike than this are not proposed; 1 is the same (Jaro and Winkler).
const ALIKE: f64 = 0.75;

/// The names most like `name`, the likeliest first, three at most.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut alike: Vec<(f64, &str)> = names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(alike, _)| *alike >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    alike.into_iter().take(NEAREST).map(|(_, name)| name.to_owned()).collect()
}

/// `, but a and b are`, after a sentence that says what is not there; nothing where nothing is
/// alike.
pub(crate) fn but(alike: &[String]) -> String {
    match alike {
        [] => String::new(),
        [one] => format!(", but {one} is"),
        [first @ .., last] => format!(", but {} and {last} are", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_names_come_first_and_no_others() {
        let names = ["orders", "orders-2", "billing", "order"];
        assert_eq!(nearest("odrers", names.into_iter()), ["orders", "order", "orders-2"]);
        assert!(nearest("zzz", names.into_iter()).is_empty());
        let alike = nearest("odrers", names.into_iter());
        assert_eq!(but(&alike), ", but orders, order and orders-2 are");
        assert_eq!((but(&alike[..1]).as_str(), but(&[]).as_str()), (", but orders is", ""));
    }
}
