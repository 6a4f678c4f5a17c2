//! The whole way of a file: read, and reported on.

use serde_json::json;

use super::print::{Detail, EXAMPLE};
use super::*;
use crate::units::{Secret, Size, Span};

fn env(name: &str) -> Option<String> {
    match name {
        "OPENAI_API_KEY" => Some("sk-test-1234567890".into()),
        "ROUNDS" => Some("7".into()),
        "EMPTY" => Some(String::new()),
        "TWO_LINES" => Some("a\nb".into()),
        _ => None,
    }
}

fn reading_with(text: &str, flags: &Flags) -> Reading {
    let source = Source { path: None, name: "fanfold.yaml".into(), shown: text.to_owned() };
    Reading::new(source, text, &env, flags)
}

fn loaded(text: &str) -> Loaded {
    reading_with(text, &Flags::default()).finish().unwrap_or_else(|problems| panic!("{problems}"))
}

/// The report on a file that has to be refused.
fn report(text: &str) -> String {
    match reading_with(text, &Flags::default()).finish_with_tools() {
        Ok(_) => panic!("this should have been refused:\n{text}"),
        Err(problems) => problems.to_string(),
    }
}

/// A file with a sound upstream and this in addition.
fn with(rest: &str) -> String {
    format!("upstreams: {{ main: {{ base_url: https://a.example/v1 }} }}\n{rest}\n")
}

/// The messages of a refused file, in the order of the file.
fn messages(text: &str) -> Vec<String> {
    match reading_with(text, &Flags::default()).finish_with_tools() {
        Ok(_) => panic!("this should have been refused:\n{text}"),
        Err(problems) => problems.list().iter().map(|p| p.message().to_owned()).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    loaded(text).warnings().map(str::to_owned).collect()
}

const FULL: &str = r#"
listen: 127.0.0.1:4100
admin: { listen: 127.0.0.1:4101 }
upstreams:
  main:
    base_url: ${OPENAI_BASE_URL:-https://api.openai.com/v1}
    api_key: { env: OPENAI_API_KEY }
    kind: openai
    mode: stream
routes:
  - { model: "gpt-*", upstreams: [main] }
tools:
  get_weather:
    description: Current weather of a city
    parameters: { type: object, properties: { city: { type: string } }, required: [city], additionalProperties: false }
    http: { method: GET, url: "https://weather.example/v1/now?city={city}" }
    effect: read
    timeout: 10s
  words:
    description: Count words
    parameters: { type: object, properties: { text: { type: string } }, required: [text] }
    command: { argv: [/usr/bin/wc, -w], stdin: "{text}" }
policy: { strict_parallel: serialize }
limits: { rounds: 10, calls_per_turn: 64, calls_at_once: 8, call_timeout: 30s, turn_timeout: 300s, tool_result: 64KiB, body: 16MiB }
teams:
  blue:
    keys: [{ sha256: "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae" }]
    models: ["gpt-*"]
    tools: [get_weather, "w*"]
    limits: { turns_at_once: 50 }
store: memory
"#;

#[test]
fn the_whole_shape_of_a_file_loads() {
    let loaded = loaded(FULL);
    let file = &loaded.file;
    assert_eq!(file.upstreams["main"].base_url, "https://api.openai.com/v1");
    assert_eq!(file.upstreams["main"].api_key, Some(Secret::Env { env: "OPENAI_API_KEY".into() }));
    assert_eq!(file.tools["get_weather"].timeout, Some(Span::seconds(10)));
    assert_eq!(file.limits.tool_result, Size::kib(64));
    assert_eq!(file.teams["blue"].limits.turns_at_once, Some(50));
    assert_eq!(loaded.warnings().count(), 0);
}

#[test]
fn parameters_keep_their_order_and_their_numbers() {
    let file = loaded(&with("tools: { t: { command: { argv: [/bin/x] }, parameters: { type: object, properties: { z: { type: integer, maximum: 10, multipleOf: 0.5 }, a: { const: 9007199254740993 } } } } }")).file;
    let parameters = file.tools["t"].parameters.clone().unwrap_or_default();
    assert_eq!(
        parameters.to_string(),
        r#"{"type":"object","properties":{"z":{"type":"integer","maximum":10,"multipleOf":0.5},"a":{"const":9007199254740993}}}"#
    );
}

#[test]
fn every_default_is_as_documented() {
    let file = loaded(&with("")).file;
    let mut value = serde_json::to_value(&file).expect("JSON");
    value.as_object_mut().expect("a map").remove("upstreams");
    assert_eq!(
        value,
        json!({
            "listen": "127.0.0.1:4100",
            "admin": { "listen": "127.0.0.1:4101", "hosts": [], "metrics": true },
            "server": {
                "hosts": [], "header_timeout": "10s", "body_timeout": "30s", "body_rate": "1KiB", "idle_timeout": "120s",
                "stall_timeout": "30s", "write_buffer": "256KiB", "keep_alive": "10s", "drain_accept": "5s",
                "drain": "120s"
            },
            "routes": [],
            "tools": {},
            "policy": { "strict_parallel": "serialize", "strict_parallel_models": ["ft:*"], "interim_text": "stream" },
            "limits": {
                "rounds": 10, "calls_per_turn": 64, "calls_at_once": 8, "calls_at_once_per_team": 64,
                "calls_at_once_in_process": 512, "call_timeout": "30s", "turn_timeout": "300s",
                "identical_errors": 3, "tool_result": "64KiB", "body": "16MiB", "reply": "64MiB", "event": "4MiB",
                "tools_per_request": 128, "parked_entries": 10000, "parked_bytes": "64MiB", "parked_for": "1h",
                "ledger_entries": 10000, "ledger_bytes": "64MiB", "ledger_answer": "1MiB", "ledger_for": "600s",
                "ledger_lease": "10s",
                "turns_at_once": 4096, "turns_waiting_per_team": 256, "turn_wait": "5s", "connections": 16384, "bodies_in_flight": "512MiB"
            },
            "teams": {},
            "prices": {},
            "currency": "USD",
            "store": "memory",
            "log": { "level": "info", "content": false },
            "runs": { "keep": 500, "bytes": "64MiB", "content": false, "text": "64KiB", "watchers": 32 },
            "redact": { "defaults": true, "members": [], "patterns": [] }
        })
    );
}

#[test]
fn what_is_refused_says_where_why_and_what_to_do() {
    let cases = [
        (
            "upstream: {}\nupstreams: { main: { base_url: https://a.example/v1 } }\n",
            "\
error: unknown key `upstream`
 --> fanfold.yaml:1:1
  |
1 | upstream: {}
  | ^^^^^^^^ did you mean `upstreams`?

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams: {}\n",
            "\
error: `upstreams` has no entry
 --> fanfold.yaml:1:1
  |
1 | upstreams: {}
  | ^^^^^^^^^
  |
  = help: add at least one

1 mistake in fanfold.yaml
",
        ),
        (
            "listen: 127.0.0.1:1\n",
            "\
error: this file has no `upstreams`
 --> fanfold.yaml:1:1
  |
1 | listen: 127.0.0.1:1
  | ^^^^^^
  |
  = help: add `upstreams:` Model servers, by a name of your choice.

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams:\n  main:\n    base_url: https://a.example/v1\n    head_timeout: 30\n",
            "\
error: `head_timeout` must be a duration: a number and a unit, such as 250ms, 30s, 5m or 1h, not the number 30
 --> fanfold.yaml:4:19
  |
4 |     head_timeout: 30
  |                   ^^
  |
  = help: write `30s` if you mean seconds

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams:\n  main:\n    base_url: https://a.example/v1\n    mode: stream\n    mode: whole\n",
            "\
error: the key `mode` stands here twice
 --> fanfold.yaml:5:5
  |
4 |     mode: stream
  |     ---- first here
5 |     mode: *****
  |     ^^^^
  |
  = help: keep one of the two, or give one another name

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams:\n  main:\n    base_url: https://${HOST}/v1\n",
            "\
error: the environment variable `HOST` is not set
 --> fanfold.yaml:3:23
  |
3 |     base_url: https://${HOST}/v1
  |                       ^^^^^^^
  |
  = help: set HOST, or write a default: `${HOST:-…}`

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams:\n  main:\n    base_url: https://a.example/v1\n    api_key: { env: NOT_THERE }\n",
            "\
error: the environment variable `NOT_THERE` is not set
 --> fanfold.yaml:4:21
  |
4 |     api_key: { env: NOT_THERE }
  |                     ^^^^^^^^^
  |
  = help: set NOT_THERE before the start, or leave `api_key` out if this upstream needs none

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams: { main: { base_url: https://a.example/v1 } }\nroutes:\n  - model: \"*\"\n    upstreams: [mian]\n",
            "\
error: there is no upstream `mian`
 --> fanfold.yaml:4:17
  |
4 |     upstreams: [mian]
  |                 ^^^^ did you mean `main`?

1 mistake in fanfold.yaml
",
        ),
        (
            "upstreams:\n  main: { base_url: https://a.example/v1\nroutes: []\n",
            "\
error: this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'
 --> fanfold.yaml:3:7
  |
3 | routes: []
  |       ^
  |
  = help: check the indentation, the quotes and the brackets around this place

1 mistake in fanfold.yaml
",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(report(text), wanted, "{text}");
    }
}

#[test]
fn ten_mistakes_are_one_report() {
    let text = r#"listen: localhost:4100
upstreams:
  main:
    base_url: https://api.openai.com/v1/chat/completions
    api_key: { env: NOT_THERE }
    kind: opnai
routes:
  - { model: "gpt-*", upstreams: [mian] }
tools:
  clock: { command: { argv: [/bin/date] }, timeout: 10 }
  nothing: {}
limits: { rounds: 0, tool_result: 64kb }
teams:
  blue:
    tools: [clok]
"#;
    assert_eq!(
        report(text),
        "\
error: `localhost:4100` is not an address to listen on
 --> fanfold.yaml:1:9
  |
1 | listen: localhost:4100
  |         ^^^^^^^^^^^^^^
  |
  = help: write an IP address and a port, such as 127.0.0.1:4100

error: `base_url` goes too far: `/chat/completions` is added by fanfold
 --> fanfold.yaml:4:15
  |
4 |     base_url: https://api.openai.com/v1/chat/completions
  |               ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  |
  = help: write https://api.openai.com/v1

error: the environment variable `NOT_THERE` is not set
 --> fanfold.yaml:5:21
  |
5 |     api_key: { env: NOT_THERE }
  |                     ^^^^^^^^^
  |
  = help: set NOT_THERE before the start, or leave `api_key` out if this upstream needs none

error: `kind` must be `openai`, `azure`, `vllm`, `ollama`, `sglang`, `mistral`, `gemini`, `anthropic` or `groq`, not `opnai`
 --> fanfold.yaml:6:11
  |
6 |     kind: opnai
  |           ^^^^^ did you mean `openai`?

error: there is no upstream `mian`
 --> fanfold.yaml:8:35
  |
8 |   - { model: \"gpt-*\", upstreams: [mian] }
  |                                   ^^^^ did you mean `main`?

error: `timeout` must be a duration: a number and a unit, such as 250ms, 30s, 5m or 1h, not the number 10
  --> fanfold.yaml:10:53
   |
10 |   clock: { command: { argv: [/bin/date] }, timeout: 10 }
   |                                                     ^^
   |
   = help: write `10s` if you mean seconds

error: nothing says how to run it
  --> fanfold.yaml:11:3
   |
11 |   nothing: {}
   |   ^^^^^^^
   |
   = help: add `http:`, `command:`, `mcp:` or `openapi:`

error: `rounds` must be at least 1, not 0
  --> fanfold.yaml:12:19
   |
12 | limits: { rounds: 0, tool_result: 64kb }
   |                   ^

error: `tool_result` must be a size: a whole number and a unit, such as 512B, 64KiB or 16MiB, not `64kb`
  --> fanfold.yaml:12:35
   |
12 | limits: { rounds: 0, tool_result: 64kb }
   |                                   ^^^^
   |
   = help: write `64KiB`

error: there is no tool `clok`
  --> fanfold.yaml:15:13
   |
15 |     tools: [clok]
   |             ^^^^ did you mean `clock`?

10 mistakes in fanfold.yaml
"
    );
}

#[test]
fn each_rule_has_its_sentence() {
    let key = |n: u8| format!("{{ sha256: \"{}\" }}", format!("{n:02x}").repeat(32));
    let cases: Vec<(String, &str)> = vec![
        (
            with("listen: 0.0.0.0:4100"),
            "without teams and keys, everybody who reaches 0.0.0.0:4100 could use your upstream's key",
        ),
        (
            with("admin: { listen: 127.0.0.1:4100 }"),
            "the proxy and the admin side cannot both listen on 127.0.0.1:4100",
        ),
        (with("admin: { listen: nowhere }"), "`nowhere` is not an address to listen on"),
        (
            with("tls: { cert: /nonexistent/a.pem, key: /dev/null }"),
            "the file `/nonexistent/a.pem` cannot be read: No such file or directory (os error 2)",
        ),
        (with("log: { level: \"a=b=c\" }"), "`a=b=c` is not a log filter"),
        (with("audit: { file: /nonexistent/a.jsonl }"), "there is no folder /nonexistent"),
        (with("audit: { file: / }"), "`/` is no file to write the audit log into"),
        (with("audit: { on_error: deny }"), "`audit` has no `file`"),
        (
            with("traces: { endpoint: \"localhost:4318\" }"),
            "the collector's URL `localhost:4318` does not begin with http:// or https://",
        ),
        (
            with("traces: { endpoint: \"http://h:4317/v1\", protocol: grpc }"),
            "the collector's URL `http://h:4317/v1` has a path, which gRPC has no use for",
        ),
        (with("traces: { sample: 2 }"), "`sample` must be from 0 to 1, not 2"),
        (with("traces: { protocol: udp }"), "`protocol` must be `grpc` or `http`, not `udp`"),
        (
            with("traces: { headers: { authorization: { env: UNSET } } }"),
            "the environment variable `UNSET` is not set",
        ),
        (
            with("traces: { ca: /nonexistent/ca.pem }"),
            "the certificate file /nonexistent/ca.pem cannot be read: I/O error: No such file or directory (os error 2)",
        ),
        (with("store: redis"), "`store` must be `memory`, not `redis`"),
        (with("store: 5"), "`store` must be `memory` or a map of keys and values, not the number 5"),
        (with("store: { timeout: 1s }"), "`store` has no `redis`"),
        (with("store: { rediss: \"redis://h\" }"), "unknown key `rediss`"),
        (with("store: { redis: \"http://h\" }"), "the URL of a Redis begins with redis:// or rediss://"),
        (with("store: { redis: h }"), "this is not the URL of a Redis"),
        (
            with("store: { redis: \"redis://h/name\" }"),
            "what follows the port in the URL of a Redis is the number of a database",
        ),
        (with("store: { redis: \"rediss://h/#insecure\" }"), "certificates are always checked"),
        (with("store: { redis: \"redis://h\", ca: /dev/null }"), "`ca` is of use with TLS only"),
        (with("store: { redis: \"redis://:a@h\", password: b }"), "the URL has a password already"),
        (
            with("store: { redis: \"redis://h\", namespace: \"a{b}\" }"),
            "`namespace` must be 1 to 64 letters, digits, dots, colons, dashes and underscores, not `a{b}`",
        ),
        (
            with("store: { redis: \"redis://h\", on_error: drop }"),
            "`on_error` must be `local` or `deny`, not `drop`",
        ),
        (with("store: { redis: \"redis://h\", timeout: 0s }"), "`timeout` cannot be zero"),
        (with("store: { redis: { env: UNSET } }"), "the environment variable `UNSET` is not set"),
        (with("nonsense: 1"), "unknown key `nonsense`"),
        (with("routes: [{ model: x, upstreams: [] }]"), "`upstreams` is an empty list"),
        (with("routes: [{ model: x, upstreams: [main, main] }]"), "`main` stands twice in this route"),
        (with("routes: [{ model: \"\", upstreams: [main] }]"), "`model` is empty"),
        (with("routes: [{ upstreams: [main] }]"), "an entry of `routes` has no `model`"),
        (with("routes: { model: x }"), "`routes` must be a list, not a map"),
        (
            with("routes: [{ model: x, upstreams: [main], limits: { call_timeout: 40s } }]"),
            "`call_timeout` may only be lowered here: 40s is more than the global 30s",
        ),
        (with("limits: { turn_timeout: 0s }"), "`turn_timeout` cannot be zero"),
        (with("limits: { body: 0B }"), "`body` cannot be zero"),
        (with("limits: { rounds: -1 }"), "`rounds` must be at least 1, not -1"),
        (with("limits: { rounds: 4294967296 }"), "`rounds` must be at most 4294967295, not 4294967296"),
        (with("limits: { rounds: 1.5 }"), "`rounds` must be a whole number, not the number 1.5"),
        (with("limits: { rounds: \"ten\" }"), "`rounds` must be a whole number, not `ten`"),
        (with("limits: { rounds: }"), "`rounds` must be a whole number, not empty"),
        (
            with("limits: { body: 99999999999999GiB }"),
            "`body` must be a size: a whole number and a unit, such as 512B, 64KiB or 16MiB, not `99999999999999GiB`",
        ),
        (
            with("limits: { bodies_in_flight: 1MiB }"),
            "a body of 16MiB would never fit into `bodies_in_flight`, which is 1MiB",
        ),
        (with("limits: { event: 65MiB }"), "one event may be larger (65MiB) than a whole reply (64MiB)"),
        (with("log: { content: yes }"), "`content` must be true or false, not `yes`"),
        (
            with("teams: { a: { keys: [{ sha256: abc }] } }"),
            "`sha256` must be the SHA-256 of the key, as 64 hexadecimal digits (`fanfold keys hash`), not this text",
        ),
        (
            with(&format!("teams: {{ a: {{ keys: [{0}] }}, b: {{ keys: [{0}] }} }}", key(1))),
            "this key already belongs to the team `a`",
        ),
        (with(&format!("teams: {{ a: {{ keys: [{0}, {0}] }} }}", key(1))), "`a` has this key twice"),
        (
            with(
                "teams: { a: { keys: [{ sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 }] } }",
            ),
            "this is the hash of an empty text",
        ),
        (
            with(&format!("teams: {{ a: {{ keys: [{}], limits: {{ turns_at_once: 5000 }} }} }}", key(1))),
            "`turns_at_once` may only be lowered here: 5000 is more than the global 4096",
        ),
        (with("teams: { a: { limits: { requests_per_minuet: 5 } } }"), "unknown key `requests_per_minuet`"),
        (
            with("teams: { a: { limits: { tokens_per_minute: 0 } } }"),
            "`tokens_per_minute` must be at least 1, not 0",
        ),
        (
            with("teams: { a: { limits: { tokens_per_minute: 40000000000 } } }"),
            "`tokens_per_minute` must be at most 37529996894, which is the most that can be counted",
        ),
        (with("teams: { a: { budget: { cost_per_day: 0 } } }"), "`cost_per_day` cannot be zero"),
        (with("prices: { x: { input: cheap, output: 1 } }"), "`input` must be a number, not `cheap`"),
        (
            with("prices: { x: { input: -1, output: 1 } }"),
            "`-1` is no amount of money: write a number such as 2.50",
        ),
        (with("prices: { x: { input: 0.0000001, output: 1 } }"), "`0.0000001` has more than 6 decimals"),
        (with("teams: { a: { share: 0 } }"), "`share` must be at least 1, not 0"),
        (with("teams: { a: { models: [\"\"] } }"), "an empty pattern matches no model"),
        (
            with("tools: { t: { http: { url: \"https://a\" }, command: { argv: [/bin/date] } } }"),
            "a tool has either `http` or `command`",
        ),
        (
            with("tools: { t: { http: { url: \"https://a\" }, at_once: 0 } }"),
            "with 0 the tool could never run",
        ),
        (
            with("tools: { t: { http: { url: \"https://a\", headers: { x: { env: NOPE } } } } }"),
            "the environment variable NOPE is not set",
        ),
        (
            with("tools: { t: { http: { url: \"https://a\" }, effect: reed } }"),
            "`effect` must be `read`, `idempotent` or `write`, not `reed`",
        ),
        ("upstreams: { a: { base_url: ftp://x } }".into(), "`base_url` must begin with http:// or https://"),
        (
            "upstreams: { a: { base_url: api.openai.com } }".into(),
            "`base_url` is not a URL: relative URL without a base",
        ),
        (
            "upstreams: { a: { base_url: \"https://u:p@x/v1\" } }".into(),
            "`base_url` must not contain a user or a password",
        ),
        (
            "upstreams: { a: { base_url: \"https://x/v1?a=b\" } }".into(),
            "`base_url` must not have a `?` or `#` part",
        ),
        ("upstreams: { a: { base_url: 5 } }".into(), "`base_url` must be text, not the number 5"),
        ("upstreams: { a: {} }".into(), "`a` has no `base_url`"),
        (
            "upstreams: { a: { base_url: https://x/v1, headers: { \"a b\": c } } }".into(),
            "`a b` is not a legal header name",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, headers: { x-a: \"ä\\n\" } } }".into(),
            "this value has a character that cannot stand in a header (a line end?)",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, headers: { Host: b } } }".into(),
            "the header `Host` is written by fanfold itself",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: a, headers: { Authorization: b } } }".into(),
            "both `api_key` and `headers` would send `authorization`",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: { env: EMPTY } } }".into(),
            "`api_key` is empty",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: { env: TWO_LINES } } }".into(),
            "this value has a character that cannot stand in a header (a line end?)",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: { file: /nonexistent } } }".into(),
            "the file `/nonexistent` cannot be read: No such file or directory (os error 2)",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: { env: OPENAI_API_KEY, file: b } } }".into(),
            "`file` and `env` exclude each other",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: 12 } }".into(),
            "`api_key` must be text, `{ env: … }` or `{ file: … }`, not a number",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, api_key: [a] } }".into(),
            "`api_key` must be text, `{ env: … }` or `{ file: … }`, not a list",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1, ca: /nonexistent } }".into(),
            "the file `/nonexistent` cannot be read: No such file or directory (os error 2)",
        ),
        (
            "upstreams: { a: { base_url: https://x/v1 }, b: { base_url: https://y/v1 } }".into(),
            "there are several upstreams, but no `routes:` that say which model goes where",
        ),
        ("- a".into(), "this file must be a map of keys and values, not a list"),
        ("".into(), "fanfold.yaml says nothing"),
    ];
    let wrong: Vec<_> =
        cases.iter().map(|(text, wanted)| (messages(text), *wanted)).filter(|(m, w)| m != &[*w]).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_probably_not_meant_is_warned_about() {
    let cases: Vec<(String, &str)> = vec![
        (with("admin: { listen: 0.0.0.0:4101 }"), "the admin listener at 0.0.0.0:4101 asks for no key: whoever reaches it sees metrics and runs"),
        (with("routes: [{ model: \"*\", upstreams: [main] }, { model: x, upstreams: [main] }]"), "no model reaches this route: an earlier one takes every `x`"),
        (with("teams: { a: {} }"), "the team `a` has no keys: nobody can use it"),
        (
            with(&format!(
                "teams: {{ a: {{ keys: [{{ sha256: {} }}], budget: {{ cost_per_day: 5 }} }} }}",
                "b".repeat(64)
            )),
            "no model has a price, so nothing is charged to this budget",
        ),
        (
            with(&format!("teams: {{ a: {{ keys: [{{ sha256: {}, expires: 2020-01-31 }}] }} }}", "a".repeat(64))),
            "this key of `a` expired on 2020-01-31: nobody can use it",
        ),
        (with("limits: { call_timeout: 10m }"), "one call may take longer than a whole turn (300s)"),
        (with("tools: { t: { http: { url: \"https://a\" }, timeout: 10m } }"), "`timeout` is longer than a whole turn (300s)"),
        ("upstreams: { a: { base_url: https://x.example } }".into(), "`base_url` has no path"),
        ("upstreams: { a: { base_url: http://x.example/v1, api_key: k } }".into(), "the API key travels unencrypted to this upstream"),
        (
            with("traces: { endpoint: \"http://h:4317\" }"),
            "collectors listen on port 4317 for gRPC, and the protocol is `http`",
        ),
        (
            with("traces: { endpoint: \"http://otel.example:4318\", headers: { authorization: x } }"),
            "the headers travel unencrypted to this collector",
        ),
        ("upstreams: { a: { base_url: https://x/v1 }, b: { base_url: https://y/v1 } }\nroutes: [{ model: x, upstreams: [a] }]".into(), "no route leads to `b`"),
    ];
    for (text, wanted) in cases {
        assert_eq!(warnings(&text), [wanted], "{text}");
    }
    let tools: String = (0..130).map(|i| format!("t{i}: {{ http: {{ url: \"https://a\" }} }}, ")).collect();
    let key = "ab".repeat(32);
    let text = with(&format!(
        "tools: {{ {tools} }}\nteams: {{ a: {{ keys: [{{ sha256: {key} }}], tools: [\"t*\", \"x*\"] }} }}"
    ));
    assert_eq!(
        warnings(&text),
        ["the team `a` may use 130 tools, but a request carries at most 128", "no tool matches `x*`"]
    );
}

#[test]
fn ordinary_private_setups_are_not_warned_about() {
    for url in
        ["http://127.0.0.1:8000/v1", "http://vllm:8000/v1", "http://10.0.0.7/v1", "http://m.default.svc/v1"]
    {
        assert_eq!(
            warnings(&format!("upstreams: {{ a: {{ base_url: \"{url}\", api_key: k }} }}")),
            [""; 0],
            "{url}"
        );
    }
}

#[test]
fn a_variable_may_stand_for_a_number() {
    assert_eq!(
        loaded(&with("limits: { rounds: \"${ROUNDS}\", calls_per_turn: \"${NONE:-9}\" }")).file.limits.rounds,
        7
    );
    assert_eq!(
        messages(&with("limits: { rounds: \"${NONE:-many}\" }")),
        ["`rounds` must be a whole number, not `many`"]
    );
}

#[test]
fn a_key_without_a_value_is_as_good_as_no_key() {
    let file = loaded(&with("tools:\nteams:\nroutes:\ntls:\nadmin:\n")).file;
    assert!(file.tools.is_empty() && file.teams.is_empty() && file.tls.is_none());
}

#[test]
fn what_has_a_name_and_no_value_is_a_mistake() {
    for (text, name) in [
        ("upstreams: { main: }\n".to_owned(), "main"),
        (with("teams: { blue: }\n"), "blue"),
        (with("tools: { t: }\n"), "t"),
    ] {
        let messages = messages(&text);
        assert!(messages.len() == 1 && messages[0].contains(&format!("`{name}`")), "{text}: {messages:?}");
    }
}

#[test]
fn flags_lie_over_the_file() {
    let flags = |listen: &str, insecure_no_auth| Flags {
        listen: Some(listen.into()),
        admin_listen: Some("127.0.0.1:9".into()),
        insecure_no_auth,
        ..Flags::default()
    };
    let loaded = reading_with(&with(""), &flags("0.0.0.0:1", true)).finish().expect("insecure is allowed");
    assert_eq!(
        (loaded.file.listen.as_str(), loaded.file.admin.listen.as_str()),
        ("0.0.0.0:1", "127.0.0.1:9")
    );
    assert!(loaded.render_warnings(false).contains("--insecure-no-auth"));
    assert!(reading_with(&with(""), &flags("0.0.0.0:1", false)).finish().is_err());
    let report =
        reading_with(&with(""), &flags("there", false)).finish().expect_err("no address").to_string();
    assert!(report.starts_with("error: `--listen there` is not an address to listen on\n"), "{report}");
}

#[test]
fn no_secret_is_ever_shown() {
    let shown = |text: &str| {
        let reading = reading_with(text, &Flags::default());
        let mut debug = format!("{reading:?}");
        match reading.finish() {
            Ok(loaded) => {
                debug.push_str(&format!("{loaded:?}"));
                let all = loaded.print(Detail::Everything).expect("YAML");
                let written = loaded.print(Detail::Written).expect("YAML");
                [all, written, loaded.render_warnings(false), debug].concat()
            }
            Err(problems) => [problems.to_string(), debug].concat(),
        }
    };
    for text in [
        "upstreams: { a: { base_url: http://x.example/v1, api_key: GEHEIM, kind: x } }",
        "upstreams: { a: { base_url: https://x.example/, api_key: GEHEIM } }",
        "upstreams: { a: { base_url: http://x.example/v1, api_key: [GEHEIM] } }",
        "upstreams: { a: { base_url: http://x.example/v1, api_key: { value: GEHEIM } } }",
        "upstreams: { a: { base_url: http://x.example/v1, headers: { x-key: GEHEIM, y: 5 } } }",
        "upstreams: { a: { base_url: http://x.example/v1, headers: { x-key: \"GEHEIM\\n\" } } }",
        "upstreams:\n  a:\n    api_key: \"GEHEIM\n",
        "upstreams: { a: { base_url: https://x/v1, api_kye: GEHEIM } }",
        "upstreams: { a: { base_url: https://x/v1, api_key: x, api_key: GEHEIM } }",
        "upstreams: { a: { base_url: https://x/v1, headers: { x: a, x: GEHEIM } } }",
        "upstreams: { a: { base_url: https://x/v1, heders: { x: GEHEIM } } }",
        "upstreams: { a: { base_url: https://x/v1, headers: [\"x: GEHEIM\"] } }",
        "upstreams: { a: { base_url: https://x/v1, \"api_key\" : GEHEIM }, ] }",
        "unknown: &k GEHEIM\nupstreams: { a: { base_url: https://x/v1, api_key: *k } }",
        "api_key: GEHEIM\nupstreams: { a: { base_url: https://x/v1 } }",
        "upstreams: { a: { base_url: https://x/v1 } }\nteams: { b: { keys: [GEHEIM] } }",
        "upstreams: { a: { base_url: https://x/v1 } }\nteams: { b: { keys: GEHEIM } }",
        "upstreams: { a: { base_url: https://x/v1 } }\nteams: { b: { keys: [{ sha256: GEHEIM }] } }",
        "upstreams: { a: { base_url: https://x/v1 } }\ntools: { t: { command: { argv: [/x], env: { A: GEHEIM } }, x: 1 } }",
    ] {
        assert!(!shown(text).contains("GEHEIM"), "{}", shown(text));
    }
    let from_variable = "upstreams: { a: { base_url: \"https://x/${OPENAI_API_KEY}/v1\" } }";
    assert!(shown(from_variable).contains("https://x/••••/v1"), "{}", shown(from_variable));
}

#[test]
fn no_report_quotes_what_came_out_of_a_secret_variable() {
    let wrong = "${OPENAI_API_KEY} and more";
    for text in [
        format!("ups: {wrong}"),
        wrong.into(),
        with(&format!("limits: {{ rounds: \"{wrong}\" }}")),
        with(&format!("limits: {{ call_timeout: \"{wrong}\" }}")),
        with(&format!("policy: {{ strict_parallel: \"{wrong}\" }}")),
        with(&format!("routes: [{{ model: x, upstreams: [\"{wrong}\"] }}]")),
        with(&format!("routes: \"{wrong}\"")),
        with(&format!("listen: \"{wrong}\"")),
        with(&format!("tools: {{ t: {{ command: {{ argv: [\"{wrong}\"] }} }} }}")),
        with(&format!("tools: {{ t: {{ http: {{ url: \"{wrong}\" }} }} }}")),
        with(&format!("policy: {{}}\npolicy: {{ strict_parallel: \"{wrong}\" }}")),
        with(&format!("teams: {{ a: {{ keys: [{{ sha256: \"{wrong}\" }}] }} }}")),
    ] {
        let value = env("OPENAI_API_KEY").unwrap();
        let report = report(&text);
        assert!(!report.contains(&value), "{report}");
    }
}

#[test]
fn the_name_of_a_variable_is_shown() {
    let report = report("upstreams: { a: { base_url: https://x/v1, api_key: \"${MISSING}\" } }");
    assert!(report.contains("api_key: \"${MISSING}\""), "{report}");
}

#[test]
fn later_mistakes_join_the_report_at_their_place() {
    let mut reading =
        reading_with(&with("tools: { t: { http: { url: \"ftp://a\" } }, u: {} }"), &Flags::default());
    reading.add(&["tools", "t", "http", "url"], "this URL must be http or https", "write https://");
    reading.add(&["tools", "u"], "the first opinion about a place", "");
    reading.add(&["tools", "u"], "a second opinion about the same place", "");
    let problems = reading.finish().expect_err("mistakes");
    let messages: Vec<&str> = problems.list().iter().map(Problem::message).collect();
    assert_eq!(
        messages,
        [
            "this URL must be http or https",
            "the first opinion about a place",
            "a second opinion about the same place"
        ]
    );
    assert!(problems.to_string().contains("--> fanfold.yaml:2:28\n"), "{problems}");
}

#[test]
fn mistakes_of_tools_are_in_the_same_report_and_only_once() {
    let text = with(
        "limits: { rounds: 0 }
tools:
  a: { http: { url: \"gopher://x/{y}\" } }
  b: { http: { url: \"https://x\", headers: { k: { env: NOPE } } } }
  c: { command: { argv: [date] }, x: 1 }
  d: { command: { argv: [/bin/sh] }, parameters: { type: nonsense } }
  e f: { command: { argv: [/bin/sh] } }
  g: {}",
    );
    assert_eq!(
        messages(&text),
        [
            "`rounds` must be at least 1, not 0",
            "the scheme `gopher` is neither http nor https",
            "`{y}` is not an argument of this tool",
            "the environment variable NOPE is not set",
            "`date` is not an absolute path",
            "unknown key `x`",
            "the schema must be that of an object: \"type\": \"object\"",
            "`e f` is not a legal tool name: ^[a-zA-Z0-9_-]{1,64}$ (letters, digits, _ and -, at most 64)",
            "nothing says how to run it",
        ]
    );
    assert!(report(&text).contains("--> fanfold.yaml:5:55\n"), "the secret's place: {}", report(&text));
}

#[test]
fn a_mistake_does_not_hide_those_beside_it() {
    let text = with(
        "tools:
  a: { http: { method: GTE, url: \"ftp://x/{nowhere}\", headers: { \"b d\": x, k: { env: NOPE } } } }
  b:
    parameters: { type: object, properties: { y: { type: 5 } } }
    http: { url: \"https://x/{y}/{z}\" }
    timeout: soon
  c: { http: { headers: { \"b d\": x } } }
  d: { command: { argv: [5], dir: nowhere } }
  e: { http: { url: \"gopher://x\" }, command: { argv: [date] } }
teams:
  blue: { keys: [{}, { sha256: 7 }], tools: [f] }",
    );
    assert_eq!(
        messages(&text),
        [
            "`method` must be `GET`, `HEAD`, `POST`, `PUT`, `PATCH` or `DELETE`, not `GTE`",
            "the scheme `ftp` is neither http nor https",
            "`{nowhere}` is not an argument of this tool",
            "this is not a header name",
            "the environment variable NOPE is not set",
            "5 is not valid under any of the schemas listed in the 'anyOf' keyword",
            "`{z}` is not an argument of this tool",
            "`timeout` must be a duration: a number and a unit, such as 250ms, 30s, 5m or 1h, not `soon`",
            "`http` has no `url`",
            "this is not a header name",
            "an entry of `argv` must be text, not the number 5",
            "`nowhere` is not the absolute path of a directory",
            "the scheme `gopher` is neither http nor https",
            "a tool has either `http` or `command`",
            "`date` is not an absolute path",
            "an entry of `keys` has no `sha256`",
            "`sha256` must be the SHA-256 of the key, as 64 hexadecimal digits (`fanfold keys hash`), not a number",
            "there is no tool `f`",
        ]
    );
}

#[test]
fn an_unknown_key_hides_nothing_but_itself() {
    let text = with(
        "lisen: 1\ntools: { d: { description: nothing, timout: 3s }, e: { htpp: { url: \"ftp://x\" } } }\nteams: { blue: { keys: [], x: 1, tools: [nobody] } }",
    );
    assert_eq!(
        messages(&text),
        [
            "unknown key `lisen`",
            "nothing says how to run it",
            "unknown key `timout`",
            "unknown key `htpp`",
            "unknown key `x`",
            "there is no tool `nobody`",
        ]
    );
}

#[test]
fn what_stands_there_twice_is_looked_at_twice() {
    let text = "upstreams:
  main: { base_url: https://a.example/v1, kind: openia }
  main: { base_url: \"${NOWHERE}\", kind: ollma, stal_timeout: 3s }
tools:
  t: { http: { url: \"https://x/{y}\" } }
  t: { http: { url: \"https://x/{z}\" }, parameters: { type: object, type: object } }
";
    let list = messages(text);
    for wanted in [
        "the key `main` stands here twice",
        "`kind` must be `openai`, `azure`, `vllm`, `ollama`, `sglang`, `mistral`, `gemini`, `anthropic` or `groq`, not `openia`",
        "`kind` must be `openai`, `azure`, `vllm`, `ollama`, `sglang`, `mistral`, `gemini`, `anthropic` or `groq`, not `ollma`",
        "the environment variable `NOWHERE` is not set",
        "unknown key `stal_timeout`",
        "the key `t` stands here twice",
        "the key `type` stands here twice",
        "`{y}` is not an argument of this tool",
        "`{z}` is not an argument of this tool",
    ] {
        assert_eq!(list.iter().filter(|m| *m == wanted).count(), 1, "{wanted}: {list:#?}");
    }
    assert_eq!(list.len(), 9, "{list:#?}");
}

#[test]
fn without_a_file_the_environment_is_enough() {
    let read = |env: Env<'_>| load(None, env, &Flags::default());
    let key = |name: &str| (name == "OPENAI_API_KEY").then(|| "sk-1".to_owned());
    let file = read(&key).expect("a key is enough").0.file;
    assert_eq!(file.upstreams["main"].base_url, "https://api.openai.com/v1");
    assert_eq!(file.upstreams["main"].api_key, Some(Secret::Env { env: "OPENAI_API_KEY".into() }));
    let url = |name: &str| (name == "OPENAI_BASE_URL").then(|| "http://127.0.0.1:8000/v1".to_owned());
    let file = read(&url).expect("a URL is enough").0.file;
    assert_eq!(file.upstreams["main"].base_url, "http://127.0.0.1:8000/v1");
    assert_eq!(file.upstreams["main"].api_key, None);
    let report = read(&|_| None).expect_err("nothing to go by").to_string();
    assert!(report.contains("OPENAI_API_KEY") && report.contains("fanfold config init"), "{report}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fanfold.yaml");
    let report = || load(Some(&path), &env, &Flags::default()).expect_err("unreadable").to_string();
    assert!(report().contains("No such file"), "{}", report());
    std::fs::write(&path, b"a: 1\nb: \xff\n").unwrap();
    assert!(report().contains("line 2 is not UTF-8"), "{}", report());
    std::fs::write(&path, vec![b'#'; 1024 * 1024 + 1]).unwrap();
    assert!(report().contains("larger than 1MiB"), "{}", report());
}

#[test]
fn the_example_is_sound_and_the_schema_knows_it() {
    let loaded = loaded(EXAMPLE);
    assert_eq!(loaded.warnings().count(), 0);
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    for text in [EXAMPLE, FULL] {
        let tree = Node::parse(text).expect("YAML");
        assert!(validator.is_valid(&tree.to_json()), "{text}");
    }
    assert!(!validator.is_valid(&json!({ "upstreams": {} })));
    assert!(
        !validator.is_valid(&json!({ "upstreams": { "a": { "base_url": "x" } }, "limits": { "rounds": 0 } }))
    );
}

#[test]
fn what_is_printed_loads_again_as_the_same() {
    let first = loaded(FULL);
    for detail in [Detail::Everything, Detail::Written] {
        let again = loaded(&first.print(detail).expect("YAML"));
        assert_eq!(again.file.limits, first.file.limits);
        assert_eq!(again.file.upstreams, first.file.upstreams);
        assert_eq!(again.file.tools["words"].parameters, first.file.tools["words"].parameters);
    }
    let written = first.print(Detail::Written).expect("YAML");
    assert!(!written.contains("identical_errors"), "{written}");
    let defaults = print::defaults().expect("YAML");
    assert!(defaults.contains("identical_errors: 3"), "{defaults}");
}

#[test]
fn files_of_secrets_are_watched_too() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "k").unwrap();
    let config = folder.path().join("fanfold.yaml");
    let text =
        format!("upstreams: {{ a: {{ base_url: https://x/v1, api_key: {{ file: {} }} }} }}", key.display());
    std::fs::write(&config, text).unwrap();
    let (loaded, _) = load(Some(&config), &env, &Flags::default()).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(loaded.watched(), [config, key]);
}

/// The walk over the schema is ours: it has to know every word the schema uses.
#[test]
fn the_schema_says_nothing_the_walk_does_not_know() {
    const KNOWN: [&str; 21] = [
        "$schema",
        "title",
        "description",
        "type",
        "properties",
        "default",
        "anyOf",
        "oneOf",
        "$ref",
        "additionalProperties",
        "items",
        "required",
        "$defs",
        "pattern",
        "const",
        "enum",
        "minItems",
        "minProperties",
        "format",
        "minimum",
        "maximum",
    ];
    fn look(schema: &Value, at: &str) {
        let Value::Object(map) = schema else { return };
        for (word, value) in map {
            assert!(KNOWN.contains(&word.as_str()), "`{word}` at {at}");
            match (word.as_str(), value) {
                ("properties" | "$defs", Value::Object(named)) => {
                    named.iter().for_each(|(name, s)| look(s, &format!("{at}/{name}")));
                }
                ("anyOf" | "oneOf", Value::Array(all)) => all.iter().for_each(|s| look(s, at)),
                ("items" | "additionalProperties", s) => look(s, at),
                _ => {}
            }
        }
    }
    look(&schema(), "");
}

#[test]
fn a_report_is_bounded() {
    let rest: String = (0..150).map(|i| format!("nonsense{i}: 1\n")).collect();
    let report = report(&with(&rest));
    assert_eq!(report.matches("unknown key").count(), 100);
    assert!(report.ends_with("\n… and 50 more\n\n150 mistakes in fanfold.yaml\n"), "{report}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    /// Whatever is cut out of a file or put into it, there is an answer, and a report that can be drawn.
    #[test]
    fn no_text_is_too_strange_for_a_report(
        at in 0..FULL.len(),
        cut in 0..40_usize,
        put in "[ -~äß\t\r\n\u{feff}\u{1f600}]{0,12}",
    ) {
        let text = format!("{}{put}{}", &FULL[..at], &FULL[(at + cut).min(FULL.len())..]);
        match reading_with(&text, &Flags::default()).finish() {
            Ok(loaded) => {
                assert!(!loaded.render_warnings(true).contains("error"), "{text}");
            }
            Err(problems) => assert!(problems.render(true).contains("error"), "{text}"),
        }
    }
}

#[test]
fn a_team_names_the_tools_of_a_server_by_what_they_begin_with() {
    let file = |pattern: &str| {
        with(&format!(
            "tools:\n  clock: {{ mcp: {{ command: [sh] }} }}\n  bare: {{ mcp: {{ command: [sh] }}, prefix: x_ }}\nteams:\n  blue:\n    keys: [{{ sha256: \"{}\" }}]\n    tools: [\"{pattern}\"]\n",
            "a".repeat(64)
        ))
    };
    for pattern in ["clock__*", "clock__now", "*", "cl*", "x_*", "x_now", "*__now"] {
        let text = file(pattern);
        assert!(loaded(&text).render_warnings(false).is_empty(), "{pattern}");
    }
    for (pattern, says) in [
        ("clock", "`clock` is many tools: they are called clock__NAME"),
        ("bare", "`bare` is many tools: they are called x_NAME"),
        ("clock__", "there is no tool `clock__`"),
        ("clok__now", "there is no tool `clok__now`"),
    ] {
        let problems =
            reading_with(&file(pattern), &Flags::default()).finish().expect_err("a mistake").to_string();
        assert!(problems.contains(says), "{problems}");
    }
    assert!(loaded(&file("y*")).render_warnings(false).contains("no tool matches `y*`"));
}

#[test]
fn a_flag_adds_a_server() {
    let flags = Flags { mcp: vec!["sh".into(), "https://tickets.example/mcp".into()], ..Flags::default() };
    let file = reading_with(&with(""), &flags).finish().expect("no mistake").file;
    assert_eq!(file.tools.keys().collect::<Vec<_>>(), ["sh", "tickets"]);
    let flags = Flags { mcp: vec![" ".into()], ..Flags::default() };
    assert!(reading_with(&with(""), &flags).finish().expect_err("a mistake").to_string().contains("--mcp"));
}

#[test]
fn a_mistake_of_a_document_stands_at_its_entry_and_the_document_is_watched() {
    let folder = tempfile::tempdir().unwrap();
    let spec = folder.path().join("shop.json");
    let text = |more: &str| {
        format!(
            "upstreams: {{ main: {{ base_url: \"http://127.0.0.1:1/v1\" }} }}\ntools:\n  shop:\n    openapi: {{ spec: {}, base_url: \"https://shop.example\" }}\n{more}",
            spec.display()
        )
    };
    std::fs::write(
        &spec,
        r#"{ "openapi": "3.0.0", "paths": { "/a": { "get": { "operationId": "look" } } } }"#,
    )
    .unwrap();
    let (loaded, _) =
        read_text("fanfold.yaml", &text(""), &|_| None, &Flags::default()).finish_with_tools().unwrap();
    assert!(loaded.watched().contains(&spec));
    let printed = loaded.print(print::Detail::Everything).unwrap();
    assert!(!printed.contains("effect:"), "an operation's method says it: {printed}");
    let refused = read_text("fanfold.yaml", &text("    only: [lok]\n"), &|_| None, &Flags::default())
        .finish_with_tools();
    let report = refused.unwrap_err().render(false);
    for said in ["fanfold.yaml:5:12", "shop.json has no operation `lok`", "did you mean `look`?"] {
        assert!(report.contains(said), "{said}: {report}");
    }
}

#[test]
fn routes_to_several_upstreams_are_checked_at_their_place() {
    let file = |routes: &str, more: &str| {
        format!(
            "upstreams:\n  a: {{ base_url: https://a.example/v1{more} }}\n  b: {{ base_url: https://b.example/v1 }}\nroutes:\n  - {{ model: '*', upstreams: {routes} }}\n"
        )
    };
    let sound = loaded(&file("[{ name: a, weight: 3 }, { name: b, weight: 1, model: m }]", ""));
    assert_eq!(sound.file.routes[0].upstreams[1].model(), Some("m"));
    assert_eq!(sound.warnings().count(), 0);
    for (routes, more, wanted) in [
        ("[a, { name: bb }]", "", "there is no upstream `bb`"),
        ("[a, { name: a }]", "", "`a` stands twice in this route"),
        ("[a, { name: b, model: '' }]", "", "`model` is empty"),
        ("[a, b]", ", api_version: '2024-10-21'", "`api_version` belongs to Azure's paths"),
        ("[a, b]", ", api_key: x, api_keys: [y]", "`api_key` and `api_keys` exclude each other"),
        ("[a, b]", ", api_keys: [y, y]", "this key stands here twice"),
        ("[a, b]", ", api_keys: [y, '']", "`api_keys` is empty"),
    ] {
        assert_eq!(messages(&file(routes, more)), [wanted], "{routes} {more}");
    }
    let lone = warnings(&file("[a, { name: b, weight: 2 }]", ""));
    assert!(lone.iter().any(|w| w.contains("a weight without a neighbour")), "{lone:?}");
    let doubted = report(&file("[a, { name: b, wieght: 2 }]", ""));
    assert!(doubted.contains("did you mean `weight`?"), "{doubted}");
    let zero = messages(&file("[a, { name: b, weight: 0 }]", ""));
    assert_eq!(zero.len(), 1, "{zero:?}");
}

#[test]
fn a_teams_key_belongs_to_an_upstream_that_is_there() {
    let with_keys = |keys: &str| with(&format!("teams: {{ blue: {{ upstream_keys: {keys} }} }}"));
    assert_eq!(messages(&with_keys("{ mian: x }")), ["there is no upstream `mian`"]);
    assert_eq!(messages(&with_keys("{ main: '' }")), ["`main` is empty"]);
    assert!(!report(&with_keys("{ mian: sk-very-secret }")).contains("sk-very-secret"));
}

#[test]
fn every_setting_tells_where_it_comes_from() {
    let text = "\
listen: 127.0.0.1:4100
upstreams:
  main:
    base_url: http://${HOST}/v1
    api_key: sk-written
tools:
  t:
    command: { argv: [/bin/x] }
    parameters: { type: object, properties: { a: { type: string } } }
";
    let env = |name: &str| (name == "HOST").then(|| "model.internal".to_owned());
    let flags =
        Flags { listen: Some("127.0.0.1:9".into()), mcp: vec!["late=/bin/y".into()], ..Flags::default() };
    let loaded = read_text("fanfold.yaml", text, &env, &flags).finish().expect("no mistakes");
    let all = loaded.effective().expect("settings");
    let of = |path: &str| {
        let found = all.iter().find(|setting| setting.path == path);
        let found = found.unwrap_or_else(|| panic!("no {path} in {all:#?}"));
        (found.value.as_str(), found.from, found.line)
    };
    use crate::config::effective::From;
    assert_eq!(of("listen"), ("127.0.0.1:9", From::Flag, None));
    assert_eq!(of("upstreams.main.base_url"), ("http://model.internal/v1", From::Environment, Some(4)));
    assert_eq!(of("limits.rounds"), ("10", From::Default, None));
    assert_eq!(of("tools.t.command.argv"), ("[\"/bin/x\"]", From::File, Some(8)));
    assert_eq!(of("tools.t.parameters").1, From::File);
    assert_eq!(of("tools.late.effect").1, From::Flag);
    assert_eq!(of("tools.t.effect").1, From::Default);
    assert!(!all.iter().any(|setting| setting.value.contains("sk-written")), "{all:#?}");
}

#[test]
fn what_cannot_be_redacted_is_told_at_its_place() {
    let told = report(&with(
        "redact:\n  members: [\"*\"]\n  patterns:\n    - fine\n    - \"(unclosed\"\n    - 'x*'",
    ));
    for (line, message) in [
        (":3:13", "`*` would be every name"),
        (":6:7", "this is not a regular expression: unclosed group"),
        (":7:7", "this pattern fits the empty text"),
    ] {
        assert!(told.contains(line) && told.contains(message), "{line} {message}: {told}");
    }
    let more = format!("redact: {{ patterns: [{}] }}", "a,".repeat(65));
    assert!(report(&with(&more)).contains("64"), "{}", report(&with(&more)));
}
