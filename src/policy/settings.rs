//! The rules an operator may set: the strict-versus-parallel rule, and the limits of a turn.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Size, Span};

/// What to do about strict tools and parallel calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StrictParallel {
    /// Any strict tool in the request: `parallel_tool_calls: false`, whatever the client said.
    #[default]
    Serialize,
    /// The same, but only where the upstream is known to need it.
    Auto,
    /// A strict tool together with an explicit `parallel_tool_calls: true` is refused with 400.
    Reject,
    /// What the client said passes through.
    Off,
}

/// Whether text beside owned tool calls is shown to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InterimText {
    /// Text of every round flows through as it arrives, a blank line between rounds.
    #[default]
    Stream,
    /// Only the text of the last round is shown, once the round is known to be the last.
    Hold,
}

/// `policy:` of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub struct Settings {
    /// The strict-versus-parallel rule.
    pub strict_parallel: StrictParallel,
    /// Patterns of model names that need the rule under `auto`, beside `ft:*` (`*` matches anything).
    pub strict_parallel_models: Vec<String>,
    /// Whether text beside owned tool calls is shown.
    pub interim_text: InterimText,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strict_parallel: StrictParallel::default(),
            strict_parallel_models: vec!["ft:*".into()],
            interim_text: InterimText::default(),
        }
    }
}

/// `policy:` of a team or a route: what is left out stays as it is globally.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// The strict-versus-parallel rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_parallel: Option<StrictParallel>,
    /// Whether text beside owned tool calls is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interim_text: Option<InterimText>,
}

/// `limits:` of the file. Every bound of a turn and of the process has its place here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Questions to the upstream inside one turn.
    #[schemars(range(min = 1))]
    pub rounds: u32,
    /// Tool calls inside one turn.
    #[schemars(range(min = 1))]
    pub calls_per_turn: u32,
    /// Calls running at once in one turn.
    #[schemars(range(min = 1))]
    pub calls_at_once: u32,
    /// Calls running at once for one team.
    #[schemars(range(min = 1))]
    pub calls_at_once_per_team: u32,
    /// Calls running at once in the process.
    #[schemars(range(min = 1))]
    pub calls_at_once_in_process: u32,
    /// One call, unless the tool says otherwise.
    pub call_timeout: Span,
    /// One whole turn.
    pub turn_timeout: Span,
    /// An identical call with an identical error, so many times in a row, ends the tool rounds.
    #[schemars(range(min = 1))]
    pub identical_errors: u32,
    /// A tool's result as handed to the model.
    pub tool_result: Size,
    /// A request's body.
    pub body: Size,
    /// An upstream's whole reply.
    pub reply: Size,
    /// One event of a streamed reply.
    pub event: Size,
    /// Tools in one request after fanfold added its own (providers refuse more than 128).
    #[schemars(range(min = 1))]
    pub tools_per_request: u32,
    /// Parked results of mixed replies: how many.
    pub parked_entries: u32,
    /// Parked results of mixed replies: how many bytes in all.
    pub parked_bytes: Size,
    /// Parked results of mixed replies: for how long.
    pub parked_for: Span,
    /// Answers of requests with effects or with a key, for their repetitions: how many.
    pub ledger_entries: u32,
    /// Answers of requests: how many bytes in all.
    pub ledger_bytes: Size,
    /// Answers of requests: how many bytes of one.
    pub ledger_answer: Size,
    /// Answers of requests: for how long.
    pub ledger_for: Span,
    /// A request whose replica is not heard of for so long was cut off with it.
    pub ledger_lease: Span,
    /// Turns in flight in the process.
    #[schemars(range(min = 1))]
    pub turns_at_once: u32,
    /// Requests of one team that wait for a place among the turns of the process. 0: none waits.
    pub turns_waiting_per_team: u32,
    /// How long such a request waits.
    pub turn_wait: Span,
    /// Open client connections.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// Bytes of request bodies held at once in the process.
    pub bodies_in_flight: Size,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rounds: 10,
            calls_per_turn: 64,
            calls_at_once: 8,
            calls_at_once_per_team: 64,
            calls_at_once_in_process: 512,
            call_timeout: Span::seconds(30),
            turn_timeout: Span::seconds(300),
            identical_errors: 3,
            tool_result: Size::kib(64),
            body: Size::mib(16),
            reply: Size::mib(64),
            event: Size::mib(4),
            tools_per_request: 128,
            parked_entries: 10_000,
            parked_bytes: Size::mib(64),
            parked_for: Span::seconds(3600),
            ledger_entries: 10_000,
            ledger_bytes: Size::mib(64),
            ledger_answer: Size::mib(1),
            ledger_for: Span::seconds(600),
            ledger_lease: Span::seconds(10),
            turns_at_once: 4096,
            turns_waiting_per_team: 256,
            turn_wait: Span::seconds(5),
            connections: 16_384,
            bodies_in_flight: Size::mib(512),
        }
    }
}

/// `limits:` of a route or a team. A value may only lower the global one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LowerLimits {
    /// Questions to the upstream inside one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rounds: Option<u32>,
    /// Tool calls inside one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls_per_turn: Option<u32>,
    /// Calls running at once in one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls_at_once: Option<u32>,
    /// One call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_timeout: Option<Span>,
    /// One whole turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_timeout: Option<Span>,
    /// A tool's result as handed to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_result: Option<Size>,
}

impl Limits {
    /// These limits with `lower` laid over them; a higher value changes nothing.
    #[must_use]
    pub fn lowered_by(&self, lower: &LowerLimits) -> Self {
        fn least<T: Ord + Copy>(a: T, b: Option<T>) -> T {
            b.map_or(a, |b| a.min(b))
        }
        Self {
            rounds: least(self.rounds, lower.rounds),
            calls_per_turn: least(self.calls_per_turn, lower.calls_per_turn),
            calls_at_once: least(self.calls_at_once, lower.calls_at_once),
            call_timeout: least(self.call_timeout, lower.call_timeout),
            turn_timeout: least(self.turn_timeout, lower.turn_timeout),
            tool_result: least(self.tool_result, lower.tool_result),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_or_a_route_may_only_lower_a_limit() {
        let global = Limits::default();
        assert_eq!(global.lowered_by(&LowerLimits::default()), global);
        let lower = LowerLimits {
            rounds: Some(2),
            calls_per_turn: Some(3),
            calls_at_once: Some(1),
            call_timeout: Some(Span::seconds(4)),
            turn_timeout: Some(Span::seconds(5)),
            tool_result: Some(Size::kib(1)),
        };
        let expected = Limits {
            rounds: 2,
            calls_per_turn: 3,
            calls_at_once: 1,
            call_timeout: Span::seconds(4),
            turn_timeout: Span::seconds(5),
            tool_result: Size::kib(1),
            ..Limits::default()
        };
        assert_eq!(global.lowered_by(&lower), expected);
        let higher =
            LowerLimits { rounds: Some(11), tool_result: Some(Size::mib(1)), ..LowerLimits::default() };
        assert_eq!(global.lowered_by(&higher), global);
    }
}
