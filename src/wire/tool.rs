//! What every layer has to know of a tool the operator offers, and how a call of it ended.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a call of a tool does to the world, from harmless to not repeatable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Looks only. It may start early, be shared between equal calls and be tried again.
    Read,
    /// Changes something, but twice is as good as once.
    Idempotent,
    /// Changes something each time: it is never repeated.
    #[default]
    Write,
}

impl Effect {
    /// As it is written in the file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Idempotent => "idempotent",
            Self::Write => "write",
        }
    }
}

/// What happens to a running call when the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// The call is stopped.
    Stop,
    /// The call runs to its end and its outcome is recorded.
    Finish,
}

/// A tool fanfold runs, as policy and engine see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedTool {
    /// The name the model sees: `^[a-zA-Z0-9_-]{1,64}$`.
    pub name: Arc<str>,
    /// The element of the request's `tools`, as JSON text:
    /// `{"type":"function","function":{"name":…,"description":…,"parameters":…}}`, with
    /// `"strict":true` inside `function` only when `strict` is set.
    pub definition: Arc<str>,
    /// Goes out with `strict: true`.
    pub strict: bool,
    /// What a call does to the world.
    pub effect: Effect,
    /// What happens to a running call when the client leaves.
    pub on_disconnect: OnDisconnect,
    /// How long one call may take once it has a slot; also how long it may wait for one.
    pub timeout: Duration,
    /// How long one call may take that tells of its progress. At least `timeout`.
    pub max_timeout: Duration,
}

impl OwnedTool {
    /// How long one call may take where nobody lets a call take longer than `cap`.
    #[must_use]
    pub fn patience(&self, cap: Option<Duration>) -> Patience {
        let capped = |time: Duration| cap.map_or(time, |cap| time.min(cap));
        Patience { silent: capped(self.timeout), most: capped(self.max_timeout) }
    }
}

/// Tools fanfold runs, sorted by name; of those with the same name, the first. Clones share them, so nearly every
/// request of a team has the list that the team has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedTools {
    tools: Arc<[Arc<OwnedTool>]>,
    definitions: Arc<str>,
}

impl Default for OwnedTools {
    fn default() -> Self {
        Self { tools: Arc::default(), definitions: "".into() }
    }
}

impl FromIterator<Arc<OwnedTool>> for OwnedTools {
    fn from_iter<I: IntoIterator<Item = Arc<OwnedTool>>>(tools: I) -> Self {
        let mut tools: Vec<_> = tools.into_iter().collect();
        tools.sort_by(|one, other| one.name.cmp(&other.name));
        tools.dedup_by(|one, other| one.name == other.name);
        let definitions: Vec<&str> = tools.iter().map(|tool| &*tool.definition).collect();
        Self { definitions: definitions.join(",").into(), tools: tools.into() }
    }
}

impl OwnedTools {
    /// In their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<OwnedTool>> {
        self.tools.iter()
    }

    /// The tool of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<OwnedTool>> {
        self.tools.binary_search_by(|tool| (*tool.name).cmp(name)).ok().map(|at| &self.tools[at])
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tools.len()
    }

    /// There is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Their definitions, separated by commas: what a request's `tools` are between their brackets.
    #[must_use]
    pub fn definitions(&self) -> &str {
        &self.definitions
    }

    /// Those of them that `stay`.
    #[must_use]
    pub fn filter(&self, stay: impl Fn(&OwnedTool) -> bool) -> Self {
        let stay = |tool: &&Arc<OwnedTool>| stay(tool);
        if self.iter().all(|tool| stay(&tool)) {
            self.clone()
        } else {
            self.iter().filter(stay).cloned().collect()
        }
    }
}

/// How long one call may take: so long without news of it, and no longer than that with news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From its start, or from the last news of its progress.
    pub silent: Duration,
    /// From its start, whatever it tells.
    pub most: Duration,
}

impl Patience {
    /// When its time is over, counted from its start, once it told of progress after `ran`.
    #[must_use]
    pub fn after(&self, ran: Duration) -> Duration {
        (ran + self.silent).min(self.most)
    }
}

/// How a call ended: the label of its metric and its colour in a run record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The tool answered.
    Ok,
    /// The tool failed or said that it failed.
    Error,
    /// It took longer than its timeout.
    Timeout,
    /// Arguments that are not JSON or break the tool's schema; nothing ran.
    InvalidArguments,
    /// Not a tool this team may use, or the operator's policy refused the target.
    Denied,
    /// Stopped by us: the client left, the turn ended.
    Stopped,
}

/// What the text of an outcome says when nobody knows whether the call had its effect.
pub const UNKNOWN: &str = "outcome unknown: may have been executed";

/// The result of one call: what the model reads, and what the operator counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub kind: OutcomeKind,
    /// The text of the tool message. For every kind but `Ok` it begins with `error: `.
    pub content: String,
}

impl Outcome {
    /// The tool answered with this text.
    pub fn ok(content: impl Into<String>) -> Self {
        Self { kind: OutcomeKind::Ok, content: content.into() }
    }

    /// Whether nobody knows if the call had its effect.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind != OutcomeKind::Ok && self.content.contains(UNKNOWN)
    }

    /// Anything but an answer: `what` becomes `error: {what}`.
    #[must_use]
    pub fn failed(kind: OutcomeKind, what: &str) -> Self {
        Self { kind, content: format!("error: {what}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Arc<OwnedTool> {
        Arc::new(OwnedTool {
            name: name.into(),
            definition: format!("{{\"{name}\":1}}").into(),
            strict: false,
            effect: Effect::Read,
            on_disconnect: OnDisconnect::Stop,
            timeout: Duration::ZERO,
            max_timeout: Duration::ZERO,
        })
    }

    #[test]
    fn tools_are_found_by_name_and_written_in_the_order_of_names() {
        let tools: OwnedTools = ["b", "a", "c", "a"].map(tool).into_iter().collect();
        assert_eq!(tools.definitions(), r#"{"a":1},{"b":1},{"c":1}"#);
        assert_eq!(tools.get("b"), Some(&tool("b")));
        assert_eq!(tools.get("d"), None);
        assert_eq!((tools.len(), tools.is_empty()), (3, false));
        let none = OwnedTools::default();
        assert_eq!((none.definitions(), none.len(), none.is_empty()), ("", 0, true));
    }

    #[test]
    fn a_list_from_which_nothing_is_taken_is_the_same_list() {
        let tools: OwnedTools = ["a", "b"].map(tool).into_iter().collect();
        let shares = |other: &OwnedTools| Arc::ptr_eq(&tools.tools, &other.tools);
        assert!(shares(&tools.filter(|_| true)));
        let fewer = tools.filter(|tool| &*tool.name == "b");
        assert!(!shares(&fewer));
        assert_eq!((fewer.len(), fewer.definitions()), (1, r#"{"b":1}"#));
        assert_eq!(tools.filter(|_| false), OwnedTools::default());
    }
}
