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
use support::proxy::{chat, declared, reply, tool, with};
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
