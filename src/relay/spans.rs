//! The spans of a turn, made from its record when it is over.
//!
//! ```text
//! invoke_agent TEAM                      the turn; below the client's span, if it sent one
//! ├── chat MODEL                         a round
//! │   ├── execute_tool NAME              the calls of its reply, side by side
//! │   └── execute_tool NAME
//! └── chat MODEL
//! ```
//!
//! Names and attributes are those of OpenTelemetry's conventions for generative AI; what they have no name
//! for is called `fanfold.…`.

use std::time::Duration;

use serde_json::{Value, json};

use super::drive::Parts;
use super::pass::{self, Passing};
use super::summary::{Summary, label};
use super::watching::{short, write_shown};
use crate::engine::{CallRecord, Finish, RoundRecord, Show};
use crate::runs::Text;
use crate::telemetry::redact::Redact;
use crate::telemetry::traces::{About, Clock, Kind, Recorded, Span, Trace};
use crate::upstream::Target;
use crate::wire::tool::OutcomeKind;
use crate::wire::usage::Tokens;

/// The answer of a turn, as it goes into its trace.
pub(super) struct Said {
    text: Text,
    most: usize,
}

impl Said {
    /// `None`: it does not.
    pub(super) fn begin(parts: &Parts, trace: &Trace) -> Option<Self> {
        trace.recorded()?;
        let most = parts.traces.as_ref()?.text()?;
        Some(Self { text: Text::default(), most })
    }

    /// The client gets to see something.
    pub(super) fn shown(&mut self, show: &Show) {
        write_shown(&mut self.text, show, Redact::gathered(self.most));
    }
}

/// Hands over the spans of a turn that is over, if there is a trace of it.
pub(super) fn of_turn(summary: &Summary<'_>, answer: Option<Said>) {
    let started = summary.started;
    let (Some(tracer), Some(trace)) = (&started.parts.traces, started.trace.recorded()) else { return };
    let turn = Turn { summary, trace, clock: Clock::began(summary.total), most: tracer.text() };
    let record = summary.turn.record();
    let rounds = record.rounds.iter().enumerate().map(|(i, round)| turn.round(i, round));
    let calls = record.calls.iter().enumerate().map(|(i, call)| turn.call(i, call));
    let spans = [turn.whole(answer)].into_iter().chain(rounds).chain(calls);
    tracer.take(spans.collect());
}

struct Turn<'a> {
    summary: &'a Summary<'a>,
    trace: &'a Recorded,
    clock: Clock,
    /// How much of one text is told; `None`: nothing.
    most: Option<usize>,
}

impl Turn<'_> {
    fn whole(&self, answer: Option<Said>) -> Span {
        let Summary { started, turn, finish, total, .. } = self.summary;
        let (record, usage) = (turn.record(), turn.usage());
        let (reason, error) = match finish {
            Finish::Answer(reason) => (reason.word(), None),
            Finish::Failed(error) => ("", Some(short(&error.code))),
            Finish::Gone => ("", Some("client_gone".to_owned())),
        };
        let status = match finish {
            Finish::Answer(_) => Some(200),
            Finish::Failed(error) => Some(u64::from(error.status)),
            Finish::Gone => None,
        };
        let target = started.targets.get(record.rounds.last().map_or(0, |round| round.target));
        let head = Head {
            team: &started.team.name,
            model: &started.request.model,
            provider: target.map_or("", |target| target.upstream.provider()),
            request_id: &started.request_id,
        };
        let redact = &*started.parts.redact;
        let input =
            self.most.filter(|_| answer.is_some()).map(|most| input(started.messages.bytes(), most, redact));
        let output = answer.map(|answer| output(&answer.text.clean(answer.most, redact).text, reason));
        head.span(self.trace, (self.clock, Duration::ZERO, *total))
            .with("gen_ai.response.finish_reasons", [reason])
            .with("gen_ai.usage.input_tokens", usage.tokens().input)
            .with("gen_ai.usage.output_tokens", usage.tokens().output)
            .with("gen_ai.input.messages", input)
            .with("gen_ai.output.messages", output)
            .with("http.response.status_code", status)
            .with("fanfold.parallel", turn.decision().to_string())
            .with("fanfold.rounds", record.rounds.len() as u64)
            .with("fanfold.tool_calls", record.calls.len() as u64)
            .with("fanfold.saved_seconds", record.saved().as_secs_f64())
            .with("fanfold.limit", record.limits.first().map(|limit| limit.word()))
            .with("fanfold.cost", self.summary.cost())
            .failed(error.as_deref())
    }

    fn round(&self, i: usize, round: &RoundRecord) -> Span {
        let started = self.summary.started;
        let about = About::Round(number(i) + 1);
        let times = (self.clock, round.asked, round.ended.unwrap_or(self.summary.total));
        let reported = round.tokens;
        let last = i + 1 == self.summary.turn.record().rounds.len();
        let error = match self.summary.finish {
            Finish::Failed(error) => Some(short(&error.code)),
            Finish::Gone => Some("client_gone".to_owned()),
            Finish::Answer(_) => None,
        };
        let failed = error.filter(|_| self.summary.failed_in(round, last));
        chat(self.trace, about, started.targets.get(round.target), (&started.request.model, times))
            .with("gen_ai.response.finish_reasons", [round.finish.unwrap_or_default()])
            .with("gen_ai.response.time_to_first_chunk", seconds(round.first, round.asked))
            .with("gen_ai.usage.input_tokens", reported.map(|tokens| tokens.input))
            .with("gen_ai.usage.output_tokens", reported.map(|tokens| tokens.output))
            .with("fanfold.round", number(i) as u64 + 1)
            .with("fanfold.asked_again", Some(u64::from(round.again)).filter(|again| *again > 0))
            .failed(failed.as_deref())
    }

    fn call(&self, i: usize, call: &CallRecord) -> Span {
        let about = call.run.map_or(About::Call(number(i)), About::Run);
        let times =
            (self.clock, call.started.unwrap_or(call.queued), call.ended.unwrap_or(self.summary.total));
        // A name that a model made up may be as long as it likes.
        let name = if call.known { call.tool.to_string() } else { short(&call.tool) };
        let tool = self.summary.started.plan.owned.get(&call.tool).filter(|_| call.known);
        let text = |text: &Option<String>| {
            let most = self.most?;
            text.as_ref().map(|text| self.summary.started.parts.redact.beginning(text, most, 0).0)
        };
        let outcome = call.outcome.filter(|outcome| *outcome != OutcomeKind::Ok).map(label);
        Span::new(self.trace, about, format!("execute_tool {name}"), times)
            .below(self.trace, About::Round(call.round))
            .with("gen_ai.operation.name", "execute_tool")
            .with("gen_ai.tool.name", name)
            .with("gen_ai.tool.type", "function")
            .with("gen_ai.tool.call.id", short(&call.id))
            .with("gen_ai.tool.call.arguments", text(&call.arguments))
            .with("gen_ai.tool.call.result", text(&call.result))
            .with("fanfold.effect", tool.map(|tool| tool.effect.word()))
            .with("fanfold.wait_seconds", seconds(call.started, call.queued))
            .with("fanfold.shared", Some(true).filter(|_| call.shared))
            .failed(outcome)
    }
}

/// Hands over the spans of a chat that went through: a turn of one round.
pub(super) fn of_relay(
    passing: &Passing,
    turn: &pass::Turn,
    ended: (&'static str, u16),
    usage: Option<Tokens>,
    cost: Option<&str>,
) {
    let (Some(tracer), Some(trace)) = (&turn.traces, turn.trace.recorded()) else { return };
    let total = passing.since.elapsed();
    let (outcome, status) = ended;
    let times = (Clock::began(total), Duration::ZERO, total);
    let target = passing.targets.now();
    let error = Some(outcome).filter(|outcome| *outcome != "ok");
    let reported = |span: Span| {
        span.with("gen_ai.usage.input_tokens", usage.map(|tokens| tokens.input))
            .with("gen_ai.usage.output_tokens", usage.map(|tokens| tokens.output))
            .failed(error)
    };
    let head = Head {
        team: &passing.account.team.name,
        model: &turn.model,
        provider: target.upstream.provider(),
        request_id: &turn.request_id,
    };
    let whole = head
        .span(trace, times)
        .with("http.response.status_code", Some(u64::from(status)).filter(|status| *status > 0))
        .with("fanfold.parallel", turn.decision.to_string())
        .with("fanfold.rounds", 1)
        .with("fanfold.tool_calls", 0)
        .with("fanfold.cost", cost);
    let round = chat(trace, About::Round(1), Some(target), (&turn.model, times)).with("fanfold.round", 1);
    tracer.take(vec![reported(whole), reported(round)]);
}

/// What the span of a turn begins with.
struct Head<'a> {
    team: &'a str,
    model: &'a str,
    provider: &'static str,
    request_id: &'a str,
}

impl Head<'_> {
    /// It answers a request, so it stands on a server's side, as service maps want it.
    fn span(&self, trace: &Recorded, times: (Clock, Duration, Duration)) -> Span {
        Span::new(trace, About::Turn, format!("invoke_agent {}", self.team), times)
            .kind(Kind::Server)
            .with("gen_ai.operation.name", "invoke_agent")
            .with("gen_ai.provider.name", self.provider)
            .with("gen_ai.agent.name", self.team)
            .with("gen_ai.request.model", short(self.model))
            .with("fanfold.request_id", self.request_id)
    }
}

/// What the span of a round begins with.
fn chat(
    trace: &Recorded,
    about: About,
    target: Option<&Target>,
    asked: (&str, (Clock, Duration, Duration)),
) -> Span {
    let (sent, times) = asked;
    let model = short(target.map_or(sent, |target| target.model(sent)));
    let server = target.map(|target| target.upstream.server());
    Span::new(trace, about, format!("chat {model}"), times)
        .kind(Kind::Client)
        .with("gen_ai.operation.name", "chat")
        .with("gen_ai.provider.name", target.map(|target| target.upstream.provider()))
        .with("gen_ai.request.model", model)
        .with("server.address", server.map(|(host, _)| host))
        .with("server.port", server.map(|(_, port)| u64::from(port)))
        .with("fanfold.upstream", target.map(|target| &*target.upstream.name))
}

fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn seconds(at: Option<Duration>, since: Duration) -> Option<f64> {
    at.map(|at| at.saturating_sub(since).as_secs_f64())
}

/// The client's messages as the conventions write them, from the last back as far as there is room.
fn input(messages: &[u8], most: usize, redact: &Redact) -> String {
    let Ok(Value::Array(messages)) = serde_json::from_slice(messages) else { return String::new() };
    let (mut kept, mut room) = (Vec::new(), most);
    for message in messages.iter().rev().map(|message| message_of(message, most, redact)) {
        let size = message.to_string().len();
        if size > room && !kept.is_empty() {
            break;
        }
        room = room.saturating_sub(size);
        kept.push(message);
    }
    kept.reverse();
    Value::Array(kept).to_string()
}

fn message_of(message: &Value, most: usize, redact: &Redact) -> Value {
    let cut = |text: &str| redact.beginning(text, most, 0).0;
    let text = |text: &str| json!({ "type": "text", "content": cut(text) });
    let role = message["role"].as_str().unwrap_or_default();
    let mut parts = Vec::new();
    match &message["content"] {
        Value::String(said) if role == "tool" => parts.push(json!({
            "type": "tool_call_response",
            "id": message["tool_call_id"],
            "response": cut(said),
        })),
        Value::String(said) => parts.push(text(said)),
        // Of pictures and sound only that they were there.
        Value::Array(all) => parts.extend(all.iter().map(|part| match part["text"].as_str() {
            Some(said) => text(said),
            None => json!({ "type": part["type"] }),
        })),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {}
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let function = &call["function"];
        parts.push(json!({
            "type": "tool_call",
            "id": call["id"],
            "name": function["name"],
            "arguments": cut(function["arguments"].as_str().unwrap_or_default()),
        }));
    }
    json!({ "role": role, "parts": parts })
}

fn output(text: &str, reason: &str) -> String {
    let part = json!({ "type": "text", "content": text });
    json!([{ "role": "assistant", "parts": [part], "finish_reason": reason }]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redact() -> Redact {
        Redact::new(&crate::telemetry::redact::Settings::default()).unwrap()
    }

    #[test]
    fn messages_are_written_as_the_conventions_have_them() {
        let messages = json!([
            { "role": "user", "content": [{ "type": "text", "text": "look" }, { "type": "image_url", "image_url": {} }] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c", "type": "function", "function": { "name": "f", "arguments": "{\"pin\":1,\"token\":\"t\"}" } }] },
            { "role": "tool", "tool_call_id": "c", "content": "rain: Bearer abcdefgh" },
        ]);
        let told: Value =
            serde_json::from_str(&input(messages.to_string().as_bytes(), 1000, &redact())).unwrap();
        let expected = json!([
            { "role": "user", "parts": [{ "type": "text", "content": "look" }, { "type": "image_url" }] },
            { "role": "assistant", "parts": [{ "type": "tool_call", "id": "c", "name": "f", "arguments": "{\"pin\":1,\"token\":\"••••\"}" }] },
            { "role": "tool", "parts": [{ "type": "tool_call_response", "id": "c", "response": "rain: Bearer ••••" }] },
        ]);
        assert_eq!(told, expected);
        assert_eq!(input(b"not json", 10, &redact()), "");
    }

    #[test]
    fn the_last_messages_are_told_that_fit_and_each_is_cut() {
        let message = |text: String| json!({ "role": "user", "content": text });
        let messages = json!([message("a".repeat(50)), message("b".repeat(50)), message("é".repeat(200))]);
        let told: Value =
            serde_json::from_str(&input(messages.to_string().as_bytes(), 101, &redact())).unwrap();
        assert_eq!(told.as_array().map(Vec::len), Some(1));
        assert_eq!(told[0]["parts"][0]["content"], "é".repeat(50));
    }
}
