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
