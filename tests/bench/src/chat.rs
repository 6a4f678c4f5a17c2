//! What every server can do: relayed paths, whole chats, bursts; as ratios to the bare relay.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use crate::account::resident;
use crate::alternate::{MANY, alternately};
use crate::lab::{Lab, Target};
use crate::load::{Load, Shot};
use crate::report::Part;
use crate::stats::Measured;

/// Words in a streamed burst, beside which there are its beginning and its end.
const BURST: f64 = 256.0;
/// Words in a short stream, with the same beginning and end.
const SHORT: f64 = 2.0;

/// A thing to ask for, and what it may cost at 32 connections as ratios of processor time.
struct Scenario {
    name: &'static str,
    shot: Shot,
    connections: &'static [usize],
    chunks: f64,
    /// The most for fanfold without tools, and with ten.
    most: [Option<f64>; 2],
}

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let targets = lab.side_by_side().await;
    let mut part = Part::new(
        "chat",
        "Requests, beside the bare relay",
        &[
            "request",
            "conn.",
            "through",
            "p50 µs",
            "added",
            "p99 µs",
            "added p99",
            "CPU µs",
            "ratio",
            "CPU µs/chunk",
            "further chunk",
            "MiB",
        ],
    );
    part.note(
        "CPU: processor time of the server per request; ratio: to the bare relay's. Further chunk: what a stream of 256 \
         chunks takes beyond one of two, for each chunk. MiB: resident afterwards. fanfold has keys, quotas, a budget, \
         metrics, the inspector and its log on.",
    );
    // What a short stream took, by connections.
    let mut short = HashMap::new();
    for scenario in scenarios() {
        for connections in scenario.connections {
            let results = side_by_side(&targets, &scenario.shot, *connections, time).await;
            let shorter = short.get(connections).filter(|_| scenario.chunks == BURST);
            let memory: Vec<f64> = targets.iter().map(|target| resident(target.pid)).collect();
            lines(&mut part, &scenario, *connections, &targets, &results, shorter, &memory);
            if scenario.chunks == SHORT {
                short.insert(*connections, results);
            }
        }
    }
    part
}

fn scenarios() -> Vec<Scenario> {
    let scenario = |name, shot, connections, chunks, most| Scenario { name, shot, connections, chunks, most };
    let relayed = [Some(1.4), None];
    let embeddings =
        Shot::post("/v1/embeddings", r#"{"model":"plain","input":"lorem ipsum dolor sit amet"}"#);
    vec![
        scenario("relayed GET", Shot::get("/v1/files"), &[1, 32], 0.0, relayed),
        scenario("relayed POST", embeddings, &[1, 32], 0.0, relayed),
        scenario("chat 30 B", Shot::chat("plain", 30, false), &[1, 32], 0.0, [Some(1.6), Some(2.5)]),
        scenario("chat 64 KiB", Shot::chat("plain", 65_536, false), &[1, 32], 0.0, [Some(4.0), None]),
        scenario("chat 1 MiB", Shot::chat("plain", 1_048_576, false), &[1, 32], 0.0, [None, None]),
        scenario("chat 30 B, streamed", Shot::chat("plain", 30, true), &[1, 32], SHORT, [None, None]),
        scenario("256 chunks at once", Shot::chat("burst", 30, true), &[1, 32], BURST, [None, Some(2.0)]),
    ]
}

/// Each of them asked alternately over so many connections.
pub async fn side_by_side(
    targets: &[Target],
    shot: &Shot,
    connections: usize,
    time: Duration,
) -> Vec<Measured> {
    let mut loads = Vec::new();
    for target in targets {
        loads.push(Load::connect(target, shot, connections).await);
    }
    alternately(&mut loads, MANY, time).await
}

fn lines(
    part: &mut Part,
    scenario: &Scenario,
    connections: usize,
    targets: &[Target],
    results: &[Measured],
    shorter: Option<&Vec<Measured>>,
    memory: &[f64],
) {
    let base = results[0];
    let further = |at: usize| Some((results[at].cpu - shorter?[at].cpu) / (scenario.chunks - SHORT));
    for (at, (target, result)) in targets.iter().zip(results).enumerate() {
        let ratio = result.cpu / base.cpu;
        let chunk = if scenario.chunks > 0.0 { (result.cpu / scenario.chunks).into() } else { Value::Null };
        part.row(vec![
            scenario.name.into(),
            connections.into(),
            target.name.into(),
            result.p50.into(),
            (result.p50 - base.p50).into(),
            result.p99.into(),
            (result.p99 - base.p99).into(),
            result.cpu.into(),
            ratio.into(),
            chunk,
            further(at).into(),
            memory[at].into(),
        ]);
    }
    for (at, most) in scenario.most.iter().enumerate().filter(|_| connections == 32) {
        if let Some(most) = most {
            let figure = format!("CPU, {}, {}", scenario.name, targets[at + 1].name);
            part.bound(figure, results[at + 1].cpu / base.cpu, *most, "× relay");
        }
    }
}
