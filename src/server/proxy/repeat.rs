//! Whether a chat repeats another one, and what it gets then.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, Response};
use sha2::{Digest, Sha256};

use super::{Asked, RETRY_COUNT, Refusal, key};
use crate::ledger::{Attempt, Found, Owner};
use crate::policy::plan::TurnPlan;
use crate::relay::body::Body;
use crate::relay::{listen, repetition, replay};
use crate::wire::error::ErrorReply;
use crate::wire::tool::Effect;

/// The longest `Idempotency-Key`, in bytes.
const LONGEST_KEY: usize = 255;

/// What becomes of a chat.
pub(super) enum Course {
    /// It runs; with what the ledger knows it as, if anything has to be known.
    Run(Option<Owner>),
    /// It has its answer already.
    Answered(Response<Body>),
}

/// Looks whether a chat repeats another one. Without a key, that matters only where a tool could `write`.
pub(super) async fn course(
    asked: &Asked,
    headers: &HeaderMap,
    body: &Bytes,
    plan: &TurnPlan,
) -> Result<Course, Refusal> {
    let idempotency_key = idempotency_key(headers)?;
    let may_write = plan.owned.iter().any(|tool| tool.effect == Effect::Write);
    if idempotency_key.is_none() && !may_write {
        return Ok(Course::Run(None));
    }
    // Boxed: no other chat has to have room for it.
    Box::pin(known(asked, headers, body, plan, idempotency_key)).await
}

/// Asks the ledger.
async fn known(
    asked: &Asked,
    headers: &HeaderMap,
    body: &Bytes,
    plan: &TurnPlan,
    idempotency_key: Option<String>,
) -> Result<Course, Refusal> {
    let retry = headers.get(RETRY_COUNT).is_some_and(|count| count != "0");
    let says_so = retry || idempotency_key.is_some();
    let attempt = Attempt {
        team: asked.team.name.clone(),
        key: idempotency_key,
        alike: alike(key(headers).ok().flatten(), body),
        retry,
        request_id: asked.request_id(),
    };
    let patience = plan.rules.limits.turn_timeout.0;
    let finding = asked.snapshot.parts.ledger.find(attempt, patience);
    let found = tokio::select! {
        found = finding => found,
        // Nobody reads an answer any more.
        () = asked.peer.gone.cancelled() => return Ok(Course::Answered(Response::default())),
    };
    if says_so {
        repetition(&asked.snapshot.parts.telemetry, word(&found));
    }
    match found {
        Found::Begin(run) => Ok(Course::Run(Some(run))),
        Found::Replay(answer, of) => Ok(Course::Answered(replay(answer, &of, &asked.headers))),
        Found::Refuse(error) => Err(error.into()),
        Found::Join(listener) => Ok(Course::Answered(tokio::select! {
            response = listen(listener, &asked.headers) => response,
            () = asked.peer.gone.cancelled() => Response::default(),
        })),
    }
}

const fn word(found: &Found) -> &'static str {
    match found {
        Found::Begin(_) => "begun",
        Found::Join(_) => "joined",
        Found::Replay(..) => "replayed",
        Found::Refuse(_) => "refused",
    }
}

/// The client's own key for the request.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok(text) if (1..=LONGEST_KEY).contains(&text.len()) => Ok(Some(text.to_owned())),
        Ok(_) | Err(_) => {
            let message = format!("An Idempotency-Key has 1 to {LONGEST_KEY} visible ASCII characters.");
            Err(ErrorReply::invalid_value("idempotency-key", message).into())
        }
    }
}

/// The digest of who asks and what.
fn alike(key: Option<&[u8]>, body: &Bytes) -> String {
    let mut digest = Sha256::new();
    // The key goes in as its own digest, so that no key and body are those of another.
    digest.update(Sha256::digest(key.unwrap_or_default()));
    digest.update(body);
    digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
