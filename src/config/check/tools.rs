//! How tools fit to the limits. Everything else about a tool is checked where it is built.

use super::Check;

impl Check<'_> {
    pub(super) fn tools(&mut self) {
        for (name, tool) in &self.file.tools {
            for (key, time) in [("timeout", tool.timeout), ("max_timeout", tool.max_timeout)] {
                if time.is_some_and(|time| time > self.file.limits.turn_timeout) {
                    let message =
                        format!("`{key}` is longer than a whole turn ({})", self.file.limits.turn_timeout);
                    self.warn(&["tools", name, key], message, "lower it, or raise `limits.turn_timeout`");
                }
            }
        }
    }
}
