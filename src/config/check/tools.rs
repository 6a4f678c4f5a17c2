//! How tools fit to the limits. Everything else about a tool is checked where it is built.

use super::Check;
use crate::config::suggest::did_you_mean;

impl Check<'_> {
    pub(super) fn tools(&mut self) {
        for (name, tool) in &self.file.tools {
            for team in tool.teams.keys().filter(|team| !self.file.teams.contains_key(*team)) {
                let problem =
                    self.here(&["tools", name, "teams", team], format!("there is no team `{team}`"));
                self.problems.push(match did_you_mean(team, self.file.teams.keys().map(String::as_str)) {
                    Some(question) => problem.label(question),
                    None => problem.fix("name one of `teams:`"),
                });
            }
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
