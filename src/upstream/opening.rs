//! A chat's reply whose bytes go through, looked at before any of them does.
//!
//! ```text
//! 200 ─┬─ one JSON object ── held to its end ──▶ Whole
//!      └─ an event stream ── up to its first event ──▶ Begun
//!             │ an error, no reply, broken off, silent, too large
//!             └─▶ Failure: nothing was shown, so it may be asked again
//! ```
//!
//! A 200 is no promise: servers send error bodies, pages and nothing under it. Whoever asks for a chat
//! gets a reply or an error, and never the one for the other.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::fault;
use super::reply::{Expect, Read, events_of, read_data, read_event};
use crate::pool::Received;
use crate::sse::Decoder;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::Raw;
use crate::wire::usage::Tokens;
use crate::wire::usual::plain_completion;

/// A reply that may go on.
#[derive(Debug)]
pub enum Opened {
    /// All of it, and the tokens it says it used.
    Whole(Response<Bytes>, Option<Tokens>),
    /// What came of a stream so far; the rest is in the response.
    Begun(Bytes, Response<Received>),
}

/// How long a reply is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The longest silence, in which comments do not count.
    pub(super) stall: Duration,
    /// A stream that has said nothing but comments goes on after this.
    pub(super) hold: Duration,
}

/// Looks at a reply with status 200.
pub(super) async fn open(
    response: Response<Received>,
    expect: Expect,
    patience: Patience,
) -> Result<Opened, Failure> {
    let headers = response.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        // Nobody asked for that, and it cannot be looked into.
        return Ok(Opened::Begun(Bytes::new(), response));
    }
    if !may_be_a_reply(headers) {
        return Err(Failure::new(FailureKind::InvalidReply, "neither JSON nor an event stream"));
    }
    if is_event_stream(headers) {
        return begin(response, expect, patience).await;
    }
    let (parts, body) = response.into_parts();
    let body = whole(body, expect.reply, patience.stall).await?;
    let usage = read_whole(&body, expect)?;
    Ok(Opened::Whole(Response::from_parts(parts, body), usage))
}

/// Whether a body can be a chat's reply: it is there, and JSON, events or of no named kind.
fn may_be_a_reply(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let empty = headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
    let is = |name: &str| kind.len() >= name.len() && kind[..name.len()].eq_ignore_ascii_case(name);
    !empty
        && (kind.is_empty()
            || is("text/event-stream")
            || is("text/plain")
            || kind.to_ascii_lowercase().contains("json"))
}

/// Whether the reply says that it is an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    const NAME: &[u8] = b"text/event-stream";
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default().trim_ascii_start();
    kind.get(..NAME.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(NAME))
}

/// The next piece of a body; `None` at its end.
async fn next(body: &mut Received, until: Instant) -> Result<Option<Bytes>, Failure> {
    loop {
        match tokio::time::timeout_at(until, body.frame()).await {
            Err(_) => return Err(Failure::new(FailureKind::Timeout, "no progress in time")),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(fault::of_body(&error)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Pieces that came one after another. The first is not copied unless another one comes.
#[derive(Default)]
struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    fn len(&self) -> usize {
        self.first.len() + self.all.len()
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        self.all.extend_from_slice(&std::mem::take(&mut self.first));
        self.all.extend_from_slice(&piece);
    }

    fn done(self) -> Bytes {
        if self.all.is_empty() { self.first } else { self.all.freeze() }
    }
}

async fn whole(mut body: Received, bound: usize, stall: Duration) -> Result<Bytes, Failure> {
    let mut read = Joined::default();
    while let Some(piece) = next(&mut body, Instant::now() + stall).await? {
        if read.len() + piece.len() > bound {
            return Err(Failure::new(FailureKind::TooLarge, "the reply is over its limit"));
        }
        read.push(piece);
    }
    Ok(read.done())
}

/// The tokens a whole reply says it used; an error if it is no reply.
fn read_whole(body: &Bytes, expect: Expect) -> Result<Option<Tokens>, Failure> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(body.len());
    let text = body.slice(start..);
    if text.starts_with(b"data:") || text.starts_with(b":") {
        return read_unnamed_stream(text, expect);
    }
    if let Some(tokens) = plain_completion(&text) {
        return Ok(tokens);
    }
    match read_data(&text, expect.legacy) {
        Read::Piece(piece) if piece.message.is_some() => Ok(tokens(piece.usage.as_ref())),
        Read::Failed(failure) => Err(failure),
        Read::Piece(_) | Read::Done | Read::Nothing => {
            Err(Failure::new(FailureKind::InvalidReply, "a 200 without a completion"))
        }
    }
}

fn tokens(usage: Option<&Raw>) -> Option<Tokens> {
    usage.map(Tokens::of)
}

/// A stream from a server that does not say what it sends.
fn read_unnamed_stream(body: Bytes, expect: Expect) -> Result<Option<Tokens>, Failure> {
    let (mut usage, mut finished, mut pieces) = (None, false, 0);
    for event in events_of(body, expect.event)? {
        match read_event(&event, expect.legacy) {
            Read::Piece(piece) => {
                pieces += 1;
                finished |= piece.finish.is_some();
                usage = tokens(piece.usage.as_ref()).or(usage);
            }
            Read::Done => finished = true,
            Read::Nothing => {}
            Read::Failed(failure) => return Err(failure),
        }
    }
    match (pieces, finished) {
        (0, _) => Err(Failure::new(FailureKind::InvalidReply, "a 200 without a completion")),
        (_, true) => Ok(usage),
        (_, false) => Err(Failure::new(FailureKind::Truncated, "ended without a finish")),
    }
}

/// Waits for the first event that says something.
async fn begin(response: Response<Received>, expect: Expect, patience: Patience) -> Result<Opened, Failure> {
    let (parts, mut body) = response.into_parts();
    let mut decoder = Decoder::new(expect.event);
    let (mut start, mut events) = (Joined::default(), Vec::new());
    let until = Instant::now() + patience.stall.min(patience.hold);
    loop {
        let piece = match next(&mut body, until).await {
            Ok(piece) => piece,
            // It says that it works on it: the client is told, and waits on.
            Err(failure) if failure.kind == FailureKind::Timeout && patience.hold < patience.stall => break,
            Err(failure) => return Err(failure),
        };
        let ended = piece.is_none();
        match piece {
            Some(piece) => {
                start.push(piece.clone());
                if start.len() > expect.reply || decoder.push(piece, &mut events).is_err() {
                    return Err(Failure::new(FailureKind::TooLarge, "an event is over its limit"));
                }
            }
            None => events.extend(std::mem::replace(&mut decoder, Decoder::new(0)).finish()),
        }
        match says_something(&mut events, expect.legacy) {
            Ok(true) => break,
            Ok(false) => {}
            Err(failure) if ended && failure.kind == FailureKind::InvalidReply => {
                return Err(Failure::new(FailureKind::Truncated, "ended inside an event"));
            }
            Err(failure) => return Err(failure),
        }
        if ended {
            return Err(Failure::new(FailureKind::InvalidReply, "a stream without a reply"));
        }
    }
    Ok(Opened::Begun(start.done(), Response::from_parts(parts, body)))
}

/// Whether there is a piece of a reply among the events, or why there can be none.
fn says_something(events: &mut Vec<crate::sse::Event>, legacy: bool) -> Result<bool, Failure> {
    for event in events.drain(..) {
        match read_event(&event, legacy) {
            Read::Piece(_) => return Ok(true),
            Read::Nothing => {}
            Read::Done => return Err(Failure::new(FailureKind::InvalidReply, "a stream without a reply")),
            Read::Failed(failure) => return Err(failure),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECT: Expect = Expect { stream: true, legacy: true, reply: 1000, event: 100 };

    fn read(text: &'static str) -> Result<Option<Tokens>, FailureKind> {
        read_whole(&Bytes::from_static(text.as_bytes()), EXPECT).map_err(|failure| failure.kind)
    }

    #[test]
    fn a_completion_is_one_and_its_usage_is_read() {
        let tokens = Tokens { input: 3, cached: 0, output: 4 };
        for text in [
            r#"{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
            "\n {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4},\"choices\":[{\"message\":{\"content\":null}},{\"message\":{}}]}\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
        ] {
            assert_eq!(read(text), Ok(Some(tokens)), "{text}");
        }
        assert_eq!(read(r#"{"choices":[{"message":{"content":"a"}}]}"#), Ok(None));
    }

    #[test]
    fn what_is_no_completion_is_not_taken_for_one() {
        for (text, kind) in [
            ("", FailureKind::InvalidReply),
            ("[]", FailureKind::InvalidReply),
            ("{}", FailureKind::InvalidReply),
            ("<html>", FailureKind::InvalidReply),
            (r#"{"choices":[]}"#, FailureKind::InvalidReply),
            (r#"{"choices":[{"message":{"content":"a"#, FailureKind::InvalidReply),
            (r#"{"error":{"message":"m"}}"#, FailureKind::InReply),
            (r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#, FailureKind::Busy),
            ("data: [DONE]\n\n", FailureKind::InvalidReply),
            ("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n", FailureKind::Truncated),
            ("data: {\"error\":{\"message\":\"m\"}}\n\n", FailureKind::InReply),
        ] {
            assert_eq!(read(text), Err(kind), "{text}");
        }
    }

    #[test]
    fn pieces_are_joined_and_a_lone_one_is_not_copied() {
        let lone = Bytes::from(vec![7; 9]);
        let mut joined = Joined::default();
        joined.push(lone.clone());
        assert_eq!(joined.done().as_ptr(), lone.as_ptr());
        let mut joined = Joined::default();
        ["a", "", "bc", "d"].into_iter().for_each(|piece| joined.push(Bytes::from(piece)));
        assert_eq!((joined.len(), joined.done()), (4, Bytes::from("abcd")));
    }

    #[test]
    fn kinds_of_bodies() {
        let of = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            (may_be_a_reply(&headers), is_event_stream(&headers))
        };
        assert_eq!(of("application/json; charset=utf-8"), (true, false));
        assert_eq!(of("Text/Event-Stream;charset=utf-8"), (true, true));
        assert_eq!(of("text/html"), (false, false));
        assert_eq!(of("application/problem+JSON"), (true, false));
    }
}
