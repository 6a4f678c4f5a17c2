//! The state machine itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::record::{CallRecord, Record, RoundRecord};
use super::round::{Round, Stands, Whose, unknown};
use super::{Action, Ask, AskId, Elapsed, Finish, Input, Limit, Parked, Part, Run, RunId, Show, Slot};
use crate::policy::plan::TurnPlan;
use crate::policy::settings::InterimText;
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::message;
use crate::wire::raw::{Member, Members, Raw};
use crate::wire::reply::{FinishReason, Head, Piece};
use crate::wire::request::Choice;
use crate::wire::tool::{Effect, OnDisconnect, Outcome, OutcomeKind, OwnedTool};
use crate::wire::usage::Sum;

/// When the head of a streamed answer goes out although the upstream, which accepted, says nothing.
const BEGIN_AFTER: Duration = Duration::from_secs(10);
/// The first pause before a round is asked again; it doubles.
const BACK_OFF: Duration = Duration::from_millis(200);
/// How often one round is asked again at most, whatever went wrong.
const MOST_AGAIN: u8 = 2;

/// Where the turn stands.
#[derive(Debug)]
enum Stage {
    /// Nothing happened yet.
    New,
    /// The round is asked again when its time comes.
    Waiting { at: Duration, attempt: u8 },
    /// A question is out, or its calls run.
    Round(Box<Round>),
    /// The client is gone; calls that may not be stopped run to their end.
    Leaving(Box<Round>),
    /// Over.
    Done,
}

/// One turn.
#[derive(Debug)]
pub struct Turn {
    plan: Arc<TurnPlan>,
    ids: Ids,
    now: Elapsed,
    stage: Stage,
    round: u32,
    appended: Vec<Raw>,
    usage: Sum,
    calls: u32,
    /// Tools with effects that were dispatched, by name.
    effects: BTreeSet<Arc<str>>,
    /// The next round is the last one, because of this limit.
    last_because: Option<Limit>,
    /// The round that is asked now is the last one.
    is_last: bool,
    /// The last failed call's name, arguments and error, and how often it came in a row.
    repeated: Option<(String, String, String)>,
    times_repeated: u32,
    begun: bool,
    text_shown: bool,
    /// Members of the reply as the client saw them last, and those it has not seen.
    top: Members,
    top_news: Members,
    /// The upstream refused the parameter in this turn.
    omit_parallel: bool,
    next_ask: AskId,
    next_run: RunId,
    record: Record,
}

impl Turn {
    /// A turn for this plan. `seed` makes the ids and the jitter.
    #[must_use]
    pub fn new(plan: Arc<TurnPlan>, seed: u64) -> Self {
        Self {
            plan,
            ids: Ids(seed),
            now: Duration::ZERO,
            stage: Stage::New,
            round: 0,
            appended: Vec::new(),
            usage: Sum::default(),
            calls: 0,
            effects: BTreeSet::new(),
            last_because: None,
            is_last: false,
            repeated: None,
            times_repeated: 0,
            begun: false,
            text_shown: false,
            top: Members::default(),
            top_news: Members::default(),
            omit_parallel: false,
            next_ask: 0,
            next_run: 0,
            record: Record::default(),
        }
    }

    /// The messages to append to the client's own.
    #[must_use]
    pub fn appended(&self) -> &[Raw] {
        &self.appended
    }

    /// What the rounds used.
    #[must_use]
    pub const fn usage(&self) -> &Sum {
        &self.usage
    }

    /// What happened so far.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it is over.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// When the next [`Input::Tick`] is due; `None` once the turn is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Elapsed> {
        let whole = self.plan.rules.limits.turn_timeout.0;
        let of_calls = |round: &Round| {
            round
                .standings
                .iter()
                .filter_map(|s| match s.stands {
                    Stands::Running { deadline, .. } => Some(deadline),
                    Stands::Coming | Stands::Queued | Stands::SharedWith(_) | Stands::Done(_) => None,
                })
                .min()
        };
        match &self.stage {
            Stage::Done => None,
            Stage::New => Some(whole),
            Stage::Waiting { at, .. } => Some(whole.min(*at)),
            Stage::Round(round) => {
                Some(whole.min(of_calls(round).unwrap_or(whole)).min(round.begin_at.unwrap_or(whole)))
            }
            Stage::Leaving(round) => Some(whole.min(of_calls(round).unwrap_or(whole))),
        }
    }

    /// Takes one input at a time since the turn began that never goes back.
    pub fn step(&mut self, input: Input, now: Elapsed, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        match input {
            Input::Begin => {
                if matches!(self.stage, Stage::New) && self.round == 0 {
                    self.next_round(actions);
                }
            }
            Input::Accepted(ask) => {
                let waits = self.plan.stream && !self.begun;
                if let Some(round) = self.asking(ask) {
                    round.begin_at = waits.then_some(now + BEGIN_AFTER);
                }
            }
            Input::Piece(ask, piece) => {
                if self.asking(ask).is_some() {
                    self.hear(*piece, actions);
                }
            }
            Input::Ended { ask, done } => {
                if self.asking(ask).is_some() {
                    self.reply_ended(done, actions);
                }
            }
            Input::Failed(ask, failure) => {
                if self.asking(ask).is_some() {
                    self.ask_failed(&failure, actions);
                }
            }
            Input::Started(run) => self.call_started(run),
            Input::Outcome(run, outcome) => self.call_ended(run, outcome, actions),
            Input::Tick => self.tick(actions),
            Input::ClientGone => self.leave(actions),
            Input::Shutdown => {
                self.fail(ErrorReply::shutting_down(), actions);
            }
        }
    }

    /// The round whose reply is still coming, if this is its ask.
    fn asking(&mut self, ask: AskId) -> Option<&mut Round> {
        match &mut self.stage {
            Stage::Round(round) if round.ask == ask && !round.complete => Some(round),
            Stage::New | Stage::Waiting { .. } | Stage::Round(_) | Stage::Leaving(_) | Stage::Done => None,
        }
    }

    // ---- asking

    fn next_round(&mut self, actions: &mut Vec<Action>) {
        self.round += 1;
        self.is_last = self.last_because.is_some();
        self.record.rounds.push(RoundRecord { asked: self.now, ..RoundRecord::default() });
        self.ask(0, actions);
    }

    fn ask(&mut self, attempt: u8, actions: &mut Vec<Action>) {
        self.next_ask += 1;
        let drop_tools = self.is_last && !self.plan.habits.honours_tool_choice;
        let choice = match (self.is_last, drop_tools) {
            (_, true) => Choice::Drop,
            (true, false) => Choice::None,
            (false, false) if self.no_tools() => Choice::Drop,
            (false, false) if self.round > 1 && self.plan.forcing => Choice::Auto,
            (false, false) => Choice::Keep,
        };
        let parallel = self.plan.decision.send.filter(|_| !drop_tools && !self.omit_parallel);
        let id = self.next_ask;
        self.stage = Stage::Round(Box::new(Round::new(id, attempt)));
        actions.push(Action::Ask(Ask { id, round: self.round, attempt, parallel, choice, drop_tools }));
    }

    fn no_tools(&self) -> bool {
        self.plan.owned.is_empty() && self.plan.foreign.is_empty() && !self.plan.legacy_functions
    }

    fn ask_failed(&mut self, failure: &Failure, actions: &mut Vec<Action>) {
        let Stage::Round(round) = std::mem::replace(&mut self.stage, Stage::New) else { return };
        let attempt = round.attempt;
        let untold = !round.shown;
        for (at, run) in round.running().collect::<Vec<_>>() {
            actions.push(Action::Stop(run));
            stopped(&mut self.record, &round.standings[at], self.now);
        }
        if failure.kind == FailureKind::ParallelRefused
            && self.plan.decision.send.is_some()
            && !self.omit_parallel
        {
            self.omit_parallel = true;
            actions.push(Action::LearnNoParallel);
            self.ask(attempt, actions);
            return;
        }
        let again = failure.kind.again().min(MOST_AGAIN);
        let pause = self.pause(failure, attempt);
        let in_time = self.now + pause < self.plan.rules.limits.turn_timeout.0;
        if untold
            && attempt < again
            && failure.may_wait()
            && in_time
            && failure.kind != FailureKind::ParallelRefused
        {
            self.stage = Stage::Waiting { at: self.now + pause, attempt: attempt + 1 };
            if let Some(round) = self.record.rounds.last_mut() {
                round.again = attempt + 1;
            }
            return;
        }
        self.fail(failure.reply.clone(), actions);
    }

    /// How long to wait before asking again: what the upstream wishes, else twice as long each time,
    /// with jitter. The first reconnect after a broken connection does not wait.
    fn pause(&mut self, failure: &Failure, attempt: u8) -> Duration {
        if let Some(wait) = failure.wait {
            return wait;
        }
        if failure.kind == FailureKind::Reset && attempt == 0 {
            return Duration::ZERO;
        }
        let full = BACK_OFF * 2u32.pow(attempt.into());
        full / 2 + full.mul_f64(0.5 * self.ids.fraction())
    }

    // ---- hearing

    fn hear(&mut self, piece: Piece, actions: &mut Vec<Action>) {
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
            Err(crate::wire::call::TooManyCalls) => {
                self.record.limits.push(Limit::CallsInReply);
                actions.push(Action::Cancel);
                let failure = Failure::new(FailureKind::TooLarge, "too many calls in one reply");
                self.ask_failed(&failure, actions);
                return;
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

    fn begin(&mut self, head: &Head, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.begun, true) {
            actions.push(Action::Show(Show::Begin(head.clone())));
        }
        if let Stage::Round(round) = &mut self.stage {
            round.begin_at = None;
        }
    }

    /// Shows a part now, or holds it back until it is known whether the round is the last.
    fn show(&mut self, mut part: Part, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let told = part.text.is_some() || !part.members.is_empty() || !part.calls.is_empty();
        for member in std::mem::take(&mut part.top) {
            if self.top.find(&member.name()) != Some(&member.value) {
                self.top_news.set(&member.name(), member.value.clone());
            }
        }
        if !told && part.around.is_empty() {
            return;
        }
        if self.plan.rules.interim_text == InterimText::Hold && !round.complete {
            round.held.push(part);
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
    fn take_top(&mut self) -> Vec<Member> {
        let news = std::mem::take(&mut self.top_news);
        for member in &news {
            self.top.set(&member.name(), member.value.clone());
        }
        news.iter().cloned().collect()
    }

    fn show_held(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        for part in std::mem::take(&mut round.held) {
            self.show(part, actions);
        }
    }

    fn reply_ended(&mut self, done: bool, actions: &mut Vec<Action>) {
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
        self.usage.add(round.usage.as_ref());
        if let Some(record) = self.record.rounds.last_mut() {
            record.ended = Some(self.now);
            record.usage.clone_from(&round.usage);
            record.finish = round.finish.map(FinishReason::word);
        }
        let final_text = !round.any_of_ours() || round.foreign() > 0 || self.is_last;
        if final_text {
            self.show_held(actions);
        }
        if !parts.is_empty() {
            self.show(Part { calls: parts, ..Part::default() }, actions);
        }
        self.take_calls(actions);
        self.settle(actions);
    }

    // ---- running

    /// Every call of ours that has not started is queued, shared or refused.
    fn take_calls(&mut self, actions: &mut Vec<Action>) {
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

    fn start_early(&mut self, at: usize, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        if !self.is_last && round.may_start_early(at) {
            self.take_call(at);
            self.fill_slots(actions);
        }
    }

    /// Decides about one call whose arguments are complete.
    fn take_call(&mut self, at: usize) {
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
            known,
            arguments: self.plan.transcript.then_some(arguments),
            queued: self.now,
            started: None,
            ended: None,
            outcome: None,
            result: None,
            shared: false,
        });
        round.standings[at].record = Some(self.record.calls.len() - 1);
        round.mark(at);
        if let Some(refusal) = self.refusal(at) {
            self.done(at, refusal);
            return;
        }
        self.calls += 1;
        let Stage::Round(round) = &mut self.stage else { return };
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
            None => round.standings[at].stands = Stands::Queued,
        }
    }

    /// Why a call is not run, if it is not.
    fn refusal(&mut self, at: usize) -> Option<Outcome> {
        let Stage::Round(round) = &self.stage else { return None };
        let call = round.call(at);
        if self.is_last {
            return Some(Outcome::failed(OutcomeKind::Stopped, "not run: the limit of this turn is reached"));
        }
        let most = self.plan.rules.limits.calls_per_turn;
        if self.calls >= most {
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
        if !call.parses() {
            let why = "the arguments are not valid JSON; nothing was run. Send the call again with arguments that are one JSON object";
            return Some(Outcome::failed(OutcomeKind::InvalidArguments, why));
        }
        None
    }

    /// Starts queued calls, in order, while there are slots.
    fn fill_slots(&mut self, actions: &mut Vec<Action>) {
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
            if tool.effect == Effect::Write {
                self.effects.insert(tool.name.clone());
            }
            let call = round.call(at);
            let run = Run {
                id: self.next_run,
                round: self.round,
                call_id: call.id.clone(),
                arguments: call.arguments(),
                tool: tool.clone(),
            };
            let deadline = self.now + timeout(&tool, &self.plan);
            round.standings[at].stands = Stands::Running { run: self.next_run, since: None, deadline };
            actions.push(Action::Run(run));
        }
    }

    /// A call that started early and whose arguments then went on is stopped; it starts anew when
    /// the reply is complete.
    fn reopen(&mut self, at: usize, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &mut self.stage else { return };
        let standing = &mut round.standings[at];
        if let Stands::Running { run, .. } = standing.stands {
            actions.push(Action::Stop(run));
        }
        stopped(&mut self.record, standing, self.now);
        standing.stands = Stands::Coming;
        standing.key = None;
        for other in &mut round.standings {
            if matches!(other.stands, Stands::SharedWith(with) if with == at) {
                other.stands = Stands::Queued;
            }
        }
        self.fill_slots(actions);
    }

    fn call_started(&mut self, id: RunId) {
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
            *deadline = now + timeout(tool, &plan);
            if let Some(record) = standing.record {
                self.record.calls[record].started = Some(now);
            }
        }
    }

    fn call_ended(&mut self, id: RunId, outcome: Outcome, actions: &mut Vec<Action>) {
        let (Stage::Round(round) | Stage::Leaving(round)) = &self.stage else { return };
        let Some((at, _)) = round.running().find(|(_, run)| *run == id) else { return };
        self.done(at, outcome);
        self.fill_slots(actions);
        self.settle(actions);
    }

    /// Writes down a result, for the call and for those that share it.
    fn done(&mut self, at: usize, outcome: Outcome) {
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
                record.result = self.plan.transcript.then(|| outcome.content.clone());
            }
            round.standings[at].stands = Stands::Done(outcome.clone());
        }
    }

    // ---- settling

    /// When the reply is complete and every call of ours has its result: what next.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        match &self.stage {
            Stage::Leaving(round) if round.running().next().is_none() => self.finish(Finish::Gone, actions),
            Stage::Round(round) if round.settled() => self.round_settled(actions),
            Stage::New | Stage::Waiting { .. } | Stage::Round(_) | Stage::Leaving(_) | Stage::Done => {}
        }
    }

    fn round_settled(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        match (round.any_of_ours(), round.foreign() > 0) {
            (false, foreign) => {
                let reason = finish_reason(round.finish, foreign);
                if self.is_last && !foreign && !self.text_shown {
                    return self.end_at_limit(actions);
                }
                self.answer(reason, actions);
            }
            (true, true) => self.park(actions),
            (true, false) if self.is_last => self.end_at_limit(actions),
            (true, false) => self.go_on(actions),
        }
    }

    /// Gives the results back to the model.
    fn go_on(&mut self, actions: &mut Vec<Action>) {
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
        let mut messages = vec![round.assistant(&self.plan)];
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

    fn count_repeated(&mut self) {
        let Stage::Round(round) = &self.stage else { return };
        for (at, standing) in round.standings.iter().enumerate() {
            let (Some(outcome), Some((name, arguments))) = (round.outcome(at), &standing.key) else {
                continue;
            };
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
    fn park(&mut self, actions: &mut Vec<Action>) {
        let Stage::Round(round) = &self.stage else { return };
        self.record.mixed = true;
        let slot = |(at, call): (usize, &crate::wire::call::Call)| Slot {
            id: call.id.clone(),
            ours: round.outcome(at).map(|outcome| message::tool(&call.id, &call.name, &outcome.content)),
        };
        let parked = Parked {
            before: self.appended.clone(),
            assistant: round.assistant(&self.plan),
            slots: round.calls.iter().enumerate().map(slot).collect(),
        };
        let reason = finish_reason(round.finish, true);
        actions.push(Action::Park(parked));
        self.answer(reason, actions);
    }

    /// Ends with an answer; what the upstream said last about its reply goes first.
    fn answer(&mut self, reason: FinishReason, actions: &mut Vec<Action>) {
        let top = self.take_top();
        if !top.is_empty() {
            actions.push(Action::Show(Show::Part(Box::new(Part { top, ..Part::default() }))));
        }
        self.finish(Finish::Answer(reason), actions);
    }

    /// The model still wants to call tools, or says nothing, in the last round.
    fn end_at_limit(&mut self, actions: &mut Vec<Action>) {
        let limit = self.last_because.unwrap_or(Limit::Rounds);
        let blank_line = self.text_shown;
        let text = Raw::string(&sentence(limit, &self.plan));
        let part = Part { blank_line, text: Some(text), ..Part::default() };
        self.begin(&Head::default(), actions);
        self.text_shown = true;
        actions.push(Action::Show(Show::Part(Box::new(part))));
        self.finish(Finish::Answer(FinishReason::Length), actions);
    }

    // ---- time and ends

    fn tick(&mut self, actions: &mut Vec<Action>) {
        if self.is_done() {
            return;
        }
        if self.now >= self.plan.rules.limits.turn_timeout.0 {
            self.record.limits.push(Limit::TurnTimeout);
            let seconds = self.plan.rules.limits.turn_timeout;
            let error = ErrorReply::new(
                504,
                "turn_timeout",
                format!(
                    "The answer was not complete within {seconds}, this gateway's limit for a whole request. Ask for less at once."
                ),
            );
            return self.fail(error, actions);
        }
        if let Stage::Waiting { at, attempt } = self.stage
            && self.now >= at
        {
            return self.ask(attempt, actions);
        }
        if let Stage::Round(round) = &self.stage
            && round.begin_at.is_some_and(|at| self.now >= at)
        {
            self.begin(&Head::default(), actions);
        }
        self.end_late_calls(actions);
    }

    fn end_late_calls(&mut self, actions: &mut Vec<Action>) {
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
                (self.now >= *deadline)
                    .then(|| (at, *run, timed_out(tool, since.is_some(), timeout(tool, &self.plan))))
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

    /// The client left: nothing new starts, what may be stopped is stopped.
    fn leave(&mut self, actions: &mut Vec<Action>) {
        let mut round = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Round(round) => round,
            Stage::Leaving(round) => {
                self.stage = Stage::Leaving(round);
                return;
            }
            Stage::Done => return,
            Stage::New | Stage::Waiting { .. } => return self.finish(Finish::Gone, actions),
        };
        if !round.complete {
            actions.push(Action::Cancel);
        }
        for at in 0..round.standings.len() {
            let standing = &mut round.standings[at];
            let keep =
                matches!(&standing.whose, Whose::Owned(tool) if tool.on_disconnect == OnDisconnect::Finish);
            match standing.stands {
                Stands::Running { .. } if keep => continue,
                Stands::Running { run, .. } => actions.push(Action::Stop(run)),
                Stands::Coming | Stands::Queued | Stands::SharedWith(_) => {}
                Stands::Done(_) => continue,
            }
            stopped(&mut self.record, standing, self.now);
            standing.stands = Stands::Done(Outcome::failed(OutcomeKind::Stopped, "the client left"));
        }
        self.stage = Stage::Leaving(round);
        self.settle(actions);
    }

    /// Ends the turn with an error; after a call with effects, with one that invites no repetition.
    fn fail(&mut self, error: ErrorReply, actions: &mut Vec<Action>) {
        if self.is_done() {
            return;
        }
        if let Some(round) = self.record.rounds.last_mut() {
            round.ended.get_or_insert(self.now);
        }
        let error = if self.effects.is_empty() { error } else { self.after_effects(&error) };
        let finish =
            if matches!(self.stage, Stage::Leaving(_)) { Finish::Gone } else { Finish::Failed(error) };
        self.finish(finish, actions);
    }

    fn after_effects(&self, error: &ErrorReply) -> ErrorReply {
        let names: Vec<&str> = self.effects.iter().map(|name| &**name).collect();
        let message = format!(
            "The request failed after tools with effects were called: {}. Repeating it could repeat those effects, \
             so check them first. What went wrong: {}",
            names.join(", "),
            error.message
        );
        ErrorReply::new(424, "turn_failed_after_tools", message).never_retry()
    }

    fn finish(&mut self, finish: Finish, actions: &mut Vec<Action>) {
        if let Stage::Round(round) | Stage::Leaving(round) = &self.stage {
            let asking = matches!(&self.stage, Stage::Round(round) if !round.complete);
            if asking && !matches!(actions.last(), Some(Action::Cancel)) {
                actions.push(Action::Cancel);
            }
            for (at, run) in round.running() {
                actions.push(Action::Stop(run));
                stopped(&mut self.record, &round.standings[at], self.now);
            }
        }
        self.stage = Stage::Done;
        actions.push(Action::Finish(finish));
    }
}

/// Writes down that a call was stopped before it had a result.
fn stopped(record: &mut Record, standing: &super::round::Standing, now: Duration) {
    if let Some(call) = standing.record.and_then(|at| record.calls.get_mut(at)) {
        call.ended = Some(now);
        call.outcome = Some(OutcomeKind::Stopped);
    }
}

fn timeout(tool: &OwnedTool, plan: &TurnPlan) -> Duration {
    plan.rules.call_timeout_cap.map_or(tool.timeout, |cap| tool.timeout.min(cap))
}

fn timed_out(tool: &OwnedTool, started: bool, after: Duration) -> Outcome {
    let after = crate::units::Span(after);
    let what = match (started, tool.effect) {
        (false, _) => format!("timed out after {after} waiting for a free slot; nothing was run"),
        (true, Effect::Write) => {
            format!("timed out after {after}; outcome unknown: it may have been executed")
        }
        (true, Effect::Read | Effect::Idempotent) => format!("timed out after {after}"),
    };
    Outcome::failed(OutcomeKind::Timeout, &what)
}

/// The finish reason clients know for how the upstream ended.
const fn finish_reason(said: Option<FinishReason>, foreign_calls: bool) -> FinishReason {
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
        Limit::CallTimeout | Limit::TurnTimeout | Limit::CallsInReply => "a limit is reached".into(),
    }
}

/// What the model is told before the last round.
fn note(limit: Limit, plan: &TurnPlan) -> String {
    format!("[No more tools will be run: {}. Answer from the results you have.]", reached(limit, plan))
}

/// What the client is told when the model calls tools all the same.
fn sentence(limit: Limit, plan: &TurnPlan) -> String {
    format!("[The answer ends here: {}, and the model asked for more.]", reached(limit, plan))
}

/// Ids and jitter from a seed (SplitMix64): the same seed gives the same ones.
#[derive(Debug)]
struct Ids(u64);

impl Ids {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Nine alphanumerics: legal everywhere, and exactly what the strictest server wants.
    fn call_id(&mut self) -> String {
        const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut rest = self.next();
        let mut letter = || {
            let at = rest % 62;
            rest /= 62;
            char::from(LETTERS[usize::try_from(at).unwrap_or(0)])
        };
        (0..9).map(|_| letter()).collect()
    }

    /// From 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "jitter")]
    const fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
