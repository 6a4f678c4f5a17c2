//! The audit log: what calls with effects were about to do, and what became of them.
//!
//! Lines of JSON, only ever appended. Before a call of a `write` or `idempotent` tool leaves, its *intent* is
//! written; when it has ended, its *outcome*. Each record holds the SHA-256 of the one before it, so that a record
//! that was changed, taken out or put in is found ([`verify`]).
//!
//! Promises: no call leaves before its intent was written whole, even if the process is killed at any moment, and
//! with `sync` even if the machine loses power. An intent without an outcome is a call whose outcome is not known.
//! Arguments appear as a digest only, unless they are asked for. If the log cannot be written, such calls are refused,
//! or with `on_error: continue` run with a loud log and a metric.
//!
//! What is left to others: which calls there are. Calls of `read` tools change nothing and are not in it.

mod file;
mod record;
pub mod settings;
pub mod verify;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::record::Facts;
use self::record::{Call, Entry};
use self::settings::{OnError, Settings};
use self::writer::Writer;
use crate::telemetry::Telemetry;
use crate::wire::tool::{Effect, Outcome, OutcomeKind};

/// The audit log of a configuration.
#[derive(Debug)]
pub struct Audit {
    writer: Arc<Writer>,
    settings: Settings,
}

impl Audit {
    /// Opens the log. With `before`, the log of the configuration that was in effect until now, the same file is
    /// opened anew and its chain goes on: it may have been moved away.
    ///
    /// # Errors
    /// The file cannot be opened, and calls are to be refused then: better not to start. The text says why.
    pub fn open(settings: &Settings, before: Option<&Self>, telemetry: &Telemetry) -> Result<Self, String> {
        let settings = settings.clone();
        if let Some(before) = before.filter(|before| before.writer.path == settings.file) {
            before.writer.reopen();
            return Ok(Self { writer: before.writer.clone(), settings });
        }
        let later = settings.on_error == OnError::Continue;
        let writer = Writer::start(&settings.file, later, telemetry)
            .map_err(|error| format!("audit.file: {}", file::named(&settings.file, &error)))?;
        Ok(Self { writer: Arc::new(writer), settings })
    }

    /// Whether calls with this effect are in the log.
    #[must_use]
    pub const fn is_about(effect: Effect) -> bool {
        match effect {
            Effect::Read => false,
            Effect::Idempotent | Effect::Write => true,
        }
    }

    /// Writes that a call is about to leave. The error is the call's result.
    ///
    /// # Errors
    /// It cannot be written, and such calls are to be refused.
    pub async fn intent(&self, facts: Facts) -> Result<Pending, Outcome> {
        let call = Call::new(facts, self.settings.arguments);
        let written = self.writer.write(Entry::Intent(call.clone()), self.settings.sync).await;
        match (written, self.settings.on_error) {
            (Err(_), OnError::Deny) => Err(Outcome::failed(
                OutcomeKind::Denied,
                "not run: the operator's audit log cannot be written, and without it no tool with effects may run. Trying again does not help before the operator has repaired it",
            )),
            (Ok(()), _) | (Err(_), OnError::Continue) => {
                Ok(Pending { writer: self.writer.clone(), call: Some(call), began: Instant::now() })
            }
        }
    }

    /// Waits until everything so far is written.
    pub async fn flush(&self) {
        self.writer.flush().await;
    }
}

/// A call whose intent is written. If nobody says how it ended, that is not known.
#[derive(Debug)]
pub struct Pending {
    writer: Arc<Writer>,
    call: Option<Call>,
    began: Instant,
}

impl Pending {
    /// Writes how the call ended, as soon as the log gets to it.
    pub async fn ended(mut self, outcome: &Outcome) {
        if let Some(entry) = self.entry(record::word(outcome)) {
            self.writer.hand(entry).await;
        }
    }

    fn entry(&mut self, outcome: &'static str) -> Option<Entry> {
        let took: Duration = self.began.elapsed();
        self.call.take().map(|call| Entry::Outcome(call, outcome, took))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(entry) = self.entry("unknown") {
            self.writer.try_hand(entry);
        }
    }
}
