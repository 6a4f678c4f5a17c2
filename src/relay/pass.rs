//! Bytes go through: paths that are no chat, and chats in which nothing has to be done.
//!
//! Both bodies stream; what is held is bounded by the connections' own buffers. Only the end of the
//! reply is looked at: for its usage, and to tell whether a streamed chat is complete. An event
//! stream that breaks off ends with an error event: SDKs take every clean end for a whole answer,
//! and lose what came before a broken one. Any other body that breaks off stays broken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE,
    EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::body::{Body, BoxError};
use super::sink::error_response;
use crate::telemetry::{Telemetry, metrics};
use crate::upstream::{Sent, Upstream};
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::{Members, Raw};

/// The largest reply, or end of one, that is looked through for its usage, in bytes.
const LOOKED_THROUGH: usize = 64 * 1024;
/// The largest error body that is read whole, in bytes.
const LARGEST_ERROR: usize = 1024 * 1024;
const EVENT_STREAM: &[u8] = b"text/event-stream";

/// Whose request goes through, and what it is counted as.
#[derive(Debug, Clone)]
pub struct Passing {
    /// Where it goes.
    pub upstream: Arc<Upstream>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// The team, as a label.
    pub team: Arc<str>,
    /// The route's pattern, as a label.
    pub model: Arc<str>,
    /// When the request came.
    pub since: Instant,
    /// Headers of every response.
    pub headers: HeaderMap,
    /// Cancelled when the process ends.
    pub shutdown: CancellationToken,
}

/// What is sent: a body held whole, which may be sent again, or one handed through.
#[derive(Debug)]
pub enum Request {
    /// Held whole.
    Whole(Bytes),
    /// Handed through.
    Streamed(Sent),
}

impl Passing {
    /// Sends the request on and hands the answer back.
    pub async fn pass(
        self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        request: Request,
    ) -> Response<Body> {
        let chat = method == Method::POST && path.starts_with("/chat/completions");
        let open = Open(Some(self));
        let Some(passing) = &open.0 else { return Response::default() };
        let answered = async {
            let response = match request {
                Request::Streamed(body) => passing.upstream.forward(method, path, headers, body).await,
                Request::Whole(body) => passing.whole(&method, path, &headers, &body).await,
            };
            passing.judged(response?).await
        };
        let answered = tokio::select! {
            answered = answered => answered.map_err(|failure| {
                passing.failed(&failure);
                failure.reply
            }),
            () = passing.shutdown.cancelled() => Err(ErrorReply::shutting_down()),
        };
        match answered {
            Ok(response) => answer(response, open, chat),
            Err(error) => open.refused(&error),
        }
    }

    /// Sends a body that is held, again where nothing has been answered yet.
    async fn whole(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Incoming>, Box<Failure>> {
        let mut attempt = 0u8;
        loop {
            let sent = self.upstream.forward_whole(method.clone(), path, headers.clone(), body.clone()).await;
            let failure = match sent {
                Ok(response) => return Ok(response),
                Err(failure) if attempt < failure.kind.again() => failure,
                Err(failure) => return Err(failure),
            };
            let label = failure.kind.label();
            self.telemetry.counter(metrics::UPSTREAM_RETRIES, &[("reason", label.into())]).increment(1);
            tokio::time::sleep(Duration::from_millis(50 << attempt)).await;
            attempt += 1;
        }
    }

    /// Tells an answer that goes through from a failure.
    async fn judged(&self, response: Response<Incoming>) -> Result<Response<Incoming>, Box<Failure>> {
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(Box::new(Failure::of_status(status.as_u16(), Bytes::new(), None)));
        }
        if matches!(status.as_u16(), 500 | 502 | 504) || status.is_informational() {
            let (_, body) = response.into_parts();
            let read = http_body_util::Limited::new(body, LARGEST_ERROR).collect().await;
            let body = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return Err(Box::new(Failure::of_status(status.as_u16().max(400), body, None)));
        }
        Ok(response)
    }

    fn failed(&self, failure: &Failure) {
        tracing::debug!(upstream = %self.upstream.name, kind = failure.kind.label(), detail = %failure.detail, "relay failed");
        if failure.kind == FailureKind::Credentials {
            let labels = [("upstream", self.upstream.name.clone().into())];
            self.telemetry.counter(metrics::CREDENTIALS_REFUSED, &labels).increment(1);
        }
    }

    fn ended(&self, outcome: &'static str, usage: Option<(u64, u64)>) {
        let labels = [
            ("team", self.team.clone().into()),
            ("model", self.model.clone().into()),
            ("outcome", outcome.into()),
        ];
        self.telemetry.seconds(metrics::REQUEST_SECONDS, &labels, self.since.elapsed());
        for (kind, count) in usage.iter().flat_map(|(input, output)| [("input", *input), ("output", *output)])
        {
            let labels = [
                ("team", self.team.clone().into()),
                ("model", self.model.clone().into()),
                ("token_type", kind.into()),
            ];
            self.telemetry.counter(metrics::TOKENS, &labels).increment(count);
        }
    }
}

/// A request whose end has not been counted. Dropped before that, its client is gone.
#[derive(Debug)]
struct Open(Option<Passing>);

impl Open {
    fn refused(mut self, error: &ErrorReply) -> Response<Body> {
        let mut response = error_response(error);
        if let Some(passing) = self.0.take() {
            passing.ended(if error.status < 500 { "refused" } else { "error" }, None);
            response.headers_mut().extend(passing.headers);
        }
        response
    }

    fn end(&mut self, outcome: &'static str, usage: Option<(u64, u64)>) {
        if let Some(passing) = self.0.take() {
            passing.ended(outcome, usage);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(passing) = self.0.take() {
            passing.telemetry.counter(metrics::DISCONNECTS, &[]).increment(1);
            passing.ended("client_gone", None);
        }
    }
}

/// The upstream's answer, with our headers.
fn answer(response: Response<Incoming>, open: Open, chat: bool) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let kind = Streams::of(&parts.headers, parts.status, chat);
    let mut headers = end_to_end(&parts.headers);
    if kind != Streams::Bytes {
        // There may be more to say than was announced.
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(passing) = &open.0 {
        headers.extend(passing.headers.clone());
    }
    let mut answer = Response::new(match Metered::new(body, open, parts.status, kind) {
        Some(metered) => Body::boxed(metered),
        None => Body::Empty,
    });
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = headers;
    answer
}

/// What a reply's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// Anything: it is not understood.
    Bytes,
    /// Events: an error can be told at their end.
    Events,
    /// The events of a chat: it is known which ones must come.
    Chat,
}

impl Streams {
    fn of(headers: &HeaderMap, status: StatusCode, chat: bool) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let named = kind.get(..EVENT_STREAM.len()).is_some_and(|k| k.eq_ignore_ascii_case(EVENT_STREAM));
        if !named || status != StatusCode::OK || headers.contains_key(CONTENT_ENCODING) {
            return Self::Bytes;
        }
        if chat { Self::Chat } else { Self::Events }
    }
}

/// A reply that goes through while its end is remembered.
struct Metered {
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
    fn new(body: Incoming, open: Open, status: StatusCode, kind: Streams) -> Option<Self> {
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
        self.open.end(if refused { "refused" } else { outcome }, usage_in(&self.tail));
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
        let between: &[u8] = if self.tail.is_empty() || ends_an_event(&self.tail) { b"" } else { b"\n\n" };
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
                let again = Instant::now() + self.allowed;
                self.stall.as_mut().reset(again);
                if let Some(data) = frame.data_ref() {
                    self.remember(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(self.broke("error", &truncated(), error.into())),
            Poll::Ready(None) if self.kind == Streams::Chat && !is_complete(&self.tail) => {
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

fn ends_an_event(text: &[u8]) -> bool {
    [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"].iter().any(|end| text.ends_with(end))
}

/// Whether the events of a chat say that it is complete.
fn is_complete(text: &[u8]) -> bool {
    const FINISH: &[u8] = b"\"finish_reason\"";
    let says_how = |at: usize| {
        let value = text[at + FINISH.len()..].trim_ascii_start();
        value.strip_prefix(b":").is_some_and(|v| v.trim_ascii_start().starts_with(b"\""))
    };
    memchr::memmem::rfind(text, b"[DONE]").is_some() || memchr::memmem::find_iter(text, FINISH).any(says_how)
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

/// Headers that belong to one connection, and credentials of one hop.
const OF_ONE_HOP: [HeaderName; 8] =
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, EXPECT];

/// The headers that go on: without those of one hop, and those `connection` names.
#[must_use]
pub fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !OF_ONE_HOP.contains(name) && !named.contains(name) && name.as_str() != "keep-alive" {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// The client's headers as they go to an upstream: end to end, without its credentials, its host and
/// what was meant for fanfold. `whole`: the body is written anew, so what described it goes too.
#[must_use]
pub fn to_upstream(headers: &HeaderMap, request_id: &str, whole: bool) -> HeaderMap {
    let mut kept = end_to_end(headers);
    for name in [AUTHORIZATION, COOKIE, HOST] {
        kept.remove(name);
    }
    for name in ["api-key", "x-api-key", "x-goog-api-key"] {
        kept.remove(name);
    }
    let own: Vec<HeaderName> =
        kept.keys().filter(|name| name.as_str().starts_with("x-fanfold-")).cloned().collect();
    for name in own {
        kept.remove(name);
    }
    if whole {
        kept.remove(CONTENT_LENGTH);
        kept.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        kept.insert("x-request-id", id);
    }
    kept
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

    #[test]
    fn a_streamed_chat_is_complete_with_a_finish_or_the_end_mark() {
        for complete in [
            &b"data: [DONE]\n\n"[..],
            b"data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[]}\n\n",
            b"{\"finish_reason\":null} {\"finish_reason\" : \"length\"} {\"finish_reason\":null}",
        ] {
            assert!(is_complete(complete));
        }
        for not in [&b""[..], b"{\"finish_reason\":null}", b"\"finish_reason\"", b"\"finish_reason\":\n"] {
            assert!(!is_complete(not));
        }
    }

    #[test]
    fn headers_of_one_hop_credentials_and_our_own_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("api-key", "secret"),
            ("cookie", "secret"),
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "here"),
            ("x-fanfold-tools", "none"),
            ("x-request-id", "theirs"),
            ("openai-beta", "kept"),
            ("content-length", "7"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let kept = to_upstream(&headers, "ours", true);
        let mut names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept-encoding", "openai-beta", "x-request-id"]);
        assert_eq!(kept["x-request-id"], "ours");
        assert!(to_upstream(&headers, "ours", false).contains_key("content-length"));
    }
}
