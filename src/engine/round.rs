//! One round: the reply as it comes, its calls, and where each of them stands.

use std::sync::Arc;
use std::time::Duration;

use super::{AskId, CallPart, Opening, Part, RunId};
use crate::policy::plan::TurnPlan;
use crate::policy::retry::Tries;
use crate::policy::settings::InterimText;
use crate::wire::call::{Assembler, Call, MOST_CALLS, TooManyCalls, canonical};
use crate::wire::fold::{FoldedMembers, Text};
use crate::wire::message;
use crate::wire::raw::Raw;
use crate::wire::reply::{CallPiece, FinishReason, Piece};
use crate::wire::texts::Texts;
use crate::wire::tool::{Effect, Outcome, OutcomeKind, OwnedTool};

/// Whose a call is.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    /// Its name has not come, or is a wrapper's.
    Open,
    /// Ours.
    Owned(Arc<OwnedTool>),
    /// The client's, with its place among the foreign calls.
    Foreign(usize),
    /// Nobody's.
    Nobody,
}

/// Where a call of ours stands.
#[derive(Debug, Clone)]
pub(super) enum Stands {
    /// Its arguments are still coming.
    Coming,
    /// It waits for one of the turn's slots.
    Queued,
    /// It runs, or waits for a slot it shares with other turns.
    Running { run: RunId, since: Option<Duration>, deadline: Duration },
    /// An equal call before it runs for both.
    SharedWith(usize),
    /// It has its result.
    Done(Outcome),
}

/// One call of the reply.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) whose: Whose,
    pub(super) stands: Stands,
    /// Its place in the turn's record, once it is there.
    pub(super) record: Option<usize>,
    /// What makes it equal to another call: name and canonical arguments.
    pub(super) key: Option<(String, String)>,
    /// Its arguments, from when they are complete until it runs.
    pub(super) arguments: Option<String>,
    /// It counts against the calls of the turn.
    pub(super) counted: bool,
    /// It was taken for complete and then went on: whether it is, the end of the reply says.
    pub(super) reopened: bool,
    /// The size of its arguments when it was last looked whether they are complete.
    looked_at: Option<usize>,
}

impl Standing {
    const fn new() -> Self {
        Self {
            whose: Whose::Open,
            stands: Stands::Coming,
            record: None,
            key: None,
            arguments: None,
            counted: false,
            reopened: false,
            looked_at: None,
        }
    }

    /// Whether its result is one fanfold owes the upstream.
    pub(super) const fn is_ours(&self) -> bool {
        matches!(self.whose, Whose::Owned(_) | Whose::Nobody)
    }
}

/// Something to show that is held back.
#[derive(Debug)]
pub(super) enum Held {
    Part(Box<Part>),
    Texts(Texts),
}

/// A round whose question is out, or whose calls run.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) ask: AskId,
    pub(super) tries: Tries,
    /// What the reply says is not in the format the client wants: it was asked without it.
    pub(super) unformatted: bool,
    /// What the reply says is held back until it is complete. A client that waits for the whole answer sees nothing of
    /// a reply that may still be asked for again.
    withholds: bool,
    /// The reply is complete.
    pub(super) complete: bool,
    /// Something of this reply was shown.
    pub(super) shown: bool,
    /// Text of this reply was shown.
    pub(super) text_shown: bool,
    /// When the head of the answer goes out even if no content has come.
    pub(super) begin_at: Option<Duration>,
    /// What it used is being charged.
    pub(super) charging: bool,
    pub(super) standings: Vec<Standing>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Option<Raw>,
    /// Something of a reply came at all.
    pub(super) heard: bool,
    /// Parts held back until it is known whether this round is the last.
    pub(super) held: Vec<Held>,
    /// The calls for good, once the reply is complete.
    pub(super) calls: Vec<Call>,
    assembler: Assembler,
    text: Text,
    members: FoldedMembers,
    whole: Option<Raw>,
    changed: bool,
}

impl Round {
    pub(super) fn new(plan: &TurnPlan, ask: AskId, tries: Tries, unformatted: bool) -> Self {
        Self {
            withholds: plan.rules.interim_text == InterimText::Hold || !plan.stream || unformatted,
            ask,
            tries,
            unformatted,
            complete: false,
            shown: false,
            text_shown: false,
            begin_at: None,
            charging: false,
            standings: Vec::new(),
            finish: None,
            usage: None,
            heard: false,
            held: Vec::new(),
            calls: Vec::new(),
            assembler: Assembler::default(),
            text: Text::default(),
            members: FoldedMembers::default(),
            whole: None,
            changed: false,
        }
    }

    /// Takes a piece. Gives what of it the client may see, the calls whose arguments are complete now
    /// that another one has begun, and the calls that were taken for complete and then went on.
    pub(super) fn add(
        &mut self,
        piece: Piece,
        plan: &TurnPlan,
        fresh: &mut dyn FnMut() -> String,
    ) -> Result<(Part, Vec<usize>, Vec<usize>), TooManyCalls> {
        self.heard = true;
        let mut part = Part::default();
        if let Some(text) = &piece.text {
            self.text.push(text);
        }
        piece.members.iter().for_each(|m| self.members.add(m));
        self.whole = piece.message.or_else(|| self.whole.take());
        self.usage = piece.usage.or_else(|| self.usage.take());
        self.finish = piece.finish.or(self.finish);
        let (mut closed, mut changed) = (Vec::new(), Vec::new());
        for call in &piece.calls {
            let known = self.standings.len();
            let at = self.assembler.add(call, &mut *fresh)?;
            if at == known {
                self.standings.push(Standing::new());
                let coming = |i: &usize| {
                    let standing = &self.standings[*i];
                    matches!(standing.stands, Stands::Coming) && !standing.reopened
                };
                // A piece may hold many calls; each of them is closed once.
                closed = (0..known).filter(coming).collect();
            }
            let more = call.arguments.as_ref().is_some_and(|a| a.text() != "\"\"");
            if more && self.standings[at].key.is_some() {
                changed.push(at);
            }
            part.calls.extend(self.hear_call(at, call, plan));
        }
        part.text = piece.text;
        part.members = piece.members;
        part.around = piece.around;
        part.top = piece.top;
        Ok((part, closed, changed))
    }

    /// Takes more of the text of the reply.
    pub(super) fn say(&mut self, texts: &Texts) {
        self.text.push_all(texts);
    }

    /// What the reply says is held back for now.
    pub(super) const fn holds(&self) -> bool {
        self.withholds && !self.complete
    }

    /// Says whose the call is as soon as its name is there; gives what the client sees of a foreign one.
    fn hear_call(&mut self, at: usize, piece: &CallPiece, plan: &TurnPlan) -> Option<CallPart> {
        let call = &self.assembler.calls()[at];
        if let Whose::Foreign(index) = self.standings[at].whose {
            let token = |sent: &Raw| if call.is_irregular() { call.arguments_token() } else { sent.clone() };
            let arguments = piece.arguments.as_ref().map(token);
            let (members, function) = (piece.members.clone(), piece.function.clone());
            return Some(CallPart { index, opening: None, arguments, members, function });
        }
        if !matches!(self.standings[at].whose, Whose::Open) {
            return None;
        }
        let foreign = self.foreign();
        let whose = whose(call, plan, foreign);
        self.standings[at].whose = whose.clone();
        match whose {
            Whose::Foreign(index) => Some(CallPart {
                members: piece.members.clone(),
                function: piece.function.clone(),
                ..opened(call, index)
            }),
            Whose::Open | Whose::Owned(_) | Whose::Nobody => None,
        }
    }

    /// How many calls are the client's.
    pub(super) fn foreign(&self) -> usize {
        self.standings.iter().filter(|s| matches!(s.whose, Whose::Foreign(_))).count()
    }

    /// Whether fanfold owes the upstream a result.
    pub(super) fn any_of_ours(&self) -> bool {
        self.standings.iter().any(Standing::is_ours)
    }

    /// The reply is complete: opens wrappers, decides whose the remaining calls are, and gives what
    /// the client sees of foreign calls that only appear now.
    pub(super) fn complete(
        &mut self,
        plan: &TurnPlan,
        fresh: &mut dyn FnMut() -> String,
    ) -> Result<Vec<CallPart>, TooManyCalls> {
        self.changed =
            self.assembler.calls().iter().any(|c| c.sent_id.as_deref() != Some(&c.id) || c.is_irregular());
        self.open_wrappers(fresh)?;
        self.complete = true;
        let mut parts = Vec::new();
        for at in 0..self.calls.len() {
            if matches!(self.standings[at].whose, Whose::Open) {
                let mut whose = whose(&self.calls[at], plan, self.foreign());
                if matches!(whose, Whose::Open) {
                    whose = Whose::Nobody;
                }
                if let Whose::Foreign(index) = whose {
                    parts.push(opened(&self.calls[at], index));
                }
                self.standings[at].whose = whose;
            }
        }
        Ok(parts)
    }

    /// Puts the calls a wrapper holds in its place. Each holds so many at most, and so does the reply; if they are
    /// more, nothing has changed.
    fn open_wrappers(&mut self, fresh: &mut dyn FnMut() -> String) -> Result<(), TooManyCalls> {
        let opened: Vec<_> = self.assembler.calls().iter().map(Call::unwrapped).collect();
        if opened.iter().map(|inner| inner.as_ref().map_or(1, Vec::len)).sum::<usize>() > MOST_CALLS {
            return Err(TooManyCalls);
        }
        let (mut calls, mut standings, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        let assembled = std::mem::take(&mut self.assembler).into_calls().into_iter();
        for ((call, standing), inner) in assembled.zip(std::mem::take(&mut self.standings)).zip(opened) {
            moved.push(calls.len());
            if let Some(inner) = inner {
                self.changed = true;
                for (name, arguments) in inner {
                    calls.push(Call::made(fresh(), name, &arguments));
                    standings.push(Standing::new());
                }
            } else {
                calls.push(call);
                standings.push(standing);
            }
        }
        for standing in &mut standings {
            if let Stands::SharedWith(at) = &mut standing.stands {
                *at = moved[*at];
            }
        }
        (self.calls, self.standings) = (calls, standings);
        Ok(())
    }

    /// The call at `at`, complete or not.
    pub(super) fn call(&self, at: usize) -> &Call {
        if self.complete { &self.calls[at] } else { &self.assembler.calls()[at] }
    }

    /// Whether the call at `at` may start before the reply is complete. Without any arguments it is
    /// not known to be complete: some servers open all calls first.
    pub(super) fn may_start_early(&mut self, at: usize) -> bool {
        let Whose::Owned(tool) = &self.standings[at].whose else { return false };
        if tool.effect != Effect::Read || self.complete || !self.assembler.calls()[at].has_arguments() {
            return false;
        }
        let size = Some(self.assembler.calls()[at].size());
        // Broken arguments are not looked at again for each call that follows.
        let news = std::mem::replace(&mut self.standings[at].looked_at, size) != size;
        news && self.assembler.parses(at)
    }

    /// An earlier equal call of a tool that only reads, whose run can answer this one too.
    pub(super) fn twin(&self, at: usize) -> Option<usize> {
        let Whose::Owned(tool) = &self.standings[at].whose else { return None };
        if tool.effect != Effect::Read {
            return None;
        }
        let key = self.standings[at].key.as_ref();
        (0..at).find(|i| {
            self.standings[*i].key.as_ref() == key
                && !matches!(self.standings[*i].stands, Stands::SharedWith(_) | Stands::Coming)
        })
    }

    /// Remembers what makes the call equal to another.
    pub(super) fn mark(&mut self, at: usize, arguments: &str) {
        let key = (self.call(at).name.clone(), canonical(arguments).into_owned());
        self.standings[at].key = Some(key);
    }

    /// The runs that are out.
    pub(super) fn running(&self) -> impl Iterator<Item = (usize, RunId)> + '_ {
        self.standings.iter().enumerate().filter_map(|(at, s)| match s.stands {
            Stands::Running { run, .. } => Some((at, run)),
            Stands::Coming | Stands::Queued | Stands::SharedWith(_) | Stands::Done(_) => None,
        })
    }

    /// Whether every call of ours has its result.
    pub(super) fn settled(&self) -> bool {
        self.complete
            && self.standings.iter().filter(|s| s.is_ours()).all(|s| matches!(s.stands, Stands::Done(_)))
    }

    /// The result of a call of ours.
    pub(super) fn outcome(&self, at: usize) -> Option<&Outcome> {
        match &self.standings[at].stands {
            Stands::Done(outcome) => Some(outcome),
            Stands::Coming | Stands::Queued | Stands::Running { .. } | Stands::SharedWith(_) => None,
        }
    }

    /// The assistant message, as it goes back.
    pub(super) fn assistant(&self) -> Raw {
        message::assistant(&message::Said {
            whole: self.whole.as_ref(),
            text: &self.text,
            members: &self.members,
            calls: &self.calls,
            changed: self.changed,
        })
    }
}

/// Whose a call is; `foreign` calls are the client's already.
fn whose(call: &Call, plan: &TurnPlan, foreign: usize) -> Whose {
    if call.is_custom() {
        return Whose::Foreign(foreign);
    }
    if call.name.is_empty() || call.name == crate::wire::call::WRAPPER {
        return Whose::Open;
    }
    if let Some(tool) = plan.owned.get(call.name.as_str()) {
        return Whose::Owned(tool.clone());
    }
    // Where fanfold adds nothing, a name it does not know is between client and upstream.
    if plan.owned.is_empty() || plan.foreign.contains(&call.name) {
        Whose::Foreign(foreign)
    } else {
        Whose::Nobody
    }
}

/// A foreign call as it is first shown: all of it that has come.
fn opened(call: &Call, index: usize) -> CallPart {
    CallPart {
        index,
        opening: Some(Opening { id: call.id.clone(), kind: call.kind().cloned(), name: call.name.clone() }),
        arguments: (!call.is_custom()).then(|| call.arguments_token()),
        members: Vec::new(),
        function: Vec::new(),
    }
}

/// The sentence for a call of a tool that is not there.
pub(super) fn unknown(name: &str, plan: &TurnPlan) -> Outcome {
    const MOST_NAMES: usize = 40;
    let names: Vec<&str> = plan
        .owned
        .iter()
        .map(|tool| &*tool.name)
        .chain(plan.foreign.iter().map(String::as_str))
        .take(MOST_NAMES)
        .collect();
    let name: String = name.chars().take(100).collect();
    Outcome::failed(
        OutcomeKind::Denied,
        &format!("there is no tool `{name}`; the tools are: {}", names.join(", ")),
    )
}
