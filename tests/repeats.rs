//! Requests that come again: what a client gets the second time, and how often its tools ran.
//!
//! The lab counts the starts of each tool. `save` has effects and takes a while, `look` has none.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use http::Method;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::lab::journal::Snapshot;
use tokio::task::JoinSet;

const CONFIG: &str = "
upstreams: { main: { base_url: LAB/v1 } }
tools:
  save: { http: { method: POST, url: 'LAB/tool/sleep/save?ms=300' } }
  look: { http: { method: GET, url: 'LAB/tool/echo/look' }, effect: read }
";

/// The mark of an SDK's own repetition.
const AGAIN: (&str, &str) = ("x-stainless-retry-count", "1");

struct Scene {
    lab: Lab,
    gateway: Gateway,
}

impl Scene {
    async fn new(more: &str) -> Self {
        let lab = Lab::start().await;
        let gateway = Gateway::start(&lab, &format!("{CONFIG}{more}")).await;
        let call = |name: &str| json!({ "reply": { "text": "Let me see.", "calls": [{ "name": name, "arguments": {} }] } });
        let done = json!({ "reply": { "text": "All done." } });
        lab.script("save", json!({ "rounds": [call("save"), done] }));
        lab.script("look", json!({ "rounds": [call("look"), done] }));
        let failing = json!({ "steps": [{ "answer": { "status": 400, "body": { "error": { "message": "no more", "code": "nope" } } } }] });
        lab.script("fails", json!({ "rounds": [call("save"), failing] }));
        lab.script("stalls", json!({ "rounds": [{ "steps": ["stall"] }], "lenient": true, "repeat": true }));
        let events = json!([{ "events": [{ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "Rest." }, "finish_reason": "stop" }] }, "[DONE]"] }]);
        let late = json!({ "steps": ["stall", events[0]] });
        lab.script("late", json!({ "rounds": [call("save"), late], "lenient": true }));
        Self { lab, gateway }
    }

    /// How often a tool was started.
    fn ran(&self, tool: &str) -> u64 {
        self.lab.journal().tools.get(tool).map_or(0, |runs| runs.started)
    }

    async fn send(&self, headers: &[(&str, &str)], body: &Value) -> Got {
        let url = format!("{}/chat/completions", self.gateway.base_url());
        soon(client::send(Method::POST, &url, headers, Some(body))).await.unwrap()
    }

    /// Sends, and leaves as soon as the lab has seen something.
    async fn send_and_leave(&self, headers: &[(&str, &str)], body: &Value, seen: impl Fn(&Snapshot) -> bool) {
        let url = format!("{}/chat/completions", self.gateway.base_url());
        tokio::select! {
            got = client::send(Method::POST, &url, headers, Some(body)) => panic!("{got:?}"),
            _ = soon(self.lab.wait_until(seen)) => {}
        }
        // What repeats it may come to another thread, which knows of the leaving only when that was seen.
        self.gateway.metric_becomes("fanfold_connections", 0.0).await;
    }

    fn repetitions(&self, result: &str) -> f64 {
        self.gateway.metric(&format!("fanfold_repeated_requests_total{{result=\"{result}\"}}"))
    }

    async fn end(self) {
        self.gateway.ends_at_baseline(&self.lab).await;
    }
}

fn chat(script: &str, stream: bool) -> Value {
    json!({ "model": format!("script:{script}"), "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

fn started(tool: &'static str) -> impl Fn(&Snapshot) -> bool {
    move |seen| seen.tools.get(tool).is_some_and(|runs| runs.started > 0)
}

/// The same answer, of the request that was first.
fn is_replay(again: &Got, first: &Got) {
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.header("x-fanfold-replay-of"), first.header("x-request-id"));
    assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    for name in ["content-type", "x-fanfold-parallel", "x-fanfold-rounds", "x-should-retry"] {
        assert_eq!(again.header(name), first.header(name), "{name}");
    }
}

#[tokio::test]
async fn a_finished_request_is_replayed_with_its_status_and_headers() {
    for stream in [false, true] {
        for (script, status) in [("save", 200), ("fails", if stream { 200 } else { 424 })] {
            for (one, two) in [(("idempotency-key", "k"), ("idempotency-key", "k")), (("x-a", "b"), AGAIN)] {
                let scene = Scene::new("").await;
                let first = scene.send(&[one], &chat(script, stream)).await;
                assert_eq!(first.status, status, "{first:?}");
                assert_eq!(first.header("x-fanfold-replay-of"), "");
                is_replay(&scene.send(&[two], &chat(script, stream)).await, &first);
                is_replay(&scene.send(&[two], &chat(script, stream)).await, &first);
                assert_eq!((scene.ran("save"), scene.repetitions("replayed")), (1, 2.0));
                scene.end().await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_repetition_runs() {
    let scene = Scene::new("").await;
    let (one, two) = (chat("save", false), chat("save", false));
    let (one, two) = tokio::join!(scene.send(&[], &one), scene.send(&[], &two));
    assert!(one.body.contains("All done.") && two.body.contains("All done."));
    assert_eq!(scene.ran("save"), 2, "two first attempts");
    scene.send(&[], &chat("save", false)).await;
    scene.send(&[AGAIN], &chat("save", true)).await;
    assert_eq!(scene.ran("save"), 4, "another body");
    scene.send(&[("idempotency-key", "k")], &chat("save", false)).await;
    scene.send(&[("idempotency-key", "l")], &chat("save", false)).await;
    assert_eq!(scene.ran("save"), 6, "keys of their own");
    // Without effects nothing is kept: it is simply done again.
    for _ in 0..2 {
        scene.send(&[AGAIN], &chat("look", false)).await;
    }
    assert_eq!(scene.ran("look"), 2);
    scene.end().await;
}

#[tokio::test]
async fn a_key_with_another_body_is_refused_and_so_is_a_key_that_is_none() {
    let scene = Scene::new("").await;
    let key = ("idempotency-key", "k");
    scene.send(&[key], &chat("save", false)).await;
    let got = scene.send(&[key], &chat("save", true)).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["code"]), (422, &json!("idempotency_key_reused")));
    let long = "x".repeat(256);
    for bad in [long.as_str(), ""] {
        let got = scene.send(&[("idempotency-key", bad)], &chat("save", false)).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("idempotency-key")));
    }
    assert_eq!(scene.ran("save"), 1);
    scene.end().await;
}

#[tokio::test]
async fn a_repetition_joins_a_running_request_and_keeps_it_going_when_the_first_client_leaves() {
    for stream in [false, true] {
        let scene = Scene::new("").await;
        let body = chat("late", stream);
        let url = format!("{}/chat/completions", scene.gateway.base_url());
        let ask = |headers: Vec<(&'static str, &'static str)>| {
            let (url, body) = (url.clone(), body.clone());
            let mut asking = JoinSet::new();
            asking.spawn(async move { client::send(Method::POST, &url, &headers, Some(&body)).await });
            asking
        };
        let first = ask(vec![]);
        soon(scene.lab.wait_until(started("save"))).await;
        let mut second = ask(vec![AGAIN]);
        let joined = "fanfold_repeated_requests_total{result=\"joined\"}";
        scene.gateway.metric_becomes(joined, 1.0).await;
        drop(first);
        scene.gateway.metric_becomes("fanfold_connections", 1.0).await;
        scene.lab.release("late");
        let got = soon(second.join_next()).await.unwrap().unwrap().unwrap();
        // From the beginning, with what was said before it joined.
        assert!(got.body.contains("Let me ") && got.body.contains("Rest."), "{got:?}");
        assert!(!got.header("x-fanfold-replay-of").is_empty());
        assert_eq!(scene.ran("save"), 1);
        scene.end().await;
    }
}

#[tokio::test]
async fn a_client_that_left_while_a_tool_wrote_is_told_so_and_the_tool_runs_once() {
    for stream in [false, true] {
        for header in [None, Some(("idempotency-key", "k"))] {
            let scene = Scene::new("").await;
            let headers: Vec<_> = header.into_iter().collect();
            scene.send_and_leave(&headers, &chat("save", stream), started("save")).await;
            let headers: Vec<_> = header.into_iter().chain([AGAIN]).collect();
            let got = scene.send(&headers, &chat("save", stream)).await;
            assert_eq!((got.status.as_u16(), got.header("x-should-retry")), (424, "false"), "{got:?}");
            assert!(got.json()["error"]["message"].as_str().unwrap().contains("save"), "{got:?}");
            let again = scene.send(&headers, &chat("save", stream)).await;
            assert_eq!((again.status, again.body), (got.status, got.body));
            assert_eq!(scene.ran("save"), 1);
            let all = scene.lab.journal().tools["save"];
            assert_eq!((all.complete, all.running), (1, 0), "it finished");
            scene.end().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_left_before_any_effect_simply_asks_again() {
    for header in [None, Some(("idempotency-key", "k"))] {
        let scene = Scene::new("").await;
        let headers: Vec<_> = header.into_iter().collect();
        let asked = |seen: &Snapshot| seen.requests().count() > 0;
        scene.send_and_leave(&headers, &chat("stalls", false), asked).await;
        scene.gateway.metric_becomes("fanfold_turns_in_flight", 0.0).await;
        scene.lab.script("stalls", json!({ "rounds": [{ "reply": { "calls": [{ "name": "save", "arguments": {} }] } }, { "reply": { "text": "Now." } }] }));
        let headers: Vec<_> = header.into_iter().chain([AGAIN]).collect();
        let got = scene.send(&headers, &chat("stalls", false)).await;
        assert!(got.body.contains("Now.") && got.header("x-fanfold-replay-of").is_empty(), "{got:?}");
        assert_eq!(scene.ran("save"), 1);
        scene.end().await;
    }
}

#[tokio::test]
async fn an_answer_over_its_bound_is_one_error_and_no_second_run() {
    let scene = Scene::new("limits: { ledger_answer: 100B }").await;
    scene.send(&[], &chat("save", true)).await;
    let got = scene.send(&[AGAIN], &chat("save", true)).await;
    assert_eq!((got.status.as_u16(), got.header("x-should-retry")), (424, "false"), "{got:?}");
    assert_eq!(scene.ran("save"), 1);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joined_an_answer_that_becomes_too_large_reads_so_at_the_end_of_the_stream() {
    let scene = Scene::new("limits: { ledger_answer: 1KiB }").await;
    let call = json!({ "reply": { "text": "Let me see.", "calls": [{ "name": "save", "arguments": {} }] } });
    let long = json!({ "reply": { "text": "word ".repeat(400) } });
    scene.lab.script("talks", json!({ "rounds": [call, long] }));
    let (headers, body) = ([("idempotency-key", "k")], chat("talks", true));
    let second = async {
        soon(scene.lab.wait_until(|seen| seen.all_tools.running == 1)).await;
        scene.send(&headers, &body).await
    };
    let (first, joined) = tokio::join!(scene.send(&headers, &body), second);
    assert!(first.body.ends_with("data: [DONE]\n\n"), "{first:?}");
    assert_eq!(joined.status, 200);
    let last = joined.body.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("data: {\"error\"") && last.contains("turn_failed_after_tools"), "{joined:?}");
    assert_eq!(scene.ran("save"), 1);
    scene.end().await;
}

#[tokio::test]
async fn what_is_too_old_or_too_much_is_forgotten() {
    for more in
        ["limits: { ledger_for: 50ms }", "limits: { ledger_entries: 1 }", "limits: { ledger_bytes: 2KiB }"]
    {
        let scene = Scene::new(more).await;
        scene.send(&[("idempotency-key", "a")], &chat("save", false)).await;
        scene.send(&[("idempotency-key", "b")], &chat("save", false)).await;
        scene.send(&[("idempotency-key", "a")], &chat("save", false)).await;
        assert_eq!(scene.ran("save"), 3, "{more}");
        scene.end().await;
    }
}
