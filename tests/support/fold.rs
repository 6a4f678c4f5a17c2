//! What a client makes of an answer, streamed or whole, in one shape. It is as strict as the
//! strictest client library: what one of them could not read is an error here.

use std::collections::HashSet;

use serde_json::Value;

use super::client::Got;
use super::lab::script::{Expected, ExpectedCall, ExpectedReply};

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Folded {
    /// It ended well.
    Reply(ExpectedReply),
    /// It is an error, or ended in one, with this code.
    Error(Option<String>),
}

impl Folded {
    /// Whether this is what a script expects; otherwise says what is not.
    pub fn check(&self, expected: &Expected) -> Result<(), String> {
        let differs = |what: &str| Err(format!("{what} differs: expected {expected:?}, got {self:?}"));
        match (self, expected) {
            (Self::Error(got), Expected::Error { code }) => {
                if code.is_none() || got == code {
                    Ok(())
                } else {
                    differs("the code")
                }
            }
            (Self::Reply(got), Expected::Reply(wanted)) => {
                let same = |(got, wanted): (&ExpectedCall, &ExpectedCall)| {
                    got.name == wanted.name
                        && got.arguments == wanted.arguments
                        && (wanted.id.is_none() || got.id == wanted.id)
                };
                let calls =
                    got.calls.len() == wanted.calls.len() && got.calls.iter().zip(&wanted.calls).all(same);
                match () {
                    () if got.text != wanted.text => differs("the text"),
                    () if !calls => differs("the list of calls"),
                    () if got.finish != wanted.finish => differs("the finish"),
                    () if wanted.usage.is_some() && got.usage != wanted.usage => differs("the usage"),
                    () => Ok(()),
                }
            }
            (Self::Error(_), Expected::Reply(_)) | (Self::Reply(_), Expected::Error { .. }) => {
                differs("the end")
            }
        }
    }
}

/// Folds an answer of either kind.
pub fn answer(got: &Got) -> Result<Folded, String> {
    if got.status != 200 {
        return error(&got.json()["error"]);
    }
    if got.header("content-type").starts_with("text/event-stream") {
        stream(&got.body)
    } else {
        whole(&got.json())
    }
}

fn error(error: &Value) -> Result<Folded, String> {
    let members = ["message", "type", "param", "code"];
    if error["message"].as_str().is_none() || members.iter().any(|name| error.get(name).is_none()) {
        return Err(format!("this is no error object of OpenAI's: {error}"));
    }
    Ok(Folded::Error(error["code"].as_str().map(str::to_owned)))
}

/// Folds one JSON answer.
pub fn whole(body: &Value) -> Result<Folded, String> {
    if body["object"] != "chat.completion" {
        return Err(format!("this is no chat.completion: {body}"));
    }
    let choice = &body["choices"][0];
    let message = &choice["message"];
    let present = |of: &Value, name: &str| of.get(name).is_some();
    if !present(choice, "logprobs") || !present(message, "content") || !present(message, "refusal") {
        return Err(format!("a member that must be there is not: {body}"));
    }
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls = calls
        .map(|call| {
            if call["type"] != "function" {
                return Err(format!("a call without its type: {call}"));
            }
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let (id, name) = (text(&call["id"]), text(&call["function"]["name"]));
            let arguments = text(&call["function"]["arguments"]);
            Ok((id.ok_or("no id")?, name.ok_or("no name")?, arguments.ok_or("no arguments")?))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let finish = choice["finish_reason"].as_str().ok_or("no finish_reason")?;
    finished(message["content"].as_str().unwrap_or_default().into(), calls, finish.into(), usage(body))
}

/// Folds a stream.
pub fn stream(body: &str) -> Result<Folded, String> {
    let mut state = Stream::default();
    for event in body.split_inclusive("\n\n") {
        let event = event.strip_suffix("\n\n").ok_or("the stream ends inside an event")?;
        if event.starts_with(':') && !event.contains('\n') {
            continue;
        }
        let data = event.strip_prefix("data: ").filter(|data| !data.contains('\n'));
        let data = data.ok_or_else(|| format!("neither one data line nor a comment: {event:?}"))?;
        if let Some(end) = state.ended {
            return Err(format!("{data:?} comes after {end}"));
        }
        if data == "[DONE]" {
            state.ended = Some("[DONE]");
            continue;
        }
        let chunk: Value = serde_json::from_str(data).map_err(|error| format!("{error} in {data:?}"))?;
        if let Some(object) = chunk.get("error") {
            state.error = Some(error(object)?);
            state.ended = Some("an error");
            continue;
        }
        state.chunk(&chunk)?;
    }
    state.end()
}

#[derive(Default)]
struct Stream {
    chunks: usize,
    /// `id`, `created` and `model` of the first chunk.
    envelope: Option<[Value; 3]>,
    text: String,
    calls: Vec<(String, String, String)>,
    finish: Option<String>,
    usage: Option<[u64; 2]>,
    error: Option<Folded>,
    ended: Option<&'static str>,
}

impl Stream {
    fn chunk(&mut self, chunk: &Value) -> Result<(), String> {
        if chunk["object"] != "chat.completion.chunk" {
            return Err(format!("this is no chunk: {chunk}"));
        }
        let envelope = [chunk["id"].clone(), chunk["created"].clone(), chunk["model"].clone()];
        if *self.envelope.get_or_insert_with(|| envelope.clone()) != envelope {
            return Err(format!("id, created or model change: {chunk}"));
        }
        let choices = chunk["choices"].as_array().ok_or("a chunk without choices")?;
        if self.chunks == 0 && choices.first().is_none_or(|c| c["delta"]["role"] != "assistant") {
            return Err(format!("the first chunk has no role: {chunk}"));
        }
        self.chunks += 1;
        if let Some(usage) = usage(chunk)
            && self.usage.replace(usage).is_some()
        {
            return Err("usage comes twice".into());
        }
        for choice in choices {
            if self.finish.is_some() {
                return Err(format!("a choice comes after the finish: {chunk}"));
            }
            let delta = &choice["delta"];
            self.text += delta["content"].as_str().unwrap_or_default();
            for part in delta["tool_calls"].as_array().into_iter().flatten() {
                self.call(part)?;
            }
            self.finish = choice["finish_reason"].as_str().map(str::to_owned);
        }
        Ok(())
    }

    fn call(&mut self, part: &Value) -> Result<(), String> {
        let index = part["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        let index = index.ok_or_else(|| format!("a call without an index: {part}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if index == self.calls.len() {
            if part["type"] != "function" {
                return Err(format!("a call without its type: {part}"));
            }
            self.calls.push((text(&part["id"]), text(&part["function"]["name"]), String::new()));
        }
        let last = self.calls.len().checked_sub(1) == Some(index);
        let call = self.calls.get_mut(index).filter(|_| last);
        let call = call.ok_or_else(|| format!("a call out of turn: {part}"))?;
        call.2 += &text(&part["function"]["arguments"]);
        Ok(())
    }

    fn end(self) -> Result<Folded, String> {
        if let Some(error) = self.error {
            return Ok(error);
        }
        if self.ended.is_none() {
            return Err("the stream ends without [DONE] and without an error".into());
        }
        let finish = self.finish.ok_or("the stream has no finish_reason")?;
        finished(self.text, self.calls, finish, self.usage)
    }
}

fn usage(of: &Value) -> Option<[u64; 2]> {
    let usage = &of["usage"];
    Some([usage["prompt_tokens"].as_u64()?, usage["completion_tokens"].as_u64()?])
}

fn finished(
    text: String,
    calls: Vec<(String, String, String)>,
    finish: String,
    usage: Option<[u64; 2]>,
) -> Result<Folded, String> {
    let known = ["stop", "length", "tool_calls", "content_filter"];
    if !known.contains(&finish.as_str()) {
        return Err(format!("{finish:?} is no finish_reason of OpenAI's"));
    }
    let ids: HashSet<&str> = calls.iter().map(|(id, _, _)| id.as_str()).collect();
    if ids.len() != calls.len() || ids.iter().any(|id| id.is_empty() || id.len() > 40) {
        return Err(format!("ids that are empty, doubled or too long: {ids:?}"));
    }
    let calls = calls.into_iter().map(|(id, name, arguments)| {
        let read = if arguments.is_empty() { "{}" } else { &arguments };
        let read = serde_json::from_str(read).unwrap_or_else(|_| arguments.clone().into());
        ExpectedCall { name, arguments: read, id: Some(id) }
    });
    Ok(Folded::Reply(ExpectedReply { text, calls: calls.collect(), finish, usage, kept: Vec::new() }))
}
