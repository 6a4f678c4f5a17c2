//! A reply that goes through, byte for byte, while its end is remembered.
//!
//! The end is looked at for its usage, and to tell whether a streamed chat is complete. An event
//! stream that breaks off ends with an error event: SDKs take every clean end for a whole answer, and
//! lose what came before a broken one. Any other body that breaks off stays broken.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::BoxError;
use super::ending;
use super::pass::Open;
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::{Members, Raw};

/// The largest reply, or end of one, that is looked through, in bytes.
const LOOKED_THROUGH: usize = 64 * 1024;
const EVENT_STREAM: &[u8] = b"text/event-stream";

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
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let named = kind.get(..EVENT_STREAM.len()).is_some_and(|k| k.eq_ignore_ascii_case(EVENT_STREAM));
        if !named || status != StatusCode::OK || headers.contains_key(CONTENT_ENCODING) {
            return Self::Bytes;
        }
        if chat { Self::Chat } else { Self::Events }
    }
}

/// A reply that goes through while its end is remembered.
pub(super) struct Metered {
    body: Incoming,
    open: Open,
    status: StatusCode,
    kind: Streams,
    tail: Vec<u8>,
    stall: Pin<Box<Sleep>>,
    allowed: Duration,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Nothing of the upstream's comes any more.
    over: bool,
}

impl Metered {
    pub(super) fn new(body: Incoming, open: Open, status: StatusCode, kind: Streams) -> Option<Self> {
        let passing = open.0.as_ref()?;
        let allowed = passing.upstream.stall_timeout();
        let shutdown = Box::pin(passing.shutdown.clone().cancelled_owned());
        let stall = Box::pin(tokio::time::sleep(allowed));
        Some(Self { body, open, status, kind, tail: Vec::new(), stall, allowed, shutdown, over: false })
    }

    fn remember(&mut self, data: &Bytes) {
        if data.len() >= LOOKED_THROUGH {
            self.tail.clear();
            self.tail.extend_from_slice(&data[data.len() - LOOKED_THROUGH..]);
            return;
        }
        self.tail.extend_from_slice(data);
        if self.tail.len() > 2 * LOOKED_THROUGH {
            let surplus = self.tail.len() - LOOKED_THROUGH;
            self.tail.drain(..surplus);
        }
    }

    fn end(&mut self, outcome: &'static str) {
        self.over = true;
        let refused = self.status.is_client_error();
        let outcome = if refused { "refused" } else { outcome };
        self.open.end(outcome, usage_in(&self.tail), self.status.as_u16(), &self.tail);
    }

    /// The reply broke off: what the client gets last.
    fn broke(
        &mut self,
        outcome: &'static str,
        error: &ErrorReply,
        cause: BoxError,
    ) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.end(outcome);
        if self.kind == Streams::Bytes {
            return Some(Err(cause));
        }
        // Half an event is closed first; its reader will not understand it, and then reads why.
        let between: &[u8] = if ending::is_between_events(&self.tail) { b"" } else { b"\n\n" };
        let event = [between, b"data: ", &error.to_event(), b"\n\n"].concat();
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
        let truncated = || Failure::new(FailureKind::Truncated, "").reply;
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // Comments keep a connection alive, but they are no progress.
                let told = self.kind == Streams::Bytes
                    || frame.data_ref().is_none_or(|data| memchr::memmem::find(data, b"data").is_some());
                if told {
                    let again = Instant::now() + self.allowed;
                    self.stall.as_mut().reset(again);
                }
                if let Some(data) = frame.data_ref() {
                    self.remember(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(self.broke("error", &truncated(), error.into())),
            Poll::Ready(None) if self.kind == Streams::Chat && !ending::is_complete(&self.tail) => {
                Poll::Ready(self.broke("error", &truncated(), "ended without a finish".into()))
            }
            Poll::Ready(None) => {
                self.end("ok");
                Poll::Ready(None)
            }
            Poll::Pending if self.stall.as_mut().poll(cx).is_ready() => {
                let error = Failure::new(FailureKind::Timeout, "").reply;
                Poll::Ready(self.broke("timeout", &error, "the upstream was silent for too long".into()))
            }
            Poll::Pending if self.shutdown.as_mut().poll(cx).is_ready() => {
                Poll::Ready(self.broke("error", &ErrorReply::shutting_down(), "the process ends".into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.kind {
            Streams::Bytes => self.body.is_end_stream(),
            Streams::Events | Streams::Chat => self.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            Streams::Bytes => self.body.size_hint(),
            Streams::Events | Streams::Chat => SizeHint::default(),
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

/// Prompt and completion tokens of the last `usage` object in the text.
fn usage_in(text: &[u8]) -> Option<(u64, u64)> {
    let at = memchr::memmem::rfind(text, b"\"usage\"")?;
    let rest = &text[at + b"\"usage\"".len()..];
    let open = rest.iter().position(|b| !b.is_ascii_whitespace() && *b != b':')?;
    let rest = rest.get(open..).filter(|rest| rest.first() == Some(&b'{'))?;
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<&serde_json::value::RawValue>();
    let usage = Bytes::copy_from_slice(values.next()?.ok()?.get().as_bytes());
    let members = Members::read(&usage).ok()?;
    let count = |names: [&str; 2]| {
        names
            .iter()
            .find_map(|name| members.find(name).and_then(|raw: &Raw| raw.text().parse().ok()))
            .unwrap_or(0)
    };
    Some((count(["prompt_tokens", "input_tokens"]), count(["completion_tokens", "output_tokens"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_found_at_the_end_of_a_body_or_stream() {
        assert_eq!(
            usage_in(br#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"x":{"y":1}}}"#),
            Some((3, 4))
        );
        assert_eq!(usage_in(b"data: {\"usage\" : {\"input_tokens\":3}}\n\ndata: [DONE]\n\n"), Some((3, 0)));
        for without in [&b""[..], b"{\"usage\":null}", b"{\"usage\":{\"prompt_tokens\":", b"\"usage\""] {
            assert_eq!(usage_in(without), None);
        }
    }
}
