//! What a request proves itself with: a header or a member of the query, opened once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret as _, SecretString};

use super::form::{sensitive, visible};
use super::written::encode;
use crate::tools::load::Mistakes;
use crate::tools::{secret, settings};
use crate::units::Secret;

/// What to send.
pub(super) enum Auth {
    /// This header.
    Header(HeaderName, HeaderValue),
    /// A member of the query: its name, and the whole of it as it is written.
    Query(String, SecretString),
}

/// Reads the settings; opens the secret.
pub(super) fn open(settings: &settings::Auth, mistakes: &mut Mistakes) -> Option<Auth> {
    let at = ["http", "auth"];
    let given = [
        ("bearer", settings.bearer.is_some()),
        ("basic", settings.basic.is_some()),
        ("header", settings.header.is_some()),
        ("query", settings.query.is_some()),
    ];
    let mut given = given.iter().filter(|(_, given)| *given).map(|(key, _)| *key);
    let Some(first) = given.next() else {
        mistakes.add_with_fix(&at, "nothing says how", "add `bearer`, `basic`, `header` or `query`");
        return None;
    };
    if let Some(second) = given.next() {
        let message = format!("`{first}` and `{second}` exclude each other");
        mistakes.add_with_fix(&["http", "auth", second], message, "keep one of them");
        return None;
    }
    if let Some(token) = &settings.bearer {
        let value = header_value(token, "bearer", mistakes, |token| format!("Bearer {token}"))?;
        return Some(Auth::Header(header::AUTHORIZATION, value));
    }
    if let Some(basic) = &settings.basic {
        if basic.user.contains(':') {
            mistakes.add(&["http", "auth", "basic", "user"], "a user of basic authentication has no colon");
            return None;
        }
        let user = &basic.user;
        let both = |password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        let value = header_value(&basic.password, "basic", mistakes, both)?;
        return Some(Auth::Header(header::AUTHORIZATION, value));
    }
    if let Some(key) = &settings.header {
        let Ok(name) = HeaderName::from_bytes(key.name.as_bytes()) else {
            mistakes.add(&["http", "auth", "header", "name"], "this is not a header name");
            return None;
        };
        let value = header_value(&key.value, "header", mistakes, str::to_owned)?;
        return Some(Auth::Header(name, value));
    }
    let key = settings.query.as_ref()?;
    let value = opened(&key.value, &["http", "auth", "query", "value"], mistakes)?;
    let pair = format!("{}={}", encode(&key.name), encode(value.expose_secret()));
    Some(Auth::Query(key.name.clone(), pair.into()))
}

fn header_value(
    secret: &Secret,
    key: &str,
    mistakes: &mut Mistakes,
    written: impl Fn(&str) -> String,
) -> Option<HeaderValue> {
    let at: &[&str] = match key {
        "basic" => &["http", "auth", "basic", "password"],
        "header" => &["http", "auth", "header", "value"],
        _ => &["http", "auth", "bearer"],
    };
    let text = written(opened(secret, at, mistakes)?.expose_secret());
    let value = sensitive(&text).filter(|_| visible(&text));
    if value.is_none() {
        mistakes.add(at, "a header value consists of visible ASCII characters");
    }
    value
}

fn opened(secret: &Secret, at: &[&str], mistakes: &mut Mistakes) -> Option<SecretString> {
    secret::open(secret).map_err(|message| mistakes.add(at, message)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(auth: Value) -> Result<Auth, Vec<String>> {
        let mut mistakes = Mistakes::of("t");
        let auth = open(&serde_json::from_value(auth).unwrap(), &mut mistakes);
        auth.ok_or_else(|| {
            mistakes.into_inner().iter().map(|e| format!("{}: {}", e.path.join("."), e.message)).collect()
        })
    }

    #[test]
    fn each_way_is_written_as_servers_read_it() {
        for (auth, name, value) in [
            (json!({ "bearer": "t" }), "authorization", "Bearer t"),
            (json!({ "basic": { "user": "u", "password": "p:q" } }), "authorization", "Basic dTpwOnE="),
            (json!({ "header": { "name": "X-Key", "value": "k" } }), "x-key", "k"),
        ] {
            let Ok(Auth::Header(got_name, got)) = read(auth.clone()) else { panic!("{auth}") };
            assert_eq!((got_name.as_str(), got.to_str().unwrap()), (name, value));
            assert!(got.is_sensitive(), "{auth}");
        }
        let Ok(Auth::Query(name, pair)) = read(json!({ "query": { "name": "a&b", "value": "c d" } })) else {
            panic!("a member of the query")
        };
        assert_eq!((name.as_str(), pair.expose_secret()), ("a&b", "a%26b=c%20d"));
    }

    #[test]
    fn what_cannot_be_sent_is_told_with_its_place_and_without_its_text() {
        for (auth, told) in [
            (json!({}), "http.auth: nothing says how"),
            (
                json!({ "bearer": "s3cret", "header": { "name": "x", "value": "s3cret" } }),
                "http.auth.header: `bearer` and `header` exclude each other",
            ),
            (json!({ "basic": { "user": "u:v", "password": "s3cret" } }), "http.auth.basic.user: a user"),
            (
                json!({ "header": { "name": "a b", "value": "s3cret" } }),
                "http.auth.header.name: this is not a header name",
            ),
            (json!({ "bearer": "s3cret\n" }), "http.auth.bearer: a header value"),
            (
                json!({ "basic": { "user": "ů\u{0}", "password": { "file": "/nonexistent" } } }),
                "http.auth.basic.password: ",
            ),
            (
                json!({ "header": { "name": "x", "value": "s3cret ů" } }),
                "http.auth.header.value: a header value",
            ),
            (
                json!({ "query": { "name": "x", "value": { "env": "FANFOLD_TEST_NO_SUCH" } } }),
                "http.auth.query.value: ",
            ),
        ] {
            let Err(mistakes) = read(auth.clone()) else { panic!("{auth}") };
            let [mistake] = mistakes.as_slice() else { panic!("{auth}: {mistakes:?}") };
            assert!(mistake.starts_with(told) && !mistake.contains("s3cret"), "{mistake}");
        }
    }
}
