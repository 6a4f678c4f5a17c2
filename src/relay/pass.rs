//! Bytes go through: paths that are no chat, and chats in which nothing has to be done.
//!
//! Both bodies stream; what is held is bounded by the connections' own buffers. A chat is asked again
//! like a round of a turn, as long as nothing of its answer has gone out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Collected, Limited};
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::headers::{end_to_end, tell};
use super::metered::{Metered, Streams};
use super::sink::error_response;
use super::summary;
use super::watching::Passed;
use crate::policy::parallel::Decision;
use crate::telemetry::{Telemetry, metrics};
use crate::upstream::{Sent, Upstream, retry_after};
use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};

/// Where chats are, below an upstream's base URL.
const CHAT: &str = "/chat/completions";
/// The largest error body that is read whole, in bytes.
const LARGEST_ERROR: usize = 1024 * 1024;
/// The first pause before a request is sent again; it doubles.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Whose request goes through, and what it is counted as.
#[derive(Debug)]
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
    /// A chat is a turn too, if of one round: it has its line in the log.
    pub turn: Option<Turn>,
}

/// What the log says of a chat that goes through.
#[derive(Debug)]
pub struct Turn {
    /// The request's id.
    pub request_id: String,
    /// The model it asks.
    pub model: String,
    /// The decision about parallel calls.
    pub decision: Decision,
    /// Its run, if runs are remembered.
    pub run: Option<Box<Passed>>,
}

/// What is sent.
pub enum Request<'a> {
    /// A body held whole, which is sent again when nothing could be sent the first time.
    Whole(Bytes),
    /// A body handed through.
    Streamed(Sent),
    /// A chat.
    Chat(Chat<'a>),
}

/// A chat that goes through.
pub struct Chat<'a> {
    /// The body.
    pub body: Bytes,
    /// The model it asks.
    pub model: &'a str,
    /// Makes the same body without `parallel_tool_calls`, should the upstream refuse that.
    pub without: &'a (dyn Fn() -> Bytes + Sync),
}

impl Passing {
    /// Sends the request on and hands the answer back.
    pub async fn pass(
        self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        request: Request<'_>,
    ) -> Response<Body> {
        let chat = matches!(request, Request::Chat(_)) || (method == Method::POST && path.starts_with(CHAT));
        let mut open = Open(Some(self));
        let Some(passing) = &mut open.0 else { return Response::default() };
        let shutdown = passing.shutdown.clone();
        let asked = Instant::now();
        let answered = tokio::select! {
            answered = passing.answered(&method, path, &headers, request) => answered.map_err(|failure| {
                passing.failed(&failure);
                failure.reply
            }),
            () = shutdown.cancelled() => Err(ErrorReply::shutting_down()),
        };
        match answered {
            Ok(Answer::Through(response)) => through(response, open, chat, asked.elapsed()),
            Ok(Answer::Read(response)) => open.read(response),
            Err(error) => open.refused(&error),
        }
    }

    async fn answered(
        &mut self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        request: Request<'_>,
    ) -> Result<Answer, Box<Failure>> {
        match request {
            Request::Streamed(body) => {
                let response = self.upstream.forward(method.clone(), path, headers.clone(), body).await?;
                judged(response, false).await
            }
            Request::Whole(body) => self.again(method, path, headers, &body, false).await,
            Request::Chat(chat) => match self.again(method, path, headers, &chat.body, true).await {
                Err(failure) if failure.kind == FailureKind::ParallelRefused => {
                    summary::learned(&self.telemetry, &self.upstream, chat.model);
                    tell(&mut self.headers, Decision::UNSUPPORTED);
                    if let Some(run) = self.run() {
                        run.decided(Decision::UNSUPPORTED);
                    }
                    self.again(method, path, headers, &(chat.without)(), true).await
                }
                answered => answered,
            },
        }
    }

    fn run(&mut self) -> Option<&mut Passed> {
        self.turn.as_mut()?.run.as_deref_mut()
    }

    /// Sends a body that is held, again where nothing has been answered yet.
    async fn again(
        &mut self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &Bytes,
        chat: bool,
    ) -> Result<Answer, Box<Failure>> {
        let mut attempt = 0u8;
        loop {
            let sent = self.upstream.forward_whole(method.clone(), path, headers.clone(), body.clone()).await;
            let answered = match sent {
                Ok(response) => judged(response, chat).await,
                Err(failure) => Err(failure),
            };
            let failure = match answered {
                Err(failure) if attempt < failure.kind.again() && failure.may_wait() => failure,
                answered => return answered,
            };
            if failure.kind == FailureKind::ParallelRefused
                || (!chat && failure.kind == FailureKind::ServerError)
            {
                return Err(failure);
            }
            let label = failure.kind.label();
            self.telemetry.counter(metrics::UPSTREAM_RETRIES, &[("reason", label.into())]).increment(1);
            tokio::time::sleep(failure.wait.unwrap_or(BACK_OFF * (1 << attempt))).await;
            attempt += 1;
            if let Some(run) = self.run() {
                run.asked_again(label);
            }
        }
    }

    fn failed(&self, failure: &Failure) {
        tracing::debug!(upstream = %self.upstream.name, kind = failure.kind.label(), detail = %failure.detail, "relay failed");
        if failure.kind == FailureKind::Credentials {
            let labels = [("upstream", self.upstream.name.clone().into())];
            self.telemetry.counter(metrics::CREDENTIALS_REFUSED, &labels).increment(1);
        }
    }

    fn ended(mut self, outcome: &'static str, usage: Option<(u64, u64)>, status: u16, said: &[u8]) {
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
        if let Some(turn) = &self.turn {
            summary::relayed(&self, turn, outcome, usage.unwrap_or_default());
        }
        if let Some(run) = self.turn.as_mut().and_then(|turn| turn.run.take()) {
            run.end(outcome, usage, status, said);
        }
    }
}

/// A request whose end has not been counted. Dropped before that, its client is gone.
#[derive(Debug)]
pub(super) struct Open(pub(super) Option<Passing>);

impl Open {
    fn refused(mut self, error: &ErrorReply) -> Response<Body> {
        let mut response = error_response(error);
        if let Some(passing) = self.0.take() {
            response.headers_mut().extend(passing.headers.clone());
            passing.ended(if error.status < 500 { "refused" } else { "error" }, None, error.status, b"");
        }
        response
    }

    /// A refusal that goes on as it came.
    fn read(mut self, response: Response<Bytes>) -> Response<Body> {
        let (status, said) = (response.status().as_u16(), response.body().clone());
        let mut answer = response.map(Body::Full);
        *answer.headers_mut() = end_to_end(answer.headers());
        answer.headers_mut().remove(CONTENT_LENGTH);
        if let Some(passing) = self.0.take() {
            answer.headers_mut().extend(passing.headers.clone());
            passing.ended("refused", None, status, &said);
        }
        answer
    }

    /// It is over: `said` is the end of what the upstream said.
    pub(super) fn end(&mut self, outcome: &'static str, usage: Option<(u64, u64)>, status: u16, said: &[u8]) {
        if let Some(passing) = self.0.take() {
            passing.ended(outcome, usage, status, said);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(passing) = self.0.take() {
            passing.telemetry.counter(metrics::DISCONNECTS, &[]).increment(1);
            passing.ended("client_gone", None, 0, b"");
        }
    }
}

/// What an upstream answered.
enum Answer {
    /// Its bytes go through.
    Through(Response<Incoming>),
    /// It was read to see what it says, and goes on as it came.
    Read(Response<Bytes>),
}

/// The upstream's answer, with our headers. `round` is the time until its head came.
fn through(response: Response<Incoming>, mut open: Open, chat: bool, round: Duration) -> Response<Body> {
    if let Some(run) = open.0.as_mut().and_then(Passing::run) {
        run.answered();
    }
    let (parts, body) = response.into_parts();
    let kind = Streams::of(&parts.headers, parts.status, chat);
    let mut headers = end_to_end(&parts.headers);
    if kind != Streams::Bytes {
        // There may be more to say than was announced.
        headers.remove(CONTENT_LENGTH);
    }
    if chat && kind == Streams::Bytes && parts.status == StatusCode::OK {
        headers.insert("x-fanfold-rounds", HeaderValue::from_static("1"));
        headers.insert("x-fanfold-tool-calls", HeaderValue::from_static("0"));
    }
    if let Some(passing) = &open.0 {
        headers.extend(passing.headers.clone());
        if chat && kind == Streams::Bytes {
            summary::relayed_timing(&mut headers, round, passing.since.elapsed());
        }
    }
    let mut answer = Response::new(match Metered::new(body, open, parts.status, kind) {
        Some(metered) => Body::boxed(metered),
        None => Body::Empty,
    });
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = headers;
    answer
}

/// Whether a body can be a chat's reply: it is there, and JSON, events or of no named kind.
fn may_be_a_reply(headers: &HeaderMap) -> bool {
    let kind =
        headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let empty = headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
    !empty
        && (kind.is_empty()
            || kind.contains("json")
            || kind.contains("event-stream")
            || kind.starts_with("text/plain"))
}

/// Tells an answer that goes through from a failure. What a chat is refused with is read whole: it may
/// be worth another try.
async fn judged(response: Response<Incoming>, chat: bool) -> Result<Answer, Box<Failure>> {
    let status = response.status();
    if chat && (status.is_redirection() || (status == StatusCode::OK && !may_be_a_reply(response.headers())))
    {
        return Err(Box::new(Failure::new(FailureKind::InvalidReply, "neither JSON nor an event stream")));
    }
    let fails = match status.as_u16() {
        401 | 403 | 500 | 502 | 504 => true,
        400 | 422 | 429 | 503 | 529 => chat,
        _ => status.is_informational(),
    };
    if !fails {
        return Ok(Answer::Through(response));
    }
    let (parts, body) = response.into_parts();
    let read = Limited::new(body, LARGEST_ERROR).collect().await;
    let body = read.map(Collected::to_bytes).unwrap_or_default();
    let failure = Failure::of_status(status.as_u16().max(400), body.clone(), retry_after(&parts.headers));
    if failure.kind == FailureKind::Refused {
        return Ok(Answer::Read(Response::from_parts(parts, body)));
    }
    Err(Box::new(failure))
}
