//! Tables of what was measured, and the bounds it is held to; for people as Markdown, for programs as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

/// What one part of the benchmark found.
pub struct Part {
    name: &'static str,
    title: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
    bounds: Vec<Value>,
    notes: Vec<String>,
}

impl Part {
    pub fn new(name: &'static str, title: &'static str, columns: &[&'static str]) -> Self {
        let columns = columns.to_vec();
        Self { name, title, columns, rows: Vec::new(), bounds: Vec::new(), notes: Vec::new() }
    }

    /// A line of the table, one cell for each column.
    pub fn row(&mut self, cells: Vec<Value>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// Holds a figure to the most it may be.
    pub fn bound(&mut self, figure: impl Into<String>, measured: f64, most: f64, unit: &str) {
        self.bounds.push(json!({
            "figure": figure.into(), "measured": measured, "bound": most, "unit": unit, "met": measured <= most,
        }));
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn json(&self, seconds: f64) -> Value {
        json!({
            "title": self.title, "seconds_per_measurement": seconds, "machine": crate::account::machine(),
            "columns": self.columns, "rows": self.rows, "bounds": self.bounds, "notes": self.notes,
        })
    }
}

/// Lays a part into the file of results, beside those of other parts.
pub fn keep(path: &Path, part: &Part, seconds: f64) {
    let mut all = read(path);
    all.insert(part.name.into(), part.json(seconds));
    let text = serde_json::to_string_pretty(&all).expect("JSON");
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder for the results");
    std::fs::write(path, text + "\n").expect("the results are written");
}

fn read(path: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The tables of these parts as they are in the file, and the bounds of all of them.
pub fn show(path: &Path, names: &[&str]) -> String {
    let all = read(path);
    let mut out = String::new();
    let mut bounds = Vec::new();
    for part in names.iter().filter_map(|name| all.get(*name)) {
        let _ = writeln!(out, "\n## {}\n", text(&part["title"]));
        let columns: Vec<String> = list(&part["columns"]).map(text).collect();
        let rows = list(&part["rows"]).map(|row| list(row).map(text).collect()).collect();
        out += &table(&columns, rows);
        for note in list(&part["notes"]) {
            let _ = writeln!(out, "\n{}", text(note));
        }
        bounds.extend(list(&part["bounds"]).map(|bound| {
            let unit = text(&bound["unit"]);
            let met = if bound["met"] == true { "met" } else { "MISSED" };
            let figure = |name: &str| format!("{} {unit}", text(&bound[name])).trim().to_owned();
            vec![text(&bound["figure"]), figure("measured"), figure("bound"), met.to_owned()]
        }));
    }
    let columns = ["figure", "measured", "at most", ""].map(str::to_owned);
    if !bounds.is_empty() {
        let missed = bounds.iter().filter(|bound| bound[3] != "met").count();
        let _ = writeln!(out, "\n## Bounds: {} met, {missed} missed\n", bounds.len() - missed);
        out += &table(&columns, bounds);
    }
    out
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let digits = match number.abs() {
                whole if whole.fract() == 0.0 => 0,
                100.0.. => 0,
                10.0.. => 1,
                _ => 2,
            };
            format!("{number:.digits$}")
        }
        _ => String::new(),
    }
}

/// Columns as wide as they need be; numbers to the right.
fn table(columns: &[String], rows: Vec<Vec<String>>) -> String {
    let wide = |at: usize| {
        rows.iter().map(|row| row[at].chars().count()).chain([columns[at].chars().count(), 3]).max()
    };
    let widths: Vec<usize> = (0..columns.len()).filter_map(wide).collect();
    let starts = |row: &Vec<String>, at: usize| {
        row[at].is_empty() || row[at].starts_with(|c: char| c == '-' || c.is_ascii_digit())
    };
    let right: Vec<bool> =
        (0..columns.len()).map(|at| at > 0 && rows.iter().all(|row| starts(row, at))).collect();
    let line = |cells: &[String]| {
        let mut out = String::from("|");
        for (at, cell) in cells.iter().enumerate() {
            let width = widths[at];
            let _ =
                if right[at] { write!(out, " {cell:>width$} |") } else { write!(out, " {cell:<width$} |") };
        }
        out + "\n"
    };
    let rule = |at: usize| "-".repeat(widths[at] - usize::from(right[at])) + if right[at] { ":" } else { "" };
    let rules: Vec<String> = (0..columns.len()).map(rule).collect();
    line(columns) + &line(&rules) + &rows.iter().map(|row| line(row)).collect::<String>()
}
