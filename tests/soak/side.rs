//! One process under load with a lab of its own behind it: its configurations, what the model says, what it holds.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::connection::Door;
use super::support::faults::{chunk, patient, status, text, yaml};
use super::support::gateway::{SOON, metric, soon};
use super::support::lab::Lab;
use super::support::process::{Process, folder_with, write_config};
use super::support::proxy::with;
use super::support::tls::Certificate;
use super::{BODY, LATE, STALL};

const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");
/// What a client asks for who does not read it fast, and the bytes of its text: more than buffers hold.
pub(super) const LONGEST: &str = "longest";
pub(super) const LONGEST_TEXT: usize = 300 * 4000;
/// The script that ends the tool server.
pub(super) const CRASH: &str = "crash";

/// Descriptors that may be there besides: the connection that asks for the metrics, whose end is noticed a moment
/// later than the answer's, a file that is being watched, and what a keeper of commands has.
const LOOKS: i64 = 4;
/// Pools of connections, of two upstreams and seven tools: each may have one task more for each worker (a processor
/// has one), to close what rests too long. Where nobody used a pool before there was none.
const POOLS: usize = 9;

/// A configuration that is read again under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Usual,
    /// A tool less, another timeout, another bound: what a turn begins with is not what the next one has.
    OtherTools,
    /// The tool server is another one: it is started, and the one before ended.
    OtherServer,
    /// It cannot be used.
    Broken,
}

/// A process, and what is behind it.
pub(super) struct Side {
    pub(super) lab: Lab,
    pub(super) process: Process,
    pub(super) door: Door,
    pub(super) scripts: Vec<&'static str>,
    /// The line of the configuration that makes it speak TLS.
    tls: String,
}

impl Side {
    pub(super) async fn start(certificate: Option<Certificate>) -> Self {
        let lab = Lab::start().await;
        let scripts = scripts(&lab);
        let tls = certificate.as_ref().map(Certificate::setting).unwrap_or_default();
        let folder = folder_with(&config(&lab, &tls, Variant::Usual));
        let process = Process::in_folder(folder).await;
        let door = Door { address: process.proxy, certificate: certificate.map(Arc::new) };
        Self { lab, process, door, scripts, tls }
    }

    /// Has the configuration read again, and waits until that was done.
    pub(super) async fn reload(&self, variant: Variant) {
        let before = self.process.log_length();
        write_config(self.process.folder.path(), &config(&self.lab, &self.tls, variant));
        self.process.signal(Signal::HUP);
        let told = if variant == Variant::Broken { "the one before stays" } else { "is used from now on" };
        let done = async {
            while !self.process.log_after(before).contains(told) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, done).await.unwrap_or_else(|_| panic!("{variant:?} is not read"));
    }

    /// Waits until all that was begun has ended and the tool server is up.
    pub(super) async fn drained(&self) {
        for gauge in ["fanfold_turns_in_flight", "fanfold_tool_calls_in_flight", "fanfold_connections"] {
            self.process.metric_becomes(gauge, 0.0).await;
        }
        soon(self.lab.wait_until(|seen| seen.all_tools.running == 0)).await;
        // After many crashes it is started again only after a minute.
        let up = async {
            while self.metric("fanfold_tool_servers_up{server=\"server\"}").await < 1.0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(LATE + LATE / 2, up).await.expect("the tool server comes back");
    }

    /// Waits until all that was kept for a while is gone.
    pub(super) async fn forgets(&self) {
        for gauge in ["fanfold_parked_entries", "fanfold_ledger_entries"] {
            self.process.metric_becomes(gauge, 0.0).await;
        }
    }

    pub(super) async fn metric(&self, name: &str) -> f64 {
        metric(&self.process.metrics().await, name)
    }

    /// What it holds, once that stays the same for a while.
    pub(super) async fn holds_at_rest(&self) -> Holds {
        let (mut last, mut same, begun) = (self.holds().await, 0, Instant::now());
        while same < 4 && begun.elapsed() < SOON / 4 {
            sleep(Duration::from_millis(200)).await;
            let now = self.holds().await;
            same = if now.numbers() == last.numbers() { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    async fn holds(&self) -> Holds {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
        let tasks = self.metric("fanfold_tasks").await as i64;
        let connections = i64::try_from(self.lab.journal().connections_open).expect("few");
        // A connection to the lab that rests is one descriptor and one task.
        Holds {
            tasks: tasks - connections,
            descriptors: number(self.process.descriptors()) - connections,
            children: self.process.children().len(),
            memory: self.process.resident_memory(),
        }
    }

    /// Waits until it holds hardly more than before, but for the memory.
    pub(super) async fn holds_no_more_than(&self, before: Holds) -> Holds {
        let same = async {
            while !self.holds().await.is_as(before) {
                sleep(Duration::from_millis(100)).await;
            }
        };
        let late = timeout(SOON, same).await.is_err();
        let after = self.holds_at_rest().await;
        assert!(!late && after.is_as(before), "it holds {after:?}, and {before:?} before");
        after
    }
}

/// What a process holds, its connections to the lab left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holds {
    tasks: i64,
    descriptors: i64,
    children: usize,
    pub(super) memory: usize,
}

fn number(few: usize) -> i64 {
    i64::try_from(few).expect("few")
}

impl Holds {
    const fn numbers(self) -> (i64, i64, usize) {
        (self.tasks, self.descriptors, self.children)
    }

    /// The children are the tool server and the keeper of commands, and nobody else.
    fn is_as(self, before: Self) -> bool {
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        self.children == before.children
            && self.descriptors <= before.descriptors + LOOKS
            && self.tasks <= before.tasks + number(POOLS * workers)
    }
}

fn config(lab: &Lab, tls: &str, variant: Variant) -> String {
    let label = json!({ "type": "object", "properties": { "n": {} } });
    let http = |path: &str, effect: &str| {
        let url = format!("{}/tool/{path}", lab.url());
        json!({ "parameters": label, "effect": effect, "timeout": "1s", "http": { "method": "POST", "url": url } })
    };
    let shell = |script: &str| json!({ "parameters": label, "timeout": "1s", "command": { "argv": ["/bin/sh", "-c", script] } });
    let server = |mode: &str| {
        let command = json!({ "command": ["/usr/bin/env", "python3", ROGUE, mode] });
        json!({ "mcp": command, "only": ["echo", "crash"], "effect": "read", "timeout": "2s" })
    };
    let mut config = json!({
        "upstreams": {
            "main": patient(&lab.base_url()),
            "late": with(patient(&lab.base_url()), json!({ "head_timeout": "1s", "stall_timeout": "1s" })),
        },
        "routes": [
            { "model": "script:late*", "upstreams": ["late"] },
            { "model": "*", "upstreams": ["main"] },
        ],
        "server": { "body_timeout": format!("{}ms", BODY.as_millis()), "stall_timeout": format!("{}ms", STALL.as_millis()), "drain_accept": "0s" },
        "limits": { "parked_for": "2s", "ledger_for": "2s" },
        "runs": { "keep": 50 },
        "audit": { "file": "FOLDER/audit.jsonl" },
        "tools": {
            "fine": http("echo/fine", "read"),
            "nap": http("sleep/nap?ms=30", "read"),
            "save": http("count/save", "write"),
            "fails": http("fail/fails?status=500", "idempotent"),
            "resets": http("reset/resets", "read"),
            "hangs": http("hang/hangs", "write"),
            "large": http("bytes/large?n=300000", "read"),
            "runs": shell("echo ok"),
            "forks": shell("sleep 60 & sleep 60"),
            "server": server("usual"),
        },
    });
    match variant {
        Variant::Usual => {}
        Variant::OtherTools => {
            config["tools"].as_object_mut().expect("tools").remove("large");
            config["tools"]["nap"]["timeout"] = json!("10ms");
            config["tools"]["runs"] = shell("echo other");
            config["limits"]["turns_at_once"] = json!(12);
        }
        Variant::OtherServer => config["tools"]["server"] = server("other"),
        Variant::Broken => config["routes"][1]["upstreams"] = json!(["nobody"]),
    }
    format!("{tls}{}", yaml(&config))
}

/// What the model says in each kind of conversation. A name that begins with `late` is given up soon.
fn scripts(lab: &Lab) -> Vec<&'static str> {
    let call = |name: &str, n: u64| json!({ "name": name, "arguments": { "n": n } });
    let calls = |names: &[&str]| -> Value {
        json!({ "reply": { "text": "let me see", "calls": names.iter().enumerate().map(|(n, name)| call(name, n as u64)).collect::<Value>() } })
    };
    let done = || json!({ "reply": { "text": "done" } });
    let steps = |steps: Value| json!({ "steps": steps });
    let hello = || json!({ "events": [text("Hel")] });
    let long: Vec<Value> = (0..200).map(|_| text("some words of a long answer ")).collect();
    let longest: Vec<Value> = vec![text(&"x".repeat(4000)); LONGEST_TEXT / 4000];
    let end = || json!({ "events": [chunk(json!({}), json!("stop")), "[DONE]"] });
    let all = BTreeMap::from([
        ("plain", vec![done()]),
        ("long", vec![steps(json!([{ "events": long }, end()]))]),
        (LONGEST, vec![steps(json!([{ "events": longest }, end()]))]),
        ("slow", vec![steps(json!([hello(), { "wait_ms": 200 }, hello(), { "wait_ms": 200 }, end()]))]),
        ("three", vec![calls(&["fine", "nap", "runs"]), done()]),
        ("rounds", vec![calls(&["nap"]), calls(&["fine", "server__echo"]), done()]),
        ("writes", vec![calls(&["save", "fine"]), done()]),
        ("bad tools", vec![calls(&["fails", "resets", "large", "nobody"]), done()]),
        ("hanging tools", vec![calls(&["hangs", "forks", "fine"]), done()]),
        (CRASH, vec![calls(&["server__crash", "fine"]), done()]),
        ("mixed", vec![calls(&["fine", "theirs"]), done()]),
        ("reset", vec![steps(json!(["reset"]))]),
        ("cut", vec![steps(json!([hello(), "close"]))]),
        ("cut after a write", vec![calls(&["save"]), steps(json!([hello(), "close"]))]),
        ("late: stall", vec![steps(json!([hello(), "stall"]))]),
        ("late: no head", vec![steps(json!(["stall"]))]),
        ("busy", vec![steps(status(429, json!({ "retry-after": "0.05" })))]),
        ("fails", vec![steps(status(500, json!({})))]),
        ("refuses", vec![steps(status(400, json!({})))]),
        ("nonsense", vec![steps(json!([{ "send": "data: nonsense\n\n" }]))]),
        ("large", vec![steps(json!([{ "send": "x".repeat(5_000_000) }]))]),
    ]);
    for (name, rounds) in &all {
        lab.script(name, json!({ "rounds": rounds, "repeat": true, "lenient": true }));
    }
    // These are asked for by some only: the longest costs much, and the server would do nothing but crash.
    all.into_keys().filter(|name| ![LONGEST, CRASH].contains(name)).collect()
}
