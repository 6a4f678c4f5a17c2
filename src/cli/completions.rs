//! `fanfold completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Exit, out};

/// What `completions` takes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Exit {
    let mut script = Vec::new();
    generate(arguments.shell, &mut Cli::command(), "fanfold", &mut script);
    out::answer(&String::from_utf8_lossy(&script));
    Exit::Fine
}
