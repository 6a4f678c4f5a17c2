//! A model's arguments on their way out: whatever they say, they stay in the places the configuration
//! gave them. The first byte chooses a tool, the rest is what the model wrote.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use fanfold::tools::door::{self, Made};
use fanfold::tools::{Catalog, Defaults};
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::Choices;

/// An HTTP tool, and what no argument may change about it.
struct Http {
    method: &'static str,
    url: &'static str,
    authority: &'static str,
    segments: usize,
    /// Names of the query that the configuration wrote.
    query: &'static [&'static str],
    /// Arguments that have a place.
    placed: &'static [&'static str],
    headers: &'static [&'static str],
}

const HTTP: [Http; 5] = [
    Http {
        method: "GET",
        url: "https://a.example:8443/v1/{v}/now?k=1&q={w}",
        authority: "a.example:8443",
        segments: 3,
        query: &["k", "q"],
        placed: &["v", "w"],
        headers: &[],
    },
    Http {
        method: "POST",
        url: "https://b.example/x{v}y.{w}/",
        authority: "b.example",
        segments: 2,
        query: &[],
        placed: &["v", "w", "h"],
        headers: &["x-h", "x-k"],
    },
    Http {
        method: "DELETE",
        url: "https://c.example/{v}{w}",
        authority: "c.example",
        segments: 1,
        query: &[],
        placed: &["v", "w"],
        headers: &[],
    },
    Http {
        method: "GET",
        url: "https://d.example",
        authority: "d.example",
        segments: 1,
        query: &[],
        placed: &["h"],
        headers: &["x-h", "x-k"],
    },
    Http {
        method: "PUT",
        url: "https://e.example/%7Bfixed%2F/{list}?a={v}-{w}&b",
        authority: "e.example",
        segments: 2,
        query: &["a", "b"],
        placed: &["list", "v", "w"],
        headers: &[],
    },
];

/// The arguments of the command tool, the program aside.
const ARGV: [&str; 6] = ["-x", "{v}", "--name={w}", "{list}", "a{v}b", "{h}"];

fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let parameters = json!({ "type": "object", "additionalProperties": true,
            "properties": { "v": {}, "w": {}, "h": {}, "list": {} } });
        let mut tools = BTreeMap::new();
        let mut add = |name: String, tool: Value| {
            tools.insert(name, serde_json::from_value(tool).expect("settings"));
        };
        for (n, http) in HTTP.iter().enumerate() {
            let mut headers = json!({});
            if !http.headers.is_empty() {
                headers = json!({ "x-h": "a {h}", "x-k": "fixed" });
            }
            let http = json!({ "method": http.method, "url": http.url, "headers": headers });
            add(format!("http{n}"), json!({ "parameters": parameters, "http": http }));
        }
        let argv: Vec<&str> = std::iter::once("/bin/true").chain(ARGV).collect();
        let command = json!({ "argv": argv, "stdin": "{w}", "allow_dash": ["h"] });
        add("command".into(), json!({ "parameters": parameters, "command": command }));
        let defaults = Defaults { call_timeout: Duration::from_secs(30), tool_result: 65_536 };
        Catalog::build(&tools, &defaults).unwrap_or_else(|errors| panic!("{errors:?}"))
    })
}

pub fn hold(data: &[u8]) {
    let mut choices = Choices(data);
    let which = choices.below(HTTP.len() + 1);
    let Ok(arguments) = std::str::from_utf8(choices.rest()) else { return };
    let name = if which < HTTP.len() { format!("http{which}") } else { "command".into() };
    let tool = catalog().tool(&name).expect("it was built");
    let made = door::made(tool, arguments);
    assert_eq!(made.is_ok(), tool.check_arguments(arguments).is_ok(), "checked and made");
    let said: Value = match (&made, serde_json::from_str(arguments)) {
        (_, Ok(said)) => said,
        (Ok(_), Err(_)) if arguments.trim().is_empty() => json!({}),
        // A tree's reader gives up on nesting and on numbers sooner.
        (_, Err(_)) => return,
    };
    match made {
        Err(why) => assert!(!why.is_empty() && why.len() < 64 * 1024, "a sentence for the model"),
        Ok(Made::Request { uri, headers, body, method }) => {
            assert_eq!(method, HTTP[which].method);
            goes_where_it_should(&HTTP[which], &uri, &said);
            has_its_headers(&HTTP[which], &headers);
            says_what_is_left(&HTTP[which], body.as_ref(), &said);
        }
        Ok(Made::Process { elements, stdin }) => {
            assert!(elements.len() <= ARGV.len());
            assert_eq!(elements[0], ARGV[0]);
            let texts: Vec<&str> = elements.iter().map(|e| e.to_str().expect("UTF-8")).collect();
            assert!(texts.iter().all(|text| !text.contains('\0')), "NUL");
            let allowed = plain(&said["h"]);
            for text in &texts[1..] {
                let fine = !text.starts_with('-')
                    || text.starts_with("--name=")
                    || Some(*text) == allowed.as_deref();
                assert!(fine, "an argument became an option: {text:?}");
            }
            assert!(stdin.is_some());
        }
        Ok(Made::Message) => unreachable!("none of them is a server's"),
    }
}

/// A value as a text; nothing for null and what is not there.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(value.to_string()),
    }
}

fn goes_where_it_should(http: &Http, uri: &Uri, said: &Value) {
    assert_eq!(uri.scheme_str(), Some("https"));
    assert_eq!(uri.authority().map(http::uri::Authority::as_str), Some(http.authority));
    // What another reader of URLs makes of it.
    let url = url::Url::parse(&uri.to_string()).expect("a URL");
    let host = http.authority.split(':').next().unwrap_or_default();
    assert_eq!((url.host_str(), url.fragment()), (Some(host), None));
    assert_eq!((url.username(), url.password()), ("", None));
    assert_eq!(url.path(), uri.path(), "nothing to be made simpler");
    let segments: Vec<&str> = uri.path().strip_prefix('/').expect("a path").split('/').collect();
    assert_eq!(segments.len(), http.segments, "{uri}");
    for (at, segment) in segments.iter().enumerate() {
        let written = http.url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).nth(at + 1));
        if written.is_some_and(|written| written.contains('{')) {
            never_climbs(segment);
        }
    }
    let names = said.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    for (name, _) in url.query_pairs() {
        let fixed = http.query.contains(&&*name);
        // An object becomes the pairs of its members, which take no name that is there already.
        let given = http.method == "GET" && !http.placed.contains(&&*name);
        assert!(fixed || given, "{name:?} came into the query of {uri} by {names:?}");
    }
    let count = |wanted: &str| url.query_pairs().filter(|(name, _)| name == wanted).count();
    if http.query.contains(&"k") {
        assert!(count("k") == 1 && url.query_pairs().any(|(n, v)| n == "k" && v == "1"), "{uri}");
    }
}

/// However often a segment is decoded, it is one segment, and none with a meaning.
fn never_climbs(segment: &str) {
    let mut text = segment.to_owned();
    for _ in 0..4 {
        assert!(!matches!(text.as_str(), "" | "." | ".."), "{segment}");
        assert!(!text.contains(['/', '\\']) && !text.contains(char::is_control), "{segment}");
        let decoded = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if decoded == text {
            return;
        }
        text = decoded;
    }
}

fn has_its_headers(http: &Http, headers: &HeaderMap) {
    for (name, value) in headers {
        let known = http.headers.contains(&name.as_str()) || name == "content-type";
        assert!(known, "{name} came in");
        assert!(value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte)), "{name}");
        assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
    }
    if !http.headers.is_empty() {
        assert_eq!(headers.get("x-k").map(http::HeaderValue::as_bytes), Some(&b"fixed"[..]));
    }
}

fn says_what_is_left(http: &Http, body: Option<&Bytes>, said: &Value) {
    if http.method == "GET" {
        assert_eq!(body, None, "a GET has no body");
        return;
    }
    let left = said.as_object().into_iter().flatten();
    let left: serde_json::Map<String, Value> = left
        .filter(|(name, _)| !http.placed.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let Some(body) = body else {
        assert!(http.method == "DELETE" && left.is_empty(), "where is {left:?}?");
        return;
    };
    assert_eq!(serde_json::from_slice::<Value>(body).ok(), Some(Value::Object(left)));
}
