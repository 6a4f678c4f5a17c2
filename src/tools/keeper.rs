//! Ends what fanfold started when fanfold itself cannot any more, because it was killed.
//!
//! ```text
//!  fanfold ─── pipe ──▶ fanfold __keeper: reads until the pipe ends, then looks for the mark
//!     │                                                        │
//!     └── starts ──▶ programs, with the mark in their environment ──▶ and all they start ◀─┘
//!                                                             LEAVE ─▶ SIGTERM, GRACE ─▶ SIGKILL
//! ```
//!
//! The pipe ends with fanfold, however that ends; a child that is just being started holds it as well, until the
//! program with the mark runs. So nothing is missed in between. The mark is inherited, so whoever left its group or
//! its session is found, too, and also when fanfold ends in peace. Who wiped the mark out of its own environment is
//! not: that is what a sandbox is for.
//!
//! One process, started with the first program and ended with the last tool that may start one.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

/// The first argument of a keeper.
pub(crate) const WORD: &str = "__keeper";
/// The variable that is the mark.
const VARIABLE: &str = "FANFOLD_KEEPER";
/// How long a program gets to leave by itself, its standard input being closed.
const LEAVE: Duration = Duration::from_millis(700);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long SIGKILL is repeated, for those that were just being forked.
const KILL: Duration = Duration::from_secs(5);
/// How often it is looked for the mark.
const LOOK: Duration = Duration::from_millis(20);

/// Whether this program knows [`WORD`]; the tests of the library do not.
static KNOWN: AtomicBool = AtomicBool::new(false);
/// The keeper of this process. It is about the end of the process, so there is one for all.
static CURRENT: Mutex<Weak<Keeper>> = Mutex::new(Weak::new());

/// Holds the process that ends the others.
#[derive(Debug)]
pub(in crate::tools) struct Keeper {
    mark: String,
    process: Mutex<Option<Child>>,
}

/// Says that this program runs [`run`] when its first argument is [`WORD`].
pub(crate) fn is_known() {
    KNOWN.store(true, Ordering::Relaxed);
}

impl Keeper {
    /// The one of this process. It ends when nobody holds it any more.
    pub(in crate::tools) fn current() -> Option<Arc<Self>> {
        if !KNOWN.load(Ordering::Relaxed) {
            return None;
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = current.upgrade() {
            return Some(keeper);
        }
        let keeper = Arc::new(Self { mark: Uuid::now_v7().to_string(), process: Mutex::default() });
        *current = Arc::downgrade(&keeper);
        Some(keeper)
    }

    /// Makes sure that it runs. Gives the variable that a program must have in its environment to be found.
    pub(in crate::tools) fn mark(&self) -> (&'static str, &str) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if !runs {
            match start(&self.mark) {
                Ok(child) => *process = Some(child),
                Err(error) => {
                    tracing::warn!(%error, "what is started now may outlive a fanfold that is killed")
                }
            }
        }
        (VARIABLE, &self.mark)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // It may have to wait for somebody, and drops must not.
        let reap = |mut child: Child| {
            drop(child.stdin.take());
            child.wait()
        };
        if let Some(child) = process {
            std::thread::spawn(move || reap(child));
        }
    }
}

fn start(mark: &str) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("fanfold").arg(WORD).env_clear().current_dir("/");
    // A group of its own: what a terminal sends to fanfold's is not for it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    match child.stdin.as_mut() {
        Some(pipe) => writeln!(pipe, "{mark}")?,
        None => return Err(io::Error::other("a pipe is missing")),
    }
    Ok(child)
}

/// What the process does: waits until fanfold is gone, then ends what has its mark.
pub(crate) fn run() -> ExitCode {
    let (mut mark, mut pipe) = (String::new(), io::stdin().lock());
    if pipe.read_line(&mut mark).is_err() || !mark.ends_with('\n') {
        return ExitCode::FAILURE;
    }
    let _ended = io::copy(&mut pipe, &mut io::sink());
    let mark = format!("{VARIABLE}={}", mark.trim_end());
    for (signal, patience) in [(None, LEAVE), (Some(Signal::TERM), GRACE), (Some(Signal::KILL), KILL)] {
        if all_gone(mark.as_bytes(), signal, patience) {
            return ExitCode::SUCCESS;
        }
    }
    ExitCode::FAILURE
}

/// Sends a signal to everybody with the mark, once, until nobody is left or patience is. Whether nobody is left.
fn all_gone(mark: &[u8], signal: Option<Signal>, patience: Duration) -> bool {
    let mut told = BTreeSet::new();
    for _ in 0..=patience.as_millis() / LOOK.as_millis() {
        let marked = marked(mark);
        if marked.is_empty() {
            return true;
        }
        for pid in marked {
            if let Some(signal) = signal.filter(|_| told.insert(pid.as_raw_pid())) {
                // It may be gone by now.
                let _ = kill_process(pid, signal);
            }
        }
        std::thread::sleep(LOOK);
    }
    false
}

/// The processes with the mark. One that has ended and is not reaped has none.
fn marked(mark: &[u8]) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    };
    pids.filter(has).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_mark_is_found_and_nobody_else() {
        let start = |name: &str, value: &str| {
            let mut command = Command::new("/bin/sleep");
            command.arg("600").env_clear().env(name, value).spawn().unwrap()
        };
        let (with, without) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
        let mut all = [start(VARIABLE, &with), start(VARIABLE, &without), start("OTHER", &with)];
        let mark = format!("{VARIABLE}={with}");
        let found: Vec<u32> =
            marked(mark.as_bytes()).iter().map(|pid| pid.as_raw_pid().unsigned_abs()).collect();
        assert_eq!(found, [all[0].id()]);
        assert!(!all_gone(mark.as_bytes(), None, Duration::ZERO), "nothing is sent");
        assert!(all_gone(mark.as_bytes(), Some(Signal::KILL), KILL));
        assert!(all[1..].iter_mut().all(|other| other.try_wait().unwrap().is_none()));
        for mut child in all {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn the_library_alone_has_none() {
        assert!(Keeper::current().is_none());
    }
}
