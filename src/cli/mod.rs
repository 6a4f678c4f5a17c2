//! The command line: one file per command, each with one `run`.
//!
//! Exit codes: 0 fine, 1 failure, 2 wrong usage, 64 a configuration with mistakes in it.

mod ask;
mod audit;
mod call;
mod check;
mod client;
mod completions;
mod config;
mod demo;
mod healthcheck;
mod http;
mod keys;
mod online;
mod openapi;
mod out;
mod run;
mod serve;
mod servers;
mod tail;
mod tools;
mod waterfall;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flags, Loaded, Problems, Reading, load, process_env, read};
use crate::tools::Catalog;
use crate::tools::keeper;
use crate::tools::sandbox::launch;

/// An OpenAI-compatible reverse proxy that executes tools, in parallel.
#[derive(Debug, Parser)]
#[command(name = "fanfold", version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file. Without it `fanfold.yaml` in the working directory; without that
    /// OPENAI_API_KEY and OPENAI_BASE_URL are enough.
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: what happens without a command.
    Serve(serve::Arguments),
    /// Try it out: the real proxy before a scripted model and a few tools, no key, no network.
    Demo(demo::Arguments),
    /// Look the configuration over: everything that is wrong with it, or what it amounts to.
    Check(check::Arguments),
    /// Write, print or describe the configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// List the tools fanfold runs.
    Tools(tools::Arguments),
    /// Run a tool once, as a model would, and show its result.
    Call(call::Arguments),
    /// Ask a running fanfold one question and see how the answer comes about.
    Ask(ask::Arguments),
    /// Follow what a running fanfold does: a line for each round, batch and end.
    Tail(tail::Arguments),
    /// Show one run of a running fanfold.
    Run(run::Arguments),
    /// Make keys for teams.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Look into an audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Ask a running fanfold whether it is ready; for container platforms.
    Healthcheck(healthcheck::Arguments),
    /// Print completions for a shell.
    Completions(completions::Arguments),
}

/// What may be said on the command line instead of in the file.
#[derive(Debug, Clone, Default, Args)]
struct Overrides {
    /// Address and port of the proxy, instead of `listen`.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address and port of the admin side, instead of `admin.listen`.
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Serve on a public address although there are no teams with keys.
    #[arg(long)]
    insecure_no_auth: bool,
    #[command(flatten)]
    servers: ServerFlags,
}

/// Tool servers and tools beside those of the file.
#[derive(Debug, Clone, Default, Args)]
struct ServerFlags {
    /// Add a tool server: "uvx mcp-server-time", https://host/mcp, or either after NAME=. May be repeated.
    #[arg(long, value_name = "COMMAND|URL")]
    mcp: Vec<String>,
    /// Add a tool: "NAME=https://host/path?q={argument}" or "NAME=/usr/bin/program {argument}". May be repeated.
    #[arg(long = "tool", value_name = "NAME=URL|COMMAND")]
    tools: Vec<String>,
}

impl ServerFlags {
    /// For a command that opens no listener.
    fn flags(&self) -> Flags {
        Flags {
            insecure_no_auth: true,
            mcp: self.mcp.clone(),
            tools: self.tools.clone(),
            only_tools: true,
            ..Flags::default()
        }
    }
}

impl Overrides {
    fn flags(&self) -> Flags {
        Flags {
            listen: self.listen.clone(),
            admin_listen: self.admin_listen.clone(),
            insecure_no_auth: self.insecure_no_auth,
            mcp: self.servers.mcp.clone(),
            tools: self.servers.tools.clone(),
            only_tools: false,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Fine,
    Failure,
    Usage,
    BadConfig,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Fine => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::BadConfig => 64,
        })
    }
}

/// Parses the command line and does what it says. Wrong usage ends the process with 2, as do
/// `--help` and `--version` with 0.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything else: the processes that fanfold is for itself.
    let mut arguments = std::env::args_os().skip(1);
    let word = arguments.next();
    if word.as_deref().is_some_and(|word| word == launch::WORD) {
        return launch::run(arguments);
    }
    if word.as_deref().is_some_and(|word| word == keeper::WORD) {
        return keeper::run();
    }
    keeper::is_known();
    let cli = Cli::parse();
    let path = cli.config.as_deref();
    let exit = match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(arguments) => serve::run(path, &arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Check(arguments) => check::run(path, &arguments),
        Command::Config(command) => config::run(path, &command),
        Command::Tools(arguments) => tools::run(path, &arguments),
        Command::Call(arguments) => call::run(path, &arguments),
        Command::Ask(arguments) => ask::run(path, &arguments),
        Command::Tail(arguments) => tail::run(path, &arguments),
        Command::Run(arguments) => run::run(path, &arguments),
        Command::Keys(command) => keys::run(&command),
        Command::Audit(command) => audit::run(&command),
        Command::Healthcheck(arguments) => healthcheck::run(path, &arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    exit.into()
}

/// Reads the configuration. `None`: it cannot be read, and that has been said.
fn reading(path: Option<&std::path::Path>, flags: &Flags) -> Result<Reading, Exit> {
    read(path, &process_env, flags).map_err(|problems| refuse(&problems))
}

/// The configuration and its tools, if nothing is wrong with them; otherwise everything has been
/// said.
fn loaded(path: Option<&std::path::Path>, flags: &Flags) -> Result<(Loaded, Catalog), Exit> {
    load(path, &process_env, flags).map_err(|problems| refuse(&problems))
}

fn refuse(problems: &Problems) -> Exit {
    out::report(&problems.render(out::coloured()));
    Exit::BadConfig
}

/// A runtime for a command that asks one thing over the network.
fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|why| {
        out::report(&format!("fanfold cannot start: {why}\n"));
        Exit::Failure
    })
}

/// What was asked over the network; a failure is told and becomes the exit.
fn answer_of<T>(asking: impl Future<Output = Result<T, String>>) -> Result<T, Exit> {
    runtime()?.block_on(asking).map_err(|why| {
        out::report(&format!("{why}\n"));
        Exit::Failure
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
