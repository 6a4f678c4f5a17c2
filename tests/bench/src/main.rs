//! fanfold's benchmark: one command that starts a scripted upstream, a bare relay, nginx if it is
//! installed, and fanfold, drives them in turn, three times, and prints medians and their ratios to
//! the bare relay.
//!
//! ```text
//! cargo build --release && cargo run --release --manifest-path tests/bench/Cargo.toml
//! ```
//!
//! With `telemetry` as its argument it measures what looking on costs instead: fanfold with metrics, with the
//! record of runs that the inspector shows, with both, as it is by default, and with a trace of every turn sent to a
//! collector beside, as ratios to one that has none of it and writes no log.
//!
//! Everything listens on loopback, runs for a bounded time and ends with the benchmark. The table is
//! also written as JSON, to `target/bench.json`.

mod load;
mod relay;
mod telemetry;
mod upstream;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use load::{Result, Shot, fire, ideal};
use tokio::process::{Child, Command};

const UPSTREAM: u16 = 14200;
const RELAY: u16 = 14201;
const NGINX: u16 = 14202;
const PLAIN: u16 = 14203;
const TOOLS: u16 = 14205;
/// How often everything is measured; medians are told.
const TIMES: usize = 3;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("upstream") => upstream::run(UPSTREAM).await,
        Some("relay") => relay::run(RELAY, UPSTREAM).await,
        Some("telemetry") => {
            let seconds = arguments.get(1).map_or(2.0, |text| text.parse().expect("seconds per measurement"));
            telemetry::bench(seconds).await;
        }
        Some(seconds) => bench(seconds.parse().expect("seconds per measurement")).await,
        None => bench(2.0).await,
    }
}

/// What is driven: its name, its port and its process.
struct Target {
    name: &'static str,
    port: u16,
    pid: u32,
}

async fn bench(seconds: f64) {
    let time = Duration::from_secs_f64(seconds);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::temp_dir().join(format!("fanfold-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for configurations");
    let me = std::env::current_exe().expect("this binary");
    let mut children = vec![spawn(Command::new(&me).arg("upstream")), spawn(Command::new(&me).arg("relay"))];
    let binary = binary(&root);
    let mut targets = vec![Target { name: "relay", port: RELAY, pid: pid(&children[1]) }];
    for (name, port, tools) in [("fanfold", PLAIN, 0), ("fanfold+tools", TOOLS, 10)] {
        let config = folder.join(format!("{name}.yaml"));
        std::fs::write(&config, configuration(port, tools)).expect("a configuration");
        let child = spawn(Command::new(&binary).args(["serve", "--config"]).arg(&config));
        targets.push(Target { name, port, pid: pid(&child) });
        children.push(child);
    }
    match nginx(&folder).await {
        Some((child, worker)) => {
            targets.push(Target { name: "nginx", port: NGINX, pid: worker });
            children.push(child);
        }
        None => {
            eprintln!("nginx is not installed: it is left out of the table (apt-get install nginx-light)")
        }
    }
    for target in &targets {
        load::listens(target.port).await;
    }
    let rows = [side_by_side(&targets, time).await, turns(&targets, time).await].concat();
    print!("{}", table(&rows));
    for target in &targets {
        println!("{:<14} {:>6.1} MiB resident at the end", target.name, load::resident(target.pid));
    }
    let json = serde_json::to_string_pretty(&rows.iter().map(Row::json).collect::<Vec<_>>()).expect("JSON");
    let path = root.join("target/bench.json");
    std::fs::File::create(&path)
        .and_then(|mut f| f.write_all(json.as_bytes()))
        .expect("the result is written");
    for child in &mut children {
        let _ = child.kill().await;
    }
    let _ = std::fs::remove_dir_all(&folder);
}

/// The fanfold that is measured.
fn binary(root: &std::path::Path) -> PathBuf {
    let binary =
        std::env::var_os("FANFOLD_BIN").map_or_else(|| root.join("target/release/fanfold"), PathBuf::from);
    assert!(
        binary.exists(),
        "{} is missing: cargo build --release first, or set FANFOLD_BIN",
        binary.display()
    );
    binary
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().expect("a process")
}

fn pid(child: &Child) -> u32 {
    child.id().expect("it runs")
}

fn configuration(port: u16, tools: usize) -> String {
    let mut text = format!(
        "limits: {{ calls_at_once_per_team: 4096, calls_at_once_in_process: 4096 }}\nlisten: 127.0.0.1:{port}\nadmin: {{ listen: 127.0.0.1:{} }}\nupstreams:\n  main: {{ base_url: \"http://127.0.0.1:{UPSTREAM}/v1\" }}\n",
        port + 1
    );
    for n in 0..tools {
        if n == 0 {
            text.push_str("tools:\n");
        }
        text.push_str(&format!(
            "  t{n}:\n    description: Tool number {n}, for the benchmark\n    parameters: {{ type: object, properties: {{ ms: {{ type: integer }}, n: {{ type: integer }} }}, required: [ms], additionalProperties: false }}\n    http: {{ url: \"http://127.0.0.1:{UPSTREAM}/tool?ms={{ms}}&n={{n}}\" }}\n    effect: read\n"
        ));
    }
    text
}

async fn nginx(folder: &std::path::Path) -> Option<(Child, u32)> {
    let config = folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/error.log;\nevents {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 100000000; client_max_body_size 16m; client_body_buffer_size 2m; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n upstream up {{ server 127.0.0.1:{UPSTREAM}; keepalive 128; keepalive_requests 100000000; }}\n server {{ listen 127.0.0.1:{NGINX}; location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }} }} }}\n",
        folder.display()
    );
    std::fs::write(&config, text).ok()?;
    let child = Command::new("nginx")
        .arg("-c")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Without a master process it is one process, which ends with the benchmark.
    let worker = child.id()?;
    Some((child, worker))
}

/// One line of the table.
#[derive(Clone)]
struct Row {
    scenario: String,
    target: &'static str,
    result: Result,
    /// What it is compared with.
    base: Result,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "scenario": self.scenario, "target": self.target, "requests": self.result.requests,
            "p50_us": self.result.p50, "p99_us": self.result.p99, "cpu_us": self.result.cpu,
            "added_p50_us": self.result.p50 - self.base.p50, "cpu_ratio": self.result.cpu / self.base.cpu,
        })
    }
}

fn chat(model: &str, size: usize, stream: bool) -> Shot {
    let text = "lorem ipsum ".repeat(size.div_ceil(12).max(1));
    let body = format!(
        r#"{{"model":"{model}","messages":[{{"role":"user","content":"{}"}}],"stream":{stream}}}"#,
        &text[..size.max(1)]
    );
    Shot { path: "/v1/chat/completions".into(), body: Some(body.into()) }
}

/// What every target can do, compared with the bare relay.
async fn side_by_side(targets: &[Target], time: Duration) -> Vec<Row> {
    let get = Shot { path: "/v1/files".into(), body: None };
    let scenarios = [
        ("relayed GET", get, vec![1, 32]),
        ("chat 30 B", chat("plain", 30, false), vec![1, 32]),
        ("chat 64 KiB", chat("plain", 65_536, false), vec![32]),
        ("chat 1 MiB", chat("plain", 1_048_576, false), vec![8]),
        ("stream, 256 chunks at once", chat("burst", 30, true), vec![32]),
        ("stream, 20 chunks paced", chat("paced", 30, true), vec![200]),
    ];
    let mut rows = Vec::new();
    for (name, shot, connections) in scenarios {
        for connections in connections {
            let mut all: BTreeMap<&str, Vec<Result>> = BTreeMap::new();
            for _ in 0..TIMES {
                for target in targets {
                    let result = fire(target.port, target.pid, &shot, connections, time).await;
                    all.entry(target.name).or_default().push(result);
                }
            }
            let base = median(&all["relay"]);
            for target in targets {
                let result = median(&all[target.name]);
                rows.push(Row {
                    scenario: format!("{name}, {connections} conn."),
                    target: target.name,
                    result,
                    base,
                });
            }
        }
    }
    rows
}

/// Turns with tool calls, compared with a client that runs its calls itself.
async fn turns(targets: &[Target], time: Duration) -> Vec<Row> {
    let Some(target) = targets.iter().find(|t| t.name == "fanfold+tools") else { return Vec::new() };
    let mut rows = Vec::new();
    for model in ["turn-1-0-1", "turn-5-0-1", "turn-5-50-1", "turn-8-50-3"] {
        for connections in [1, 16, 64] {
            let (mut ours, mut ideals) = (Vec::new(), Vec::new());
            for _ in 0..TIMES {
                ideals.push(ideal(UPSTREAM, model, connections, time).await);
                ours.push(fire(target.port, target.pid, &chat(model, 1, true), connections, time).await);
            }
            let base = median(&ideals);
            let scenario = format!("{model}, {connections} at once");
            rows.push(Row { scenario: scenario.clone(), target: "ideal", result: base, base });
            rows.push(Row { scenario, target: "fanfold+tools", result: median(&ours), base });
        }
    }
    rows
}

/// The median of each figure by itself.
fn median(results: &[Result]) -> Result {
    let middle = |of: fn(&Result) -> f64| {
        let mut all: Vec<f64> = results.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Result {
        requests: results.iter().map(|r| r.requests).sum(),
        p50: middle(|r| r.p50),
        p99: middle(|r| r.p99),
        cpu: middle(|r| r.cpu),
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<38} {:<14} {:>9} {:>9} {:>9} {:>9} {:>7}\n",
        "scenario", "target", "p50 us", "added", "p99 us", "cpu us", "ratio"
    );
    for row in rows {
        let ratio = if row.base.cpu > 0.0 {
            format!("{:.2}", row.result.cpu / row.base.cpu)
        } else {
            format!("{:.2}t", row.result.p50 / row.base.p50)
        };
        out.push_str(&format!(
            "{:<38} {:<14} {:>9.0} {:>9.0} {:>9.0} {:>9.1} {:>7}\n",
            row.scenario,
            row.target,
            row.result.p50,
            row.result.p50 - row.base.p50,
            row.result.p99,
            row.result.cpu,
            ratio
        ));
    }
    out + "ratio: processor time per request to the bare relay's; with t: p50 to the ideal's\n"
}
