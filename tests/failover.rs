//! Several upstreams behind one route: who is asked when one fails, with which key, under which name
//! and in which form; and when an upstream is left alone.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use support::client::{self, Got};
use support::fold::{self, Folded};
use support::gateway::{Gateway, closed_port, soon};
use support::lab::Lab;

/// Two upstreams in order. So many failures would open their breakers.
const TWO: &str = "
upstreams:
  main: { base_url: LAB/v1, head_timeout: 1500ms, stall_timeout: 1500ms, breaker: { requests: 1000000 }, retries: { per_second: 10000 } }
  spare: { base_url: OTHER/v1, breaker: { requests: 1000000 }, retries: { per_second: 10000 } }
routes:
  - { model: '*', upstreams: [main, spare] }
tools:
  look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read }
";

async fn two(config: &str) -> (Lab, Lab, Gateway) {
    let (lab, other) = (Lab::start().await, Lab::start().await);
    let gateway = Gateway::start(&lab, &config.replace("OTHER", &other.url())).await;
    (lab, other, gateway)
}

fn fine() -> Value {
    json!([{ "reply": { "text": "fine" } }])
}

fn told(status: u16, headers: Value) -> Value {
    let body = json!({ "error": { "message": "as told", "type": "t", "param": null, "code": "told" } });
    json!([{ "steps": [{ "answer": { "status": status, "headers": headers, "body": body } }] }])
}

fn steps(steps: Value) -> Value {
    json!([{ "steps": steps }])
}

fn text(content: &str) -> Value {
    json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": { "role": "assistant", "content": content }, "finish_reason": null }] })
}

fn play(lab: &Lab, name: &str, rounds: Value) {
    lab.script(name, json!({ "rounds": rounds, "advance": "requests", "repeat": true, "lenient": true }));
}

async fn post(gateway: &Gateway, body: &Value, headers: &[(&str, &str)]) -> Got {
    let url = format!("{}/chat/completions", gateway.base_url());
    soon(client::send(http::Method::POST, &url, headers, Some(body))).await.unwrap()
}

fn chat(script: &str, stream: bool) -> Value {
    json!({ "model": format!("script:{script}"), "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

fn answer(got: &Got) -> String {
    match fold::answer(got) {
        Ok(Folded::Reply(reply)) => reply.text,
        Ok(Folded::Error(code)) => format!("{} {}", got.status.as_u16(), code.unwrap_or_default()),
        other => panic!("{other:?} {}", got.body),
    }
}

/// The bodies an upstream got for a script.
fn bodies(lab: &Lab, script: &str) -> Vec<Value> {
    lab.journal().of_script(script).map(|(_, request)| request.body.clone()).collect()
}

/// A name, whether the client wants a stream, and its headers.
type Way = (&'static str, bool, &'static [(&'static str, &'static str)]);

/// The three ways a client may ask: whole, streamed, and relayed without tools.
const WAYS: [Way; 4] = [
    ("whole", false, &[]),
    ("streamed", true, &[]),
    ("relayed", false, &[("x-fanfold-tools", "none")]),
    ("relayed stream", true, &[("x-fanfold-tools", "none")]),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_another_upstream_may_do_better_it_is_asked() {
    let (main, spare, gateway) = two(TWO).await;
    let rows: [(&str, Value); 13] = [
        ("reset", steps(json!(["reset"]))),
        ("closed", steps(json!(["close"]))),
        ("no head in time", steps(json!(["stall"]))),
        ("500", told(500, json!({}))),
        ("502", told(502, json!({}))),
        ("504", told(504, json!({}))),
        ("429", told(429, json!({}))),
        ("429, soon", told(429, json!({ "retry-after": "2" }))),
        ("429, much later", told(429, json!({ "retry-after": "3600" }))),
        ("503", told(503, json!({ "retry-after": "30" }))),
        ("529", told(529, json!({}))),
        (
            "HTML",
            steps(json!([{ "answer": { "headers": { "content-type": "text/html" }, "body": "<html>" } }])),
        ),
        ("empty", steps(json!([{ "answer": { "headers": { "content-length": "0" }, "body": "" } }]))),
    ];
    let cases = rows.iter().flat_map(|row| WAYS.iter().map(move |way| (row, way)));
    stream::iter(cases)
        .map(async |((name, rounds), (way, stream, headers))| {
            // An empty body is only told from a reply once a turn reads it.
            if *name == "empty" && way.starts_with("relayed") {
                return;
            }
            let name = format!("{name} {way}");
            play(&main, &name, rounds.clone());
            play(&spare, &name, fine());
            let got = post(&gateway, &chat(&name, *stream), headers).await;
            assert_eq!(answer(&got), "fine", "{name}: {}", got.body);
            assert_eq!((bodies(&main, &name).len(), bodies(&spare, &name).len()), (1, 1), "{name}");
        })
        .buffer_unordered(8)
        .collect::<Vec<()>>()
        .await;
    assert!(
        gateway.metric("fanfold_upstream_failovers_total{upstream=\"main\",reason=\"server_error\"}") >= 12.0
    );
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_request_or_the_operator_is_to_blame_for_goes_no_further() {
    let (main, spare, gateway) = two(TWO).await;
    for (name, rounds, wanted) in [
        ("400", told(400, json!({})), "400 told"),
        ("404", told(404, json!({})), "404 told"),
        ("413", told(413, json!({})), "413 told"),
        ("422", told(422, json!({})), "422 told"),
        ("401", told(401, json!({})), "502 upstream_auth_error"),
        ("403", told(403, json!({})), "502 upstream_auth_error"),
        ("garbage", steps(json!([{ "raw": "nonsense\r\n\r\n" }])), "502 upstream_protocol_error"),
    ] {
        for (way, stream, headers) in WAYS {
            let name = format!("{name} {way}");
            play(&main, &name, rounds.clone());
            play(&spare, &name, fine());
            let got = post(&gateway, &chat(&name, stream), headers).await;
            assert_eq!(answer(&got), wanted, "{name}: {}", got.body);
            assert_eq!((bodies(&main, &name).len(), bodies(&spare, &name).len()), (1, 0), "{name}");
        }
    }
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_fail_the_last_one_is_told_and_the_tries_are_counted() {
    let (main, spare, gateway) = two(TWO).await;
    for (name, rounds, wanted, asked, retry_after) in [
        ("500", told(500, json!({})), "502 upstream_error", (1, 1), ""),
        ("reset", steps(json!(["reset"])), "502 upstream_reset", (1, 1), ""),
        ("429, soon", told(429, json!({ "retry-after": "0.1" })), "429 told", (2, 1), "1"),
        ("429, later", told(429, json!({ "retry-after": "3600" })), "429 told", (1, 1), "60"),
    ] {
        for (way, stream, headers) in WAYS {
            let name = format!("{name} {way}");
            play(&main, &name, rounds.clone());
            play(&spare, &name, rounds.clone());
            let got = post(&gateway, &chat(&name, stream), headers).await;
            assert_eq!(answer(&got), wanted, "{name}: {}", got.body);
            assert_eq!(got.header("retry-after"), retry_after, "{name}");
            assert_eq!((bodies(&main, &name).len(), bodies(&spare, &name).len()), asked, "{name}");
        }
    }
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_something_was_shown_no_other_upstream_is_asked() {
    let (main, spare, gateway) = two(TWO).await;
    for (name, tail) in [("cut", json!("close")), ("stall", json!("stall")), ("reset", json!("reset"))] {
        for (way, stream, headers) in WAYS.into_iter().filter(|way| way.1) {
            let name = format!("{name} {way}");
            play(&main, &name, steps(json!([{ "events": [text("Hel")] }, { "wait_ms": 50 }, tail])));
            play(&spare, &name, fine());
            let got = post(&gateway, &chat(&name, stream), headers).await;
            assert!(got.status == 200 && got.body.contains("Hel"), "{name}: {}", got.body);
            assert!(matches!(fold::answer(&got), Ok(Folded::Error(_))), "{name}: {}", got.body);
            assert_eq!((bodies(&main, &name).len(), bodies(&spare, &name).len()), (1, 0), "{name}");
        }
    }
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_round_may_go_elsewhere_and_the_turn_stays_there() {
    let (main, spare, gateway) = two(TWO).await;
    let call = json!({ "reply": { "calls": [{ "name": "look", "arguments": {} }] } });
    let busy = told(503, json!({}))[0].clone();
    play(&main, "moves", json!([call, busy]));
    play(&spare, "moves", json!([call, { "reply": { "text": "fine" } }]));
    let got = post(&gateway, &chat("moves", false), &[]).await;
    assert_eq!(answer(&got), "fine", "{}", got.body);
    let (at_main, at_spare) = (bodies(&main, "moves"), bodies(&spare, "moves"));
    assert_eq!((at_main.len(), at_spare.len()), (2, 2));
    assert_eq!(at_spare[0]["messages"].as_array().unwrap().len(), 3, "the first round's results go along");
    assert_eq!(at_spare[1]["messages"].as_array().unwrap().len(), 5);
    assert_eq!(main.journal().tools.values().map(|runs| runs.started).sum::<u64>(), 2);
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_left_alone_and_comes_back() {
    let lab = Lab::start().await;
    play(&lab, "x", fine());
    let (closed, _held) = closed_port();
    let config = format!(
        "upstreams:
  down: {{ base_url: 'http://{closed}/v1', breaker: {{ rest: 1s }} }}
  up: {{ base_url: LAB/v1 }}
routes:
  - {{ model: 'script:x', upstreams: [down, up] }}
  - {{ model: '*', upstreams: [down] }}
"
    );
    let gateway = Gateway::start(&lab, &config).await;
    for _ in 0..6 {
        let got = post(&gateway, &chat("x", false), &[]).await;
        assert_eq!(answer(&got), "fine", "{}", got.body);
    }
    let state = "fanfold_upstream_state{upstream=\"down\"}";
    assert_eq!(gateway.metric(state).to_string(), "2");
    let got = post(&gateway, &json!({ "model": "y", "messages": [] }), &[]).await;
    assert_eq!((answer(&got).as_str(), got.header("retry-after")), ("503 upstream_unavailable", "1"));
    let admin = format!("http://{}/readyz?verbose", gateway.app.admin_address);
    let ready = client::send(http::Method::GET, &admin, &[], None).await.unwrap();
    assert!(ready.status == 200 && ready.body.contains("down failed too often"), "{}", ready.body);
    assert!(ready.body.contains("upstreams: up is asked"), "{}", ready.body);
    // It is up again, at the same place.
    let back = Lab::on(closed.port()).await.unwrap();
    play(&back, "y", fine());
    let recovers = async {
        while answer(&post(&gateway, &chat("y", false), &[]).await) != "fine" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(recovers).await;
    gateway.metric_becomes(state, 0.0).await;
    assert!(gateway.metric("fanfold_upstream_shed_total{upstream=\"down\"}") >= 2.0);
    gateway.ends_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_opens_the_breaker_and_a_reload_keeps_it_open() {
    let lab = Lab::start().await;
    play(&lab, "storm", told(500, json!({})));
    play(&lab, "own", told(422, json!({})));
    let config = |rest: &str, extra: &str| {
        format!("upstreams: {{ main: {{ base_url: LAB/v1, breaker: {{ rest: {rest} }} }} }}\n{extra}")
    };
    let gateway = Gateway::start(&lab, &config("50s", "")).await;
    for _ in 0..40 {
        assert_eq!(answer(&post(&gateway, &chat("own", false), &[]).await), "422 told");
    }
    let state = "fanfold_upstream_state{upstream=\"main\"}";
    assert_eq!(gateway.metric(state).to_string(), "0", "a client's own faults do not count");
    let stormed = async {
        while answer(&post(&gateway, &chat("storm", false), &[]).await) != "503 upstream_unavailable" {}
    };
    soon(stormed).await;
    let asked = bodies(&lab, "storm").len();
    gateway.reload(&lab, &config("50s", "log: { content: true }"));
    assert_eq!(answer(&post(&gateway, &chat("own", true), &[]).await), "503 upstream_unavailable");
    assert_eq!(bodies(&lab, "storm").len(), asked, "nothing more was asked");
    gateway.reload(&lab, &config("40s", ""));
    assert_eq!(
        answer(&post(&gateway, &chat("own", false), &[]).await),
        "422 told",
        "other settings, other memory"
    );
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_budget_nothing_is_asked_again() {
    let (main, spare, gateway) = two(&TWO.replace("per_second: 10000", "per_second: 0, percent: 0")).await;
    play(&main, "x", told(500, json!({})));
    play(&spare, "x", fine());
    for (way, stream, headers) in WAYS {
        let got = post(&gateway, &chat("x", stream), headers).await;
        assert_eq!(answer(&got), "502 upstream_error", "{way}: {}", got.body);
    }
    assert_eq!((bodies(&main, "x").len(), bodies(&spare, "x").len()), (4, 0));
    assert_eq!(
        gateway.metric("fanfold_upstream_retries_withheld_total{upstream=\"spare\"}").to_string(),
        "4"
    );
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_spread_and_one_that_is_refused_rests() {
    let lab = Lab::start().await;
    let config = "upstreams: { main: { base_url: LAB/v1, api_keys: [k-a, k-b, k-c] } }\n";
    let gateway = Gateway::start(&lab, config).await;
    let keys = |script: &str| -> Vec<String> {
        lab.journal().of_script(script).map(|(_, request)| request.headers["authorization"].clone()).collect()
    };
    play(&lab, "spread", fine());
    for (_, stream, headers) in &WAYS[..3] {
        post(&gateway, &chat("spread", *stream), headers).await;
    }
    assert_eq!(keys("spread"), ["Bearer k-a", "Bearer k-b", "Bearer k-c"]);
    for (status, script) in [(401, "refused"), (429, "busy")] {
        let no = told(status, json!({ "retry-after": "60" }))[0].clone();
        play(&lab, script, json!([no, { "reply": { "text": "fine" } }]));
        let got = post(&gateway, &chat(script, false), &[]).await;
        assert_eq!(answer(&got), "fine", "{}", got.body);
        assert_eq!(keys(script).len(), 2);
    }
    assert_eq!(keys("refused"), ["Bearer k-a", "Bearer k-b"]);
    assert_eq!(keys("busy"), ["Bearer k-c", "Bearer k-b"]);
    play(&lab, "left", fine());
    for _ in 0..3 {
        post(&gateway, &chat("left", false), &[]).await;
    }
    assert_eq!(keys("left"), ["Bearer k-b"; 3]);
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_may_have_its_own_key_at_an_upstream() {
    let lab = Lab::start().await;
    play(&lab, "x", fine());
    let hash = |key: &str| -> String {
        fanfold::team::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let config = format!(
        "upstreams: {{ main: {{ base_url: LAB/v1, api_key: k-all }} }}
teams:
  blue: {{ keys: [{{ sha256: '{}' }}], upstream_keys: {{ main: k-blue }} }}
  red: {{ keys: [{{ sha256: '{}' }}] }}
",
        hash("blue"),
        hash("red")
    );
    let gateway = Gateway::start(&lab, &config).await;
    for team in ["blue", "red"] {
        for path in ["/chat/completions", "/embeddings"] {
            let url = format!("{}{path}", gateway.base_url());
            let key = format!("Bearer {team}");
            let headers = [("authorization", key.as_str())];
            client::send(http::Method::POST, &url, &headers, Some(&chat("x", false))).await.unwrap();
        }
    }
    let seen = lab.journal();
    let keys: Vec<&str> =
        seen.requests().map(|(_, request)| request.headers["authorization"].as_str()).collect();
    assert_eq!(keys, ["Bearer k-blue", "Bearer k-blue", "Bearer k-all", "Bearer k-all"]);
    gateway.ends_at_baseline(&lab).await;
}

/// A route under another name, over two upstreams with different habits.
const ALIAS: &str = "
upstreams:
  main: { base_url: LAB/v1, api_key: k-main }
  spare: { base_url: OTHER/v1, api_key: k-spare, kind: mistral, mode: whole }
routes:
  - { model: fast, upstreams: [{ name: main, model: 'script:one' }, { name: spare, model: 'script:two' }] }
  - { model: 'script:*', upstreams: [main] }
tools:
  look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read }
";

#[tokio::test(flavor = "multi_thread")]
async fn each_upstream_gets_its_own_name_key_and_form() {
    let (main, spare, gateway) = two(ALIAS).await;
    play(&main, "one", told(500, json!({})));
    play(&spare, "two", fine());
    let history = json!([
        { "role": "user", "content": "hi" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "call_long_one", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "call_long_one", "content": "1" },
        { "role": "user", "content": "and?" },
    ]);
    for (way, stream, headers) in WAYS {
        let body = json!({ "model": "fast", "stream": stream, "messages": history });
        let got = post(&gateway, &body, headers).await;
        assert_eq!(answer(&got), "fine", "{way}: {}", got.body);
    }
    for sent in bodies(&main, "one") {
        assert_eq!(sent["messages"], history);
        assert_eq!(sent["model"], "script:one");
    }
    let (sent, seen) = (bodies(&spare, "two"), spare.journal());
    assert_eq!(sent.len(), 4);
    for sent in &sent {
        let id = sent["messages"][1]["tool_calls"][0]["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
        assert_eq!(sent["messages"][2]["tool_call_id"], id);
        assert_eq!(sent["messages"][3]["role"], "assistant", "no user right after results");
        assert_eq!(sent["messages"][4], history[3]);
    }
    assert_ne!(sent[1]["stream"], true, "a turn asks this upstream for the whole answer");
    for (_, request) in seen.requests() {
        assert_eq!(request.headers["authorization"], "Bearer k-spare");
    }
    gateway.ends_at_baseline(&spare).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_models_has_what_routes_know_and_survives_an_upstream_that_is_down() {
    let lab = Lab::start().await;
    play(&lab, "a", fine());
    let (closed, _held) = closed_port();
    let config = format!(
        "upstreams: {{ main: {{ base_url: LAB/v1 }}, down: {{ base_url: 'http://{closed}/v1' }} }}
routes:
  - {{ model: fast, upstreams: [main, down], upstream_model: 'script:a' }}
  - {{ model: 'script:*', upstreams: [down, main] }}
"
    );
    let gateway = Gateway::start(&lab, &config).await;
    let url = format!("{}/models", gateway.base_url());
    let got = soon(client::send(http::Method::GET, &url, &[], None)).await.unwrap();
    let body = got.json();
    let ids: Vec<&str> = body["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["fast", "script:a"], "{}", got.body);
    // One of them is described by its upstream, under its name there.
    let got = soon(client::send(http::Method::GET, &format!("{url}/fast"), &[], None)).await.unwrap();
    assert_eq!(got.json()["path"], "/v1/models/script%3Aa", "{}", got.body);
    gateway.ends_at_baseline(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_path_has_the_models_name_at_its_upstream() {
    let (main, spare, gateway) = two(ALIAS).await;
    let url = format!("{}/embeddings?x=1", gateway.base_url());
    let body = json!({ "model": "fast", "n": 1, "input": "x" });
    let got = soon(client::send(http::Method::POST, &url, &[], Some(&body))).await.unwrap();
    assert_eq!(got.json()["body"], json!({ "model": "script:one", "n": 1, "input": "x" }));
    assert_eq!(got.json()["path"], "/v1/embeddings?x=1");
    assert_eq!(spare.journal().requests().count(), 0);
    gateway.ends_at_baseline(&main).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relayed_refusal_keeps_the_limits_the_upstream_tells() {
    let lab = Lab::start().await;
    let gateway = Gateway::start(&lab, "upstreams: { main: { base_url: LAB/v1 } }\n").await;
    let headers = json!({ "retry-after": "3600", "x-ratelimit-limit-requests": "60", "x-ratelimit-reset-requests": "1h" });
    play(&lab, "x", told(429, headers));
    for stream in [false, true] {
        let got = post(&gateway, &chat("x", stream), &[]).await;
        assert_eq!(answer(&got), "429 told");
        assert_eq!(got.header("x-ratelimit-limit-requests"), "60");
        assert_eq!((got.header("x-ratelimit-reset-requests"), got.header("retry-after")), ("1h", "60"));
    }
    gateway.ends_at_baseline(&lab).await;
}
