//! Where an answer goes: into a stream of events, or into one object.
//!
//! Both take the same parts, so both say the same. The head of the response is decided as late as
//! the client allows: a stream's when its first content is there, an object's when it is complete. A sink that is
//! dropped before its answer was ended says that too: its turn broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::body::{Body, Closed, Sender, channel};
use super::chat::{Envelope, Fallback, Folding};
use super::headers;
use crate::engine::{Finish, Part, Show};
use crate::ledger::Run;
use crate::policy::parallel::Decision;
use crate::wire::error::ErrorReply;
use crate::wire::raw::Raw;
use crate::wire::reply::Head;
use crate::wire::texts::Texts;

/// A comment that keeps a silent stream alive.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";
/// So much room is made at once for parts that come together, in bytes.
const MOST_EXPECTED: usize = 64 * 1024;
/// So much unused room may go with what is sent, in bytes.
const MOST_UNUSED: usize = 4 * 1024;
/// The bytes of text that a part usually has, or less.
const USUAL_TEXT: usize = 16;

/// Where the head of the response goes.
pub(super) type Answer = oneshot::Sender<Response<Body>>;

/// How a sink behaves.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Headers of every response.
    pub(super) headers: HeaderMap,
    pub(super) fallback: Fallback,
    /// Bytes held for a client that reads slowly.
    pub(super) buffer: usize,
    /// Silence before a comment.
    pub(super) keep_alive: Duration,
}

/// What is said at the end beside the parts.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) usage: Option<Raw>,
    /// fanfold's own member: totals, and the transcript if it was asked for.
    pub(super) own: Option<Raw>,
    pub(super) transcript: bool,
    /// Headers of a whole response.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// What a sink waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// There is room again.
    Room,
    /// The client is gone.
    Gone,
}

pub(super) struct Sink {
    options: Options,
    answer: Option<Answer>,
    out: Vec<u8>,
    /// The client still has to take what was written.
    full: bool,
    sender: Option<Sender>,
    envelope: Option<Envelope>,
    folding: Folding,
    /// So many things may be shown together. Texts make their own room.
    expected: usize,
    silent_since: Instant,
    /// Where everything is recorded for those who join.
    run: Option<Arc<Run>>,
    /// The client is gone, and what is written is for the recording only.
    alone: bool,
    /// The answer was ended.
    ended: bool,
}

impl Sink {
    pub(super) fn new(options: Options, answer: Answer, run: Option<Arc<Run>>) -> Self {
        Self {
            options,
            answer: Some(answer),
            out: Vec::new(),
            full: false,
            sender: None,
            envelope: None,
            folding: Folding::default(),
            expected: 0,
            silent_since: Instant::now(),
            run,
            alone: false,
            ended: false,
        }
    }

    /// The decision about parallel calls changed before anything left.
    pub(super) fn decided(&mut self, decision: Decision) {
        headers::tell(&mut self.options.headers, decision);
    }

    /// The client is gone, but others listen to the recording.
    pub(super) fn go_on_alone(&mut self) {
        self.alone = true;
        self.full = false;
        self.sender = None;
    }

    /// Takes what the engine shows. Nothing leaves before [`flush`](Self::flush).
    pub(super) fn show(&mut self, show: &Show) {
        match show {
            Show::Begin(head) => self.begin(head),
            Show::Part(part) => self.part(part),
            Show::Texts(texts) => self.texts(texts),
        }
    }

    /// So many things may be shown at once: the room for them is made once.
    pub(super) fn expect(&mut self, parts: usize) {
        self.expected = parts;
        self.make_room();
    }

    fn make_room(&mut self) {
        let parts = self.expected;
        if let Some(envelope) = self.envelope.as_ref().filter(|_| self.options.stream && parts > 1) {
            self.out.reserve((parts * (envelope.part_len() + USUAL_TEXT)).min(MOST_EXPECTED));
        }
    }

    fn begin(&mut self, head: &Head) {
        let fallback = &self.options.fallback;
        self.envelope = Some(if self.options.stream {
            let envelope = Envelope::of_chunks(head, fallback);
            envelope.write_role(&mut self.out);
            envelope
        } else {
            Envelope::new(head, fallback)
        });
        self.make_room();
    }

    fn part(&mut self, part: &Part) {
        match (&self.envelope, self.options.stream) {
            (Some(envelope), true) => envelope.write_part(&mut self.out, part),
            (_, _) => self.folding.add(part),
        }
    }

    fn texts(&mut self, texts: &Texts) {
        match (&self.envelope, self.options.stream) {
            (Some(envelope), true) => envelope.write_texts(&mut self.out, texts),
            (_, _) => self.folding.add_texts(texts),
        }
    }

    /// Lets what was written leave, together.
    pub(super) fn flush(&mut self) -> Result<(), Gone> {
        if !self.options.stream || (self.out.is_empty() && !self.full) {
            return Ok(());
        }
        if self.out.is_empty() {
            return self.push(Bytes::new());
        }
        let mut out = std::mem::take(&mut self.out);
        // It may have to wait for its client: much room that it does not need goes back.
        if out.capacity() - out.len() > MOST_UNUSED {
            out.shrink_to_fit();
        }
        let out = Bytes::from(out);
        self.silent_since = Instant::now();
        let opened = self.open();
        if let Some(run) = &self.run {
            run.tape.push(&out);
        }
        if self.alone {
            return Ok(());
        }
        opened?;
        self.push(out)
    }

    fn push(&mut self, bytes: Bytes) -> Result<(), Gone> {
        let Some(sender) = &self.sender else { return Ok(()) };
        self.full = !sender.push(bytes).map_err(|Closed| Gone)?;
        Ok(())
    }

    fn open(&mut self) -> Result<(), Gone> {
        let Some(answer) = self.answer.take() else { return Ok(()) };
        let (sender, receiver) = channel(self.options.buffer);
        let mut response = Response::new(Body::Stream(receiver));
        *response.headers_mut() = std::mem::take(&mut self.options.headers);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        if let Some(run) = &self.run {
            run.tape.begin(response.status(), response.headers());
        }
        if !self.alone {
            self.sender = Some(sender);
        }
        answer.send(response).map_err(|_| Gone)
    }

    /// Whether the client still has to take what was written before it gets more.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    /// Waits until the client took what was written, or is gone. Where it has it never returns: that a client is gone
    /// which has taken everything so far, only its connection knows.
    pub(super) async fn wait(&mut self) -> Wait {
        if self.alone {
            return std::future::pending().await;
        }
        match (&mut self.answer, &self.sender) {
            (Some(answer), _) => {
                answer.closed().await;
                Wait::Gone
            }
            (None, Some(sender)) if self.full => {
                let ready = sender.ready().await;
                self.full = false;
                if ready == Err(Closed) { Wait::Gone } else { Wait::Room }
            }
            (None, _) => std::future::pending().await,
        }
    }

    /// When a comment is due; `None` while there is no stream.
    pub(super) fn comment_at(&self) -> Option<Instant> {
        let open = self.options.stream && self.answer.is_none();
        (open && !self.full).then(|| self.silent_since + self.options.keep_alive)
    }

    /// Writes a comment.
    pub(super) fn comment(&mut self) {
        self.out.extend_from_slice(KEEP_ALIVE);
    }

    /// Ends the answer. It leaves as fast as the client takes it; where that is behind, it gives what tells when it no
    /// longer is.
    pub(super) fn finish(mut self, finish: &Finish, totals: Totals) -> Result<Option<Sender>, Gone> {
        match finish {
            Finish::Gone => {
                self.ended = true;
                return Ok(None);
            }
            Finish::Failed(error) if self.answer.is_some() => {
                return self.refuse(error, totals).map(|()| None);
            }
            Finish::Failed(error) => self.out.extend_from_slice(&error_event(error)),
            Finish::Answer(reason) => {
                if self.envelope.is_none() {
                    self.begin(&Head::default());
                }
                let Some(envelope) = self.envelope.take() else { return Ok(None) };
                if !self.options.stream {
                    let own = totals.own.as_ref().filter(|_| totals.transcript);
                    let body = self.folding.write(&envelope, *reason, totals.usage.as_ref(), own);
                    return self.whole(StatusCode::OK, body, totals.headers).map(|()| None);
                }
                envelope.write_finish(&mut self.out, *reason);
                if let Some(own) = totals.own.filter(|_| totals.transcript || self.options.include_usage) {
                    let usage = totals.usage.unwrap_or(Raw::NULL);
                    envelope.write_last(&mut self.out, self.options.include_usage.then_some(&usage), &own);
                }
                self.out.extend_from_slice(DONE);
            }
        }
        let flushed = self.flush();
        if let Some(run) = &self.run {
            run.tape.end();
        }
        self.ended = true;
        let sender = self.sender.take().inspect(Sender::finish);
        flushed.map(|()| sender.filter(|_| self.full))
    }

    fn refuse(&mut self, error: &ErrorReply, totals: Totals) -> Result<(), Gone> {
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_GATEWAY);
        self.options.headers.extend(error_headers(error));
        self.whole(status, error.to_body(), totals.headers)
    }

    fn whole(
        &mut self,
        status: StatusCode,
        body: Bytes,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<(), Gone> {
        let Some(answer) = self.answer.take() else { return Ok(()) };
        self.ended = true;
        let mut response = Response::new(Body::Full(body.clone()));
        *response.status_mut() = status;
        // There is one head for one answer.
        *response.headers_mut() = std::mem::take(&mut self.options.headers);
        for (name, value) in headers {
            response.headers_mut().insert(name, value);
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(run) = &self.run {
            run.tape.begin(response.status(), response.headers());
            run.tape.push(&body);
            run.tape.end();
        }
        answer.send(response).map_err(|_| Gone)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let error = broke_off();
        if self.answer.is_some() {
            // Whoever is gone does not hear it.
            let _gone = self.refuse(&error, Totals::default());
            return;
        }
        // What was being written is half an event.
        let whole = memchr::memmem::rfind(&self.out, b"\n\n").map_or(0, |at| at + 2);
        self.out.truncate(whole);
        self.out.extend_from_slice(&error_event(&error));
        let last = Bytes::from(std::mem::take(&mut self.out));
        if let Some(run) = &self.run {
            run.tape.push(&last);
            run.tape.end();
        }
        if let Some(sender) = self.sender.take() {
            // Whoever is gone does not hear it.
            let _gone = sender.push(last);
            sender.finish();
        }
    }
}

/// What the client of a turn that broke off is told.
pub(super) fn broke_off() -> ErrorReply {
    let message = "The turn broke off inside fanfold; its log says more. Tools may have run: check before you repeat it.";
    ErrorReply::new(500, "internal_error", message).never_retry()
}

/// An error as the last event of a stream.
#[must_use]
pub(super) fn error_event(error: &ErrorReply) -> Bytes {
    [b"data: ".as_slice(), &error.to_event(), b"\n\n"].concat().into()
}

/// The headers that tell an SDK whether and when to come back.
#[must_use]
pub fn error_headers(error: &ErrorReply) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(seconds) = error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error.never_retry {
        headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
    }
    headers
}

/// An error as a response.
#[must_use]
pub fn error_response(error: &ErrorReply) -> Response<Body> {
    let mut response = Response::new(Body::Full(error.to_body()));
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = error_headers(error);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;
    use crate::wire::raw::Raw;
    use crate::wire::reply::FinishReason;

    fn sink(stream: bool) -> (Sink, oneshot::Receiver<Response<Body>>) {
        let (answer, head) = oneshot::channel();
        let options = Options {
            stream,
            include_usage: false,
            headers: HeaderMap::from_iter([(HeaderName::from_static("x-request-id"), "r1".parse().unwrap())]),
            fallback: Fallback { request_id: "r1".into(), created: 1, model: "m".into() },
            buffer: 1024,
            keep_alive: Duration::from_secs(10),
        };
        (Sink::new(options, answer, None), head)
    }

    async fn read(response: Response<Body>) -> String {
        let body = response.into_body().collect().await.expect("a clean end").to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_turn_that_breaks_off_before_its_answer_is_an_error_nobody_repeats() {
        for stream in [false, true] {
            let (sink, head) = sink(stream);
            drop(sink);
            let response = head.await.unwrap();
            assert_eq!(response.status(), 500);
            assert_eq!(response.headers()["x-should-retry"], "false");
            assert_eq!(response.headers()["x-request-id"], "r1");
            assert!(read(response).await.contains("\"internal_error\""));
        }
    }

    #[tokio::test]
    async fn a_client_that_is_behind_at_the_end_is_told_of_and_gets_everything() {
        for (length, behind) in [(10, false), (2000, true)] {
            let (mut sink, head) = sink(true);
            sink.show(&Show::Begin(Head::default()));
            sink.show(&Show::Part(Box::new(Part {
                text: Some(Raw::string(&"o".repeat(length))),
                ..Part::default()
            })));
            assert_eq!((sink.flush(), sink.is_full()), (Ok(()), behind));
            let left = sink.finish(&Finish::Answer(FinishReason::Stop), Totals::default()).unwrap();
            assert_eq!(left.is_some(), behind);
            let text = read(head.await.unwrap()).await;
            assert!(text.contains(&"o".repeat(length)) && text.ends_with("data: [DONE]\n\n"), "{text}");
            assert!(left.is_none_or(|left| left.ready().now_or_never().is_some()));
        }
    }

    /// With a client that is behind, and half an event written.
    #[tokio::test]
    async fn a_stream_whose_turn_breaks_off_ends_with_an_error_event() {
        let (mut sink, head) = sink(true);
        sink.show(&Show::Begin(Head::default()));
        sink.show(&Show::Part(Box::new(Part { text: Some(Raw::string("Hel")), ..Part::default() })));
        assert_eq!((sink.flush(), sink.is_full()), (Ok(()), false));
        sink.show(&Show::Part(Box::new(Part {
            text: Some(Raw::string(&"o".repeat(2000))),
            ..Part::default()
        })));
        assert_eq!((sink.flush(), sink.is_full()), (Ok(()), true));
        sink.out.extend_from_slice(b"data: {\"half");
        drop(sink);
        let response = head.await.unwrap();
        assert_eq!(response.status(), 200);
        let text = read(response).await;
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(
            text.contains("Hel") && last.contains("\"internal_error\"") && !text.contains("[DONE]"),
            "{text}"
        );
    }
}
