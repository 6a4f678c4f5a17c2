//! `fanfold audit verify`: follows the chain of an audit log.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, out};
use crate::audit::verify::{self, Sound};

/// What can be done with an audit log.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check that no record was changed, taken out or put in. Several files are one log, the oldest first.
    Verify {
        /// The log.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

pub(super) fn run(command: &Command) -> Exit {
    let Command::Verify { files } = command;
    let mut before: Option<Sound> = None;
    for file in files {
        match verify::file(file, before.as_ref()) {
            Ok(sound) => {
                out::answer(&format!("{}: {}\n", file.display(), said(&sound)));
                before = Some(sound);
            }
            Err(broken) => {
                out::report(&format!("error: {}: {broken}\n", file.display()));
                return Exit::Failure;
            }
        }
    }
    if let Some(last) = before {
        out::answer(&format!("the last record is {}\n", last.head()));
    }
    Exit::Fine
}

fn said(sound: &Sound) -> String {
    let mut text = format!(
        "{} records are one chain, {} intents and {} outcomes",
        sound.records, sound.intents, sound.outcomes
    );
    if sound.continues {
        text.push_str("; earlier records are in another file");
    }
    if sound.mended > 0 {
        text.push_str(&format!("; lines that broke off and were mended: {}", sound.mended));
    }
    if sound.torn > 0 {
        text.push_str(&format!("; the last line broke off after {} bytes", sound.torn));
    }
    text
}
