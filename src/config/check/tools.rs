//! That each tool says how it is run. What belongs to one kind of tool is checked where that kind
//! is built.

use super::Check;

impl Check<'_> {
    pub(super) fn tools(&mut self) {
        for (name, tool) in &self.file.tools {
            let at = ["tools", name.as_str()];
            let kinds = usize::from(tool.http.is_some()) + usize::from(tool.command.is_some());
            match kinds {
                0 if !self.shape.damaged(&at) => self.wrong(
                    &at,
                    format!("the tool `{name}` does not say how it is run"),
                    "add `http:` for a request or `command:` for a process",
                ),
                0 | 1 => {}
                _ => self.wrong(
                    &at,
                    format!("the tool `{name}` has both `http` and `command`"),
                    "keep one, or write two tools",
                ),
            }
            if tool.at_once == Some(0) {
                let fix = "write at least 1, or leave it out for no limit of its own";
                self.wrong(&["tools", name, "at_once"], "`at_once` must be at least 1, not 0", fix);
            }
            if tool.timeout.is_some_and(|timeout| timeout > self.file.limits.turn_timeout) {
                let message =
                    format!("`timeout` is longer than a whole turn ({})", self.file.limits.turn_timeout);
                self.warn(&["tools", name, "timeout"], message, "lower it, or raise `limits.turn_timeout`");
            }
        }
    }
}
