//! The turn: given everything heard so far, what happens next.
//!
//! A state machine without IO, clock or chance. [`Turn::step`] takes one [`Input`] and the time since
//! the turn began and adds [`Action`]s; [`Turn::deadline`] says when a [`Input::Tick`] is due.
//!
//! ```text
//!            Begin                    reply complete, owned calls
//!   (new) ─────────▶ Asking ─────────────────────────────────────▶ Running
//!                    │ ▲  ▲ ask again, nothing shown                  │
//!                    │ └──┴── Waiting (back-off)                      │
//!                    │      ▲ next round: all results in call order   │
//!                    │      └─────────────────────────────────────────┤
//!      no owned call │                        foreign calls too: park │
//!                    ▼                                                ▼
//!                  Done ◀──────── Leaving (client gone, effects end) ◀┘
//! ```
//!
//! Promises, for any order of inputs: exactly one [`Action::Finish`] and nothing after it; every
//! [`Action::Run`] is answered by one outcome or one [`Action::Stop`]; a deadline exists until the
//! finish; rounds and calls stay within their limits; outcomes of runs that were stopped, and news of
//! an ask that was given up, fall through; the same inputs give the same actions.

pub mod parcel;
mod parked;
mod record;
mod round;
mod turn;

#[cfg(test)]
mod failover_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod text_tests;

use std::sync::Arc;
use std::time::Duration;

use crate::wire::error::ErrorReply;
use crate::wire::failure::{Fact, Failure};
use crate::wire::raw::{Member, Raw};
use crate::wire::reply::{FinishReason, Head, Piece};
use crate::wire::request::Choice;
use crate::wire::texts::Texts;
use crate::wire::tool::{Outcome, OwnedTool};

pub use parked::{Parked, Slot, fingerprint, parked_names, restore};
pub use record::{CallRecord, Record, RoundRecord};
pub use turn::Turn;

/// Numbers an ask within a turn. News of any other ask than the last falls through.
pub type AskId = u32;
/// Numbers a run of a call within a turn.
pub type RunId = u32;

/// What the engine hears.
#[derive(Debug, Clone)]
pub enum Input {
    /// The turn begins.
    Begin,
    /// The upstream accepted the ask: status 200, no content yet.
    Accepted(AskId),
    /// Part of the reply.
    Piece(AskId, Box<Piece>),
    /// Parts of the reply that are texts and nothing else. The same as a piece for each of them, and cheaper.
    Texts(AskId, Texts),
    /// The reply ended cleanly. `done`: the upstream itself said that it was complete.
    Ended {
        /// The ask.
        ask: AskId,
        /// `[DONE]`, or a whole completion.
        done: bool,
    },
    /// The ask failed.
    Failed(AskId, Box<Failure>),
    /// What this round used was charged; a limit that is reached with it, if one is.
    Charged(u32, Option<Limit>),
    /// A run got its shared slot and starts now.
    Started(RunId),
    /// A run tells that it goes on.
    Progress(RunId),
    /// A run ended.
    Outcome(RunId, Outcome),
    /// Time has passed.
    Tick,
    /// The client left.
    ClientGone,
    /// Another attempt of the same request runs its tools: this turn must not, and ends.
    Superseded,
    /// The process ends.
    Shutdown,
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask the upstream.
    Ask(Ask),
    /// Give up the ask that is out.
    Cancel,
    /// Charge what this round used; the next one waits until it is [charged](Input::Charged). Calls do not.
    Charge(u32, Raw),
    /// Run a call.
    Run(Run),
    /// Stop a run; its outcome is not waited for.
    Stop(RunId),
    /// Show something to the client.
    Show(Show),
    /// Keep the results of a mixed reply.
    Park(Parked),
    /// The upstream that was asked last refuses something for this model: remember it.
    Learn(Fact),
    /// The turn is over.
    Finish(Finish),
}

/// One question to the upstream. The messages to append are [`Turn::appended`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its number.
    pub id: AskId,
    /// The round, from 1.
    pub round: u32,
    /// How often this round was asked before.
    pub attempt: u8,
    /// The upstream to ask, by its place in [`TurnPlan::targets`](crate::policy::plan::TurnPlan::targets).
    pub target: usize,
    /// `parallel_tool_calls`.
    pub parallel: Option<bool>,
    /// What becomes of `tool_choice`.
    pub choice: Choice,
    /// No tools are sent.
    pub drop_tools: bool,
    /// No `response_format` is sent: the tools are, and the upstream refuses both together.
    pub drop_format: bool,
    /// `reasoning_effort` is `none`: the upstream refuses tools otherwise.
    pub no_effort: bool,
}

/// One run of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// The round, from 1.
    pub round: u32,
    /// The call's id on the wire.
    pub call_id: String,
    /// The tool.
    pub tool: Arc<OwnedTool>,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// What the client gets to see.
#[derive(Debug, Clone, PartialEq)]
pub enum Show {
    /// The answer begins.
    Begin(Head),
    /// Part of the answer.
    Part(Box<Part>),
    /// Parts of the answer that say nothing but more of a text.
    Texts(Texts),
}

/// Part of the answer, in no dialect.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// The round that says it.
    pub round: u32,
    /// A blank line goes before the text: another round has spoken before.
    pub blank_line: bool,
    /// A JSON string.
    pub text: Option<Raw>,
    /// Other members of the delta.
    pub members: Vec<Member>,
    /// Parts of foreign calls.
    pub calls: Vec<CallPart>,
    /// Other members around the delta.
    pub around: Vec<Member>,
    /// Other members of the reply.
    pub top: Vec<Member>,
}

/// Part of a foreign call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallPart {
    /// Its place among the foreign calls, from 0.
    pub index: usize,
    /// In the first part: the call's id, type (JSON text) and function name.
    pub opening: Option<Opening>,
    /// A JSON string.
    pub arguments: Option<Raw>,
    /// Other members of the call.
    pub members: Vec<Member>,
    /// Other members of its function.
    pub function: Vec<Member>,
}

/// How a foreign call opens.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// The id.
    pub id: String,
    /// The type, when it is not `function`.
    pub kind: Option<Raw>,
    /// The function's name.
    pub name: String,
}

/// How the turn ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// With an answer; its parts were shown.
    Answer(FinishReason),
    /// With an error.
    Failed(ErrorReply),
    /// Without anybody to tell.
    Gone,
}

/// The limits whose reaching the engine reports in its [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named like the settings")]
pub enum Limit {
    Rounds,
    CallsPerTurn,
    IdenticalErrors,
    CallTimeout,
    TurnTimeout,
    CallsInReply,
    TokensPerMinute,
    Budget,
}

impl Limit {
    /// The label of the metric.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::CallsPerTurn => "calls_per_turn",
            Self::IdenticalErrors => "identical_errors",
            Self::CallTimeout => "call_timeout",
            Self::TurnTimeout => "turn_timeout",
            Self::CallsInReply => "calls_in_reply",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::Budget => "budget",
        }
    }
}

/// The time since the turn began.
pub type Elapsed = Duration;
