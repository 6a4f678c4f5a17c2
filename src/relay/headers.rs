//! Which headers go on to an upstream or to a client, which stay here, and which are added.

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};

use crate::policy::parallel::Decision;

/// Writes the decision about parallel calls where people look for it.
pub fn tell(headers: &mut HeaderMap, decision: Decision) {
    headers.insert(PARALLEL, HeaderValue::from_static(decision.text()));
}

/// `x-fanfold-parallel`.
pub const PARALLEL: HeaderName = HeaderName::from_static("x-fanfold-parallel");
/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Whether a header belongs to one connection, or is a credential of one hop.
fn of_one_hop(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 8] = [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        EXPECT,
    ];
    NAMES.contains(name) || name.as_str() == "keep-alive"
}

/// Whether a header is a client's credential, its name for this host, or meant for fanfold. Whom a
/// provider bills goes with the key, and the key is the operator's.
fn stays_here(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 3] = [AUTHORIZATION, COOKIE, HOST];
    NAMES.contains(name)
        || matches!(
            name.as_str(),
            "api-key" | "x-api-key" | "x-goog-api-key" | "openai-organization" | "openai-project"
        )
        || name.as_str().starts_with("x-fanfold-")
}

/// Our headers, and what goes on of an answer's: without those of one hop, those `connection` names, and those
/// that are among ours.
#[must_use]
pub fn joined(ours: HeaderMap, theirs: HeaderMap) -> HeaderMap {
    let (named, mut all) = (named_by_connection(&theirs), ours);
    let mut last = None;
    // Of several lines of one header only the first names it.
    for (name, value) in theirs {
        if let Some(name) = name {
            last = None;
            if !of_one_hop(&name)
                && !named.contains(&name)
                && let Entry::Vacant(place) = all.entry(&name)
            {
                place.insert(value);
                last = Some(name);
            }
        } else if let Some(name) = &last {
            all.append(name, value);
        }
    }
    all
}

/// The client's headers as they go to an upstream: end to end, without its credentials, its host and
/// what was meant for fanfold. `whole`: the body is written anew, so what described it goes too.
#[must_use]
pub fn to_upstream(headers: &HeaderMap, id: &HeaderValue, whole: bool) -> HeaderMap {
    let mut kept = kept(headers, |name| !(stays_here(name) || whole && *name == CONTENT_LENGTH));
    if whole {
        kept.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    kept.insert(REQUEST_ID, id.clone());
    kept
}

/// The same headers in memory of their own. Values as they were read share the connection's whole buffer.
#[must_use]
pub fn apart(mut headers: HeaderMap) -> HeaderMap {
    for value in headers.values_mut() {
        if let Ok(mut apart) = HeaderValue::from_bytes(value.as_bytes()) {
            apart.set_sensitive(value.is_sensitive());
            *value = apart;
        }
    }
    headers
}

/// The end-to-end headers among these that `wanted` takes; with room for a few more.
fn kept(headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    const ROOM: usize = 6;
    let named = named_by_connection(headers);
    let mut kept = HeaderMap::with_capacity(headers.len() + ROOM);
    for (name, value) in headers {
        if !of_one_hop(name) && !named.contains(name) && wanted(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_apart_are_the_same_and_share_no_memory() {
        let buffer = bytes::Bytes::from_static(b"some value of a head that was read");
        let mut headers = HeaderMap::new();
        for at in [0..4, 5..10] {
            let value = HeaderValue::from_maybe_shared(buffer.slice(at)).unwrap();
            headers.append("x-a", value);
        }
        headers.get_mut("x-a").unwrap().set_sensitive(true);
        let apart = apart(headers.clone());
        assert_eq!(apart, headers);
        for (one, other) in apart.values().zip(headers.values()) {
            assert_ne!(one.as_bytes().as_ptr(), other.as_bytes().as_ptr());
            assert_eq!(one.is_sensitive(), other.is_sensitive());
        }
    }

    #[test]
    fn of_an_answers_headers_all_lines_go_on_that_are_not_of_one_hop_or_ours() {
        let map = |lines: &[(&'static str, &'static str)]| -> HeaderMap {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            headers
        };
        let ours = map(&[("x-request-id", "ours"), ("x-ratelimit-limit-requests", "5")]);
        let theirs = map(&[
            ("x-request-id", "theirs"),
            ("x-request-id", "theirs too"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("date", "now"),
        ]);
        let all = joined(ours, theirs);
        let lines = |name| all.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(lines("x-request-id"), ["ours"]);
        assert_eq!(lines("set-cookie"), ["a", "b"]);
        assert_eq!(lines("date"), ["now"]);
        assert_eq!(all.len(), 5, "{all:?}");
    }

    #[test]
    fn headers_of_one_hop_credentials_and_our_own_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("api-key", "secret"),
            ("cookie", "secret"),
            ("connection", "x-hop, keep-alive"),
            ("openai-organization", "theirs"),
            ("openai-project", "theirs"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "here"),
            ("x-fanfold-tools", "none"),
            ("x-request-id", "theirs"),
            ("openai-beta", "kept"),
            ("content-length", "7"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let ours = HeaderValue::from_static("ours");
        let kept = to_upstream(&headers, &ours, true);
        let mut names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept-encoding", "openai-beta", "x-request-id"]);
        assert_eq!(kept["x-request-id"], "ours");
        assert!(to_upstream(&headers, &ours, false).contains_key("content-length"));
    }
}
