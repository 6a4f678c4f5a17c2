//! `fanfold config init|print|schema`.

use std::io::{ErrorKind, Write};
use std::path::Path;

use clap::Subcommand;

use super::{Exit, loaded, out};
use crate::config::print::{Detail, EXAMPLE, defaults};
use crate::config::{DEFAULT_PATH, Flags, is_there, process_env, schema};

/// What can be done with a configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented `fanfold.yaml` to begin with. An existing file stays as it is.
    Init,
    /// Print the configuration as it takes effect, secrets as dots.
    Print {
        /// Every key with its value, also those left to their default.
        #[arg(long)]
        defaults: bool,
    },
    /// Print the JSON Schema of the file, for editors.
    Schema,
    /// Print `tools:` made of an OpenAPI document (3.0 or 3.1), to be looked over and put into the file.
    Openapi(super::openapi::Arguments),
}

pub(super) fn run(path: Option<&Path>, command: &Command) -> Exit {
    match command {
        Command::Init => init(path.unwrap_or(Path::new(DEFAULT_PATH))),
        Command::Print { defaults: true } if !is_there(path, &process_env) => said(defaults()),
        Command::Print { defaults } => {
            let detail = if *defaults { Detail::Everything } else { Detail::Written };
            match loaded(path, &Flags { insecure_no_auth: true, ..Flags::default() }) {
                Ok((loaded, _)) => said(loaded.print(detail)),
                Err(exit) => exit,
            }
        }
        Command::Schema => said(Ok(format!("{:#}\n", schema()))),
        Command::Openapi(arguments) => super::openapi::run(arguments),
    }
}

fn said(text: Result<String, crate::config::Problem>) -> Exit {
    match text {
        Ok(text) => {
            out::answer(&text);
            Exit::Fine
        }
        Err(problem) => {
            out::report(&format!("error: {}\n", problem.message()));
            Exit::Failure
        }
    }
}

fn init(path: &Path) -> Exit {
    let created = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    let (message, exit) = match created.and_then(|mut file| file.write_all(EXAMPLE.as_bytes())) {
        Ok(()) => (
            format!(
                "wrote {}\nnext: set OPENAI_API_KEY, then look it over with `fanfold check`\n",
                path.display()
            ),
            Exit::Fine,
        ),
        Err(why) if why.kind() == ErrorKind::AlreadyExists => {
            (format!("error: {} exists already, and stays as it is\n", path.display()), Exit::Failure)
        }
        Err(why) => (format!("error: {} cannot be written: {why}\n", path.display()), Exit::Failure),
    };
    out::report(&message);
    exit
}
