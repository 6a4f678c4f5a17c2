//! A client that leaves: how soon its upstream sees it, and what goes on after it.
//!
//! Each case is played over every transport, with and without an unread byte behind the request.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::faults::chat;
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::lab::journal::{How, Snapshot, What};
use support::tls::Certificate;
use support::ways::{Client, WAYS, Way};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The most that may pass between a client's leaving and the end of its upstream's connection, on a
/// machine that has other things to do.
const LATEST: Duration = Duration::from_secs(2);

const CONFIG: &str = "
upstreams: { main: { base_url: LAB/v1 } }
tools:
  look:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: GET, url: 'LAB/tool/hang/{label}' }
    effect: read
  only:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: GET, url: 'LAB/tool/hang/{label}' }
    effect: read
    at_once: 1
  glance:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: GET, url: 'LAB/tool/echo/{label}' }
    effect: read
  save:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: POST, url: 'LAB/tool/sleep/{label}?ms=400' }
    effect: write
";

/// One proxy on a plain listener and one on TLS, before one lab.
struct Both {
    lab: Lab,
    plain: Gateway,
    tls: Gateway,
    certificate: Certificate,
}

impl Both {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let certificate = Certificate::new();
        let config = format!("{}{CONFIG}", certificate.setting());
        let (plain, tls) = (Gateway::start(&lab, CONFIG).await, Gateway::start(&lab, &config).await);
        Self { lab, plain, tls, certificate }
    }

    const fn gateway(&self, way: Way) -> &Gateway {
        if way.is_tls() { &self.tls } else { &self.plain }
    }

    async fn ask(&self, way: Way, script: &str, headers: &[(&str, &str)]) -> Client {
        let address = self.gateway(way).app.proxy_address;
        way.ask(address, &self.certificate, headers, &chat(script, true)).await
    }

    /// Everybody is gone and nothing is left.
    async fn end(self) {
        self.plain.ends_idle().await;
        self.tls.ends_at_baseline(&self.lab).await;
    }
}

/// Plays a case over every way: `begun` says when the client may leave, `over` when everything that
/// has to end has ended. Prints how long that took.
#[expect(clippy::print_stdout, reason = "the times are worth reading")]
async fn each_way(
    case: &str,
    rounds: impl Fn(&str) -> Value,
    headers: &[(&str, &str)],
    first: Option<&str>,
    begun: impl Fn(&Snapshot, &str) -> bool,
    over: impl Fn(&Snapshot, &str) -> bool,
    questions: usize,
) -> Both {
    let both = Both::start().await;
    for way in WAYS {
        let script = format!("{case}-{way:?}");
        both.lab.script(&script, json!({ "rounds": rounds(&script) }));
        let mut client = both.ask(way, &script, headers).await;
        soon(both.lab.wait_until(|seen| begun(seen, &script))).await;
        if let Some(text) = first {
            client.until(text).await;
        }
        let left = Instant::now();
        let rest = client.leave(way);
        let ended = tokio::time::timeout(LATEST, both.lab.wait_until(|seen| over(seen, &script))).await;
        println!("{case}, {way:?}: over {:?} after the client left", left.elapsed());
        assert!(ended.is_ok(), "{case}, {way:?}: the upstream does not see that the client left");
        let gateway = both.gateway(way);
        gateway.metric_becomes("fanfold_turns_in_flight", 0.0).await;
        assert_eq!(both.lab.journal().of_script(&script).count(), questions, "{case}, {way:?}");
        drop(rest);
    }
    let count = |gateway: &Gateway| gateway.metric("fanfold_client_disconnects_total");
    assert_eq!((count(&both.plain), count(&both.tls)), (5.0, 4.0), "{case}: disconnects are counted");
    both
}

/// The script's last answer was left by the proxy.
fn answer_left(seen: &Snapshot, script: &str) -> bool {
    seen.of_script(script).last().and_then(|(entry, _)| seen.how(entry.n)) == Some(How::PeerLeft)
}

/// How the runs of a tool ended.
fn ends_of(seen: &Snapshot, label: &str) -> Vec<How> {
    let ends = seen.entries.iter().filter_map(|entry| match &entry.what {
        What::ToolEnded { tool, how, .. } if tool == label => Some(*how),
        What::ToolEnded { .. }
        | What::ToolStarted { .. }
        | What::Opened
        | What::Closed { .. }
        | What::Request(_)
        | What::Answered { .. } => None,
    });
    ends.collect()
}

fn runs(seen: &Snapshot, label: &str) -> u64 {
    seen.tools.get(label).map_or(0, |runs| runs.started)
}

fn call(tool: &str, label: &str) -> Value {
    json!({ "reply": { "text": "one moment", "calls": [{ "name": tool, "arguments": { "label": label } }] } })
}

fn asked(seen: &Snapshot, script: &str) -> bool {
    seen.of_script(script).count() == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_byte_of_a_turn() {
    let rounds = |_: &str| json!([{ "steps": ["stall"] }]);
    each_way("turn-unanswered", rounds, &[], None, asked, answer_left, 1).await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_byte_of_a_relayed_chat() {
    let rounds = |_: &str| json!([{ "steps": ["stall"] }]);
    let none = &[("x-fanfold-tools", "none")];
    each_way("relay-unanswered", rounds, none, None, asked, answer_left, 1).await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_rounds() {
    let rounds = |script: &str| json!([call("glance", script), { "steps": ["stall"] }]);
    let again = |seen: &Snapshot, script: &str| seen.of_script(script).count() == 2;
    let both = each_way("next-round", rounds, &[], None, again, answer_left, 2).await;
    for way in WAYS {
        assert_eq!(runs(&both.lab.journal(), &format!("next-round-{way:?}")), 1, "{way:?}");
    }
    both.end().await;
}

fn begun_answer() -> Value {
    let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "Hel" }, "finish_reason": null }] });
    json!([{ "steps": [{ "events": [chunk] }, "stall"] }])
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_stream() {
    each_way("turn-streaming", |_| begun_answer(), &[], Some("Hel"), asked, answer_left, 1).await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_a_relayed_stream() {
    let none = &[("x-fanfold-tools", "none")];
    each_way("relay-streaming", |_| begun_answer(), none, Some("Hel"), asked, answer_left, 1)
        .await
        .end()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_tool_that_reads_runs() {
    let rounds = |script: &str| json!([call("look", script), { "reply": { "text": "never" } }]);
    let running = |seen: &Snapshot, script: &str| runs(seen, script) == 1;
    let stopped = |seen: &Snapshot, script: &str| ends_of(seen, script) == [How::PeerLeft];
    each_way("read-tool", rounds, &[], None, running, stopped, 1).await.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_tool_with_effects_runs_which_then_finishes_once() {
    let rounds = |script: &str| json!([call("save", script), { "reply": { "text": "never" } }]);
    let running = |seen: &Snapshot, script: &str| runs(seen, script) == 1;
    let finished = |seen: &Snapshot, script: &str| ends_of(seen, script) == [How::Complete];
    let both = each_way("write-tool", rounds, &[], None, running, finished, 1).await;
    for gateway in [&both.plain, &both.tls] {
        let ok = gateway.metric("gen_ai_execute_tool_duration_seconds_count{tool=\"save\",outcome=\"ok\"}");
        assert!(ok > 2.0, "the outcome is counted: {ok}");
    }
    for way in WAYS {
        assert_eq!(runs(&both.lab.journal(), &format!("write-tool-{way:?}")), 1, "{way:?}");
    }
    both.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_call_waits_for_a_slot() {
    let both = Both::start().await;
    let mut holders = Vec::new();
    for way in [Way::Plain, Way::Tls] {
        let script = format!("holder-{way:?}");
        both.lab.script(&script, json!({ "rounds": [call("only", &script)] }));
        holders.push((way, both.ask(way, &script, &[]).await));
        soon(both.lab.wait_until(|seen| runs(seen, &script) == 1)).await;
    }
    for way in WAYS {
        let script = format!("waiting-{way:?}");
        both.lab
            .script(&script, json!({ "rounds": [call("only", &script), { "reply": { "text": "never" } }] }));
        let mut client = both.ask(way, &script, &[]).await;
        client.until("one moment").await;
        soon(both.lab.wait_until(|seen| asked(seen, &script))).await;
        both.gateway(way).metric_becomes("fanfold_turns_in_flight", 2.0).await;
        let left = Instant::now();
        let rest = client.leave(way);
        both.gateway(way).metric_becomes("fanfold_turns_in_flight", 1.0).await;
        println!("waiting for a slot, {way:?}: over {:?} after the client left", left.elapsed());
        drop(rest);
    }
    for (way, holder) in holders {
        holder.leave(way);
    }
    for gateway in [&both.plain, &both.tls] {
        gateway.metric_becomes("fanfold_turns_in_flight", 0.0).await;
    }
    let seen = both.lab.journal();
    for way in WAYS {
        let script = format!("waiting-{way:?}");
        assert_eq!(
            (runs(&seen, &script), seen.of_script(&script).count()),
            (0, 1),
            "{way:?}: it never starts"
        );
    }
    both.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_its_body_is_on_the_way() {
    let both = Both::start().await;
    let mut stream = TcpStream::connect(both.plain.app.proxy_address).await.unwrap();
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{\"model\":";
    stream.write_all(head.as_bytes()).await.unwrap();
    both.plain.metric_becomes("fanfold_connections", 1.0).await;
    drop(stream);
    both.plain.metric_becomes("fanfold_connections", 0.0).await;
    assert_eq!(both.lab.journal().requests().count(), 0);
    both.end().await;
}
