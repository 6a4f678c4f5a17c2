//! What looking on costs: processor time per request with parts of telemetry, to that without any.

use std::time::Duration;

use crate::chat::side_by_side;
use crate::lab::{Lab, ROOM, Setup, TEAMS};
use crate::load::Shot;
use crate::report::Part;

/// What is switched on, and the settings that say so. The collector takes whatever it is sent.
const LEVELS: [(&str, &str); 6] = [
    ("all off", "admin: { listen: \"ADMIN\", metrics: false }\nruns: { keep: 0 }\nlog: { level: \"off\" }\n"),
    ("log", "admin: { listen: \"ADMIN\", metrics: false }\nruns: { keep: 0 }\n"),
    ("metrics", "admin: { listen: \"ADMIN\" }\nruns: { keep: 0 }\nlog: { level: \"off\" }\n"),
    ("inspector", "admin: { listen: \"ADMIN\", metrics: false }\nlog: { level: \"off\" }\n"),
    ("metrics, inspector", "admin: { listen: \"ADMIN\" }\nlog: { level: \"off\" }\n"),
    (
        "the same, log, traces",
        "admin: { listen: \"ADMIN\" }\ntraces: { endpoint: \"http://127.0.0.1:UPSTREAM\" }\n",
    ),
];

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let mut targets = Vec::new();
    for (name, settings) in LEVELS {
        let more = format!("{ROOM}{TEAMS}{settings}");
        targets.push(lab.fanfold(name, &Setup { tools: 10, more: &more, ..Setup::default() }).await);
    }
    let scenarios: [(&str, Shot, usize); 3] = [
        ("chat 30 B", Shot::chat("plain", 30, false), 32),
        ("256 chunks at once", Shot::chat("burst", 30, true), 32),
        ("turn of 5×0 ms", Shot::chat("turn-5-0-1", 1, true), 16),
    ];
    let mut part = Part::new(
        "telemetry",
        "What looking on costs, ten tools offered",
        &["request", "conn.", "telemetry", "p50 µs", "CPU µs", "ratio"],
    );
    part.note("Ratio: processor time per request to that of all off.");
    for (name, shot, connections) in scenarios {
        let results = side_by_side(&targets, &shot, connections, time).await;
        for (target, result) in targets.iter().zip(&results) {
            let ratio = result.cpu / results[0].cpu;
            part.row(vec![
                name.into(),
                connections.into(),
                target.name.into(),
                result.p50.into(),
                result.cpu.into(),
                ratio.into(),
            ]);
        }
    }
    part
}
