//! The fault matrix: what is made of every fault, in every state of a turn.
//!
//! `matrix/upstream.rs`, `matrix/heals.rs`, `matrix/reach.rs`, `matrix/model.rs`, `matrix/tools.rs`,
//! `matrix/servers.rs`, `matrix/leaving.rs`, `matrix/repeats.rs` and `matrix/process.rs` are tables whose cells are
//! played against the real program; `matrix/held.rs` says which test holds the rows that need more than a script. The
//! tables of all cells with their results go to `tmp/fault-matrix` in cargo's target folder; their sizes are in
//! README.md.

mod support;

#[path = "matrix/heals.rs"]
mod heals;
#[path = "matrix/held.rs"]
mod held;
#[path = "matrix/leaving.rs"]
mod leaving;
#[path = "matrix/model.rs"]
mod model;
#[path = "matrix/process.rs"]
mod process;
#[path = "matrix/reach.rs"]
mod reach;
#[path = "matrix/repeats.rs"]
mod repeats;
#[path = "matrix/servers.rs"]
mod servers;
#[path = "matrix/tools.rs"]
mod tools;
#[path = "matrix/upstream.rs"]
mod upstream;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use support::matrix::{Took, Verdict};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// `file::test`, or a file: it has to be there.
fn is_there(test: &str) {
    let (path, name) = test.split_once("::").unwrap_or((test, ""));
    let text = read(path);
    assert!(name.is_empty() || text.contains(&format!("fn {name}(")), "{test} is not there");
}

#[test]
fn the_threat_model_names_tests_that_are_there() {
    let page = read("deploy/threat-model.md");
    let named = page.split('`').skip(1).step_by(2).filter(|code| code.contains(".rs"));
    assert!(named.map(is_there).count() > 20);
    assert!(read("README.md").contains("deploy/threat-model.md"));
}

#[test]
fn every_other_row_has_a_test_that_is_there() {
    let mut table = String::from("| section | fault | held by |\n|---|---|---|\n");
    for (section, rows) in held::SECTIONS {
        for (fault, tests) in rows {
            assert!(!tests.is_empty(), "{fault}");
            for test in *tests {
                is_there(test);
            }
            // Writing to a String cannot fail.
            let _ = writeln!(table, "| {section} | {fault} | {} |", tests.join(", "));
        }
    }
    fs::create_dir_all(support::matrix::folder()).expect("a folder");
    fs::write(support::matrix::folder().join("held.md"), table).expect("written");
}

#[test]
fn an_answer_that_ends_long_after_its_deadline_fails_a_cell() {
    let of = |right, answer, waited| {
        let [deadline, answer, waited] = [3000, answer, waited].map(Duration::from_millis);
        Verdict::of(right, deadline, Took { answer, waited })
    };
    assert_eq!([of(true, 10, 0), of(true, 4000, 0)], [Verdict::Ok; 2]);
    assert_eq!([of(true, 4001, 0), of(true, 9000, 0), of(true, 9900, 900)], [Verdict::Slow; 3]);
    assert_eq!([of(true, 9001, 0), of(true, 9901, 900)], [Verdict::Late; 2]);
    assert_eq!([of(false, 10, 0), of(false, 9001, 0)], [Verdict::Wrong; 2]);
}

#[test]
fn the_readme_says_how_large_it_is() {
    let mut wanted = String::from("| faults of | faults | cells |\n|---|---|---|\n");
    for (name, (faults, cells)) in [
        ("the upstream", upstream::size()),
        ("the upstream, soon over", heals::size()),
        ("the way to it", reach::size()),
        ("the model", model::size()),
        ("a tool", tools::size()),
        ("a tool server", servers::size()),
        ("a client that leaves", leaving::size()),
        ("a client that repeats itself", repeats::size()),
        ("the end of the process", process::size()),
    ] {
        let _ = writeln!(wanted, "| {name} | {faults} | {cells} |");
    }
    for (name, rows) in held::SECTIONS {
        let tests: usize = rows.iter().map(|(_, tests)| tests.len()).sum();
        let _ = writeln!(wanted, "| {name} | {} | {tests} tests and suites |", rows.len());
    }
    assert!(read("README.md").contains(&wanted), "README.md should have\n{wanted}");
}
