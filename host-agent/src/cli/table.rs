//! Tables of text, columns as wide as they must be.

use std::fmt::Write as _;

/// Rows under a heading; what is empty is a dash.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self {
            rows: vec![heads.iter().map(|head| head.to_uppercase()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell.replace(char::is_control, "\u{fffd}")
            }
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The text, or `empty` when there is no row.
    pub(super) fn render(&self, empty: &str) -> String {
        if self.rows.len() < 2 {
            return format!("{empty}\n");
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_not_get_through() {
        let mut table = Table::new(&["service", "zone"]);
        table.row(["orders".to_owned(), String::new()]);
        table.row(["a-much-longer-name\u{1b}[31m".to_owned(), "eu".to_owned()]);
        assert_eq!(
            table.render("none"),
            "SERVICE                  ZONE\n\
             orders                   -\n\
             a-much-longer-name\u{fffd}[31m  eu\n"
        );
        assert_eq!(Table::new(&["x"]).render("none"), "none\n");
    }
}
