//! How an answer is written for a client of chat completions: as chunks, or folded into one object.

use bytes::Bytes;

use crate::engine::{CallPart, Part};
use crate::wire::fold::{FoldedMembers, Text};
use crate::wire::named::Named;
use crate::wire::raw::{Kind, Member, Raw, write_string};
use crate::wire::reply::{FinishReason, Head};
use crate::wire::texts::Texts;

/// What goes between the texts of two rounds.
const BLANK_LINE: &str = "\\n\\n";
/// What goes before and after the text of a chunk that says nothing else.
const TEXT: &[u8] = b",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"";
/// The bytes of a chunk without its text, or more.
const USUAL_ENVELOPE: usize = 320;
const END: &[u8] = b"\"},\"finish_reason\":null}]}\n\n";

/// `id`, `created` and `model`, the same for a whole turn.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    id: Raw,
    created: Raw,
    model: Raw,
    /// What goes between two texts: how the event of the one ends and that of the next one begins. It begins as each
    /// chunk's event does, up to the members of the upstream's own.
    between: Vec<u8>,
}

/// What stands in for a head the upstream did not give.
#[derive(Debug, Clone)]
pub(super) struct Fallback {
    pub(super) request_id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
}

impl Fallback {
    fn id(&self) -> String {
        format!("chatcmpl-{}", self.request_id)
    }
}

impl Envelope {
    /// Of an object.
    pub(super) fn new(head: &Head, fallback: &Fallback) -> Self {
        let filled =
            |raw: &Option<Raw>| raw.clone().filter(|r| r.kind() == Kind::String && *r.bytes() != "\"\"");
        let number = head.created.clone().filter(|r| r.kind() == Kind::Number);
        Self {
            id: filled(&head.id).unwrap_or_else(|| Raw::string(&fallback.id())),
            created: number.unwrap_or_else(|| Raw::trusted(fallback.created.to_string().into())),
            model: filled(&head.model).unwrap_or_else(|| Raw::string(&fallback.model)),
            between: Vec::new(),
        }
    }

    /// Of chunks.
    pub(super) fn of_chunks(head: &Head, fallback: &Fallback) -> Self {
        let mut envelope = Self::new(head, fallback);
        let mut between = Vec::with_capacity(USUAL_ENVELOPE);
        between.extend_from_slice(END);
        between.extend_from_slice(b"data: ");
        envelope.write(&mut between, "chat.completion.chunk");
        between.extend_from_slice(TEXT);
        envelope.between = between;
        envelope
    }

    /// The bytes of a part, but for what it says.
    pub(super) fn part_len(&self) -> usize {
        self.between.len()
    }

    /// How the event of a text begins.
    fn before_text(&self) -> &[u8] {
        self.between.get(END.len()..).unwrap_or_default()
    }

    /// How each chunk's event begins.
    fn before_chunk(&self) -> &[u8] {
        self.before_text().strip_suffix(TEXT).unwrap_or_default()
    }

    fn write(&self, out: &mut Vec<u8>, object: &str) {
        out.extend_from_slice(b"{\"id\":");
        out.extend_from_slice(self.id.bytes());
        out.extend_from_slice(b",\"object\":\"");
        out.extend_from_slice(object.as_bytes());
        out.extend_from_slice(b"\",\"created\":");
        out.extend_from_slice(self.created.bytes());
        out.extend_from_slice(b",\"model\":");
        out.extend_from_slice(self.model.bytes());
    }

    /// An event with one chunk, whose delta and members around it `delta` and `around` write.
    fn chunk(
        &self,
        out: &mut Vec<u8>,
        top: &[Member],
        delta: impl FnOnce(&mut Vec<u8>),
        around: &[Member],
        finish: Option<FinishReason>,
    ) {
        let start = out.len();
        out.extend_from_slice(self.before_chunk());
        write_members(out, top);
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{");
        delta(out);
        out.push(b'}');
        write_members(out, around);
        out.extend_from_slice(b",\"finish_reason\":");
        match finish {
            Some(reason) => write_string(out, reason.word()),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b"}]}");
        end_event(out, start);
    }

    /// The role chunk, which goes first.
    pub(super) fn write_role(&self, out: &mut Vec<u8>) {
        self.chunk(
            out,
            &[],
            |out| out.extend_from_slice(b"\"role\":\"assistant\",\"content\":\"\""),
            &[],
            None,
        );
    }

    /// One part of the answer.
    pub(super) fn write_part(&self, out: &mut Vec<u8>, part: &Part) {
        if let Some(texts) = only_text(part).and_then(Texts::of) {
            return self.write_texts(out, &texts);
        }
        self.chunk(out, &part.top, |out| write_delta(out, part), &part.around, None);
    }

    /// Parts that are only more of a text. Strings of JSON have no line ends in them, nor has anything else here.
    pub(super) fn write_texts(&self, out: &mut Vec<u8>, texts: &Texts) {
        out.reserve(texts.count() * self.between.len() + texts.bytes());
        let mut before = self.before_text();
        for text in texts.iter() {
            out.extend_from_slice(before);
            out.extend_from_slice(text);
            before = &self.between;
        }
        out.extend_from_slice(END);
    }

    /// The chunk with the finish reason.
    pub(super) fn write_finish(&self, out: &mut Vec<u8>, reason: FinishReason) {
        self.chunk(out, &[], |_| {}, &[], Some(reason));
    }

    /// A chunk without choices: usage, if asked for, and fanfold's own member.
    pub(super) fn write_last(&self, out: &mut Vec<u8>, usage: Option<&Raw>, own: &Raw) {
        let start = out.len();
        out.extend_from_slice(self.before_chunk());
        out.extend_from_slice(b",\"choices\":[]");
        if let Some(usage) = usage {
            out.extend_from_slice(b",\"usage\":");
            out.extend_from_slice(usage.bytes());
        }
        out.extend_from_slice(b",\"fanfold\":");
        out.extend_from_slice(own.bytes());
        out.push(b'}');
        end_event(out, start);
    }
}

/// The text of a part that says nothing else.
fn only_text(part: &Part) -> Option<&Raw> {
    let Part { round: _, blank_line: false, text: Some(text), members, calls, around, top } = part else {
        return None;
    };
    let alone = members.is_empty() && calls.is_empty() && around.is_empty() && top.is_empty();
    Some(text).filter(|_| alone)
}

/// Ends the event that began at `start`. Members keep the text the upstream gave them, line ends
/// between their tokens included; those would end the `data:` line, so they become spaces. Inside
/// a JSON string there is none.
fn end_event(out: &mut Vec<u8>, start: usize) {
    let mut at = start;
    while let Some(found) = memchr::memchr2(b'\n', b'\r', &out[at..]) {
        at += found;
        out[at] = b' ';
    }
    out.extend_from_slice(b"\n\n");
}

fn write_members<'a>(out: &mut Vec<u8>, members: impl IntoIterator<Item = &'a Member>) {
    for member in members {
        out.push(b',');
        member.write(out);
    }
}

fn write_delta(out: &mut Vec<u8>, part: &Part) {
    let mut comma = false;
    let mut separate = |out: &mut Vec<u8>| {
        if std::mem::replace(&mut comma, true) {
            out.push(b',');
        }
    };
    if let Some(text) = &part.text {
        separate(out);
        out.extend_from_slice(b"\"content\":");
        if part.blank_line {
            out.push(b'"');
            out.extend_from_slice(BLANK_LINE.as_bytes());
            out.extend_from_slice(text.bytes().get(1..).unwrap_or(b"\""));
        } else {
            out.extend_from_slice(text.bytes());
        }
    }
    for member in &part.members {
        separate(out);
        member.write(out);
    }
    if !part.calls.is_empty() {
        separate(out);
        out.extend_from_slice(b"\"tool_calls\":[");
        for (i, call) in part.calls.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_call_part(out, call);
        }
        out.push(b']');
    }
}

fn write_call_part(out: &mut Vec<u8>, call: &CallPart) {
    out.extend_from_slice(format!("{{\"index\":{}", call.index).as_bytes());
    let custom = call.opening.as_ref().is_some_and(|o| o.kind.is_some());
    if let Some(opening) = &call.opening {
        out.extend_from_slice(b",\"id\":");
        write_string(out, &opening.id);
        out.extend_from_slice(b",\"type\":");
        out.extend_from_slice(opening.kind.as_ref().map_or(b"\"function\"".as_slice(), |k| k.bytes()));
    }
    let named = call.opening.as_ref().filter(|_| !custom);
    if named.is_some() || call.arguments.is_some() || !call.function.is_empty() {
        out.extend_from_slice(b",\"function\":{");
        let mut comma = false;
        if let Some(opening) = named {
            out.extend_from_slice(b"\"name\":");
            write_string(out, &opening.name);
            comma = true;
        }
        if let Some(arguments) = &call.arguments {
            out.extend_from_slice(if comma { b",\"arguments\":" } else { b"\"arguments\":" });
            out.extend_from_slice(arguments.bytes());
            comma = true;
        }
        for member in &call.function {
            if std::mem::replace(&mut comma, true) {
                out.push(b',');
            }
            member.write(out);
        }
        out.push(b'}');
    }
    write_members(out, &call.members);
    out.push(b'}');
}

/// An answer that is folded into one object.
#[derive(Debug, Default)]
pub(super) struct Folding {
    text: Text,
    /// The round whose members these are: those of the last one pass, while the text is of all.
    round: u32,
    members: FoldedMembers,
    around: FoldedMembers,
    top: Named<Raw>,
    calls: Vec<FoldedCall>,
}

#[derive(Debug, Default)]
struct FoldedCall {
    id: String,
    kind: Option<Raw>,
    name: String,
    arguments: Text,
    members: FoldedMembers,
    function: FoldedMembers,
}

impl Folding {
    pub(super) fn add(&mut self, part: &Part) {
        if let Some(text) = &part.text {
            if part.blank_line {
                self.text.push_plain("\n\n");
            }
            self.text.push(text);
        }
        if std::mem::replace(&mut self.round, part.round) != part.round {
            (self.members, self.around) = Default::default();
        }
        part.members.iter().for_each(|m| self.members.add(m));
        part.around.iter().for_each(|m| self.around.add(m));
        // Members of the reply are told again, not continued.
        part.top.iter().for_each(|m| self.top.put(m, m.value.clone()));
        for part in &part.calls {
            if self.calls.len() <= part.index {
                self.calls.resize_with(part.index + 1, FoldedCall::default);
            }
            self.calls[part.index].add(part);
        }
    }

    pub(super) fn add_texts(&mut self, texts: &Texts) {
        self.text.push_all(texts);
    }

    /// The whole object.
    pub(super) fn write(
        &self,
        envelope: &Envelope,
        finish: FinishReason,
        usage: Option<&Raw>,
        own: Option<&Raw>,
    ) -> Bytes {
        let mut out = Vec::with_capacity(self.text.len() + 512);
        envelope.write(&mut out, "chat.completion");
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
        let mut members = self.members.to_members();
        out.extend_from_slice(crate::wire::message::content(&self.text, members.find("content")).bytes());
        members.remove("content");
        if members.find("refusal").is_none() {
            out.extend_from_slice(b",\"refusal\":null");
        }
        write_members(&mut out, &members);
        if !self.calls.is_empty() {
            out.extend_from_slice(b",\"tool_calls\":[");
            for (i, call) in self.calls.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                call.write(&mut out);
            }
            out.push(b']');
        }
        out.push(b'}');
        let around = self.around.to_members();
        if around.find("logprobs").is_none() {
            out.extend_from_slice(b",\"logprobs\":null");
        }
        write_members(&mut out, &around);
        out.extend_from_slice(b",\"finish_reason\":");
        write_string(&mut out, finish.word());
        out.extend_from_slice(b"}]");
        if let Some(usage) = usage {
            out.extend_from_slice(b",\"usage\":");
            out.extend_from_slice(usage.bytes());
        }
        write_members(&mut out, &self.top.to_members(Raw::clone));
        if let Some(own) = own {
            out.extend_from_slice(b",\"fanfold\":");
            out.extend_from_slice(own.bytes());
        }
        out.push(b'}');
        out.into()
    }
}

impl FoldedCall {
    fn add(&mut self, part: &CallPart) {
        if let Some(opening) = &part.opening {
            self.id.clone_from(&opening.id);
            self.kind.clone_from(&opening.kind);
            self.name.clone_from(&opening.name);
        }
        if let Some(arguments) = &part.arguments {
            self.arguments.push(arguments);
        }
        part.members.iter().for_each(|m| self.members.add(m));
        part.function.iter().for_each(|m| self.function.add(m));
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        write_string(out, &self.id);
        out.extend_from_slice(b",\"type\":");
        out.extend_from_slice(self.kind.as_ref().map_or(b"\"function\"".as_slice(), |k| k.bytes()));
        if self.kind.is_none() {
            out.extend_from_slice(b",\"function\":{\"name\":");
            write_string(out, &self.name);
            out.extend_from_slice(b",\"arguments\":");
            out.extend_from_slice(self.arguments.to_raw().bytes());
            write_members(out, &self.function.to_members());
            out.push(b'}');
        }
        write_members(out, &self.members.to_members());
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Opening;

    fn envelope() -> Envelope {
        let fallback = Fallback { request_id: "f".into(), created: 7, model: "asked".into() };
        Envelope::of_chunks(&Head { model: Some(Raw::string("m")), ..Head::default() }, &fallback)
    }

    fn parts() -> Vec<Part> {
        let member = |name, text: &str| Member::new(name, Raw::parse(text.to_owned()).unwrap());
        let call = |opening, arguments: &str| CallPart {
            index: 0,
            opening,
            arguments: Some(Raw::string(arguments)),
            ..CallPart::default()
        };
        let opening = Opening { id: "c".into(), kind: None, name: "f".into() };
        vec![
            Part { text: Some(Raw::string("a")), top: vec![member("sys", "1.10")], ..Part::default() },
            Part {
                text: Some(Raw::string("b")),
                blank_line: true,
                members: vec![member("r", "\"x\"")],
                ..Part::default()
            },
            Part {
                calls: vec![call(Some(opening), "{")],
                around: vec![member("logprobs", "{\"content\":[1]}")],
                ..Part::default()
            },
            Part { calls: vec![call(None, "}")], ..Part::default() },
        ]
    }

    #[test]
    fn chunks_have_one_envelope_and_everything_that_came() {
        let mut out = Vec::new();
        let envelope = envelope();
        envelope.write_role(&mut out);
        parts().iter().for_each(|part| envelope.write_part(&mut out, part));
        envelope.write_finish(&mut out, FinishReason::ToolCalls);
        envelope.write_last(&mut out, Some(&Raw::parse("{\"t\":1}").unwrap()), &Raw::parse("{}").unwrap());
        let head = r#"data: {"id":"chatcmpl-f","object":"chat.completion.chunk","created":7,"model":"m""#;
        let expected = [
            r#","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#","sys":1.10,"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#,
            r#","choices":[{"index":0,"delta":{"content":"\n\nb","r":"x"},"finish_reason":null}]}"#,
            r#","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]},"logprobs":{"content":[1]},"finish_reason":null}]}"#,
            r#","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]},"finish_reason":null}]}"#,
            r#","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#","choices":[],"usage":{"t":1},"fanfold":{}}"#,
        ];
        let expected: String = expected.iter().map(|rest| format!("{head}{rest}\n\n")).collect();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn line_ends_in_what_an_upstream_wrote_do_not_end_the_event() {
        let spread = |text: &str| Raw::parse(text.to_owned()).unwrap();
        let part = Part {
            text: Some(Raw::string("a\nb")),
            top: vec![Member::new("sys", spread("{\r\n \"x\": 1.10\n}"))],
            ..Part::default()
        };
        let mut out = Vec::new();
        envelope().write_part(&mut out, &part);
        envelope().write_last(&mut out, Some(&spread("{\n\n\"t\":1\r}")), &spread("{}"));
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            out.lines().map(|line| line.starts_with("data: {")).collect::<Vec<_>>(),
            [true, false, true, false]
        );
        assert!(out.contains(r#""sys":{   "x": 1.10 }"#) && out.contains(r#""content":"a\nb""#), "{out}");
        assert!(out.contains(r#""usage":{  "t":1 }"#) && !out.contains('\r'), "{out}");
    }

    #[test]
    fn a_part_that_is_only_text_is_written_like_any_other() {
        let part = Part { text: Some(Raw::string("a\n\u{1f980}")), ..Part::default() };
        let (mut short, mut long) = (Vec::new(), Vec::new());
        envelope().write_part(&mut short, &part);
        envelope().chunk(&mut long, &[], |out| write_delta(out, &part), &[], None);
        assert!(only_text(&part).is_some());
        assert_eq!(String::from_utf8(short), String::from_utf8(long));
    }

    #[test]
    fn members_of_an_earlier_round_are_not_mixed_with_those_of_the_last() {
        let part = |round, name, value: &str, text: &str| Part {
            round,
            text: Some(Raw::string(text)),
            members: vec![Member::new(name, Raw::string(value))],
            around: vec![Member::new("score", Raw::string(value))],
            ..Part::default()
        };
        let mut folding = Folding::default();
        for part in [
            part(1, "signature", "one", "a"),
            part(1, "thought", "gone", "b"),
            part(2, "signature", "tw", "c"),
            part(2, "signature", "o", "d"),
        ] {
            folding.add(&part);
        }
        let whole = folding.write(&envelope(), FinishReason::Stop, None, None);
        let whole = std::str::from_utf8(&whole).unwrap();
        assert!(
            whole.contains(
                r#""content":"abcd","refusal":null,"signature":"two"},"logprobs":null,"score":"two","#
            ),
            "{whole}"
        );
    }

    #[test]
    fn the_whole_object_has_every_required_member() {
        let mut folding = Folding::default();
        parts().iter().for_each(|part| folding.add(part));
        let whole = folding.write(&envelope(), FinishReason::ToolCalls, None, None);
        assert_eq!(
            whole,
            r#"{"id":"chatcmpl-f","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a\n\nb","refusal":null,"r":"x","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},"logprobs":{"content":[1]},"finish_reason":"tool_calls"}],"sys":1.10}"#
        );
        let empty = Folding::default().write(&envelope(), FinishReason::Stop, None, None);
        assert!(empty.ends_with(br#""message":{"role":"assistant","content":null,"refusal":null},"logprobs":null,"finish_reason":"stop"}]}"#));
    }
}
