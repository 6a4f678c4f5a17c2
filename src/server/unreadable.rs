//! The answer to a request that is no valid HTTP.
//!
//! hyper answers such a request by itself, with a status and no body, before any handler is asked, and has no
//! setting for it. Its answer is known by its bytes on their way out, and told in our words instead.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::activity::Activity;
use super::gate;

/// Tells hyper's own answers from those of a handler, on one HTTP/1 connection.
pub(crate) struct Unreadable {
    activity: Arc<Activity>,
    headers: Box<dyn Fn() -> HeaderMap + Send + Sync>,
}

impl fmt::Debug for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unreadable")
    }
}

impl Unreadable {
    /// `headers` makes those that every answer of this listener has.
    pub(crate) fn new(
        activity: Arc<Activity>,
        headers: impl Fn() -> HeaderMap + Send + Sync + 'static,
    ) -> Self {
        Self { activity, headers: Box::new(headers) }
    }

    /// A byte came in.
    pub(crate) fn byte(&self) {
        self.activity.byte();
    }

    /// What goes out instead of `written`, if that is hyper's own answer.
    pub(crate) fn instead(&self, written: &[u8]) -> Option<Bytes> {
        if !written.starts_with(b"HTTP/1.") || self.activity.is_busy() {
            return None;
        }
        let (status, date) = own_answer(written)?;
        let (code, message) = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                "headers_too_large",
                "The request's head is too large: at most 64 KiB and 100 headers are read.",
            ),
            _ => (
                "invalid_http",
                "This is no valid HTTP request. Something between client and gateway broke it, or it was meant for another port (HTTPS?).",
            ),
        };
        let mut answer = gate::error(status, code, message);
        answer.headers_mut().extend((self.headers)());
        let mut out = BytesMut::with_capacity(512);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.put_slice(b"\r\nconnection: close");
        let mut line = |name: &str, value: &[u8]| {
            out.put_slice(b"\r\n");
            out.put_slice(name.as_bytes());
            out.put_slice(b": ");
            out.put_slice(value);
        };
        line("content-length", HeaderValue::from(answer.body().len()).as_bytes());
        line("date", date);
        answer.headers().iter().for_each(|(name, value)| line(name.as_str(), value.as_bytes()));
        out.put_slice(b"\r\n\r\n");
        out.put_slice(answer.body());
        Some(out.freeze())
    }
}

/// The status and date of an answer that has nothing else: no body, and no header a handler would have added.
fn own_answer(written: &[u8]) -> Option<(StatusCode, &[u8])> {
    let text = std::str::from_utf8(written).ok()?;
    let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let wanted = [StatusCode::BAD_REQUEST, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];
    let (mut close, mut empty, mut date) = (false, false, None);
    for line in lines {
        match line.split_once(": ")? {
            ("connection", "close") => close = true,
            ("content-length", "0") => empty = true,
            ("date", text) => date = Some(text.as_bytes()),
            _ => return None,
        }
    }
    date.filter(|_| close && empty && wanted.contains(&status)).map(|date| (status, date))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: Sun, 22 Nov 2026 18:32:18 GMT\r\n\r\n";

    fn unreadable() -> Unreadable {
        Unreadable::new(Activity::new(), || {
            [(http::header::WARNING, HeaderValue::from_static("w"))].into_iter().collect()
        })
    }

    #[test]
    fn an_answer_of_hypers_own_is_told_in_our_words() {
        let told = unreadable().instead(OWN.as_bytes()).unwrap();
        let told = std::str::from_utf8(&told).unwrap();
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("\r\nwarning: w"),
            "{head}"
        );
        assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{head}");
        assert!(head.contains("\r\ndate: Sun, 22 Nov 2026 18:32:18 GMT"), "{head}");
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["code"], "invalid_http");
    }

    #[test]
    fn no_other_answer_is_touched() {
        let with_more = OWN.replace("date:", "x-request-id: 1\r\ndate:");
        let of_handler = OWN.replace("400 Bad Request", "404 Not Found");
        for other in [&with_more, &of_handler, &OWN[1..], &OWN[..OWN.len() - 1], &format!("{OWN}x")] {
            assert!(unreadable().instead(other.as_bytes()).is_none(), "{other}");
        }
        let busy = unreadable();
        busy.activity.begin();
        assert!(busy.instead(OWN.as_bytes()).is_none(), "a body may say what it likes");
    }
}
