//! `fanfold keys new|hash`: keys for teams. fanfold itself only ever knows their hashes.

use std::io::{IsTerminal, Read};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use sha2::{Digest, Sha256};

use super::{Exit, out};

/// The longest key that is hashed.
const LONGEST: u64 = 4096;

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a random key. It is shown once; the second line belongs into the team's settings.
    New,
    /// Print the line for the team's settings that belongs to a key.
    Hash {
        /// The key. Better left out and given on standard input: arguments are seen by others.
        key: Option<String>,
    },
}

pub(super) fn run(command: &Command) -> Exit {
    match command {
        Command::New => new(),
        Command::Hash { key: Some(key) } => hash(key),
        Command::Hash { key: None } => match from_input() {
            Ok(key) => hash(&key),
            Err(why) => {
                out::report(&format!("error: the key cannot be read: {why}\n"));
                Exit::Failure
            }
        },
    }
}

fn new() -> Exit {
    let mut random = [0; 32];
    if let Err(why) = getrandom::fill(&mut random) {
        out::report(&format!("error: the system gives no random bytes: {why}\n"));
        return Exit::Failure;
    }
    let key = format!("fk-{}", URL_SAFE_NO_PAD.encode(random));
    out::answer(&format!("{key}\n{}\n", line(&key)));
    out::report(
        "The first line is the key; it is shown only this once. The second goes into the team's settings.\n",
    );
    Exit::Fine
}

fn hash(key: &str) -> Exit {
    if key.is_empty() {
        out::report("error: there is no key: give it on standard input\n");
        return Exit::Usage;
    }
    out::answer(&format!("{}\n", line(key)));
    Exit::Fine
}

/// The line of the team's settings.
fn line(key: &str) -> String {
    let digits: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("keys: [{{ sha256: \"{digits}\" }}]")
}

/// One line of standard input.
fn from_input() -> Result<String, String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        out::report("key: ");
    }
    let mut text = String::new();
    if input.is_terminal() {
        input.read_line(&mut text).map_err(|why| why.to_string())?;
    } else {
        input.lock().take(LONGEST + 1).read_to_string(&mut text).map_err(|why| why.to_string())?;
    }
    if text.len() as u64 > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let key = text.trim_end_matches(['\r', '\n']);
    match key.contains(['\r', '\n']) {
        true => Err("it has several lines".into()),
        false => Ok(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_line_of_a_key_is_its_sha256() {
        assert_eq!(
            super::line("foo"),
            "keys: [{ sha256: \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\" }]"
        );
    }
}
