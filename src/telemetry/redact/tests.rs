use super::*;
use serde_json::{Value, json};

fn redact(settings: Value) -> Redact {
    Redact::new(&serde_json::from_value(settings).unwrap()).unwrap()
}

fn wrong(settings: Value) -> Vec<(&'static str, Option<usize>, String)> {
    let wrong = Redact::new(&serde_json::from_value(settings).unwrap()).unwrap_err();
    wrong.into_iter().map(|wrong| (wrong.list, wrong.at, wrong.message)).collect()
}

#[track_caller]
fn becomes(redact: &Redact, text: &str, expected: &str) {
    assert_eq!(redact.text(text), expected);
}

#[test]
fn values_of_secret_members_become_dots_and_nothing_else_does() {
    let redact = redact(json!({ "members": ["pin", "x-*-code"] }));
    for (text, expected) in [
        (r#"{"user":"ann","password":"hunter2"}"#, r#"{"user":"ann","password":"••••"}"#),
        (r#"{"apiKey" : "a\"b\\" , "n":1}"#, r#"{"apiKey" : "••••" , "n":1}"#),
        (r#"{"PIN":-12.5e3,"pine":"tree"}"#, r#"{"PIN":"••••","pine":"tree"}"#),
        (r#"{"X_entry_code":["a",["b]"]],"z":[1]}"#, r#"{"X_entry_code":"••••","z":[1]}"#),
        (r#"{"credentials":{"user":"}","k":"v"},"z":1}"#, r#"{"credentials":"••••","z":1}"#),
        (r#"{"token":null,"secret":true,"max_tokens":7}"#, r#"{"token":null,"secret":true,"max_tokens":7}"#),
        ("{\n  \"access_token\":\n  \"x\"\n}", "{\n  \"access_token\":\n  \"••••\"\n}"),
        (r#"5" of {"passwd":"x"} and "secret""#, r#"5" of {"passwd":"••••"} and "secret""#),
        (r#"{"password":"it was cut"#, r#"{"password":"••••""#),
        (r#"{"credentials":{"a":{"b":"it was cut"#, r#"{"credentials":"••••""#),
        ("GET /?q=1&api_key=abc&x=2", "GET /?q=1&api_key=••••&x=2"),
        ("DB_PASSWORD=hunter2 ./run", "DB_PASSWORD=•••• ./run"),
        ("", ""),
    ] {
        becomes(&redact, text, expected);
    }
}

#[test]
fn json_within_json_is_looked_at_however_deep() {
    let redact = redact(json!({}));
    let mut text = json!({ "note": "say \"hi\" \\", "password": "q\"u\\o", "after": "stays \\ \"here\"" });
    let mut expected = json!({ "note": "say \"hi\" \\", "password": "••••", "after": "stays \\ \"here\"" });
    for depth in 0..4 {
        becomes(&redact, &text.to_string(), &expected.to_string());
        // As arguments in a history are, and with another member behind.
        let around = |inner: &Value| json!({ "arguments": inner.to_string(), "depth": depth });
        (text, expected) = (around(&text), around(&expected));
    }
    let pretty = format!("{:#}", json!({ "token": "t-1", "b": [] }));
    let shown = json!({ "content": pretty }).to_string();
    becomes(&redact, &shown, &shown.replace("t-1", "••••"));
    // The string it stands in ends before its value does.
    becomes(&redact, r#"{"a":"{\"token\":\"cut","b":"c"}"#, r#"{"a":"{\"token\":\"••••\"","b":"c"}"#);
    becomes(&redact, r#"{"a":"{\"token\":[1,","b":"c"}"#, r#"{"a":"{\"token\":\"••••\"","b":"c"}"#);
}

#[test]
fn what_describes_a_secret_is_none() {
    let redact = redact(json!({}));
    let schema = json!({ "type": "object", "properties": {
        "password": { "type": "string", "description": "at least 8 letters" },
        "token": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
    } });
    becomes(&redact, &schema.to_string(), &schema.to_string());
    let value = r#"{"token":{"type":"Bearer","value":"abc"},"password":{"type":"string","default":"abc"}}"#;
    becomes(&redact, value, r#"{"token":"••••","password":"••••"}"#);
}

#[test]
fn what_looks_like_a_secret_becomes_dots_wherever_it_stands() {
    let redact = redact(json!({ "patterns": ["card [0-9]{4}", r"code:\s*(\d+)", "(a)x|bx"] }));
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_123";
    for (text, expected) in [
        ("authorization: Bearer abcdefgh.1==, next", "authorization: Bearer ••••, next"),
        (
            "redis://user:pa55@host/0 and http://host:80/a@b",
            "redis://user:••••@host/0 and http://host:80/a@b",
        ),
        ("key sk-proj-0123456789abcdef_-Z!", "key ••••!"),
        (jwt, "••••"),
        (&format!("{}{}", "ghp_", "a".repeat(36)), "••••"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "••••\nx"),
        ("-----BEGIN PRIVATE KEY-----\nit was cut", "••••"),
        ("card 1234, card 12", "••••, card 12"),
        ("code:  77 and code: x", "code:  •••• and code: x"),
        ("ax bx", "••••x ••••"),
        ("a bearer of bad news, a basic income", "a bearer of bad news, a basic income"),
    ] {
        becomes(&redact, text, expected);
    }
}

#[test]
fn without_defaults_only_what_was_said_is_looked_for() {
    let redact = redact(json!({ "defaults": false, "members": ["pin"] }));
    becomes(
        &redact,
        r#"{"password":"a","pin":"b"} Bearer abcdefgh"#,
        r#"{"password":"a","pin":"••••"} Bearer abcdefgh"#,
    );
    let none = super::tests::redact(json!({ "defaults": false }));
    becomes(&none, r#"{"password":"a"}"#, r#"{"password":"a"}"#);
}

#[test]
fn every_default_compiles() {
    let all = redact(json!({}));
    assert_eq!((all.names.is_some(), all.patterns.len()), (true, PATTERNS.len() + 1));
    let most = redact(json!({ "members": vec!["é".repeat(64); MOST], "patterns": vec!["[a-z]{100}"; MOST] }));
    assert_eq!((most.names.is_some(), most.patterns.len()), (true, PATTERNS.len() + 1 + MOST));
}

#[test]
fn a_secret_at_the_cut_is_not_kept_by_halves() {
    let redact = redact(json!({}));
    let secret = "sk-0123456789abcdef0123456789abcdef";
    let text = format!("{} {secret} {}", "é".repeat(100), "z".repeat(100));
    for most in 0..text.len() + 2 {
        let (kept, bytes) = redact.beginning(&text, most, 0);
        assert!(kept.len() <= most && !kept.contains("sk-"), "{most}: {kept}");
        assert_eq!(bytes, text.len() - secret.len() + DOTS.len());
        let (kept, bytes) = redact.end(&text, most, 0);
        assert!(kept.len() <= most && !kept.contains("cdef"), "{most}: {kept}");
        assert_eq!(bytes, text.len() - secret.len() + DOTS.len());
    }
    // It ends further off than is looked at, and what is masked before it moves it into what is kept.
    let long = format!("{{\"password\":\"{}\"}} {} {secret}", "p".repeat(BEYOND), "z".repeat(976));
    for most in 990..1030 {
        let (kept, _) = redact.beginning(&long, most, 0);
        assert!(kept.len() <= most && !kept.contains("sk-"), "{most}: {kept}");
    }
    let (kept, bytes) = redact.beginning("short", 100, 0);
    assert_eq!((kept.as_str(), bytes), ("short", 5));
}

#[test]
fn what_cannot_be_looked_for_is_told_with_its_place() {
    let told = wrong(
        json!({ "members": ["ok", "*_*", "a\nb"], "patterns": ["fine", "(", "x*", "(?:a{1000}){1000}", "(?=a)"] }),
    );
    let places: Vec<_> = told.iter().map(|(list, at, _)| (*list, *at)).collect();
    let at = |list, at| (list, Some(at));
    assert_eq!(
        places,
        [
            at("members", 1),
            at("members", 2),
            at("patterns", 1),
            at("patterns", 2),
            at("patterns", 3),
            at("patterns", 4)
        ]
    );
    assert_eq!(told[2].2, "this is not a regular expression: unclosed group");
    assert!(told[3].2.contains("everywhere") && told[4].2.contains("too large"), "{told:?}");
    assert_eq!(wrong(json!({ "patterns": vec!["a"; MOST + 1] }))[0].1, None);
}

#[test]
fn any_text_is_survived_and_what_is_not_secret_stays() {
    let redact = redact(json!({}));
    let pieces =
        ["\"", "\\", "{", "}", "[", "]", ":", ",", "token", "é", " ", "\\\"", "=", "1", "n", "@", "://"];
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let text: String = (0..random.usize(..24)).map(|_| pieces[random.usize(..pieces.len())]).collect();
        let clean = redact.text(&text);
        assert!(text.contains("token") || text.contains('@') || clean == text, "seed {seed}: {text}");
        assert_eq!(redact.text(&clean), clean, "seed {seed}: {text}: once is enough");
    }
}
