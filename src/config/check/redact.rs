//! That what is to be redacted can be looked for.

use super::Check;
use crate::telemetry::redact::Redact;

impl Check<'_> {
    pub(super) fn redact(&mut self) {
        for wrong in Redact::new(&self.file.redact).err().unwrap_or_default() {
            let at = wrong.at.map(|at| at.to_string());
            let path: Vec<&str> = ["redact", wrong.list].into_iter().chain(at.as_deref()).collect();
            self.wrong(&path, wrong.message, wrong.fix);
        }
    }
}
