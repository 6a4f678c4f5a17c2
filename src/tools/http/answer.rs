//! An HTTP response, read in bounded memory and turned into what the model reads.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::fault::Fault;
use crate::tools::text::{Full, cut, describe, is_text, tame, utf8};
use crate::wire::tool::{Outcome, OutcomeKind};

/// Room for the words around a body that is not a plain result.
const WORDS: usize = 64;

/// A whole answer of a tool's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tools) struct Answer {
    /// Its status.
    pub(in crate::tools) status: StatusCode,
    /// Where it points to, if it is a redirect.
    pub(super) location: Option<String>,
    /// What the model reads of its body.
    pub(in crate::tools) content: String,
    /// How long the body was.
    full: Full,
}

impl Answer {
    /// Reads a response; of its body at most `limit` bytes (and one more, to know whether it goes on).
    pub(in crate::tools) async fn read(
        response: Response<impl Body<Data = Bytes> + Unpin>,
        limit: usize,
    ) -> Result<Self, Fault> {
        let (head, body) = response.into_parts();
        let status = head.status;
        let limit = if status.is_success() { limit } else { limit.saturating_sub(WORDS) };
        let (kept, full) = keep(body, declared(&head.headers), limit, status.is_success()).await?;
        let location =
            text_of(&head.headers, LOCATION).filter(|_| status.is_redirection()).map(str::to_owned);
        Ok(Self { status, location, content: content(&head.headers, kept, full, limit), full })
    }

    /// The same of an answer that was read with a higher limit.
    pub(in crate::tools) fn shortened(mut self, limit: usize) -> Self {
        let limit = if self.status.is_success() { limit } else { limit.saturating_sub(WORDS) };
        if self.content.len() > limit {
            self.content = cut(self.content, limit, self.full);
        }
        self
    }

    /// What the model reads of it.
    pub(in crate::tools) fn outcome(self) -> Outcome {
        let Self { status, location, content, .. } = self;
        match location {
            _ if status.is_success() => Outcome::ok(content),
            Some(target) => Outcome::failed(
                OutcomeKind::Error,
                &format!("redirect to {} not followed (HTTP {})", tame(&target, 300), status.as_u16()),
            ),
            None => Outcome::failed(OutcomeKind::Error, &format!("HTTP {status}: {content}")),
        }
    }
}

/// The beginning of a body, and how long the whole is.
async fn keep(
    mut body: impl Body<Data = Bytes> + Unpin,
    declared: Option<u64>,
    limit: usize,
    must_be_whole: bool,
) -> Result<(Vec<u8>, Full), Fault> {
    let mut kept: Vec<u8> = Vec::new();
    let mut seen: u64 = 0;
    while let Some(frame) = body.frame().await {
        let data = match frame.map(|frame| frame.into_data()) {
            Ok(Ok(data)) => data,
            Ok(Err(_trailers)) => continue,
            Err(_) if must_be_whole => return Err(Fault::NoAnswer("the answer broke off")),
            Err(_) => return Ok((kept, Full::MoreThan(seen))),
        };
        seen += data.len() as u64;
        let room = limit.saturating_add(1).saturating_sub(kept.len());
        kept.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        if kept.len() > limit {
            let full = declared.map_or(Full::MoreThan(limit as u64), Full::Exactly);
            return Ok((kept, full));
        }
    }
    Ok((kept, Full::Exactly(seen)))
}

fn content(headers: &HeaderMap, kept: Vec<u8>, full: Full, limit: usize) -> String {
    if kept.is_empty() {
        return "(empty)".into();
    }
    let kind = text_of(headers, CONTENT_TYPE);
    if let Some(coding) = text_of(headers, CONTENT_ENCODING).filter(|coding| *coding != "identity") {
        return describe(Some(&format!("compressed with {coding}")), full);
    }
    if kind.is_some_and(|kind| !is_text(kind)) {
        return describe(kind, full);
    }
    match utf8(kept, full) {
        Some(text) => cut(text, limit, full),
        None => describe(kind, full),
    }
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    text_of(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok())
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
