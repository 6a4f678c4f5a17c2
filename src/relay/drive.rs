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
//! Who slows down whom: while the client still has to take what was written, the upstream is not
//! read. The calls go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sink::{Gone, Sink, Wait};
use super::slots::Slots;
use super::summary::{self, Summary};
use super::watching::Watching;
use crate::audit::{Audit, Facts};
use crate::engine::{Action, Ask, Finish, Input, Parked, Run, RunId, Show, Turn, fingerprint, parcel};
use crate::policy::plan::TurnPlan;
use crate::runs::Runs;
use crate::store::Store;
use crate::team::Team;
use crate::telemetry::Telemetry;
use crate::tools::{Call, Catalog, Progress, Tries};
use crate::upstream::{AskHead, Expect, Heard, Reply, Route};
use crate::wire::failure::FailureKind;
use crate::wire::raw::Raw;
use crate::wire::reply::Piece;
use crate::wire::request::{ChatRequest, Outgoing};
use crate::wire::tool::{Outcome, OutcomeKind, Patience};

/// How much longer than the engine's own deadline a tool may think it has.
const GRACE: Duration = Duration::from_secs(1);
/// News of calls that got their slots or go on; a call waits with its start while the turn is behind.
const NEWS: usize = 64;

/// What turns need of the process; shared.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The tools.
    pub tools: Arc<Catalog>,
    /// The slots calls share.
    pub slots: Arc<Slots>,
    /// Parked results, and whatever else outlives a turn.
    pub store: Arc<Store>,
    /// What calls with effects are written into before they leave.
    pub audit: Option<Arc<Audit>>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Arguments and results may be logged.
    pub log_content: bool,
    /// The last runs, if they are remembered.
    pub runs: Option<Arc<Runs>>,
    /// What was said in a run is remembered too.
    pub runs_content: bool,
}

/// One turn, as the server hands it over.
#[derive(Debug)]
pub struct Started {
    /// What it needs of the process.
    pub parts: Parts,
    /// Who asks.
    pub team: Arc<Team>,
    /// Where it goes.
    pub route: Arc<Route>,
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
    /// The request's id.
    pub request_id: String,
    /// The trace the request belongs to.
    pub traceparent: Option<String>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
    /// Cancelled when the process ends.
    pub shutdown: CancellationToken,
    /// When the request came.
    pub since: Instant,
}

pub(super) struct Driver {
    started: Started,
    /// Names the turn towards tools: unlike the request's id, no client can choose it.
    turn_id: uuid::Uuid,
    owned: Vec<Arc<str>>,
    turn: Turn,
    sink: Sink,
    reply: Option<(u32, Reply)>,
    calls: JoinSet<(RunId, Outcome)>,
    /// Ends of replies that are complete.
    rests: JoinSet<()>,
    stops: HashMap<RunId, CancellationToken>,
    ids: HashMap<tokio::task::Id, RunId>,
    /// Inputs that calls give while they run.
    news: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    first_shown: Option<Duration>,
    client_gone: bool,
    /// How the last ask failed.
    failed: Option<FailureKind>,
    /// What is to be kept before the client hears of the finish: its next request may come at once,
    /// and to another replica.
    parked: Option<Parked>,
    watching: Option<Watching>,
}

impl Driver {
    pub(super) fn new(started: Started, sink: Sink) -> Self {
        let owned = started.plan.owned.values().map(|tool| tool.definition.clone()).collect();
        let turn = Turn::new(started.plan.clone(), fastrand::u64(..));
        Self {
            watching: Watching::begin(&started, turn.decision()),
            turn_id: uuid::Uuid::now_v7(),
            turn,
            owned,
            started,
            sink,
            reply: None,
            calls: JoinSet::new(),
            rests: JoinSet::new(),
            stops: HashMap::new(),
            ids: HashMap::new(),
            news: mpsc::channel(NEWS),
            first_shown: None,
            client_gone: false,
            failed: None,
            parked: None,
        }
    }

    /// Drives the turn to its finish and tells the client. What it gives is the ends of replies that
    /// nobody needs but the connections they came on.
    pub(super) async fn run(mut self) -> JoinSet<()> {
        let mut actions = Vec::new();
        let mut pieces = Vec::new();
        self.turn.step(Input::Begin, self.now(), &mut actions);
        let finish = loop {
            if let Some(finish) = self.perform(&mut actions) {
                break finish;
            }
            if let Some(watching) = &mut self.watching {
                watching.tell(&self.turn, self.client_gone);
            }
            if self.sink.flush() == Err(Gone) {
                self.tell_gone(&mut actions);
                if actions.is_empty() {
                    self.hear(&mut pieces, &mut actions).await;
                }
                continue;
            }
            self.hear(&mut pieces, &mut actions).await;
        };
        self.end(finish).await
    }

    fn now(&self) -> Duration {
        self.started.since.elapsed()
    }

    fn step(&mut self, input: Input, actions: &mut Vec<Action>) {
        let now = self.now();
        self.turn.step(input, now, actions);
    }

    fn tell_gone(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.client_gone, true) {
            self.step(Input::ClientGone, actions);
        }
    }

    /// Waits for one thing to happen and tells the engine.
    async fn hear(&mut self, pieces: &mut Vec<Piece>, actions: &mut Vec<Action>) {
        let deadline = self.turn.deadline().map(|at| self.started.since + at);
        let there = !self.client_gone;
        let comment = self.sink.comment_at().filter(|_| there);
        let may_read = !self.sink.is_full() || !there;
        let event = tokio::select! {
            (ask, heard) = heard(&mut self.reply, pieces), if may_read => Event::Heard(ask, heard),
            Some(ended) = self.calls.join_next_with_id() => Event::Ended(ended),
            Some(news) = self.news.1.recv() => Event::Input(news),
            () = self.started.gone.cancelled(), if there => Event::Gone,
            wait = self.sink.wait(), if there => if wait == Wait::Gone { Event::Gone } else { Event::Room },
            () = until(deadline) => Event::Input(Input::Tick),
            () = until(comment) => Event::Comment,
            () = self.started.shutdown.cancelled() => Event::Input(Input::Shutdown),
        };
        match event {
            Event::Heard(ask, heard) => self.heard(ask, heard, pieces, actions),
            Event::Ended(ended) => {
                self.call_ended(ended, actions);
                self.news();
            }
            Event::Input(input) => {
                self.step(input, actions);
                self.news();
            }
            Event::Gone => self.tell_gone(actions),
            Event::Comment => self.sink.comment(),
            Event::Room => {}
        }
    }

    /// Something happened to a call, or to time.
    fn news(&mut self) {
        if let Some(watching) = &mut self.watching {
            watching.news();
        }
    }

    fn heard(&mut self, ask: u32, heard: Heard, pieces: &mut Vec<Piece>, actions: &mut Vec<Action>) {
        for piece in pieces.drain(..) {
            let now = self.started.since.elapsed();
            self.turn.step(Input::Piece(ask, Box::new(piece)), now, actions);
        }
        match heard {
            Heard::Accepted => self.step(Input::Accepted(ask), actions),
            Heard::Pieces => {}
            Heard::Ended { done } => {
                if let Some(rest) = self.reply.take().and_then(|(_, reply)| reply.into_rest()) {
                    self.rests.spawn(rest);
                }
                self.step(Input::Ended { ask, done }, actions);
            }
            Heard::Failed(failure) => {
                self.reply = None;
                tracing::debug!(request_id = %self.started.request_id, upstream = %self.started.route.upstream.name, kind = failure.kind.label(), detail = %failure.detail, "ask failed");
                summary::ask_failed(&self.started, &failure);
                self.failed = Some(failure.kind);
                self.step(Input::Failed(ask, failure), actions);
            }
        }
    }

    fn call_ended(&mut self, ended: Ended, actions: &mut Vec<Action>) {
        let (run, outcome) = match ended {
            Ok((id, (run, outcome))) => {
                self.ids.remove(&id);
                (run, outcome)
            }
            Err(error) => {
                let Some(run) = self.ids.remove(&error.id()) else { return };
                tracing::error!(request_id = %self.started.request_id, "a tool call panicked");
                (run, Outcome::failed(OutcomeKind::Error, "the tool failed inside the gateway"))
            }
        };
        self.stops.remove(&run);
        // A call says that it starts before it ends; the engine hears it in this order too.
        while let Ok(news) = self.news.1.try_recv() {
            self.step(news, actions);
        }
        self.step(Input::Outcome(run, outcome), actions);
    }

    /// Performs actions in order; gives the finish when it comes.
    fn perform(&mut self, actions: &mut Vec<Action>) -> Option<Finish> {
        for action in actions.drain(..) {
            match action {
                Action::Ask(ask) => {
                    let again = self.failed.take();
                    if let Some(why) = again {
                        summary::asked_again(&self.started, why);
                    }
                    let Started { request, plan, .. } = &self.started;
                    let body = render(request, plan, &self.owned, self.turn.appended(), &ask);
                    if let Some(watching) = &mut self.watching {
                        again.into_iter().for_each(|why| watching.asked_again(ask.round, why));
                        watching.asked(&ask, &body);
                    }
                    self.reply = Some((ask.id, ask_upstream(&self.started, body)));
                }
                Action::Cancel => self.reply = None,
                Action::Run(run) => start_call(
                    &self.started,
                    Marks {
                        idempotency_key: format!("{}-{}", self.turn_id, run.id),
                        tries: self.watching.as_mut().map(|watching| watching.runs(&run)).unwrap_or_default(),
                    },
                    run,
                    &self.news.0,
                    &mut self.calls,
                    &mut self.stops,
                    &mut self.ids,
                ),
                Action::Stop(run) => {
                    if let Some(stop) = self.stops.remove(&run) {
                        stop.cancel();
                    }
                }
                Action::Show(show) => {
                    if self.first_shown.is_none() && matches!(show, Show::Part(_)) {
                        self.first_shown = Some(self.started.since.elapsed());
                    }
                    if let Some(watching) = &mut self.watching {
                        watching.shown(&show);
                    }
                    self.sink.show(&show);
                }
                Action::Park(parked) => self.parked = Some(parked),
                Action::LearnNoParallel => {
                    let Started { parts, route, request, .. } = &self.started;
                    summary::learned(&parts.telemetry, &route.upstream, &request.model);
                    self.sink.decided(self.turn.decision());
                }
                Action::Finish(finish) => return Some(finish),
            }
        }
        None
    }

    async fn end(mut self, finish: Finish) -> JoinSet<()> {
        if let Some(parked) = self.parked.take() {
            park(&self.started, parked).await;
        }
        let summary = Summary {
            started: &self.started,
            turn: &self.turn,
            finish: &finish,
            total: self.started.since.elapsed(),
            first: self.first_shown,
            client_gone: self.client_gone,
        };
        let totals = summary.totals();
        summary.record();
        if let Some(watching) = self.watching.take() {
            watching.end(&self.turn, &finish, summary.told());
        }
        // The client's own pace must not keep a slot of the team: what is measured is measured.
        let told = tokio::select! {
            told = self.sink.finish(&finish, totals) => told,
            () = self.started.gone.cancelled() => Err(Gone),
        };
        if told.is_err() && !self.client_gone {
            tracing::debug!(request_id = %self.started.request_id, "the client left before it took the whole answer");
        }
        // Calls that were stopped say goodbye in their own time, bounded by their own grace.
        let mut calls = self.calls;
        while calls.join_next().await.is_some() {}
        self.rests
    }
}

type Ended = Result<(tokio::task::Id, (RunId, Outcome)), tokio::task::JoinError>;

/// What a turn waits for.
enum Event {
    Heard(u32, Heard),
    Ended(Ended),
    Input(Input),
    Gone,
    Comment,
    Room,
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn heard(reply: &mut Option<(u32, Reply)>, pieces: &mut Vec<Piece>) -> (u32, Heard) {
    match reply {
        Some((ask, reply)) => (*ask, reply.next(pieces).await),
        None => std::future::pending().await,
    }
}

/// The body of an ask.
pub(super) fn render(
    request: &ChatRequest,
    plan: &TurnPlan,
    owned: &[Arc<str>],
    appended: &[Raw],
    ask: &Ask,
) -> Bytes {
    request.render(&Outgoing {
        model: None,
        appended,
        owned,
        drop_tools: ask.drop_tools,
        choice: ask.choice,
        parallel: ask.parallel,
        stream: plan.habits.streams,
        keep_stream_options: false,
    })
}

fn ask_upstream(started: &Started, body: Bytes) -> Reply {
    let limits = &started.plan.rules.limits;
    let expect = Expect {
        stream: started.plan.habits.streams,
        legacy: started.plan.legacy_functions,
        reply: limits.reply.0,
        event: limits.event.0,
    };
    started.route.upstream.ask(body, &started.head, expect)
}

/// What a call carries beside what the engine says of it.
struct Marks {
    idempotency_key: String,
    tries: Tries,
}

fn start_call(
    started: &Started,
    Marks { idempotency_key, tries }: Marks,
    run: Run,
    news: &mpsc::Sender<Input>,
    calls: &mut JoinSet<(RunId, Outcome)>,
    stops: &mut HashMap<RunId, CancellationToken>,
    ids: &mut HashMap<tokio::task::Id, RunId>,
) {
    let stop = CancellationToken::new();
    stops.insert(run.id, stop.clone());
    let tool = started.parts.tools.tool_of(&started.team.name, &run.tool.name).cloned();
    let wanted = started.parts.slots.of(&run.tool.name, &started.team.calls);
    let telemetry = started.parts.telemetry.clone();
    let patience = run.tool.patience(started.plan.rules.call_timeout_cap);
    let limit = started.plan.rules.limits.tool_result.0;
    let (request_id, traceparent) = (started.request_id.clone(), started.traceparent.clone());
    let news = news.clone();
    let audit = started.parts.audit.clone().filter(|_| Audit::is_about(run.tool.effect));
    let team = started.team.name.clone();
    let id = run.id;
    let task = calls.spawn(async move {
        let queued = Instant::now();
        let taken = match wanted.try_take() {
            Some(taken) => Some(taken),
            None => tokio::select! {
                taken = wanted.take() => taken.ok(),
                () = stop.cancelled() => None,
            },
        };
        let (Some(_taken), Some(tool)) = (taken, tool) else {
            return (id, Outcome::failed(OutcomeKind::Stopped, "stopped before it started"));
        };
        let facts = || Facts {
            team,
            request_id: request_id.clone(),
            call_id: run.call_id,
            key: idempotency_key.clone(),
            tool: run.tool.name.clone(),
            effect: run.tool.effect,
            arguments: run.arguments.clone(),
        };
        let pending = match &audit {
            None => None,
            Some(audit) => match audit.intent(facts()).await {
                Ok(pending) => Some(pending),
                Err(refused) => {
                    summary::call_ended(
                        &telemetry,
                        &run.tool.name,
                        queued.elapsed(),
                        Duration::ZERO,
                        refused.kind,
                    );
                    return (id, refused);
                }
            },
        };
        // The turn may be over already; then nobody listens, and the call is stopped.
        if stop.is_cancelled() || news.send(Input::Started(id)).await.is_err() {
            let stopped = Outcome::failed(OutcomeKind::Stopped, "stopped before it started");
            if let Some(pending) = pending {
                pending.ended(&stopped).await;
            }
            return (id, stopped);
        }
        let waited = queued.elapsed();
        let heard = Arc::new(Notify::new());
        let generous = Patience { silent: patience.silent + GRACE, most: patience.most + GRACE };
        let call = Call {
            arguments: run.arguments,
            idempotency_key,
            request_id,
            traceparent,
            result_limit: limit.min(tool.result_limit()),
            deadline: Instant::now() + generous.silent,
            progress: Progress::new(generous, heard.clone()),
            tries,
        };
        let _in_flight = InFlight::new(&telemetry);
        let began = Instant::now();
        let mut allowed = patience.silent;
        let tell = async {
            loop {
                heard.notified().await;
                allowed = allowed.max(patience.after(began.elapsed()));
                // The turn may be over; then the call is stopped.
                let _ = news.send(Input::Progress(id)).await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = tool.run(&call, &stop) => outcome,
            () = tell => unreachable!("it goes on for ever"),
        };
        let ran = began.elapsed();
        // The turn stops a call whose time is over, before the tool would end it by itself.
        let late = outcome.kind == OutcomeKind::Stopped && ran >= allowed;
        let kind = if late { OutcomeKind::Timeout } else { outcome.kind };
        summary::call_ended(&telemetry, &run.tool.name, waited, ran, kind);
        if let Some(pending) = pending {
            let timed_out = late && !outcome.is_unknown();
            let told = if timed_out { Outcome::failed(kind, "") } else { outcome.clone() };
            pending.ended(&told).await;
        }
        (id, outcome)
    });
    ids.insert(task.id(), id);
}

/// Counts a running call as long as it lives, a panic included.
struct InFlight(metrics::Gauge);

impl InFlight {
    fn new(telemetry: &Telemetry) -> Self {
        telemetry.calls_in_flight.increment(1.0);
        Self(telemetry.calls_in_flight.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Keeps the results of a mixed reply. If that is not possible, the conversation goes on without them.
async fn park(started: &Started, parked: Parked) {
    let Some(first) = parked.foreign().next() else { return };
    let store = &started.parts.store;
    let value = parcel::encode(&fingerprint(&started.messages), &parked);
    if let Err(why) = store.keep(&started.team.name, first, value).await {
        tracing::debug!(request_id = %started.request_id, %why, "the results of a mixed reply are not kept");
    }
    #[expect(clippy::cast_precision_loss, reason = "a gauge")]
    started.parts.telemetry.parked.set(store.parked() as f64);
}
