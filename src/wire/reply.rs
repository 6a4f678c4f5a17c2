//! What an upstream says in one event of a stream, or in one whole completion.
//!
//! Both become a [`Piece`]; a whole completion is a stream of one piece. Members that fanfold does
//! not know travel in it as they came.

use bytes::Bytes;

use super::error::Said;
use super::raw::{MAX_MEMBERS, Member, Raw, ReadError, each_element, each_member, string};

/// The most calls one event may carry.
pub(super) const MOST_CALLS_IN_A_PIECE: usize = 1024;

/// Part of a reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// `id`, `created` and `model` of the object.
    pub head: Head,
    /// `content`, when it is a string that is not empty: a JSON string.
    pub text: Option<Raw>,
    /// The other members of the delta or message, but `role`; nulls only of a message.
    pub members: Vec<Member>,
    /// `tool_calls`.
    pub calls: Vec<CallPiece>,
    /// `finish_reason`, when it says something.
    pub finish: Option<FinishReason>,
    /// The other members of the choice: `logprobs` and the like; nulls only beside a message.
    pub around: Vec<Member>,
    /// The other members of the object: `system_fingerprint` and the like.
    pub top: Vec<Member>,
    /// `usage`, wherever the upstream puts it.
    pub usage: Option<Raw>,
    /// The message of a whole completion, as it came.
    pub message: Option<Raw>,
}

/// The members of a reply that are the same for a whole turn. Each is JSON text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// `id`.
    pub id: Option<Raw>,
    /// `created`.
    pub created: Option<Raw>,
    /// `model`.
    pub model: Option<Raw>,
}

/// Part of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallPiece {
    /// `index`, if it is there.
    pub index: Option<u64>,
    /// `id`, unless it is empty.
    pub id: Option<String>,
    /// `function.name`, unless it is empty.
    pub name: Option<String>,
    /// `function.arguments`: part of a string, or, from some servers, the value itself.
    pub arguments: Option<Raw>,
    /// `type`, when it is not `function`.
    pub kind: Option<Raw>,
    /// The other members; nulls only of a whole completion.
    pub members: Vec<Member>,
    /// The other members of `function`; nulls only of a whole completion.
    pub function: Vec<Member>,
    /// The call is complete in itself: it stood in a whole completion.
    pub complete: bool,
}

/// Why a reply ended, in the words clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// A limit was reached.
    Length,
    /// There are calls to run.
    ToolCalls,
    /// The provider's filter stepped in.
    ContentFilter,
    /// The ancient form of `ToolCalls`.
    FunctionCall,
}

impl FinishReason {
    /// The word on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::FunctionCall => "function_call",
        }
    }

    /// What the value of `finish_reason` says, as JSON text.
    pub(super) fn of(value: &str) -> Option<Self> {
        string(value).and_then(|word| Self::read(&word))
    }

    fn read(word: &str) -> Option<Self> {
        match word {
            "" => None,
            "length" | "max_tokens" | "model_length" => Some(Self::Length),
            "tool_calls" | "tool_use" => Some(Self::ToolCalls),
            "content_filter" | "safety" => Some(Self::ContentFilter),
            "function_call" => Some(Self::FunctionCall),
            // Servers have many words of their own for a normal end; clients only know this one.
            _ => Some(Self::Stop),
        }
    }
}

/// What one event or body turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Part of a reply.
    Piece(Box<Piece>),
    /// An error object.
    Error(Said),
    /// An object that is neither.
    Nothing,
}

/// Reads one event (`data` without its name) or one whole body.
///
/// `legacy` says that the client used `functions`, so `function_call` is its own affair.
pub fn decode(text: &Bytes, legacy: bool) -> Result<Decoded, ReadError> {
    if text.first() == Some(&b'[') {
        return Ok(Said::of_value(&Raw::trusted(text.clone())).map_or(Decoded::Nothing, Decoded::Error));
    }
    let mut reader = Reader { text, legacy, piece: Piece::default(), inner: None };
    let (mut choices, mut error, mut flat_error) = (None, None, false);
    few_members(text, |name, value| {
        match name {
            "\"choices\"" => choices = Some(value),
            "\"error\"" => error = (value != "null").then_some(value),
            "\"id\"" => reader.piece.head.id = reader.given(value),
            "\"created\"" => reader.piece.head.created = reader.given(value),
            "\"model\"" => reader.piece.head.model = reader.given(value),
            "\"usage\"" => reader.usage(value),
            "\"x_groq\"" => reader.vendor_usage(name, value),
            "\"object\"" => flat_error = value == "\"error\"",
            _ => reader.top(name, value),
        }
        true
    })?;
    if let Some(error) = error {
        let value = Raw::trusted(format!("{{\"error\":{error}}}").into());
        return Ok(Decoded::Error(Said::of_value(&value).unwrap_or_default()));
    }
    if flat_error {
        return Ok(Decoded::Error(Said::read(text)));
    }
    let Some(choices) = choices else {
        let telling = reader.piece.usage.is_some();
        return Ok(if telling { Decoded::Piece(Box::new(reader.piece)) } else { Decoded::Nothing });
    };
    reader.choices(choices)?;
    Ok(Decoded::Piece(Box::new(reader.piece)))
}

struct Reader<'a> {
    text: &'a Bytes,
    legacy: bool,
    piece: Piece,
    inner: Option<ReadError>,
}

impl<'a> Reader<'a> {
    fn share(&self, part: &str) -> Raw {
        Raw::trusted(self.text.slice_ref(part.as_bytes()))
    }

    fn given(&self, value: &str) -> Option<Raw> {
        (value != "null").then(|| self.share(value))
    }

    /// A member, unless it is a null that only says that there is nothing new.
    fn member(&self, name: &str, value: &str) -> Option<Member> {
        let says_something = value != "null" || self.piece.message.is_some();
        says_something.then(|| Member::of_parts(self.share(name), self.share(value)))
    }

    fn top(&mut self, name: &str, value: &str) {
        self.piece.top.push(Member::of_parts(self.share(name), self.share(value)));
    }

    fn usage(&mut self, value: &str) {
        if value.starts_with('{') {
            self.piece.usage = Some(self.share(value));
        }
    }

    /// Groq reports usage in a member of its own.
    fn vendor_usage(&mut self, name: &str, value: &str) {
        let usage = self.share(value).members().ok().and_then(|m| m.present("usage").cloned());
        if self.piece.usage.is_none() {
            self.piece.usage = usage;
        }
        self.top(name, value);
    }

    fn choices(&mut self, value: &'a str) -> Result<(), ReadError> {
        if !value.starts_with('[') {
            return if value == "null" {
                Ok(())
            } else {
                Err(ReadError::NotJson("`choices` is not an array".into()))
            };
        }
        let mut read = Ok(());
        each_element(value.as_bytes(), |choice| match self.choice(choice) {
            Ok(first) => !first,
            Err(error) => {
                read = Err(error);
                false
            }
        })?;
        read
    }

    /// Reads the first choice; whether this is it. Who asks for several gets them without a turn.
    fn choice(&mut self, value: &'a str) -> Result<bool, ReadError> {
        let (mut delta, mut other) = (None, false);
        let mut around = Vec::new();
        few_members(value.as_bytes(), |name, value| {
            match name {
                "\"index\"" => other = value.parse::<u64>().is_ok_and(|index| index > 0),
                "\"delta\"" => delta = Some(value),
                "\"message\"" => {
                    delta = Some(value);
                    self.piece.message = self.given(value);
                }
                "\"finish_reason\"" => self.piece.finish = FinishReason::of(value),
                "\"usage\"" if self.piece.usage.is_none() => self.usage(value),
                _ => around.push((name, value)),
            }
            !other
        })?;
        if other {
            (self.piece.message, self.piece.finish) = (None, None);
            return Ok(false);
        }
        self.piece.around = around.iter().filter_map(|(name, value)| self.member(name, value)).collect();
        match delta {
            Some(delta) if delta != "null" => self.delta(delta)?,
            _ => {}
        }
        Ok(true)
    }

    fn delta(&mut self, value: &'a str) -> Result<(), ReadError> {
        few_members(value.as_bytes(), |name, value| {
            match name {
                "\"role\"" => {}
                "\"content\"" if value.starts_with('"') => {
                    self.piece.text = (value != "\"\"").then(|| self.share(value));
                }
                "\"content\"" if value == "null" => {}
                "\"tool_calls\"" => {
                    let read = self.calls(value);
                    self.keep(read);
                }
                "\"function_call\"" if !self.legacy && value.starts_with('{') => {
                    let read = self.legacy_call(value);
                    self.keep(read);
                }
                _ => {
                    if let Some(member) = self.member(name, value) {
                        self.piece.members.push(member);
                    }
                }
            }
            true
        })?;
        self.inner.take().map_or(Ok(()), Err)
    }

    fn keep(&mut self, read: Result<(), ReadError>) {
        if let Err(error) = read {
            self.inner.get_or_insert(error);
        }
    }

    fn calls(&mut self, value: &'a str) -> Result<(), ReadError> {
        if value == "null" {
            return Ok(());
        }
        let mut read = Ok(());
        each_element(value.as_bytes(), |call| {
            read = self.call(call);
            read.is_ok() && self.piece.calls.len() < MOST_CALLS_IN_A_PIECE
        })?;
        read
    }

    fn call(&mut self, value: &'a str) -> Result<(), ReadError> {
        let mut call = CallPiece { complete: self.piece.message.is_some(), ..CallPiece::default() };
        let mut function = None;
        few_members(value.as_bytes(), |name, value| {
            match name {
                "\"index\"" => call.index = value.parse().ok(),
                "\"id\"" => call.id = filled(value),
                "\"type\"" => {
                    call.kind =
                        (value != "\"function\"" && value != "\"\"").then(|| self.given(value)).flatten()
                }
                "\"function\"" => function = Some(value),
                _ => call.members.extend(self.member(name, value)),
            }
            true
        })?;
        if let Some(function) = function.filter(|f| f.starts_with('{')) {
            self.function(&mut call, function)?;
        }
        self.piece.calls.push(call);
        Ok(())
    }

    fn function(&self, call: &mut CallPiece, value: &'a str) -> Result<(), ReadError> {
        few_members(value.as_bytes(), |name, value| {
            match name {
                "\"name\"" => call.name = filled(value),
                "\"arguments\"" => call.arguments = self.given(value),
                _ => call.function.extend(self.member(name, value)),
            }
            true
        })
    }

    fn legacy_call(&mut self, value: &'a str) -> Result<(), ReadError> {
        let mut call =
            CallPiece { index: Some(0), complete: self.piece.message.is_some(), ..CallPiece::default() };
        self.function(&mut call, value)?;
        self.piece.calls.push(call);
        Ok(())
    }
}

/// Visits the members of an object like [`each_member`]; more than [`MAX_MEMBERS`] are an error.
fn few_members<'a>(text: &'a [u8], mut visit: impl FnMut(&'a str, &'a str) -> bool) -> Result<(), ReadError> {
    let mut count = 0;
    each_member(text, |name, value| {
        count += 1;
        count <= MAX_MEMBERS && visit(name, value)
    })?;
    if count > MAX_MEMBERS { Err(ReadError::TooMany) } else { Ok(()) }
}

/// A string that is not empty.
pub(super) fn filled(value: &str) -> Option<String> {
    string(value).filter(|text| !text.is_empty()).map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &'static str) -> Piece {
        match decode(&Bytes::from_static(text.as_bytes()), false) {
            Ok(Decoded::Piece(piece)) => *piece,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_text_chunk_keeps_what_fanfold_does_not_know() {
        let p = piece(
            r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","sys":1.10,"choices":[{"index":0,"delta":{"role":"assistant","content":"h\u00e9","reasoning_content":"r"},"logprobs":null,"score":1E2,"finish_reason":null}],"usage":null}"#,
        );
        assert_eq!(p.text.unwrap().text(), r#""h\u00e9""#);
        assert_eq!((p.members.len(), p.members[0].is("reasoning_content")), (1, true));
        assert_eq!((p.around.len(), p.around[0].value.text()), (1, "1E2"));
        assert_eq!((p.top.len(), p.top[0].value.text()), (1, "1.10"));
        assert_eq!((p.finish, p.usage, p.head.model.unwrap().text()), (None, None, "\"m\""));
    }

    #[test]
    fn only_the_first_choice_is_read() {
        let p = piece(
            r#"{"choices":[{"x":1,"message":{"content":"b"},"finish_reason":"length","index":1},{"index":0,"message":{"content":"a"}}]}"#,
        );
        assert_eq!((p.text.unwrap().text(), p.finish, p.around), ("\"a\"", None, vec![]));
        let other = piece(r#"{"choices":[{"index":1,"delta":{"content":"b","tool_calls":[{"id":"x"}]}}]}"#);
        assert_eq!((other.text, other.calls), (None, vec![]));
        assert_eq!(piece(r#"{"choices":[{"delta":{"content":"a"}}]}"#).text.unwrap().text(), "\"a\"");
    }

    #[test]
    fn a_null_says_nothing_in_a_delta_and_is_kept_in_a_message() {
        let delta = piece(
            r#"{"s":null,"error":null,"choices":[{"logprobs":null,"delta":{"r":null,"content":null}}]}"#,
        );
        assert_eq!((delta.members.len(), delta.around.len(), delta.top.len()), (0, 0, 1));
        let message = piece(
            r#"{"choices":[{"logprobs":null,"message":{"r":null,"content":null,"tool_calls":[{"a":null,"function":{"name":"f","b":null}}]}}]}"#,
        );
        assert_eq!((message.members[0].is("r"), message.members.len(), message.around.len()), (true, 1, 1));
        assert_eq!((message.calls[0].members.len(), message.calls[0].function.len()), (1, 1));
    }

    #[test]
    fn calls_are_read_in_every_shape() {
        let p = piece(
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"id":"","type":"function","function":{"name":"f","arguments":{"x":1.0}},"extra_content":{"g":1}},{"function":{"arguments":"{"}}]}}]}"#,
        );
        let call = &p.calls[0];
        assert_eq!((call.index, &call.id, call.name.as_deref()), (Some(1), &None, Some("f")));
        assert_eq!(call.arguments.as_ref().unwrap().text(), r#"{"x":1.0}"#);
        assert_eq!(call.members[0].value.text(), r#"{"g":1}"#);
        assert_eq!((p.calls[1].index, p.calls[1].arguments.as_ref().unwrap().text()), (None, "\"{\""));
        let legacy = piece(r#"{"choices":[{"delta":{"function_call":{"name":"f","arguments":"{}"}}}]}"#);
        assert_eq!(legacy.calls[0].name.as_deref(), Some("f"));
    }

    #[test]
    fn usage_is_found_where_servers_put_it() {
        for text in [
            r#"{"choices":[],"usage":{"total_tokens":3}}"#,
            r#"{"choices":[{"delta":{},"usage":{"total_tokens":3}}]}"#,
            r#"{"choices":[],"x_groq":{"usage":{"total_tokens":3}}}"#,
            r#"{"usage":{"total_tokens":3}}"#,
        ] {
            assert_eq!(piece(text).usage.unwrap().text(), r#"{"total_tokens":3}"#, "{text}");
        }
    }

    #[test]
    fn errors_are_found_in_every_shape() {
        for text in [
            r#"{"error":{"message":"m","code":7},"choices":[{"delta":{"content":"x"}}]}"#,
            r#"{"error":"m"}"#,
            r#"{"object":"error","message":"m"}"#,
            r#"[{"error":{"message":"m"}}]"#,
        ] {
            let decoded = decode(&Bytes::from_static(text.as_bytes()), false);
            assert!(
                matches!(&decoded, Ok(Decoded::Error(said)) if said.message == "m"),
                "{text}: {decoded:?}"
            );
        }
        assert!(matches!(
            decode(&Bytes::from_static(b"{\"error\":null,\"choices\":[]}"), false),
            Ok(Decoded::Piece(_))
        ));
    }

    #[test]
    fn members_without_number_are_refused_wherever_they_stand() {
        let many = |n: usize| (0..n).map(|i| format!("\"m{i}\":{i}")).collect::<Vec<_>>().join(",");
        for n in [MAX_MEMBERS - 3, MAX_MEMBERS + 1] {
            let many = many(n);
            for text in [
                format!(r#"{{{many},"choices":[]}}"#),
                format!(r#"{{"choices":[{{{many}}}]}}"#),
                format!(r#"{{"choices":[{{"delta":{{{many}}}}}]}}"#),
                format!(r#"{{"choices":[{{"message":{{{many}}}}}]}}"#),
                format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{{many}}}]}}}}]}}"#),
                format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{{"function":{{{many}}}}}]}}}}]}}"#),
            ] {
                let text = Bytes::from(text);
                assert_eq!(decode(&text, false).is_err(), n > MAX_MEMBERS, "{n} in {text:.60?}");
                assert_eq!(super::super::chunk::read(&text), None, "this is for the careful reader");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_not_taken_for_one() {
        assert_eq!(decode(&Bytes::from_static(b"{}"), false), Ok(Decoded::Nothing));
        for broken in [
            "",
            "<html>",
            "{\"choices\":7}",
            "{\"choices\":[7]}",
            "{\"choices\":[{\"delta\":7}]}",
            "{\"choices\":[{\"delta\":{\"tool_calls\":[7]}}]}",
        ] {
            assert!(decode(&Bytes::copy_from_slice(broken.as_bytes()), false).is_err(), "{broken}");
        }
    }

    #[test]
    fn finish_reasons_are_the_ones_clients_know() {
        for (word, reason) in [
            ("stop", Some(FinishReason::Stop)),
            ("eos", Some(FinishReason::Stop)),
            ("", None),
            ("max_tokens", Some(FinishReason::Length)),
        ] {
            assert_eq!(FinishReason::read(word), reason);
        }
    }
}
