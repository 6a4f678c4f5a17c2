//! What happened in a turn: the source of its metrics, its log line and its transcript.

use std::sync::Arc;
use std::time::Duration;

use super::{Limit, RunId};
use crate::wire::raw::Raw;
use crate::wire::tool::OutcomeKind;
use crate::wire::usage::Tokens;

/// One turn. All times are since the turn began.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The rounds, in order; an ask that was repeated is one round.
    pub rounds: Vec<RoundRecord>,
    /// The owned calls, in order.
    pub calls: Vec<CallRecord>,
    /// The limits that were reached.
    pub limits: Vec<Limit>,
    /// A reply held owned and foreign calls.
    pub mixed: bool,
}

/// One round.
#[derive(Debug, Clone, Default)]
pub struct RoundRecord {
    /// When it was first asked.
    pub asked: Duration,
    /// When the first content came.
    pub first: Option<Duration>,
    /// When the reply was complete, or failed for good.
    pub ended: Option<Duration>,
    /// How often it was asked again.
    pub again: u8,
    /// The upstream that was asked last, by its place in the plan.
    pub target: usize,
    /// What the upstream reported.
    pub usage: Option<Raw>,
    /// The tokens of that.
    pub tokens: Option<Tokens>,
    /// The word of the upstream's finish reason.
    pub finish: Option<&'static str>,
}

/// One owned call.
#[derive(Debug, Clone)]
pub struct CallRecord {
    /// The round, from 1.
    pub round: u32,
    /// The call's id on the wire.
    pub id: String,
    /// The tool, or the name the model invented.
    pub tool: Arc<str>,
    /// The number of its run, if it had one of its own.
    pub run: Option<RunId>,
    /// The tool exists.
    pub known: bool,
    /// The arguments as JSON text; only where content is kept.
    pub arguments: Option<String>,
    /// When it could have started but for a slot.
    pub queued: Duration,
    /// When it started.
    pub started: Option<Duration>,
    /// When its result was there.
    pub ended: Option<Duration>,
    /// How it ended.
    pub outcome: Option<OutcomeKind>,
    /// What the model reads; only where content is kept.
    pub result: Option<String>,
    /// It shares the run of an equal call.
    pub shared: bool,
}

type Interval = (Duration, Duration);

impl Record {
    /// The time saved by running calls side by side: per round, the sum of the calls' times minus
    /// the time from the first start to the last end.
    #[must_use]
    pub fn saved(&self) -> Duration {
        let rounds = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        (1..=rounds).map(|round| self.saved_in(round)).sum()
    }

    fn saved_in(&self, round: u32) -> Duration {
        let runs: Vec<Interval> =
            self.calls.iter().filter(|c| c.round == round).filter_map(CallRecord::ran).collect();
        let sum: Duration = runs.iter().map(|(start, end)| *end - *start).sum();
        let first = runs.iter().map(|run| run.0).min().unwrap_or_default();
        let last = runs.iter().map(|run| run.1).max().unwrap_or_default();
        sum.saturating_sub(last - first)
    }

    /// The time in which neither the upstream nor a tool was at work, up to `total`.
    #[must_use]
    pub fn overhead(&self, total: Duration) -> Duration {
        let mut busy: Vec<Interval> = self.calls.iter().filter_map(CallRecord::ran).collect();
        busy.extend(self.rounds.iter().filter_map(|r| Some((r.asked, r.ended?))));
        total.saturating_sub(covered(busy))
    }

    /// The time in which at least one tool was at work.
    #[must_use]
    pub fn tool_time(&self) -> Duration {
        covered(self.calls.iter().filter_map(CallRecord::ran).collect())
    }
}

/// The time that lies in at least one of the intervals.
fn covered(mut intervals: Vec<Interval>) -> Duration {
    intervals.sort_unstable();
    let (mut covered, mut until) = (Duration::ZERO, Duration::ZERO);
    for (start, end) in intervals {
        covered += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    covered
}

impl CallRecord {
    fn ran(&self) -> Option<Interval> {
        if self.shared {
            return None;
        }
        Some((self.started?, self.ended?.max(self.started?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn call(round: u32, started: u64, ended: u64) -> CallRecord {
        CallRecord {
            round,
            id: String::new(),
            tool: "t".into(),
            run: None,
            known: true,
            arguments: None,
            queued: ms(started),
            started: Some(ms(started)),
            ended: Some(ms(ended)),
            outcome: None,
            result: None,
            shared: false,
        }
    }

    #[test]
    fn saving_is_counted_per_batch_and_overhead_is_what_nobody_needed() {
        let round =
            |asked, ended| RoundRecord { asked: ms(asked), ended: Some(ms(ended)), ..RoundRecord::default() };
        let record = Record {
            rounds: vec![round(1, 10), round(52, 60)],
            calls: vec![call(1, 8, 50), call(1, 10, 40), call(2, 60, 65)],
            ..Record::default()
        };
        assert_eq!(record.saved(), ms(30));
        assert_eq!(record.overhead(ms(70)), ms(1 + 2 + 5));
        assert_eq!(record.tool_time(), ms(42 + 5));
    }
}
