//! What a request's head says: its path, its key, its id.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::CHAT;
use crate::relay::headers::REQUEST_ID;
use crate::wire::error::ErrorReply;

const API_KEY: HeaderName = HeaderName::from_static("api-key");
/// Which retry of an OpenAI SDK this is.
pub(super) const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

pub(super) fn wrong_path(path: &str) -> ErrorReply {
    let shown: String = path.chars().filter(|c| !c.is_control()).take(100).collect();
    let message = if path.starts_with("/v1/v1/") {
        format!(
            "There is nothing at {shown}: `/v1` is there twice. Your SDK's base URL has to end in /v1, and only once."
        )
    } else if path.contains("//") {
        format!(
            "There is nothing at {shown}: a slash is there twice. Your SDK's base URL has to end in /v1, without a slash after it."
        )
    } else if is_disguised(path) {
        format!(
            "There is nothing at {shown}. Write the path plainly, as in {CHAT}, below a base URL that ends in /v1."
        )
    } else {
        format!(
            "There is nothing at {shown}. This gateway's API is below /v1: your SDK's base URL has to be http(s)://HOST:PORT/v1."
        )
    };
    ErrorReply::new(404, "unknown_url", message)
}

/// A path that another reader could take for another one: with dot segments, or a chat written in
/// another way. What is decided here by path must not be something else at the upstream.
pub(super) fn is_disguised(path: &str) -> bool {
    if !path.bytes().any(|byte| matches!(byte, b'%' | b'.' | b'\\')) {
        return path != CHAT && path.trim_end_matches('/') == CHAT;
    }
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let dots = decoded.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."));
    dots || (path != CHAT && decoded.trim_end_matches('/') == CHAT)
}

/// A request that shows more than one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ambiguous;

/// The key a client sends: as `Authorization: Bearer`, like OpenAI's SDKs, or as `api-key`, like Azure's. One
/// is enough, and two that differ are none: which of them was meant, others on the way may see differently.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&[u8]>, Ambiguous> {
    let bearer = only(headers, &AUTHORIZATION)?.map(|value| {
        let (scheme, key) = value.split_at_checked(7).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"bearer ") { key.trim_ascii() } else { b"" }
    });
    match (bearer, only(headers, &API_KEY)?) {
        (Some(bearer), Some(other)) if bearer != other => Err(Ambiguous),
        (bearer, other) => Ok(bearer.or(other)),
    }
}

/// The header's only line.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Ambiguous> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next().map(HeaderValue::as_bytes);
    if lines.next().is_some() { Err(Ambiguous) } else { Ok(first) }
}

pub(super) fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
        || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The client's id for the request if it is well-formed, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    const LONGEST: usize = 128;
    let well_formed = |id: &&HeaderValue| {
        (1..=LONGEST).contains(&id.len())
            && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
    };
    headers.get(REQUEST_ID).filter(well_formed).cloned().unwrap_or_else(new_id)
}

fn new_id() -> HeaderValue {
    let mut text = uuid::Uuid::encode_buffer();
    let id = crate::relay::new_id().hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("unknown"))
}

/// The paths of the API that take forms and files. Which model those name is not looked at.
pub(super) fn takes_forms(path: &str) -> bool {
    ["/v1/audio/", "/v1/images/", "/v1/files", "/v1/uploads", "/v1/videos", "/v1/containers"]
        .iter()
        .any(|of| path.starts_with(of))
}

/// The model that is described, or deleted.
pub(super) fn one_model(parts: &http::request::Parts) -> Option<String> {
    let names_it = matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE);
    let id = parts.uri.path().strip_prefix("/v1/models/").filter(|_| names_it)?;
    Some(percent_encoding::percent_decode_str(id).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_either_header_and_two_that_differ_are_none() {
        let of = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            key(&headers).map(|key| key.map(<[u8]>::to_vec))
        };
        let found = |key: &str| Ok(Some(key.as_bytes().to_vec()));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("authorization", "Bearer k")]), found("k"));
        assert_eq!(of(&[("authorization", "bearer  k")]), found("k"));
        assert_eq!(of(&[("authorization", "Basic k")]), found(""));
        assert_eq!(of(&[("authorization", "Bear")]), found(""));
        assert_eq!(of(&[("api-key", "k")]), found("k"));
        assert_eq!(of(&[("authorization", "Bearer k"), ("api-key", "k")]), found("k"));
        for two in [
            [("authorization", "Bearer k"), ("authorization", "Bearer k")],
            [("authorization", "Bearer k"), ("authorization", "Bearer x")],
            [("authorization", "Bearer k"), ("api-key", "x")],
            [("authorization", "Basic k"), ("api-key", "k")],
            [("api-key", "k"), ("api-key", "x")],
        ] {
            assert_eq!(of(&two), Err(Ambiguous), "{two:?}");
        }
    }

    #[test]
    fn a_malformed_request_id_is_replaced() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_static(value));
            request_id(&headers)
        };
        assert_eq!(of("req_1-a.b:c"), "req_1-a.b:c");
        for bad in ["", "a b", "a\"b", "a/b"] {
            assert_eq!(of(bad).len(), 36, "{bad}");
        }
    }

    #[test]
    fn a_path_that_could_be_read_as_another_one_is_refused() {
        for path in [
            "/v1/../admin/keys",
            "/v1/%2e%2e/x",
            "/v1/models/gpt-/../z",
            "/v1/chat/%63ompletions",
            "/v1/chat/completions/",
        ] {
            assert!(is_disguised(path), "{path}");
        }
        for path in [
            CHAT,
            "/v1/embeddings",
            "/v1/models/openai%2Fgpt-4.1",
            "/v1/files/a..b",
            "/v1/chat/completions/x",
        ] {
            assert!(!is_disguised(path), "{path}");
        }
    }

    #[test]
    fn typical_mistakes_are_told_the_right_base_url() {
        for path in
            ["/chat/completions", "/", "/v1/v1/chat/completions", "/v1//chat/completions", "/v2/x", "/v1"]
        {
            let error = wrong_path(path);
            assert!(
                error.message.contains("/v1") && error.message.contains("base URL"),
                "{path}: {}",
                error.message
            );
        }
    }
}
