//! Bytes go through: paths that are no chat, and chats in which nothing has to be done.
//!
//! Both bodies stream; what is held is bounded by the connections' own buffers. The reply is only
//! looked at for its usage, and only where it is small or an event stream. A chat's stream that breaks
//! off is ended by an error event, because clients take one that just stops for complete.

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

use super::body::{Body, BoxError};
use super::ending;
use super::sink::error_response;
use super::summary;
use crate::policy::parallel::Decision;
use crate::telemetry::{Telemetry, metrics};
use crate::upstream::{Sent, Upstream};
use crate::wire::failure::{Failure, FailureKind};
use crate::wire::raw::{Members, Raw};

/// The largest reply, or end of one, that is looked through for its usage, in bytes.
const LOOKED_THROUGH: usize = 64 * 1024;
/// Where chats are, below an upstream's base URL.
const CHAT: &str = "/chat/completions";
/// The largest error body that is read whole, in bytes.
const LARGEST_ERROR: usize = 1024 * 1024;

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
        let is_chat = method == Method::POST && path == CHAT;
        let sent = match request {
            Request::Streamed(body) => self.upstream.forward(method, path, headers, body).await,
            Request::Whole(body) => self.whole(&method, path, &headers, &body).await,
        };
        match sent {
            Ok(response) => self.answer(response, is_chat).await,
            Err(failure) => self.failed(&failure),
        }
    }

    /// Sends a chat. Where the upstream refuses `parallel_tool_calls` itself, that is remembered and
    /// the chat is sent once more, with the body that `without` makes.
    pub async fn chat(
        mut self,
        headers: HeaderMap,
        body: Bytes,
        model: &str,
        without: impl FnOnce() -> Bytes,
    ) -> Response<Body> {
        let response = match self.whole(&Method::POST, CHAT, &headers, &body).await {
            Ok(response) => response,
            Err(failure) => return self.failed(&failure),
        };
        if !matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) {
            return self.answer(response, true).await;
        }
        let (parts, body) = response.into_parts();
        let read = http_body_util::Limited::new(body, LARGEST_ERROR).collect().await;
        let read = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let failure = Failure::of_status(parts.status.as_u16(), read.clone(), None);
        if failure.kind != FailureKind::ParallelRefused {
            self.ended("refused", None);
            let mut answer = Response::new(Body::Full(read));
            *answer.status_mut() = parts.status;
            *answer.headers_mut() = end_to_end(&parts.headers);
            answer.headers_mut().remove(CONTENT_LENGTH);
            answer.headers_mut().extend(self.headers);
            return answer;
        }
        summary::learned(&self.telemetry, &self.upstream, model);
        tell(&mut self.headers, Decision::UNSUPPORTED);
        self.pass(Method::POST, CHAT, headers, Request::Whole(without())).await
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

    async fn answer(self, response: Response<Incoming>, is_chat: bool) -> Response<Body> {
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return self.failed(&Failure::of_status(status.as_u16(), Bytes::new(), None));
        }
        if matches!(status.as_u16(), 500 | 502 | 504) || status.is_informational() {
            let (_, body) = response.into_parts();
            let read = http_body_util::Limited::new(body, LARGEST_ERROR).collect().await;
            let body = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return self.failed(&Failure::of_status(status.as_u16().max(400), body, None));
        }
        let (parts, body) = response.into_parts();
        let mut headers = end_to_end(&parts.headers);
        headers.extend(self.headers.clone());
        let checked = is_chat && status.is_success() && is_plain_event_stream(&headers);
        if checked {
            // An error event may come on top.
            headers.remove(CONTENT_LENGTH);
        }
        let metered = Metered::new(body, self, status, checked);
        let mut answer = Response::new(Body::boxed(metered));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        answer
    }

    fn failed(&self, failure: &Failure) -> Response<Body> {
        tracing::debug!(upstream = %self.upstream.name, kind = failure.kind.label(), detail = %failure.detail, "relay failed");
        if failure.kind == FailureKind::Credentials {
            let labels = [("upstream", self.upstream.name.clone().into())];
            self.telemetry.counter(metrics::CREDENTIALS_REFUSED, &labels).increment(1);
        }
        self.ended(if failure.reply.status < 500 { "refused" } else { "error" }, None);
        let mut response = error_response(&failure.reply);
        response.headers_mut().extend(self.headers.clone());
        response
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

fn is_plain_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    kind.starts_with("text/event-stream") && !headers.contains_key(CONTENT_ENCODING)
}

/// A reply that goes through while its end is remembered for the usage in it, and that ends with an
/// error when it is silent for too long.
struct Metered {
    body: Incoming,
    passing: Option<Passing>,
    status: StatusCode,
    tail: Vec<u8>,
    stall: Pin<Box<Sleep>>,
    allowed: Duration,
    /// A chat's stream: how it ends is looked at.
    checked: bool,
    /// Nothing comes any more.
    over: bool,
}

impl Metered {
    fn new(body: Incoming, passing: Passing, status: StatusCode, checked: bool) -> Self {
        let allowed = passing.upstream.stall_timeout();
        Self {
            body,
            passing: Some(passing),
            status,
            tail: Vec::new(),
            stall: Box::pin(tokio::time::sleep(allowed)),
            allowed,
            checked,
            over: false,
        }
    }

    /// Ends a reply that broke off: with an error event where one can follow, else by breaking off.
    fn broken(&mut self, kind: FailureKind, error: BoxError) -> Result<Frame<Bytes>, BoxError> {
        self.over = true;
        if self.checked && ending::is_between_events(&self.tail) {
            return Ok(Frame::data(ending::event(kind)));
        }
        Err(error)
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
        if let Some(passing) = self.passing.take() {
            let refused = self.status.is_client_error();
            passing.ended(if refused { "refused" } else { outcome }, usage_in(&self.tail));
        }
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
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let again = Instant::now() + self.allowed;
                self.stall.as_mut().reset(again);
                if let Some(data) = frame.data_ref() {
                    let data = data.clone();
                    self.remember(&data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end("error");
                Poll::Ready(Some(self.broken(FailureKind::Truncated, error.into())))
            }
            Poll::Ready(None) if self.checked && !ending::is_complete(&self.tail) => {
                self.end("error");
                let error = "the stream ended before it was complete".into();
                Poll::Ready(Some(self.broken(FailureKind::Truncated, error)))
            }
            Poll::Ready(None) => {
                self.end("ok");
                Poll::Ready(None)
            }
            Poll::Pending if self.stall.as_mut().poll(cx).is_ready() => {
                self.end("timeout");
                let error = "the upstream was silent for too long".into();
                Poll::Ready(Some(self.broken(FailureKind::Timeout, error)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || (!self.checked && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.checked { SizeHint::default() } else { self.body.size_hint() }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let outcome = if self.body.is_end_stream() { "ok" } else { "client_gone" };
        self.end(outcome);
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

/// Writes the decision about parallel calls where people look for it.
pub fn tell(headers: &mut HeaderMap, decision: Decision) {
    if let Ok(value) = HeaderValue::from_str(&decision.to_string()) {
        headers.insert("x-fanfold-parallel", value);
    }
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
