//! A reply that goes through, byte for byte, while its end is remembered.
//!
//! The end is looked at for its usage, and to tell whether a streamed chat is complete. An event
//! stream that breaks off ends with an error event: SDKs take every clean end for a whole answer, and
//! lose what came before a broken one. Any other body that breaks off stays broken. A chat is held to
//! its limits: bytes of the reply, bytes of one event, time of the whole.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::answer::Open;
use super::body::BoxError;
use super::ending::{self, Ending};
use super::events::{Events, TooLarge};
use super::sink::error_event;
use crate::rare::{Aside, Came};
use crate::upstream::{Received, is_event_stream};
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::Raw;
use crate::wire::usage::Tokens;

/// The largest reply, or end of one, that is looked through, in bytes.
const LOOKED_THROUGH: usize = 64 * 1024;
/// The same of a chat's stream, whose last events are small, unless what was said is kept for the inspector. A
/// thousand streams hold this a thousand times, and up to twice as much.
const OF_A_CHAT: usize = 4 * 1024;

/// How far before it a piece that is forgotten may end sooner, at the end of a line.
const NEAR: usize = 1024;
/// The mark at the end of a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";
/// How long the end of a body may take after that mark.
const REST: Duration = Duration::from_secs(1);

/// What a reply's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    /// Anything: it is not understood.
    Bytes,
    /// Events: an error can be told at their end.
    Events,
    /// The events of a chat: it is known which ones must come.
    Chat,
}

impl Streams {
    pub(super) fn of(headers: &HeaderMap, status: StatusCode, chat: bool) -> Self {
        let plain = status == StatusCode::OK && !headers.contains_key(CONTENT_ENCODING);
        if !plain || !is_event_stream(headers) {
            return Self::Bytes;
        }
        if chat { Self::Chat } else { Self::Events }
    }
}

/// A reply that goes through while its end is remembered.
pub(super) struct Metered {
    /// What came before anything went out.
    start: Bytes,
    body: Received,
    open: Open,
    status: StatusCode,
    kind: Streams,
    tail: Vec<u8>,
    /// What went before the tail says of the end.
    ending: Ending,
    /// How much of the end is kept, in bytes.
    most: usize,
    /// When the upstream has been silent for too long, or a chat's whole time is over.
    until: Instant,
    /// Rings then, and at the end of the process.
    aside: Aside<Pin<Box<WaitForCancellationFutureOwned>>, 1>,
    allowed: Duration,
    /// When a chat has to be over.
    deadline: Option<Instant>,
    /// How much more of a chat's reply may come, in bytes.
    left: usize,
    /// A chat's events.
    events: Option<Events>,
    /// Nothing of the upstream's comes any more.
    over: bool,
}

impl Metered {
    pub(super) fn new(
        start: Bytes,
        body: Received,
        open: Open,
        status: StatusCode,
        kind: Streams,
    ) -> Option<Self> {
        let passing = open.0.as_ref()?;
        let allowed = passing.targets.now().upstream.stall_timeout();
        let deadline = passing.deadline();
        let limits = passing.turn.as_ref().map(|turn| &turn.limits);
        let left = limits.map_or(usize::MAX, |limits| limits.reply.0);
        let events = limits.filter(|_| kind == Streams::Chat).map(|limits| Events::new(limits.event.0));
        let shutdown = Box::pin(passing.shutdown.clone().cancelled_owned());
        let until = next(allowed, deadline);
        let kept = passing.turn.as_ref().and_then(|turn| turn.run.as_ref()).is_some_and(|run| run.keeps());
        let most = if kind == Streams::Chat && !kept { OF_A_CHAT } else { LOOKED_THROUGH };
        let tail = Vec::new();
        Some(Self {
            start,
            body,
            open,
            status,
            kind,
            tail,
            ending: Ending::Broken,
            most,
            until,
            aside: Aside::new(until, [shutdown]),
            allowed,
            deadline,
            left,
            events,
            over: false,
        })
    }

    /// Takes what came, and gives what goes on of it; an error if it is more than may come.
    fn take(&mut self, data: Bytes) -> Result<Bytes, TooLarge> {
        self.left = self.left.checked_sub(data.len()).ok_or(TooLarge)?;
        let whole = match &mut self.events {
            Some(events) => events.push(data)?,
            None => data,
        };
        // Comments keep a connection alive, but they are no progress.
        let progress = match self.kind {
            Streams::Bytes => true,
            Streams::Events => !whole.starts_with(b":") || memchr::memmem::find(&whole, b"data").is_some(),
            Streams::Chat => whole.starts_with(b"data") || memchr::memmem::find(&whole, b"data").is_some(),
        };
        if progress {
            // Nothing that matters comes after the mark.
            let last = self.kind != Streams::Bytes && ending::ends_with_mark(&whole);
            let allowed = if last { self.allowed.min(REST) } else { self.allowed };
            self.until = next(allowed, self.deadline);
        }
        self.remember(&whole);
        Ok(whole)
    }

    fn remember(&mut self, data: &Bytes) {
        if data.len() >= self.most {
            self.forget(self.tail.len());
            let (before, last) = data.split_at(self.cut(data, data.len() - self.most));
            self.note(ending_of(self.kind, before));
            self.tail.extend_from_slice(last);
            return;
        }
        self.tail.extend_from_slice(data);
        if self.tail.len() > 2 * self.most {
            self.forget(self.cut(&self.tail, self.tail.len() - self.most));
        }
    }

    /// How many of the first bytes of `text` are not kept: `surplus`, or a few less if a chat's line begins there.
    fn cut(&self, text: &[u8], surplus: usize) -> usize {
        let near = surplus.saturating_sub(NEAR);
        let line = memchr::memrchr(b'\n', &text[near..surplus]).filter(|_| self.kind == Streams::Chat);
        line.map_or(surplus, |at| near + at + 1)
    }

    /// Forgets the first bytes of the tail, but not what they say of the end.
    fn forget(&mut self, surplus: usize) {
        self.note(ending_of(self.kind, &self.tail[..surplus]));
        self.tail.drain(..surplus);
    }

    fn note(&mut self, ending: Ending) {
        self.ending = self.ending.max(ending);
    }

    /// The time is over: which one.
    fn late(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let whole = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let error = match (&self.open.0, whole) {
            (Some(passing), true) => passing.too_late(),
            _ => Failure::new(FailureKind::Timeout, "").reply,
        };
        self.broke("timeout", &error, "the upstream took too long".into())
    }

    /// What goes on of a piece; nothing if its event is not whole yet.
    fn hand_on(&mut self, data: Bytes) -> Option<Result<Frame<Bytes>, BoxError>> {
        match self.take(data) {
            Ok(whole) => (!whole.is_empty()).then(|| Ok(Frame::data(whole))),
            Err(TooLarge) => {
                if let Some(passing) = &self.open.0 {
                    passing.limit_hit("reply");
                }
                let error = Failure::new(FailureKind::TooLarge, "").reply;
                self.broke("error", &error, "the reply is over its limit".into())
            }
        }
    }

    /// The upstream's end: the last of the reply, if there is any.
    fn ended(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        let rest = self.events.as_mut().map(Events::rest).unwrap_or_default();
        let whole = rest.is_empty() || ending::is_event(&rest);
        self.remember(&rest);
        if self.kind != Streams::Chat {
            self.end("ok");
            return None;
        }
        self.note(ending_of(self.kind, &self.tail));
        let ending = self.ending;
        if !whole || ending == Ending::Broken {
            let truncated = Failure::new(FailureKind::Truncated, "").reply;
            return self.broke("error", &truncated, "ended without a finish".into());
        }
        let last = match ending {
            // Some clients wait for the mark.
            Ending::Finished if ending::is_between_events(&self.tail) => [&rest, DONE].concat().into(),
            Ending::Finished => [&rest, b"\n\n".as_slice(), DONE].concat().into(),
            Ending::Broken | Ending::Failed | Ending::Done => rest,
        };
        self.end("ok");
        (!last.is_empty()).then(|| Ok(Frame::data(last)))
    }

    fn end(&mut self, outcome: &'static str) {
        self.over = true;
        let refused = self.status.is_client_error();
        let outcome = if refused { "refused" } else { outcome };
        self.open.end(outcome, usage_in(&self.tail), self.status.as_u16(), &self.tail);
    }

    /// Whether its reader has the end of a stream, whatever becomes of the body.
    fn is_told(&mut self) -> bool {
        match self.kind {
            Streams::Bytes => false,
            // Where it is no chat an error may be one of several results.
            Streams::Events => ending::ending(&self.tail) == Ending::Done,
            Streams::Chat => {
                self.note(ending::ending(&self.tail));
                matches!(self.ending, Ending::Failed | Ending::Done)
            }
        }
    }

    /// The reply broke off: what the client gets last.
    fn broke(
        &mut self,
        outcome: &'static str,
        error: &ErrorReply,
        cause: BoxError,
    ) -> Option<Result<Frame<Bytes>, BoxError>> {
        if self.is_told() {
            self.end("ok");
            return None;
        }
        self.end(outcome);
        if self.kind == Streams::Bytes {
            return Some(Err(cause));
        }
        // Half an event of anything but a chat is closed first; its reader will not understand it, and
        // then reads why.
        let half = self.kind == Streams::Events && !ending::is_between_events(&self.tail);
        let between: &[u8] = if half { b"\n\n" } else { b"" };
        let event = [between, &error_event(error)].concat();
        Some(Ok(Frame::data(event.into())))
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        loop {
            let next = match std::mem::take(&mut self.start) {
                start if !start.is_empty() => Poll::Ready(Some(Ok(Frame::data(start)))),
                _ => Pin::new(&mut self.body).poll_frame(cx),
            };
            return match next {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => match self.hand_on(data) {
                        None if self.over => Poll::Ready(None),
                        None => continue,
                        some => Poll::Ready(some),
                    },
                    Err(trailers) => Poll::Ready(Some(Ok(trailers))),
                },
                Poll::Ready(Some(Err(error))) => {
                    let truncated = Failure::new(FailureKind::Truncated, "").reply;
                    Poll::Ready(self.broke("error", &truncated, error.into()))
                }
                Poll::Ready(None) => Poll::Ready(self.ended()),
                Poll::Pending => {
                    let until = Some(self.until);
                    self.aside.poll_until(cx, until).map(|came| match came {
                        Came::Time => self.late(),
                        Came::One(()) => {
                            self.broke("error", &ErrorReply::shutting_down(), "the process ends".into())
                        }
                    })
                }
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.kind {
            Streams::Bytes => self.start.is_empty() && self.body.is_end_stream(),
            Streams::Events | Streams::Chat => self.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            Streams::Bytes if self.start.is_empty() => self.body.size_hint(),
            Streams::Bytes | Streams::Events | Streams::Chat => SizeHint::default(),
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        // The last frame of a body that knows its length is not followed by another look.
        if !self.over && self.is_end_stream() {
            self.end("ok");
        }
    }
}

/// What this part of a reply says of its end; nothing is known of what is no chat's.
fn ending_of(kind: Streams, part: &[u8]) -> Ending {
    if kind == Streams::Chat { ending::ending(part) } else { Ending::Broken }
}

/// When to look at the time next.
fn next(allowed: Duration, deadline: Option<Instant>) -> Instant {
    let silent = Instant::now() + allowed;
    deadline.map_or(silent, |deadline| deadline.min(silent))
}

/// The tokens of the last `usage` object in the text.
fn usage_in(text: &[u8]) -> Option<Tokens> {
    let at = memchr::memmem::rfind(text, b"\"usage\"")?;
    let rest = &text[at + b"\"usage\"".len()..];
    let open = rest.iter().position(|b| !b.is_ascii_whitespace() && *b != b':')?;
    let rest = rest.get(open..).filter(|rest| rest.first() == Some(&b'{'))?;
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<&serde_json::value::RawValue>();
    let usage = Bytes::copy_from_slice(values.next()?.ok()?.get().as_bytes());
    Some(Tokens::of(&Raw::parse(usage).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_at_the_end_of_a_body_or_stream() {
        assert_eq!(
            usage_in(br#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"x":{"y":1}}}"#),
            Some(Tokens { input: 3, cached: 0, output: 4 })
        );
        assert_eq!(
            usage_in(b"data: {\"usage\" : {\"input_tokens\":3}}\n\ndata: [DONE]\n\n"),
            Some(Tokens { input: 3, cached: 0, output: 0 })
        );
        for without in [&b""[..], b"{\"usage\":null}", b"{\"usage\":{\"prompt_tokens\":", b"\"usage\""] {
            assert_eq!(usage_in(without), None);
        }
    }
}
