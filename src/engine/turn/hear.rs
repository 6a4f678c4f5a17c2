//! Hearing a reply and showing it: at once, or when it is known whether its round is the last.

use super::{Stage, Turn};
use crate::engine::round::Held;
use crate::engine::{Action, Limit, Part, Show};
use crate::policy::settings::InterimText;
use crate::wire::call::TooManyCalls;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::{Kind, Member};
use crate::wire::reply::{FinishReason, Head, Piece};
use crate::wire::texts::Texts;

impl Turn {
    pub(super) fn hear(&mut self, piece: Piece, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let head = piece.head.clone();
        if !round.heard
            && let Some(record) = self.record.rounds.last_mut()
        {
            record.first = Some(self.now);
        }
        let ids = &mut self.ids;
        let (part, closed, changed) = match round.add(piece, &self.plan, &mut || ids.call_id()) {
            Ok(heard) => heard,
            Err(TooManyCalls) => {
                actions.push(Action::Cancel);
                return self.too_many_calls(actions);
            }
        };
        self.begin(&head, actions);
        self.show(part, actions);
        for at in closed {
            self.start_early(at, actions);
        }
        for at in changed {
            self.reopen(at, actions);
        }
    }

    fn too_many_calls(&mut self, actions: &mut Vec<Action>) {
        self.record.limits.push(Limit::CallsInReply);
        let failure = Failure::new(FailureKind::TooLarge, "too many calls in one reply");
        self.ask_failed(&failure, actions);
    }

    /// Hears texts and nothing else.
    pub(super) fn hear_texts(&mut self, texts: Texts, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let holds = round.holds();
        // What comes first is more than a text: with it the reply begins.
        let begins = if holds { round.held.is_empty() } else { !round.text_shown };
        if begins {
            let (first, others) = texts.split_first();
            self.hear(Piece { text: first, ..Piece::default() }, actions);
            if let Some(others) = others {
                self.hear_texts(others, actions);
            }
            return;
        }
        round.say(&texts);
        if holds {
            round.held.push(Held::Texts(texts));
        } else {
            self.show_texts(texts, actions);
        }
    }

    /// Shows texts. Once text of this reply was shown, more of it is shown as it is.
    fn show_texts(&mut self, texts: Texts, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        if round.text_shown && self.top_news.is_empty() {
            return actions.push(Action::Show(Show::Texts(texts)));
        }
        let (first, others) = texts.split_first();
        self.show(Part { text: first, ..Part::default() }, actions);
        if let Some(others) = others {
            self.show_texts(others, actions);
        }
    }

    pub(super) fn begin(&mut self, head: &Head, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.begun, true) {
            actions.push(Action::Show(Show::Begin(head.clone())));
        }
        if let Stage::Round(round) = &mut self.stage {
            round.begin_at = None;
        }
    }

    /// Shows a part now, or holds it back until it is known whether the round is the last.
    pub(super) fn show(&mut self, mut part: Part, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let says = |member: &Member| member.value.kind() != Kind::Null;
        let told = part.text.is_some() || part.members.iter().any(says) || !part.calls.is_empty();
        for member in std::mem::take(&mut part.top) {
            if self.top.get(&member.name()) != Some(&member.value) {
                let value = member.value.clone();
                self.top_news.put(&member, value);
            }
        }
        if !told && !part.around.iter().any(says) {
            return;
        }
        part.round = self.round;
        if round.holds() {
            round.held.push(Held::Part(Box::new(part)));
            return;
        }
        if part.text.is_some() {
            let first = !std::mem::replace(&mut round.text_shown, true);
            part.blank_line = self.text_shown && first;
            self.text_shown = true;
        }
        round.shown |= told;
        part.top = self.take_top();
        actions.push(Action::Show(Show::Part(Box::new(part))));
    }

    /// The members of the reply that are new or changed since the client saw some last. Servers
    /// repeat them in every chunk, also in chunks that say nothing else.
    pub(super) fn take_top(&mut self) -> Vec<Member> {
        let news = self.top_news.take();
        for member in &news {
            self.top.put(member, member.value.clone());
        }
        news
    }

    fn show_held(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        for held in std::mem::take(&mut round.held) {
            match held {
                Held::Part(part) => self.show(*part, actions),
                Held::Texts(texts) => self.show_texts(texts, actions),
            }
        }
    }

    pub(super) fn reply_ended(&mut self, done: bool, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        if !round.heard {
            return self
                .ask_failed(&Failure::new(FailureKind::InvalidReply, "a reply without content"), actions);
        }
        if round.finish.is_none() && !done {
            return self.ask_failed(&Failure::new(FailureKind::Truncated, "ended without a finish"), actions);
        }
        let ids = &mut self.ids;
        let parts = round.complete(&self.plan, &mut || ids.call_id());
        let tokens = self.usage.add(round.usage.as_ref());
        if let Some(record) = self.record.rounds.last_mut() {
            record.ended = Some(self.now);
            record.usage.clone_from(&round.usage);
            record.tokens = tokens;
            record.finish = round.finish.map(FinishReason::word);
        }
        if let Some(usage) = round.usage.clone().filter(|_| self.plan.rules.charged) {
            round.charging = true;
            actions.push(Action::Charge(self.round, usage));
        }
        let Ok(parts) = parts else { return self.too_many_calls(actions) };
        let final_text = !round.any_of_ours() || round.foreign() > 0 || self.is_last;
        let in_form = !round.unformatted || round.foreign() > 0;
        if in_form && (final_text || self.plan.rules.interim_text == InterimText::Stream) {
            self.show_held(actions);
        }
        if !parts.is_empty() {
            self.show(Part { calls: parts, ..Part::default() }, actions);
        }
        self.take_calls(actions);
        self.settle(actions);
    }
}
