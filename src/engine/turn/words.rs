//! What the model and the client are told in fanfold's own words.

use std::time::Duration;

use crate::engine::Limit;
use crate::policy::plan::TurnPlan;
use crate::wire::reply::FinishReason;
use crate::wire::tool::{Effect, Outcome, OutcomeKind, OwnedTool, UNKNOWN};

pub(super) fn timed_out(tool: &OwnedTool, started: bool, after: Duration) -> Outcome {
    let after = crate::units::Span(after);
    let what = match (started, tool.effect) {
        (false, _) => format!("timed out after {after} waiting for a free slot; nothing was run"),
        (true, Effect::Write) => format!("timed out after {after}; {UNKNOWN}"),
        (true, Effect::Read | Effect::Idempotent) => format!("timed out after {after}"),
    };
    Outcome::failed(OutcomeKind::Timeout, &what)
}

/// The finish reason clients know for how the upstream ended.
pub(super) const fn finish_reason(said: Option<FinishReason>, foreign_calls: bool) -> FinishReason {
    match (said, foreign_calls) {
        (Some(reason @ (FinishReason::Length | FinishReason::ContentFilter)), _) => reason,
        (Some(FinishReason::FunctionCall), false) => FinishReason::FunctionCall,
        (_, true) => FinishReason::ToolCalls,
        (_, false) => FinishReason::Stop,
    }
}

fn reached(limit: Limit, plan: &TurnPlan) -> String {
    let limits = &plan.rules.limits;
    match limit {
        Limit::Rounds => format!("the limit of {} rounds of tool calls is reached", limits.rounds),
        Limit::CallsPerTurn => format!("the limit of {} tool calls is reached", limits.calls_per_turn),
        Limit::IdenticalErrors => {
            format!("the same call failed {} times in the same way", limits.identical_errors)
        }
        Limit::TokensPerMinute => "the quota of tokens a minute is used up".into(),
        Limit::Budget => "the budget is used up".into(),
        Limit::CallTimeout | Limit::TurnTimeout | Limit::CallsInReply => "a limit is reached".into(),
    }
}

/// What the model is told before the last round.
pub(super) fn note(limit: Limit, plan: &TurnPlan) -> String {
    format!("[No more tools will be run: {}. Answer from the results you have.]", reached(limit, plan))
}

/// What the client is told when the model calls tools all the same.
pub(super) fn sentence(limit: Limit, plan: &TurnPlan) -> String {
    format!("[The answer ends here: {}, and the model asked for more.]", reached(limit, plan))
}
