//! The state machine itself: asking, time and ends. What is heard of a reply and shown of it is in `hear`, what
//! becomes of calls in `calls`, what follows a round in `settle`.

mod calls;
mod hear;
mod ids;
mod settle;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::calls::stopped;
use self::ids::Ids;
use super::record::{Record, RoundRecord};
use super::round::{Round, Stands, Whose};
use super::{Action, Ask, AskId, Elapsed, Finish, Input, Limit, RunId};
use crate::policy::parallel::Decision;
use crate::policy::plan::TurnPlan;
use crate::policy::retry::Tries;
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Fact, Failure, FailureKind};
use crate::wire::named::Named;
use crate::wire::raw::Raw;
use crate::wire::reply::Head;
use crate::wire::request::Choice;
use crate::wire::tool::{OnDisconnect, Outcome, OutcomeKind};
use crate::wire::usage::Sum;

/// When the head of a streamed answer goes out although the upstream, which accepted, says nothing.
const BEGIN_AFTER: Duration = Duration::from_secs(10);
/// The first pause before a round is asked again; it doubles.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Where the turn stands.
#[derive(Debug)]
enum Stage {
    /// Nothing happened yet.
    New,
    /// The round is asked again when its time comes.
    Waiting { at: Duration, tries: Tries },
    /// A question is out, or its calls run.
    Round(Box<Round>),
    /// The client is gone; calls that may not be stopped run to their end.
    Leaving(Box<Round>),
    /// Over.
    Done,
}

/// What an upstream turned out to refuse.
#[derive(Debug, Clone, Copy, Default)]
struct Refused {
    parallel: bool,
    effort: bool,
}

/// One turn.
#[derive(Debug)]
pub struct Turn {
    plan: Arc<TurnPlan>,
    ids: Ids,
    now: Elapsed,
    /// It ends then at the latest.
    over_at: Elapsed,
    stage: Stage,
    round: u32,
    appended: Vec<Raw>,
    usage: Sum,
    calls: u32,
    /// Tools with effects that ran, by name, and how often.
    effects: BTreeMap<Arc<str>, u32>,
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
    top: Named<Raw>,
    top_news: Named<Raw>,
    /// The upstream that is asked, by its place in the plan. A turn stays with one that answers.
    target: usize,
    /// What each upstream turned out to refuse in this turn.
    refused: Vec<Refused>,
    /// The round that is asked now is for the answer in the client's format, without tools.
    formatting: bool,
    next_ask: AskId,
    next_run: RunId,
    record: Record,
}

impl Turn {
    /// A turn for this plan. `seed` makes the ids and the jitter.
    #[must_use]
    pub fn new(plan: Arc<TurnPlan>, seed: u64) -> Self {
        let refused = vec![Refused::default(); plan.targets.len()];
        Self {
            over_at: plan.rules.limits.turn_timeout.0,
            plan,
            ids: Ids(seed),
            now: Duration::ZERO,
            stage: Stage::New,
            round: 0,
            appended: Vec::new(),
            usage: Sum::default(),
            calls: 0,
            effects: BTreeMap::new(),
            last_because: None,
            is_last: false,
            repeated: None,
            times_repeated: 0,
            begun: false,
            text_shown: false,
            top: Named::default(),
            top_news: Named::default(),
            target: 0,
            refused,
            formatting: false,
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

    /// The decision about parallel calls, as far as the upstream took it.
    #[must_use]
    pub fn decision(&self) -> Decision {
        let refused = self.refused.get(self.target).is_some_and(|refused| refused.parallel);
        match self.plan.targets.get(self.target) {
            Some(target) if !refused => target.decision,
            Some(_) | None => Decision::UNSUPPORTED,
        }
    }

    /// What happened so far.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Whether tools with effects ran, or may have.
    #[must_use]
    pub fn had_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// What a repetition of the request is told if this turn ended with nobody to tell. `None`: nothing speaks
    /// against running it anew.
    #[must_use]
    pub fn unheard(&self) -> Option<ErrorReply> {
        let left = ErrorReply::new(
            424,
            "turn_failed_after_tools",
            "the client left before the answer was complete.",
        );
        self.had_effects().then(|| self.after_effects(&left))
    }

    /// Whether it is over.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// When the next [`Input::Tick`] is due; `None` once the turn is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Elapsed> {
        let whole = self.over_at;
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
            Input::Texts(ask, texts) => {
                if self.asking(ask).is_some() {
                    self.hear_texts(texts, actions);
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
            Input::Charged(round, limit) => self.charged(round, limit, actions),
            Input::Started(run) => self.call_started(run),
            Input::Progress(run) => self.call_goes_on(run),
            Input::Outcome(run, outcome) => self.call_ended(run, outcome, actions),
            Input::Tick => self.tick(actions),
            Input::ClientGone => self.leave(actions),
            Input::Superseded => self.superseded(actions),
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
        self.ask(Tries::default(), actions);
    }

    /// One more round, in which the model says its answer in the client's format.
    fn format(&mut self, actions: &mut Vec<Action>) {
        self.formatting = true;
        self.last_because = None;
        self.next_round(actions);
        self.is_last = true;
    }

    fn ask(&mut self, tries: Tries, actions: &mut Vec<Action>) {
        let (Some(target), Some(refused)) =
            (self.plan.targets.get(self.target), self.refused.get(self.target).copied())
        else {
            return;
        };
        let habits = &target.habits;
        self.next_ask += 1;
        let no_tools = self.plan.has_no_tools();
        let either_or = self.plan.formatted && !habits.takes_format_with_tools && !no_tools;
        let drop_tools = self.formatting || (self.is_last && (either_or || !habits.honours_tool_choice));
        let choice = match (self.is_last, drop_tools) {
            (_, true) => Choice::Drop,
            (true, false) => Choice::None,
            (false, false) if no_tools => Choice::Drop,
            (false, false) if self.round > 1 && self.plan.forcing => Choice::Auto,
            (false, false) => Choice::Keep,
        };
        let with_tools = !drop_tools && !no_tools;
        let ask = Ask {
            id: self.next_ask,
            round: self.round,
            attempt: tries.count(),
            target: self.target,
            parallel: target.decision.send.filter(|_| !drop_tools && !refused.parallel),
            choice,
            drop_tools,
            drop_format: either_or && !drop_tools,
            no_effort: with_tools && (refused.effort || !habits.takes_effort_with_tools),
        };
        if let Some(record) = self.record.rounds.last_mut() {
            record.target = ask.target;
            record.again = ask.attempt;
        }
        self.stage = Stage::Round(Box::new(Round::new(&self.plan, ask.id, tries, ask.drop_format)));
        actions.push(Action::Ask(ask));
    }

    fn ask_failed(&mut self, failure: &Failure, actions: &mut Vec<Action>) {
        let Stage::Round(round) = std::mem::replace(&mut self.stage, Stage::New) else { return };
        let untold = !round.shown;
        for (at, run) in round.running().collect::<Vec<_>>() {
            actions.push(Action::Stop(run));
            stopped(&mut self.record, &round.standings[at], self.now);
        }
        self.forget_calls(&round.standings);
        let tries = round.tries;
        if let Some(fact) = failure.kind.fact()
            && self.learn(fact)
        {
            actions.push(Action::Learn(fact));
            return self.ask(tries, actions);
        }
        match self.once_more(failure, &tries).filter(|_| untold) {
            Some((None, tries)) => self.ask(tries, actions),
            Some((Some(pause), tries)) => self.stage = Stage::Waiting { at: self.now + pause, tries },
            None => self.fail(tries.last_word(failure), actions),
        }
    }

    /// Remembers what the upstream refuses; whether that was news.
    fn learn(&mut self, fact: Fact) -> bool {
        let (Some(target), Some(refused)) =
            (self.plan.targets.get(self.target), self.refused.get_mut(self.target))
        else {
            return false;
        };
        match fact {
            Fact::NoParallel => {
                target.decision.send.is_some() && !std::mem::replace(&mut refused.parallel, true)
            }
            Fact::NoEffort => {
                target.habits.takes_effort_with_tools && !std::mem::replace(&mut refused.effort, true)
            }
        }
    }

    /// Whether a question that failed is asked once more: after which pause, and what was tried by
    /// then. It goes to the next upstream where that may do better.
    fn once_more(&mut self, failure: &Failure, before: &Tries) -> Option<(Option<Duration>, Tries)> {
        let upstreams = self.plan.targets.len();
        let next = before.after(failure, upstreams)?;
        let pause = (!next.at_once).then(|| self.pause(failure, before.again()));
        if self.now + pause.unwrap_or_default() >= self.over_at {
            return None;
        }
        if next.moves_on {
            self.target = (self.target + 1) % upstreams;
        }
        Some((pause, next.tries))
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

    // ---- time and ends

    fn tick(&mut self, actions: &mut Vec<Action>) {
        if self.is_done() {
            return;
        }
        if self.now >= self.over_at {
            self.record.limits.push(Limit::TurnTimeout);
            let error = ErrorReply::turn_timeout(self.plan.rules.limits.turn_timeout);
            return self.fail(error, actions);
        }
        if let Stage::Waiting { at, tries } = &self.stage
            && self.now >= *at
        {
            let tries = tries.clone();
            return self.ask(tries, actions);
        }
        if let Stage::Round(round) = &self.stage
            && round.begin_at.is_some_and(|at| self.now >= at)
        {
            self.begin(&Head::default(), actions);
        }
        self.end_late_calls(actions);
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
        self.suspect_running();
        let error = if self.effects.is_empty() { error } else { self.after_effects(&error) };
        let finish =
            if matches!(self.stage, Stage::Leaving(_)) { Finish::Gone } else { Finish::Failed(error) };
        self.finish(finish, actions);
    }

    /// Another attempt has the permission to have effects, so none of this turn's calls that waited for it ran.
    fn superseded(&mut self, actions: &mut Vec<Action>) {
        if !self.effects.is_empty() {
            return self.fail(ErrorReply::superseded(), actions);
        }
        let leaving = matches!(self.stage, Stage::Leaving(_));
        let finish = if leaving { Finish::Gone } else { Finish::Failed(ErrorReply::superseded()) };
        if !self.is_done() {
            self.finish(finish, actions);
        }
    }

    fn after_effects(&self, error: &ErrorReply) -> ErrorReply {
        let names: Vec<&str> = self.effects.keys().map(|name| &**name).collect();
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
