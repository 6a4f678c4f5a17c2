//! What a transport's error means.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::connect::{BoxError, ConnectError};
use crate::pool::SendError;
use crate::wire::failure::{Failure, FailureKind};

/// The failure behind an error of asking.
pub(super) fn of_sending(error: &SendError<BoxError>) -> Failure {
    let (kind, error): (_, &(dyn Error + 'static)) = match error {
        SendError::Connect(error) => (connecting(&**error), &**error),
        SendError::Exchange { error, .. } => (exchanging(error), error),
    };
    Failure::new(kind, chain(error))
}

/// The failure behind an error of reading a body.
pub(super) fn of_body(error: &hyper::Error) -> Failure {
    let kind = exchanging(error);
    let kind = if kind == FailureKind::Reset { FailureKind::Truncated } else { kind };
    Failure::new(kind, chain(error))
}

fn connecting(error: &(dyn Error + 'static)) -> FailureKind {
    if find::<rustls::Error>(error).is_some() {
        return FailureKind::Tls;
    }
    match find::<ConnectError>(error) {
        Some(ConnectError::Unresolved) => FailureKind::Unresolved,
        Some(ConnectError::Timeout) => FailureKind::ConnectTimeout,
        // A handshake that ends early is an io error inside the TLS stream; only `https` gets there.
        // (A connection that is not taken at all is refused, never reset.)
        None => match find::<io::Error>(error).map(cause) {
            Some(
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::ConnectionReset,
            ) => FailureKind::Tls,
            Some(io::ErrorKind::TimedOut) => FailureKind::ConnectTimeout,
            Some(_) | None => FailureKind::Unreachable,
        },
    }
}

fn exchanging(error: &(dyn Error + 'static)) -> FailureKind {
    if find::<rustls::Error>(error).is_some() {
        return FailureKind::Tls;
    }
    match find::<hyper::Error>(error) {
        Some(e) if e.is_parse() => FailureKind::Protocol,
        Some(e) if e.is_timeout() => FailureKind::Timeout,
        Some(_) | None => FailureKind::Reset,
    }
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io error may hold the one looked for without naming it as its source.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = find::<E>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The kind of the io error at the bottom; the layers above say `Other`.
fn cause(error: &io::Error) -> io::ErrorKind {
    let inner: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    inner.and_then(find::<io::Error>).map_or(error.kind(), cause)
}

/// An error with its causes, for the log.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// `retry-after`, in seconds or as a date, or OpenAI's `retry-after-ms`.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(millis) = text("retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(millis / 1000.0).ok();
    }
    let text = text("retry-after")?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_every_form() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(of("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(of("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        assert!(of("retry-after", &later).unwrap() > Duration::from_secs(80));
        for nonsense in ["", "soon", "-1", "nan"] {
            assert_eq!(of("retry-after", nonsense), None, "{nonsense}");
        }
    }
}
