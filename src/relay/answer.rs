//! What goes out of an answer that goes through, and what is counted when it is over.

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http::header::{CONTENT_LENGTH, HeaderValue};
use tokio::time::Instant;

use super::body::Body;
use super::headers::joined;
use super::metered::{Metered, Streams};
use super::pass::Passing;
use super::sink::error_response;
use super::summary::{ROUNDS, TOOL_CALLS};
use super::watching::Over;
use super::{spans, summary};
use crate::telemetry::metrics;
use crate::upstream::Received;
use crate::wire::error::ErrorReply;
use crate::wire::usage::Tokens;

/// A request whose end has not been counted. Dropped before that, its client is gone.
#[derive(Debug)]
pub(super) struct Open(pub(super) Option<Box<Passing>>);

impl Open {
    /// An error of ours, or one said in our words.
    pub(super) fn refused(mut self, error: &ErrorReply) -> Response<Body> {
        let mut response = error_response(error);
        if let Some(passing) = self.0.take() {
            response.headers_mut().extend(passing.headers.clone());
            let outcome = match error.status {
                504 => "timeout",
                400..=499 => "refused",
                _ => "error",
            };
            passing.ended(outcome, None, error.status, b"");
        }
        response
    }

    /// A refusal that goes on as it came.
    pub(super) fn refusal(mut self, response: Response<Bytes>) -> Response<Body> {
        let (status, said) = (response.status().as_u16(), response.body().clone());
        let mut answer = response.map(Body::Full);
        answer.headers_mut().remove(CONTENT_LENGTH);
        if let Some(mut passing) = self.0.take() {
            let ours = std::mem::take(&mut passing.headers);
            *answer.headers_mut() = joined(ours, std::mem::take(answer.headers_mut()));
            passing.ended("refused", None, status, &said);
        }
        answer
    }

    /// A chat's whole reply.
    pub(super) fn whole(mut self, response: Response<Bytes>, usage: Option<Tokens>) -> Response<Body> {
        let (parts, said) = response.into_parts();
        let mut answer = Response::new(Body::Full(said.clone()));
        if let Some(mut passing) = self.0.take() {
            if let Some(run) = passing.run() {
                run.answered();
            }
            let mut ours = std::mem::take(&mut passing.headers);
            ours.insert(ROUNDS, HeaderValue::from_static("1"));
            ours.insert(TOOL_CALLS, HeaderValue::from_static("0"));
            if let Some(turn) = &passing.turn {
                summary::relayed_timing(&mut ours, turn.asked.elapsed(), passing.since.elapsed());
            }
            *answer.headers_mut() = joined(ours, parts.headers);
            passing.ended("ok", usage, parts.status.as_u16(), &said);
        }
        answer
    }

    /// A chat's stream, which began with `start`.
    pub(super) fn begun(mut self, start: Bytes, response: Response<Received>) -> Response<Body> {
        if let Some(passing) = &mut self.0 {
            let since = passing.since;
            if let Some(turn) = &mut passing.turn {
                turn.first = Some(since.elapsed());
            }
            if let Some(run) = passing.run() {
                run.answered();
            }
        }
        self.metered(start, response, true)
    }

    /// An answer that is no chat's.
    pub(super) fn through(self, response: Response<Received>) -> Response<Body> {
        self.metered(Bytes::new(), response, false)
    }

    fn metered(mut self, start: Bytes, response: Response<Received>, chat: bool) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        let kind = Streams::of(&parts.headers, parts.status, chat);
        if kind != Streams::Bytes {
            // There may be more to say than was announced.
            parts.headers.remove(CONTENT_LENGTH);
        }
        let ours = self.0.as_mut().map(|passing| std::mem::take(&mut passing.headers));
        let headers = joined(ours.unwrap_or_default(), parts.headers);
        let mut answer = Response::new(match Metered::new(start, body, self, parts.status, kind) {
            Some(metered) => Body::boxed(metered),
            None => Body::Empty,
        });
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = headers;
        answer
    }

    /// It is over: `said` is the end of what the upstream said.
    pub(super) fn end(&mut self, outcome: &'static str, usage: Option<Tokens>, status: u16, said: &[u8]) {
        if let Some(passing) = self.0.take() {
            passing.ended(outcome, usage, status, said);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(passing) = self.0.take() {
            passing.telemetry.count(metrics::DISCONNECTS, &[], 1);
            passing.ended("client_gone", None, 0, b"");
        }
    }
}

impl Passing {
    fn ended(mut self: Box<Self>, outcome: &'static str, usage: Option<Tokens>, status: u16, said: &[u8]) {
        let team = &self.account.team.name;
        let labels = [("team", &**team), ("model", &*self.model), ("outcome", outcome)];
        let now = Instant::now();
        let total = now.saturating_duration_since(self.since);
        self.telemetry.seconds(metrics::REQUEST_SECONDS, &labels, total);
        if let Some(first) = self.turn.as_ref().and_then(|turn| turn.first) {
            self.telemetry.seconds(metrics::FIRST_TOKEN_SECONDS, &labels, first);
        }
        for (kind, count) in
            usage.iter().flat_map(|tokens| [("input", tokens.input), ("output", tokens.output)])
        {
            let labels = [("team", &**team), ("model", &*self.model), ("token_type", kind)];
            self.telemetry.count(metrics::TOKENS, &labels, count);
        }
        if let Some(tokens) = usage {
            self.charge(tokens);
        }
        let Some(turn) = &mut self.turn else { return };
        let run = turn.run.take();
        let priced = self.price.zip(usage);
        let cost = priced.map(|(price, tokens)| summary::money(price.of(tokens), &self.account));
        if let Some(turn) = &self.turn {
            summary::relayed(&self, turn, (now, outcome), usage.unwrap_or_default(), cost.as_deref());
            spans::of_relay(&self, turn, (outcome, status), usage, cost.as_deref());
        }
        if let Some(run) = run {
            let tokens = usage.map(|tokens| (tokens.input, tokens.output));
            run.end(Over { total, outcome, tokens, status, cost, said });
        }
    }

    /// Charges what the answer used: at once, or without keeping the answer waiting for a shared store.
    fn charge(&self, tokens: Tokens) {
        if !self.account.charges_usage(self.price) {
            return;
        }
        let (account, price, model) = (self.account.clone(), self.price, self.model.clone());
        let mut charged = Box::pin(async move { account.charge(tokens, price, &model).await });
        if charged.as_mut().now_or_never().is_none() {
            self.tasks.spawn(charged);
        }
    }
}
