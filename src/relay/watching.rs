//! What a turn tells the record of runs: when something of it is new, and how it ended.
//!
//! The engine's record is the source; what it does not know is added here: what went upstream, what the
//! client got, why a question was asked again, and when a tool was tried again.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use super::drive::{Parts, Started};
use super::heard;
use super::pass;
use super::summary::millis;
use crate::engine::{Ask, CallRecord, Finish, Part, Record, RoundRecord, Run, RunId, Show, Turn};
use crate::policy::parallel::Decision;
use crate::policy::plan::TurnPlan;
use crate::runs::{About, Again, Asked, Call, CallContent, Content, End, Kind, Progress, Round, Text, Watch};
use crate::telemetry::redact::Redact;
use crate::telemetry::traces::Recorded;
use crate::tools::Tries;
use crate::upstream::Route;
use crate::wire::failure::FailureKind;
use crate::wire::raw::Raw;
use crate::wire::usage::Sum;

/// The most that is kept of an id, an error's code or a name a model invented, in bytes.
const LONGEST_WORD: usize = 128;

/// A turn that is watched.
pub(super) struct Watching {
    watch: Watch,
    plan: Arc<TurnPlan>,
    /// When rounds were asked again, and why; what has not been told yet.
    again: Vec<(u32, Again)>,
    redact: Arc<Redact>,
    /// The tries of the calls that ran.
    tries: Vec<(RunId, Tries)>,
    since: Instant,
    told: Mark,
    news: bool,
    said: Option<Said>,
}

/// As much of a turn as tells whether a piece of a reply was news.
type Mark = (usize, usize, bool, bool, bool);

/// What was said, where the operator wants it kept.
#[derive(Default)]
struct Said {
    request: Option<Text>,
    asked: Vec<Asked>,
    answer: Text,
}

impl Watching {
    /// `None`: runs are not remembered.
    pub(super) fn begin(started: &Started, decision: Decision) -> Option<Self> {
        let runs = started.parts.runs.as_ref()?;
        let about = About {
            // In the order in which they begin, also within a millisecond.
            id: uuid::Uuid::now_v7().to_string(),
            request_id: started.request_id.clone(),
            team: started.team.name.clone(),
            model: started.request.model.clone(),
            route: started.route.model.clone(),
            upstream: started
                .targets
                .first()
                .map_or_else(|| "".into(), |target| target.upstream.name.clone()),
            kind: Kind::Turn,
            stream: started.plan.stream,
            began: began(started.since),
            trace: started.trace.recorded().map(Recorded::name),
            tools: started.plan.owned.len(),
        };
        let mut watch = runs.begin(about, progress(decision));
        let (said, redact) = (started.parts.runs_content, &started.parts.redact);
        let said = said.then(|| Said { request: watch.hold(&started.sent, redact), ..Said::default() });
        Some(Self {
            watch,
            plan: started.plan.clone(),
            redact: redact.clone(),
            again: Vec::new(),
            tries: Vec::new(),
            since: started.since,
            told: Mark::default(),
            news: false,
            said,
        })
    }

    /// A round begins or is asked again.
    pub(super) fn asked(&mut self, ask: &Ask, body: &Bytes) {
        self.news = true;
        if let Some(said) = &mut self.said {
            let body = self.watch.hold(body, &self.redact);
            said.asked.push(Asked { round: ask.round, attempt: ask.attempt, body });
        }
    }

    /// The round's question failed and is asked again.
    pub(super) fn asked_again(&mut self, round: u32, why: FailureKind) {
        let at = millis(self.since.elapsed());
        self.again.push((round, Again { at, why: why.label() }));
    }

    /// A call is about to run: its tries are told here.
    pub(super) fn runs(&mut self, run: &Run) -> Tries {
        self.news = true;
        let tries = Tries::default();
        self.tries.push((run.id, tries.clone()));
        tries
    }

    /// The client gets to see something.
    pub(super) fn shown(&mut self, show: &Show) {
        let Some(said) = &mut self.said else { return };
        write_shown(&mut said.answer, show, Redact::gathered(self.watch.text()));
    }

    /// Something happened that is worth telling.
    pub(super) fn news(&mut self) {
        self.news = true;
    }

    /// Tells what is new, if anything is.
    pub(super) fn tell(&mut self, turn: &Turn, client_gone: bool) {
        let record = turn.record();
        let last = record.rounds.last();
        let mark = (
            record.rounds.len(),
            record.calls.len(),
            last.is_some_and(|round| round.first.is_some()),
            last.is_some_and(|round| round.ended.is_some()),
            client_gone,
        );
        if std::mem::replace(&mut self.told, mark) != mark || std::mem::take(&mut self.news) {
            self.news = false;
            let news = News::of(turn, client_gone, &self.plan, &self.tries, self.since);
            let again = std::mem::take(&mut self.again);
            self.watch.change(|progress| news.write(again, progress));
        }
    }

    /// The turn is over.
    pub(super) fn end(self, turn: &Turn, finish: &Finish, told: Told) {
        let record = turn.record();
        let (status, error) = match finish {
            Finish::Answer(_) => (200, None),
            Finish::Failed(error) => (error.status, Some(error)),
            Finish::Gone => (0, None),
        };
        let usage = turn.usage();
        let end = End {
            total: millis(told.total),
            first: told.first.map(millis),
            outcome: told.outcome,
            status,
            error: error.map(|error| short(&error.code)),
            tool_time: millis(record.tool_time()),
            overhead: millis(record.overhead(told.total)),
            tokens: tokens(usage),
            tokens_partial: usage.is_partial(),
            cost: told.cost,
        };
        let most = self.watch.text();
        let text = |text: &String| Text::of(text, most, &self.redact);
        let content = self.said.map(|said| Content {
            request: said.request,
            calls: record
                .calls
                .iter()
                .map(|call| CallContent {
                    arguments: call.arguments.as_ref().map(text),
                    result: call.result.as_ref().map(text),
                })
                .collect(),
            asked: said.asked,
            answer: Some(said.answer.clean(most, &self.redact)),
            error: error.map(|error| text(&error.message)),
        });
        let news = News::of(turn, told.client_gone, &self.plan, &self.tries, self.since);
        self.watch.end(|progress| news.write(self.again, progress), end, content);
    }
}

/// What the summary of a turn knows of its end.
pub(super) struct Told {
    pub(super) total: Duration,
    pub(super) first: Option<Duration>,
    pub(super) outcome: &'static str,
    pub(super) client_gone: bool,
    /// With its currency.
    pub(super) cost: Option<String>,
}

/// A chat that goes through and is watched: a run of one round.
#[derive(Debug)]
pub struct Passed {
    watch: Watch,
    asked: Option<Asked>,
    /// Of what was said; `None`: nothing of it is kept.
    redact: Option<Arc<Redact>>,
    since: Instant,
    /// When the first of the answer was there, in milliseconds after `since`.
    first: Option<f64>,
}

impl Passed {
    /// It begins; `body` is what goes upstream. `None`: runs are not remembered.
    #[must_use]
    pub fn begin(parts: &Parts, turn: &pass::Turn, of: Of<'_>, body: &Bytes) -> Option<Box<Self>> {
        let runs = parts.runs.as_ref()?;
        let about = About {
            // In the order in which they begin, also within a millisecond.
            id: uuid::Uuid::now_v7().to_string(),
            request_id: turn.request_id.clone(),
            team: of.team.clone(),
            model: turn.model.clone(),
            route: of.route.model.clone(),
            upstream: of.upstream.clone(),
            kind: Kind::Relay,
            stream: of.stream,
            began: began(of.since),
            trace: turn.trace.recorded().map(Recorded::name),
            tools: 0,
        };
        let asked = millis(of.since.elapsed());
        let mut progress = progress(turn.decision);
        progress.rounds.push(Round { asked, ..Round::default() });
        let mut watch = runs.begin(about, progress);
        let redact = parts.runs_content.then(|| parts.redact.clone());
        let hold = |redact: &Arc<Redact>| Asked { round: 1, attempt: 0, body: watch.hold(body, redact) };
        let asked = redact.as_ref().map(hold);
        Some(Box::new(Self { watch, asked, redact, since: of.since, first: None }))
    }

    /// Whether what was said is kept.
    pub(super) const fn keeps(&self) -> bool {
        self.redact.is_some()
    }

    /// The upstream failed and is asked again.
    pub(super) fn asked_again(&mut self, why: &'static str) {
        let at = millis(self.since.elapsed());
        self.watch.change(|progress| {
            if let Some(round) = progress.rounds.last_mut() {
                round.again.push(Again { at, why });
            }
        });
    }

    /// The upstream does not take `parallel_tool_calls`.
    pub(super) fn decided(&mut self, decision: Decision) {
        self.watch.change(|progress| {
            decision.text().clone_into(&mut progress.parallel);
            progress.because = decision.reason.sentence();
        });
    }

    /// The first of the answer is there.
    pub(super) fn answered(&mut self) {
        let first = millis(self.since.elapsed());
        self.first = Some(first);
        self.watch.change(|progress| {
            if let Some(round) = progress.rounds.last_mut() {
                round.first = Some(first);
            }
        });
    }

    /// It is over.
    pub(super) fn end(self, over: Over<'_>) {
        let Over { total, outcome, tokens, status, cost, said } = over;
        let total = millis(total);
        let end = End {
            total,
            first: self.first,
            outcome,
            status,
            tokens: tokens.unwrap_or_default(),
            tokens_partial: tokens.is_none(),
            cost,
            ..End::default()
        };
        let most = self.watch.text();
        let content = self.redact.map(|redact| Content {
            // What goes upstream is what the client sent, but for `parallel_tool_calls`.
            request: self.asked.as_ref().and_then(|asked| asked.body.clone()),
            asked: self.asked.into_iter().collect(),
            answer: (!said.is_empty()).then(|| heard::kept(said, most, &redact)),
            ..Content::default()
        });
        let last = |progress: &mut Progress| {
            progress.client_gone = outcome == "client_gone";
            if let Some(round) = progress.rounds.last_mut() {
                (round.ended, round.tokens) = (Some(total), tokens);
            }
        };
        self.watch.end(last, end, content);
    }
}

/// How a chat that went through ended.
pub(super) struct Over<'a> {
    /// How long it took.
    pub(super) total: Duration,
    /// The metric's word for it.
    pub(super) outcome: &'static str,
    /// Tokens the upstream reported: input and output.
    pub(super) tokens: Option<(u64, u64)>,
    /// The status of the answer.
    pub(super) status: u16,
    /// What it cost, with its currency.
    pub(super) cost: Option<String>,
    /// The end of what the upstream said, as it came.
    pub(super) said: &'a [u8],
}

/// Whose chat goes through, and where.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// Who asks.
    pub team: &'a Arc<str>,
    /// Where it goes.
    pub route: &'a Route,
    /// The name of the upstream that is asked first.
    pub upstream: &'a Arc<str>,
    /// The client wants a stream.
    pub stream: bool,
    /// When the request came.
    pub since: Instant,
}

/// When a request that came at `since` came, in milliseconds since 1970.
fn began(since: Instant) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(since.elapsed()).as_millis()).unwrap_or(u64::MAX)
}

fn progress(decision: Decision) -> Progress {
    Progress {
        parallel: decision.text().to_owned(),
        because: decision.reason.sentence(),
        ..Progress::default()
    }
}

/// What there is to write down of a turn.
struct News<'a> {
    record: &'a Record,
    decision: Decision,
    client_gone: bool,
    plan: &'a TurnPlan,
    tries: &'a [(RunId, Tries)],
    since: Instant,
}

impl<'a> News<'a> {
    fn of(
        turn: &'a Turn,
        client_gone: bool,
        plan: &'a TurnPlan,
        tries: &'a [(RunId, Tries)],
        since: Instant,
    ) -> Self {
        Self { record: turn.record(), decision: turn.decision(), client_gone, plan, tries, since }
    }

    /// Writes it over what was known. Rounds and calls only grow in number.
    fn write(&self, again: Vec<(u32, Again)>, known: &mut Progress) {
        if known.parallel != self.decision.text() {
            known.parallel = self.decision.text().to_owned();
            known.because = self.decision.reason.sentence();
        }
        known.rounds.resize_with(self.record.rounds.len(), Round::default);
        for (round, record) in known.rounds.iter_mut().zip(&self.record.rounds) {
            write_round(round, record);
        }
        for (round, again) in again {
            if let Some(round) = known.rounds.get_mut((round as usize).saturating_sub(1)) {
                round.again.push(again);
            }
        }
        let new = self.record.calls.get(known.calls.len()..).unwrap_or_default();
        known.calls.extend(new.iter().map(|record| self.call(record)));
        for (call, record) in known.calls.iter_mut().zip(&self.record.calls) {
            self.write_call(call, record);
        }
        let limits = self.record.limits.iter().map(|limit| limit.word());
        known.limits.clear();
        known.limits.extend(limits);
        (known.mixed, known.client_gone) = (self.record.mixed, self.client_gone);
    }

    fn call(&self, record: &CallRecord) -> Call {
        Call {
            round: record.round,
            id: short(&record.id),
            tool: if record.known { record.tool.clone() } else { short(&record.tool).into() },
            effect: self.plan.owned.get(&record.tool).map(|tool| tool.effect),
            queued: millis(record.queued),
            started: None,
            ended: None,
            again: Vec::new(),
            outcome: None,
            shared: false,
        }
    }

    fn write_call(&self, call: &mut Call, record: &CallRecord) {
        // A call that ended may be told to have been stopped after all, but is not tried any more.
        let was_over = call.ended.is_some();
        (call.started, call.ended) = (record.started.map(millis), record.ended.map(millis));
        (call.outcome, call.shared) = (record.outcome, record.shared);
        if was_over {
            return;
        }
        let tries = self.tries.iter().find(|(run, _)| Some(*run) == record.run);
        if let Some((_, tries)) = tries {
            let times = tries.again().into_iter().map(|at| millis(at.duration_since(self.since)));
            call.again.clear();
            call.again.extend(times);
        }
    }
}

fn write_round(round: &mut Round, record: &RoundRecord) {
    round.asked = millis(record.asked);
    (round.first, round.ended) = (record.first.map(millis), record.ended.map(millis));
    round.finish = record.finish;
    round.tokens = record.tokens.map(|tokens| (tokens.input, tokens.output));
}

/// A word that a model or its server made up, no longer than people read.
pub(super) fn short(word: &str) -> String {
    word[..word.floor_char_boundary(LONGEST_WORD)].to_owned()
}

fn tokens(usage: &Sum) -> (u64, u64) {
    let used = usage.tokens();
    (used.input, used.output)
}

/// What the client gets to see, as people read it.
pub(super) fn write_shown(answer: &mut Text, show: &Show, most: usize) {
    match show {
        Show::Begin(_) => {}
        Show::Part(part) => write_part(answer, part, most),
        Show::Texts(texts) => {
            for text in texts.strings() {
                answer.push(&text.as_string().unwrap_or_default(), most);
            }
        }
    }
}

/// Text as it is, then the client's own calls as they are written.
fn write_part(answer: &mut Text, part: &Part, most: usize) {
    if part.blank_line {
        answer.push("\n\n", most);
    }
    if let Some(text) = part.text.as_ref().and_then(Raw::as_string) {
        answer.push(&text, most);
    }
    for call in &part.calls {
        if let Some(opening) = &call.opening {
            let before = if answer.bytes == 0 { "" } else { "\n" };
            answer.push(&format!("{before}→ {} ", opening.name), most);
        }
        if let Some(arguments) = call.arguments.as_ref().and_then(Raw::as_string) {
            answer.push(&arguments, most);
        }
    }
}
