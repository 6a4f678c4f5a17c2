//! Calls: put together from pieces, and written back for the next round.
//!
//! Which piece belongs to which call: the `index` decides if it is there; a new id opens a new call
//! even when the index repeats; a piece without either continues the last call. Some servers give
//! every call index 0 or no index at all, so a piece that names a function opens a new call when the
//! one before it has another name or is complete already.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::fold::{FoldedMembers, Text};
use super::raw::{self, Kind, Raw, write_string};
use super::reply::CallPiece;
use super::scan::{Broken, DEEPEST, Scan};

/// How much of a reply's arguments may be looked at to see whether a call has ended, in bytes. What that means
/// where nothing is left: a call goes on until the reply ends.
const MOST_LOOKED_AT: usize = 16 << 20;
/// The most calls one reply may have.
pub const MOST_CALLS: usize = 256;
/// The function name by which the gpt-4 family sometimes wraps several calls in one.
pub const WRAPPER: &str = "multi_tool_use.parallel";

/// A call, as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    index: Option<u64>,
    /// The upstream's own id, if it gave one.
    pub sent_id: Option<String>,
    /// The id used in every message: the upstream's, or one made in its place.
    pub id: String,
    /// The function's name; empty until it was said.
    pub name: String,
    kind: Option<Raw>,
    arguments: Arguments,
    members: FoldedMembers,
    function: FoldedMembers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Arguments {
    Text(Text),
    Value(Raw),
}

impl Default for Arguments {
    fn default() -> Self {
        Self::Text(Text::default())
    }
}

impl Call {
    /// A call with a plain object of arguments, as found inside a wrapper.
    #[must_use]
    pub fn made(id: String, name: String, arguments: &Raw) -> Self {
        let mut text = Text::default();
        text.push_plain(arguments.text());
        Self { id, name, arguments: Arguments::Text(text), ..Self::default() }
    }

    fn add(&mut self, piece: &CallPiece) {
        if self.sent_id.is_none() {
            self.sent_id.clone_from(&piece.id);
        }
        // Once it is named its owner is known, and it may run already.
        if let Some(name) = piece.name.as_ref().filter(|_| self.name.is_empty()) {
            self.name.clone_from(name);
        }
        if piece.kind.is_some() {
            self.kind.clone_from(&piece.kind);
        }
        match (&piece.arguments, &mut self.arguments) {
            (None, _) => {}
            (Some(more), Arguments::Text(text)) if more.kind() == Kind::String => text.push(more),
            (Some(value), arguments) => *arguments = Arguments::Value(value.clone()),
        }
        piece.members.iter().for_each(|m| self.members.add(m));
        piece.function.iter().for_each(|m| self.function.add(m));
    }

    /// The arguments as JSON text: what the model wrote, `{}` if it wrote nothing.
    #[must_use]
    pub fn arguments(&self) -> String {
        let text = match &self.arguments {
            Arguments::Text(text) => text.plain(),
            Arguments::Value(raw) => raw.text().to_owned(),
        };
        if text.trim().is_empty() { "{}".into() } else { text }
    }

    /// Whether the arguments are JSON.
    #[must_use]
    pub fn parses(&self) -> bool {
        parses(&self.arguments())
    }

    /// A call that is no function call: a custom tool's.
    #[must_use]
    pub const fn is_custom(&self) -> bool {
        self.kind.is_some()
    }

    /// The type as JSON text, when it is not `function`.
    #[must_use]
    pub const fn kind(&self) -> Option<&Raw> {
        self.kind.as_ref()
    }

    /// Whether the arguments came as a value where a string belongs.
    #[must_use]
    pub const fn is_irregular(&self) -> bool {
        matches!(self.arguments, Arguments::Value(_))
    }

    /// Whether the model wrote any arguments so far.
    #[must_use]
    pub fn has_arguments(&self) -> bool {
        match &self.arguments {
            Arguments::Text(text) => !text.is_empty(),
            Arguments::Value(_) => true,
        }
    }

    /// Whether `piece` cannot be more of this call, since it names a function again. What that takes is taken from
    /// what may still be looked at.
    fn is_over(&self, piece: &CallPiece, left: &mut usize) -> bool {
        let Some(name) = &piece.name else { return false };
        if self.name.is_empty() || *name != self.name {
            return !self.name.is_empty();
        }
        // Only a value that may be whole is looked at, and only where another one begins.
        let begins = piece.arguments.as_ref().is_some_and(begins_anew);
        begins && self.may_be_whole() && self.looks_whole(left)
    }

    /// Whether the arguments are JSON; what that takes is taken from what may still be looked at. `false`: there is
    /// nothing left.
    fn looks_whole(&self, left: &mut usize) -> bool {
        let looked_at = left.checked_sub(self.size());
        *left = looked_at.unwrap_or_default();
        looked_at.is_some() && self.parses()
    }

    /// Whether the arguments end as an object or an array does.
    fn may_be_whole(&self) -> bool {
        match &self.arguments {
            Arguments::Text(text) => text.ends_like_a_value(),
            Arguments::Value(_) => true,
        }
    }

    /// The size of the arguments so far, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        match &self.arguments {
            Arguments::Text(text) => text.len(),
            Arguments::Value(raw) => raw.bytes().len(),
        }
    }

    /// The call as an element of `tool_calls`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        write_string(out, &self.id);
        out.extend_from_slice(b",\"type\":");
        out.extend_from_slice(self.kind.as_ref().map_or(b"\"function\"".as_slice(), |k| k.bytes()));
        if !self.is_custom() {
            out.extend_from_slice(b",\"function\":{\"name\":");
            write_string(out, &self.name);
            out.extend_from_slice(b",\"arguments\":");
            out.extend_from_slice(self.arguments_token().bytes());
            for member in &self.function.to_members() {
                out.push(b',');
                member.write(out);
            }
            out.push(b'}');
        }
        for member in &self.members.to_members() {
            out.push(b',');
            member.write(out);
        }
        out.push(b'}');
    }

    /// The arguments as a JSON string.
    #[must_use]
    pub fn arguments_token(&self) -> Raw {
        match &self.arguments {
            Arguments::Text(text) => text.to_raw(),
            Arguments::Value(raw) => Raw::string(raw.text()),
        }
    }

    /// The calls a [`WRAPPER`] call holds, as name and arguments; `None` if it holds none.
    #[must_use]
    pub fn unwrapped(&self) -> Option<Vec<(String, Raw)>> {
        if self.name != WRAPPER {
            return None;
        }
        let uses = Raw::parse(self.arguments()).ok()?.members().ok()?;
        // One more than a reply may have: then it is too much.
        let uses = uses.find("tool_uses")?.elements(MOST_CALLS + 1).ok()?;
        let one = |element: &Raw| {
            let members = element.members().ok()?;
            let name = members.find("recipient_name")?.as_string()?;
            let name = name.strip_prefix("functions.").unwrap_or(&name).to_owned();
            let arguments = members.present("parameters").cloned();
            Some((name, arguments.unwrap_or_else(|| Raw::trusted("{}".into()))))
        };
        let calls: Option<Vec<_>> = uses.iter().map(one).collect();
        calls.filter(|calls| !calls.is_empty())
    }
}

/// The calls of one reply, in the order in which they were opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembler {
    calls: Vec<Call>,
    /// How much of arguments may still be looked at, in bytes.
    left: usize,
}

impl Default for Assembler {
    fn default() -> Self {
        Self { calls: Vec::new(), left: MOST_LOOKED_AT }
    }
}

/// A reply has more than [`MOST_CALLS`] calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyCalls;

impl Assembler {
    /// Adds a piece; gives the call it belongs to. `fresh` makes an id for a new call that has none
    /// of its own, or one that another call of the reply has already.
    pub fn add(&mut self, piece: &CallPiece, fresh: impl FnOnce() -> String) -> Result<usize, TooManyCalls> {
        if let Some(at) = self.place(piece) {
            self.calls[at].add(piece);
            return Ok(at);
        }
        if self.calls.len() >= MOST_CALLS {
            return Err(TooManyCalls);
        }
        let taken = |id: &&String| !self.calls.iter().any(|call| call.id == **id);
        let id = piece.id.as_ref().filter(taken).cloned().unwrap_or_else(fresh);
        let mut call = Call { index: piece.index, id, ..Call::default() };
        call.add(piece);
        self.calls.push(call);
        Ok(self.calls.len() - 1)
    }

    /// The call that `piece` continues.
    fn place(&mut self, piece: &CallPiece) -> Option<usize> {
        if piece.complete {
            return None;
        }
        let Self { calls, left } = self;
        let last = |wanted: &dyn Fn(&Call) -> bool| calls.iter().rposition(wanted);
        match (piece.index, &piece.id) {
            (Some(index), id) => {
                let at = last(&|call| call.index == Some(index))?;
                let call = &calls[at];
                let continues = match (id, &call.sent_id) {
                    (Some(new), Some(old)) => new == old,
                    (Some(_) | None, None) | (None, Some(_)) => !call.is_over(piece, left),
                };
                continues.then_some(at)
            }
            (None, Some(id)) => {
                last(&|call| call.sent_id.as_ref() == Some(id)).filter(|at| !calls[*at].is_over(piece, left))
            }
            (None, None) => {
                let at = calls.len().checked_sub(1)?;
                (piece.name.is_none() || calls[at].name.is_empty()).then_some(at)
            }
        }
    }

    /// The calls.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Whether the arguments of a call are JSON by now; `false` also where too much was looked at before.
    pub fn parses(&mut self, at: usize) -> bool {
        self.calls[at].looks_whole(&mut self.left)
    }

    /// The calls, for good.
    #[must_use]
    pub fn into_calls(self) -> Vec<Call> {
        self.calls
    }
}

/// Whether a piece of arguments is the beginning of a value and no more of one.
fn begins_anew(piece: &Raw) -> bool {
    let inside = piece.text().trim_start_matches('"');
    let text = ["\\n", "\\t", "\\r", " "].iter().fold(inside, |text, space| text.trim_start_matches(space));
    text.starts_with(['{', '['])
}

/// Whether arguments are JSON.
#[must_use]
pub fn parses(arguments: &str) -> bool {
    Scan::whole(arguments).is_some() || serde_json::from_str::<IgnoredAny>(arguments).is_ok()
}

/// Arguments in a form in which equal ones are equal text: members sorted by name, no white space.
/// Numbers keep their text. Text that is not JSON stays as it is.
#[must_use]
pub fn canonical(arguments: &str) -> Cow<'_, str> {
    if is_plainly_canonical(arguments) {
        return Cow::Borrowed(arguments);
    }
    rewritten(arguments).map_or(Cow::Borrowed(arguments), Cow::Owned)
}

/// Text nested deeper than a [`Scan`] reads is left as it is.
fn rewritten(arguments: &str) -> Option<String> {
    let (mut scan, mut out) = (Scan::new(arguments), Vec::with_capacity(arguments.len()));
    rewrite(&mut out, &mut scan, 0).and_then(|()| scan.end()).ok()?;
    String::from_utf8(out).ok()
}

/// Every byte is looked at once; members that are not in order are moved at each level.
fn rewrite(out: &mut Vec<u8>, scan: &mut Scan<'_>, depth: u32) -> Result<(), Broken> {
    if depth > DEEPEST {
        return Err(Broken);
    }
    match scan.peek() {
        Some(b'{') => {
            let start = out.len();
            out.push(b'{');
            // The names, and where each member ends.
            let mut members = Vec::new();
            scan.members(|name, scan| {
                let name = raw::string(name).ok_or(Broken)?;
                if !members.is_empty() {
                    out.push(b',');
                }
                let at = out.len();
                write_string(out, &name);
                out.push(b':');
                rewrite(out, scan, depth + 1)?;
                members.push((name, at..out.len()));
                Ok(())
            })?;
            if !members.is_sorted_by(|a, b| a.0 < b.0) {
                members.sort_by(|a, b| a.0.cmp(&b.0));
                if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                    return Err(Broken);
                }
                let sorted: Vec<&[u8]> = members.iter().map(|(_, at)| &out[at.clone()]).collect();
                let sorted = sorted.join(&b',');
                out.truncate(start + 1);
                out.extend_from_slice(&sorted);
            }
            out.push(b'}');
        }
        Some(b'[') => {
            out.push(b'[');
            let mut first = true;
            scan.elements(|scan| {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                rewrite(out, scan, depth + 1)
            })?;
            out.push(b']');
        }
        Some(b'"') => write_string(out, &raw::string(scan.value()?).ok_or(Broken)?),
        Some(_) | None => out.extend_from_slice(scan.value()?.as_bytes()),
    }
    Ok(())
}

/// Whether arguments are in their canonical form already, as most are: an object without white space, escapes and
/// nested values, its names in order. Others may be, and are not told to be.
fn is_plainly_canonical(arguments: &str) -> bool {
    if memchr::memchr(b'\\', arguments.as_bytes()).is_some() {
        return false;
    }
    let (mut scan, mut written, mut last) = (Scan::new(arguments), 1, None);
    let read = scan.members(|name, scan| {
        if scan.peek().is_some_and(|first| matches!(first, b'{' | b'[')) {
            return Err(Broken);
        }
        let value = scan.value()?;
        // The quotes would sort otherwise than the names do.
        let bare = name.get(1..name.len() - 1);
        if last.is_some() && last >= Some(bare) {
            return Err(Broken);
        }
        last = Some(bare);
        // A colon, and a comma or the end.
        written += name.len() + 1 + value.len() + 1;
        Ok(())
    });
    read.and_then(|()| scan.end()).is_ok() && written.max(2) == arguments.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct P(CallPiece);
    fn p() -> P {
        P(CallPiece::default())
    }
    impl P {
        fn index(mut self, index: u64) -> Self {
            self.0.index = Some(index);
            self
        }
        fn id(mut self, id: &str) -> Self {
            self.0.id = Some(id.into());
            self
        }
        fn name(mut self, name: &str) -> Self {
            self.0.name = Some(name.into());
            self
        }
        fn args(mut self, text: &str) -> Self {
            self.0.arguments = Some(Raw::string(text));
            self
        }
        fn value(mut self, text: &str) -> Self {
            self.0.arguments = Some(Raw::parse(text.to_owned()).unwrap());
            self
        }
    }

    /// `id name arguments` of each call.
    fn assembled(pieces: Vec<P>) -> Vec<String> {
        let mut assembler = Assembler::default();
        let mut made = 0;
        for piece in pieces {
            assembler
                .add(&piece.0, || {
                    made += 1;
                    format!("made{made}")
                })
                .unwrap();
        }
        assembler.calls().iter().map(|c| format!("{} {} {}", c.id, c.name, c.arguments())).collect()
    }

    #[test]
    fn the_canonical_stream_gives_its_calls() {
        let calls = assembled(vec![
            p().index(0).id("call_a").name("f").args(""),
            p().index(0).args("{\"x\""),
            p().index(0).args(":1}"),
            p().index(1).id("call_b").name("g").args(""),
            p().index(1).args("{}"),
        ]);
        assert_eq!(calls, [r#"call_a f {"x":1}"#, "call_b g {}"]);
    }

    #[test]
    fn index_zero_for_every_call_is_survived() {
        let calls = assembled(vec![
            p().index(0).id("a").name("f").args("{}"),
            p().index(0).id("b").name("f").args("{}"),
        ]);
        assert_eq!(calls, ["a f {}", "b f {}"]);
        let calls = assembled(vec![
            p().index(0).name("f").args("{\"x\":1}"),
            p().index(0).name("f").args("{\"x\":2}"),
            p().index(0).name("g").args(""),
        ]);
        assert_eq!(calls, ["made1 f {\"x\":1}", "made2 f {\"x\":2}", "made3 g {}"]);
    }

    #[test]
    fn a_missing_index_is_survived() {
        let calls = assembled(vec![
            p().id("a").name("f").args("{\"x\""),
            p().args(":1}"),
            p().id("b").name("g"),
            p().args("{"),
            p().args("}"),
            p().name("g").args("{}"),
        ]);
        assert_eq!(calls, ["a f {\"x\":1}", "b g {}", "made1 g {}"]);
    }

    #[test]
    fn an_id_that_is_repeated_in_later_pieces_opens_nothing() {
        let calls = assembled(vec![
            p().index(0).id("a").name("f").args("{"),
            p().index(0).id("a").name("f").args("}"),
            p().index(0).id("a").name("f").args(""),
            p().id("a").args(""),
        ]);
        assert_eq!(calls, ["a f {}"]);
    }

    #[test]
    fn a_long_call_that_is_named_in_every_piece_stays_one_call() {
        let mut pieces = vec![p().index(0).name("f").args(&format!("{{\"x\":\"{}", "y".repeat(1 << 20)))];
        pieces.extend((0..200).map(|_| p().index(0).name("f").args("y")));
        pieces.push(p().index(0).name("f").args("\"}"));
        let calls = assembled(pieces);
        assert_eq!(calls.len(), 1);
        assert!(calls[0].ends_with("y\"}"));
    }

    #[test]
    fn calls_that_are_named_in_every_small_piece_are_told_apart() {
        let long = format!("{{\"x\":[{}0]}}", "{\"y\":1},".repeat(3000));
        let pieces = |text: &str| -> Vec<String> {
            text.as_bytes().chunks(4).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
        };
        let each = [long.as_str(), "{}", "{\"z\":2}"];
        let calls = assembled(
            each.into_iter().flat_map(pieces).map(|text| p().index(0).name("f").args(&text)).collect(),
        );
        assert_eq!(
            calls,
            each.iter().zip(1..).map(|(text, n)| format!("made{n} f {text}")).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_call_keeps_its_first_name() {
        let named = |name| p().index(0).id("a").name(name);
        assert_eq!(assembled(vec![named(""), named("f"), named("g"), named("")]), ["a f {}"]);
    }

    #[test]
    fn a_repeated_id_of_another_call_is_replaced() {
        let mut one = p().id("a").name("f").args("{}");
        let mut two = p().id("a").name("f").args("{}");
        one.0.complete = true;
        two.0.complete = true;
        assert_eq!(assembled(vec![one, two]), ["a f {}", "made1 f {}"]);
    }

    #[test]
    fn arguments_come_as_a_value_or_not_at_all() {
        assert_eq!(
            assembled(vec![p().index(0).id("a").name("f").value(r#"{"x": 1.0}"#)]),
            [r#"a f {"x": 1.0}"#]
        );
        assert_eq!(assembled(vec![p().index(0).id("a").name("f")]), ["a f {}"]);
    }

    #[test]
    fn too_many_calls_are_refused() {
        let mut assembler = Assembler::default();
        let add = |assembler: &mut Assembler, i: usize| {
            assembler.add(&p().index(i as u64).id(&format!("c{i}")).name("f").0, String::new)
        };
        for i in 0..MOST_CALLS {
            assert_eq!(add(&mut assembler, i), Ok(i));
        }
        assert_eq!(add(&mut assembler, MOST_CALLS), Err(TooManyCalls));
    }

    #[test]
    fn a_wrapper_is_unwrapped() {
        let arguments = Raw::parse(
            r#"{"tool_uses":[{"recipient_name":"functions.f","parameters":{"x":1}},{"recipient_name":"g"}]}"#,
        )
        .unwrap();
        let call = Call::made("a".into(), WRAPPER.into(), &arguments);
        let calls = call.unwrapped().unwrap();
        assert_eq!(calls[0], ("f".into(), Raw::parse(r#"{"x":1}"#).unwrap()));
        assert_eq!(calls[1].0, "g");
        assert_eq!(Call::made("a".into(), WRAPPER.into(), &Raw::NULL).unwrapped(), None);
    }

    #[test]
    fn equal_arguments_are_equal_text() {
        assert_eq!(
            canonical(r#"{ "b": [1, {"d":2,"c":1.10}], "a": "\u0078" }"#),
            r#"{"a":"x","b":[1,{"c":1.10,"d":2}]}"#
        );
        assert_eq!(canonical("{\"a\""), "{\"a\"");
        assert_ne!(canonical("{\"a\":1}"), canonical("{\"a\":2}"));
    }

    #[test]
    fn what_is_taken_for_canonical_would_be_rewritten_as_it_is() {
        let plain =
            ["{}", r#"{"a":1}"#, r#"{"":null,"a":"x, y: {z}","b":1.10,"č":true}"#, r#"{"a":-0.0,"a b":1E5}"#];
        for text in plain {
            assert!(is_plainly_canonical(text), "{text}");
            assert_eq!(rewritten(text).as_deref(), Some(text));
        }
        let others = [
            "",
            "{",
            "[]",
            "1",
            " {}",
            "{} ",
            r#"{"a" :1}"#,
            r#"{"a": 1}"#,
            r#"{"a":1 }"#,
            r#"{"a":1, "b":2}"#,
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a b":1,"a":2}"#,
            r#"{"a":"\u0078"}"#,
            r#"{"a":{}}"#,
            r#"{"a":[]}"#,
            r#"{"a":1}}"#,
            r#"{"a":1"#,
        ];
        for text in others {
            assert!(!is_plainly_canonical(text), "{text}");
        }
    }

    #[test]
    fn a_call_is_written_with_everything_that_came_with_it() {
        let mut assembler = Assembler::default();
        let mut piece = p().index(0).id("a").name("f").args("{\"x\":1");
        piece.0.members =
            vec![super::super::raw::Member::new("extra_content", Raw::parse(r#"{"s":1.10}"#).unwrap())];
        assembler.add(&piece.0, String::new).unwrap();
        let mut out = Vec::new();
        assembler.calls()[0].write(&mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1"},"extra_content":{"s":1.10}}"#
        );
    }
}
