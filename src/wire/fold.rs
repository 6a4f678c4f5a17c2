//! Puts the pieces of a streamed value together again.
//!
//! A member that is told in pieces is folded by its kind: strings are joined, arrays are joined or,
//! when their elements carry an `index`, folded element by element, objects member by member; of
//! everything else the last one counts. A value told once keeps its text.
//!
//! Strings are joined as text, still escaped: a surrogate pair that the network cut in two is whole
//! again afterwards.

use std::collections::HashMap;

use super::named::Named;
use super::raw::{Kind, Member, Members, Raw, unescaped, write_string};
use super::texts::Texts;

/// Members whose text is repeated in every piece rather than continued.
const REPEATED: [&str; 9] =
    ["type", "id", "name", "role", "format", "object", "status", "encoding", "signature_type"];
/// The most elements of one array that are folded.
const MOST_ELEMENTS: usize = 65_536;
/// Values in values in a member are told in pieces down to this depth. Each level is gone over by itself, so a hostile
/// one costs its size as often.
const DEEPEST: u8 = 16;
/// A text of so many bytes grows by an eighth: twice as much would be half empty, in every turn.
const LONG_TEXT: usize = 16 * 1024;

/// The inside of a JSON string, still escaped, that grows at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// Adds the inside of a JSON string; anything else adds nothing.
    pub fn push(&mut self, string: &Raw) {
        if string.kind() == Kind::String {
            let text = string.bytes();
            self.make_room(text.len() - 2);
            self.0.extend_from_slice(&text[1..text.len() - 1]);
        }
    }

    /// Adds texts.
    pub fn push_all(&mut self, texts: &Texts) {
        self.make_room(texts.bytes());
        for text in texts.iter() {
            self.0.extend_from_slice(text);
        }
    }

    fn make_room(&mut self, more: usize) {
        let present = self.0.len();
        if self.0.capacity() - present >= more {
            return;
        }
        if present >= LONG_TEXT {
            self.0.reserve_exact(more.max(present / 8));
        } else {
            self.0.reserve(more);
        }
    }

    /// Adds plain text.
    pub fn push_plain(&mut self, text: &str) {
        let start = self.0.len();
        write_string(&mut self.0, text);
        self.0.pop();
        self.0.remove(start);
    }

    /// Whether its last character that is no space closes an object or an array.
    #[must_use]
    pub fn ends_like_a_value(&self) -> bool {
        let mut text = self.0.trim_ascii_end();
        while let Some(before) = [b"\\n", b"\\t", b"\\r"].iter().find_map(|space| text.strip_suffix(*space)) {
            text = before.trim_ascii_end();
        }
        text.ends_with(b"}") || text.ends_with(b"]")
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The length of the escaped text, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The JSON string.
    #[must_use]
    pub fn to_raw(&self) -> Raw {
        let mut out = Vec::with_capacity(self.0.len() + 2);
        out.push(b'"');
        out.extend_from_slice(&self.0);
        out.push(b'"');
        Raw::trusted(out.into())
    }

    /// The text it means. Half a surrogate pair becomes U+FFFD.
    #[must_use]
    pub fn plain(&self) -> String {
        if let Some(plain) = unescaped(&self.0) {
            return plain;
        }
        let raw = self.to_raw();
        serde_json::from_slice::<String>(raw.bytes()).unwrap_or_else(|_| without_halves(raw.text()))
    }
}

/// Decodes a JSON string, replacing every escape that means half a surrogate pair.
fn without_halves(text: &str) -> String {
    let mut mended = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\u") {
        let escaped_backslash = rest[..at].bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1;
        let unit = rest.get(at + 2..at + 6).and_then(|hex| u16::from_str_radix(hex, 16).ok());
        let pair = rest.get(at + 6..at + 8) == Some("\\u")
            && rest
                .get(at + 8..at + 12)
                .and_then(|hex| u16::from_str_radix(hex, 16).ok())
                .is_some_and(|low| (0xDC00..0xE000).contains(&low));
        let (keep, skip) = match unit {
            _ if escaped_backslash => (&rest[..at + 2], at + 2),
            Some(0xD800..=0xDBFF) if pair => (&rest[..at + 12], at + 12),
            Some(0xD800..=0xDFFF) => (&rest[..at], at + 6),
            _ => (&rest[..at + 2], at + 2),
        };
        mended.push_str(keep);
        if skip == at + 6 {
            mended.push('\u{FFFD}');
        }
        rest = &rest[skip..];
    }
    mended.push_str(rest);
    serde_json::from_str(&mended).unwrap_or_default()
}

/// A value that may be told in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Folded {
    Once(Raw),
    Text(Text),
    List(List),
    Object(FoldedMembers),
}

impl Folded {
    fn add(&mut self, piece: &Raw, depth: u8) {
        if depth > DEEPEST {
            *self = Self::Once(piece.clone());
            return;
        }
        match (piece.kind(), &mut *self) {
            (Kind::Null, _) => {}
            (_, Self::Once(raw)) if raw.kind() == Kind::Null => *self = Self::Once(piece.clone()),
            (kind, Self::Once(raw)) if kind == raw.kind() => {
                if let Some(opened) = Self::opened(raw) {
                    *self = opened;
                    self.add(piece, depth);
                } else {
                    *self = Self::Once(piece.clone());
                }
            }
            (Kind::String, Self::Text(text)) => text.push(piece),
            (Kind::Array, Self::List(list)) => list.add(piece, depth + 1),
            (Kind::Object, Self::Object(members)) => {
                for member in &piece.members().unwrap_or_default() {
                    members.add_at(member, depth + 1);
                }
            }
            _ => *self = Self::Once(piece.clone()),
        }
    }

    /// A value that can grow, as the parts it grows by; `None` for numbers and the like.
    fn opened(raw: &Raw) -> Option<Self> {
        match raw.kind() {
            Kind::String => {
                let mut text = Text::default();
                text.push(raw);
                Some(Self::Text(text))
            }
            Kind::Array => {
                let mut list = List::default();
                raw.elements(MOST_ELEMENTS).ok()?.into_iter().for_each(|element| list.push(element));
                Some(Self::List(list))
            }
            Kind::Object => {
                let mut members = FoldedMembers::default();
                for member in &raw.members().ok()? {
                    members.add(member);
                }
                Some(Self::Object(members))
            }
            Kind::Number | Kind::True | Kind::False | Kind::Null => None,
        }
    }

    fn to_raw(&self) -> Raw {
        match self {
            Self::Once(raw) => raw.clone(),
            Self::Text(text) => text.to_raw(),
            Self::Object(members) => members.to_members().to_raw(),
            Self::List(list) => {
                let mut out = vec![b'['];
                for (i, element) in list.elements.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(element.to_raw().bytes());
                }
                out.push(b']');
                Raw::trusted(out.into())
            }
        }
    }
}

/// Elements of an array, and where the one with each `index` is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct List {
    elements: Vec<Folded>,
    places: HashMap<Raw, usize>,
}

impl List {
    /// Adds more elements, or more of those that are there.
    fn add(&mut self, piece: &Raw, depth: u8) {
        for element in piece.elements(MOST_ELEMENTS).unwrap_or_default() {
            match index(&element).and_then(|index| self.places.get(&index)) {
                Some(at) => self.elements[*at].add(&element, depth),
                None => self.push(element),
            }
        }
    }

    fn push(&mut self, element: Raw) {
        if self.elements.len() < MOST_ELEMENTS {
            if let Some(index) = index(&element) {
                self.places.insert(index, self.elements.len());
            }
            self.elements.push(Folded::Once(element));
        }
    }
}

fn index(element: &Raw) -> Option<Raw> {
    let mut index = None;
    if element.kind() == Kind::Object {
        index = element.members().ok()?.find("index").cloned();
    }
    index
}

/// Members that may be told in pieces, in the order in which they first came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoldedMembers(Named<Folded>);

impl FoldedMembers {
    /// Adds one piece of one member.
    pub fn add(&mut self, piece: &Member) {
        self.add_at(piece, 0);
    }

    fn add_at(&mut self, piece: &Member, depth: u8) {
        let name = piece.name();
        match self.0.get_mut(&name) {
            Some(value) if REPEATED.contains(&name.as_ref()) => {
                if piece.value.kind() != Kind::Null {
                    *value = Folded::Once(piece.value.clone());
                }
            }
            Some(value) => value.add(&piece.value, depth),
            None => self.0.put(piece, Folded::Once(piece.value.clone())),
        }
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole members.
    #[must_use]
    pub fn to_members(&self) -> Members {
        self.0.to_members(Folded::to_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(pieces: &[&str]) -> String {
        let mut folded = FoldedMembers::default();
        for piece in pieces {
            for member in &Raw::parse((*piece).to_owned()).unwrap().members().unwrap() {
                folded.add(member);
            }
        }
        folded.to_members().to_raw().text().to_owned()
    }

    #[test]
    fn told_once_a_value_keeps_its_text() {
        let text = r#"{"a":{"x": 1.10},"b":[ 1 ]}"#;
        assert_eq!(folded(&[text]), text);
    }

    #[test]
    fn pieces_are_folded_by_kind() {
        assert_eq!(
            folded(&[r#"{"a":"x\n"}"#, r#"{"a":null}"#, r#"{"a":"y","n":1}"#, r#"{"n":2.50}"#]),
            r#"{"a":"x\ny","n":2.50}"#
        );
        assert_eq!(folded(&[r#"{"l":[1,2]}"#, r#"{"l":[3]}"#]), r#"{"l":[1,2,3]}"#);
        assert_eq!(
            folded(&[r#"{"o":{"c":[1]}}"#, r#"{"o":{"c":[2],"d":true}}"#]),
            r#"{"o":{"c":[1,2],"d":true}}"#
        );
    }

    #[test]
    fn elements_with_an_index_continue_each_other() {
        assert_eq!(
            folded(&[
                r#"{"r":[{"index":0,"type":"t","text":"a","format":"f"}]}"#,
                r#"{"r":[{"index":0,"type":"t","text":"b","format":"f"}]}"#,
                r#"{"r":[{"index":1,"type":"t","text":"c"}]}"#,
            ]),
            r#"{"r":[{"index":0,"type":"t","text":"ab","format":"f"},{"index":1,"type":"t","text":"c"}]}"#
        );
    }

    #[test]
    fn many_elements_with_an_index_find_their_own() {
        let elements = |text: &str| -> String {
            let each: Vec<_> = (0..30_000).map(|i| format!(r#"{{"index":{i},"x":"{text}"}}"#)).collect();
            format!(r#"{{"r":[{}]}}"#, each.join(","))
        };
        assert_eq!(folded(&[&elements("a"), &elements("b"), &elements("c")]), elements("abc"));
    }

    #[test]
    fn a_cut_surrogate_pair_is_whole_again() {
        let mut text = Text::default();
        text.push(&Raw::string("a"));
        text.push(&Raw::trusted("\"\\ud83d\"".into()));
        text.push(&Raw::trusted("\"\\ude00\"".into()));
        assert_eq!(text.plain(), "a😀");
    }

    #[test]
    fn a_text_of_short_escapes_means_what_json_says() {
        for inside in
            ["", "a", r#"{\"a\":\"\\\\n\"}"#, r#"\b\f\n\r\t\/\\\""#, r"é\n😀", r"\u00e9\n", r"\\u0041"]
        {
            let json = format!("\"{inside}\"");
            let mut text = Text::default();
            text.push(&Raw::parse(json.clone()).unwrap());
            assert_eq!(text.plain(), serde_json::from_str::<String>(&json).unwrap());
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_replaced_not_lost_with_the_rest() {
        let mut text = Text::default();
        text.push(&Raw::trusted(r#""a\\ud83d \ud83d b \ud83d\ude00 \n""#.into()));
        assert_eq!(text.plain(), "a\\ud83d \u{FFFD} b 😀 \n");
    }

    #[test]
    fn a_long_text_takes_little_more_room_than_it_needs() {
        let piece = Raw::parse(format!("\"{}\"", "a".repeat(1000))).unwrap();
        let mut text = Text::default();
        for pieces in 1..=500 {
            text.push(&piece);
            assert_eq!(text.len(), pieces * 1000);
            assert!(text.0.capacity() <= (text.len() + text.len() / 4).max(2 * LONG_TEXT) + 1000);
        }
        assert_eq!(text.plain(), "a".repeat(500_000));
    }

    #[test]
    fn plain_text_is_escaped() {
        let mut text = Text::default();
        text.push_plain("\n\n");
        text.push_plain("\"");
        assert_eq!(text.to_raw().text(), r#""\n\n\"""#);
    }
}
