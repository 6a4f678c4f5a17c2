//! A client that leaves while its call waits for others', or before it has asked to the end.
//!
//! Where else it may leave, over which transport and how, is in the fault matrix.

mod support;

use serde_json::{Value, json};
use support::faults::chat;
use support::gateway::{Gateway, soon};
use support::lab::Lab;
use support::lab::journal::Snapshot;
use support::tls::Certificate;
use support::ways::{Client, WAYS, Way};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

const CONFIG: &str = "
upstreams: { main: { base_url: LAB/v1 } }
tools:
  only:
    parameters: { type: object, properties: { label: { type: string } }, required: [label], additionalProperties: false }
    http: { method: GET, url: 'LAB/tool/hang/{label}' }
    effect: read
    at_once: 1
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

    async fn ask(&self, way: Way, script: &str) -> Client {
        let address = self.gateway(way).app.proxy_address;
        way.ask(address, &self.certificate, &[], &chat(script, true)).await
    }

    /// Everybody is gone and nothing is left.
    async fn end(self) {
        self.plain.ends_idle().await;
        self.tls.ends_at_baseline(&self.lab).await;
    }
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
async fn while_its_call_waits_for_a_slot() {
    let both = Both::start().await;
    let mut holders = Vec::new();
    for way in [Way::Plain, Way::Tls] {
        let script = format!("holder-{way:?}");
        both.lab.script(&script, json!({ "rounds": [call("only", &script)] }));
        holders.push((way, both.ask(way, &script).await));
        soon(both.lab.wait_until(|seen| runs(seen, &script) == 1)).await;
    }
    for way in WAYS {
        let script = format!("waiting-{way:?}");
        both.lab
            .script(&script, json!({ "rounds": [call("only", &script), { "reply": { "text": "never" } }] }));
        let mut client = both.ask(way, &script).await;
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
