//! JSON text, gone over once, by whoever knows what he looks for.
//!
//! A reader of values goes over a nested text as often as it is deep: to find where a value ends, and again to read
//! what is in it. Here the caller steps into what he wants to read and over what he does not, and every byte is looked
//! at once.
//!
//! Promises: what it takes is JSON, and the parts it gives are the text of names (quotes included) and values. What it
//! refuses is [`Broken`] or nested deeper than [`DEEPEST`], and is for the careful reader, which says why.

/// Deeper than this is left to the careful reader.
pub(super) const DEEPEST: u32 = 64;

/// Not JSON, not of the kind that was asked for, or too deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// A place in a text.
#[derive(Debug, Clone)]
pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// From a place on at which a character begins.
    pub(super) fn from(text: &'a str, at: usize) -> Option<Self> {
        text.is_char_boundary(at).then_some(Self { text, at })
    }

    /// The value that a text is, without the space around it.
    pub(super) fn whole(text: &'a str) -> Option<&'a str> {
        let mut scan = Self::new(text);
        let value = scan.value().ok()?;
        scan.end().ok().map(|()| value)
    }

    /// The first byte of the next value, without taking it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        self.space();
        self.byte()
    }

    /// How much of the text was read.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// Steps into an object and over its end: `visit` is given each name and takes its value.
    pub(super) fn members(
        &mut self,
        mut visit: impl FnMut(&'a str, &mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        if !self.takes(b'{') {
            return Err(Broken);
        }
        if self.takes(b'}') {
            return Ok(());
        }
        loop {
            let name = self.name()?;
            visit(name, self)?;
            if !self.goes_on(b'}')? {
                return Ok(());
            }
        }
    }

    /// Goes on after a member of an object that was stepped into before, as [`members`](Self::members) does.
    pub(super) fn more_members(
        &mut self,
        mut visit: impl FnMut(&'a str, &mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        while self.goes_on(b'}')? {
            let name = self.name()?;
            visit(name, self)?;
        }
        Ok(())
    }

    /// Steps into an array and over its end: `visit` takes each element.
    pub(super) fn elements(
        &mut self,
        mut visit: impl FnMut(&mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        if !self.takes(b'[') {
            return Err(Broken);
        }
        if self.takes(b']') {
            return Ok(());
        }
        loop {
            visit(self)?;
            if !self.goes_on(b']')? {
                return Ok(());
            }
        }
    }

    /// Steps over a value; gives its text.
    pub(super) fn value(&mut self) -> Result<&'a str, Broken> {
        self.space();
        let start = self.at;
        self.over()?;
        Ok(&self.text[start..self.at])
    }

    /// Nothing but space comes any more.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(Broken) }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    fn takes(&mut self, wanted: u8) -> bool {
        let there = self.peek() == Some(wanted);
        self.at += usize::from(there);
        there
    }

    /// After a member or an element: whether another one follows, or `close`.
    fn goes_on(&mut self, close: u8) -> Result<bool, Broken> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(_) | None => Err(Broken),
        }
    }

    /// A member's name and its colon.
    fn name(&mut self) -> Result<&'a str, Broken> {
        if self.peek() != Some(b'"') {
            return Err(Broken);
        }
        let start = self.at;
        self.string()?;
        let name = &self.text[start..self.at];
        if self.takes(b':') { Ok(name) } else { Err(Broken) }
    }

    /// Steps over a value, without calling itself: which of the open ones are objects is kept in bits.
    fn over(&mut self) -> Result<(), Broken> {
        let (mut depth, mut objects) = (0u32, 0u64);
        loop {
            match self.peek() {
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.word("true")?,
                Some(b'f') => self.word("false")?,
                Some(b'n') => self.word("null")?,
                Some(open @ (b'{' | b'[')) => {
                    self.at += 1;
                    let object = open == b'{';
                    if !self.takes(if object { b'}' } else { b']' }) {
                        if depth == DEEPEST {
                            return Err(Broken);
                        }
                        depth += 1;
                        objects = objects << 1 | u64::from(object);
                        if object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                Some(_) | None => return Err(Broken),
            }
            // A value is over; so may be those around it.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let object = objects & 1 == 1;
                if self.goes_on(if object { b'}' } else { b']' })? {
                    if object {
                        self.name()?;
                    }
                    break;
                }
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    fn word(&mut self, word: &str) -> Result<(), Broken> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Broken);
        }
        self.at += word.len();
        Ok(())
    }

    /// Steps over a string, from its opening quote on.
    fn string(&mut self) -> Result<(), Broken> {
        let text = self.text.as_bytes();
        let mut at = self.at + 1;
        loop {
            at += plain(&text[at..]);
            match text.get(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(());
                }
                Some(b'\\') => match text.get(at + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => at += 2,
                    Some(b'u') => match text.get(at + 2..at + 6) {
                        Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => at += 6,
                        Some(_) | None => return Err(Broken),
                    },
                    Some(_) | None => return Err(Broken),
                },
                Some(_) | None => return Err(Broken),
            }
        }
    }

    fn number(&mut self) -> Result<(), Broken> {
        self.at += usize::from(self.byte() == Some(b'-'));
        match self.byte() {
            Some(b'0') => {
                self.at += 1;
                if let Some(b'0'..=b'9') = self.byte() {
                    return Err(Broken);
                }
            }
            Some(b'1'..=b'9') => self.digits()?,
            Some(_) | None => return Err(Broken),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Broken) }
    }
}

/// How many bytes at the beginning of `text` may stand in a string as they are: up to the first quote, backslash or
/// control character. Words are looked at eight bytes at a time, what is longer at memory speed.
pub(super) fn plain(text: &[u8]) -> usize {
    const WORDS: usize = 4;
    let (words, _) = text.as_chunks::<8>();
    for (i, eight) in words.iter().take(WORDS).enumerate() {
        if let Some(place) = stop(u64::from_le_bytes(*eight)) {
            return i * 8 + place;
        }
    }
    let at = words.len().min(WORDS) * 8;
    let rest = &text[at..];
    if rest.len() < 8 {
        return at + rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | ..b' ')).count();
    }
    let rest = &rest[..memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len())];
    let clean = rest.iter().fold(true, |clean, byte| clean & (*byte >= b' '));
    at + if clean { rest.len() } else { rest.iter().take_while(|byte| **byte >= b' ').count() }
}

/// The same of bytes that need not be text: `None` if those it counts are not UTF-8. Most are a short word.
#[inline]
pub(super) fn plain_text(bytes: &[u8]) -> Option<usize> {
    if let Some(eight) = bytes.first_chunk::<8>() {
        let word = u64::from_le_bytes(*eight);
        let short = stop(word).filter(|place| word & HIGH & ((1 << (place * 8)) - 1) == 0);
        if short.is_some() {
            return short;
        }
    }
    let length = plain(bytes);
    std::str::from_utf8(&bytes[..length]).is_ok().then_some(length)
}

const ONES: u64 = u64::from_le_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// Where the first quote, backslash or control character is among eight bytes.
#[inline]
const fn stop(word: u64) -> Option<usize> {
    const fn zero(word: u64) -> u64 {
        word.wrapping_sub(ONES) & !word
    }
    let quote = zero(word ^ (ONES * b'"' as u64));
    let backslash = zero(word ^ (ONES * b'\\' as u64));
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    // Only the lowest of these bits is to be believed: subtracting borrows from the bytes above.
    let found = (quote | backslash | control) & HIGH;
    if found == 0 { None } else { Some((found.trailing_zeros() / 8) as usize) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn whole(text: &str) -> Result<&str, Broken> {
        Scan::whole(text).ok_or(Broken)
    }

    /// What is taken is what serde_json takes.
    fn agrees(text: &str) {
        let taken = serde_json::from_str::<IgnoredAny>(text).is_ok();
        assert_eq!(whole(text).is_ok(), taken, "{text:?}");
        if taken {
            assert_eq!(whole(text), Ok(text.trim_matches([' ', '\n', '\t', '\r'])), "{text:?}");
        }
    }

    const TEXTS: [&str; 8] = [
        r#" {"a":[1,-0,0.5,1e3,1.25E-7,-12e+0,true,false,null],"b":{},"c":[],"":"é\u00e9\ud83d"} "#,
        r#"{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"\"}],"},"finish_reason":null}],"usage":null}"#,
        r#"[[[[{"a":{"b":[{"c":"0123456789abcdef\\0123456"}]}}]]],"\/\b\f\n\r\t"]"#,
        "\"a\u{7f}b 🦀 0123456789\"",
        "\t[ 1 ,\n2 , {\r\"a\" : 3 } ]\n",
        "12345678901234567890.000",
        "\"\"",
        "null",
    ];

    #[test]
    fn it_takes_what_a_careful_reader_takes_wherever_the_text_is_cut_or_changed() {
        for text in TEXTS {
            agrees(text);
            for (at, _) in text.char_indices() {
                agrees(&text[..at]);
                agrees(&text[at..]);
                for other in [
                    "\"", "\\", "{", "}", "[", "]", ",", ":", "0", "1", ".", "e", "-", " ", "\u{1}", "u", "n",
                ] {
                    agrees(&format!("{}{other}{}", &text[..at], &text[at..]));
                    let rest = text[at..].chars().next().map_or(at, |c| at + c.len_utf8());
                    agrees(&format!("{}{other}{}", &text[..at], &text[rest..]));
                }
            }
        }
    }

    #[test]
    fn deep_text_is_left_to_the_careful_reader() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(whole(&deep(DEEPEST as usize)).is_ok());
        assert_eq!(whole(&deep(DEEPEST as usize + 1)), Err(Broken));
        let mixed = |n: usize| format!("{}1{}", "[{\"a\":".repeat(n), "}]".repeat(n));
        assert!(whole(&mixed(32)).is_ok());
        assert_eq!(whole(&mixed(33)), Err(Broken));
    }

    #[test]
    fn members_and_elements_are_given_one_by_one() {
        let mut scan = Scan::new(r#" { "a" : [1 ,"x"], "b":{ } } "#);
        let mut seen = Vec::new();
        scan.members(|name, scan| {
            seen.push(name);
            if scan.peek() == Some(b'[') {
                return scan.elements(|scan| scan.value().map(|value| seen.push(value)));
            }
            scan.value().map(|value| seen.push(value))
        })
        .unwrap();
        scan.end().unwrap();
        assert_eq!(seen, ["\"a\"", "1", "\"x\"", "\"b\"", "{ }"]);
    }

    proptest! {
        #[test]
        fn any_text_is_judged_as_a_careful_reader_judges_it(text in "[\\[\\]{}\",:\\\\u0-9eE.+\\-a-ftrnls \u{1}\u{e9}]{0,40}") {
            agrees(&text);
        }

        #[test]
        fn plain_bytes_are_counted_as_one_would(text in proptest::collection::vec(prop_oneof![8 => b' '.., 1 => any::<u8>()], 0..90)) {
            let slow = text.iter().take_while(|b| **b >= b' ' && **b != b'"' && **b != b'\\').count();
            prop_assert_eq!(plain(&text), slow);
        }
    }
}
