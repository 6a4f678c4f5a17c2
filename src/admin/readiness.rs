//! Whether this process should get traffic, as its parts report it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// A check's result; the error is a reason for the operator.
pub type Check = Result<(), String>;

/// The checks, by name. Clones are the same readiness; without a check it is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Report>>);

impl Readiness {
    /// Without a check.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports a check. Names are fixed in the code, so there are only so many.
    pub fn set(&self, name: &'static str, check: Check) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(name, check);
    }

    /// Takes a check back: what it was about is no more.
    pub fn unset(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).checks.remove(name);
    }

    /// Says how something is without which it is ready all the same, in lines for the operator; none takes back what
    /// was said before.
    pub fn remark(&self, name: &'static str, lines: Vec<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remarks.insert(name, lines);
    }

    /// All checks at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All checks at one moment.
#[derive(Debug, Clone, Default)]
pub struct Report {
    checks: BTreeMap<&'static str, Check>,
    remarks: BTreeMap<&'static str, Vec<String>>,
}

impl Report {
    /// One check more.
    pub fn add(&mut self, name: &'static str, check: Check) {
        self.checks.insert(name, check);
    }

    /// Nothing is wrong.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.checks.values().all(Result::is_ok)
    }

    /// For people: what is wrong, or, when `verbose`, every check and remark.
    #[must_use]
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        for (name, check) in &self.checks {
            // Writing to a string does not fail.
            let _ = match check {
                Ok(()) if verbose => writeln!(text, "[+] {name} ok"),
                Ok(()) => Ok(()),
                Err(reason) => writeln!(text, "[-] {name} failed: {reason}"),
            };
        }
        for (name, lines) in self.remarks.iter().filter(|_| verbose) {
            for line in lines {
                let _ = writeln!(text, "[~] {name}: {line}");
            }
        }
        text.push_str(if self.ready() { "ok\n" } else { "not ready\n" });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_shows_only_to_those_who_ask_and_does_not_make_unready() {
        let readiness = Readiness::new();
        readiness.set("store", Ok(()));
        readiness.remark("tool servers", vec!["clock is down: x".into(), "git is up".into()]);
        let report = readiness.report();
        assert!(report.ready());
        assert_eq!(report.text(false), "ok\n");
        assert_eq!(
            report.text(true),
            "[+] store ok\n[~] tool servers: clock is down: x\n[~] tool servers: git is up\nok\n"
        );
        readiness.set("store", Err("gone".into()));
        assert!(!readiness.report().ready());
        readiness.unset("store");
        assert!(readiness.report().ready());
        readiness.set("store", Ok(()));
        readiness.remark("tool servers", Vec::new());
        assert_eq!(readiness.report().text(true), "[+] store ok\nok\n");
    }
}
