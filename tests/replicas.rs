//! Several fanfold processes that share a real Redis are one: whichever takes a request knows what the others did.
//!
//! Not among the tests of a plain `cargo test`: `tests/run replicas` installs redis-server.

mod support;

use std::time::Duration;

use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::client::{self, Got};
use support::gateway::{SOON, soon};
use support::lab::Lab;
use support::lab::script::ExpectedReply;
use support::process::Process;
use support::proxy::{chat, declared, key, reply, tool, with};
use support::redis::Redis;
use support::tls::Certificate;
use tokio::time::timeout;

/// Two replicas before one lab, with one store.
struct Bed {
    lab: Lab,
    one: Process,
    two: Process,
}

impl Bed {
    /// Starts both with this `store:` and whatever else the configuration has to say.
    async fn start(store: &Value, more: Value) -> Self {
        let lab = Lab::start().await;
        let config = config(&lab, store, more);
        let (one, two) = tokio::join!(Process::start(&config), Process::start(&config));
        Self { lab, one, two }
    }
}

/// The configuration of a replica: a tool of the operator's, `ours`, and one with effects, `write`.
fn config(lab: &Lab, store: &Value, more: Value) -> String {
    let write = with(tool(lab, "count", "write"), json!({ "effect": "write" }));
    let config = json!({
        "upstreams": { "main": { "base_url": lab.base_url() } },
        "tools": { "ours": tool(lab, "echo", "ours"), "write": write },
        "store": store,
    });
    let Value::Object(members) = with(config, more) else { panic!("an object") };
    members.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

async fn ask(process: &Process, body: &Value) -> Got {
    soon(client::chat(&process.base_url(), body)).await.expect("an answer")
}

/// What `/readyz?verbose` says of the store.
async fn store_line(process: &Process) -> String {
    let url = format!("http://{}/readyz?verbose", process.admin);
    let answer = soon(client::send(Method::GET, &url, &[], None)).await.expect("an answer");
    assert_eq!(answer.status, 200, "without its store it is ready all the same: {}", answer.body);
    answer.body.lines().find(|line| line.contains("store")).unwrap_or_default().to_owned()
}

/// Waits until a replica says so of its store.
async fn store_is(process: &Process, wanted: &str) {
    let said = async {
        while !store_line(process).await.contains(wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(SOON, said).await.is_err() {
        panic!("{:?} does not say {wanted:?}", store_line(process).await);
    }
}

/// A script whose first reply calls the operator's tool and the client's, under this id.
fn mixed(lab: &Lab, id: &str) -> Value {
    let call = |name: &str, id: &str| json!({ "name": name, "id": id, "arguments": { "city": id } });
    let ours = format!("call_ours_{id}");
    let calls = json!([call("ours", &ours), call("mine", &format!("call_mine_{id}"))]);
    let script = json!({ "rounds": [{ "reply": { "text": "Looking.", "calls": calls } }, { "reply": { "text": "done" } }] });
    lab.script(id, script);
    with(chat(id), json!({ "tools": [declared("mine")] }))
}

/// The conversation as the client goes on with it.
fn go_on(request: &Value, seen: &ExpectedReply) -> Value {
    let mut next = request.clone();
    let messages = next["messages"].as_array_mut().expect("messages");
    let call = &seen.calls[0];
    let function = json!({ "name": call.name, "arguments": call.arguments.to_string() });
    let called = json!([{ "id": call.id, "type": "function", "function": function }]);
    messages.push(json!({ "role": "assistant", "content": seen.text, "tool_calls": called }));
    messages.push(json!({ "role": "tool", "tool_call_id": call.id, "content": "theirs" }));
    next
}

/// Begins a mixed turn at one replica; the request that goes on with it.
async fn begin(lab: &Lab, process: &Process, id: &str) -> Value {
    let request = mixed(lab, id);
    let first = reply(&ask(process, &request).await);
    assert_eq!((first.finish.as_str(), first.calls.len()), ("tool_calls", 1));
    go_on(&request, &first)
}

/// Finishes it at another; how many calls the upstream saw in the history.
async fn finish(lab: &Lab, process: &Process, id: &str, next: &Value) -> usize {
    let last = reply(&ask(process, next).await);
    assert_eq!((last.text.as_str(), last.finish.as_str()), ("done", "stop"));
    let seen = lab.journal();
    let (_, asked) = seen.of_script(id).last().expect("a request");
    assert_eq!(asked.refused, None);
    let messages = asked.body["messages"].as_array().expect("messages");
    messages.iter().filter(|message| message["role"] == "tool").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_turn_begun_at_one_is_finished_at_the_other() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    for (id, from, to) in [("there", &bed.one, &bed.two), ("back", &bed.two, &bed.one)] {
        let next = begin(&bed.lab, from, id).await;
        assert_eq!(finish(&bed.lab, to, id, &next).await, 2, "both results are there");
    }
    assert_eq!(bed.lab.journal().tools["ours"].started, 2, "nothing ran twice");
    // Even if the one that began it is no more.
    let next = begin(&bed.lab, &bed.one, "killed").await;
    bed.one.signal(Signal::KILL);
    assert_eq!(finish(&bed.lab, &bed.two, "killed", &next).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_killed_and_restarted_in_between_is_missed_and_found_again() {
    let mut redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    let next = begin(&bed.lab, &bed.one, "lost").await;
    redis.kill();
    assert_eq!(
        finish(&bed.lab, &bed.two, "lost", &next).await,
        1,
        "the turn goes on with what the client has"
    );
    let next = begin(&bed.lab, &bed.one, "alone").await;
    assert_eq!(finish(&bed.lab, &bed.one, "alone", &next).await, 1);
    for process in [&bed.one, &bed.two] {
        store_is(process, "down").await;
        process.metric_becomes("fanfold_store_up", 0.0).await;
    }
    redis.run().await;
    for process in [&bed.one, &bed.two] {
        store_is(process, "store: up").await;
        process.metric_becomes("fanfold_store_up", 1.0).await;
    }
    let next = begin(&bed.lab, &bed.one, "again").await;
    assert_eq!(finish(&bed.lab, &bed.two, "again", &next).await, 2);
    let metrics = bed.one.metrics().await;
    assert!(metrics.contains("fanfold_store_errors_total{operation=\"keep\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_starts_without_its_store_and_finds_it_later() {
    let mut redis = Redis::stopped();
    let mut bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    bed.one.logged("the store is down").await;
    store_is(&bed.one, "down").await;
    let next = begin(&bed.lab, &bed.one, "before").await;
    assert_eq!(finish(&bed.lab, &bed.one, "before", &next).await, 1);
    redis.run().await;
    for process in [&mut bed.one, &mut bed.two] {
        store_is(process, "store: up").await;
        process.logged("the store is up").await;
    }
    let next = begin(&bed.lab, &bed.two, "after").await;
    assert_eq!(finish(&bed.lab, &bed.one, "after", &next).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_redis_does_not_hold_a_turn() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({ "timeout": "300ms" })), json!({})).await;
    redis.freeze();
    let next = begin(&bed.lab, &bed.one, "frozen").await;
    assert_eq!(finish(&bed.lab, &bed.two, "frozen", &next).await, 1);
    store_is(&bed.one, "no ").await;
    redis.thaw();
    for process in [&bed.one, &bed.two] {
        store_is(process, "store: up").await;
    }
    let next = begin(&bed.lab, &bed.one, "thawed").await;
    assert_eq!(finish(&bed.lab, &bed.two, "thawed", &next).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told_and_never_shown_and_the_right_one_works() {
    let redis = Redis::with_password("right-one").await;
    let bed = Bed::start(&redis.setting(json!({ "password": "wrong-one" })), json!({})).await;
    store_is(&bed.one, "refuses the user name or the password").await;
    let next = begin(&bed.lab, &bed.one, "wrong").await;
    assert_eq!(finish(&bed.lab, &bed.two, "wrong", &next).await, 1);
    assert!(!bed.one.log().contains("wrong-one") && !store_line(&bed.one).await.contains("wrong-one"));

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "right-one\n").expect("written");
    let url = redis.url().replace("redis://", "redis://:right-one@");
    let in_file = redis.setting(json!({ "password": { "file": file } }));
    let in_url = redis.setting(json!({ "redis": url }));
    for (id, store) in [("file", in_file), ("url", in_url)] {
        let bed = Bed::start(&store, json!({})).await;
        store_is(&bed.one, "store: up").await;
        let next = begin(&bed.lab, &bed.one, id).await;
        assert_eq!(finish(&bed.lab, &bed.two, id, &next).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_the_certificate_is_checked() {
    let (certificate, other) = (Certificate::new(), Certificate::new());
    let redis = Redis::with_tls(&certificate).await;
    let bed = Bed::start(&redis.setting(json!({ "ca": certificate.path() })), json!({})).await;
    let next = begin(&bed.lab, &bed.one, "tls").await;
    assert_eq!(finish(&bed.lab, &bed.two, "tls", &next).await, 2);
    for ca in [json!({ "ca": other.path() }), json!({})] {
        let bed = Bed::start(&redis.setting(ca), json!({})).await;
        store_is(&bed.one, "down").await;
        let next = begin(&bed.lab, &bed.one, "untrusted").await;
        assert_eq!(finish(&bed.lab, &bed.two, "untrusted", &next).await, 1);
    }
}

/// One team of so many requests a minute.
fn with_quota(a_minute: u32) -> Value {
    let team = json!({ "keys": [key("fk-blue")], "limits": { "requests_per_minute": a_minute } });
    json!({ "teams": { "blue": team } })
}

/// Asks for nothing much with the team's key; the status and the error's code.
async fn as_blue(process: &Process) -> (u16, String) {
    let url = format!("{}/chat/completions", process.base_url());
    let headers = [("authorization", "Bearer fk-blue")];
    let got = soon(client::send(Method::POST, &url, &headers, Some(&chat("hi")))).await.expect("an answer");
    let code = if got.status == 200 {
        String::new()
    } else {
        got.json()["error"]["code"].as_str().unwrap_or_default().into()
    };
    (got.status.as_u16(), code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_a_hundred_a_minute_is_one_quota() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), with_quota(100)).await;
    bed.lab.script("hi", json!({ "rounds": [{ "reply": { "text": "hi" } }] }));
    let since = tokio::time::Instant::now();
    let mut admitted = 0;
    for n in 0..180 {
        let (status, code) = as_blue(if n % 2 == 0 { &bed.one } else { &bed.two }).await;
        match status {
            200 => admitted += 1,
            _ => assert_eq!((status, code.as_str()), (429, "rate_limit_exceeded")),
        }
    }
    // The hundred, and what came back meanwhile. Two quotas would have admitted every one.
    let most = 100 + since.elapsed().as_millis() * 100 / 60_000 + 1;
    assert!((100..=most).contains(&admitted), "{admitted} of at most {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_each_replica_counts_for_itself_or_denies() {
    for (on_error, without) in [("local", (200, "")), ("deny", (503, "quota_unavailable"))] {
        let mut redis = Redis::start().await;
        let bed = Bed::start(&redis.setting(json!({ "on_error": on_error })), with_quota(1)).await;
        bed.lab.script("hi", json!({ "rounds": [{ "reply": { "text": "hi" } }] }));
        assert_eq!(as_blue(&bed.one).await.0, 200);
        assert_eq!(as_blue(&bed.two).await.0, 429, "it is one quota");
        redis.kill();
        let (status, code) = as_blue(&bed.two).await;
        assert_eq!((status, code.as_str()), without);
        redis.run().await;
        for process in [&bed.one, &bed.two] {
            store_is(process, "store: up").await;
        }
    }
}

/// What an SDK sends when it repeats a request.
const AGAIN: [(&str, &str); 1] = [("x-stainless-retry-count", "1")];

async fn ask_with(process: &Process, headers: &[(&str, &str)], body: &Value) -> Result<Got, String> {
    let url = format!("{}/chat/completions", process.base_url());
    client::send(Method::POST, &url, headers, Some(body)).await
}

/// A script that calls the tool with effects and then says this in its last round.
fn writing(lab: &Lab, name: &str, last: Value) -> Value {
    let call = json!([{ "name": "write", "arguments": { "city": name } }]);
    lab.script(name, json!({ "rounds": [{ "reply": { "calls": call } }, last], "lenient": true }));
    chat(name)
}

/// How often the tool with effects was started.
fn written(lab: &Lab) -> u64 {
    lab.journal().tools.get("write").map_or(0, |runs| runs.started)
}

/// A last round that waits until it is released.
fn stalled() -> Value {
    let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "Done." }, "finish_reason": "stop" }] });
    json!({ "steps": ["stall", { "events": [chunk, "[DONE]"] }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sdk_retry_at_the_other_replica_gets_the_answer_there_is() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    let request = writing(&bed.lab, "ended", json!({ "reply": { "text": "Done." } }));
    let first = ask(&bed.one, &request).await;
    let again = soon(ask_with(&bed.two, &AGAIN, &request)).await.expect("an answer");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.header("x-fanfold-replay-of"), first.header("x-request-id"));
    assert_eq!(written(&bed.lab), 1);

    // And one that is still running is waited for.
    let request = writing(&bed.lab, "running", stalled());
    let release = async {
        bed.lab.wait_until(|seen| seen.of_script("running").count() == 2).await;
        let mut again = Box::pin(ask_with(&bed.two, &AGAIN, &request));
        let early = timeout(Duration::from_millis(700), &mut again).await;
        assert!(early.is_err(), "it waits: {early:?}");
        bed.lab.release("running");
        again.await
    };
    let (first, again) = soon(async { tokio::join!(ask_with(&bed.one, &[], &request), release) }).await;
    let (first, again) = (first.expect("an answer"), again.expect("an answer"));
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(written(&bed.lab), 2, "once for each request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_a_tool_with_effects_runs_or_not_as_the_operator_says() {
    for (on_error, runs, repeated) in [("local", 1, 200), ("deny", 0, 503)] {
        let mut redis = Redis::start().await;
        let bed = Bed::start(&redis.setting(json!({ "on_error": on_error })), json!({})).await;
        let request = writing(&bed.lab, "blind", json!({ "reply": { "text": "Done." } }));
        redis.kill();
        assert_eq!(ask(&bed.one, &request).await.status, 200, "the turn has an answer");
        assert_eq!(written(&bed.lab), runs, "{on_error}");
        let again = soon(ask_with(&bed.two, &AGAIN, &request)).await.expect("an answer");
        assert_eq!(again.status, repeated, "{on_error}: {}", again.body);
        if on_error == "deny" {
            assert_eq!(again.json()["error"]["code"], "store_unavailable");
            assert_eq!(again.header("retry-after"), "5");
        }
        redis.run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sdk_retry_at_the_other_replica_gets_the_answer_after_redis_was_killed_and_came_back() {
    let mut redis = Redis::lasting().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    let ended = writing(&bed.lab, "ended", json!({ "reply": { "text": "Done." } }));
    let running = writing(&bed.lab, "running", stalled());
    let first = ask(&bed.one, &ended).await;
    let restart = async {
        bed.lab.wait_until(|seen| seen.of_script("running").count() == 2).await;
        redis.kill();
        redis.run().await;
        for process in [&bed.one, &bed.two] {
            store_is(process, "store: up").await;
        }
        let again = soon(ask_with(&bed.two, &AGAIN, &ended)).await.expect("an answer");
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.header("x-fanfold-replay-of"), first.header("x-request-id"));
        let mut again = Box::pin(ask_with(&bed.two, &AGAIN, &running));
        let early = timeout(Duration::from_millis(700), &mut again).await;
        assert!(early.is_err(), "it waits for the one that runs: {early:?}");
        bed.lab.release("running");
        soon(again).await.expect("an answer")
    };
    let (slow, again) = soon(async { tokio::join!(ask_with(&bed.one, &[], &running), restart) }).await;
    let slow = slow.expect("an answer");
    assert_eq!((again.status, &again.body), (slow.status, &slow.body));
    assert_eq!(written(&bed.lab), 2, "one for each request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_runs_no_tool_again_while_the_store_is_down_nor_when_it_comes_back_empty() {
    let mut redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({})).await;
    let request = writing(&bed.lab, "before", json!({ "reply": { "text": "Done." } }));
    let first = ask(&bed.one, &request).await;
    redis.kill();
    let later = writing(&bed.lab, "during", json!({ "reply": { "text": "Done." } }));
    let key = [("idempotency-key", "k")];
    let second = soon(ask_with(&bed.one, &key, &later)).await.expect("an answer");
    assert!(second.status == 200 && written(&bed.lab) == 2);
    let repeated = async |when: &str| {
        for (headers, body, first) in [(&AGAIN, &request, &first), (&key, &later, &second)] {
            let again = soon(ask_with(&bed.one, headers, body)).await.expect("an answer");
            assert_eq!((again.status, &again.body), (first.status, &first.body), "{when}");
            assert_eq!(again.header("x-fanfold-replay-of"), first.header("x-request-id"), "{when}");
        }
        assert_eq!(written(&bed.lab), 2, "{when}");
    };
    repeated("while it is down").await;
    redis.run().await;
    store_is(&bed.one, "store: up").await;
    repeated("when it is empty").await;
    // And it was told again: the other replica knows as well.
    store_is(&bed.two, "store: up").await;
    let again = soon(ask_with(&bed.two, &AGAIN, &request)).await.expect("an answer");
    assert_eq!((again.status, &again.body, written(&bed.lab)), (first.status, &first.body, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_without_the_store_runs_no_tool_twice() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({ "timeout": "300ms" })), json!({})).await;
    let request = writing(&bed.lab, "moment", json!({ "reply": { "text": "Done." } }));
    let first = ask(&bed.one, &request).await;
    redis.freeze();
    let back = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        redis.thaw();
    };
    let (again, ()) = soon(async { tokio::join!(ask_with(&bed.two, &AGAIN, &request), back) }).await;
    let again = again.expect("an answer");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.header("x-fanfold-replay-of"), first.header("x-request-id"));
    assert_eq!(written(&bed.lab), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_its_replica_was_killed_does_not_run_the_tool_again() {
    let redis = Redis::start().await;
    let bed = Bed::start(&redis.setting(json!({})), json!({ "limits": { "ledger_lease": "2s" } })).await;
    let request = writing(&bed.lab, "killed", stalled());
    let killing = async {
        bed.lab.wait_until(|seen| seen.of_script("killed").count() == 2).await;
        bed.one.signal(Signal::KILL);
    };
    let (cut, ()) = soon(async { tokio::join!(ask_with(&bed.one, &[], &request), killing) }).await;
    assert!(cut.is_err(), "{cut:?}");
    let patience = Duration::from_secs(90);
    let again =
        timeout(patience, ask_with(&bed.two, &AGAIN, &request)).await.expect("in time").expect("an answer");
    assert_eq!((again.status.as_u16(), again.header("x-should-retry")), (424, "false"), "{again:?}");
    assert_eq!(written(&bed.lab), 1);
}
