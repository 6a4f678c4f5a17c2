//! Answers a request with the answer of another one's run.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;

use super::body::{Body, BoxError};
use super::error_response;
use super::sink::error_event;
use crate::ledger::{Answer, Heard, Listener};
use crate::upstream::is_event_stream;
use crate::wire::error::ErrorReply;

/// Names the request whose answer this is.
const REPLAY_OF: HeaderName = HeaderName::from_static("x-fanfold-replay-of");

/// The answer of a run that goes on: what is there already, then what comes.
pub async fn listen(listener: Listener, own: &HeaderMap) -> Response<Body> {
    let of = listener.request_id().to_owned();
    if listener.late {
        // What it wrote before was for a client that left; what counts is how it ends.
        return match listener.tape.whole().await {
            Some(answer) => replay(answer, &of, own),
            None => broke_off(own),
        };
    }
    let Some((status, headers)) = listener.tape.head().await else { return broke_off(own) };
    let events = is_event_stream(&headers);
    let body = futures_util::stream::unfold(Some((listener, 0)), move |state| async move {
        let (listener, at) = state?;
        match listener.tape.piece(at).await {
            Heard::Piece(piece) => Some((Ok(Frame::data(piece)), Some((listener, at + 1)))),
            Heard::End => None,
            // Pieces are whole events.
            Heard::Lost if events => Some((Ok(Frame::data(error_event(&lost()))), None)),
            Heard::Lost => Some((Err(BoxError::from("the recording broke off")), None)),
        }
    });
    response(status, headers, Body::boxed(StreamBody::new(body)), &of, own)
}

/// The answer of a run that has ended.
#[must_use]
pub fn replay(answer: Answer, of: &str, own: &HeaderMap) -> Response<Body> {
    response(answer.status, answer.headers, Body::Full(answer.body), of, own)
}

/// The run's own headers, but for the request's id: that is the one of who asks now.
fn response(status: StatusCode, headers: HeaderMap, body: Body, of: &str, own: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(id) = own.get("x-request-id") {
        response.headers_mut().insert("x-request-id", id.clone());
    }
    if let Ok(of) = HeaderValue::try_from(of) {
        response.headers_mut().insert(REPLAY_OF, of);
    }
    response
}

fn lost() -> ErrorReply {
    ErrorReply::new(
        424,
        "turn_failed_after_tools",
        "An earlier attempt of this request was running, and its answer is not to be had: it broke off, or is too large to be kept. Tools with effects may have run; check them before you repeat it.",
    )
    .never_retry()
}

fn broke_off(own: &HeaderMap) -> Response<Body> {
    let mut response = error_response(&lost());
    response.headers_mut().extend(own.clone());
    response
}
