//! What the store keeps of a run: a line of JSON, and behind it the answer as it was sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

/// A run, as any replica can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The run. No two have the same.
    pub(super) run: String,
    /// The request that made the run.
    pub(super) request_id: String,
    /// The SHA-256 of its body.
    pub(super) body: String,
    /// When it began, in milliseconds since 1970.
    pub(super) began: u64,
    /// An SDK said that it repeats.
    pub(super) retry: bool,
    /// The first tool with effects it was about to call; `None` while there was none.
    pub(super) effect: Option<String>,
    /// How it ended; `None` while it runs.
    pub(super) ended: Option<Ended>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    status: u16,
    headers: Vec<(String, String)>,
    /// The answer was too large to be kept.
    pub(super) lost: bool,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Ended {
    pub(super) fn of(answer: Option<&Answer>) -> Self {
        let Some(answer) = answer else { return Self { status: 0, headers: Vec::new(), lost: true } };
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        let headers = answer.headers.iter().filter_map(text).collect();
        Self { status: answer.status.as_u16(), headers, lost: false }
    }

    /// The answer; `None` if it was too large, or what was kept is none.
    pub(super) fn answer(&self, body: Bytes) -> Option<Answer> {
        if self.lost {
            return None;
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        Some(Answer { status: StatusCode::from_u16(self.status).ok()?, headers, body })
    }
}

impl Entry {
    /// As the store keeps it, the answer behind it.
    pub(super) fn write(&self, answer: Option<&Answer>) -> Bytes {
        let mut out = serde_json::to_vec(self).unwrap_or_default();
        out.push(b'\n');
        out.extend_from_slice(answer.map_or(&[][..], |answer| &answer.body));
        out.into()
    }

    /// Reads what a store had. What is none is as good as nothing.
    pub(super) fn read(value: &Bytes) -> Option<(Self, Bytes)> {
        let end = memchr::memchr(b'\n', value)?;
        Some((serde_json::from_slice(&value[..end]).ok()?, value.slice(end + 1..)))
    }
}

/// A door for the fuzz target of the ledger, and for nobody else: what a store had, read, written anew,
/// with the answer that would be given again.
#[doc(hidden)]
#[must_use]
pub fn reread(value: &Bytes) -> Option<(Bytes, Option<Answer>)> {
    let (entry, body) = Entry::read(value)?;
    let answer = entry.ended.as_ref().and_then(|ended| ended.answer(body.clone()));
    let kept = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body };
    Some((entry.write(Some(&kept)), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_anything_else_is_nothing() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        let answer = Answer { status: StatusCode::FAILED_DEPENDENCY, headers, body: "a\nb".into() };
        let mut entry = Entry {
            run: uuid::Uuid::now_v7().to_string(),
            request_id: "r".into(),
            body: "b".into(),
            began: 7,
            retry: true,
            effect: Some("save".into()),
            ended: None,
        };
        let (read, rest) = Entry::read(&entry.write(None)).unwrap();
        assert_eq!((&read, rest.len()), (&entry, 0));
        entry.ended = Some(Ended::of(Some(&answer)));
        let (read, rest) = Entry::read(&entry.write(Some(&answer))).unwrap();
        let again = read.ended.unwrap().answer(rest).unwrap();
        assert_eq!(
            (again.status, &again.headers, &again.body),
            (answer.status, &answer.headers, &answer.body)
        );
        assert!(Ended::of(None).answer(Bytes::new()).is_none());
        for other in ["", "x", "{}\n", "\n"] {
            assert!(Entry::read(&Bytes::from(other)).is_none(), "{other:?}");
        }
    }
}
