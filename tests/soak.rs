//! A process under load with everything going wrong now and then, and nothing of it left afterwards.
//!
//! Runs for some seconds among the other tests, and for as long as one likes by itself:
//! `FANFOLD_SOAK=1800 cargo test --test soak -- --nocapture` (seconds). From two minutes on it also
//! holds the memory to a slope. `FANFOLD_SEED` repeats the choices of a run.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::client;
use support::faults::{chunk, status, text};
use support::gateway::metric;
use support::lab::Lab;
use support::process::{Process, folder_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Clients at once.
const CLIENTS: u64 = 16;
/// How long it runs among the other tests.
const SHORT: Duration = Duration::from_secs(12);
/// A request that takes longer than this has failed: the proxy's own limits are far below.
const LATE: Duration = Duration::from_secs(60);
/// Memory that may be left over, and that may be added in a minute of the second half, in bytes.
const LEFT_OVER: usize = 48 << 20;
const SLOPE: f64 = 1.5 * 1024.0 * 1024.0;
/// Descriptors and tasks beside those of an idle process: connections kept to upstreams and tools.
const KEPT: usize = 48;

const ROGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rogue.py");

fn config(lab: &Lab) -> String {
    let label = json!({ "type": "object", "properties": { "n": {} } });
    let http = |path: &str, effect: &str| {
        let url = format!("{}/tool/{path}", lab.url());
        json!({ "parameters": label, "effect": effect, "timeout": "1s", "http": { "method": "POST", "url": url } })
    };
    let shell = |script: &str| json!({ "parameters": label, "timeout": "1s", "command": { "argv": ["/bin/sh", "-c", script] } });
    let tools = json!({
        "fine": http("echo/fine", "read"),
        "nap": http("sleep/nap?ms=30", "read"),
        "save": http("count/save", "write"),
        "fails": http("fail/fails?status=500", "idempotent"),
        "resets": http("reset/resets", "read"),
        "hangs": http("hang/hangs", "write"),
        "large": http("bytes/large?n=300000", "read"),
        "runs": shell("echo ok"),
        "forks": shell("sleep 60 & sleep 60"),
        "server": { "mcp": { "command": ["/usr/bin/env", "python3", ROGUE] }, "only": ["echo", "crash"], "effect": "read", "timeout": "2s" },
    });
    let breaker = "breaker: { requests: 1000000, connects: 1000000 }, retries: { per_second: 10000 }";
    format!(
        "upstreams:
  main: {{ base_url: '{0}/v1', {breaker} }}
  late: {{ base_url: '{0}/v1', head_timeout: 1s, stall_timeout: 1s, {breaker} }}
routes:
  - {{ model: 'script:late*', upstreams: [late] }}
  - {{ model: '*', upstreams: [main] }}
limits: {{ parked_for: 3s, ledger_for: 3s }}
runs: {{ keep: 50 }}
audit: {{ file: FOLDER/audit.jsonl }}
tools: {tools}
",
        lab.url()
    )
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
    let end = || json!({ "events": [chunk(json!({}), json!("stop")), "[DONE]"] });
    let all = BTreeMap::from([
        ("plain", vec![done()]),
        ("long", vec![steps(json!([{ "events": long }, end()]))]),
        ("slow", vec![steps(json!([hello(), { "wait_ms": 200 }, hello(), { "wait_ms": 200 }, end()]))]),
        ("three", vec![calls(&["fine", "nap", "runs"]), done()]),
        ("rounds", vec![calls(&["nap"]), calls(&["fine", "server__echo"]), done()]),
        ("writes", vec![calls(&["save", "fine"]), done()]),
        ("bad tools", vec![calls(&["fails", "resets", "large", "nobody"]), done()]),
        ("hanging tools", vec![calls(&["hangs", "forks", "fine"]), done()]),
        ("crash", vec![calls(&["server__crash", "fine"]), done()]),
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
    all.into_keys().collect()
}

/// How the load went.
#[derive(Default)]
struct Tally {
    answers: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
}

/// One client: one request after another, until the end.
async fn load(seed: u64, url: String, names: Arc<Vec<&'static str>>, until: Instant, tally: Arc<Tally>) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let address = format!("{url}/chat/completions");
    while Instant::now() < until {
        let name = names[chance.usize(..names.len())];
        let content = "x".repeat(if chance.u8(..20) == 0 { 300_000 } else { 20 });
        let stream = chance.bool();
        let mut body = json!({ "model": format!("script:{name}"), "stream": stream, "messages": [{ "role": "user", "content": content }] });
        if name == "mixed" {
            body["tools"] = json!([{ "type": "function", "function": { "name": "theirs", "parameters": { "type": "object" } } }]);
        }
        if chance.u8(..16) == 0 {
            body["messages"] = json!("nonsense");
        }
        let key = format!("{seed}-{}", chance.u64(..));
        let mut headers = vec![];
        if chance.u8(..3) == 0 {
            headers.push(("x-fanfold-tools", "none"));
        } else if chance.u8(..4) == 0 {
            headers.push(("idempotency-key", key.as_str()));
        }
        if chance.u8(..5) == 0 {
            leave(&url, &body, &headers, Duration::from_millis(chance.u64(..400))).await;
            tally.left.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let asked = client::send(http::Method::POST, &address, &headers, Some(&body));
        let got = timeout(LATE, asked).await.unwrap_or_else(|_| panic!("{name}: no answer"));
        match got {
            Ok(got) if got.status == 503 => _ = tally.refused.fetch_add(1, Ordering::Relaxed),
            Ok(_) => _ = tally.answers.fetch_add(1, Ordering::Relaxed),
            // Bytes that only go through may break off, which is how a client is told.
            Err(error) => assert!(headers.contains(&("x-fanfold-tools", "none")), "{name}: {error}"),
        }
    }
}

/// Asks, and leaves after so long without having read the end.
async fn leave(url: &str, body: &Value, headers: &[(&str, &str)], after: Duration) {
    let host = url.trim_start_matches("http://").split('/').next().unwrap();
    let body = body.to_string();
    let mut request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = TcpStream::connect(host).await.unwrap();
    let sent = format!("{request}\r\n{body}");
    let _full = timeout(after, stream.write_all(sent.as_bytes())).await;
    let _read = timeout(after, stream.read(&mut [0; 512])).await;
}

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Holds {
    memory: usize,
    descriptors: usize,
    tasks: f64,
    children: usize,
}

async fn holds(process: &Process) -> Holds {
    let tasks = metric(&process.metrics().await, "fanfold_tasks");
    let (memory, descriptors) = (process.resident_memory(), process.descriptors());
    Holds { memory, descriptors, tasks, children: process.children().len() }
}

/// Waits until all that was begun has ended.
async fn drained(process: &Process) {
    for gauge in [
        "fanfold_turns_in_flight",
        "fanfold_tool_calls_in_flight",
        "fanfold_parked_entries",
        "fanfold_connections",
    ] {
        process.metric_becomes(gauge, 0.0).await;
    }
    // After many crashes it is started again only after a minute.
    let up = async {
        while metric(&process.metrics().await, "fanfold_tool_servers_up{server=\"server\"}") < 1.0 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LATE + LATE / 2, up).await.expect("the tool server comes back");
    // What ended just now is cleared away.
    sleep(Duration::from_secs(2)).await;
}

/// Bytes a minute, by the method of least squares.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let n = samples.len() as f64;
    let (mx, my) =
        (samples.iter().map(|s| s.0).sum::<f64>() / n, samples.iter().map(|s| s.1).sum::<f64>() / n);
    let over: f64 = samples.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let under: f64 = samples.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    60.0 * over / under.max(f64::EPSILON)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_load_with_faults_everything_is_as_before() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = number("FANFOLD_SOAK").map_or(SHORT, Duration::from_secs);
    let seed = number("FANFOLD_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("repeat with FANFOLD_SEED={seed}");
    let lab = Lab::start().await;
    let names = Arc::new(scripts(&lab));
    let process = Process::in_folder(folder_with(&config(&lab))).await;
    // Everything once, so that what is made once is there.
    let tally = Arc::new(Tally::default());
    let warm = Instant::now() + length.min(Duration::from_secs(20)) / 4;
    run(&process, &names, warm, seed, &tally).await;
    drained(&process).await;
    lab.clear();
    let before = holds(&process).await;

    let start = Instant::now();
    let mut samples = Vec::new();
    let mut clients = begin(&process, &names, start + length, seed + 1000, &tally);
    while !clients.is_empty() {
        let second = sleep(Duration::from_secs(1));
        tokio::pin!(second);
        loop {
            tokio::select! {
                done = clients.join_next() => match done {
                    Some(done) => done.unwrap(),
                    None => break,
                },
                () = &mut second => break,
            }
        }
        samples.push((start.elapsed().as_secs_f64(), process.resident_memory() as f64));
        // What the lab remembers is this test's memory, and it looks at all of it.
        lab.clear();
    }
    drained(&process).await;
    let after = holds(&process).await;
    let growth = slope(&samples[samples.len() / 2..]);
    eprintln!(
        "{} answers, {} left, {} refused in {length:?}\nbefore {before:?}\nafter  {after:?}\n{:.2} MiB a minute in the second half, {:.1} MiB at most",
        tally.answers.load(Ordering::Relaxed),
        tally.left.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
        growth / 1_048_576.0,
        samples.iter().map(|s| s.1).fold(0.0, f64::max) / 1_048_576.0,
    );
    assert!(tally.answers.load(Ordering::Relaxed) > 50, "hardly any load");
    assert_eq!(after.children, before.children, "children: the tool server, and nobody else");
    assert!(after.descriptors <= before.descriptors + KEPT, "descriptors");
    assert!(after.tasks <= before.tasks + 2.0 * KEPT as f64, "tasks");
    assert!(after.memory <= before.memory + LEFT_OVER, "memory");
    if length >= Duration::from_secs(120) {
        assert!(growth < SLOPE, "memory grows");
    }
    let seen = lab.wait_until(|seen| seen.all_tools.running == 0);
    timeout(LATE, seen).await.unwrap();
    process.signal(rustix::process::Signal::TERM);
    process.signal(rustix::process::Signal::TERM);
    let log = process.ended().await.log;
    assert!(
        !log.contains("panicked"),
        "{}",
        log.lines().filter(|l| l.contains("panicked")).collect::<String>()
    );
}

fn begin(
    process: &Process,
    names: &Arc<Vec<&'static str>>,
    until: Instant,
    seed: u64,
    tally: &Arc<Tally>,
) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        clients.spawn(load(seed + n, process.base_url(), names.clone(), until, tally.clone()));
    }
    clients
}

async fn run(
    process: &Process,
    names: &Arc<Vec<&'static str>>,
    until: Instant,
    seed: u64,
    tally: &Arc<Tally>,
) {
    let mut clients = begin(process, names, until, seed, tally);
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
}
