//! A reply of a model server, and how it looks on the wire: as the chunks of a stream, or as one
//! JSON object, both exactly as OpenAI writes them.

use serde_json::{Value, json};

/// One tool call of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The call's id.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON text, if the model did well.
    pub arguments: String,
}

/// What the model says in one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The id of the completion.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
    /// Text, if any.
    pub text: Option<String>,
    /// Tool calls, in order.
    pub calls: Vec<Call>,
    /// The `finish_reason`.
    pub finish: String,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

impl Reply {
    /// The `data:` texts of the stream, `[DONE]` included. With `usage` every chunk carries
    /// `"usage":null` and one more chunk carries the numbers.
    #[must_use]
    pub fn chunks(&self, usage: bool) -> Vec<String> {
        let content = if self.text.is_some() { json!("") } else { Value::Null };
        let mut deltas = vec![json!({ "role": "assistant", "content": content, "refusal": null })];
        deltas.extend(pieces(self.text.as_deref().unwrap_or_default()).map(|p| json!({ "content": p })));
        for (index, call) in self.calls.iter().enumerate() {
            deltas.push(json!({ "tool_calls": [{
                "index": index, "id": call.id, "type": "function",
                "function": { "name": call.name, "arguments": "" },
            }] }));
            deltas.extend(slices(&call.arguments).map(
                |piece| json!({ "tool_calls": [{ "index": index, "function": { "arguments": piece } }] }),
            ));
        }
        let mut chunks: Vec<String> =
            deltas.into_iter().map(|delta| self.chunk(delta, Value::Null, usage)).collect();
        chunks.push(self.chunk(json!({}), json!(self.finish), usage));
        if usage {
            let mut last = self.envelope("chat.completion.chunk");
            last["choices"] = json!([]);
            last["usage"] = self.usage();
            chunks.push(last.to_string());
        }
        chunks.push("[DONE]".into());
        chunks
    }

    /// The whole reply as one `chat.completion` object.
    #[must_use]
    pub fn whole(&self) -> Value {
        let mut message = json!({ "role": "assistant", "content": self.text, "refusal": null });
        if !self.calls.is_empty() {
            message["tool_calls"] = self
                .calls
                .iter()
                .map(|call| {
                    json!({ "id": call.id, "type": "function",
                        "function": { "name": call.name, "arguments": call.arguments } })
                })
                .collect();
        }
        message["annotations"] = json!([]);
        let mut whole = self.envelope("chat.completion");
        whole["choices"] = json!([
            { "index": 0, "message": message, "logprobs": null, "finish_reason": self.finish }
        ]);
        whole["usage"] = self.usage();
        whole
    }

    fn chunk(&self, delta: Value, finish: Value, usage: bool) -> String {
        let mut chunk = self.envelope("chat.completion.chunk");
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
        if usage {
            chunk["usage"] = Value::Null;
        }
        chunk.to_string()
    }

    fn envelope(&self, object: &str) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "service_tier": "default", "system_fingerprint": "fp_demo",
        })
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": { "cached_tokens": 0, "audio_tokens": 0 },
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }
}

/// A text in pieces of two words, each with the white space that follows it.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut spaces = rest.match_indices([' ', '\n']);
        let _first = spaces.next();
        let end = spaces.next().map_or(rest.len(), |(at, space)| at + space.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// A text in pieces of eight characters.
fn slices(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.char_indices().nth(8).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: Option<&str>, calls: &[(&str, &str)]) -> Reply {
        Reply {
            id: "chatcmpl-1".into(),
            created: 1,
            model: "m".into(),
            text: text.map(Into::into),
            calls: calls
                .iter()
                .enumerate()
                .map(|(n, (name, arguments))| Call {
                    id: format!("call_{n}"),
                    name: (*name).into(),
                    arguments: (*arguments).into(),
                })
                .collect(),
            finish: if calls.is_empty() { "stop" } else { "tool_calls" }.into(),
            prompt_tokens: 3,
            completion_tokens: 4,
        }
    }

    #[test]
    fn the_pieces_of_a_stream_join_to_the_whole_reply() {
        let text = "Grüße aus  Lima,\nund mehr. ";
        let arguments = r#"{"city":"São Paulo","days":3}"#;
        let reply = reply(Some(text), &[("f", arguments), ("g", "{}")]);
        let mut joined = (String::new(), [String::new(), String::new()]);
        for chunk in reply.chunks(false).iter().filter(|c| *c != "[DONE]") {
            let chunk: Value = serde_json::from_str(chunk).unwrap();
            let delta = &chunk["choices"][0]["delta"];
            joined.0 += delta["content"].as_str().unwrap_or_default();
            if let Some(call) = delta["tool_calls"].get(0) {
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                joined.1[index] += call["function"]["arguments"].as_str().unwrap();
            }
        }
        assert_eq!(joined, (text.to_owned(), [arguments.to_owned(), "{}".to_owned()]));
        assert_eq!(reply.whole()["choices"][0]["message"]["content"], text);
    }

    #[test]
    fn usage_is_told_only_when_asked_for() {
        let reply = reply(None, &[("f", "{}")]);
        assert!(reply.chunks(false).iter().all(|chunk| !chunk.contains("usage")));
        let asked = reply.chunks(true);
        assert_eq!(asked.iter().filter(|chunk| chunk.contains(r#""usage":null"#)).count(), asked.len() - 2);
        let last: Value = serde_json::from_str(&asked[asked.len() - 2]).unwrap();
        assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(7)));
    }

    #[test]
    fn exactly_one_chunk_has_a_finish_reason_and_the_first_has_the_role() {
        let chunks = reply(Some("a b c d"), &[]).chunks(false);
        assert!(chunks[0].contains(r#""role":"assistant""#));
        assert_eq!(chunks.iter().filter(|c| c.contains(r#""finish_reason":"stop""#)).count(), 1);
        assert_eq!(chunks.last().map(String::as_str), Some("[DONE]"));
    }
}
