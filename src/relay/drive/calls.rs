//! The calls of a turn: each is a task of its own in a set the turn owns. It waits for its slots and its
//! permissions, then runs, and its outcome goes to the engine.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::audit::{Audit, Facts};
use crate::engine::{Action, Input, Run, RunId};
use crate::ledger::Refused;
use crate::relay::summary;
use crate::team::account::Account;
use crate::telemetry::Telemetry;
use crate::telemetry::traces::About;
use crate::tools::{Call, Progress};
use crate::wire::tool::{Effect, Outcome, OutcomeKind, Patience};

/// How much longer than the engine's own deadline a tool may think it has.
const GRACE: Duration = Duration::from_secs(1);
/// The result of a call with effects that may have run already, for all one knows.
const NOT_KNOWN: &str = "not run: whether it ran before cannot be found out right now. Do not try it again now; say that it was not done";
/// The result of a call of a tool that the team may not use any more.
const TAKEN_AWAY: &str = "not run: this tool may not be used any more. Go on without it";

pub(super) type Ended = Result<(tokio::task::Id, (RunId, Ran)), tokio::task::JoinError>;

/// What became of a call.
pub(super) enum Ran {
    /// It ended, or was not run.
    Ended(Outcome),
    /// It must not run: another attempt of the same request runs its tools.
    Superseded,
}

impl Driver {
    /// Starts a call as a task of its own: it waits for its slots and its permissions, then runs.
    pub(super) fn start_call(&mut self, run: Run) {
        let tries = self.watching.as_mut().map(|watching| watching.runs(&run)).unwrap_or_default();
        let started = &self.started;
        let idempotency_key = [&*self.turn_id, "-", &run.id.to_string()].concat();
        let stop = CancellationToken::new();
        self.stops.insert(run.id, stop.clone());
        let tool = started.parts.tools.tool_of(&started.team.name, &run.tool.name).cloned();
        let (slots, team) = (started.parts.slots.clone(), started.team.clone());
        let account = started.account.clone();
        let telemetry = started.parts.telemetry.clone();
        let patience = run.tool.patience(started.plan.rules.call_timeout_cap);
        let limit = started.plan.rules.limits.tool_result.0;
        let (request_id, trace) = (started.request_id.clone(), started.trace.carried(About::Run(run.id)));
        let news = self.news.0.clone();
        let audit = started.parts.audit.clone().filter(|_| Audit::is_about(run.tool.effect));
        let ledger = self.run.as_deref().cloned().filter(|_| run.tool.effect == Effect::Write);
        let id = run.id;
        // Boxed before it is handed on: spawning moves what it is given several times.
        let task = self.calls.spawn(Box::pin(async move {
            let queued = Instant::now();
            let wanted = slots.of(&run.tool.name, &team);
            let taken = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                taken = slots.queue().take(&wanted) => Some(taken),
            };
            let (Some(_taken), Some(tool)) = (taken, tool) else {
                return (id, Ran::Ended(Outcome::failed(OutcomeKind::Stopped, "stopped before it started")));
            };
            let turned_away = |outcome: Outcome| {
                let waited = queued.elapsed();
                summary::call_ended(&telemetry, &run.tool.name, waited, Duration::ZERO, outcome.kind);
                (id, Ran::Ended(outcome))
            };
            // What the team may use is asked again: the operator may have taken it away since it was offered.
            if let Err(denied) = may_run(&account, &run.tool.name).await {
                return turned_away(denied);
            }
            if let Some(ledger) = ledger {
                match ledger.permit(&run.tool.name).await {
                    Ok(()) => {}
                    Err(Refused::Superseded) => return (id, Ran::Superseded),
                    Err(Refused::Unknown) => {
                        return turned_away(Outcome::failed(OutcomeKind::Denied, NOT_KNOWN));
                    }
                }
            }
            let facts = || Facts {
                team: team.name.clone(),
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
                    Err(refused) => return turned_away(refused),
                },
            };
            // The turn may be over already; then nobody listens, and the call is stopped.
            if stop.is_cancelled() || news.send(Input::Started(id)).await.is_err() {
                let stopped = Outcome::failed(OutcomeKind::Stopped, "stopped before it started");
                if let Some(pending) = pending {
                    pending.ended(&stopped).await;
                }
                return (id, Ran::Ended(stopped));
            }
            let waited = queued.elapsed();
            let heard = Arc::new(Notify::new());
            let generous = Patience { silent: patience.silent + GRACE, most: patience.most + GRACE };
            let call = Call {
                arguments: run.arguments,
                idempotency_key,
                request_id,
                trace,
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
            (id, Ran::Ended(outcome))
        }));
        self.ids.insert(task.id(), id);
    }

    pub(super) fn call_ended(&mut self, ended: Ended, actions: &mut Vec<Action>) {
        let (run, outcome) = match ended {
            Ok((id, (run, Ran::Ended(outcome)))) => {
                self.ids.remove(&id);
                (run, outcome)
            }
            Ok((_, (_, Ran::Superseded))) => {
                // Several calls may have asked; it is one request.
                if !self.turn.is_done() {
                    summary::repetition(&self.started.parts.telemetry, "superseded");
                }
                return self.step(Input::Superseded, actions);
            }
            Err(error) => {
                let Some(run) = self.ids.remove(&error.id()) else { return };
                tracing::error!(request_id = %self.started.request_id, "a tool call panicked");
                (run, Outcome::failed(OutcomeKind::Error, "the tool failed inside the gateway"))
            }
        };
        self.stops.remove(&run);
        // A call says that it starts before it ends; the engine hears it in this order too.
        self.hear_calls(actions);
        self.step(Input::Outcome(run, outcome), actions);
    }

    /// Hears what calls that run have said by now.
    pub(super) fn hear_calls(&mut self, actions: &mut Vec<Action>) {
        while let Ok(news) = self.news.1.try_recv() {
            self.step(news, actions);
        }
    }
}

/// Whether a call may run: its tool was not taken away, and the team's quota has one left.
async fn may_run(account: &Account, tool: &str) -> Result<(), Outcome> {
    let denied = |why: &str| Outcome::failed(OutcomeKind::Denied, why);
    if !account.team.may_call(tool) {
        return Err(denied(TAKEN_AWAY));
    }
    account.take_call().await.map_err(|why| denied(&why))
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
