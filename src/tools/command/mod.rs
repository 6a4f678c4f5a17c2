//! A command tool: one call is one process, without a shell.
//!
//! The program and the number of its arguments come from the settings; an argument of the call fills a place
//! inside of one element and can never become another element, an option or the program. What happens once the
//! process runs is [`process`]'s business.
//!
//! Without a [`sandbox`](super::sandbox) a process that leaves its group with `setsid` is found again only when
//! fanfold ends: see [`keeper`](super::keeper).

pub(super) mod process;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::process::{Plan, Report};
use super::arguments::{Arguments, Schema};
use super::door::Made;
use super::http::UNKNOWN;
use super::keeper::Keeper;
use super::load::Mistakes;
use super::place::{Piece, Template};
use super::sandbox::{Host, Sandbox};
use super::text::{cut, describe, tail, utf8};
use super::{Call, secret, settings, took};
use crate::wire::tool::{Effect, Outcome, OutcomeKind};
use crate::workers;

/// The most bytes of one element of an argument vector, as the kernel has it.
const MAX_ELEMENT: usize = 128 * 1024 - 1;
/// The most bytes of standard error a model gets to read.
const ERROR_TAIL: usize = 4 * 1024;
/// The environment of every command, before its own.
const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8")];

/// What a call of a command tool needs.
#[derive(Debug)]
pub(super) struct Command {
    program: PathBuf,
    elements: Vec<Template>,
    stdin: Option<Template>,
    env: Arc<[(String, SecretString)]>,
    dir: Option<PathBuf>,
    allow_dash: Vec<String>,
    rlimits: settings::Rlimits,
    sandbox: Option<Arc<Sandbox>>,
    effect: Effect,
    children: TaskTracker,
    keeper: Option<Arc<Keeper>>,
}

/// What one call hands to its process.
#[derive(Debug, PartialEq, Eq)]
struct Filled {
    elements: Vec<OsString>,
    stdin: Option<String>,
}

impl Command {
    /// Reads the settings; looks for the program and opens secrets.
    pub(super) fn load(
        settings: &settings::Command,
        effect: Effect,
        schema: &Schema,
        children: &TaskTracker,
        host: &Host,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        let Some((program, rest)) = settings.argv.split_first() else {
            mistakes.add(&["command", "argv"], "the program is missing");
            return None;
        };
        if let Err((message, fix)) = executable(program) {
            mistakes.add_with_fix(&["command", "argv", "0"], message, fix);
        }
        let mut template = |path: &[&str], text: &str| {
            if text.contains('\0') {
                mistakes.add(path, "a NUL character cannot be handed to a process");
                return None;
            }
            mistakes.template(path, text, |name| schema.has(name))
        };
        let elements: Vec<Template> = rest
            .iter()
            .enumerate()
            .filter_map(|(at, text)| template(&["command", "argv", &(at + 1).to_string()], text))
            .collect();
        let stdin = settings
            .stdin
            .as_deref()
            .and_then(|text| mistakes.template(&["command", "stdin"], text, |name| schema.has(name)));
        for (at, name) in settings.allow_dash.iter().enumerate().filter(|(_, name)| !schema.has(name)) {
            mistakes.add(
                &["command", "allow_dash", &at.to_string()],
                format!("`{name}` is not an argument of this tool"),
            );
        }
        let dir = settings.dir.as_ref().map(PathBuf::from);
        if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute() || !dir.is_dir()) {
            mistakes.add(
                &["command", "dir"],
                format!("`{}` is not the absolute path of a directory", dir.display()),
            );
        }
        let env = environment(settings, mistakes);
        let sandbox = Sandbox::load("command", settings.sandbox, &settings.may, host, mistakes);
        mistakes.is_empty().then(|| Self {
            program: program.into(),
            elements,
            stdin,
            env: env.into(),
            dir,
            allow_dash: settings.allow_dash.clone(),
            rlimits: settings.rlimits.clone(),
            sandbox: sandbox.map(Arc::new),
            effect,
            children: children.clone(),
            keeper: Keeper::current(),
        })
    }

    /// Whether these arguments can be handed to the process. The error is for the model.
    pub(super) fn check(&self, arguments: &Arguments<'_>) -> Result<(), String> {
        self.fill(arguments).map(|_| ())
    }

    /// What these arguments become, for [`door`](super::door).
    pub(super) fn made(&self, arguments: &Arguments<'_>) -> Result<Made, String> {
        let Filled { elements, stdin } = self.fill(arguments)?;
        Ok(Made::Process { elements, stdin })
    }

    /// Runs one call. The process is owned by a task of its own, so that it is ended and reaped even when this
    /// future is dropped.
    pub(super) async fn run(
        &self,
        arguments: &Arguments<'_>,
        call: &Call,
        stop: &CancellationToken,
    ) -> Outcome {
        let started = tokio::time::Instant::now();
        let Filled { elements, stdin } = match self.fill(arguments) {
            Ok(filled) => filled,
            Err(what) => return Outcome::failed(OutcomeKind::InvalidArguments, &what),
        };
        let plan = Plan {
            program: self.program.clone(),
            elements,
            stdin,
            env: Arc::clone(&self.env),
            dir: self.dir.clone(),
            keeper: self.keeper.clone(),
            rlimits: self.rlimits.clone(),
            sandbox: self.sandbox.clone(),
            keep_stdout: call.result_limit,
            deadline: call.deadline,
        };
        let stop = stop.child_token();
        let _left = stop.clone().drop_guard();
        match self.children.spawn_on(process::supervise(plan, stop), &workers::background()).await {
            Ok(Ok(report)) => self.outcome(report, call.result_limit, &took(call.deadline - started)),
            Ok(Err(error)) => {
                tracing::warn!(program = %self.program.display(), %error, "a command could not be run");
                Outcome::failed(
                    OutcomeKind::Error,
                    &format!("the command could not be run: {}", error.kind()),
                )
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => Outcome::failed(OutcomeKind::Stopped, "stopped"),
            },
        }
    }

    fn fill(&self, arguments: &Arguments<'_>) -> Result<Filled, String> {
        let mut elements = Vec::with_capacity(self.elements.len());
        for template in &self.elements {
            // An element that is nothing but an argument not given is left out.
            if template.sole_place().is_some_and(|place| arguments.json(place).is_none()) {
                continue;
            }
            elements.push(self.fill_element(template, arguments)?.into());
        }
        let stdin = self.stdin.as_ref().map(|template| {
            let text = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Place(name) => arguments.text(name).unwrap_or_default().into_owned(),
            };
            template.pieces().iter().map(text).collect()
        });
        Ok(Filled { elements, stdin })
    }

    fn fill_element(&self, template: &Template, arguments: &Arguments<'_>) -> Result<String, String> {
        let mut element = String::new();
        for piece in template.pieces() {
            let name = match piece {
                Piece::Text(text) => {
                    element.push_str(text);
                    continue;
                }
                Piece::Place(name) => name,
            };
            let value = arguments.text(name).unwrap_or_default();
            if element.is_empty() && value.starts_with('-') && !self.allow_dash.contains(name) {
                return Err(format!("the argument {name:?} may not begin with \"-\""));
            }
            if value.contains('\0') {
                return Err(format!("the argument {name:?} has a NUL character"));
            }
            element.push_str(&value);
            if element.len() > MAX_ELEMENT {
                return Err(format!("the argument {name:?} is too long for a command"));
            }
        }
        Ok(element)
    }

    fn outcome(&self, report: Report, limit: usize, took: &str) -> Outcome {
        let unknown = if self.effect == Effect::Write { format!("; {UNKNOWN}") } else { String::new() };
        let errors = tail(String::from_utf8_lossy(&report.stderr).trim_end(), ERROR_TAIL.min(limit / 2));
        let failed = |what: String| {
            let said = if errors.is_empty() { String::new() } else { format!(": {errors}") };
            Outcome::failed(OutcomeKind::Error, &format!("{what}{said}"))
        };
        match report.ended {
            process::Ended::Code(0) if report.stdout.is_empty() => Outcome::ok("(empty)"),
            process::Ended::Code(0) => match utf8(report.stdout, report.full) {
                Some(text) => Outcome::ok(cut(text, limit, report.full)),
                None => Outcome::ok(describe(None, report.full)),
            },
            process::Ended::Code(code) if errors.is_empty() => {
                let said = utf8(report.stdout, report.full).unwrap_or_default();
                let said = tail(said.trim_end(), ERROR_TAIL.min(limit / 2));
                failed(if said.is_empty() {
                    format!("exit code {code}")
                } else {
                    format!("exit code {code}: {said}")
                })
            }
            process::Ended::Code(code) => failed(format!("exit code {code}")),
            process::Ended::Signal(signal) => failed(format!("killed by {}", signal_name(signal))),
            process::Ended::Flooded => {
                failed(format!("it printed more than {} MiB and was stopped", process::MAX_OUTPUT >> 20))
            }
            process::Ended::TimedOut => {
                Outcome::failed(OutcomeKind::Timeout, &format!("timed out after {took}{unknown}"))
            }
            process::Ended::Stopped => Outcome::failed(OutcomeKind::Stopped, &format!("stopped{unknown}")),
        }
    }
}

/// Whether this can be the program; otherwise what is wrong and what to write.
fn executable(program: &str) -> Result<(), (String, String)> {
    let path = Path::new(program);
    if program.contains(['{', '}']) {
        return Err(("the program cannot have places".into(), "write its absolute path".into()));
    }
    if !path.is_absolute() {
        let found = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
            .iter()
            .map(|dir| Path::new(dir).join(program))
            .find(|path| is_executable(path) == Ok(true));
        let fix = found.map_or("write its absolute path".into(), |path| format!("write {}", path.display()));
        return Err((format!("`{program}` is not an absolute path"), fix));
    }
    match is_executable(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err((format!("`{program}` is not an executable file"), format!("chmod +x {program}"))),
        Err(error) => {
            Err((format!("`{program}` cannot be used: {error}"), "install it, or correct the path".into()))
        }
    }
}

fn is_executable(path: &Path) -> Result<bool, std::io::ErrorKind> {
    let metadata = std::fs::metadata(path).map_err(|error| error.kind())?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn environment(settings: &settings::Command, mistakes: &mut Mistakes) -> Vec<(String, SecretString)> {
    let mut env: Vec<(String, SecretString)> = ENVIRONMENT
        .into_iter()
        .filter(|(name, _)| !settings.env.contains_key(*name))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    for (name, value) in &settings.env {
        let at = ["command", "env", name];
        if name.is_empty() || name.contains(['=', '\0']) {
            mistakes.add(&at, "this is not the name of an environment variable");
            continue;
        }
        match secret::open(value) {
            Ok(value) if value.expose_secret().contains('\0') => {
                mistakes.add(&at, "a NUL character cannot be handed to a process");
            }
            Ok(value) => env.push((name.clone(), value)),
            Err(message) => mistakes.add(&at, message),
        }
    }
    env
}

fn signal_name(signal: i32) -> String {
    use rustix::process::Signal;
    let names = [
        (Signal::KILL, "SIGKILL"),
        (Signal::TERM, "SIGTERM"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::XCPU, "SIGXCPU: too much processor time"),
        (Signal::XFSZ, "SIGXFSZ: too large a file"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::INT, "SIGINT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::ILL, "SIGILL"),
        (Signal::FPE, "SIGFPE"),
    ];
    let name = names.into_iter().find(|(known, _)| known.as_raw() == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| format!("signal {signal} ({name})"))
}

#[cfg(test)]
mod tests;
