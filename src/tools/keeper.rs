//! Ends what fanfold started when fanfold itself cannot any more, because it was killed.
//!
//! ```text
//!  fanfold ─── pipe ──▶ fanfold __keeper: reads until the pipe ends, then looks for the marks
//!     │                                                        │
//!     └── starts ──▶ programs, which inherit both marks ──▶ and so does all they start ◀─┘
//!                                                             LEAVE ─▶ SIGTERM, GRACE ─▶ SIGKILL
//! ```
//!
//! The pipe ends with fanfold, however that ends; a child that is just being started holds it as well, until the
//! program with the marks runs. So nothing is missed in between. There are two marks: a variable of the environment,
//! and a number of fanfold's own as the limit of file locks (`RLIMIT_LOCKS`), which no kernel since 2.4 enforces and
//! only root can raise again. Both are inherited, so whoever left its group or its session, or was given another
//! environment, is found, too, and also when fanfold ends in peace. Who means to hide and changes that limit as well
//! is not: that is what a sandbox is for.
//!
//! One process, started with the first program and ended with the last tool that may start one.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getppid, getrlimit, kill_process, setrlimit};
use uuid::Uuid;

/// The first argument of a keeper.
pub(crate) const WORD: &str = "__keeper";
/// The variable that is a mark.
const VARIABLE: &str = "FANFOLD_KEEPER";
/// How `/proc/PID/limits` names the limit that is the other one.
const LIMIT: &str = "Max file locks";
/// The numbers of fanfolds that nobody limits are between this and its double.
const FIRST: u64 = 1 << 61;
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
    mark: Mark,
    process: Mutex<Option<Child>>,
}

/// What a process has that was started by a fanfold, or by somebody it started.
#[derive(Debug)]
struct Mark {
    /// The value of the variable.
    name: String,
    /// The limit of file locks. `None`: it could not be set, so there is only the variable.
    number: Option<u64>,
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
        let mark = Mark { name: Uuid::now_v7().to_string(), number: number() };
        let keeper = Arc::new(Self { mark, process: Mutex::default() });
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
        (VARIABLE, &self.mark.name)
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

/// Gives this process a number, which all it starts inherits: a limit that is lower than the one before, so neither
/// an earlier keeper of this process nor that of a fanfold around it means the same.
fn number() -> Option<u64> {
    let before = getrlimit(Resource::Locks).maximum;
    let number = match before {
        None => FIRST + fastrand::u64(..FIRST),
        Some(before) => before.checked_sub(1 + u64::from(fastrand::u32(..)))?,
    };
    // A small one may be somebody's serious wish, and would not be unlike others.
    let number = Some(number).filter(|number| *number >= FIRST / 2)?;
    lower(number).ok().map(|()| number)
}

fn lower(number: u64) -> io::Result<()> {
    Ok(setrlimit(Resource::Locks, Rlimit { current: Some(number), maximum: Some(number) })?)
}

fn start(mark: &Mark) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("fanfold").arg(WORD).env_clear().current_dir("/");
    // A group of its own: what a terminal sends to fanfold's is not for it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    match child.stdin.as_mut() {
        Some(pipe) => writeln!(pipe, "{} {}", mark.name, mark.number.unwrap_or_default())?,
        None => return Err(io::Error::other("a pipe is missing")),
    }
    Ok(child)
}

/// What the process does: waits until fanfold is gone, then ends what has its mark.
pub(crate) fn run() -> ExitCode {
    let (mut line, mut pipe, parent) = (String::new(), io::stdin().lock(), getppid());
    let read = pipe.read_line(&mut line).is_ok();
    let Some((name, number)) = line.strip_suffix('\n').filter(|_| read).and_then(|line| line.split_once(' '))
    else {
        return ExitCode::FAILURE;
    };
    let number = number.parse().ok().filter(|number| *number > 0);
    // It inherited the number and does not mean itself.
    if number.is_some_and(|number| lower(number - 1).is_err()) {
        return ExitCode::FAILURE;
    }
    let mark = Mark { name: name.into(), number };
    let _ended = io::copy(&mut pipe, &mut io::sink());
    for (signal, patience) in [(None, LEAVE), (Some(Signal::TERM), GRACE), (Some(Signal::KILL), KILL)] {
        if all_gone(&mark, parent, signal, patience) {
            return ExitCode::SUCCESS;
        }
    }
    ExitCode::FAILURE
}

/// Sends a signal to everybody with a mark but fanfold itself, once, until nobody is left or patience is. Whether
/// nobody is left.
fn all_gone(mark: &Mark, fanfold: Option<Pid>, signal: Option<Signal>, patience: Duration) -> bool {
    let mut told = BTreeSet::new();
    for _ in 0..=patience.as_millis() / LOOK.as_millis() {
        // It has the number as well, and if it runs on, it is still the parent.
        let spared = fanfold.filter(|_| getppid() == fanfold);
        let marked: Vec<Pid> = marked(mark).into_iter().filter(|pid| Some(*pid) != spared).collect();
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

/// The processes with one of the marks. One that has ended and is not reaped has none.
fn marked(mark: &Mark) -> Vec<Pid> {
    let variable = format!("{VARIABLE}={}", mark.name);
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes())
            || mark.number.is_some() && limit_of(*pid) == mark.number
    };
    pids.filter(has).filter_map(Pid::from_raw).collect()
}

/// The limit of file locks of a process that runs. `None`: unlimited, or it has ended, reaped or not.
fn limit_of(pid: i32) -> Option<u64> {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    if state.rsplit_once(") ")?.1.starts_with(['Z', 'X']) {
        return None;
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let hard = limits.lines().find_map(|line| line.strip_prefix(LIMIT))?.split_whitespace().nth(1)?;
    hard.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that only waits, with one variable and one limit of file locks.
    fn waiting(name: &str, value: &str, limit: &str) -> Child {
        let wait = format!("ulimit -x {limit} && exec sleep 600");
        let child =
            Command::new("/bin/bash").args(["-c", &wait]).env_clear().env(name, value).spawn().unwrap();
        let runs = || std::fs::read(format!("/proc/{}/comm", child.id())).unwrap() == b"sleep\n";
        while !runs() {
            std::thread::sleep(LOOK);
        }
        child
    }

    #[test]
    fn whoever_has_a_mark_is_found_and_nobody_else() {
        let (ours, theirs) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
        let number = FIRST + fastrand::u64(..FIRST);
        let (same, next) = (number.to_string(), (number + 1).to_string());
        let mut with = [waiting(VARIABLE, &ours, "unlimited"), waiting(VARIABLE, &theirs, &same)];
        let mut without = [waiting(VARIABLE, &theirs, &next), waiting("OTHER", &ours, "unlimited")];
        let mark = Mark { name: ours, number: Some(number) };
        let mut found: Vec<u32> = marked(&mark).iter().map(|pid| pid.as_raw_pid().unsigned_abs()).collect();
        found.sort_unstable();
        let mut expected = with.each_ref().map(Child::id);
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(!all_gone(&mark, None, None, Duration::ZERO), "nothing is sent");
        assert!(all_gone(&mark, None, Some(Signal::KILL), KILL));
        assert!(without.iter_mut().all(|other| other.try_wait().unwrap().is_none()));
        for child in without.iter_mut().chain(&mut with) {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    #[test]
    fn the_library_alone_has_none() {
        assert!(Keeper::current().is_none());
    }
}
