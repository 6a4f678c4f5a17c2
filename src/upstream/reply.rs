//! One reply, as it comes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::client::Pending;
use super::fault;
use super::health::Ticket;
use super::opening::is_event_stream;
use crate::pool::Received;
use crate::sse::{Decoder, Event, Take, USUAL_END};
use crate::wire::chunk;
use crate::wire::error;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::depth;
use crate::wire::repeat::{Known, Repeat};
use crate::wire::reply::{Decoded, Piece, decode};
use crate::wire::texts::Texts;

/// How long the end of a reply that is complete is waited for, so that its connection can serve again.
const REST: Duration = Duration::from_secs(1);
/// The deadline of what is there already.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// The most of an error's body that is read, in bytes.
const LARGEST_ERROR: usize = 1024 * 1024;
/// About so much of a stream is told at a time, in bytes: what comes of it waits for a client that reads slowly.
const BITE: usize = 16 * 1024;

/// What a reply is expected to be, and its bounds.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// A stream was asked for.
    pub stream: bool,
    /// The client used `functions`.
    pub legacy: bool,
    /// The whole reply, in bytes.
    pub reply: usize,
    /// One event, in bytes.
    pub event: usize,
}

/// What is heard next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Status 200.
    Accepted,
    /// Pieces were added, or none: it goes on.
    Pieces,
    /// The reply ended cleanly; `done` if the upstream said that it was complete.
    Ended {
        /// `[DONE]`, or a whole completion.
        done: bool,
    },
    /// The ask failed.
    Failed(Box<Failure>),
}

/// What a reply says, in order.
pub type Pieces = Vec<Utterance>;

/// What a reply says at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Utterance {
    /// Texts, and nothing else. Nearly all of a long reply is this.
    Texts(Texts),
    /// Anything. It is handed on by itself, so it is in its place in memory from the start.
    Piece(Box<Piece>),
}

/// A reply that is asked for.
pub struct Reply {
    coming: Coming,
    /// Hears how the ask went; there is none if nothing was asked.
    ticket: Option<Ticket>,
}

/// What there is of a reply.
struct Coming {
    stage: Stage,
    expect: Expect,
    stall: Duration,
    deadline: Instant,
    received: usize,
    /// The body of a stream that said it was complete before it ended.
    rest: Option<Received>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("received", &self.coming.received).finish_non_exhaustive()
    }
}

enum Stage {
    Asked(Pending),
    /// An error's body is being read.
    Refused {
        status: StatusCode,
        wait: Option<Duration>,
        body: Received,
        read: BytesMut,
    },
    Stream {
        body: Received,
        decoder: Decoder,
        repeat: Repeat,
        done: bool,
        /// What has come and is still to be told.
        left: Bytes,
    },
    Whole {
        body: Received,
        read: BytesMut,
    },
    /// What is left to say.
    Last(Option<Heard>),
}

impl Reply {
    pub(super) fn new(
        asked: Pending,
        expect: Expect,
        head: Duration,
        stall: Duration,
        ticket: Ticket,
    ) -> Self {
        let deadline = Instant::now() + head;
        let stage = Stage::Asked(asked);
        let coming = Coming { stage, expect, stall, deadline, received: 0, rest: None };
        Self { coming, ticket: Some(ticket) }
    }

    pub(super) fn failed(failure: Failure) -> Self {
        let expect = Expect { stream: false, legacy: false, reply: 0, event: 0 };
        let stage = Stage::Last(Some(Heard::Failed(Box::new(failure))));
        let deadline = Instant::now() + NEVER;
        let coming = Coming { stage, expect, stall: Duration::ZERO, deadline, received: 0, rest: None };
        Self { coming, ticket: None }
    }

    /// Waits for what comes next and adds pieces to `pieces`. May be dropped and asked again: nothing
    /// is lost. After [`Heard::Ended`] or [`Heard::Failed`] it waits for ever. It does not look at the time: see
    /// [`deadline`](Self::deadline).
    pub async fn next(&mut self, pieces: &mut Pieces) -> Heard {
        let heard = self.coming.heard(pieces).await;
        self.judged(heard)
    }

    /// When the next has to have come.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.coming.deadline
    }

    /// The next has not come in time.
    pub fn late(&mut self) -> Heard {
        let heard = self.coming.end(Failure::new(FailureKind::Timeout, "no progress in time"));
        self.judged(heard)
    }

    fn judged(&mut self, mut heard: Heard) -> Heard {
        if let Some(ticket) = &mut self.ticket {
            match &mut heard {
                Heard::Accepted => ticket.accepted(),
                Heard::Pieces => {}
                Heard::Ended { .. } => ticket.answered(),
                Heard::Failed(failure) => ticket.failed(failure),
            }
        }
        heard
    }

    /// More of it is read for its client: it has begun, is no refusal, and was not read to its end.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        matches!(self.coming.stage, Stage::Stream { .. } | Stage::Whole { .. })
    }

    /// It was not read for a while, and is read again: that while is not the upstream's.
    pub fn goes_on(&mut self) {
        if self.is_read() {
            self.coming.deadline = Instant::now() + self.coming.stall;
        }
    }

    /// What is left of a reply that is complete: its end. Reading it lets the connection serve again.
    /// `None` if there is nothing to wait for.
    pub fn into_rest(self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let mut body = self.coming.rest?;
        if let Some(None) = body.frame().now_or_never() {
            return None;
        }
        Some(async move {
            let end = async { while let Some(Ok(_)) = body.frame().await {} };
            let _late = tokio::time::timeout(REST, end).await;
        })
    }
}

impl Coming {
    async fn heard(&mut self, pieces: &mut Pieces) -> Heard {
        loop {
            match &mut self.stage {
                Stage::Last(last) => match last.take() {
                    Some(heard) => return heard,
                    None => std::future::pending().await,
                },
                Stage::Asked(asked) => match asked.await {
                    Err(error) => return self.end(fault::of_sending(&error)),
                    Ok(response) => {
                        self.deadline = Instant::now() + self.stall;
                        // Told also where there is nothing to be heard: there is another deadline.
                        return if self.accept(response) { Heard::Accepted } else { Heard::Pieces };
                    }
                },
                Stage::Stream { left, .. } if !left.is_empty() => {
                    if let Some(heard) = self.told(pieces) {
                        return heard;
                    }
                }
                Stage::Refused { body, .. } | Stage::Stream { body, .. } | Stage::Whole { body, .. } => {
                    let frame = body.frame().await;
                    if let Some(heard) = self.take(frame, pieces) {
                        return heard;
                    }
                }
            }
        }
    }

    fn end(&mut self, failure: Failure) -> Heard {
        self.stage = Stage::Last(None);
        Heard::Failed(Box::new(failure))
    }

    /// Looks at the head; whether the ask was accepted.
    fn accept(&mut self, response: Response<Received>) -> bool {
        let status = response.status();
        let wait = fault::retry_after(response.headers());
        let stream = is_event_stream(response.headers());
        let body = response.into_body();
        if status != StatusCode::OK {
            self.stage = match status.as_u16() {
                400..=599 => Stage::Refused { status, wait, body, read: BytesMut::new() },
                other => {
                    let failure = Failure::new(FailureKind::Protocol, format!("unexpected status {other}"));
                    Stage::Last(Some(Heard::Failed(Box::new(failure))))
                }
            };
            return false;
        }
        self.stage = if stream {
            Stage::Stream {
                body,
                decoder: Decoder::new(self.expect.event),
                repeat: Repeat::default(),
                done: false,
                left: Bytes::new(),
            }
        } else {
            Stage::Whole { body, read: BytesMut::new() }
        };
        true
    }

    /// Takes one frame of the body; `None` if there is nothing to tell yet.
    fn take(
        &mut self,
        frame: Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>,
        pieces: &mut Pieces,
    ) -> Option<Heard> {
        match frame {
            None => Some(self.body_ended(pieces)),
            // The status says enough when its body breaks off.
            Some(Err(_)) if matches!(self.stage, Stage::Refused { .. }) => Some(self.body_ended(pieces)),
            Some(Err(error)) => Some(self.end(fault::of_body(&error))),
            Some(Ok(frame)) => frame.into_data().ok().and_then(|data| self.data(data, pieces)),
        }
    }

    fn data(&mut self, data: Bytes, pieces: &mut Pieces) -> Option<Heard> {
        self.received = self.received.saturating_add(data.len());
        let largest =
            if matches!(self.stage, Stage::Refused { .. }) { LARGEST_ERROR } else { self.expect.reply };
        if self.received > largest {
            if matches!(self.stage, Stage::Refused { .. }) {
                return Some(self.body_ended(pieces));
            }
            return Some(self.end(Failure::new(FailureKind::TooLarge, "the reply is over its limit")));
        }
        match &mut self.stage {
            Stage::Refused { read, .. } | Stage::Whole { read, .. } => {
                self.deadline = Instant::now() + self.stall;
                read.extend_from_slice(&data);
                None
            }
            Stage::Stream { left, .. } => {
                *left = data;
                self.told(pieces)
            }
            Stage::Asked(_) | Stage::Last(_) => None,
        }
    }

    /// Tells a bite of what has come of a stream; `None` if there is nothing to tell yet.
    fn told(&mut self, pieces: &mut Pieces) -> Option<Heard> {
        let Stage::Stream { decoder, repeat, done, left, .. } = &mut self.stage else { return None };
        let (before, legacy) = (pieces.len(), self.expect.legacy);
        let mut listener = Listener { repeat, legacy, pieces, done, failed: None };
        let read = decoder.read(bite(left), &mut listener);
        let failed = listener.failed;
        if read.is_err() {
            pieces.truncate(before);
            return Some(self.end(Failure::new(FailureKind::TooLarge, "an event is over its limit")));
        }
        if let Some(failure) = failed {
            if pieces.len() == before {
                return Some(self.end(failure));
            }
            self.stage = Stage::Last(Some(Heard::Failed(Box::new(failure))));
            return Some(Heard::Pieces);
        }
        if *done {
            // Nothing that matters comes after [DONE]; an upstream that keeps the connection
            // open must not keep the turn waiting.
            let last = Stage::Last(Some(Heard::Ended { done: true }));
            if let Stage::Stream { body, .. } = std::mem::replace(&mut self.stage, last) {
                self.rest = Some(body);
            }
        }
        (pieces.len() > before).then(|| {
            self.deadline = Instant::now() + self.stall;
            Heard::Pieces
        })
    }

    fn body_ended(&mut self, pieces: &mut Pieces) -> Heard {
        match std::mem::replace(&mut self.stage, Stage::Last(None)) {
            Stage::Refused { status, wait, read, .. } => {
                Heard::Failed(Box::new(Failure::of_status(status.as_u16(), read.freeze(), wait)))
            }
            Stage::Stream { decoder, done, .. } => self.stream_ended(decoder, done, pieces),
            Stage::Whole { read, .. } => self.whole_ended(read.freeze(), pieces),
            Stage::Asked(_) | Stage::Last(_) => self.end(Failure::new(FailureKind::Truncated, "ended early")),
        }
    }

    fn stream_ended(&mut self, decoder: Decoder, done: bool, pieces: &mut Pieces) -> Heard {
        match decoder.finish().map(|event| read_event(&event, self.expect.legacy)) {
            None | Some(Read::Nothing) => Heard::Ended { done },
            Some(Read::Done) => Heard::Ended { done: true },
            Some(Read::Piece(piece)) => {
                pieces.push(Utterance::Piece(piece));
                self.stage = Stage::Last(Some(Heard::Ended { done }));
                Heard::Pieces
            }
            Some(Read::Failed(failure)) if failure.kind == FailureKind::InvalidReply => {
                self.end(Failure::new(FailureKind::Truncated, "ended inside an event"))
            }
            Some(Read::Failed(failure)) => self.end(failure),
        }
    }

    /// A body that is no event stream: a completion, or, from servers that do not say what they
    /// send, an event stream after all.
    fn whole_ended(&mut self, body: Bytes, pieces: &mut Pieces) -> Heard {
        let start = body.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(body.len());
        if body[start..].starts_with(b"data:") || body[start..].starts_with(b":") {
            return self.unnamed_stream(body, pieces);
        }
        match read_data(&body.slice(start..), self.expect.legacy) {
            Read::Piece(piece) if piece.message.is_some() => {
                pieces.push(Utterance::Piece(piece));
                self.stage = Stage::Last(Some(Heard::Ended { done: true }));
                Heard::Pieces
            }
            Read::Failed(failure) => self.end(failure),
            Read::Piece(_) | Read::Done | Read::Nothing => {
                self.end(Failure::new(FailureKind::InvalidReply, "a 200 without a completion"))
            }
        }
    }

    fn unnamed_stream(&mut self, body: Bytes, pieces: &mut Pieces) -> Heard {
        let events = match events_of(body, self.expect.event) {
            Ok(events) => events,
            Err(failure) => return self.end(failure),
        };
        let (before, mut done) = (pieces.len(), false);
        for event in &events {
            match read_event(event, self.expect.legacy) {
                Read::Piece(piece) => pieces.push(Utterance::Piece(piece)),
                Read::Done => {
                    done = true;
                    break;
                }
                Read::Nothing => {}
                Read::Failed(failure) => return self.end(failure),
            }
        }
        if pieces.len() == before {
            return Heard::Ended { done };
        }
        self.stage = Stage::Last(Some(Heard::Ended { done }));
        Heard::Pieces
    }
}

/// Takes what is told next: less than two bites, and whole events, if they are no larger than one.
fn bite(left: &mut Bytes) -> Bytes {
    if left.len() < 2 * BITE {
        return std::mem::take(left);
    }
    let end = memchr::memmem::rfind(&left[..BITE], USUAL_END);
    left.split_to(end.map_or(BITE, |end| end + USUAL_END.len()))
}

/// Listens to the events of a stream: what is like that before it, or as usual, is read fast, the rest with care.
struct Listener<'a> {
    repeat: &'a mut Repeat,
    legacy: bool,
    pieces: &'a mut Pieces,
    /// The reply said that it is complete.
    done: &'a mut bool,
    /// What came before a failure was said and counts, and nothing after it.
    failed: Option<Failure>,
}

impl Listener<'_> {
    /// What comes after an end counts for nothing.
    const fn is_over(&self) -> bool {
        self.failed.is_some() || *self.done
    }
}

impl Take for Listener<'_> {
    fn skim(&mut self, frame: &Bytes, at: usize, bound: usize) -> Option<usize> {
        let Known { texts, end } = self.repeat.skim(frame, at, bound)?;
        if !self.is_over() {
            self.pieces.push(Utterance::Texts(texts));
        }
        Some(end)
    }

    fn event(&mut self, event: Event) {
        if self.is_over() {
            return;
        }
        if !event.named_error {
            if let Some(text) = self.repeat.text(&event.data) {
                return self.pieces.push(Utterance::Texts(Texts::at(event.data, text, 0)));
            }
            if let Some(piece) = self.repeat.read(&event.data) {
                return self.pieces.push(Utterance::Piece(piece));
            }
        }
        match read_event(&event, self.legacy) {
            Read::Piece(piece) => {
                self.repeat.learn(&event.data, &piece);
                self.pieces.push(Utterance::Piece(piece));
            }
            Read::Done => *self.done = true,
            Read::Nothing => {}
            Read::Failed(failure) => self.failed = Some(failure),
        }
    }
}

/// What one event, or a whole body, says.
pub(super) enum Read {
    Piece(Box<Piece>),
    Done,
    Nothing,
    Failed(Failure),
}

/// All events of a body that is there.
pub(super) fn events_of(body: Bytes, bound: usize) -> Result<Vec<Event>, Failure> {
    let mut decoder = Decoder::new(bound);
    let mut events = Vec::new();
    if decoder.push(body, &mut events).is_err() {
        return Err(Failure::new(FailureKind::TooLarge, "an event is over its limit"));
    }
    events.extend(decoder.finish());
    Ok(events)
}

pub(super) fn read_event(event: &Event, legacy: bool) -> Read {
    let data = event.data.trim_ascii();
    if data == b"[DONE]" {
        return Read::Done;
    }
    if data.is_empty() {
        return Read::Nothing;
    }
    if event.named_error {
        let said = error::Said::read(&event.data);
        let said =
            if said.message.is_empty() { error::Said { message: short(&event.data), ..said } } else { said };
        return Read::Failed(Failure::in_reply(&said));
    }
    read_data(&event.data, legacy)
}

pub(super) fn read_data(data: &Bytes, legacy: bool) -> Read {
    if let Some(read) = chunk::read(data) {
        return Read::Piece(read.piece);
    }
    let invalid = |why: String| Read::Failed(Failure::new(FailureKind::InvalidReply, why));
    if let Err(error) = depth(data) {
        return invalid(error.to_string());
    }
    match decode(data, legacy) {
        Ok(Decoded::Piece(piece)) => Read::Piece(piece),
        Ok(Decoded::Error(said)) => Read::Failed(Failure::in_reply(&said)),
        Ok(Decoded::Nothing) => Read::Nothing,
        Err(error) => invalid(error.to_string()),
    }
}

fn short(data: &Bytes) -> String {
    String::from_utf8_lossy(data).chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::TooLarge;

    fn chunk(content: &str) -> String {
        let before = r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":"#;
        format!("{before}{content},\"finish_reason\":null}}]}}\n\n")
    }

    fn text(text: &str) -> String {
        chunk(&format!("{{\"content\":\"{text}\"}}"))
    }

    /// What is heard of a stream that comes in these frames, whether it said that it was complete, and how it failed.
    fn heard(frames: &[&[u8]], bound: usize) -> (Result<Pieces, TooLarge>, bool, Option<FailureKind>) {
        let (mut decoder, mut repeat) = (Decoder::new(bound), Repeat::default());
        let (mut pieces, mut done, mut failed) = (Pieces::new(), false, None);
        for frame in frames {
            let mut listener = Listener {
                repeat: &mut repeat,
                legacy: false,
                pieces: &mut pieces,
                done: &mut done,
                failed: None,
            };
            if let Err(error) = decoder.read(Bytes::copy_from_slice(frame), &mut listener) {
                return (Err(error), done, failed);
            }
            failed = failed.or(listener.failed.map(|failure| failure.kind));
        }
        (Ok(pieces), done, failed)
    }

    fn texts(pieces: &Pieces) -> Vec<String> {
        let of = |said: &Utterance| match said {
            Utterance::Texts(texts) => texts.strings().collect(),
            Utterance::Piece(piece) => piece.text.iter().cloned().collect::<Vec<_>>(),
        };
        pieces.iter().flat_map(of).map(|text| text.text().to_owned()).collect()
    }

    #[test]
    fn texts_that_come_together_are_heard_together_and_cut_anywhere_none_is_lost() {
        let stream = [
            chunk(r#"{"role":"assistant","content":""}"#),
            ["a", "b", "é", "d", "\\n", "f", "g"].map(text).concat(),
            chunk(r#"{"reasoning":"h"}"#),
            text("i"),
            "data: [DONE]\n\n".into(),
        ]
        .concat();
        let stream = stream.as_bytes();
        let (pieces, done, failed) = heard(&[stream], 1024);
        assert_eq!(failed, None);
        let kinds = pieces.unwrap().into_iter().map(|said| match said {
            Utterance::Texts(texts) => texts.count(),
            Utterance::Piece(_) => 0,
        });
        assert_eq!((kinds.collect::<Vec<_>>(), done), (vec![0, 0, 3, 0, 2, 0, 1], true));
        for cut in 0..=stream.len() {
            let (one, two) = stream.split_at(cut);
            let (pieces, done, failed) = heard(&[one, two], 1024);
            let said = ["a", "b", "é", "d", "\\n", "f", "g", "i"].map(|text| format!("\"{text}\""));
            assert_eq!((texts(&pieces.unwrap()), done, failed), (said.to_vec(), true, None), "cut at {cut}");
        }
    }

    #[test]
    fn what_follows_an_end_in_the_same_frame_counts_for_nothing() {
        let error = "data: {\"error\":{\"message\":\"m\"}}\n\n";
        let done = "data: [DONE]\n\n";
        let more = [text("c"), text("d"), chunk(r#"{"reasoning":"e"}"#)].concat();
        for (end, ended) in [(error, (false, true)), (done, (true, false))] {
            let stream = [text("a"), text("b"), end.into(), more.clone(), error.into(), done.into()].concat();
            let (pieces, done, failed) = heard(&[stream.as_bytes()], 1024);
            assert_eq!(texts(&pieces.unwrap()), ["\"a\"", "\"b\""], "{end}");
            assert_eq!((done, failed.is_some()), ended, "{end}");
        }
    }

    fn bites(frame: &[u8]) -> Vec<Bytes> {
        let mut left = Bytes::copy_from_slice(frame);
        std::iter::from_fn(|| (!left.is_empty()).then(|| bite(&mut left))).collect()
    }

    #[test]
    fn a_large_frame_is_told_in_bites_that_end_where_events_do() {
        let event = text(&"a".repeat(900));
        let (many, few) = (event.repeat(80), event.repeat(30));
        assert!(many.len() > 4 * BITE && few.len() < 2 * BITE);
        let cut = bites(many.as_bytes());
        assert_eq!(cut.concat(), many.as_bytes());
        assert!(cut.len() >= 4, "{} bites", cut.len());
        for bite in &cut {
            assert!(bite.len() < 2 * BITE && bite.starts_with(b"data: ") && bite.ends_with(USUAL_END));
        }
        assert_eq!(bites(few.as_bytes()), [few.as_bytes()], "a crumb more is no bite of its own");
    }

    #[test]
    fn an_event_larger_than_a_bite_is_heard_whole() {
        let large = "é".repeat(2 * BITE);
        let stream = [text("a"), text(&large), text("b"), "data: [DONE]\n\n".into()].concat();
        let cut = bites(stream.as_bytes());
        assert!(cut.len() > 2 && cut.concat() == stream.as_bytes());
        let cut: Vec<&[u8]> = cut.iter().map(|bite| &bite[..]).collect();
        let (pieces, done, failed) = heard(&cut, 1024 * 1024);
        assert_eq!(texts(&pieces.unwrap()), ["a", &large, "b"].map(|text| format!("\"{text}\"")));
        assert_eq!((done, failed), (true, None));
    }

    #[test]
    fn texts_in_events_of_another_form_are_heard_as_texts() {
        for (usual, other) in [("\n\n", "\r\n\r\n"), ("data: ", "data:"), ("\n\n", "\r\r")] {
            let stream = ["a", "b", "c"].map(text).concat().replace(usual, other) + "data: [DONE]\n\n";
            let pieces = heard(&[stream.as_bytes()], 1024).0.unwrap();
            let [Utterance::Piece(_), Utterance::Texts(b), Utterance::Texts(c)] = pieces.as_slice() else {
                panic!("{pieces:?}");
            };
            assert_eq!([b, c].map(Texts::count), [1, 1], "{other:?}");
        }
    }

    #[test]
    fn half_an_event_is_none_though_one_of_two_lines_looked_like_it() {
        let one = text("a");
        let two = one.replace("\"choices\":", "\"choices\":\ndata: ");
        let half = one.replace("\"choices\":", "\"choices\":\n");
        let stream = [two, half].concat();
        // A frame of its own, for the decoder has to be between two events.
        let (pieces, _, failed) = heard(&[b"\n", stream.as_bytes()], 1024);
        assert_eq!((pieces.unwrap().len(), failed), (1, Some(FailureKind::InvalidReply)));
    }

    #[test]
    fn an_event_known_by_sight_keeps_to_the_bound() {
        let first = text("a");
        let line = |text: &String| text.len() - "data: \n\n".len() + 1;
        let long = text(&"b".repeat(50));
        let stream = [first.clone(), text("c"), first, long.clone()].concat();
        assert!(heard(&[stream.as_bytes()], line(&long)).0.is_ok());
        assert_eq!(heard(&[stream.as_bytes()], line(&long) - 1).0, Err(TooLarge));
    }
}
