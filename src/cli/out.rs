//! What people see: answers on standard output, reports on standard error.
//!
//! A reader that has gone away (`fanfold config schema | head`) is no failure.

use std::io::{IsTerminal, Write};

/// Writes an answer, as it is.
pub(super) fn answer(text: &str) {
    let mut out = std::io::stdout().lock();
    let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a report or a remark, as it is.
pub(super) fn report(text: &str) {
    let _gone = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Whether reports may have colours: standard error is a terminal that can, and `NO_COLOR` is not
/// set.
pub(super) fn coloured() -> bool {
    std::io::stderr().is_terminal() && colours_wanted()
}

/// The same for answers, which go to standard output.
pub(super) fn coloured_answer() -> bool {
    std::io::stdout().is_terminal() && colours_wanted()
}

fn colours_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !set("NO_COLOR") && !dumb
}

/// Rows with their columns below each other, two spaces apart, each row indented.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(format!("  {}", cells.join("  ")).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "b".into()], vec!["ccc".into(), String::new()], vec![]];
        assert_eq!(super::table(&rows), "  a    b\n  ccc\n\n");
    }
}
