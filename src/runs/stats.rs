//! How calls of each tool went, for people: counts, and the times of the last calls.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::run::Call;

/// The times that are kept of one tool.
const TIMES: usize = 512;
/// The tools that are counted; there are no more in use at once.
const TOOLS: usize = 8192;

/// Every tool's figures.
#[derive(Debug, Default)]
pub(super) struct Stats(HashMap<Arc<str>, Tool>);

#[derive(Debug, Default)]
struct Tool {
    calls: u64,
    errors: u64,
    times: Vec<f32>,
    next: usize,
}

/// What is told of one tool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Calls since the start of the process.
    pub calls: u64,
    /// Those of them that ended otherwise than well.
    pub errors: u64,
    /// Half of the last calls took no longer than this, in milliseconds.
    pub p50: Option<f32>,
    /// All but every twentieth of them took no longer than this.
    pub p95: Option<f32>,
}

impl Stats {
    /// Counts a call that ended.
    pub(super) fn add(&mut self, call: &Call) {
        if call.effect.is_none() || call.shared || call.outcome.is_none() {
            return;
        }
        if self.0.len() >= TOOLS && !self.0.contains_key(&call.tool) {
            return;
        }
        let tool = self.0.entry(call.tool.clone()).or_default();
        tool.calls += 1;
        tool.errors += u64::from(call.failed());
        let (Some(started), Some(ended)) = (call.started, call.ended) else { return };
        #[expect(clippy::cast_possible_truncation, reason = "for people")]
        let took = (ended - started) as f32;
        if tool.times.len() < TIMES {
            tool.times.push(took);
        } else {
            tool.times[tool.next] = took;
            tool.next = (tool.next + 1) % TIMES;
        }
    }

    pub(super) fn of(&self, tool: &str) -> Figures {
        let Some(tool) = self.0.get(tool) else { return Figures::default() };
        let mut times = tool.times.clone();
        times.sort_unstable_by(f32::total_cmp);
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Figures { calls: tool.calls, errors: tool.errors, p50: at(50), p95: at(95) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tool::{Effect, OutcomeKind};

    fn call(tool: &str, took: f64) -> Call {
        Call {
            round: 1,
            id: String::new(),
            tool: tool.into(),
            effect: Some(Effect::Read),
            queued: 0.0,
            started: Some(0.0),
            ended: Some(took),
            again: Vec::new(),
            outcome: Some(OutcomeKind::Ok),
            shared: false,
        }
    }

    #[test]
    fn percentiles_are_those_of_the_last_calls() {
        let mut stats = Stats::default();
        for took in 1..=100 {
            stats.add(&call("t", took.into()));
        }
        stats.add(&Call { outcome: Some(OutcomeKind::Denied), started: None, ..call("t", 0.0) });
        let figures = stats.of("t");
        assert_eq!(
            (figures.calls, figures.errors, figures.p50, figures.p95),
            (101, 1, Some(50.0), Some(95.0))
        );
        for _ in 0..TIMES {
            stats.add(&call("t", 7.0));
        }
        assert_eq!((stats.of("t").p50, stats.of("t").p95), (Some(7.0), Some(7.0)), "the old ones are gone");
        assert_eq!(stats.of("other"), Figures::default());
    }

    #[test]
    fn names_a_model_invents_are_not_counted_and_tools_are_bounded() {
        let mut stats = Stats::default();
        stats.add(&Call { effect: None, ..call("invented", 1.0) });
        stats.add(&Call { shared: true, ..call("t", 1.0) });
        assert!(stats.0.is_empty());
        for i in 0..TOOLS + 5 {
            stats.add(&call(&format!("t{i}"), 1.0));
        }
        assert_eq!(stats.0.len(), TOOLS);
    }
}
