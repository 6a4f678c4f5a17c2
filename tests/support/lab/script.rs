//! Scripts: what the lab answers, as data.
//!
//! ```json
//! { "rounds": [
//!     { "reply": { "calls": [{ "name": "f", "arguments": { "x": 1 } }] } },
//!     { "stream": [{ "events": [{ "id": "c", "choices": [] }, "[DONE]"] }, "reset"],
//!       "whole": [{ "json": { "object": "chat.completion" } }] },
//!     { "steps": [{ "answer": { "status": 429, "headers": { "retry-after": "1" }, "body": {} } }] }
//! ] }
//! ```
//!
//! A round is a `reply` (written as OpenAI writes it, streamed or whole as asked), or steps: `stream`
//! and `whole` by what was asked for, `steps` for both. `split` and `gap_ms` of a round cut every
//! body into pieces of so many bytes with a pause after each.

use std::collections::BTreeMap;

use fanfold::demo::reply::{Call, Reply};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A script.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What it shows, for people.
    #[serde(default)]
    pub about: String,
    /// Whose habit it is, for people.
    #[serde(default)]
    pub who: String,
    pub rounds: Vec<Round>,
    /// What the next round waits for.
    #[serde(default)]
    pub advance: Advance,
    /// Past its end the last round is played again; otherwise that is a 500.
    #[serde(default)]
    pub repeat: bool,
    /// Requests are not judged by OpenAI's rules first.
    #[serde(default)]
    pub lenient: bool,
    /// Answers after the head, before the body was read. Only for scripts chosen by path.
    #[serde(default)]
    pub early: bool,
    /// The tools the replies call, for whoever has to declare them.
    #[serde(default)]
    pub tools: Vec<String>,
    /// What a client should make of it.
    #[serde(default)]
    pub expected: Option<Expected>,
}

/// How the round is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advance {
    /// As many assistant messages with calls as the request has after its last user message.
    #[default]
    Conversation,
    /// As many requests as there were before.
    Requests,
}

/// One answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Round {
    pub reply: Option<Said>,
    pub steps: Option<Vec<Step>>,
    pub stream: Option<Vec<Step>>,
    pub whole: Option<Vec<Step>>,
    /// Bytes of one write.
    pub split: Option<usize>,
    /// A pause after each event and each piece.
    pub gap_ms: u64,
}

/// A reply in short.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    pub text: Option<String>,
    #[serde(default)]
    pub calls: Vec<SaidCall>,
    pub finish: Option<String>,
    /// Prompt and completion tokens.
    #[serde(default = "usage")]
    pub usage: [u64; 2],
}

fn usage() -> [u64; 2] {
    [10, 5]
}

/// A call in short.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaidCall {
    pub name: String,
    /// A text is taken as it is, anything else is written as JSON.
    pub arguments: Value,
    pub id: Option<String>,
}

/// One thing the lab does.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Writes a head. Without one, the first body step writes that of an event stream.
    Head(Head),
    /// A whole JSON answer with status 200.
    Json(Value),
    /// A whole answer.
    Answer(Answer),
    /// Events of a stream: `data: ` and the text, or the JSON.
    Events(Vec<Value>),
    /// A piece of the body.
    Send(String),
    /// A piece of the body, again and again for as long as it is taken.
    Flood(String),
    /// A piece of the body, as hexadecimal digits.
    Hex(String),
    /// Bytes past all framing: instead of a head, or in the middle of it all.
    Raw(String),
    /// Does nothing for so long.
    WaitMs(u64),
    /// Does nothing until it is released.
    Stall,
    /// The body ends as its framing wants.
    End,
    /// Closes the connection, whatever was promised.
    Close,
    /// Resets the connection.
    Reset,
}

/// A head.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Head {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub framing: Framing,
    /// For `framing: length`.
    pub length: usize,
    /// `1.1` or `1.0`.
    pub version: String,
}

impl Default for Head {
    fn default() -> Self {
        let headers = [("content-type".to_owned(), "text/event-stream".to_owned())].into();
        Self { status: 200, headers, framing: Framing::default(), length: 0, version: "1.1".into() }
    }
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    #[default]
    Chunked,
    Length,
    /// By closing the connection.
    Close,
}

/// A whole answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    #[serde(default = "ok")]
    pub status: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A text is sent as it is, anything else as JSON.
    #[serde(default)]
    pub body: Value,
}

fn ok() -> u16 {
    200
}

/// What a client that asks through the proxy gets out of the first round, tools being its own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Expected {
    /// An answer.
    Reply(ExpectedReply),
    /// An error in the client's shape, never an answer.
    Error {
        /// Its code, where there is only one right one.
        code: Option<String>,
    },
}

/// The answer, in short.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpectedReply {
    pub text: String,
    pub calls: Vec<ExpectedCall>,
    pub finish: String,
    /// Prompt and completion tokens, where the upstream told them.
    pub usage: Option<[u64; 2]>,
    /// Members the upstream must get back unchanged in its assistant message.
    pub kept: Vec<String>,
}

/// A call, in short.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedCall {
    pub name: String,
    /// The arguments' JSON; a text for arguments that are none.
    pub arguments: Value,
    /// The id, where it has to come through untouched.
    #[serde(default)]
    pub id: Option<String>,
}

impl Script {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.rounds.is_empty() {
            return Err("a script needs a round".into());
        }
        for (n, round) in self.rounds.iter().enumerate() {
            let both = round.stream.is_some() && round.whole.is_some();
            if round.reply.is_none() && round.steps.is_none() && !both {
                return Err(format!("round {n} needs `reply`, `steps`, or both `stream` and `whole`"));
            }
            if round.split == Some(0) {
                return Err(format!("round {n} splits into nothing"));
            }
        }
        Ok(())
    }

    /// The round a request gets, and its number; nothing past the end.
    pub fn round(&self, body: &Value, requests_before: usize) -> (usize, Option<&Round>) {
        let n = match self.advance {
            Advance::Conversation => calls_since_user(body),
            Advance::Requests => requests_before,
        };
        (n, self.rounds.get(n).or_else(|| self.rounds.last().filter(|_| self.repeat)))
    }
}

fn calls_since_user(body: &Value) -> usize {
    let messages = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last = messages.iter().rposition(|m| m["role"] == "user").unwrap_or(0);
    let has_calls = |m: &&Value| m["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
    messages[last..].iter().filter(has_calls).count()
}

impl Round {
    /// The steps for a request.
    pub fn steps(&self, body: &Value, round: usize) -> Vec<Step> {
        let stream = body["stream"] == true;
        if let Some(said) = &self.reply {
            let reply = said.reply(body["model"].as_str().unwrap_or_default(), round);
            return if stream {
                let usage = body["stream_options"]["include_usage"] == true;
                let events = reply.chunks(usage).into_iter();
                vec![Step::Events(events.map(Value::String).collect())]
            } else {
                vec![Step::Json(reply.whole())]
            };
        }
        let chosen = if stream { &self.stream } else { &self.whole };
        chosen.as_ref().or(self.steps.as_ref()).cloned().unwrap_or_default()
    }
}

impl Said {
    fn reply(&self, model: &str, round: usize) -> Reply {
        let calls = self.calls.iter().enumerate().map(|(n, call)| Call {
            id: call.id.clone().unwrap_or_else(|| format!("call_r{round}c{n}")),
            name: call.name.clone(),
            arguments: call.arguments.as_str().map_or_else(|| call.arguments.to_string(), str::to_owned),
        });
        let finish = if self.calls.is_empty() { "stop" } else { "tool_calls" };
        Reply {
            id: format!("chatcmpl-lab{round}"),
            created: 1_760_000_000,
            model: model.to_owned(),
            text: self.text.clone(),
            calls: calls.collect(),
            finish: self.finish.clone().unwrap_or_else(|| finish.to_owned()),
            prompt_tokens: self.usage[0],
            completion_tokens: self.usage[1],
        }
    }
}
