//! Clients that mean harm: what they can make the proxy hold is bounded, floods are cut off, and good
//! clients are served meanwhile. How much longer those wait is measured by `tests/bench`, not here.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::client;
use support::faults::text;
use support::gateway::{metric, soon};
use support::hostile::{Attack, flood};
use support::lab::Lab;
use support::process::Process;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Memory a connection may cost whose head does not come, in bytes. Buffers of the system aside.
const HALF_OPEN: usize = 24 * 1024;
/// Memory a client may cost that reads nothing: half a megabyte waits for it at most, and as much again
/// is the turn and its connection to the upstream.
const READS_NOTHING: usize = 1 << 20;
/// What an attack may cost beside its clients.
const FIXED: usize = 48 << 20;

async fn start(lab: &Lab) -> Process {
    lab.script("fine", json!({ "rounds": [{ "reply": { "text": "fine" } }], "repeat": true }));
    // Two megabytes, said in one go.
    let long = format!("data: {}\n\n", text(&"x".repeat(4000))).repeat(500);
    lab.script(
        "long",
        json!({ "rounds": [{ "steps": [{ "send": long }] }], "repeat": true, "lenient": true }),
    );
    let config = format!(
        "upstreams: {{ main: {{ base_url: '{}/v1' }} }}
tools: {{ look: {{ http: {{ method: GET, url: '{}/tool/echo/look' }}, effect: read }} }}
",
        lab.url(),
        lab.url()
    );
    Process::start(&config).await
}

fn asks_for(script: &str, stream: bool) -> Value {
    json!({ "model": format!("script:{script}"), "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

/// Some requests of a good client, all of which are answered.
async fn good_clients_are_served(process: &Process) {
    for stream in [false, true] {
        for _ in 0..2 {
            let got = soon(client::chat(&process.base_url(), &asks_for("fine", stream))).await.unwrap();
            assert!(got.status == 200 && got.body.contains("fine"), "{}", got.body);
        }
    }
}

async fn connections(process: &Process) -> f64 {
    metric(&process.metrics().await, "fanfold_connections")
}

async fn ends(process: &Process, attack: JoinSet<()>) {
    let mut attack = attack;
    soon(attack.shutdown()).await;
    for gauge in ["fanfold_turns_in_flight", "fanfold_connections"] {
        process.metric_becomes(gauge, 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_cost_little_and_keep_nobody_out() {
    let lab = Lab::start().await;
    let process = start(&lab).await;
    good_clients_are_served(&process).await;
    let before = process.resident_memory();
    let clients = 2000;
    let attack = Attack::HalfOpen.begin(process.proxy, clients, "").await;
    let many = async { while connections(&process).await < clients as f64 * 0.9 {} };
    soon(many).await;
    good_clients_are_served(&process).await;
    let cost = process.resident_memory().saturating_sub(before);
    assert!(cost <= FIXED / 4 + clients * HALF_OPEN, "{cost} bytes for {clients} connections");
    ends(&process, attack).await;
    good_clients_are_served(&process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_cost_what_is_written_down_and_no_more() {
    let lab = Lab::start().await;
    let process = start(&lab).await;
    good_clients_are_served(&process).await;
    let before = process.resident_memory();
    let clients = 100;
    let body = asks_for("long", true).to_string();
    let attack = Attack::ReadsNothing.begin(process.proxy, clients, &body).await;
    process.metric_becomes("fanfold_turns_in_flight", clients as f64).await;
    good_clients_are_served(&process).await;
    let cost = process.peak_memory().saturating_sub(before);
    assert!(cost <= FIXED + clients * READS_NOTHING, "{cost} bytes for {clients} clients");
    ends(&process, attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_over_http2_are_cut_off_and_cost_little() {
    let lab = Lab::start().await;
    let process = start(&lab).await;
    good_clients_are_served(&process).await;
    for attack in [Attack::RapidReset, Attack::Continuation, Attack::Pings, Attack::Settings] {
        let taken = soon(flood(attack, process.proxy)).await;
        assert!(taken < 8 << 20, "{}: {taken} bytes before it was cut off", attack.name());
    }
    let before = process.resident_memory();
    for attack in
        Attack::ALL.into_iter().filter(|attack| !matches!(attack, Attack::HalfOpen | Attack::ReadsNothing))
    {
        let clients = attack.begin(process.proxy, 3, "").await;
        let going = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            good_clients_are_served(&process).await;
        };
        timeout(Duration::from_secs(60), going).await.unwrap_or_else(|_| panic!("{}", attack.name()));
        ends(&process, clients).await;
    }
    let cost = process.peak_memory().saturating_sub(before);
    assert!(cost <= FIXED, "{cost} bytes");
    // Whoever floods does not write the log as well.
    let log = process.log();
    assert!(!log.contains("h2::"), "{log}");
}
