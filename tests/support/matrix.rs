//! The cells of a fault matrix: what was wanted, what came, and the table of all of them.
//!
//! A cell is compared as one line of text, and its answer has to end within its deadline, or a little later: 1 s is
//! promised, 6 s fail the test. What threads waited for a processor in the meantime is forgiven: the machine had other
//! things to do. All cells of a section are played before the first wrong one fails the test, and the table is written
//! to the build output either way.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::process::Process;

/// How much later than its deadline an answer may end.
const PROMISED: Duration = Duration::from_secs(1);
/// How much later it may end without failing the test.
const FORGIVEN: Duration = Duration::from_secs(6);

/// How long an answer took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    pub answer: Duration,
    /// How long threads of the process, and of the test with its lab, waited for a processor, added up.
    pub waited: Duration,
}

impl std::ops::Add for Took {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { answer: self.answer + other.answer, waited: self.waited + other.waited }
    }
}

/// Measures an answer.
pub struct Watch {
    process: i32,
    began: Instant,
    waited: HashMap<PathBuf, Duration>,
}

impl Watch {
    /// From now on, of an answer of this process.
    pub fn start(process: &Process) -> Self {
        let process = process.id();
        Self { process, began: Instant::now(), waited: waited(process) }
    }

    /// Until now.
    pub fn stop(&self) -> Took {
        let answer = self.began.elapsed();
        let since = |(thread, waited): (PathBuf, Duration)| {
            waited.saturating_sub(self.waited.get(&thread).copied().unwrap_or_default())
        };
        Took { answer, waited: waited(self.process).into_iter().map(since).sum() }
    }
}

/// Waits for an answer; says how long that took.
pub async fn timed<F: Future>(process: &Process, answer: F) -> (F::Output, Took) {
    let watch = Watch::start(process);
    (answer.await, watch.stop())
}

/// How long each thread of a process and of this one has waited for a processor so far.
fn waited(process: i32) -> HashMap<PathBuf, Duration> {
    let threads = ["self", &process.to_string()].map(|of| std::fs::read_dir(format!("/proc/{of}/task")));
    let threads = threads.into_iter().flatten().flatten().filter_map(Result::ok);
    // A thread may have ended since.
    let waited = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanoseconds = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((thread.path(), Duration::from_nanos(nanoseconds)))
    });
    waited.collect()
}

/// One cell.
#[derive(Debug)]
struct Cell {
    fault: String,
    column: String,
    wanted: String,
    got: String,
    /// Its deadline, and how long it took. None: its times, if it has any, are in its text.
    time: Option<(Duration, Took)>,
}

/// What is said of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// It ended later than promised, and that is forgiven.
    Slow,
    Late,
    Wrong,
}

impl Verdict {
    /// The verdict about an answer that is as it should be, or not, had this deadline and took so long.
    pub fn of(right: bool, deadline: Duration, took: Took) -> Self {
        let late = took.answer.saturating_sub(deadline);
        match () {
            () if !right => Self::Wrong,
            () if late > FORGIVEN + took.waited => Self::Late,
            () if late > PROMISED => Self::Slow,
            () => Self::Ok,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Slow => "slow",
            Self::Late => "LATE",
            Self::Wrong => "WRONG",
        }
    }
}

/// The cells of one section.
#[derive(Debug, Default)]
pub struct Cells(Mutex<Vec<Cell>>);

impl Cells {
    /// Notes what became of a cell, which had this deadline.
    pub fn note(
        &self,
        fault: &str,
        column: impl Into<String>,
        (wanted, deadline): (String, Duration),
        (got, took): (String, Took),
    ) {
        self.push(fault, column, wanted, got, Some((deadline, took)));
    }

    /// Notes what became of a cell that is not about an answer in time.
    pub fn note_untimed(&self, fault: &str, column: impl Into<String>, wanted: String, got: String) {
        self.push(fault, column, wanted, got, None);
    }

    fn push(
        &self,
        fault: &str,
        column: impl Into<String>,
        wanted: String,
        got: String,
        time: Option<(Duration, Took)>,
    ) {
        let cell = Cell { fault: fault.to_owned(), column: column.into(), wanted, got, time };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
    }

    /// Writes the table of a section, and fails if a cell is wrong or if there are not so many.
    pub fn settle(self, section: &str, number: usize) {
        let mut cells = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        cells.sort_by(|a, b| (&a.fault, &a.column).cmp(&(&b.fault, &b.column)));
        let head = ["fault", "column", "result", "ended after", "deadline", "threads waited", ""];
        let mut table = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
        let mut wrong = String::new();
        for cell in &cells {
            let Cell { fault, column, wanted, got, time } = cell;
            let right = wanted == got;
            let (word, times) = match time {
                None if right => (Verdict::Ok, None),
                None => (Verdict::Wrong, None),
                Some((deadline, took)) => (
                    Verdict::of(right, *deadline, *took),
                    Some(
                        [took.answer, *deadline, took.waited].map(|time| format!("{} ms", time.as_millis())),
                    ),
                ),
            };
            let fails = matches!(word, Verdict::Wrong | Verdict::Late);
            let word = word.word();
            let columns = times.as_ref().map_or_else(|| " | | ".to_owned(), |times| times.join(" | "));
            // Writing to a String cannot fail.
            let _ = writeln!(table, "| {fault} | {column} | {got} | {columns} | {word} |");
            if fails {
                let [within, after] = match times {
                    None => Default::default(),
                    Some([took, deadline, waited]) => {
                        [format!(" within {deadline}"), format!(" after {took}, threads waited {waited}")]
                    }
                };
                let _ = writeln!(
                    wrong,
                    "{fault} / {column}: {word}\n  wanted {wanted}{within}\n  got    {got}{after}"
                );
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
