//! Chunks of a stream that differ from one another only in a little.
//!
//! Nearly all chunks of a long answer are one frame of JSON around a few words. Once such a chunk was read with
//! care, the next one that has the same bytes before and after its text needs no reading but for the text. And what
//! stands before `choices` is the same in all chunks of a stream, so it is read once.

use std::ops::Range;

use bytes::Bytes;

use super::chunk;
use super::reply::Piece;
use super::scan::plain_text;
use super::texts::Texts;
use crate::sse::{USUAL_END, USUAL_START};

/// The largest chunk that is remembered, in bytes. What stands around a text is small.
const LARGEST: usize = 4096;

/// Events that were known by sight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Their texts.
    pub texts: Texts,
    /// Where the last of them ends.
    pub end: usize,
}

/// What the last chunks looked like.
#[derive(Debug, Default)]
pub struct Repeat {
    /// What stands between two texts of events that follow one another: what is after the first one, the end of its
    /// event, the beginning of the next, and what is before the second. Empty if nothing is known.
    between: Vec<u8>,
    /// Where the second event begins in it.
    start: usize,
    /// Of any chunk, up to the value of `choices`.
    envelope: Bytes,
}

impl Repeat {
    /// Goes over events of a frame, from `at` on, as long as their chunks repeat the one learned from and have less than
    /// `bound` bytes of data. They say nothing but their texts: everything else has been said. `None` if the first one
    /// is not of that kind.
    #[must_use]
    pub fn skim(&self, frame: &Bytes, at: usize, bound: usize) -> Option<Known> {
        let between = &self.between[..];
        let (after, before) = between.split_at(self.start);
        let stream = &frame[..];
        if before.is_empty() || !stream.get(at..)?.starts_with(before) {
            return None;
        }
        let longest = bound.checked_sub(between.len() + 1 - USUAL_START.len() - USUAL_END.len())?;
        let mut start = at + before.len();
        let mut known: Option<Known> = None;
        // An escape, or the end of the text before its end, is for the careful reader; so is an empty text.
        let text_at =
            |start: usize| plain_text(&stream[start..]).filter(|length| (1..=longest).contains(length));
        while let Some(length) = text_at(start) {
            let text = start..start + length;
            let rest = &stream[text.end..];
            let goes_on = rest.starts_with(between);
            if !goes_on && !rest.starts_with(after) {
                break;
            }
            let end = text.end + after.len();
            start = text.end + between.len();
            match &mut known {
                Some(known) => {
                    known.texts.add(text);
                    known.end = end;
                }
                None => {
                    // As many as there would be if all that follow were like this one.
                    let more = if goes_on { rest.len() / (between.len() + length) } else { 0 };
                    known = Some(Known { texts: Texts::at(frame.clone(), text, more), end });
                }
            }
            if !goes_on {
                break;
            }
        }
        if let Some(known) = &mut known {
            known.texts.trim();
        }
        known
    }

    /// Where the text is of a chunk that repeats the one learned from.
    #[must_use]
    pub fn text(&self, chunk: &[u8]) -> Option<Range<usize>> {
        let (after, before) = self.between.split_at(self.start);
        let before = before.strip_prefix(USUAL_START)?;
        let rest = chunk.strip_prefix(before)?;
        let length = plain_text(rest).filter(|length| *length > 0)?;
        let start = before.len();
        (rest.get(length..) == after.strip_suffix(USUAL_END)).then_some(start..start + length)
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
        let (before, after) = (&chunk[..=start], &chunk[end - 1..]);
        self.start = after.len() + USUAL_END.len();
        self.between.clear();
        self.between.reserve_exact(self.start + USUAL_START.len() + before.len());
        for part in [after, USUAL_END, USUAL_START, before] {
            self.between.extend_from_slice(part);
        }
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

    /// More than any event here has.
    const BOUND: usize = 2 * LARGEST;

    /// The text of a chunk as it stands in a stream, if it was known by sight.
    fn text(repeat: &Repeat, chunk: &[u8]) -> Option<Raw> {
        let stream = Bytes::from([b": hm\n\n", USUAL_START, chunk, USUAL_END, b"data: "].concat());
        let known = repeat.skim(&stream, 6, BOUND);
        let place = repeat.text(chunk);
        let of_chunk =
            place.map(|place| Raw::trusted(Bytes::copy_from_slice(&chunk[place.start - 1..=place.end])));
        let of_stream = known.as_ref().and_then(|known| known.texts.strings().next());
        assert_eq!(of_stream, of_chunk);
        assert!(known.is_none_or(|known| known.texts.count() == 1 && known.end == stream.len() - 6));
        of_stream
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
        let skim = |stream: &[u8], at| repeat.skim(&Bytes::copy_from_slice(stream), at, BOUND);
        assert!(skim(&event, 0).is_some());
        for at in 0..event.len() {
            assert_eq!(skim(&event[..at], 0), None, "cut at {at}");
            assert_eq!(skim(&event, at + 1), None, "from {at} on");
        }
        for other in ["data:", "data:  ", "event: error\ndata: ", ""] {
            assert_eq!(skim(&[other.as_bytes(), &event[6..]].concat(), 0), None, "{other}");
        }
        for other in ["\n", "\r\n\r\n", "\r\r", "\ndata: \n\n"] {
            assert_eq!(skim(&[&event[..event.len() - 2], other.as_bytes()].concat(), 0), None, "{other:?}");
        }
    }

    #[test]
    fn events_that_follow_one_another_are_known_up_to_the_first_that_is_not() {
        let repeat = learned();
        let event = |said: &str| [USUAL_START, &chunk(said), USUAL_END].concat();
        let said = ["\"a\"", "\"é\"", "\"a long one of many words\"", "\"}\""];
        let usual = said.map(event).concat();
        let others = [
            event("\"\""),
            event("\"a\\nb\""),
            event("null"),
            [&event("\"b\"")[..event("\"b\"").len() - 2], b"\r\n\r\n"].concat(),
            b": hm\n\n".to_vec(),
            b"data: [DONE]\n\n".to_vec(),
            Vec::new(),
        ];
        for other in others {
            for cut in 0..=other.len() {
                let stream = Bytes::from([&usual, &other[..cut]].concat());
                let known = repeat.skim(&stream, 0, BOUND).unwrap();
                assert_eq!(known.end, usual.len());
                assert!(known.texts.strings().eq(said.map(|said| Raw::parse(said.to_owned()).unwrap())));
            }
        }
    }

    #[test]
    fn texts_that_are_few_among_other_events_keep_no_room_for_many() {
        let repeat = learned();
        let event = |said: &str| [USUAL_START, &chunk(said), USUAL_END].concat();
        let others = event("\"\\n\"").repeat(200);
        for (count, most) in [(1, 1), (2, 4), (3, 6), (100, 200)] {
            let stream = Bytes::from([event("\"a\"").repeat(count), others.clone()].concat());
            let texts = repeat.skim(&stream, 0, BOUND).unwrap().texts;
            assert_eq!(texts.count(), count);
            assert!(texts.room() <= most, "room for {} where there are {count}", texts.room());
        }
    }

    #[test]
    fn an_event_that_reaches_the_bound_is_for_the_careful_reader() {
        let repeat = learned();
        let chunks = ["\"a\"", "\"abc\"", "\"ab\""].map(chunk);
        let stream = Bytes::from(
            chunks.iter().map(|chunk| [USUAL_START, chunk, USUAL_END].concat()).collect::<Vec<_>>().concat(),
        );
        for (bound, count) in [
            (chunks[0].len(), 0),
            (chunks[0].len() + 1, 1),
            (chunks[1].len(), 1),
            (chunks[1].len() + 1, 3),
            (0, 0),
        ] {
            let known = repeat.skim(&stream, 0, bound);
            assert_eq!(known.map_or(0, |known| known.texts.count()), count, "{bound}");
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
