//! A chat's stream goes on event by event: half of one never does.
//!
//! What comes in pieces of any size leaves in pieces that end where an event ends, so that an error can
//! follow at any time and its reader understands it. A piece that ends there is not copied. What is held
//! is less than one event, and an event has a bound.

use bytes::{Bytes, BytesMut};

/// How far the end of an event may lie in the piece before, in bytes.
const LINE_ENDS: usize = 3;

/// There is more of the reply, or of one event, than may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

/// Holds what has no end yet.
#[derive(Debug)]
pub(super) struct Events {
    held: BytesMut,
    bound: usize,
}

impl Events {
    /// Events of at most `bound` bytes each.
    pub(super) fn new(bound: usize) -> Self {
        Self { held: BytesMut::new(), bound }
    }

    /// The events that are whole with this piece; perhaps none.
    pub(super) fn push(&mut self, piece: Bytes) -> Result<Bytes, TooLarge> {
        let whole = if self.held.is_empty() { self.first(piece) } else { self.more(&piece) };
        let fits = |len| len <= self.bound;
        if fits(self.held.len()) && (fits(whole.len()) || fits(largest(&whole))) {
            Ok(whole)
        } else {
            Err(TooLarge)
        }
    }

    fn first(&mut self, mut piece: Bytes) -> Bytes {
        let end = last_end(&piece).unwrap_or(0);
        self.held.extend_from_slice(&piece[end..]);
        piece.truncate(end);
        piece
    }

    fn more(&mut self, piece: &[u8]) -> Bytes {
        let from = self.held.len().saturating_sub(LINE_ENDS);
        self.held.extend_from_slice(piece);
        match last_end(&self.held[from..]) {
            Some(end) => self.held.split_to(from + end).freeze(),
            None => Bytes::new(),
        }
    }

    /// What is left at the end of the stream. Some servers leave out the last line end.
    pub(super) fn rest(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

/// Where the last event that ends in this piece ends; `None` if none does.
fn last_end(piece: &[u8]) -> Option<usize> {
    let mut rest = piece;
    while let Some(at) = memchr::memrchr2(b'\n', b'\r', rest) {
        // A line end of two bytes is one.
        let pair = rest[..at].ends_with(b"\r") && rest[at] == b'\n';
        let line = &rest[..at - usize::from(pair)];
        if line.ends_with(b"\n") || line.ends_with(b"\r") {
            return Some(at + 1);
        }
        rest = line;
    }
    None
}

/// The largest of the events in these bytes, in bytes.
fn largest(piece: &[u8]) -> usize {
    let (mut largest, mut end, mut before) = (0, piece.len(), piece);
    while let Some(start) = last_end(before) {
        largest = largest.max(end - start);
        end = start;
        let line_end = if piece[..end].ends_with(b"\r\n") { 2 } else { 1 };
        before = &piece[..end - line_end];
    }
    largest.max(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAMS: [&str; 4] = [
        "data: one\n\n: c\n\ndata: two\ndata: more\n\ndata: [DONE]\n\n",
        "data: one\r\n\r\ndata: two\r\n\r\n",
        "data: one\r\rdata: two\r\r",
        "data: one\n\n\n\ndata: half",
    ];

    #[test]
    fn cut_anywhere_the_bytes_are_the_same_and_every_piece_ends_where_an_event_does() {
        for stream in STREAMS {
            let bytes = stream.as_bytes();
            for cut in 0..=bytes.len() {
                for second in cut..=bytes.len() {
                    let mut events = Events::new(100);
                    let mut all = Vec::new();
                    for piece in [&bytes[..cut], &bytes[cut..second], &bytes[second..]] {
                        let whole = events.push(Bytes::copy_from_slice(piece)).unwrap();
                        all.extend_from_slice(&whole);
                        assert!(all.is_empty() || all.ends_with(b"\n") || all.ends_with(b"\r"), "{all:?}");
                    }
                    assert_eq!(events.held.ends_with(b"data: half"), stream.ends_with("half"));
                    all.extend_from_slice(&events.rest());
                    assert_eq!(all, bytes, "{cut} {second}");
                }
            }
        }
    }

    #[test]
    fn a_piece_that_ends_where_an_event_does_is_not_copied() {
        let piece = Bytes::from(b"data: x\n\ndata: y\n\n".to_vec());
        assert_eq!(Events::new(10).push(piece.clone()).unwrap().as_ptr(), piece.as_ptr());
    }

    #[test]
    fn the_bound_holds_for_every_event_and_not_for_several() {
        let long = "data: xxxx\n\n";
        let push = |pieces: &[&str]| {
            let mut events = Events::new(long.len());
            pieces.iter().try_for_each(|piece| events.push(Bytes::from((*piece).to_owned())).map(drop))
        };
        assert_eq!(push(&[&long.repeat(5), "data: xx", "xx\n\ndata"]), Ok(()));
        assert_eq!(push(&["data: xxxxx\n\n"]), Err(TooLarge));
        assert_eq!(push(&["data: xx", "xxx\n\n"]), Err(TooLarge));
        assert_eq!(push(&[&format!("{long}data: xxxxx\n\n{long}")]), Err(TooLarge));
        assert_eq!(push(&["data: xxxx", "xxx"]), Err(TooLarge));
    }

    #[test]
    fn events_are_measured() {
        for (piece, end, most) in [
            (&b"data: x\n\ndata: yy"[..], Some(9), 9),
            (b"data: x\n\ndata: yyyyyy", Some(9), 12),
            (b"x\r\n\r\ny\n\nzz", Some(8), 5),
            (b"x\r\r", Some(3), 3),
            (b"x\n", None, 2),
            (b"\n\n\n\n", Some(4), 2),
            (b"", None, 0),
        ] {
            assert_eq!((last_end(piece), largest(piece)), (end, most), "{piece:?}");
        }
    }
}
