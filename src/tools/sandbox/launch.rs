//! `fanfold __sandbox RULES PROGRAM …`: puts limits and a fence around its own process, then becomes the program.
//!
//! A process of its own can do so without unsafe code between fork and exec, and before the program runs at all.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use serde::{Deserialize, Serialize};

use super::Line;
use crate::tools::command::process::limit;
use crate::tools::settings::Rlimits;

/// The first argument of a launch.
pub(crate) const WORD: &str = "__sandbox";
/// What a shell says of a program that cannot be run.
const CANNOT: u8 = 126;
/// The least Landlock must know of files: all but the truncation of what is open already.
const FILES: ABI = ABI::V3;
/// The least it must know of the network.
const TCP: ABI = ABI::V4;
/// What it may know beside: devices, signals.
const BEST: ABI = ABI::V6;
/// Devices without anybody's data.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];
/// What a process may read about itself and the machine.
const FACTS: [&str; 4] = ["/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/sys/kernel"];

/// What to do before the program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Launch {
    /// Landlock's rules.
    pub(super) rules: Option<Rules>,
    pub(super) limits: Option<Rlimits>,
}

/// What a process behind Landlock may do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rules {
    pub(super) read: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    pub(super) network: bool,
}

impl Launch {
    /// The command line of the launcher.
    pub(super) fn line(&self, launcher: PathBuf, inner: Line) -> Line {
        // Paths come from a configuration, which is UTF-8, or from the system's own names.
        let rules = serde_json::to_string(self).unwrap_or_default();
        let elements = [WORD.into(), rules.into(), inner.program.into_os_string()];
        Line { program: launcher, elements: elements.into_iter().chain(inner.elements).collect() }
    }
}

/// Does what the arguments after [`WORD`] say. Comes back only when that cannot be done.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (rules, program) = (arguments.next().unwrap_or_default(), arguments.next().unwrap_or_default());
    let why = become_it(&rules, &program, arguments);
    let _ = writeln!(std::io::stderr(), "fanfold cannot start {}: {why}", program.to_string_lossy());
    ExitCode::from(CANNOT)
}

fn become_it(rules: &OsStr, program: &OsStr, arguments: impl Iterator<Item = OsString>) -> String {
    let launch: Launch = match serde_json::from_str(&rules.to_string_lossy()) {
        Ok(launch) => launch,
        Err(why) => return why.to_string(),
    };
    if let Some(Err(why)) = launch.rules.as_ref().map(fence) {
        return format!("Landlock: {why}");
    }
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(limits) = &launch.limits {
        limit(None, limits);
    }
    command.exec().to_string()
}

/// Fences this process in.
fn fence(rules: &Rules) -> Result<(), RulesetError> {
    let everything = AccessFs::from_all(BEST);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let devices = DEVICES.into_iter().filter_map(|path| PathFd::new(path).ok());
    let devices = devices.map(|path| Ok::<_, RulesetError>(PathBeneath::new(path, device)));
    ruleset(rules.network)?
        .add_rules(path_beneath_rules(&rules.read, AccessFs::from_read(BEST)))?
        .add_rules(path_beneath_rules(FACTS, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(devices)?
        .add_rules(path_beneath_rules(&rules.write, everything))?
        .restrict_self()?;
    Ok(())
}

/// A set without rules: nothing is allowed of what it handles.
fn ruleset(network: bool) -> Result<RulesetCreated, RulesetError> {
    let mut set = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(FILES))?;
    if !network {
        set = set.handle_access(AccessNet::from_all(TCP))?;
    }
    let set = set.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(BEST))?;
    let set = if network { set.scope(Scope::Signal)? } else { set.scope(Scope::from_all(BEST))? };
    set.create()
}

/// Whether this kernel can do it; restricts nobody.
pub(super) fn possible(network: bool) -> Result<(), String> {
    let needs = if network { "6.2" } else { "6.7 (or `may: { network: true }`)" };
    ruleset(network)
        .map(|_| ())
        .map_err(|why| format!("Landlock needs a Linux {needs} with it enabled: {why}"))
}
