//! Chunks of a stream that differ from one another only in a little.
//!
//! Nearly all chunks of a long answer are one frame of JSON around a few words. Once such a chunk was read with
//! care, the next one that has the same bytes before and after its text needs no reading but for the text. And what
//! stands before `choices` is the same in all chunks of a stream, so it is read once.

use std::ops::Range;

use bytes::Bytes;

use super::chunk;
use super::reply::Piece;
use super::scan::plain;
use crate::sse::{USUAL_END, USUAL_START};

/// The largest chunk that is remembered, in bytes. What stands around a text is small.
const LARGEST: usize = 4096;

/// What the last chunks looked like.
#[derive(Debug, Default)]
pub struct Repeat {
    /// A chunk of plain text without its text; empty if nothing is known.
    around: Vec<u8>,
    /// Where the text was in it, between its quotes.
    gap: usize,
    /// Of any chunk, up to the value of `choices`.
    envelope: Bytes,
}

/// An event that was known by sight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where its text is: the inside of a JSON string.
    pub text: Range<usize>,
    /// Where the event ends.
    pub end: usize,
}

impl Repeat {
    /// Looks whether an event begins at `at` of a stream whose chunk repeats the one learned from. It says nothing
    /// but its text: everything else has been said.
    #[must_use]
    pub fn skim(&self, stream: &[u8], at: usize) -> Option<Known> {
        if !stream.get(at..)?.starts_with(USUAL_START) {
            return None;
        }
        let Known { text, end } = self.find(stream, at + USUAL_START.len())?;
        stream[end..].starts_with(USUAL_END).then_some(Known { text, end: end + USUAL_END.len() })
    }

    /// Where the text is of a chunk that repeats the one learned from.
    #[must_use]
    pub fn text(&self, chunk: &[u8]) -> Option<Range<usize>> {
        let Known { text, end } = self.find(chunk, 0)?;
        (end == chunk.len()).then_some(text)
    }

    /// Looks for such a chunk at `at`.
    fn find(&self, stream: &[u8], at: usize) -> Option<Known> {
        let (before, after) = self.around.split_at(self.gap);
        let start = at + before.len();
        if before.is_empty() || stream.get(at..start)? != before {
            return None;
        }
        let text = start..start + plain(&stream[start..]);
        let end = text.end + after.len();
        // An escape, or the end of the text before its end, is for the careful reader; so is an empty text.
        if text.is_empty() || stream.get(text.end..end)? != after {
            return None;
        }
        let said = &stream[text.clone()];
        (said.is_ascii() || std::str::from_utf8(said).is_ok()).then_some(Known { text, end })
    }

    /// Reads a chunk if it is a usual one. What is the same as in the last one before `choices` is not said again.
    #[must_use]
    pub fn read(&mut self, chunk: &Bytes) -> Option<Box<Piece>> {
        let known = self.envelope.len();
        if known > 0 && chunk.len() > known && chunk[..known] == self.envelope {
            let piece = chunk::read_from(chunk, known)?;
            self.learn(chunk, &piece);
            return Some(piece);
        }
        let read = chunk::read(chunk)?;
        self.envelope = chunk.slice(..read.choices);
        self.learn(chunk, &read.piece);
        Some(read.piece)
    }

    /// Learns from a chunk that was read, if it says nothing that would have to be said each time.
    pub fn learn(&mut self, chunk: &Bytes, piece: &Piece) {
        let Piece {
            head: _,
            text: Some(text),
            members,
            calls,
            finish: None,
            around,
            top: _,
            usage: None,
            message: None,
        } = piece
        else {
            return;
        };
        if !members.is_empty() || !calls.is_empty() || !around.is_empty() {
            return;
        }
        // An event of several lines has line feeds in its chunk where its stream has more than that.
        if chunk.len() > LARGEST || chunk.contains(&b'\n') {
            return;
        }
        let quoted = text.bytes();
        // The text shares the chunk's memory, so its place there can be told.
        let start = (quoted.as_ptr() as usize).wrapping_sub(chunk.as_ptr() as usize);
        let Some(end) = start.checked_add(quoted.len()).filter(|end| *end <= chunk.len()) else { return };
        self.gap = start + 1;
        self.around.clear();
        self.around.reserve_exact(chunk.len());
        self.around.extend_from_slice(&chunk[..self.gap]);
        self.around.extend_from_slice(&chunk[end - 1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::raw::Raw;
    use crate::wire::reply::{Decoded, decode};

    const BEFORE: &str = r#"{"id":"c","created":1,"model":"m","system_fingerprint":"f","choices":[{"index":0,"delta":{"content":"#;
    const AFTER: &str = r#"},"logprobs":null,"finish_reason":null}],"usage":null}"#;

    fn chunk(text: &str) -> Bytes {
        format!("{BEFORE}{text}{AFTER}").into()
    }

    /// The text of a chunk as it stands in a stream, if it was known by sight.
    fn text(repeat: &Repeat, chunk: &[u8]) -> Option<Raw> {
        let stream = [b": hm\n\n", USUAL_START, chunk, USUAL_END, b"data: "].concat();
        let known = repeat.skim(&stream, 6);
        assert_eq!(
            known.as_ref().map(|known| known.text.clone()),
            repeat.text(chunk).map(|text| text.start + 12..text.end + 12)
        );
        let Known { text, end } = known?;
        assert_eq!(end, stream.len() - 6);
        Some(Raw::trusted(Bytes::from(stream).slice(text.start - 1..text.end + 1)))
    }

    fn piece(chunk: &Bytes) -> Piece {
        match decode(chunk, false).unwrap() {
            Decoded::Piece(piece) => *piece,
            other @ (Decoded::Error(_) | Decoded::Nothing) => panic!("{other:?}"),
        }
    }

    fn learned() -> Repeat {
        let mut repeat = Repeat::default();
        let first = chunk("\"It\"");
        assert_eq!(text(&repeat, &first), None, "nothing is known at first");
        repeat.learn(&first, &piece(&first));
        repeat
    }

    #[test]
    fn a_chunk_that_repeats_gives_the_text_a_careful_reader_gives() {
        let repeat = learned();
        for said in ["\" is\"", "\"é 🦀\"", "\"}\"", "\"],[\"", "\" \""] {
            let chunk = chunk(said);
            assert_eq!(text(&repeat, &chunk), piece(&chunk).text, "{said}");
        }
    }

    #[test]
    fn everything_else_is_for_the_careful_reader() {
        let repeat = learned();
        let line = |text: &str| chunk(text);
        for other in [
            line("\"\""),
            line("\"a\\nb\""),
            line("\"a\",\"tool_calls\":[{\"index\":0}],\"x\":\"b\""),
            line("\"a\u{1}b\""),
            line("null"),
            line("\""),
            Bytes::from([BEFORE.as_bytes(), b"\"\xff\"", AFTER.as_bytes()].concat()),
            chunk("\"a\"").slice(1..),
            chunk("\"a\"").slice(..BEFORE.len() + 3),
            Bytes::new(),
            Bytes::from(format!("{BEFORE}\"a\"{}", AFTER.replace("null}]", "\"stop\"}]"))),
            Bytes::from(format!("{}\"a\"{AFTER}", BEFORE.replace("\"c\"", "\"d\""))),
        ] {
            assert_eq!(text(&repeat, &other), None, "{other:?}");
        }
    }

    #[test]
    fn only_a_whole_event_of_one_line_is_known() {
        let repeat = learned();
        let event = [USUAL_START, &chunk("\"a\""), USUAL_END].concat();
        assert!(repeat.skim(&event, 0).is_some());
        for at in 0..event.len() {
            assert_eq!(repeat.skim(&event[..at], 0), None, "cut at {at}");
            assert_eq!(repeat.skim(&event, at + 1), None, "from {at} on");
        }
        for other in ["data:", "data:  ", "event: error\ndata: ", ""] {
            assert_eq!(repeat.skim(&[other.as_bytes(), &event[6..]].concat(), 0), None, "{other}");
        }
        for other in ["\n", "\r\n\r\n", "\r\r", "\ndata: \n\n"] {
            assert_eq!(
                repeat.skim(&[&event[..event.len() - 2], other.as_bytes()].concat(), 0),
                None,
                "{other:?}"
            );
        }
    }

    #[test]
    fn nothing_is_learned_from_a_chunk_that_says_more() {
        for more in [
            r#"{"choices":[{"delta":{"content":"a","reasoning":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[1]}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"total_tokens":1}}"#,
            r#"{"choices":[{"delta":{"content":"a","tool_calls":[{"index":0,"id":"x","function":{"name":"f"}}]}}]}"#,
            r#"{"choices":[{"message":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":""}}]}"#,
        ] {
            let chunk = Bytes::from_static(more.as_bytes());
            let mut repeat = Repeat::default();
            repeat.learn(&chunk, &piece(&chunk));
            assert_eq!(text(&repeat, &chunk), None, "{more}");
        }
    }

    #[test]
    fn nothing_is_learned_from_a_chunk_of_several_lines_or_a_large_one() {
        for around in ["\n".to_owned(), " ".repeat(LARGEST)] {
            let chunk = Bytes::from(format!("{{\"choices\":{around}[{{\"delta\":{{\"content\":\"a\"}}}}]}}"));
            let mut repeat = Repeat::default();
            repeat.learn(&chunk, &piece(&chunk));
            assert_eq!(text(&repeat, &chunk), None, "{around:?}");
        }
    }

    #[test]
    fn what_stands_before_the_choices_is_read_once() {
        let mut repeat = Repeat::default();
        let chunks = [
            chunk("\"\""),
            chunk("\"a\\n\""),
            Bytes::from(format!("{BEFORE}\"b\"{}", AFTER.replace("null}]", "\"stop\"}]"))),
            chunk("\"c\",\"reasoning\":\"d\""),
        ];
        for (i, chunk) in chunks.iter().enumerate() {
            let (read, careful) = (repeat.read(chunk).unwrap(), piece(chunk));
            let (head, top) =
                if i == 0 { (careful.head.clone(), careful.top.clone()) } else { Default::default() };
            assert_eq!(*read, Piece { head, top, ..careful });
        }
        let other = Bytes::from(format!("{}\"a\"{AFTER}", BEFORE.replace("\"f\"", "\"g\"")));
        assert_eq!(*repeat.read(&other).unwrap(), piece(&other), "another one is told again");
        assert_eq!(*repeat.read(&chunks[1]).unwrap(), piece(&chunks[1]), "and so is the first one then");
        assert_eq!(repeat.read(&chunks[1].slice(..chunks[1].len() - 1)), None);
    }
}
