use serde_json::{Value, json};

use super::*;
use crate::tools::load::LoadError;
use crate::tools::testing::{HOSTILE, build};

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": { "v": {}, "w": {}, "list": { "type": "array" } },
        "additionalProperties": false
    })
}

fn form(method: &str, url: &str, headers: Value) -> (Form, Schema) {
    let schema = Schema::compile(&schema()).unwrap();
    let settings =
        serde_json::from_value(json!({ "method": method, "url": url, "headers": headers })).unwrap();
    let mut mistakes = Mistakes::of("t");
    let form = Form::load(&settings, &schema, &mut mistakes);
    assert!(mistakes.is_empty(), "{:?}", mistakes.into_inner());
    (form.unwrap(), schema)
}

fn fill(form: &(Form, Schema), arguments: &Value) -> Result<Filled, String> {
    form.0.fill(&Arguments::parse(&arguments.to_string()).unwrap().0, &form.1)
}

#[test]
fn arguments_find_their_places_and_the_rest_goes_into_query_or_body() {
    let cases = [
        ("GET", "http://h/a/{v}?q={w}", json!({ "v": "x y", "w": "1&2" }), "http://h/a/x%20y?q=1%262", None),
        (
            "GET",
            "http://h?k=1",
            json!({ "v": "x", "list": [1, "b", 1.10] }),
            "http://h/?k=1&v=x&list=1&list=b&list=1.1",
            None,
        ),
        ("GET", "http://h/?q={v}", json!({}), "http://h/", None),
        ("GET", "http://h/?q={v}", json!({ "v": null, "w": null }), "http://h/", None),
        ("GET", "http://h/?q=a{v}b&flag", json!({ "v": "/" }), "http://h/?q=a%2Fb&flag", None),
        ("GET", "http://h/?q={list}", json!({ "list": ["a", "b"] }), "http://h/?q=a&q=b", None),
        (
            "POST",
            "https://h:8443/{v}.json",
            json!({ "v": 7, "w": { "a": [null] } }),
            "https://h:8443/7.json",
            Some(r#"{"w":{"a":[null]}}"#),
        ),
        ("POST", "http://h/", json!({}), "http://h/", Some("{}")),
        ("DELETE", "http://h/{v}", json!({ "v": "a" }), "http://h/a", None),
        ("DELETE", "http://h/{v}", json!({ "v": "a", "w": 1 }), "http://h/a", Some(r#"{"w":1}"#)),
    ];
    for (method, url, arguments, uri, body) in cases {
        let filled = fill(&form(method, url, json!({})), &arguments).unwrap();
        assert_eq!(filled.uri.to_string(), uri, "{url} {arguments}");
        assert_eq!(filled.body.as_deref(), body.map(str::as_bytes), "{url} {arguments}");
    }
}

#[test]
fn numbers_in_a_body_keep_their_text() {
    let (form, schema) = form("POST", "http://h/", json!({}));
    let text = r#"{"v":123456789012345678901234567890,"w":1.10}"#;
    let filled = form.fill(&Arguments::parse(text).unwrap().0, &schema).unwrap();
    assert_eq!(filled.body.unwrap(), text);
}

#[test]
fn a_hostile_value_stays_one_segment_one_query_value_or_one_header_value() {
    let in_path = form("GET", "http://h:1/a/{v}/z", json!({}));
    let in_query = form("GET", "http://h:1/a?q={v}&z=1", json!({}));
    let in_header = form("GET", "http://h:1/a", json!({ "x-v": "a {v}" }));
    let in_body = form("POST", "http://h:1/a", json!({}));
    let (mut taken, mut refused) = (0, 0);
    assert!(HOSTILE.len() >= 200);
    for value in HOSTILE {
        let arguments = json!({ "v": value });
        match fill(&in_path, &arguments) {
            Ok(filled) => {
                taken += 1;
                let url = url::Url::parse(&filled.uri.to_string()).unwrap();
                assert_eq!(
                    (url.host_str(), url.port(), url.query()),
                    (Some("h"), Some(1), None),
                    "{value:?}"
                );
                let segments: Vec<&str> = url.path_segments().unwrap().collect();
                assert_eq!(segments.len(), 3, "{value:?}");
                assert_eq!(percent_decode_str(segments[1]).decode_utf8().unwrap(), *value);
            }
            Err(_) => refused += 1,
        }
        let url = url::Url::parse(&fill(&in_query, &arguments).unwrap().uri.to_string()).unwrap();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        assert_eq!(pairs, [("q".into(), (*value).to_owned()), ("z".into(), "1".into())]);
        assert_eq!((url.path(), url.fragment()), ("/a", None));
        if let Ok(filled) = fill(&in_header, &arguments) {
            let got = filled.headers.get("x-v").unwrap().to_str().unwrap();
            assert_eq!(got, format!("a {value}"));
            assert!(got.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            assert_eq!(filled.headers.len(), 1);
        } else {
            assert!(!value.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{value:?}");
        }
        let body = fill(&in_body, &arguments).unwrap().body.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), arguments);
    }
    assert!(taken > 60 && refused > 25, "{taken} {refused}");
}

#[test]
fn a_path_argument_that_could_decode_to_something_else_is_refused() {
    let form_ = form("GET", "http://h/a/{v}", json!({}));
    for value in [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "a\\b",
        "%2e%2e",
        "%2E",
        "%252e%252e",
        "..%2f",
        "a%5cb",
        "%00",
        "a\0b",
        "a\nb",
        "\u{7f}",
        "\u{85}",
        "%c0%ae",
        "%e0%80%ae",
        "%2525252525252525252525252e%2e",
    ] {
        assert!(fill(&form_, &json!({ "v": value })).is_err(), "{value:?}");
    }
    assert!(fill(&form_, &json!({})).unwrap_err().contains("\"v\" is missing"));
    assert!(fill(&form_, &json!({ "v": null })).is_err());
    // What is harmless alone may complete what stands beside it.
    assert!(fill(&form("GET", "http://h/a/.{v}", json!({})), &json!({ "v": "." })).is_err());
    assert!(fill(&form("GET", "http://h/a/%2e{v}", json!({})), &json!({ "v": "." })).is_err());
    assert!(fill(&form("GET", "http://h/a/%2{v}", json!({})), &json!({ "v": "fx" })).is_err());
    assert!(fill(&form("GET", "http://h/a/.{v}", json!({})), &json!({ "v": "git" })).is_ok());
}

#[test]
fn a_query_member_of_the_operator_cannot_be_given_again() {
    let schema = Schema::compile(&json!({ "type": "object", "additionalProperties": true })).unwrap();
    let settings = serde_json::from_value(json!({ "url": "http://h/?key=1&%6bind=2" })).unwrap();
    let form = (Form::load(&settings, &schema, &mut Mistakes::of("t")).unwrap(), schema);
    for name in ["key", "kind"] {
        assert!(fill(&form, &json!({ name: "x" })).unwrap_err().contains("is fixed by this tool"));
    }
    assert_eq!(fill(&form, &json!({ "a b&": 1 })).unwrap().uri.query(), Some("key=1&%6bind=2&a%20b%26=1"));
}

#[test]
fn a_name_the_schema_does_not_have_never_reaches_the_request() {
    let schema = Schema::compile(&json!({ "type": "object", "properties": { "v": {} } })).unwrap();
    for method in ["GET", "POST"] {
        let settings = serde_json::from_value(json!({ "method": method, "url": "http://h/" })).unwrap();
        let form = Form::load(&settings, &schema, &mut Mistakes::of("t")).unwrap();
        let (arguments, _) = Arguments::parse(r#"{"v":1,"admin":true}"#).unwrap();
        assert!(form.fill(&arguments, &schema).unwrap_err().contains("\"admin\" is not an argument"));
    }
}

#[test]
fn a_header_without_its_argument_is_not_sent() {
    let form = form("GET", "http://h/", json!({ "x-v": "a{v}", "x-fixed": "b" }));
    let headers = fill(&form, &json!({})).unwrap().headers;
    assert!(headers.get("x-v").is_none() && headers.get("x-fixed").is_some());
}

#[test]
fn a_cookie_is_there_if_its_argument_is_and_can_never_become_another() {
    let form = form("GET", "http://h/", json!({ "cookie": "a={v}; fixed=1; c=x{w}y" }));
    let cookies = |arguments: Value| fill(&form, &arguments).unwrap().headers[header::COOKIE].clone();
    assert_eq!(cookies(json!({ "v": "s", "w": 7 })), "a=s; fixed=1; c=x7y");
    assert_eq!(cookies(json!({})), "fixed=1");
    assert_eq!(cookies(json!({ "v": "é\r\n; admin=1" })), "a=%C3%A9%0D%0A%3B%20admin%3D1; fixed=1");
    for value in HOSTILE {
        let cookies = cookies(json!({ "v": value, "w": value }));
        assert_eq!(cookies.to_str().unwrap().split(';').count(), 3, "{value:?}: {cookies:?}");
        assert!(!cookies.to_str().unwrap().contains(['"', ',', '\\']), "{value:?}: {cookies:?}");
    }
}

#[test]
fn arguments_too_long_for_a_url_are_refused() {
    let form = form("GET", "http://h/{v}", json!({}));
    assert!(fill(&form, &json!({ "v": "x".repeat(70_000) })).unwrap_err().contains("too long"));
}

fn errors(http: Value) -> Vec<LoadError> {
    build(json!({ "t": { "parameters": schema(), "http": http } })).unwrap_err()
}

#[test]
fn a_body_that_cannot_be_made_is_an_error_of_the_settings() {
    for (more, path, says) in [
        (json!({ "body": "raw" }), "http.body", "which argument the body is"),
        (json!({ "body": "raw", "body_argument": "x" }), "http.body_argument", "`x` is not an argument"),
        (json!({ "body": "raw", "body_argument": "v" }), "http.body_argument", "`list` goes nowhere"),
        (json!({ "body": "multipart", "body_argument": "v" }), "http.body_argument", "`json` or `raw`"),
        (json!({ "body": "multipart", "files": { "x": "a/b" } }), "http.files.x", "`x` is not an argument"),
        (json!({ "body": "multipart", "files": { "v": "png" } }), "http.files.v", "not a media type"),
        (json!({ "body": "multipart", "files": { "v": "a/b\r\nx: y" } }), "http.files.v", "not a media type"),
        (json!({ "files": { "v": "a/b" } }), "http.files", "`multipart` or `raw`"),
        (json!({ "method": "GET", "files": { "v": "a/b" } }), "http.files", "has no body"),
    ] {
        let mut http = json!({ "method": "POST", "url": "https://h.example/" });
        http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let errors = errors(http);
        let told = errors.iter().find(|error| error.path.join(".") == path && error.message.contains(says));
        assert!(told.is_some(), "{more}: {errors:?}");
    }
}

#[test]
fn a_url_that_cannot_be_a_form_is_an_error_of_the_settings() {
    for (url, says) in [
        ("{v}://h/", "not in the scheme"),
        ("ftp://h/", "neither http nor https"),
        ("h/path", "no scheme"),
        ("http://{v}/", "not in the host"),
        ("http://a.{v}.b/", "not in the host"),
        ("http://h:{v}/", "not in the host"),
        ("http://{v}@h/", "not in the host"),
        ("http://u:p@h/", "user or a password"),
        ("http:///x", "host"),
        ("http://h:0/", "port"),
        ("http://h:99999/", "port"),
        ("http://h/#{v}", "fragment"),
        ("http://h/a\\b", "backslash"),
        ("http://h/{v", "no `}`"),
        ("http://h/v}", "no `{`"),
        ("http://h/{}", "names no argument"),
        ("http://h/{nobody}", "`{nobody}` is not an argument"),
        ("http://h/?a={nobody}", "`{nobody}` is not an argument"),
        ("http://h/?{v}=1", "not for the name"),
        ("http://h/?{v}", "not for the name"),
        ("http://h/ž", "visible ASCII"),
        ("http://h/a b", "visible ASCII"),
        ("http://h/<{v}>", "not a valid URL"),
        ("http://0x7f.1/", "unusual spelling"),
        ("http://2130706433/", "unusual spelling"),
        ("http://127.1/", "unusual spelling"),
        ("http://0177.0.0.1/", "unusual spelling"),
        ("http://169.254.169.254/", "not an address a tool may reach"),
        ("http://[::ffff:127.0.0.1]/", "not an address a tool may reach"),
        ("http://[fe80::1%25lo]/", "host"),
    ] {
        let errors = errors(json!({ "url": url }));
        let error = errors.iter().find(|error| error.message.contains(says));
        assert_eq!(error.unwrap_or_else(|| panic!("{url}: {errors:?}")).path, ["http", "url"], "{url}");
    }
}

#[test]
fn a_header_that_cannot_be_sent_is_an_error_of_the_settings_that_shows_no_secret() {
    for (name, value, says) in [
        ("bad name", json!("x"), "not a header name"),
        ("Host", json!("evil"), "set by fanfold"),
        ("Transfer-Encoding", json!("chunked"), "set by fanfold"),
        ("Idempotency-Key", json!("x"), "set by fanfold"),
        ("x-a", json!("s3cr3t\nx"), "visible ASCII"),
        ("x-a", json!("s3cr3t ž"), "visible ASCII"),
        ("x-a", json!("s3cr3t ž {v}"), "visible ASCII"),
        ("x-a", json!("s3cr3t {"), "no `}`"),
        ("x-a", json!("s3cr3t {nobody}"), "is not an argument"),
        ("x-a", json!("a{s3cr3t}b"), "is not an argument"),
        ("x-a", json!({ "env": "FANFOLD_TEST_NO_SUCH_VARIABLE" }), "FANFOLD_TEST_NO_SUCH_VARIABLE"),
        ("x-a", json!({ "file": "/nonexistent" }), "/nonexistent"),
    ] {
        let errors = errors(json!({ "url": "http://h/", "headers": { name: value } }));
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert!(error.message.contains(says), "{error:?}");
        assert_eq!(error.path, ["http", "headers", name]);
        assert!(!format!("{error:?}").contains("s3cr3t"));
    }
}

#[test]
fn a_secret_from_a_file_has_no_places_and_prints_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "{v}\n").unwrap();
    let form = form("GET", "http://h/", json!({ "authorization": { "file": path } }));
    let headers = fill(&form, &json!({})).unwrap().headers;
    assert_eq!(headers.get("authorization").unwrap(), "{v}");
    assert!(!format!("{headers:?}").contains("{v}"));
}

/// A form of these settings beside `http://h/`, and of a POST if they do not say.
fn made_of(more: Value) -> (Form, Schema) {
    let mut http = json!({ "method": "POST", "url": "http://h/" });
    http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let schema = Schema::compile(&schema()).unwrap();
    let mut mistakes = Mistakes::of("t");
    let form = Form::load(&serde_json::from_value(http).unwrap(), &schema, &mut mistakes);
    assert!(mistakes.is_empty(), "{:?}", mistakes.into_inner());
    (form.unwrap(), schema)
}

#[test]
fn the_method_decides_whether_the_rest_goes_into_query_or_body() {
    for (method, query) in
        [("GET", true), ("HEAD", true), ("POST", false), ("PUT", false), ("PATCH", false), ("DELETE", false)]
    {
        let form = form(method, "http://h/", json!({}));
        assert_eq!(form.0.method.as_str(), method);
        let filled = fill(&form, &json!({ "v": 1 })).unwrap();
        assert_eq!(filled.uri.query(), query.then_some("v=1"), "{method}");
        assert_eq!(filled.body.as_deref(), (!query).then_some(&br#"{"v":1}"#[..]), "{method}");
    }
}

#[test]
fn a_list_in_a_segment_a_header_or_a_cookie_stays_one_of_each() {
    let of = |more: Value| {
        let mut http = json!({ "styles": { "list": "commas" } });
        http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made_of(http)
    };
    let list = |list: Value| json!({ "list": list });
    let path = of(json!({ "url": "http://h/{list}" }));
    assert_eq!(fill(&path, &list(json!(["a b", "c"]))).unwrap().uri.path(), "/a%20b,c");
    assert!(fill(&path, &list(json!(["a", "b/c"]))).unwrap_err().contains("slash"));
    for none in [json!({}), list(json!([]))] {
        assert!(fill(&path, &none).unwrap_err().contains("\"list\" is missing"), "{none}");
    }
    let header = of(json!({ "headers": { "x-l": "{list}" } }));
    let got = |form, arguments: &Value| fill(form, arguments).unwrap().headers;
    assert_eq!(got(&header, &list(json!(["a", "b c"])))["x-l"], "a,b c");
    assert!(fill(&header, &list(json!(["a,b"]))).unwrap_err().contains("has a comma"));
    assert!(!got(&header, &json!({})).contains_key("x-l"));
    let cookie = of(json!({ "headers": { "cookie": "c={list}; d=1" } }));
    assert_eq!(got(&cookie, &list(json!(["a;b", "c"])))["cookie"], "c=a%3Bb,c; d=1");
    assert_eq!(got(&cookie, &json!({}))["cookie"], "d=1");
}

#[test]
fn no_member_of_an_object_takes_the_place_of_an_argument_or_of_the_operators_own() {
    for method in ["GET", "POST"] {
        let form = made_of(json!({
            "method": method, "url": "http://h/{w}?own=1", "styles": { "v": "spread" },
            "body": if method == "GET" { "json" } else { "form" },
        }));
        for name in ["w", "own"] {
            let refused = fill(&form, &json!({ "w": "a", "v": { name: "x" } })).unwrap_err();
            assert!(refused.contains(&format!("\"{name}\" is a member of its own")), "{refused}");
        }
        let filled = fill(&form, &json!({ "w": "a", "v": { "other": "x" } })).unwrap();
        let body = filled.body.map(|body| String::from_utf8(body.to_vec()).unwrap());
        let told = (filled.uri.query().unwrap().to_owned(), body);
        let expected = match method {
            "GET" => ("own=1&other=x".into(), None),
            _ => ("own=1".into(), Some("other=x".into())),
        };
        assert_eq!(told, expected, "{method}");
    }
}

#[test]
fn a_body_has_the_type_of_what_it_is_unless_the_operator_says_another() {
    let file = json!({ "v": { "text": "t" } });
    for (http, arguments, kind, body) in [
        (
            json!({ "body": "form" }),
            json!({ "v": "a b", "w": null }),
            "application/x-www-form-urlencoded",
            "v=a%20b",
        ),
        (
            json!({ "body": "raw", "url": "http://h/{w}{list}" }),
            json!({ "v": "é", "w": 1, "list": 2 }),
            "text/plain; charset=utf-8",
            "é",
        ),
    ] {
        let mut http = http;
        if http["body"] == "raw" {
            http["body_argument"] = "v".into();
        }
        let filled = fill(&made_of(http.clone()), &arguments).unwrap();
        assert_eq!(
            (&filled.headers["content-type"], filled.body.as_deref()),
            (&HeaderValue::from_static(kind), Some(body.as_bytes()))
        );
        http["headers"] = json!({ "content-type": "x/y" });
        let filled = fill(&made_of(http), &arguments).unwrap();
        assert_eq!(filled.headers["content-type"], "x/y");
    }
    let raw = |more: Value| {
        let mut http = json!({ "body": "raw", "body_argument": "v", "url": "http://h/?w={w}&l={list}" });
        http.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made_of(http)
    };
    let filled = fill(&raw(json!({ "files": { "v": "image/png" } })), &file).unwrap();
    assert_eq!(
        (filled.body.as_deref(), &filled.headers["content-type"]),
        (Some(&b"t"[..]), &HeaderValue::from_static("image/png"))
    );
    for more in [json!({}), json!({ "files": { "v": "image/png" } }), json!({ "body": "json" })] {
        assert_eq!(fill(&raw(more.clone()), &json!({})).unwrap().body, None, "{more}");
    }
    let whole = raw(json!({ "body": "json" }));
    assert_eq!(fill(&whole, &json!({ "v": [1.5, null] })).unwrap().body.unwrap(), "[1.5,null]");
    let parts = made_of(
        json!({ "body": "multipart", "files": { "v": "text/csv" }, "headers": { "content-type": "x/y" } }),
    );
    let filled = fill(&parts, &json!({ "v": { "text": "t" }, "w": null, "list": [1] })).unwrap();
    assert_eq!(filled.headers.get_all("content-type").iter().count(), 1);
    let kind = filled.headers["content-type"].to_str().unwrap();
    let mark = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let body = String::from_utf8(filled.body.unwrap().to_vec()).unwrap();
    assert_eq!(
        (body.matches(mark).count(), body.contains("text/csv"), body.contains("\"w\"")),
        (3, true, false)
    );
    let none = made_of(json!({ "body": "none", "url": "http://h/{v}?w={w}&l={list}" }));
    let filled = fill(&none, &json!({ "v": "a" })).unwrap();
    assert!(filled.body.is_none() && !filled.headers.contains_key("content-type"));
}

#[test]
fn nothing_of_a_header_is_in_debug_output() {
    let form = made_of(json!({ "headers": { "authorization": "s3cret", "x-v": "k3y {v}" } }));
    let shown = format!("{:?}", form.0);
    assert!(shown.contains("••••") && !shown.contains("s3cret") && !shown.contains("k3y"), "{shown}");
}

#[test]
fn a_credential_is_sent_where_it_belongs_unless_something_is_there_already() {
    let load = |url: &str, headers: Value, auth: Value| {
        let schema = Schema::compile(&schema()).unwrap();
        let settings = json!({ "method": "GET", "url": url, "headers": headers, "auth": auth });
        let mut mistakes = Mistakes::of("t");
        let form = Form::load(&serde_json::from_value(settings).unwrap(), &schema, &mut mistakes);
        match mistakes.into_inner().first() {
            None => Ok(fill(&(form.unwrap(), schema), &json!({})).unwrap()),
            Some(mistake) => Err(mistake.message.clone()),
        }
    };
    let bearer = json!({ "bearer": "s3cret" });
    let query = json!({ "query": { "name": "key", "value": "s3cret" } });
    let header = |name: &str| json!({ "header": { "name": name, "value": "s3cret" } });
    let filled = load("http://h/a", json!({ "x-more": "1" }), bearer.clone()).unwrap();
    assert_eq!(
        (&filled.headers["authorization"], &filled.headers["x-more"]),
        (&"Bearer s3cret".parse().unwrap(), &"1".parse().unwrap())
    );
    assert_eq!(load("http://h/a", json!({}), header("x-key")).unwrap().headers["x-key"], "s3cret");
    assert_eq!(load("http://h/a?b=1", json!({}), query.clone()).unwrap().uri, "http://h/a?b=1&key=s3cret");
    for (url, headers, auth, message) in [
        ("http://h/a", json!({ "Authorization": "mine" }), bearer, "`authorization` is set already"),
        ("http://h/a", json!({}), header("host"), "`host` is set already"),
        ("http://h/a?key=1", json!({}), query, "`key` is in the URL already"),
    ] {
        let told = load(url, headers, auth).unwrap_err();
        assert!(told.contains(message), "{told}");
    }
}
