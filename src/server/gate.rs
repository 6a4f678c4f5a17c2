//! What every request must be before anybody looks at it, and the answer when it is not.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderValue, Method, Response, StatusCode, Version, request};
use serde_json::json;

/// What is wrong with a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// CONNECT and TRACE make no sense here.
    Method,
    /// HTTP/1.1 asks for exactly one `Host`.
    NoHost,
    /// Two of them, or one beside a different `:authority`, may mean two things to two readers.
    ManyHosts,
    /// Not a host and a port.
    BadHost,
}

/// Judges a request's head.
pub(crate) fn check(head: &request::Parts) -> Result<(), Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Refusal::Method);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::ManyHosts),
        // Almost every request's: nothing to compare it with, and nothing in it that has to be looked at closely.
        (Some(host), None)
            if head.version == Version::HTTP_11
                && head.uri.authority().is_none()
                && is_plain(host.as_bytes()) =>
        {
            return Ok(());
        }
        (Some(host), None) => Some(authority(host).ok_or(Refusal::BadHost)?),
        (None, None) => None,
    };
    match (head.version, head.uri.authority(), host) {
        // A target in absolute form outweighs `Host` on HTTP/1.
        (Version::HTTP_11, _, None) => Err(Refusal::NoHost),
        (Version::HTTP_2, None, None) => Err(Refusal::NoHost),
        (Version::HTTP_2, Some(named), Some(host)) if *named != host => Err(Refusal::ManyHosts),
        _ => Ok(()),
    }
}

/// Whether these are letters, digits, dots and dashes, and perhaps a port.
fn is_plain(host: &[u8]) -> bool {
    let (name, port) = match memchr::memchr(b':', host) {
        Some(at) => (&host[..at], &host[at + 1..]),
        None => (host, &b"0"[..]),
    };
    !name.is_empty()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
        && (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
        && port.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')) <= u16::MAX.into()
}

fn authority(host: &HeaderValue) -> Option<Authority> {
    let authority: Authority = host.as_bytes().try_into().ok()?;
    let rest = authority.as_str().strip_prefix(authority.host())?;
    let port = rest.is_empty() || authority.port_u16().is_some();
    (port && !authority.host().is_empty()).then_some(authority)
}

impl Refusal {
    /// The answer to such a request.
    pub(crate) fn answer(self) -> Response<Bytes> {
        let (status, code, message) = match self {
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "CONNECT and TRACE are not served here: send GET or POST",
            ),
            Self::NoHost => {
                (StatusCode::BAD_REQUEST, "invalid_host", "the request has no Host header: send exactly one")
            }
            Self::ManyHosts => (
                StatusCode::BAD_REQUEST,
                "invalid_host",
                "the request names more than one host: send exactly one Host header",
            ),
            Self::BadHost => (
                StatusCode::BAD_REQUEST,
                "invalid_host",
                "the Host header is not a host name with an optional port",
            ),
        };
        let mut answer = error(status, code, message);
        if self == Self::Method {
            answer
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"));
        }
        answer
    }
}

/// An error in OpenAI's shape, for what is answered before a handler is asked.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    let mut answer = Response::new(Bytes::from(body.to_string()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(version: Version, method: &str, target: &str, hosts: &[&str]) -> Result<(), Refusal> {
        let mut request = http::Request::builder().version(version).method(method).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn exactly_one_host_is_wanted() {
        let one = Version::HTTP_11;
        assert_eq!(judged(one, "GET", "/", &["a:1"]), Ok(()));
        assert_eq!(judged(one, "GET", "/", &["[::1]:4100"]), Ok(()));
        assert_eq!(judged(one, "GET", "/", &["api.example-1.org:65535"]), Ok(()));
        assert_eq!(judged(one, "GET", "http://b/x", &["a"]), Ok(()), "absolute form");
        assert_eq!(judged(one, "GET", "/", &[]), Err(Refusal::NoHost));
        assert_eq!(judged(one, "GET", "/", &["a", "a"]), Err(Refusal::ManyHosts));
        for bad in ["", "a b", "user@a", "a/b", "a:port", ":80", "a:1:2", "a:99999"] {
            assert_eq!(judged(one, "GET", "/", &[bad]), Err(Refusal::BadHost), "{bad:?}");
        }
        assert_eq!(judged(Version::HTTP_10, "GET", "/", &[]), Ok(()));
    }

    #[test]
    fn on_http2_the_authority_is_the_host() {
        let two = Version::HTTP_2;
        assert_eq!(judged(two, "GET", "https://a/x", &[]), Ok(()));
        assert_eq!(judged(two, "GET", "https://a/x", &["A"]), Ok(()));
        assert_eq!(judged(two, "GET", "https://a/x", &["b"]), Err(Refusal::ManyHosts));
        assert_eq!(judged(two, "GET", "/x", &[]), Err(Refusal::NoHost));
    }

    #[test]
    fn connect_and_trace_are_refused_with_the_methods_that_are_allowed() {
        assert_eq!(judged(Version::HTTP_11, "CONNECT", "a:1", &["a:1"]), Err(Refusal::Method));
        assert_eq!(judged(Version::HTTP_11, "TRACE", "/", &["a"]), Err(Refusal::Method));
        let answer = Refusal::Method.answer();
        assert_eq!(answer.status(), 405);
        assert!(answer.headers()[ALLOW].to_str().unwrap().contains("POST"));
    }
}
