//! The cells of a fault matrix: what was wanted, what came, and the table of all of them.
//!
//! A cell is compared as one line of text. All cells of a section are played before the first wrong one
//! fails the test, and the table is written to the build output either way.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One cell.
#[derive(Debug)]
struct Cell {
    fault: String,
    column: String,
    wanted: String,
    got: String,
}

/// The cells of one section.
#[derive(Debug, Default)]
pub struct Cells(Mutex<Vec<Cell>>);

impl Cells {
    /// Notes what became of a cell.
    pub fn note(&self, fault: &str, column: impl Into<String>, wanted: String, got: String) {
        let cell = Cell { fault: fault.to_owned(), column: column.into(), wanted, got };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
    }

    /// Writes the table of a section, and fails if a cell is wrong or if there are not so many.
    pub fn settle(self, section: &str, number: usize) {
        let mut cells = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        cells.sort_by(|a, b| (&a.fault, &a.column).cmp(&(&b.fault, &b.column)));
        let mut table = String::from("| fault | column | result | |\n|---|---|---|---|\n");
        let mut wrong = String::new();
        for Cell { fault, column, wanted, got } in &cells {
            let verdict = if wanted == got { "ok" } else { "WRONG" };
            // Writing to a String cannot fail.
            let _ = writeln!(table, "| {fault} | {column} | {got} | {verdict} |");
            if wanted != got {
                let _ = writeln!(wrong, "{fault} / {column}:\n  wanted {wanted}\n  got    {got}");
            }
        }
        let folder = folder();
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(format!("{section}.md")), table).expect("written");
        assert!(wrong.is_empty(), "cells that are not as they should be:\n{wrong}");
        assert_eq!(cells.len(), number, "cells of {section}");
    }
}

/// Where the tables go.
pub fn folder() -> PathBuf {
    // The lab is a program of its own, for which cargo has no such folder.
    Path::new(option_env!("CARGO_TARGET_TMPDIR").unwrap_or_default()).join("fault-matrix")
}
