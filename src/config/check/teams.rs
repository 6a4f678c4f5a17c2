//! Teams: their keys, and what they may use.

use std::collections::HashMap;

use super::{Check, matches};
use crate::config::suggest::did_you_mean;
use crate::policy::pattern::may_begin;
use crate::team::settings::Settings;

/// The SHA-256 of nothing: what a hash tool prints when its input did not arrive.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl Check<'_> {
    pub(super) fn teams(&mut self) {
        let mut owners: HashMap<String, (String, usize)> = HashMap::new();
        for (name, team) in &self.file.teams {
            if name.trim().is_empty() {
                self.wrong(&["teams", name], "a team needs a name", "write a name before the colon");
            }
            if team.keys.is_empty() && !self.shape.damaged(&["teams", name]) {
                let message = format!("the team `{name}` has no keys: nobody can use it");
                self.warn(&["teams", name], message, "`fanfold keys new` makes a key and the line for it");
            }
            for (i, key) in team.keys.iter().enumerate() {
                self.key(name, i, &key.sha256, &mut owners);
            }
            self.may_use(name, team);
        }
    }

    fn key(&mut self, team: &str, index: usize, sha256: &str, owners: &mut HashMap<String, (String, usize)>) {
        let hash = sha256.to_ascii_lowercase();
        let position = index.to_string();
        let at = ["teams", team, "keys", &position, "sha256"];
        if hash == OF_NOTHING {
            return self.wrong(
                &at,
                "this is the hash of an empty text",
                "hash the key itself: `fanfold keys hash`",
            );
        }
        let Some((owner, other)) = owners.insert(hash, (team.to_owned(), index)) else { return };
        let message = match owner == team {
            true => format!("`{team}` has this key twice"),
            false => format!("this key already belongs to the team `{owner}`"),
        };
        let mut problem =
            self.here(&at, message).fix("a key proves one team: make another with `fanfold keys new`");
        if let Some(place) = self.tree.place_of(&["teams", &owner, "keys", &other.to_string(), "sha256"]) {
            problem = problem.also(place, "first here");
        }
        self.problems.push(problem);
    }

    fn may_use(&mut self, name: &str, team: &Settings) {
        for (i, pattern) in team.models.iter().flatten().enumerate() {
            if pattern.trim().is_empty() {
                let at = ["teams", name, "models", &i.to_string()].map(str::to_owned);
                let at: Vec<&str> = at.iter().map(String::as_str).collect();
                self.wrong(&at, "an empty pattern matches no model", "write a model name, or \"*\" for all");
            }
        }
        let known = self.tools;
        for (i, pattern) in team.tools.iter().flatten().enumerate() {
            let index = i.to_string();
            let at = ["teams", name, "tools", &index];
            if self.beginnings().any(|beginning| may_begin(pattern, &beginning)) {
                continue;
            }
            let server = self.servers().find(|(server, _)| server == pattern).map(|(_, beginning)| beginning);
            if let Some(beginning) = server {
                let message = format!("`{pattern}` is a server: its tools are called {beginning}NAME");
                self.wrong(&at, message, format!("write \"{beginning}*\" for all of them"));
                continue;
            }
            if known.iter().any(|tool| matches(pattern, tool)) {
                continue;
            }
            if pattern.contains('*') {
                self.warn(&at, format!("no tool matches `{pattern}`"), "check the names under `tools:`");
                continue;
            }
            let problem = self.here(&at, format!("there is no tool `{pattern}`"));
            self.problems.push(match did_you_mean(pattern, known.iter().map(String::as_str)) {
                Some(question) => problem.label(question),
                None => problem.fix("name one of `tools:`, or a pattern with `*`"),
            });
        }
        self.too_many_tools(name, team);
    }

    /// The servers, and what the names of their tools begin with.
    fn servers(&self) -> impl Iterator<Item = (&str, String)> {
        let servers = self.file.tools.iter().filter(|(_, tool)| tool.mcp.is_some());
        servers
            .map(|(name, tool)| (name.as_str(), tool.prefix.clone().unwrap_or_else(|| format!("{name}__"))))
    }

    fn beginnings(&self) -> impl Iterator<Item = String> {
        self.servers().map(|(_, beginning)| beginning)
    }

    fn too_many_tools(&mut self, name: &str, team: &Settings) {
        let may = |tool: &String| team.tools.as_ref().is_none_or(|all| all.iter().any(|p| matches(p, tool)));
        let count = self.tools.iter().filter(|tool| may(tool)).count();
        let most = self.file.limits.tools_per_request as usize;
        if count > most {
            let message =
                format!("the team `{name}` may use {count} tools, but a request carries at most {most}");
            self.warn(
                &["teams", name],
                message,
                "narrow the team's `tools:`, or its clients have to narrow each request",
            );
        }
    }
}
