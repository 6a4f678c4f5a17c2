//! When every call of a round has its result: another round, a mixed reply to park, or the end.

use super::words::{finish_reason, note, sentence};
use super::{Stage, Turn};
use crate::engine::{Action, Finish, Limit, Parked, Part, Show, Slot};
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::message;
use crate::wire::raw::Raw;
use crate::wire::reply::{FinishReason, Head};
use crate::wire::tool::OutcomeKind;

impl Turn {
    /// When the reply is complete and every call of ours has its result: what next.
    pub(super) fn settle(&mut self, actions: &mut Vec<Action>) {
        match &self.stage {
            Stage::Leaving(round) if round.running().next().is_none() => self.finish(Finish::Gone, actions),
            Stage::Round(round) if round.settled() => self.round_settled(actions),
            Stage::New | Stage::Waiting { .. } | Stage::Round(_) | Stage::Leaving(_) | Stage::Done => {}
        }
    }

    pub(super) fn round_settled(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        match (round.any_of_ours(), round.foreign() > 0) {
            // What the round used decides about the next one.
            (false, false) if round.unformatted && round.charging => {}
            // The answer is there, but had to be asked for without the client's format.
            (false, false) if round.unformatted => self.format(actions),
            (false, foreign) => {
                let reason = finish_reason(round.finish, foreign);
                if self.is_last && !self.formatting && !foreign && !self.text_shown {
                    return self.end_at_limit(actions);
                }
                self.answer(reason, actions);
            }
            (true, true) => self.park(actions),
            // Asked for an answer in a format, without tools, it still calls some.
            (true, false) if self.formatting => {
                let failure = Failure::new(FailureKind::InvalidReply, "calls where no tools were sent");
                self.fail(failure.reply, actions);
            }
            (true, false) if self.is_last => self.end_at_limit(actions),
            // What the round used decides about the next one.
            (true, false) if round.charging => {}
            (true, false) => self.go_on(actions),
        }
    }

    /// What a round used was charged; with nothing left the next round is the last one.
    pub(super) fn charged(&mut self, of: u32, reached: Option<Limit>, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        if of != self.round || !std::mem::replace(&mut round.charging, false) {
            return;
        }
        let goes_on = round.any_of_ours() && round.foreign() == 0 && !self.is_last;
        if let Some(limit) = reached.filter(|_| goes_on && self.last_because.is_none()) {
            self.last_because = Some(limit);
            self.record.limits.push(limit);
        }
        self.settle(actions);
    }

    /// Gives the results back to the model.
    pub(super) fn go_on(&mut self, actions: &mut Vec<Action>) {
        let limits = self.plan.rules.limits.clone();
        self.count_repeated();
        if self.last_because.is_none() && self.times_repeated >= limits.identical_errors {
            self.last_because = Some(Limit::IdenticalErrors);
            self.record.limits.push(Limit::IdenticalErrors);
        }
        if self.last_because.is_none() && self.round >= limits.rounds {
            self.last_because = Some(Limit::Rounds);
            self.record.limits.push(Limit::Rounds);
        }
        let Stage::Round(round) = &self.stage else { return };
        let mut messages = vec![round.assistant()];
        let last = round.standings.len().saturating_sub(1);
        for (at, call) in round.calls.iter().enumerate() {
            let content = round.outcome(at).map_or("", |outcome| &outcome.content);
            let note = self.last_because.filter(|_| at == last).map(|limit| note(limit, &self.plan));
            let content = note.map_or_else(|| content.to_owned(), |note| format!("{content}\n\n{note}"));
            messages.push(message::tool(&call.id, &call.name, &content));
        }
        self.appended.extend(messages);
        self.next_round(actions);
    }

    pub(super) fn count_repeated(&mut self) {
        let Stage::Round(round) = &self.stage else { return };
        for (at, standing) in round.standings.iter().enumerate() {
            let (Some(outcome), Some((name, arguments))) = (round.outcome(at), &standing.key) else {
                continue;
            };
            // A call that shared another's run is that run, not one more in the row.
            if standing.record.is_some_and(|at| self.record.calls[at].shared) {
                continue;
            }
            if outcome.kind == OutcomeKind::Ok {
                self.repeated = None;
                self.times_repeated = 0;
                continue;
            }
            let this = (name.clone(), arguments.clone(), outcome.content.clone());
            if self.repeated.as_ref() == Some(&this) {
                self.times_repeated += 1;
            } else {
                self.times_repeated = 1;
                self.repeated = Some(this);
            }
        }
    }

    /// A mixed reply: our results are kept until the client comes back with its own.
    pub(super) fn park(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        self.record.mixed = true;
        let slot = |(at, call): (usize, &crate::wire::call::Call)| Slot {
            id: call.id.clone(),
            ours: round.outcome(at).map(|outcome| message::tool(&call.id, &call.name, &outcome.content)),
        };
        let parked = Parked {
            before: self.appended.clone(),
            assistant: round.assistant(),
            slots: round.calls.iter().enumerate().map(slot).collect(),
        };
        let reason = finish_reason(round.finish, true);
        actions.push(Action::Park(parked));
        self.answer(reason, actions);
    }

    /// Ends with an answer; what the upstream said last about its reply goes first.
    pub(super) fn answer(&mut self, reason: FinishReason, actions: &mut Vec<Action>) {
        let top = self.take_top();
        if !top.is_empty() {
            actions.push(Action::Show(Show::Part(Box::new(Part {
                round: self.round,
                top,
                ..Part::default()
            }))));
        }
        self.finish(Finish::Answer(reason), actions);
    }

    /// The model still wants to call tools, or says nothing, in the last round.
    pub(super) fn end_at_limit(&mut self, actions: &mut Vec<Action>) {
        let limit = self.last_because.unwrap_or(Limit::Rounds);
        let blank_line = self.text_shown;
        let text = Raw::string(&sentence(limit, &self.plan));
        let part = Part { round: self.round, blank_line, text: Some(text), ..Part::default() };
        self.begin(&Head::default(), actions);
        self.text_shown = true;
        actions.push(Action::Show(Show::Part(Box::new(part))));
        self.finish(Finish::Answer(FinishReason::Length), actions);
    }
}
