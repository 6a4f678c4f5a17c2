//! Server-sent events: bytes to events, in bounded memory.
//!
//! Promises: line ends LF, CR and CRLF, a byte order mark, `data:` with and without a space, several
//! `data:` lines per event, comments and events cut anywhere by the network all give the same
//! events; an event that lies in one frame as one line is not copied; an event larger than the bound
//! is an error. `id` and `retry` are dropped.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The `event:` line says `error`.
    pub named_error: bool,
    /// The `data:` lines, joined by line feeds.
    pub data: Bytes,
}

/// How an event of one line begins and ends.
pub const USUAL_START: &[u8] = b"data: ";
/// See [`USUAL_START`].
pub const USUAL_END: &[u8] = b"\n\n";

/// Takes the events of a stream.
pub trait Take {
    /// Takes the events from `at` of a frame on that are known by sight: each says `data: ` there, has one line of less
    /// than `bound` bytes of data and ends with a blank one. Gives where the last of them ends.
    fn skim(&mut self, frame: &Bytes, at: usize, bound: usize) -> Option<usize> {
        let _ = (frame, at, bound);
        None
    }

    /// Takes an event.
    fn event(&mut self, event: Event);
}

impl Take for Vec<Event> {
    fn event(&mut self, event: Event) {
        self.push(event);
    }
}

/// An event is larger than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// Reads events from frames of bytes.
#[derive(Debug)]
pub struct Decoder {
    bound: usize,
    /// The beginning of a line whose end has not come.
    partial: BytesMut,
    /// Nothing of the stream was read yet, so a byte order mark may come.
    fresh: bool,
    /// The last line ended in CR, so an LF that follows belongs to it.
    after_cr: bool,
    lines: Lines,
}

/// The lines of the event that is being read.
#[derive(Debug, Default)]
struct Lines {
    data: Option<Data>,
    named_error: bool,
}

#[derive(Debug)]
enum Data {
    One(Bytes),
    Many(BytesMut),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::One(line) => line.len(),
            Self::Many(lines) => lines.len(),
        }
    }
}

impl Decoder {
    /// A decoder whose events have less than `bound` bytes of data.
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self { bound, partial: BytesMut::new(), fresh: true, after_cr: false, lines: Lines::default() }
    }

    /// Reads a frame; adds the events it completes to `events`.
    pub fn push(&mut self, frame: Bytes, events: &mut Vec<Event>) -> Result<(), TooLarge> {
        self.read(frame, events)
    }

    /// Reads a frame; gives the events it completes, one after the other. After an error it is over, and what the frame gave is not to be used.
    pub fn read(&mut self, frame: Bytes, take: &mut impl Take) -> Result<(), TooLarge> {
        let mut at = 0;
        if self.after_cr && !frame.is_empty() {
            self.after_cr = false;
            at = usize::from(frame[0] == b'\n');
        }
        loop {
            if self.between() {
                if let Some(end) = take.skim(&frame, at, self.bound) {
                    at = end;
                }
                if let Some(data) = usual(&frame[at..]) {
                    self.check(data.len() + 1)?;
                    let data = at + data.start..at + data.end;
                    at = data.end + USUAL_END.len();
                    take.event(Event { named_error: false, data: frame.slice(data) });
                    continue;
                }
            }
            let Some(length) = memchr::memchr2(b'\n', b'\r', &frame[at..]) else { break };
            let end = at + length;
            let line = at..end;
            at = end + 1;
            if frame[end] == b'\r' {
                match frame.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.partial.is_empty() {
                self.line(&frame, line, take)?;
            } else {
                self.check(self.partial.len() + length)?;
                self.partial.extend_from_slice(&frame[line]);
                let whole = self.partial.split().freeze();
                self.line(&whole, 0..whole.len(), take)?;
            }
        }
        let rest = &frame[at..];
        self.check(self.partial.len() + rest.len())?;
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Nothing of an event was read yet.
    fn between(&self) -> bool {
        self.partial.is_empty() && self.lines.is_empty() && !self.fresh && !self.after_cr
    }

    /// The stream ended. What was not ended by a blank line is given all the same: whether it is
    /// whole is for the reader of its data to say.
    #[must_use]
    pub fn finish(mut self) -> Option<Event> {
        let last = self.partial.split().freeze();
        // A line that has something in it ends no event.
        if !last.is_empty() && self.line(&last, 0..last.len(), &mut Vec::new()).is_err() {
            return None;
        }
        self.lines.take()
    }

    fn check(&self, more: usize) -> Result<(), TooLarge> {
        let held = self.lines.data.as_ref().map_or(0, Data::len);
        if held + more > self.bound { Err(TooLarge) } else { Ok(()) }
    }

    /// Reads the line at `at` of a frame; only a value that is kept shares the frame's memory.
    fn line(&mut self, frame: &Bytes, mut at: Range<usize>, take: &mut impl Take) -> Result<(), TooLarge> {
        if std::mem::take(&mut self.fresh) && frame[at.clone()].starts_with(b"\xef\xbb\xbf") {
            at.start += 3;
        }
        let line = &frame[at.clone()];
        if line.is_empty() {
            self.lines.take().into_iter().for_each(|event| take.event(event));
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(0) => return Ok(()),
            Some(colon) => {
                let start = colon + 1 + usize::from(line.get(colon + 1) == Some(&b' '));
                (&line[..colon], at.start + start..at.end)
            }
            None => (line, at.end..at.end),
        };
        match field {
            b"data" => {
                self.check(value.len() + 1)?;
                self.lines.add(frame.slice(value));
            }
            b"event" => self.lines.named_error = &frame[value] == b"error",
            _ => {}
        }
        Ok(())
    }
}

/// Where the data is of an event of one line that begins here and is whole, as nearly all are.
fn usual(rest: &[u8]) -> Option<Range<usize>> {
    if !rest.starts_with(USUAL_START) {
        return None;
    }
    let start = USUAL_START.len();
    let end = start + memchr::memchr2(b'\n', b'\r', &rest[start..])?;
    rest[end..].starts_with(USUAL_END).then_some(start..end)
}

impl Lines {
    const fn is_empty(&self) -> bool {
        self.data.is_none() && !self.named_error
    }

    fn add(&mut self, line: Bytes) {
        self.data = Some(match self.data.take() {
            None => Data::One(line),
            Some(first) => {
                let mut many = match first {
                    Data::One(first) => BytesMut::from(&first[..]),
                    Data::Many(many) => many,
                };
                many.extend_from_slice(b"\n");
                many.extend_from_slice(&line);
                Data::Many(many)
            }
        });
    }

    fn take(&mut self) -> Option<Event> {
        let named_error = std::mem::take(&mut self.named_error);
        let data = match self.data.take()? {
            Data::One(line) => line,
            Data::Many(lines) => lines.freeze(),
        };
        Some(Event { named_error, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(frames: &[&[u8]], bound: usize) -> Result<Vec<Event>, TooLarge> {
        let mut decoder = Decoder::new(bound);
        let mut events = Vec::new();
        for frame in frames {
            decoder.push(Bytes::copy_from_slice(frame), &mut events)?;
        }
        events.extend(decoder.finish());
        Ok(events)
    }

    fn data(list: &[Event]) -> Vec<&str> {
        list.iter().map(|e| std::str::from_utf8(&e.data).unwrap()).collect()
    }

    const STREAMS: [(&str, &[&str]); 8] = [
        ("data: {\"a\":1}\n\ndata: [DONE]\n\n", &["{\"a\":1}", "[DONE]"]),
        ("data:x\r\n\r\ndata: y\r\n\r\n", &["x", "y"]),
        ("data: x\r\rdata: y\r\r", &["x", "y"]),
        ("\u{feff}data: x\n\n", &["x"]),
        (": comment\n\n:\n\nevent: ping\nid: 7\nretry: 1\ndata: x\n\n", &["x"]),
        ("data: a\ndata: b\ndata\ndata:  c\n\n", &["a\nb\n\n c"]),
        ("\n\n\ndata: x\n\n\n\n", &["x"]),
        ("data: [DONE]", &["[DONE]"]),
    ];

    #[test]
    fn every_allowed_form_gives_its_events() {
        for (stream, expected) in STREAMS {
            assert_eq!(data(&events(&[stream.as_bytes()], 100).unwrap()), expected, "{stream:?}");
        }
    }

    #[test]
    fn cut_at_every_byte_the_events_are_the_same() {
        for (stream, expected) in STREAMS {
            let stream = stream.as_bytes();
            for cut in 0..=stream.len() {
                for second in cut..=stream.len() {
                    let frames = [&stream[..cut], &stream[cut..second], &stream[second..]];
                    assert_eq!(data(&events(&frames, 100).unwrap()), expected, "{cut} {second}");
                }
            }
        }
    }

    #[test]
    fn an_event_in_one_frame_is_not_copied() {
        let frame = Bytes::from_static(b"data: hello\n\n");
        let mut found = Vec::new();
        Decoder::new(100).push(frame.clone(), &mut found).unwrap();
        assert_eq!(found[0].data.as_ptr(), frame[6..].as_ptr());
    }

    #[test]
    fn a_named_error_is_told() {
        let found = events(&[b"event: error\ndata: x\n\ndata: y\n\n"], 100).unwrap();
        assert_eq!((found[0].named_error, found[1].named_error), (true, false));
    }

    #[test]
    fn the_bound_holds_for_lines_ended_or_not_and_for_many_lines() {
        let long = format!("data: {}", "x".repeat(60));
        assert_eq!(events(&[long.as_bytes(), long.as_bytes()], 100), Err(TooLarge));
        assert_eq!(events(&[format!("{long}\n{long}\n\n").as_bytes()], 100), Err(TooLarge));
        assert!(events(&[format!("{long}\n\n{long}\n\n").as_bytes()], 100).is_ok());
    }
}
