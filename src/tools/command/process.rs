//! The life of one command: started in a group of its own, fed, read, ended, reaped.
//!
//! ```text
//!            ┌── exits ───────────────▶ at most AFTER_EXIT for what is still in the pipes ──┐
//!  spawn ─▶ run ── prints too much ──▶ SIGTERM to the group, GRACE ────────────────────────┤
//!            └── stop, out of time ───▶ SIGTERM to the group, GRACE ────────────────────────┤
//!                                                       SIGKILL to the group, reap, tidy ◀──┘
//! ```
//!
//! Promises: holds `keep_stdout` bytes of standard output and [`KEEP_STDERR`] of standard error, whatever is
//! printed; leaves no zombie, no member of the group and no directory behind. The leader is reaped last, so its
//! process id cannot mean somebody else when the group is killed. Resource limits are set right after the
//! start: for the first instants the program runs without them, unless it has a sandbox, which sets them itself.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::tools::keeper::Keeper;
use crate::tools::sandbox::{Line, Sandbox};
use crate::tools::settings::Rlimits;
use crate::tools::text::Full;

/// From SIGTERM to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long a process that has ended may keep its pipes open through others.
const AFTER_EXIT: Duration = Duration::from_millis(800);
/// How long the kernel gets to hand over a killed process.
const REAP: Duration = Duration::from_millis(400);
/// The most bytes a command may print on either pipe before it is stopped.
pub(super) const MAX_OUTPUT: u64 = 64 * 1024 * 1024;
/// How much of the end of standard error is kept.
const KEEP_STDERR: usize = 64 * 1024;
/// Bytes read at once.
const READ: usize = 16 * 1024;

/// One call, ready to be started.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) program: PathBuf,
    pub(super) elements: Vec<OsString>,
    pub(super) stdin: Option<String>,
    pub(super) env: Arc<[(String, SecretString)]>,
    /// Its directory; without one it gets a fresh one.
    pub(super) dir: Option<PathBuf>,
    /// Ends it if fanfold is killed.
    pub(super) keeper: Option<Arc<Keeper>>,
    pub(super) rlimits: Rlimits,
    pub(super) sandbox: Option<Arc<Sandbox>>,
    /// How many bytes of standard output to keep.
    pub(super) keep_stdout: usize,
    pub(super) deadline: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) ended: Ended,
    /// The beginning of standard output, and how long it was.
    pub(super) stdout: Vec<u8>,
    pub(super) full: Full,
    /// The end of standard error.
    pub(super) stderr: Vec<u8>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this code.
    Code(i32),
    /// By a signal that was not ours.
    Signal(i32),
    /// We ended it: it printed more than [`MAX_OUTPUT`].
    Flooded,
    /// We ended it: its time was over.
    TimedOut,
    /// We ended it: nobody wants its answer.
    Stopped,
}

/// Why nobody looks at the running process any more.
#[derive(Debug, Clone, Copy)]
enum Watched {
    Exited,
    Flooded,
    TimedOut,
    Stopped,
}

/// Starts a process and stays with it until nothing of it is left. Takes at most [`GRACE`] and some hundred
/// milliseconds more once `stop` is cancelled.
pub(super) async fn supervise(plan: Plan, stop: CancellationToken) -> io::Result<Report> {
    let scratch = match plan.dir {
        Some(_) if plan.sandbox.is_none() => None,
        Some(_) | None => Some(tempfile::Builder::new().prefix("fanfold-call-").tempdir()?),
    };
    // Before the start, so that no exit is missed.
    let mut exits = signal(SignalKind::child())?;
    let mut child = start(&plan, scratch.as_ref().map(tempfile::TempDir::path))?;
    let mut group = Group::of(&child)?;
    if plan.sandbox.is_none() {
        limit(Some(group.leader), &plan.rlimits);
    }

    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut kept = Kept { stdout: Head::new(plan.keep_stdout), stderr: Tail::default() };
    let watched = {
        // Fused: they may be drained long before the process ends.
        let mut pipes = pin!(kept.fill(stdin, plan.stdin, stdout, stderr).fuse());
        let watched = tokio::select! {
            biased;
            () = stop.cancelled() => Watched::Stopped,
            watched = until_over(pipes.as_mut(), exited(group.leader, &mut exits)) => watched,
            () = sleep_until(plan.deadline) => Watched::TimedOut,
        };
        match watched {
            Watched::Exited => {}
            Watched::Flooded | Watched::TimedOut | Watched::Stopped => {
                terminate(&group, &mut exits, pipes).await;
            }
        }
        watched
    };
    group.signal(Signal::KILL);
    let status = timeout(REAP, child.wait()).await;
    group.reaped = matches!(status, Ok(Ok(_)));
    tidy(scratch).await;
    let ended = match watched {
        Watched::Exited => how(status.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??),
        Watched::Flooded => Ended::Flooded,
        Watched::TimedOut => Ended::TimedOut,
        Watched::Stopped => Ended::Stopped,
    };
    Ok(Report { ended, full: kept.stdout.full(), stdout: kept.stdout.bytes, stderr: kept.stderr.bytes() })
}

fn start(plan: &Plan, scratch: Option<&std::path::Path>) -> io::Result<Child> {
    let line = Line { program: plan.program.clone(), elements: plan.elements.clone() };
    let line = match (&plan.sandbox, scratch) {
        (Some(sandbox), Some(own)) => {
            sandbox.fenced(&line, plan.dir.as_deref().unwrap_or(own), own, Some(&plan.rlimits))
        }
        (Some(_), None) => return Err(io::Error::other("a fenced process has no directory of its own")),
        (None, _) => line,
    };
    let mut command = tokio::process::Command::new(&line.program);
    command.args(&line.elements).env_clear().process_group(0).kill_on_drop(true);
    if let (Some(_), Some(own)) = (&plan.sandbox, scratch) {
        command.env("TMPDIR", own);
    }
    command.envs(plan.env.iter().map(|(name, value)| (name, value.expose_secret())));
    command.envs(plan.keeper.as_ref().map(|keeper| keeper.mark()));
    if let Some(dir) = plan.dir.as_deref().or(scratch) {
        command.current_dir(dir);
    }
    command.stdin(if plan.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn()
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, Some(signal)) => Ended::Signal(signal),
        (None, None) => Ended::Code(-1),
    }
}

/// A process group. Killed when dropped before its leader was reaped (a runtime that goes down).
#[derive(Debug)]
pub(in crate::tools) struct Group {
    pub(in crate::tools) leader: Pid,
    pub(in crate::tools) reaped: bool,
}

impl Group {
    pub(in crate::tools) fn of(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { leader: id.ok_or_else(|| io::Error::other("the process has no id"))?, reaped: false })
    }

    pub(in crate::tools) fn signal(&self, signal: Signal) {
        // The leader is unreaped, so the group exists; all that can fail is that every member is a zombie.
        let _ = rustix::process::kill_process_group(self.leader, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::KILL);
        }
    }
}

/// Waits until the process has ended, without reaping it.
pub(in crate::tools) async fn exited(leader: Pid, exits: &mut tokio::signal::unix::Signal) {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while let Ok(None) | Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(leader), look) {
        if exits.recv().await.is_none() {
            return;
        }
    }
}

/// Asks the group to end and waits a while for its leader. Whether it took the hint or not, the whole group is
/// killed next. The pipes are read on: who says goodbye to a closed pipe dies of it, and tidies nothing up.
async fn terminate(
    group: &Group,
    exits: &mut tokio::signal::unix::Signal,
    pipes: impl Future<Output = Result<(), Flood>>,
) {
    group.signal(Signal::TERM);
    let mut pipes = pin!(pipes);
    let mut gone = pin!(timeout(GRACE, exited(group.leader, exits)));
    tokio::select! {
        _ = &mut gone => return,
        _ = &mut pipes => {}
    }
    let _ = gone.await;
}

/// Until the process has ended and its pipes are drained, or drained long enough, or it printed too much.
async fn until_over(
    pipes: impl Future<Output = Result<(), Flood>>,
    exited: impl Future<Output = ()>,
) -> Watched {
    let (mut pipes, mut exited) = (pin!(pipes), pin!(exited));
    tokio::select! {
        done = &mut pipes => match done {
            Ok(()) => {
                exited.await;
                Watched::Exited
            }
            Err(Flood) => Watched::Flooded,
        },
        () = &mut exited => match timeout(AFTER_EXIT, pipes).await {
            Ok(Err(Flood)) => Watched::Flooded,
            // Somebody else, a grandchild, holds the pipes: what was printed so far is the result.
            Ok(Ok(())) | Err(_) => Watched::Exited,
        },
    }
}

/// Sets the limits of a process; `None` is this one.
pub(in crate::tools) fn limit(process: Option<Pid>, limits: &Rlimits) {
    let wanted = [
        (Resource::As, limits.memory.0 as u64),
        (Resource::Cpu, limits.cpu.0.as_secs().max(1)),
        (Resource::Nofile, u64::from(limits.open_files)),
        (Resource::Fsize, limits.file_size.0 as u64),
        (Resource::Core, 0),
    ];
    for (resource, most) in wanted {
        // It inherited our limits, and nobody can raise a hard one.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        if let Err(error) = rustix::process::prlimit(process, resource, limit)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(?resource, %error, "a command's resource limit could not be set");
        }
    }
}

/// Removes a directory; it may be large, so not on this thread.
pub(in crate::tools) async fn tidy(scratch: Option<tempfile::TempDir>) {
    let Some(scratch) = scratch else { return };
    match tokio::task::spawn_blocking(move || scratch.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a command's directory could not be removed"),
        Err(error) => tracing::warn!(%error, "a command's directory was not removed"),
    }
}

/// More was printed than anybody may print.
#[derive(Debug)]
struct Flood;

/// What is kept of both pipes.
#[derive(Debug)]
struct Kept {
    stdout: Head,
    stderr: Tail,
}

impl Kept {
    /// Feeds standard input and reads both pipes to their ends, all at once.
    async fn fill(
        &mut self,
        stdin: Option<ChildStdin>,
        text: Option<String>,
        stdout: Option<ChildStdout>,
        stderr: Option<ChildStderr>,
    ) -> Result<(), Flood> {
        let feed = async {
            if let (Some(mut pipe), Some(text)) = (stdin, text) {
                // A process need not read what it is given.
                let _ = pipe.write_all(text.as_bytes()).await;
            }
            Ok(())
        };
        let Self { stdout: head, stderr: tail } = self;
        tokio::try_join!(
            feed,
            drain(stdout, |bytes| head.take(bytes)),
            drain(stderr, |bytes| tail.take(bytes))
        )?;
        Ok(())
    }
}

async fn drain(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&[u8])) -> Result<(), Flood> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut seen = 0;
    let mut buffer = vec![0; READ];
    loop {
        // A pipe that cannot be read has ended for us.
        let Ok(count @ 1..) = pipe.read(&mut buffer).await else { return Ok(()) };
        take(buffer.get(..count).unwrap_or_default());
        seen += count as u64;
        if seen > MAX_OUTPUT {
            return Err(Flood);
        }
    }
}

/// The beginning of a stream.
#[derive(Debug)]
struct Head {
    bytes: Vec<u8>,
    keep: usize,
    seen: u64,
}

impl Head {
    fn new(keep: usize) -> Self {
        Self { bytes: Vec::new(), keep, seen: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        let room = self.keep.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    fn full(&self) -> Full {
        Full::Exactly(self.seen)
    }
}

/// The end of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: std::collections::VecDeque<u8>,
}

impl Tail {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(KEEP_STDERR);
        self.bytes.drain(..over);
    }

    fn bytes(self) -> Vec<u8> {
        self.bytes.into()
    }
}
