//! JSON text that stays as it came.
//!
//! An object is read as the ordered list of its members; the text of each name and value is kept.
//! Going through a tree would change numbers (`1.10`, a 30-digit integer), drop the first of two
//! equal names and cost many times the text's size in memory.
//!
//! Promises: nothing is copied while reading from a [`Bytes`]; equal names in one object, more than
//! [`MAX_MEMBERS`] members and nesting deeper than [`MAX_DEPTH`] are errors.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::careful;
use super::scan::{Scan, plain};

/// The most members one object may have when fanfold reads it.
pub const MAX_MEMBERS: usize = 1024;
/// The deepest nesting of arrays and objects in a body.
pub const MAX_DEPTH: usize = 128;

/// JSON text, known to be well-formed. Cloning shares it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Raw(Bytes);

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl Raw {
    /// The text `null`.
    pub const NULL: Self = Self(Bytes::from_static(b"null"));

    /// Takes text that the caller knows to be JSON: it came from a reader or a writer of this crate.
    #[must_use]
    pub(crate) const fn trusted(text: Bytes) -> Self {
        Self(text)
    }

    /// Checks and takes text.
    pub fn parse(text: impl Into<Bytes>) -> Result<Self, ReadError> {
        let text = text.into();
        if let Some(inner) = std::str::from_utf8(&text).ok().and_then(Scan::whole) {
            return Ok(Self(text.slice_ref(inner.as_bytes())));
        }
        depth(&text)?;
        let raw: &RawValue = serde_json::from_str(utf8(&text)?).map_err(ReadError::json)?;
        let inner = text.slice_ref(raw.get().as_bytes());
        Ok(Self(inner))
    }

    /// Text as a JSON string.
    #[must_use]
    pub fn string(text: &str) -> Self {
        let mut out = Vec::with_capacity(text.len() + 2);
        write_string(&mut out, text);
        Self(out.into())
    }

    /// The bytes of the text.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("null")
    }

    /// What kind of value it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of(&self.0)
    }

    /// The string this text means, if it is one.
    #[must_use]
    pub fn as_string(&self) -> Option<Cow<'_, str>> {
        string(self.text())
    }

    /// The ordered members of the object this text is, sharing its memory.
    pub fn members(&self) -> Result<Members, ReadError> {
        Members::read(&self.0)
    }

    /// The ordered elements of the array this text is, sharing its memory; at most `most`.
    pub fn elements(&self, most: usize) -> Result<Vec<Self>, ReadError> {
        let mut elements = Vec::new();
        each_element(&self.0, |element| {
            if elements.len() >= most {
                return false;
            }
            elements.push(self.within(element));
            true
        })?;
        Ok(elements)
    }

    /// The part of this text that `part`, borrowed from it, covers.
    fn within(&self, part: &str) -> Self {
        Self(self.0.slice_ref(part.as_bytes()))
    }
}

/// The kinds of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are JSON's")]
pub enum Kind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

impl Kind {
    fn of(text: &[u8]) -> Self {
        match text.first() {
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array,
            Some(b'"') => Self::String,
            Some(b't') => Self::True,
            Some(b'f') => Self::False,
            Some(b'n') | None => Self::Null,
            Some(_) => Self::Number,
        }
    }

    /// The word a person uses for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Number => "a number",
            Self::True | Self::False => "a boolean",
            Self::Null => "null",
        }
    }
}

/// Why text could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// Not JSON, or not of the kind asked for; with a sentence that gives the place.
    NotJson(String),
    /// Two members of one object have this name.
    Doubled(String),
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// More than [`MAX_MEMBERS`] members in one object.
    TooMany,
}

impl ReadError {
    #[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
    pub(crate) fn json(e: serde_json::Error) -> Self {
        Self::NotJson(e.to_string())
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(why) => write!(f, "not valid JSON: {why}"),
            Self::Doubled(name) => write!(f, "the member {name:?} occurs twice in one object"),
            Self::TooDeep => write!(f, "nested deeper than {MAX_DEPTH} levels"),
            Self::TooMany => write!(f, "more than {MAX_MEMBERS} members in one object"),
        }
    }
}

impl std::error::Error for ReadError {}

/// One member of an object: the text of its name (with quotes) and of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    name: Raw,
    /// The value.
    pub value: Raw,
}

impl Member {
    /// A member with a name that needs no escaping.
    #[must_use]
    pub fn new(name: &str, value: Raw) -> Self {
        Self { name: Raw::string(name), value }
    }

    /// A member whose name is JSON text already.
    #[must_use]
    pub(crate) const fn of_parts(name: Raw, value: Raw) -> Self {
        Self { name, value }
    }

    /// The same member with another value.
    #[must_use]
    pub fn with_value(&self, value: Raw) -> Self {
        Self { name: self.name.clone(), value }
    }

    /// The name, unescaped.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        unquote(self.name.text())
    }

    /// Whether the name is this one.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        let text = self.name.bytes();
        let same = text.len() == name.len() + 2 && &text[1..text.len() - 1] == name.as_bytes();
        // An escaped name is longer than what it means.
        same || (text.len() > name.len() + 2 && self.is_escaped() && self.name() == name)
    }

    fn is_escaped(&self) -> bool {
        self.name.bytes().contains(&b'\\')
    }

    /// Appends `"name":value`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name.bytes());
        out.push(b':');
        out.extend_from_slice(self.value.bytes());
    }
}

/// The members of one object, in order, their names all different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

impl Members {
    /// Reads the object `text` is.
    pub fn read(text: &Bytes) -> Result<Self, ReadError> {
        let mut list = Vec::new();
        let mut too_many = false;
        each_member(text, |name, value| {
            too_many = list.len() >= MAX_MEMBERS;
            if !too_many {
                let name = Raw(text.slice_ref(name.as_bytes()));
                list.push(Member { name, value: Raw(text.slice_ref(value.as_bytes())) });
            }
            !too_many
        })?;
        if too_many {
            return Err(ReadError::TooMany);
        }
        let members = Self(list);
        match members.doubled() {
            Some(name) => Err(ReadError::Doubled(name)),
            None => Ok(members),
        }
    }

    fn doubled(&self) -> Option<String> {
        const FEW: usize = 12;
        if self.0.len() <= FEW {
            let pairs = self.0.iter().enumerate();
            let escaped = self.0.iter().any(Member::is_escaped);
            let same = |a: &Member, b: &Member| a.name == b.name || (escaped && a.name() == b.name());
            return pairs
                .filter(|(i, a)| self.0[..*i].iter().any(|b| same(a, b)))
                .map(|(_, a)| a.name().into_owned())
                .next();
        }
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().map(Member::name).find(|name| !seen.insert(name.clone())).map(Cow::into_owned)
    }

    /// The value of the member with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Raw> {
        self.0.iter().find(|m| m.is(name)).map(|m| &m.value)
    }

    /// The same, `null` being absent.
    #[must_use]
    pub fn present(&self, name: &str) -> Option<&Raw> {
        self.find(name).filter(|v| v.kind() != Kind::Null)
    }

    /// The members in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.0.iter()
    }

    /// The members.
    #[must_use]
    pub fn into_vec(self) -> Vec<Member> {
        self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a member at the end; the caller knows that there is none of this name.
    pub fn push(&mut self, member: Member) {
        self.0.push(member);
    }

    /// Replaces the value of a member in its place, or adds the member at the end.
    pub fn set(&mut self, name: &str, value: Raw) {
        match self.0.iter_mut().find(|m| m.is(name)) {
            Some(member) => member.value = value,
            None => self.0.push(Member::new(name, value)),
        }
    }

    /// Drops a member.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|m| !m.is(name));
    }

    /// The object as text.
    #[must_use]
    pub fn to_raw(&self) -> Raw {
        let size = self.0.iter().map(|m| m.name.0.len() + m.value.0.len() + 2).sum::<usize>();
        let mut out = Vec::with_capacity(size + 2);
        out.push(b'{');
        for (i, member) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            member.write(&mut out);
        }
        out.push(b'}');
        Raw(out.into())
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = std::slice::Iter<'a, Member>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Member> for Members {
    fn from_iter<T: IntoIterator<Item = Member>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// Calls `visit` with the text of each member's name (quotes included) and value, in order, until it
/// says `false`. The whole text is checked all the same.
pub fn each_member<'a>(
    text: &'a [u8],
    mut visit: impl FnMut(&'a str, &'a str) -> bool,
) -> Result<(), ReadError> {
    let text = utf8(text)?;
    let (mut scan, mut visited, mut wanted) = (Scan::new(text), 0usize, true);
    let read = scan.members(|name, scan| {
        let value = scan.value()?;
        if wanted {
            visited += 1;
            wanted = visit(name, value);
        }
        Ok(())
    });
    if read.and_then(|()| scan.end()).is_ok() {
        return Ok(());
    }
    careful::each_member(text, |name, value| {
        if visited > 0 {
            visited -= 1;
            return visited > 0 || wanted;
        }
        visit(name, value)
    })
}

/// The text as a string. Checked once for the whole of it: a reader of bytes checks every value again.
fn utf8(text: &[u8]) -> Result<&str, ReadError> {
    std::str::from_utf8(text).map_err(|why| ReadError::NotJson(why.to_string()))
}

/// Calls `visit` with the text of each element, in order, until it says `false`.
pub fn each_element<'a>(text: &'a [u8], mut visit: impl FnMut(&'a str) -> bool) -> Result<(), ReadError> {
    let text = utf8(text)?;
    let (mut scan, mut visited, mut wanted) = (Scan::new(text), 0usize, true);
    let read = scan.elements(|scan| {
        let element = scan.value()?;
        if wanted {
            visited += 1;
            wanted = visit(element);
        }
        Ok(())
    });
    if read.and_then(|()| scan.end()).is_ok() {
        return Ok(());
    }
    careful::each_element(text, |element| {
        if visited > 0 {
            visited -= 1;
            return visited > 0 || wanted;
        }
        visit(element)
    })
}

/// Refuses nesting deeper than [`MAX_DEPTH`]. Text inside strings is skipped at memory speed.
pub fn depth(text: &[u8]) -> Result<(), ReadError> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(ReadError::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = after_string(text, at),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses what servers read in different ways: nesting deeper than [`MAX_DEPTH`], and two equal names
/// in one object, however deep. Anything else that is wrong is left to the reader. One pass: text inside
/// strings is skipped at memory speed, and only names are compared.
pub fn structure(text: &[u8]) -> Result<(), ReadError> {
    let mut open: Vec<Names<'_>> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                if open.len() >= MAX_DEPTH {
                    return Err(ReadError::TooDeep);
                }
                open.push(if byte == b'{' { Names::object() } else { Names::Array });
            }
            b'}' | b']' => drop(open.pop()),
            b',' => {
                if let Some(names) = open.last_mut() {
                    names.next();
                }
            }
            b'"' => {
                let end = after_string(text, at);
                if let Some(names) = open.last_mut() {
                    names.add(text.get(at - 1..end).unwrap_or_default())?;
                }
                at = end;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The names of an object that is open, still escaped and with their quotes.
enum Names<'a> {
    Array,
    /// A name comes next, unless `value`.
    Object {
        few: Vec<&'a [u8]>,
        many: HashSet<&'a [u8]>,
        value: bool,
    },
}

impl<'a> Names<'a> {
    /// So many names are compared one by one.
    const FEW: usize = 16;

    fn object() -> Self {
        Self::Object { few: Vec::new(), many: HashSet::new(), value: false }
    }

    fn next(&mut self) {
        if let Self::Object { value, .. } = self {
            *value = false;
        }
    }

    fn add(&mut self, name: &'a [u8]) -> Result<(), ReadError> {
        let Self::Object { few, many, value } = self else { return Ok(()) };
        if std::mem::replace(value, true) {
            return Ok(());
        }
        let new = if few.len() < Self::FEW {
            let new = !few.contains(&name);
            few.push(name);
            new
        } else {
            !few.contains(&name) && many.insert(name)
        };
        if new {
            return Ok(());
        }
        Err(ReadError::Doubled(unquote(std::str::from_utf8(name).unwrap_or_default()).into_owned()))
    }
}

/// The place after the closing quote of a string whose first byte is at `at`.
fn after_string(text: &[u8], mut at: usize) -> usize {
    // Most strings are words.
    const WORD: usize = 32;
    let near = text.get(at..text.len().min(at + WORD)).map_or(at, |word| at + plain(word));
    if text.get(near) == Some(&b'"') {
        return near + 1;
    }
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

/// The string that JSON text means, if it is a string.
#[must_use]
pub fn string(text: &str) -> Option<Cow<'_, str>> {
    text.starts_with('"').then(|| unquote(text))
}

fn unquote(text: &str) -> Cow<'_, str> {
    let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let plain = unescaped(inner.as_bytes()).or_else(|| serde_json::from_str(text).ok());
    plain.map_or(Cow::Borrowed(inner), Cow::Owned)
}

/// Decodes the inside of a JSON string that has short escapes only, which is what nearly all text with escapes has.
pub(super) fn unescaped(escaped: &[u8]) -> Option<String> {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        plain.extend_from_slice(&rest[..at]);
        plain.push(match rest.get(at + 1)? {
            byte @ (b'"' | b'\\' | b'/') => *byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return None,
        });
        rest = &rest[at + 2..];
    }
    plain.extend_from_slice(rest);
    String::from_utf8(plain).ok()
}

/// Appends `text` as a JSON string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing a str to a Vec cannot fail: neither the map keys nor the writer can.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Members, ReadError> {
        Members::read(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn members_keep_text_and_order() {
        let text = r#"{"z":1.10,"a":123456789012345678901234567890,"\u006d":[1, 2],"e":1E400}"#;
        let members = read(text).unwrap();
        assert_eq!(members.to_raw().text(), text);
        assert_eq!(members.find("m").unwrap().text(), "[1, 2]");
        assert!(members.find("q").is_none());
    }

    #[test]
    fn a_changed_member_stays_in_its_place() {
        let mut members = read(r#"{"a":1,"b":2,"c":3}"#).unwrap();
        members.set("b", Raw::NULL);
        members.set("d", Raw::string("x\"y"));
        members.remove("c");
        assert_eq!(members.to_raw().text(), r#"{"a":1,"b":null,"d":"x\"y"}"#);
    }

    #[test]
    fn equal_names_are_an_error_also_when_written_differently() {
        assert_eq!(read(r#"{"a":1,"a":2}"#), Err(ReadError::Doubled("a".into())));
        assert_eq!(read(r#"{"a":1,"\u0061":2}"#), Err(ReadError::Doubled("a".into())));
        let many: String = (0..40).map(|i| format!("\"k{i}\":0,")).collect();
        assert_eq!(read(&format!("{{{many}\"k7\":1}}")), Err(ReadError::Doubled("k7".into())));
    }

    #[test]
    fn bounds_are_reached() {
        let many: String = (0..=MAX_MEMBERS).map(|i| format!("\"k{i}\":0,")).collect();
        assert_eq!(read(&format!("{{{many}\"z\":0}}")), Err(ReadError::TooMany));
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(depth(deep(MAX_DEPTH).as_bytes()), Ok(()));
        assert_eq!(depth(deep(MAX_DEPTH + 1).as_bytes()), Err(ReadError::TooDeep));
        assert_eq!(depth(format!("\"{}\\\"[\"", "[".repeat(500)).as_bytes()), Ok(()));
    }

    #[test]
    fn equal_names_are_found_at_every_depth_and_nowhere_else() {
        let doubled = |text: &str| structure(text.as_bytes()).err();
        for text in [r#"{"a":[{"b":1,"c":{"d":1,"d":2}}]}"#, r#"[{"x":"x","x":1}]"#, r#"{"a":{},"a":1}"#] {
            assert!(matches!(doubled(text), Some(ReadError::Doubled(_))), "{text}");
        }
        let many: String = (0..100).map(|i| format!("\"k{i}\":0,")).collect();
        assert_eq!(doubled(&format!("{{{many}\"k90\":1}}")), Some(ReadError::Doubled("k90".into())));
        assert_eq!(doubled(&format!("{{{many}\"k3\":1}}")), Some(ReadError::Doubled("k3".into())));
        for text in [
            r#"{"a":"a","b":"a"}"#,
            r#"["a","a"]"#,
            r#"{"a":{"a":{"a":["a","a"]}},"b":{"a":1}}"#,
            r#"{"a\"":1,"a":"}{\","}"#,
            "",
            "}}]]",
            "{\"a",
        ] {
            assert_eq!(doubled(text), None, "{text}");
        }
        assert_eq!(doubled(&"[".repeat(MAX_DEPTH + 1)), Some(ReadError::TooDeep));
    }

    #[test]
    fn broken_text_is_an_error_with_its_place() {
        for broken in ["", "{", "[]", "{\"a\":}", "{\"a\":1}x", "{\"a\":1,}", "{'a':1}", "nul"] {
            assert!(matches!(read(broken), Err(ReadError::NotJson(_))), "{broken}");
        }
        let latin1 = Bytes::from_static(b"{\"a\":\"\xff\"}");
        assert!(matches!(Members::read(&latin1), Err(ReadError::NotJson(_))));
    }

    #[test]
    fn elements_keep_their_text() {
        let raw = Raw::parse(r#"[1.0, {"a": 2}, "x"]"#).unwrap();
        let texts: Vec<_> = raw.elements(9).unwrap().iter().map(|e| e.text().to_owned()).collect();
        assert_eq!(texts, ["1.0", r#"{"a": 2}"#, "\"x\""]);
        assert_eq!(raw.elements(2).unwrap().len(), 2);
    }
}
