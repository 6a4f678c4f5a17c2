//! Chunks of a stream that differ from one another only in a little.
//!
//! Nearly all chunks of a long answer are one frame of JSON around a few words. Once such a chunk was read with
//! care, the next one that has the same bytes before and after its text needs no reading but for the text. And what
//! stands before `choices` is the same in all chunks of a stream, so it is read once.

use bytes::{Buf, Bytes};

use super::chunk;
use super::raw::Raw;
use super::reply::Piece;
use super::scan::plain;

/// What the last chunks looked like.
#[derive(Debug, Default)]
pub struct Repeat {
    /// Of a chunk of plain text, up to the text's opening quote, and from its closing quote on; empty if nothing is
    /// known.
    before: Bytes,
    after: Bytes,
    /// Of any chunk, up to the value of `choices`.
    envelope: Bytes,
}

impl Repeat {
    /// The text of a chunk that repeats the one learned from. It says nothing else: everything else has been said.
    /// The chunk is gone then.
    #[must_use]
    pub fn text(&self, chunk: &mut Bytes) -> Option<Raw> {
        let end = chunk.len().checked_sub(self.after.len())?;
        if end < self.before.len() || self.before.is_empty() {
            return None;
        }
        if chunk[..self.before.len()] != self.before || chunk[end..] != self.after {
            return None;
        }
        let text = &chunk[self.before.len()..end];
        // An escape, or the end of the text before its end, is for the careful reader; so is an empty text.
        let is_text = |text: &[u8]| text.is_ascii() || std::str::from_utf8(text).is_ok();
        if text.is_empty() || plain(text) < text.len() || !is_text(text) {
            return None;
        }
        let mut quoted = std::mem::take(chunk);
        quoted.truncate(end + 1);
        quoted.advance(self.before.len() - 1);
        Some(Raw::trusted(quoted))
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
        let quoted = text.bytes();
        // The text shares the chunk's memory, so its place there can be told.
        let start = (quoted.as_ptr() as usize).wrapping_sub(chunk.as_ptr() as usize);
        let Some(end) = start.checked_add(quoted.len()).filter(|end| *end <= chunk.len()) else { return };
        self.before = chunk.slice(..start + 1);
        self.after = chunk.slice(end - 1..);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::{Decoded, decode};

    const BEFORE: &str = r#"{"id":"c","created":1,"model":"m","system_fingerprint":"f","choices":[{"index":0,"delta":{"content":"#;
    const AFTER: &str = r#"},"logprobs":null,"finish_reason":null}],"usage":null}"#;

    fn chunk(text: &str) -> Bytes {
        format!("{BEFORE}{text}{AFTER}").into()
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
        assert_eq!(repeat.text(&mut first.clone()), None, "nothing is known at first");
        repeat.learn(&first, &piece(&first));
        repeat
    }

    #[test]
    fn a_chunk_that_repeats_gives_the_text_a_careful_reader_gives() {
        let repeat = learned();
        for text in ["\" is\"", "\"é 🦀\"", "\"}\"", "\"],[\"", "\" \""] {
            let chunk = chunk(text);
            assert_eq!(repeat.text(&mut chunk.clone()), piece(&chunk).text, "{text}");
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
            let mut same = other.clone();
            assert_eq!(repeat.text(&mut same), None, "{other:?}");
            assert_eq!(same, other);
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
            assert_eq!(repeat.text(&mut chunk.clone()), None, "{more}");
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
