//! What is told about a turn when it is over: totals for the client, metrics, one log line.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::drive::{Parts, Started};
use super::pass::{self, Passing};
use super::sink::Totals;
use super::watching::Told;
use crate::engine::{CallRecord, Finish, Record, RoundRecord, Turn};
use crate::team::Team;
use crate::team::account::Account;
use crate::team::money::Money;
use crate::telemetry::traces::Recorded;
use crate::telemetry::{Telemetry, metrics};
use crate::upstream::Upstream;
use crate::wire::failure::{Fact, Failure, FailureKind};
use crate::wire::raw::{Raw, write_string};
use crate::wire::tool::OutcomeKind;
use crate::wire::usage::Tokens;

/// Headers of a whole answer.
pub(super) const ROUNDS: HeaderName = HeaderName::from_static("x-fanfold-rounds");
pub(super) const TOOL_CALLS: HeaderName = HeaderName::from_static("x-fanfold-tool-calls");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const USAGE: HeaderName = HeaderName::from_static("x-fanfold-usage");
const COST: HeaderName = HeaderName::from_static("x-fanfold-cost");

/// A finished turn.
pub(super) struct Summary<'a> {
    pub(super) started: &'a Started,
    pub(super) turn: &'a Turn,
    pub(super) finish: &'a Finish,
    pub(super) total: Duration,
    pub(super) first: Option<Duration>,
    pub(super) client_gone: bool,
    /// What the rounds cost, if the model has a price.
    pub(super) cost: Option<Money>,
}

impl Summary<'_> {
    /// What the client gets beside the answer.
    pub(super) fn totals(&self) -> Totals {
        let plan = &self.started.plan;
        let streams = plan.stream && matches!(self.finish, Finish::Answer(_));
        let wanted = plan.transcript || (streams && plan.include_usage);
        Totals {
            // A stream tells it only where it was asked to.
            usage: if streams && !plan.include_usage { None } else { self.turn.usage().total() },
            own: wanted.then(|| self.own()),
            transcript: plan.transcript,
            // The head of a stream leaves before they are known.
            headers: if streams { Vec::new() } else { self.headers() },
        }
    }

    /// fanfold's own member.
    fn own(&self) -> Raw {
        let record = self.turn.record();
        let mut own = Vec::with_capacity(128);
        // Writing to a Vec cannot fail.
        let _ = write!(own, "{{\"rounds\":{},\"tool_calls\":{}", record.rounds.len(), record.calls.len());
        own.extend_from_slice(b",\"parallel\":");
        write_string(&mut own, self.turn.decision().text());
        if self.turn.usage().is_partial() {
            own.extend_from_slice(b",\"usage_partial\":true");
        }
        if let Some(cost) = self.cost() {
            own.extend_from_slice(b",\"cost\":");
            write_string(&mut own, &cost);
        }
        if self.started.plan.transcript {
            let _ = write!(own, ",\"transcript\":{}", transcript(record));
        }
        own.push(b'}');
        Raw::trusted(own.into())
    }

    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let record = self.turn.record();
        let mut timing = Vec::with_capacity(96);
        for (i, round) in record.rounds.iter().enumerate() {
            if let Some(ended) = round.ended {
                // Writing to a Vec cannot fail.
                let _ = write!(timing, "round{}", i + 1);
                duration(&mut timing, b";dur=", ended.saturating_sub(round.asked));
                timing.extend_from_slice(b", ");
            }
        }
        duration(&mut timing, b"tools;dur=", record.tool_time());
        duration(&mut timing, b", overhead;dur=", record.overhead(self.total));
        let mut headers = Vec::with_capacity(5);
        if self.turn.usage().is_partial() {
            headers.push((USAGE, HeaderValue::from_static("partial")));
        }
        headers.extend(self.cost().and_then(|cost| Some((COST, HeaderValue::try_from(cost).ok()?))));
        headers.push((ROUNDS, record.rounds.len().into()));
        headers.push((TOOL_CALLS, record.calls.len().into()));
        headers.extend(HeaderValue::try_from(timing).ok().map(|timing| (SERVER_TIMING, timing)));
        headers
    }

    /// What the turn cost, if its model has a price.
    pub(super) fn cost(&self) -> Option<String> {
        self.cost.map(|cost| money(cost, &self.started.account))
    }

    /// The turn's outcome, as a label.
    pub(super) fn outcome(&self) -> &'static str {
        match self.finish {
            Finish::Answer(_) => "ok",
            Finish::Gone => "client_gone",
            Finish::Failed(error) => match error.status {
                424 => "failed_after_tools",
                504 => "timeout",
                400..=499 => "refused",
                _ => "error",
            },
        }
    }

    /// What the record of runs is told of the end.
    pub(super) fn told(&self) -> Told {
        Told {
            total: self.total,
            first: self.first,
            outcome: self.outcome(),
            client_gone: self.client_gone,
            cost: self.cost(),
        }
    }

    /// Writes metrics and the log line.
    pub(super) fn record(&self) {
        let (record, started) = (self.turn.record(), self.started);
        let telemetry = &started.parts.telemetry;
        let (team, model) = (&started.team.name, &started.route.model);
        let outcome = self.outcome();
        let of_team = [("team", &**team)];
        let labels = [("team", &**team), ("model", &**model), ("outcome", outcome)];
        telemetry.seconds(metrics::REQUEST_SECONDS, &labels, self.total);
        if let Some(first) = self.first {
            telemetry.seconds(metrics::FIRST_TOKEN_SECONDS, &labels, first);
        }
        telemetry.count(metrics::TURNS, &[("team", team), ("outcome", outcome)], 1);
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        {
            telemetry.record(metrics::INFERENCE_CALLS, &of_team, record.rounds.len() as f64);
            telemetry.record(metrics::AGENT_TOOL_CALLS, &of_team, record.calls.len() as f64);
        }
        telemetry.saved(team, record.saved());
        telemetry.seconds(metrics::OVERHEAD_SECONDS, &[], record.overhead(self.total));
        for (i, round) in record.rounds.iter().enumerate() {
            self.record_round(round, i + 1 == record.rounds.len());
        }
        for call in &record.calls {
            self.record_not_run(call);
        }
        for limit in &record.limits {
            telemetry.count(metrics::LIMIT_HITS, &[("limit", limit.word())], 1);
        }
        if record.mixed {
            telemetry.count(metrics::MIXED_REPLIES, &[], 1);
        }
        if self.client_gone {
            telemetry.count(metrics::DISCONNECTS, &[], 1);
        }
        let used = self.turn.usage().tokens();
        let tokens = [("input", used.input), ("output", used.output)];
        for (kind, count) in tokens {
            let labels = [("team", &**team), ("model", &**model), ("token_type", kind)];
            telemetry.count(metrics::TOKENS, &labels, count);
        }
        self.log(outcome, tokens[0].1, tokens[1].1);
    }

    /// A call of a known tool that was over before it could start: its arguments were no JSON, or it
    /// got no slot in time. The others are counted where they run.
    fn record_not_run(&self, call: &CallRecord) {
        let waited = call.ended.map(|ended| ended.saturating_sub(call.queued));
        let (true, None, false, Some(waited)) = (call.known, call.started, call.shared, waited) else {
            return;
        };
        if let Some(outcome @ (OutcomeKind::InvalidArguments | OutcomeKind::Timeout)) = call.outcome {
            call_ended(&self.started.parts.telemetry, &call.tool, waited, Duration::ZERO, outcome);
        }
    }

    /// Whether the turn ended because of this round.
    pub(super) fn failed_in(&self, round: &RoundRecord, last: bool) -> bool {
        last && !matches!(self.finish, Finish::Answer(_)) && round.finish.is_none()
    }

    fn record_round(&self, round: &RoundRecord, last: bool) {
        let started = self.started;
        let failed = self.failed_in(round, last);
        let labels = [
            ("upstream", self.upstream(round)),
            ("model", &*started.route.model),
            ("outcome", if failed { "error" } else { "ok" }),
        ];
        let took = round.ended.unwrap_or(self.total).saturating_sub(round.asked);
        started.parts.telemetry.seconds(metrics::OPERATION_SECONDS, &labels, took);
    }

    /// The upstream that answered a round, or failed last.
    fn upstream(&self, round: &RoundRecord) -> &str {
        self.started.targets.get(round.target).map_or("", |target| &target.upstream.name)
    }

    fn log(&self, outcome: &'static str, input: u64, output: u64) {
        let (record, started) = (self.turn.record(), self.started);
        let error = match self.finish {
            Finish::Failed(error) => error.code.as_str(),
            Finish::Answer(_) | Finish::Gone => "",
        };
        tracing::info!(
            request_id = started.request_id.as_str(),
            team = &*started.team.name,
            model = started.request.model.as_str(),
            upstream = record.rounds.last().map_or("", |round| self.upstream(round)),
            parallel = self.turn.decision().text(),
            rounds = record.rounds.len(),
            tool_calls = record.calls.len(),
            outcome,
            error,
            ms = millis(self.total),
            tools_ms = millis(record.tool_time()),
            saved_ms = millis(record.saved()),
            input_tokens = input,
            output_tokens = output,
            cost = self.cost().as_deref(),
            trace_id = started.trace.recorded().map(Recorded::name).as_deref(),
            "turn"
        );
        if started.parts.log_content {
            let clean = |text: &Option<String>| {
                text.as_ref().map(|text| started.parts.redact.text(text).into_owned())
            };
            for call in &record.calls {
                let (arguments, result) = (clean(&call.arguments), clean(&call.result));
                tracing::info!(request_id = %started.request_id, tool = %call.tool, ?arguments, ?result, "call");
            }
        }
    }
}

/// What is told of a turn that broke off: it panicked, so it can tell nothing itself.
pub(super) struct Broken {
    parts: Arc<Parts>,
    team: Arc<Team>,
    request_id: String,
}

impl Broken {
    pub(super) fn of(started: &Started) -> Self {
        let request_id = started.request_id.clone();
        Self { parts: started.parts.clone(), team: started.team.clone(), request_id }
    }

    pub(super) fn tell(&self) {
        let labels = [("team", &*self.team.name), ("outcome", "error")];
        self.parts.telemetry.count(metrics::TURNS, &labels, 1);
        tracing::error!(request_id = self.request_id, team = &*self.team.name, "a turn panicked");
    }
}

/// A chat that went through: a turn of one round, in which nothing had to be done.
pub(super) fn relayed(
    passing: &Passing,
    turn: &pass::Turn,
    (at, outcome): (Instant, &'static str),
    tokens: Tokens,
    cost: Option<&str>,
) {
    let telemetry = &passing.telemetry;
    let team = ("team", &*passing.account.team.name);
    telemetry.record(metrics::INFERENCE_CALLS, std::slice::from_ref(&team), 1.0);
    telemetry.count(metrics::TURNS, &[team, ("outcome", outcome)], 1);
    let upstream = &passing.targets.now().upstream.name;
    let round = [
        ("upstream", &**upstream),
        ("model", &*passing.model),
        ("outcome", if outcome == "ok" { "ok" } else { "error" }),
    ];
    telemetry.seconds(metrics::OPERATION_SECONDS, &round, at.saturating_duration_since(turn.asked));
    tracing::info!(
        request_id = turn.request_id.as_str(),
        team = &*passing.account.team.name,
        model = turn.model.as_str(),
        upstream = &**upstream,
        parallel = turn.decision.text(),
        rounds = 1,
        tool_calls = 0,
        outcome,
        ms = millis(at.saturating_duration_since(passing.since)),
        input_tokens = tokens.input,
        output_tokens = tokens.output,
        cost,
        trace_id = turn.trace.recorded().map(Recorded::name).as_deref(),
        "turn"
    );
}

/// An amount with its currency.
pub(super) fn money(cost: Money, account: &Account) -> String {
    format!("{cost} {}", account.currency)
}

/// `server-timing` of a whole chat that goes through.
pub(super) fn relayed_timing(headers: &mut HeaderMap, round: Duration, total: Duration) {
    let mut timing = Vec::with_capacity(64);
    duration(&mut timing, b"round1;dur=", round);
    duration(&mut timing, b", tools;dur=0, overhead;dur=", total.saturating_sub(round));
    if let Ok(value) = HeaderValue::try_from(timing) {
        headers.insert(SERVER_TIMING, value);
    }
}

/// Milliseconds behind a name.
fn duration(timing: &mut Vec<u8>, name: &[u8], time: Duration) {
    timing.extend_from_slice(name);
    // Writing to memory cannot fail, and a duration is a number that JSON has.
    let _ = serde_json::to_writer(timing, &millis(time));
}

/// Milliseconds, to a hundredth.
pub(super) fn millis(time: Duration) -> f64 {
    let rest = u64::from((time.subsec_nanos() + 5_000) / 10_000);
    let hundredths = time.as_secs().saturating_mul(100_000).saturating_add(rest);
    hundredths as f64 / 100.0
}

fn transcript(record: &Record) -> Value {
    let time = |at: Option<Duration>| at.map_or(Value::Null, |at| json!(millis(at)));
    let usage = |raw: &Raw| serde_json::from_slice::<Value>(raw.bytes()).unwrap_or(Value::Null);
    let round = |round: &RoundRecord| {
        json!({
            "asked_ms": millis(round.asked),
            "first_ms": time(round.first),
            "ended_ms": time(round.ended),
            "asked_again": round.again,
            "finish_reason": round.finish,
            "usage": round.usage.as_ref().map(usage),
        })
    };
    let call = |call: &CallRecord| {
        json!({
            "round": call.round,
            "id": call.id,
            "tool": &*call.tool,
            "arguments": call.arguments,
            "outcome": call.outcome,
            "result": call.result,
            "queued_ms": millis(call.queued),
            "started_ms": time(call.started),
            "ended_ms": time(call.ended),
            "shared": call.shared,
        })
    };
    json!({
        "rounds": record.rounds.iter().map(round).collect::<Vec<_>>(),
        "calls": record.calls.iter().map(call).collect::<Vec<_>>(),
        "limits": record.limits.iter().map(|limit| limit.word()).collect::<Vec<_>>(),
        "saved_ms": millis(record.saved()),
    })
}

/// An ask failed; whatever comes of it.
pub(super) fn ask_failed(started: &Started, target: usize, failure: &Failure) {
    if failure.kind == FailureKind::TooLarge {
        started.parts.telemetry.count(metrics::LIMIT_HITS, &[("limit", "reply")], 1);
    }
    if failure.kind == FailureKind::Credentials {
        credentials_refused(&started.parts.telemetry, &started.targets[target].upstream);
    }
}

/// An upstream refuses a key.
pub(super) fn credentials_refused(telemetry: &Telemetry, upstream: &Upstream) {
    let name = &upstream.name;
    telemetry.count(metrics::CREDENTIALS_REFUSED, &[("upstream", name)], 1);
    tracing::error!(upstream = %name, "the upstream refuses this gateway's credentials: check `upstreams.{name}.api_key`, `api_keys`, and the `upstream_keys` of teams");
}

/// A question is asked again, perhaps of the next upstream.
pub(super) fn asked_again(telemetry: &Telemetry, before: &Upstream, why: FailureKind, moves_on: bool) {
    let reason = ("reason", why.label());
    // Who was left alone was not asked.
    if why != FailureKind::LeftAlone {
        telemetry.count(metrics::UPSTREAM_RETRIES, std::slice::from_ref(&reason), 1);
    }
    if moves_on {
        let labels = [("upstream", &*before.name), reason];
        telemetry.count(metrics::FAILOVERS, &labels, 1);
    }
}

/// The upstream refuses something for this model.
pub(super) fn learned(telemetry: &Telemetry, upstream: &Upstream, fact: Fact, model: &str) {
    upstream.learn(fact, model);
    let (name, what, setting) = match fact {
        Fact::NoParallel => (metrics::PARALLEL_LEARNED, "parallel_tool_calls", "parallel_tool_calls: false"),
        Fact::NoEffort => {
            (metrics::EFFORT_LEARNED, "tools beside a reasoning_effort", "reasoning_effort_with_tools: false")
        }
    };
    telemetry.count(name, &[("upstream", &*upstream.name)], 1);
    tracing::warn!(upstream = %upstream.name, %model, "the upstream does not take {what} for this model; it is left out from now on (set `{setting}` on the route to say so yourself)");
}

/// A request repeats another, and got this.
pub(crate) fn repetition(telemetry: &Telemetry, result: &'static str) {
    telemetry.count(metrics::REPETITIONS, &[("result", result)], 1);
}

/// The metric's word for how a call ended.
pub(super) const fn label(outcome: OutcomeKind) -> &'static str {
    match outcome {
        OutcomeKind::Ok => "ok",
        OutcomeKind::Error => "error",
        OutcomeKind::Timeout => "timeout",
        OutcomeKind::InvalidArguments => "invalid_arguments",
        OutcomeKind::Denied => "denied",
        OutcomeKind::Stopped => "stopped",
    }
}

/// A call ended.
pub(super) fn call_ended(
    telemetry: &Telemetry,
    tool: &Arc<str>,
    waited: Duration,
    ran: Duration,
    outcome: OutcomeKind,
) {
    let label = label(outcome);
    let of_tool = ("tool", &**tool);
    telemetry.seconds(metrics::TOOL_SECONDS, &[of_tool, ("outcome", label)], ran);
    telemetry.seconds(metrics::TOOL_WAIT_SECONDS, &[of_tool], waited);
}
