//! Tools of servers that speak the Model Context Protocol.
//!
//! ```text
//!  settings ─▶ Plan ─▶ Link: a task that starts the server, listens, starts it again ─▶ State ─▶ tools of a catalog
//!                        │                                                                          │
//!              child · stdio  or  http  (transports of the SDK)  ◀──────────── Mcp::run, one call ──┘
//! ```
//!
//! Promises: a call that writes is sent at most once, and so is any other but over a kept connection that turns out to
//! be closed. One for which there was no connection, so that nothing was sent, is tried once more within its time. One
//! that is stopped or out of time is cancelled at the server, and what the server says of it later is dropped. A server
//! that crashes, floods, hangs or lies disturbs its own calls only. The identity of a call and the trace it belongs to
//! travel in `_meta`, as `fanfold/idempotency-key`, `traceparent` and `tracestate`.

mod asked;
mod child;
mod connect;
mod http;
mod listing;
mod names;
mod plan;
mod result;
mod server;
mod stdio;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::sync::Arc;

use ::http::StatusCode;
use rmcp::RoleClient;
use rmcp::model::{CallToolRequestParams, CallToolResponse, JsonObject, RequestMetaObject};
use rmcp::service::ServiceError;
use rmcp::transport::Transport;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::http::{HttpError, is_session_over, ours};
pub(super) use self::listing::Listed;
pub(super) use self::names::{effect, offered, public};
pub(super) use self::plan::Plan;
use self::server::Up;
pub(super) use self::server::{Link, State};
use super::arguments::Arguments;
use super::http::answer::Answer;
use super::http::fault::{self, Fault};
use super::http::{UNKNOWN, connect::ConnectError, rested};
use super::servers::pins;
use super::text::tame;
use super::{Call, took};
use crate::telemetry::traces::{TRACEPARENT, TRACESTATE};
use crate::wire::tool::{Effect, Outcome, OutcomeKind};

/// A server's pipes, for [`door`](super::door).
pub(super) fn stdio_pipes<R, W>(read: R, write: W) -> impl Transport<RoleClient>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send + 'static,
{
    stdio::Pipes::new("door".into(), read, write, listing::Schemas::default())
}

/// Whether a status says that the server did nothing. It may have begun with what took too long.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT
}

/// The most bytes of an error of a server that the model reads.
const MAX_ERROR: usize = 4 * 1024;

/// What a call of a server's tool needs.
#[derive(Debug)]
pub(super) struct Mcp {
    /// The server's name in the settings.
    pub(super) server: Arc<str>,
    /// The connection to it: of everybody, or of one team.
    pub(super) link: Arc<Link>,
    /// The tool's name for the server.
    pub(super) name: Arc<str>,
    /// What a call does.
    pub(super) effect: Effect,
    /// The digest of the tool as it was accepted, where its server's tools are pinned.
    pub(super) accepted: Option<Arc<str>>,
}

impl Mcp {
    /// Runs one call.
    pub(super) async fn run(
        &self,
        arguments: &Arguments<'_>,
        call: &Call,
        stop: &CancellationToken,
    ) -> Outcome {
        let State::Up(mut up) = self.link.state() else {
            let what = format!("the server {} is not available right now; nothing was sent", self.server);
            return Outcome::failed(OutcomeKind::Error, &what);
        };
        if let Err(outcome) = self.as_accepted(&up.tools) {
            return outcome;
        }
        let (started, mut attempts) = (Instant::now(), 1);
        loop {
            let params = match self.params(arguments, call) {
                Ok(params) => params,
                Err(what) => return Outcome::failed(OutcomeKind::InvalidArguments, &what),
            };
            let error = match self.ask(&up, params, call, started, stop).await {
                Ok(outcome) => return outcome,
                Err(error) => error,
            };
            if !self.again(&error, attempts) || !rested(call.deadline, stop).await {
                return self.failed(&error, call.result_limit);
            }
            // Meanwhile it may have turned out to be down, or to offer something else.
            let State::Up(now) = self.link.state() else { return self.failed(&error, call.result_limit) };
            up = now;
            if let Err(outcome) = self.as_accepted(&up.tools) {
                return outcome;
            }
            tracing::debug!(request_id = call.request_id, server = %self.server, "a call is tried once more: {error}");
            attempts += 1;
            call.tries.tell();
        }
    }

    /// Sends a call that began then, and waits for its answer as long as it may take.
    async fn ask(
        &self,
        up: &Up,
        params: CallToolRequestParams,
        call: &Call,
        started: Instant,
        stop: &CancellationToken,
    ) -> Result<Outcome, ServiceError> {
        let (news, mut deadline) = (Arc::new(Notify::new()), call.deadline);
        // Dropping the question tells the server that nobody waits for its answer.
        let mut asked = pin!(asked::call(&up.peer, &up.watched, params, self.effect, Arc::clone(&news)));
        let answer = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    // Whoever runs the call may have run out of patience before its deadline.
                    self.link.doubt();
                    return Ok(Outcome::failed(OutcomeKind::Stopped, &self.unsure("stopped")));
                }
                answer = &mut asked => break answer?,
                () = sleep_until(deadline) => {
                    self.link.doubt();
                    let what = format!("timed out after {}", took(deadline - started));
                    return Ok(Outcome::failed(OutcomeKind::Timeout, &self.unsure(&what)));
                }
                () = news.notified() => {
                    let longer = (Instant::now() + call.progress.silent).min(call.progress.latest);
                    deadline = deadline.max(longer);
                    call.progress.heard.notify_one();
                }
            }
        };
        Ok(match answer {
            CallToolResponse::Complete(result) => result::outcome(&result, call.result_limit),
            CallToolResponse::InputRequired(_) => Outcome::failed(
                OutcomeKind::Error,
                "the server asks for more input from a person, which is not supported",
            ),
            CallToolResponse::Task(_) | _ => Outcome::failed(
                OutcomeKind::Error,
                &self.unsure("the server answered with something that is no result"),
            ),
        })
    }

    /// Whether a call that ended like this is tried again: only if nothing was sent.
    fn again(&self, error: &ServiceError, attempts: u32) -> bool {
        let ServiceError::TransportSend(error) = error else { return false };
        let Some(HttpError::NotSent(why)) = ours(error.error.as_ref()) else { return false };
        fault::again(Err(Fault::NotSent(*why)), self.effect, attempts)
    }

    /// Looks for a pinned tool among those of its server: a turn that began before it changed or went still has it.
    fn as_accepted(&self, tools: &[Listed]) -> Result<(), Outcome> {
        let Some(accepted) = &self.accepted else { return Ok(()) };
        let Some(now) = tools.iter().find(|now| now.name == self.name) else {
            let what = "the server does not offer this tool any more; nothing was sent";
            return Err(Outcome::failed(OutcomeKind::Error, what));
        };
        if pins::digest(now) != **accepted {
            let what = "the tool has changed and waits to be accepted; nothing was sent";
            return Err(Outcome::failed(OutcomeKind::Denied, what));
        }
        Ok(())
    }

    fn params(&self, arguments: &Arguments<'_>, call: &Call) -> Result<CallToolRequestParams, String> {
        let mut object = JsonObject::new();
        for (name, json) in arguments.iter() {
            let value =
                serde_json::from_str(json).map_err(|_| format!("the argument {name:?} is not JSON"))?;
            object.insert(name.to_owned(), value);
        }
        let mut meta = RequestMetaObject::new();
        meta.0.0.insert("fanfold/idempotency-key".into(), call.idempotency_key.as_str().into());
        let trace = call.trace.as_ref();
        let (parent, state) =
            (trace.map(|trace| &trace.parent), trace.and_then(|trace| trace.state.as_ref()));
        for (name, value) in [(TRACEPARENT, parent), (TRACESTATE, state)] {
            if let Some(value) = value.and_then(|value| value.to_str().ok()) {
                meta.0.0.insert(name.as_str().into(), value.into());
            }
        }
        let mut params = CallToolRequestParams::new(self.name.to_string()).with_arguments(object);
        params.meta = Some(meta);
        Ok(params)
    }

    fn failed(&self, error: &ServiceError, limit: usize) -> Outcome {
        let what = match error {
            ServiceError::McpError(error) if stdio::is_too_large(error) => self.unsure(&error.message),
            ServiceError::McpError(error) => {
                // The server's own no: it knows what it did.
                let said = tame(&error.message, MAX_ERROR.min(limit / 2));
                format!("the server refused: {said} (code {})", error.code.0)
            }
            ServiceError::TransportSend(error) => {
                self.link.doubt();
                if is_session_over(error.error.as_ref()) {
                    let what = "the server has ended the session; the call was not run";
                    return Outcome::failed(OutcomeKind::Error, what);
                }
                match ours(error.error.as_ref()) {
                    Some(HttpError::NotSent(ConnectError::Blocked)) => {
                        return Outcome::failed(OutcomeKind::Denied, ConnectError::Blocked.message());
                    }
                    Some(HttpError::NotSent(why)) => format!("unreachable: {}", why.message()),
                    // What such a server says may repeat our key.
                    Some(HttpError::Status(Answer { status, .. }))
                        if matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
                    {
                        format!("HTTP {status}")
                    }
                    Some(HttpError::Status(answer)) if is_refusal(answer.status) => {
                        return answer.clone().shortened(limit).outcome();
                    }
                    Some(status @ HttpError::Status(_)) => self.unsure(&status.to_string()),
                    Some(HttpError::NoAnswer(_) | HttpError::Unfit(_)) | None => {
                        self.unsure("the connection to the server failed")
                    }
                }
            }
            ServiceError::Cancelled { .. } => self.unsure("the server cancelled the call"),
            ServiceError::UnexpectedResponse => {
                self.unsure("the server answered with something that is no result")
            }
            ServiceError::TransportClosed | _ => self.unsure("the server went away before it answered"),
        };
        Outcome::failed(OutcomeKind::Error, &what)
    }

    /// What is said of a call that may have been executed.
    fn unsure(&self, what: &str) -> String {
        match self.effect {
            Effect::Read | Effect::Idempotent => what.to_owned(),
            Effect::Write => format!("{what}; {UNKNOWN}"),
        }
    }
}
