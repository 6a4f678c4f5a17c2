//! The process of a server: started in a group of its own, its standard error brought into the log, ended, reaped.
//!
//! ```text
//!  start ─▶ serves ─▶ its standard input is closed, LEAVE ─▶ SIGTERM to the group, GRACE ─▶ SIGKILL to the group, reap
//!    └── dropped ───────────────────────────────────────────────────────────────────────────▶ SIGKILL to the group
//! ```
//!
//! The environment is PATH and HOME of fanfold, which `uvx` and `npx` need to find their programs and their caches,
//! LANG, and what the settings say. A member of the group that called `setsid` is found again only when fanfold ends:
//! see [`keeper`](crate::tools::keeper).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::tools::command::process::{Group, exited, tidy};
use crate::tools::keeper::Keeper;
use crate::tools::sandbox::{Line, Sandbox};
use crate::tools::text::tame;

/// How long a server gets to leave by itself once its standard input is closed.
const LEAVE: Duration = Duration::from_millis(700);
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_millis(700);
/// How long the kernel gets to hand over a killed process.
const REAP: Duration = Duration::from_millis(400);
/// The most bytes of one line of standard error that are logged.
const MAX_LINE: usize = 1024;
/// The most lines of standard error that are logged in [`WINDOW`].
const MAX_LINES: u32 = 50;
const WINDOW: Duration = Duration::from_secs(5);

/// How to start a server.
#[derive(Debug)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) line: Line,
    /// Its whole environment.
    pub(super) env: Vec<(OsString, SecretString)>,
    /// Its working directory.
    pub(super) dir: Option<PathBuf>,
    /// What fences it in.
    pub(super) sandbox: Option<Sandbox>,
    /// Ends it if fanfold is killed.
    pub(super) keeper: Option<Arc<Keeper>>,
}

impl Program {
    /// The command that starts it, behind its fence if it has one. `own` is its directory there.
    fn command(&self, own: Option<&Path>) -> io::Result<tokio::process::Command> {
        let dir = self.dir.as_deref().or(own);
        let line = match (&self.sandbox, own) {
            (Some(sandbox), Some(own)) => sandbox.fenced(&self.line, dir.unwrap_or(own), own, None),
            (Some(_), None) => return Err(io::Error::other("a fenced process has no directory of its own")),
            (None, _) => self.line.clone(),
        };
        let mut command = tokio::process::Command::new(&line.program);
        command.args(&line.elements).env_clear().process_group(0).kill_on_drop(true);
        if let Some(own) = own {
            command.env("TMPDIR", own);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value.expose_secret())));
        command.envs(self.keeper.as_ref().map(|keeper| keeper.mark()));
        if let Some(dir) = dir {
            command.current_dir(dir);
        }
        Ok(command)
    }
}

/// A server's process.
#[derive(Debug)]
pub(super) struct Process {
    // The group goes first: while the child is not reaped, its id means nobody else.
    group: Group,
    child: Child,
    exits: tokio::signal::unix::Signal,
    /// A directory of its own, behind a fence.
    own: Option<tempfile::TempDir>,
    _errors: JoinSet<()>,
}

impl Process {
    /// Starts it.
    pub(super) fn start(server: &Arc<str>, program: &Program) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let own = match &program.sandbox {
            Some(_) => Some(tempfile::Builder::new().prefix("fanfold-server-").tempdir()?),
            None => None,
        };
        let mut command = program.command(own.as_ref().map(tempfile::TempDir::path))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Before the start, so that no exit is missed.
        let exits = signal(SignalKind::child())?;
        let mut child = command.spawn()?;
        let group = Group::of(&child)?;
        let missing = || io::Error::other("a pipe is missing");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let mut errors = JoinSet::new();
        errors.spawn(log_errors(Arc::clone(server), stderr));
        Ok((Self { group, child, exits, own, _errors: errors }, stdin, stdout))
    }

    /// Waits until it has ended, without reaping it.
    pub(super) async fn exited(&mut self) {
        exited(self.group.leader, &mut self.exits).await;
    }

    /// Ends it and everything in its group. Its standard input must be closed already, or be closed meanwhile.
    pub(super) async fn end(mut self) -> Option<ExitStatus> {
        if timeout(LEAVE, self.exited()).await.is_err() {
            self.group.signal(Signal::TERM);
            let _ = timeout(GRACE, self.exited()).await;
        }
        self.group.signal(Signal::KILL);
        let status = timeout(REAP, self.child.wait()).await;
        self.group.reaped = matches!(status, Ok(Ok(_)));
        tidy(self.own.take()).await;
        status.ok()?.ok()
    }
}

/// Writes standard error into the log, line by line, within bounds.
async fn log_errors(server: Arc<str>, stderr: ChildStderr) {
    let mut pipe = BufReader::with_capacity(4 * MAX_LINE, stderr);
    let mut line = Vec::new();
    let (mut since, mut lines, mut left_out) = (Instant::now(), 0, 0_u64);
    loop {
        // A pipe that cannot be read has ended for us.
        let Ok(bytes @ [_, ..]) = pipe.fill_buf().await else { return };
        let (taken, ended) = match memchr::memchr(b'\n', bytes) {
            Some(at) => (at + 1, true),
            None => (bytes.len(), false),
        };
        let room = MAX_LINE.saturating_sub(line.len()).min(taken);
        line.extend_from_slice(bytes.get(..room).unwrap_or_default());
        pipe.consume(taken);
        if !ended {
            continue;
        }
        if since.elapsed() >= WINDOW {
            if left_out > 0 {
                tracing::info!(%server, lines = left_out, "more lines of standard error are left out");
            }
            (since, lines, left_out) = (Instant::now(), 0, 0);
        }
        let text = tame(String::from_utf8_lossy(&line).trim_end(), MAX_LINE);
        line.clear();
        if lines < MAX_LINES {
            lines += 1;
            tracing::info!(%server, "standard error: {text}");
        } else {
            left_out += 1;
        }
    }
}
