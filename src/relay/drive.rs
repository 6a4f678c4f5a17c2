//! Drives one turn: performs the engine's actions and tells it what happens, until the finish.
//!
//! One task per turn, owned by the process's tracker, so a client that leaves cannot tear it down in
//! the middle of an effect. Each running call is a task of its own in a set the turn owns.
//!
//! ```text
//!            ┌── upstream::Reply ── pieces ──┐
//! sink room ─┤   calls: JoinSet ── outcomes ─┼─▶ Turn::step ─▶ actions ─▶ ask · run · stop · show
//!            └── deadline, client, shutdown ─┘
//! ```
//!
//! Who slows down whom: while the client still has to take what was written, nothing more is read of the reply that is
//! coming. The calls go on, and so does what follows a reply that has come.

mod calls;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Map;
use hashbrown::HashMap;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::calls::{Ended, Ran};
use super::render::{self, To};
use super::sink::{Gone, Sink, Wait, error_headers};
use super::slots::Slots;
use super::spans::{self, Said};
use super::summary::{self, Summary};
use super::watching::Watching;
use crate::audit::Audit;
use crate::engine::{Action, Ask, Finish, Input, Limit, Parked, Run, RunId, Show, Turn, fingerprint, parcel};
use crate::ledger::{Answer, End, Ledger, Owner, Run as LedgerRun};
use crate::policy::plan::TurnPlan;
use crate::rare::{Aside, Came};
use crate::runs::Runs;
use crate::store::Store;
use crate::team::Team;
use crate::team::account::{Account, Charged};
use crate::team::money::{Money, Price};
use crate::team::quota::Quota;
use crate::telemetry::Telemetry;
use crate::telemetry::redact::Redact;
use crate::telemetry::traces::{About, Trace, Tracer};
use crate::tools::Catalog;
use crate::upstream::{AskHead, Asking, Expect, Heard, Pieces, Reply, Route, Target, Utterance};
use crate::wire::error::ErrorReply;
use crate::wire::failure::FailureKind;
use crate::wire::raw::Raw;
use crate::wire::request::ChatRequest;
use crate::wire::usage::Tokens;

/// News of calls that got their slots or go on; a call waits with its start while the turn is behind.
const NEWS: usize = 64;
/// So often a turn listens to its upstream alone, if that always has something to say.
const HEARD_IN_A_ROW: u8 = 16;

/// What turns need of the process; shared.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The tools.
    pub tools: Arc<Catalog>,
    /// The slots calls share.
    pub slots: Arc<Slots>,
    /// Parked results, and whatever else outlives a turn.
    pub store: Arc<Store>,
    /// What became of requests.
    pub ledger: Arc<Ledger>,
    /// What calls with effects are written into before they leave.
    pub audit: Option<Arc<Audit>>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// What is left out of content wherever it goes.
    pub redact: Arc<Redact>,
    /// Arguments and results may be logged.
    pub log_content: bool,
    /// The last runs, if they are remembered.
    pub runs: Option<Arc<Runs>>,
    /// What was said in a run is remembered too.
    pub runs_content: bool,
    /// What takes the spans of turns, if there are traces.
    pub traces: Option<Arc<Tracer>>,
}

/// One turn, as the server hands it over.
#[derive(Debug)]
pub struct Started {
    /// What it needs of the process.
    pub parts: Arc<Parts>,
    /// Who asks.
    pub team: Arc<Team>,
    /// Whom it is charged to.
    pub account: Account,
    /// What tokens cost.
    pub price: Option<Price>,
    /// By which route it goes.
    pub route: Arc<Route>,
    /// Where it goes, in the order of the plan's targets.
    pub targets: Vec<Target>,
    /// What was decided.
    pub plan: Arc<TurnPlan>,
    /// The request, parked results restored.
    pub request: ChatRequest,
    /// The messages as the client sent them.
    pub messages: Raw,
    /// The body as the client sent it.
    pub sent: Bytes,
    /// Headers for the upstream.
    pub head: AskHead,
    /// Headers of every response.
    pub headers: HeaderMap,
    /// The request's id.
    pub request_id: String,
    /// The trace it belongs to.
    pub trace: Trace,
    /// Cancelled when the client is gone, also if that is seen only by its answer's body being dropped before its end.
    pub gone: CancellationToken,
    /// Cancelled when the process ends.
    pub shutdown: CancellationToken,
    /// When the request came.
    pub since: Instant,
}

/// For whom the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The client that asked.
    Client,
    /// The client is gone, but repetitions of its request have joined.
    Joined,
    /// Nobody, and the engine knows.
    Nobody,
}

pub(super) struct Driver {
    started: Box<Started>,
    /// When the request came.
    since: Instant,
    /// What the ledger knows the turn as.
    run: Option<Owner>,
    /// Names the turn towards tools: unlike the request's id, no client can choose it.
    turn_id: Box<str>,
    turn: Turn,
    sink: Box<Sink>,
    reply: Option<(u32, Reply)>,
    calls: JoinSet<(RunId, Ran)>,
    /// Ends of replies that are complete.
    rests: JoinSet<()>,
    stops: HashMap<RunId, CancellationToken>,
    ids: HashMap<tokio::task::Id, RunId>,
    /// Inputs that calls give while they run.
    news: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    heard_in_a_row: u8,
    /// The reply is not read, for its client is behind.
    paused: bool,
    /// The upstream was asked, and the request has not been sent.
    asking: bool,
    /// The reply may be looked at before what leaves: once, unless another question was asked since.
    may_look: bool,
    /// Calls that start before anything else happens.
    starting: VecDeque<Run>,
    first_shown: Option<Duration>,
    audience: Audience,
    /// How the last ask failed.
    failed: Option<FailureKind>,
    /// The upstream that was asked last, by its place.
    target: usize,
    /// What is to be kept before the client hears of the finish: its next request may come at once,
    /// and to another replica.
    parked: Option<Parked>,
    /// A round that is being charged.
    charging: Option<Charging>,
    cost: Option<Money>,
    /// A quota that has nothing left.
    used_up: Option<Quota>,
    watching: Option<Watching>,
    /// The answer, where it goes into the trace.
    answer: Option<Said>,
    /// For the engine's deadline, the reply's and the sink's comments, and for what ends the turn from outside.
    aside: Aside<Cancelled, 2>,
}

/// What ends a turn from outside.
#[derive(Debug, Clone, Copy)]
enum Outside {
    /// The client leaves.
    Client,
    /// The process ends.
    Process,
}

type Cancelled = Pin<Box<Map<WaitForCancellationFutureOwned, fn(()) -> Outside>>>;

/// The charging of a round, by its number.
struct Charging(u32, Pin<Box<dyn Future<Output = Charged> + Send>>);

impl Driver {
    pub(super) fn new(started: Box<Started>, run: Option<Owner>, sink: Box<Sink>) -> Self {
        let turn = Turn::new(started.plan.clone(), fastrand::u64(..));
        let ends: [Cancelled; 2] = [
            Box::pin(started.gone.clone().cancelled_owned().map(|()| Outside::Client)),
            Box::pin(started.shutdown.clone().cancelled_owned().map(|()| Outside::Process)),
        ];
        Self {
            watching: Watching::begin(&started, turn.decision()),
            answer: Said::begin(&started.parts, &started.trace),
            aside: Aside::new(started.since + started.plan.rules.limits.turn_timeout.0, ends),
            turn_id: super::new_id().to_string().into(),
            turn,
            since: started.since,
            started,
            run,
            sink,
            reply: None,
            calls: JoinSet::new(),
            rests: JoinSet::new(),
            stops: HashMap::new(),
            ids: HashMap::new(),
            news: mpsc::channel(NEWS),
            heard_in_a_row: 0,
            paused: false,
            asking: false,
            may_look: true,
            starting: VecDeque::new(),
            first_shown: None,
            audience: Audience::Client,
            failed: None,
            target: 0,
            parked: None,
            charging: None,
            cost: None,
            used_up: None,
        }
    }

    /// Drives the turn to its finish and tells the client. What it gives is the ends of replies that
    /// nobody needs but the connections they came on.
    pub(super) async fn run(mut self: Box<Self>) -> JoinSet<()> {
        let mut actions = Vec::new();
        let mut pieces = Pieces::new();
        self.turn.step(Input::Begin, self.now(), &mut actions);
        let finish = loop {
            if let Some(finish) = self.perform(&mut actions) {
                break finish;
            }
            if let Some((ask, heard)) = self.look(&mut pieces) {
                match self.heard(ask, heard, &mut pieces, &mut actions) {
                    Some(finish) => break finish,
                    None => continue,
                }
            }
            self.send().await;
            self.may_look = true;
            if self.sink.flush() == Err(Gone) {
                self.client_left(&mut actions);
                if !actions.is_empty() {
                    continue;
                }
            }
            if let Some(watching) = &mut self.watching {
                watching.tell(&self.turn, self.audience != Audience::Client);
            }
            if let Some(finish) = self.hear(&mut pieces, &mut actions).await {
                break finish;
            }
        };
        // Boxed: no turn has to have room for its end while it goes on.
        Box::pin(self.end(finish)).await
    }

    /// What the reply says already, where something is to be sent. Calls start as it comes: its end may be there, too,
    /// and with it another call.
    fn look(&mut self, pieces: &mut Pieces) -> Option<(u32, Heard)> {
        let sends = self.asking || !self.starting.is_empty();
        if !sends || !self.may_look || !self.has_room() {
            return None;
        }
        let heard = heard(&mut self.reply, pieces).now_or_never()?;
        self.may_look = false;
        Some(heard)
    }

    /// What the reply says next may be heard: the client can take more, or nothing more is read for it.
    fn has_room(&self) -> bool {
        let is_read = self.reply.as_ref().is_some_and(|(_, reply)| reply.is_read());
        !(self.sink.is_full() && is_read)
    }

    /// Sends the question and starts the calls, before anything is written or told here: who answers them is at work
    /// meanwhile.
    async fn send(&mut self) {
        if std::mem::take(&mut self.asking) {
            // Its connection takes it.
            others_first().await;
        }
        while let Some(run) = self.starting.pop_front() {
            self.start_call(run);
            others_first().await;
        }
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }

    fn step(&mut self, input: Input, actions: &mut Vec<Action>) {
        let now = self.now();
        self.turn.step(input, now, actions);
    }

    /// The client left, or all who had joined: unless somebody listens, the engine has to know.
    fn client_left(&mut self, actions: &mut Vec<Action>) {
        if self.audience == Audience::Nobody {
            return;
        }
        if self.run.as_ref().is_some_and(|run| !run.leave()) {
            self.audience = Audience::Joined;
            self.sink.go_on_alone();
            return;
        }
        self.audience = Audience::Nobody;
        self.step(Input::ClientGone, actions);
    }

    /// Waits for one thing to happen and tells the engine. Gives the finish if that came already.
    async fn hear(&mut self, pieces: &mut Pieces, actions: &mut Vec<Action>) -> Option<Finish> {
        let there = self.audience == Audience::Client;
        let may_read = !there || self.has_room();
        let paused = std::mem::replace(&mut self.paused, !may_read);
        if paused
            && may_read
            && let Some((_, reply)) = &mut self.reply
        {
            reply.goes_on();
        }
        let joined = self.run.as_deref().filter(|_| self.audience == Audience::Joined);
        // Only calls that run give inputs.
        let calls = !self.calls.is_empty();
        // While much is heard the rest is looked at now and then: looking costs more than hearing.
        let others = self.heard_in_a_row >= HEARD_IN_A_ROW;
        self.heard_in_a_row += 1;
        let may_hear = may_read && !others;
        let due = Due {
            turn: self.turn.deadline().map(|at| self.since + at),
            reply: self.reply.as_ref().filter(|_| may_hear).map(|(_, reply)| reply.deadline()),
            comment: self.sink.comment_at().filter(|_| self.audience != Audience::Nobody),
        };
        let event = tokio::select! {
            biased;
            (ask, heard) = heard(&mut self.reply, pieces), if may_hear => {
                return self.heard(ask, heard, pieces, actions);
            }
            Some(ended) = self.calls.join_next_with_id(), if calls => Event::Ended(ended),
            Some(news) = self.news.1.recv(), if calls => Event::Input(news),
            (round, charged) = charged(&mut self.charging) => Event::Charged(round, charged),
            wait = self.sink.wait(), if there => if wait == Wait::Gone { Event::Gone } else { Event::Room },
            () = deserted(joined) => Event::Gone,
            came = self.aside.until(due.first()) => match came {
                Came::Time => Event::Time,
                Came::One(Outside::Client) if there => Event::Gone,
                Came::One(Outside::Client) => Event::Nothing,
                Came::One(Outside::Process) => Event::Input(Input::Shutdown),
            },
            () = std::future::ready(()), if others => Event::Nothing,
        };
        self.heard_in_a_row = 0;
        match event {
            // What came together is told together.
            Event::Ended(ended) => {
                self.call_ended(ended, actions);
                while let Some(ended) = self.calls.try_join_next_with_id() {
                    self.call_ended(ended, actions);
                }
                self.news();
            }
            Event::Input(input) => {
                self.step(input, actions);
                self.hear_calls(actions);
                self.news();
            }
            Event::Charged(round, charged) => {
                self.charged(charged);
                self.step(Input::Charged(round, self.used_up.map(limit)), actions);
            }
            Event::Gone => self.client_left(actions),
            Event::Time => return self.time_came(due, pieces, actions),
            Event::Room | Event::Nothing => {}
        }
        None
    }

    /// Something was due.
    fn time_came(&mut self, due: Due, pieces: &mut Pieces, actions: &mut Vec<Action>) -> Option<Finish> {
        let now = Instant::now();
        match &mut self.reply {
            Some((ask, reply)) if due.reply.is_some() && reply.deadline() <= now => {
                let (ask, heard) = (*ask, reply.late());
                return self.heard(ask, heard, pieces, actions);
            }
            Some(_) | None if due.comment.is_some_and(|at| at <= now) => self.sink.comment(),
            Some(_) | None => {
                self.step(Input::Tick, actions);
                self.hear_calls(actions);
                self.news();
            }
        }
        None
    }

    /// Something happened to a call, or to time.
    fn news(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.news();
        }
    }

    fn heard(
        &mut self,
        ask: u32,
        heard: Heard,
        pieces: &mut Pieces,
        actions: &mut Vec<Action>,
    ) -> Option<Finish> {
        let now = self.now();
        self.sink.expect(pieces.len());
        for said in pieces.drain(..) {
            let input = match said {
                Utterance::Texts(texts) => Input::Texts(ask, texts),
                Utterance::Piece(piece) => Input::Piece(ask, piece),
            };
            self.turn.step(input, now, actions);
            // Pieces that came together may be many; what they lead to is not collected.
            if let Some(finish) = self.perform(actions) {
                return Some(finish);
            }
        }
        match heard {
            Heard::Accepted => self.turn.step(Input::Accepted(ask), now, actions),
            Heard::Pieces => {}
            Heard::Ended { done } => {
                if let Some(rest) = self.reply.take().and_then(|(_, reply)| reply.into_rest()) {
                    self.rests.spawn(rest);
                }
                self.turn.step(Input::Ended { ask, done }, now, actions);
            }
            Heard::Failed(failure) => {
                self.reply = None;
                tracing::debug!(request_id = %self.started.request_id, upstream = %self.started.targets[self.target].upstream.name, kind = failure.kind.label(), detail = %failure.detail, "ask failed");
                summary::ask_failed(&self.started, self.target, &failure);
                self.failed = Some(failure.kind);
                self.turn.step(Input::Failed(ask, failure), now, actions);
            }
        }
        None
    }

    fn charged(&mut self, charged: Charged) {
        self.charging = None;
        if let Some(cost) = charged.cost {
            *self.cost.get_or_insert_default() += cost;
        }
        self.used_up = charged.used_up.or(self.used_up);
    }

    /// Performs actions in order; gives the finish when it comes.
    fn perform(&mut self, actions: &mut Vec<Action>) -> Option<Finish> {
        for action in actions.drain(..) {
            match action {
                Action::Ask(ask) => {
                    let again = self.failed.take();
                    if let Some(why) = again {
                        let before = &self.started.targets[self.target].upstream;
                        let moves_on = ask.target != self.target;
                        summary::asked_again(&self.started.parts.telemetry, before, why, moves_on);
                    }
                    if std::mem::replace(&mut self.target, ask.target) != ask.target {
                        self.sink.decided(self.turn.decision());
                    }
                    let Some(body) = body_of(&self.started, &self.turn, &ask) else { continue };
                    if let Some(watching) = &mut self.watching {
                        again.into_iter().for_each(|why| watching.asked_again(ask.round, why));
                        watching.asked(&ask, &body);
                    }
                    let asked = ask_upstream(&self.started, &ask, body);
                    self.reply = asked.map(|reply| (ask.id, reply));
                    (self.asking, self.may_look) = (true, true);
                }
                Action::Cancel => self.reply = None,
                Action::Charge(round, usage) => {
                    let Started { account, price, route, .. } = &*self.started;
                    let (account, price, model) = (account.clone(), *price, route.model.clone());
                    let known = self.turn.record().rounds.get((round as usize).saturating_sub(1));
                    let tokens = known.and_then(|round| round.tokens).unwrap_or_else(|| Tokens::of(&usage));
                    let charge = async move { account.charge(tokens, price, &model).await };
                    self.charging = Some(Charging(round, Box::pin(charge)));
                }
                Action::Run(run) => self.starting.push_back(run),
                Action::Stop(run) => {
                    self.starting.retain(|starting| starting.id != run);
                    if let Some(stop) = self.stops.remove(&run) {
                        stop.cancel();
                    }
                }
                Action::Show(show) => {
                    if self.first_shown.is_none() && !matches!(show, Show::Begin(_)) {
                        self.first_shown = Some(self.now());
                    }
                    if let Some(watching) = &mut self.watching {
                        watching.shown(&show);
                    }
                    if let Some(answer) = &mut self.answer {
                        answer.shown(&show);
                    }
                    self.sink.show(&show);
                }
                Action::Park(parked) => self.parked = Some(parked),
                Action::Learn(fact) => {
                    let Started { parts, targets, request, .. } = &*self.started;
                    let target = &targets[self.target];
                    summary::learned(&parts.telemetry, &target.upstream, fact, target.model(&request.model));
                    self.sink.decided(self.turn.decision());
                }
                Action::Finish(finish) => return Some(finish),
            }
        }
        None
    }

    async fn end(mut self: Box<Self>, finish: Finish) -> JoinSet<()> {
        if let Some(Charging(_, charging)) = self.charging.take() {
            let charged = charging.await;
            self.charged(charged);
        }
        if let Some(parked) = self.parked.take() {
            park(&self.started, parked).await;
        }
        let summary = Summary {
            started: &self.started,
            turn: &self.turn,
            finish: &finish,
            total: self.now(),
            first: self.first_shown,
            client_gone: self.audience != Audience::Client,
            cost: self.cost,
        };
        let totals = summary.totals();
        summary.record();
        spans::of_turn(&summary, self.answer.take());
        if let Some(watching) = self.watching.take() {
            watching.end(&self.turn, &finish, summary.told());
        }
        let limits = &self.turn.record().limits;
        if let Some(quota) = self.used_up.filter(|quota| limits.contains(&limit(*quota))) {
            self.started.account.ended_turn(quota);
        }
        let end = match &finish {
            Finish::Gone => {
                End::Unheard(self.turn.unheard().as_ref().map(|error| unheard(&self.started, error)))
            }
            Finish::Answer(_) | Finish::Failed(_) => End::Told { effects: self.turn.had_effects() },
        };
        let Self { started, run, sink, mut calls, mut rests, audience, .. } = *self;
        let there = audience == Audience::Client;
        let told = sink.finish(&finish, totals);
        if let Some(run) = run {
            Box::pin(run.end(end)).await;
        }
        match told {
            // The client's own pace keeps no place of the team, but the process waits for it before it ends.
            Ok(Some(behind)) => {
                let gone = started.gone.clone();
                rests.spawn(async move {
                    tokio::select! {
                        _ = behind.ready() => {}
                        () = gone.cancelled() => {}
                    }
                });
            }
            Ok(None) => {}
            Err(Gone) if there => {
                tracing::debug!(request_id = %started.request_id, "the client left before it took the whole answer");
            }
            Err(Gone) => {}
        }
        // Calls that were stopped say goodbye in their own time, bounded by their own grace.
        while calls.join_next().await.is_some() {}
        rests
    }
}

/// When the turn, its reply and its client have waited long enough.
#[derive(Clone, Copy)]
struct Due {
    turn: Option<Instant>,
    reply: Option<Instant>,
    comment: Option<Instant>,
}

impl Due {
    fn first(&self) -> Option<Instant> {
        [self.turn, self.reply, self.comment].into_iter().flatten().min()
    }
}

/// What a turn waits for.
enum Event {
    Ended(Ended),
    Input(Input),
    Charged(u32, Charged),
    Gone,
    Time,
    Room,
    Nothing,
}

async fn deserted(run: Option<&Arc<LedgerRun>>) {
    match run {
        Some(run) => run.deserted().await,
        None => std::future::pending().await,
    }
}

/// The answer for a repetition of a request whose turn ended with nobody to tell.
fn unheard(started: &Started, error: &ErrorReply) -> Answer {
    let mut headers = error_headers(error);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.extend(started.headers.clone());
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::FAILED_DEPENDENCY);
    Answer { status, headers, body: error.to_body() }
}

/// Lets those run that wait for the thread. Each call is sent while the next one has not begun to be made, so that its
/// tool is at work meanwhile.
async fn others_first() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until then; for ever if there is no such time.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn heard(reply: &mut Option<(u32, Reply)>, pieces: &mut Pieces) -> (u32, Heard) {
    match reply {
        Some((ask, reply)) => (*ask, reply.next(pieces).await),
        None => std::future::pending().await,
    }
}

async fn charged(charging: &mut Option<Charging>) -> (u32, Charged) {
    match charging {
        Some(Charging(round, charged)) => (*round, charged.await),
        None => std::future::pending().await,
    }
}

/// The limit of a turn that a quota without anything left is.
const fn limit(quota: Quota) -> Limit {
    if quota.is_budget() { Limit::Budget } else { Limit::TokensPerMinute }
}

/// The body of an ask, for the upstream that is asked.
fn body_of(started: &Started, turn: &Turn, ask: &Ask) -> Option<Bytes> {
    let (target, plan) = (started.targets.get(ask.target)?, started.plan.targets.get(ask.target)?);
    let to = To { target, plan };
    Some(render::asked(&started.request, &started.plan, to, turn.appended(), ask))
}

fn ask_upstream(started: &Started, ask: &Ask, body: Bytes) -> Option<Reply> {
    let (target, plan) = (started.targets.get(ask.target)?, started.plan.targets.get(ask.target)?);
    let limits = &started.plan.rules.limits;
    let expect = Expect {
        stream: plan.habits.streams,
        legacy: started.plan.legacy_functions,
        reply: limits.reply.0,
        event: limits.event.0,
    };
    let model = target.model(&started.request.model);
    let asking = Asking { team: &started.team.name, model: Some(model), again: ask.attempt > 0 };
    if !started.trace.is_ours() {
        return Some(target.upstream.ask(body, &started.head, expect, asking));
    }
    let mut head = started.head.clone();
    started.trace.put(&mut head.headers, About::Round(ask.round));
    Some(target.upstream.ask(body, &head, expect, asking))
}

/// Keeps the results of a mixed reply. If that is not possible, the conversation goes on without them.
async fn park(started: &Started, parked: Parked) {
    let Some(first) = parked.foreign().next() else { return };
    let store = &started.parts.store;
    let value = parcel::encode(&fingerprint(&started.request.model, &started.messages), &parked);
    if let Err(why) = store.keep(&started.team.name, first, value).await {
        tracing::debug!(request_id = %started.request_id, %why, "the results of a mixed reply are not kept");
    }
}
