//! Events of a stream: the same however the network cuts it, the same as those of a reader that takes
//! the standard's sentences one by one, and never larger than the bound. Who knows some by sight is told the same.

use bytes::Bytes;
use fanfold::sse::{Decoder, Event, Take, TooLarge};
use fanfold::wire::raw::Raw;
use fanfold::wire::repeat::{Known, Repeat};
use fanfold::wire::reply::{Decoded, decode};

use super::reply::only_text;
use super::{Choices, cut};

pub fn hold(data: &[u8]) {
    let mut choices = Choices(data);
    let bound = [8, 64, 4096, 90][choices.below(4)];
    let sizes = [1, 1 + choices.below(16), 1 + choices.below(256), usize::MAX];
    let stream = choices.rest();
    let wanted = plainly(stream);
    for size in sizes {
        let (events, end) = decoded(stream, size, bound);
        assert!(events.iter().all(|event| event.data.len() <= bound), "larger than the bound of {bound}");
        let told: Vec<(bool, &[u8])> = events.iter().map(|e| (e.named_error, &e.data[..])).collect();
        match end {
            Ok(()) => assert_eq!(told, as_slices(&wanted), "cut every {size}"),
            Err(TooLarge) => {
                assert!(stream.len() > bound, "refused though all of it is within the bound");
                assert_eq!(told, as_slices(&wanted)[..told.len()], "cut every {size}");
            }
        }
        by_sight(stream, size, bound);
    }
}

/// What is told of an event to who knows some by sight.
enum Told {
    Text(Raw),
    Event(Event),
}

#[derive(Default)]
struct Quick {
    repeat: Repeat,
    told: Vec<Told>,
}

impl Take for Quick {
    fn skim(&mut self, frame: &Bytes, at: usize, bound: usize) -> Option<usize> {
        let Known { texts, end } = self.repeat.skim(frame, at, bound)?;
        self.told.extend(texts.strings().map(Told::Text));
        Some(end)
    }

    fn event(&mut self, event: Event) {
        if let Ok(Decoded::Piece(piece)) = decode(&event.data, false) {
            self.repeat.learn(&event.data, &piece);
        }
        self.told.push(Told::Event(event));
    }
}

/// The same events, and the same end, whether or not some are known by sight.
fn by_sight(stream: &[u8], size: usize, bound: usize) {
    let (mut quick, mut careful) = (Quick::default(), Vec::new());
    let mut decoders = [Decoder::new(bound), Decoder::new(bound)];
    for frame in cut(stream, size) {
        let ends = (decoders[0].read(frame.clone(), &mut quick), decoders[1].read(frame, &mut careful));
        assert_eq!(ends.0, ends.1, "cut every {size}");
        if ends.0.is_err() {
            break;
        }
    }
    assert_eq!(quick.told.len(), careful.len(), "cut every {size}");
    for (told, event) in quick.told.iter().zip(&careful) {
        match told {
            Told::Event(told) => assert_eq!(told, event),
            Told::Text(text) => match decode(&event.data, false) {
                Ok(Decoded::Piece(piece)) if !event.named_error => {
                    only_text(text.bytes(), &event.data, &piece);
                }
                other => panic!("{text:?} was taken for {other:?}"),
            },
        }
    }
}

fn as_slices(events: &[(bool, Vec<u8>)]) -> Vec<(bool, &[u8])> {
    events.iter().map(|(named, data)| (*named, &data[..])).collect()
}

fn decoded(stream: &[u8], size: usize, bound: usize) -> (Vec<Event>, Result<(), TooLarge>) {
    let mut decoder = Decoder::new(bound);
    let mut events = Vec::new();
    for frame in cut(stream, size).chain([Bytes::new()]) {
        if decoder.push(frame, &mut events).is_err() {
            return (events, Err(TooLarge));
        }
    }
    match decoder.finish() {
        // A last line over the bound gives nothing, as half an event would.
        None => {
            let all = plainly(stream);
            let lost = all.len() > events.len();
            (events, if lost { Err(TooLarge) } else { Ok(()) })
        }
        Some(last) => {
            events.push(last);
            (events, Ok(()))
        }
    }
}

/// The slow reader: lines first, then fields.
fn plainly(stream: &[u8]) -> Vec<(bool, Vec<u8>)> {
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut at = 0;
    while at < stream.len() {
        match stream[at] {
            b'\r' => {
                at += usize::from(stream.get(at + 1) == Some(&b'\n'));
                lines.push(Vec::new());
            }
            b'\n' => lines.push(Vec::new()),
            byte => lines.last_mut().expect("there is one").push(byte),
        }
        at += 1;
    }
    // The end of the stream ends the last line and the last event.
    lines.push(Vec::new());
    let (mut events, mut data, mut named) = (Vec::new(), None::<Vec<u8>>, false);
    for line in lines {
        if line.is_empty() {
            events.extend(data.take().map(|data| (named, data)));
            named = false;
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(0) => continue,
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (&line[..], &b""[..]),
        };
        match field {
            b"data" => {
                data = Some(match data {
                    None => value.to_vec(),
                    Some(before) => [&before, &b"\n"[..], value].concat(),
                });
            }
            b"event" => named = value == b"error",
            _ => {}
        }
    }
    events
}
