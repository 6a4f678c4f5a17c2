use std::time::Duration;

use serde_json::{Value, json};

use super::testing::{DEFAULTS, build, run, tool};
use super::*;

fn echo() -> Value {
    json!({ "argv": ["/bin/echo", "ran"] })
}

#[test]
fn the_definition_is_what_a_request_needs_in_the_order_it_was_written() {
    let (_catalog, plain) = tool(json!({
        "description": "Says \"hi\"",
        "parameters": { "type": "object", "required": ["z"], "properties": { "z": {}, "a": { "type": "string", "enum": ["y", "x"] } } },
        "command": echo(),
    }));
    assert_eq!(
        &*plain.spec().definition,
        r#"{"type":"function","function":{"name":"t","description":"Says \"hi\"","parameters":{"type":"object","required":["z"],"properties":{"z":{},"a":{"type":"string","enum":["y","x"]}}}}}"#
    );
    let (_catalog, strict) = tool(json!({ "strict": true, "command": echo() }));
    assert_eq!(
        &*strict.spec().definition,
        r#"{"type":"function","function":{"name":"t","parameters":{"type":"object","properties":{},"additionalProperties":false},"strict":true}}"#
    );
    assert!(strict.spec().strict && !plain.spec().strict);
}

#[test]
fn what_is_not_said_is_the_default() {
    let (_catalog, bare) = tool(json!({ "command": echo() }));
    let spec = bare.spec();
    assert_eq!((spec.effect, spec.on_disconnect), (Effect::Write, OnDisconnect::Finish));
    assert_eq!((spec.timeout, bare.result_limit(), bare.at_once()), (DEFAULTS.call_timeout, 65536, None));
    let (_catalog, said) = tool(json!({
        "command": echo(), "effect": "read", "timeout": "10s", "at_once": 3, "result": "1KiB",
    }));
    assert_eq!((said.spec().effect, said.spec().on_disconnect), (Effect::Read, OnDisconnect::Stop));
    assert_eq!(
        (said.spec().timeout, said.result_limit(), said.at_once()),
        (Duration::from_secs(10), 1024, Some(3))
    );
    let (_catalog, kept) = tool(json!({ "command": echo(), "effect": "read", "on_disconnect": "finish" }));
    assert_eq!(kept.spec().on_disconnect, OnDisconnect::Finish);
}

#[test]
fn tools_are_found_by_name_and_listed_by_name() {
    let catalog =
        build(json!({ "b": { "command": echo() }, "a": { "http": { "url": "https://h.example/" } } }))
            .unwrap();
    let listed: Vec<_> = catalog.iter().map(|tool| (&*tool.spec().name, tool.kind_name())).collect();
    assert_eq!(listed, [("a", "http"), ("b", "command")]);
    assert!(catalog.tool("a").is_some() && catalog.tool("c").is_none());
}

#[test]
fn names_are_those_a_provider_takes() {
    for name in ["a", "A-b_9", &"x".repeat(64)] {
        assert!(build(json!({ name: { "command": echo() } })).is_ok(), "{name}");
    }
    for name in ["", "a b", "a.b", "ž", "a/b", &"x".repeat(65)] {
        let errors = build(json!({ name: { "command": echo() } })).unwrap_err();
        assert!(
            errors[0].message.contains("^[a-zA-Z0-9_-]{1,64}$") && errors[0].path.is_empty(),
            "{errors:?}"
        );
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = build(json!({
        "bad name": { "command": { "argv": ["wc"], "dir": "x" }, "at_once": 0 },
        "both": { "command": echo(), "http": { "url": "https://h.example/" } },
        "neither": {},
        "schema": { "parameters": { "type": "object", "properties": { "x": { "type": "strnig" } } }, "command": echo() },
        "strict": { "parameters": { "type": "object", "properties": { "x": { "type": "string" } } }, "strict": true, "command": echo() },
        "fine": { "command": echo() },
    }))
    .unwrap_err();
    let told: Vec<(&str, String)> =
        errors.iter().map(|error| (error.tool.as_str(), error.path.join("."))).collect();
    assert_eq!(
        told,
        [
            ("bad name", ""),
            ("bad name", "at_once"),
            ("bad name", "command.argv.0"),
            ("bad name", "command.dir"),
            ("both", "command"),
            ("neither", ""),
            ("schema", "parameters.properties.x.type"),
            ("strict", "parameters"),
            ("strict", "parameters"),
        ]
        .map(|(tool, path)| (tool, path.to_owned()))
    );
}

#[tokio::test]
async fn arguments_that_are_broken_run_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("ran");
    let (_catalog, tool) = tool(json!({
        "parameters": { "type": "object", "properties": { "n": { "type": "integer" } }, "additionalProperties": false },
        "command": { "argv": ["/usr/bin/touch", mark] },
    }));
    for text in ["{", "[]", "null", "x", r#"{"n":"1"}"#, r#"{"n":1,"n":1}"#, r#"{"m":1}"#] {
        let call = Call { arguments: text.into(), ..super::testing::call(&json!({})) };
        let outcome = tool.run(&call, &CancellationToken::new()).await;
        assert_eq!(outcome.kind, OutcomeKind::InvalidArguments, "{text}");
        assert_eq!(tool.check_arguments(text), Err(outcome), "{text}");
    }
    assert!(!mark.exists());
    assert_eq!(tool.check_arguments(""), Ok(()));
    assert_eq!(run(&tool, json!({ "n": 1 })).await, Outcome::ok("(empty)"));
    assert!(mark.exists());
}

#[test]
fn a_time_is_told_in_words() {
    for (millis, words) in
        [(0, "0ms"), (250, "250ms"), (1000, "1s"), (29_999, "30s"), (30_000, "30s"), (1_520, "1.5s")]
    {
        assert_eq!(took(Duration::from_millis(millis)), words);
    }
}
