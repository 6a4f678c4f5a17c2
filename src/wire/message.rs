//! The messages fanfold adds to a conversation.

use super::call::Call;
use super::fold::{FoldedMembers, Text};
use super::raw::{Kind, Raw, write_string};

/// Room for what is written of a message around its content, and for a usual call, in bytes.
const ROOM: usize = 64;
const ROOM_OF_CALL: usize = 192;

/// What the upstream said in one reply, as the assistant message it sends back to it.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// The message of a whole completion, as it came.
    pub whole: Option<&'a Raw>,
    /// The text of a streamed reply.
    pub text: &'a Text,
    /// The other members of a streamed reply.
    pub members: &'a FoldedMembers,
    /// The calls.
    pub calls: &'a [Call],
    /// The calls are not those of the whole message: an id was made, a wrapper was opened.
    pub changed: bool,
}

/// The assistant message: as the upstream sent it wherever that is possible.
#[must_use]
pub fn assistant(said: &Said<'_>) -> Raw {
    if let Some(whole) = said.whole {
        if !said.changed {
            return whole.clone();
        }
        let mut members = whole.members().unwrap_or_default();
        members.remove("function_call");
        let mut calls = Vec::new();
        write_calls(&mut calls, said.calls);
        members.set("tool_calls", Raw::trusted(calls.into()));
        return members.to_raw();
    }
    let mut members = said.members.to_members();
    let content = content(said.text, members.find("content"));
    members.remove("content");
    let mut out = Vec::with_capacity(content.bytes().len() + ROOM + said.calls.len() * ROOM_OF_CALL);
    out.extend_from_slice(b"{\"role\":\"assistant\",\"content\":");
    out.extend_from_slice(content.bytes());
    for member in &members {
        out.push(b',');
        member.write(&mut out);
    }
    if !said.calls.is_empty() {
        out.extend_from_slice(b",\"tool_calls\":");
        write_calls(&mut out, said.calls);
    }
    out.push(b'}');
    Raw::trusted(out.into())
}

fn write_calls(out: &mut Vec<u8>, calls: &[Call]) {
    out.push(b'[');
    for (i, call) in calls.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        call.write(out);
    }
    out.push(b']');
}

/// The content of a streamed reply: text, or the parts some servers stream instead, or both.
#[must_use]
pub fn content(text: &Text, parts: Option<&Raw>) -> Raw {
    match parts.filter(|p| p.kind() == Kind::Array) {
        None if text.is_empty() => Raw::NULL,
        None => text.to_raw(),
        Some(parts) if text.is_empty() => parts.clone(),
        Some(parts) => {
            let part = format!("{{\"type\":\"text\",\"text\":{}}}", text.to_raw().text());
            let mut out = Vec::new();
            super::request::append_elements(&mut out, parts, std::iter::once(part));
            Raw::trusted(out.into())
        }
    }
}

/// The tool message that answers one call.
#[must_use]
pub fn tool(id: &str, name: &str, content: &str) -> Raw {
    let mut out = Vec::with_capacity(content.len() + id.len() + name.len() + 64);
    out.extend_from_slice(b"{\"role\":\"tool\",\"tool_call_id\":");
    write_string(&mut out, id);
    out.extend_from_slice(b",\"name\":");
    write_string(&mut out, name);
    out.extend_from_slice(b",\"content\":");
    write_string(&mut out, content);
    out.push(b'}');
    Raw::trusted(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_message_goes_back_as_it_came() {
        let whole = Raw::parse(
            r#"{"role":"assistant","content":null,"reasoning_content":"r","n":1.10,"tool_calls":[ ]}"#,
        )
        .unwrap();
        let call = Call::made("a".into(), "f".into(), &Raw::parse("{}").unwrap());
        let said = Said {
            whole: Some(&whole),
            text: &Text::default(),
            members: &FoldedMembers::default(),
            calls: &[call],
            changed: false,
        };
        assert_eq!(assistant(&said), whole);
        let changed = assistant(&Said { changed: true, ..said });
        assert_eq!(
            changed.text(),
            r#"{"role":"assistant","content":null,"reasoning_content":"r","n":1.10,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]}"#
        );
    }

    #[test]
    fn parts_and_text_stay_together() {
        let mut text = Text::default();
        text.push_plain("t");
        let parts = Raw::parse(r#"[{"type":"thinking"}]"#).unwrap();
        assert_eq!(
            content(&text, Some(&parts)).text(),
            r#"[{"type":"thinking"},{"type":"text","text":"t"}]"#
        );
        assert_eq!(content(&text, None).text(), "\"t\"");
        assert_eq!(content(&Text::default(), None), Raw::NULL);
    }

    #[test]
    fn a_tool_message_has_its_name() {
        assert_eq!(
            tool("a", "f", "x\n").text(),
            r#"{"role":"tool","tool_call_id":"a","name":"f","content":"x\n"}"#
        );
    }
}
