//! The calls of a round: which start, when they are over, and what becomes of those that never run.

use super::words::timed_out;
use super::{Stage, Turn};
use crate::engine::record::{CallRecord, Record};
use crate::engine::round::{Standing, Stands, Whose, unknown};
use crate::engine::{Action, Limit, Run, RunId};
use crate::policy::plan::TurnPlan;
use crate::wire::call::parses;
use crate::wire::tool::{Effect, Outcome, OutcomeKind, OwnedTool, Patience};
use std::time::Duration;

impl Turn {
    /// Every call of ours that has not started is queued, shared or refused.
    pub(super) fn take_calls(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        let waiting: Vec<usize> = (0..round.standings.len())
            .filter(|at| {
                round.standings[*at].is_ours() && matches!(round.standings[*at].stands, Stands::Coming)
            })
            .collect();
        for at in waiting {
            self.take_call(at);
        }
        self.fill_slots(actions);
    }

    pub(super) fn start_early(&mut self, at: usize, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        if !self.is_last && round.may_start_early(at) {
            self.take_call(at);
            self.fill_slots(actions);
        }
    }

    /// Decides about one call whose arguments are complete.
    pub(super) fn take_call(&mut self, at: usize) {
        let Stage::Round(round) = &mut self.stage else { return };
        let call = round.call(at);
        let arguments = call.arguments();
        let known = matches!(round.standings[at].whose, Whose::Owned(_));
        self.record.calls.push(CallRecord {
            round: self.round,
            id: call.id.clone(),
            tool: match &round.standings[at].whose {
                Whose::Owned(tool) => tool.name.clone(),
                Whose::Open | Whose::Foreign(_) | Whose::Nobody => call.name.as_str().into(),
            },
            run: None,
            known,
            arguments: self.plan.keeps_content().then(|| arguments.clone()),
            queued: self.now,
            started: None,
            ended: None,
            outcome: None,
            result: None,
            shared: false,
        });
        round.standings[at].record = Some(self.record.calls.len() - 1);
        round.mark(at, &arguments);
        if let Some(refusal) = self.refusal(at, &arguments) {
            self.done(at, refusal);
            return;
        }
        let Stage::Round(round) = &mut self.stage else { return };
        // A call that starts anew counts once.
        self.calls += u32::from(!std::mem::replace(&mut round.standings[at].counted, true));
        match round.twin(at) {
            Some(twin) => {
                if let Some(record) = round.standings[at].record {
                    self.record.calls[record].shared = true;
                }
                let result = round.outcome(twin).cloned();
                round.standings[at].stands = Stands::SharedWith(twin);
                if let Some(outcome) = result {
                    self.done(at, outcome);
                }
            }
            None => {
                round.standings[at].stands = Stands::Queued;
                round.standings[at].arguments = Some(arguments);
            }
        }
    }

    /// Why a call is not run, if it is not.
    pub(super) fn refusal(&mut self, at: usize, arguments: &str) -> Option<Outcome> {
        let Stage::Round(round) = &self.stage else { return None };
        let call = round.call(at);
        if self.is_last {
            return Some(Outcome::failed(OutcomeKind::Stopped, "not run: the limit of this turn is reached"));
        }
        let most = self.plan.rules.limits.calls_per_turn;
        if self.calls >= most && !round.standings[at].counted {
            if self.last_because.is_none() {
                self.last_because = Some(Limit::CallsPerTurn);
                self.record.limits.push(Limit::CallsPerTurn);
            }
            let why = format!("not run: the limit of {most} tool calls in one turn is reached");
            return Some(Outcome::failed(OutcomeKind::Stopped, &why));
        }
        if matches!(round.standings[at].whose, Whose::Nobody) {
            return Some(unknown(&call.name, &self.plan));
        }
        if !parses(arguments) {
            let why = "the arguments are not valid JSON; nothing was run. Send the call again with arguments that are one JSON object";
            return Some(Outcome::failed(OutcomeKind::InvalidArguments, why));
        }
        None
    }

    /// Starts queued calls, in order, while there are slots.
    pub(super) fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let slots = self.plan.rules.limits.calls_at_once as usize;
        let mut running = round.running().count();
        for at in 0..round.standings.len() {
            if running >= slots {
                return;
            }
            let standing = &round.standings[at];
            let (Stands::Queued, Whose::Owned(tool)) = (&standing.stands, &standing.whose) else { continue };
            let tool = tool.clone();
            self.next_run += 1;
            running += 1;
            let taken = round.standings[at].arguments.take();
            let call = round.call(at);
            let run = Run {
                id: self.next_run,
                round: self.round,
                call_id: call.id.clone(),
                arguments: taken.unwrap_or_else(|| call.arguments()),
                tool: tool.clone(),
            };
            let deadline = self.now + patience(&tool, &self.plan).silent;
            round.standings[at].stands = Stands::Running { run: self.next_run, since: None, deadline };
            if let Some(record) = round.standings[at].record {
                self.record.calls[record].run = Some(self.next_run);
            }
            actions.push(Action::Run(run));
        }
    }

    /// A call that started early and whose arguments then went on is stopped; it starts anew when
    /// the reply is complete.
    pub(super) fn reopen(&mut self, at: usize, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let standing = &mut round.standings[at];
        if let Stands::Running { run, .. } = standing.stands {
            actions.push(Action::Stop(run));
        }
        stopped(&mut self.record, standing, self.now);
        standing.stands = Stands::Coming;
        standing.reopened = true;
        standing.key = None;
        standing.arguments = None;
        for other in &mut round.standings {
            if matches!(other.stands, Stands::SharedWith(with) if with == at) {
                other.stands = Stands::Queued;
            }
        }
        self.fill_slots(actions);
    }

    /// The calls of a reply that is asked for again are none of the turn's.
    pub(super) fn forget_calls(&mut self, of: &[Standing]) {
        let counted = of.iter().filter(|standing| standing.counted).count();
        self.calls -= u32::try_from(counted).unwrap_or(self.calls);
        // What was reached in an earlier round stays reached.
        if !self.is_last && self.last_because == Some(Limit::CallsPerTurn) {
            self.last_because = None;
            self.record.limits.retain(|limit| *limit != Limit::CallsPerTurn);
        }
    }

    pub(super) fn call_started(&mut self, id: RunId) {
        let now = self.now;
        let plan = self.plan.clone();
        let (Stage::Round(round) | Stage::Leaving(round)) = &mut self.stage else { return };
        let Some((at, _)) = round.running().find(|(_, run)| *run == id) else { return };
        let standing = &mut round.standings[at];
        if let (Stands::Running { since, deadline, .. }, Whose::Owned(tool)) =
            (&mut standing.stands, &standing.whose)
            && since.is_none()
        {
            *since = Some(now);
            if tool.effect == Effect::Write {
                *self.effects.entry(tool.name.clone()).or_default() += 1;
            }
            *deadline = now + patience(tool, &plan).silent;
            if let Some(record) = standing.record {
                self.record.calls[record].started = Some(now);
            }
        }
    }

    /// A call that tells of its progress gets more time, up to the most its tool allows.
    pub(super) fn call_goes_on(&mut self, id: RunId) {
        let now = self.now;
        let plan = self.plan.clone();
        let (Stage::Round(round) | Stage::Leaving(round)) = &mut self.stage else { return };
        let Some((at, _)) = round.running().find(|(_, run)| *run == id) else { return };
        let standing = &mut round.standings[at];
        if let (Stands::Running { since: Some(since), deadline, .. }, Whose::Owned(tool)) =
            (&mut standing.stands, &standing.whose)
        {
            let over = *since + patience(tool, &plan).after(now - *since);
            *deadline = over.max(*deadline);
        }
    }

    pub(super) fn call_ended(&mut self, id: RunId, outcome: Outcome, actions: &mut Vec<Action>) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &self.stage else { return };
        let Some((at, _)) = round.running().find(|(_, run)| *run == id) else { return };
        match outcome.kind {
            OutcomeKind::InvalidArguments | OutcomeKind::Denied => self.had_no_effect(at),
            // An outcome without a start that was heard of: it ran.
            OutcomeKind::Ok | OutcomeKind::Error | OutcomeKind::Timeout => self.call_started(id),
            OutcomeKind::Stopped => {}
        }
        self.done(at, outcome);
        self.fill_slots(actions);
        self.settle(actions);
    }

    /// A call that started was refused before it did anything.
    fn had_no_effect(&mut self, at: usize) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &self.stage else { return };
        let standing = &round.standings[at];
        if let (Whose::Owned(tool), Stands::Running { since: Some(_), .. }) =
            (&standing.whose, &standing.stands)
            && let Some(count) = self.effects.get_mut(&tool.name)
        {
            *count -= 1;
            if *count == 0 {
                self.effects.remove(&tool.name);
            }
        }
    }

    /// Calls whose start was not heard of may have started all the same.
    pub(super) fn suspect_running(&mut self) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &self.stage else { return };
        for standing in &round.standings {
            if let (Whose::Owned(tool), Stands::Running { since: None, .. }) =
                (&standing.whose, &standing.stands)
                && tool.effect == Effect::Write
            {
                *self.effects.entry(tool.name.clone()).or_default() += 1;
            }
        }
    }

    /// Writes down a result, for the call and for those that share it.
    pub(super) fn done(&mut self, at: usize, outcome: Outcome) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &mut self.stage else { return };
        let sharing: Vec<usize> = (0..round.standings.len())
            .filter(|i| {
                *i == at || matches!(round.standings[*i].stands, Stands::SharedWith(with) if with == at)
            })
            .collect();
        for at in sharing {
            if let Some(record) = round.standings[at].record {
                let record = &mut self.record.calls[record];
                record.ended = Some(self.now);
                record.outcome = Some(outcome.kind);
                record.result = self.plan.keeps_content().then(|| outcome.content.clone());
            }
            round.standings[at].stands = Stands::Done(outcome.clone());
        }
    }

    /// Calls whose time is over are stopped and have timed out.
    pub(super) fn end_late_calls(&mut self, actions: &mut Vec<Action>) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &self.stage else { return };
        let late: Vec<(usize, RunId, Outcome)> = round
            .standings
            .iter()
            .enumerate()
            .filter_map(|(at, standing)| {
                let (Stands::Running { run, since, deadline }, Whose::Owned(tool)) =
                    (&standing.stands, &standing.whose)
                else {
                    return None;
                };
                let had = since.map(|since| *deadline - since);
                let waited = patience(tool, &self.plan).silent;
                (self.now >= *deadline)
                    .then(|| (at, *run, timed_out(tool, since.is_some(), had.unwrap_or(waited))))
            })
            .collect();
        if late.is_empty() {
            return;
        }
        for (at, run, outcome) in late {
            actions.push(Action::Stop(run));
            self.record.limits.push(Limit::CallTimeout);
            self.done(at, outcome);
        }
        self.fill_slots(actions);
        self.settle(actions);
    }
}

/// Writes down that a call was stopped before it had a result.
pub(super) fn stopped(record: &mut Record, standing: &Standing, now: Duration) {
    if let Some(call) = standing.record.and_then(|at| record.calls.get_mut(at)) {
        call.ended = Some(now);
        call.outcome = Some(OutcomeKind::Stopped);
    }
}

fn patience(tool: &OwnedTool, plan: &TurnPlan) -> Patience {
    tool.patience(plan.rules.call_timeout_cap)
}
