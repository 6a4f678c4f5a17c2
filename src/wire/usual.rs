//! A whole completion as servers usually write it, looked at in one pass.
//!
//! Who only hands a reply on needs to know that it is one, and what it used. Anything that is not plainly so (an
//! error, a call, members of an unusual kind or twice there) is left to [`decode`](super::reply::decode), which reads
//! with care.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::usage::Tokens;

/// The tokens that a plain completion says it used, if it says so. `None`: this is for the careful reader.
#[must_use]
pub fn plain_completion(text: &[u8]) -> Option<Option<Tokens>> {
    let reply: Reply<'_> = serde_json::from_str(std::str::from_utf8(text).ok()?).ok()?;
    let choice = reply.choices.first()?;
    let plain = reply.error.is_none()
        && reply.x_groq.is_none()
        && reply.object.is_none_or(|object| object.get() == "\"chat.completion\"")
        && choice.index.is_none_or(|index| index == 0)
        && choice.usage.is_none()
        && choice.message.tool_calls.is_none()
        && choice.message.function_call.is_none()
        && reply.usage.as_ref().is_none_or(|usage| usage.input_tokens_details.is_none());
    plain.then(|| reply.usage.map(Usage::tokens))
}

#[derive(Deserialize)]
struct Reply<'a> {
    choices: Vec<Choice>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    usage: Option<Usage>,
    error: Option<IgnoredAny>,
    x_groq: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    index: Option<u64>,
    message: Message,
    usage: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Message {
    tool_calls: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
    /// Servers that use these words as well are read with care.
    input_tokens_details: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Usage {
    fn tokens(self) -> Tokens {
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        Tokens { input: self.prompt_tokens, cached, output: self.completion_tokens }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::wire::reply::{Decoded, decode};

    #[test]
    fn a_plain_completion_is_read_as_the_careful_reader_reads_it() {
        for text in [
            r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"\"error\":1"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":2,"audio_tokens":0}}}"#,
            r#"{"choices":[{"message":{"content":null,"tool_calls":null}},{"index":1,"message":{}}],"usage":null,"error":null}"#,
            r#"{"choices":[{"message":{},"x":{"a":[1.10]}}],"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":null}}"#,
        ] {
            let Ok(Decoded::Piece(piece)) = decode(&Bytes::from_static(text.as_bytes()), true) else {
                panic!("{text}");
            };
            assert!(piece.message.is_some());
            assert_eq!(
                plain_completion(text.as_bytes()),
                Some(piece.usage.as_ref().map(Tokens::of)),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_else_is_for_the_careful_reader() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"choices":[]}"#,
            r#"{"choices":[{}]}"#,
            r#"{"choices":[{"message":null}]}"#,
            r#"{"choices":[{"message":"text"}]}"#,
            r#"{"choices":[{"delta":{}}]}"#,
            r#"{"choices":[{"index":1,"message":{}}]}"#,
            r#"{"choices":[{"message":{"tool_calls":[]}}]}"#,
            r#"{"choices":[{"message":{"function_call":{}}}]}"#,
            r#"{"choices":[{"message":{},"usage":{}}]}"#,
            r#"{"choices":[{"message":{}}],"error":{"message":"m"}}"#,
            r#"{"choices":[{"message":{}}],"object":"error"}"#,
            r#"{"choices":[{"message":{}}],"x_groq":{"usage":{}}}"#,
            r#"{"choices":[{"message":{}}],"usage":{"prompt_tokens":-1,"completion_tokens":4}}"#,
            r#"{"choices":[{"message":{}}],"usage":{"input_tokens":3,"output_tokens":4}}"#,
            r#"{"choices":[{"message":{}}],"usage":{"prompt_tokens":3,"completion_tokens":4,"input_tokens_details":{}}}"#,
            r#"{"choices":[{"message":{}}],"choices":[{"message":{}}]}"#,
            r#"{"choices":[{"message":{}}]} trailing"#,
            r#"{"choices":[{"message":{"content":"cut"#,
        ] {
            assert_eq!(plain_completion(text.as_bytes()), None, "{text}");
        }
        assert_eq!(plain_completion(b"{\"choices\":[{\"message\":{\"content\":\"\xff\"}}]}"), None);
    }
}
