//! Whether this process should get traffic, as its parts report it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// A check's result; the error is a reason for the operator.
pub type Check = Result<(), String>;

/// The checks, by name. Clones are the same readiness; without a check it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Check>>>);

impl Readiness {
    /// Without a check.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a check. Names are fixed in the code, so there are only so many.
    pub fn set(&self, name: &'static str, check: Check) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, check);
    }

    /// All checks at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        Report(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// All checks at one moment.
#[derive(Debug, Clone)]
pub struct Report(BTreeMap<&'static str, Check>);

impl Report {
    /// One check more.
    pub fn add(&mut self, name: &'static str, check: Check) {
        self.0.insert(name, check);
    }

    /// Nothing is wrong.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.0.values().all(Result::is_ok)
    }

    /// For people: what is wrong, or, when `verbose`, every check.
    #[must_use]
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        for (name, check) in &self.0 {
            // Writing to a string does not fail.
            let _ = match check {
                Ok(()) if verbose => writeln!(text, "[+] {name} ok"),
                Ok(()) => Ok(()),
                Err(reason) => writeln!(text, "[-] {name} failed: {reason}"),
            };
        }
        text.push_str(if self.ready() { "ok\n" } else { "not ready\n" });
        text
    }
}
