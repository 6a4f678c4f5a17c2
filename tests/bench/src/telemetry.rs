//! What looking on costs: processor time per request with parts of telemetry, to that without any.

use std::path::PathBuf;
use std::time::Duration;

use super::load::{Result, Shot, fire, listens};
use super::{TIMES, TOOLS, UPSTREAM, binary, chat, configuration, median, pid, spawn};
use tokio::process::Command;

/// The first fanfold's port; each has two.
const FIRST: u16 = TOOLS + 2;
/// The collector takes whatever it is sent.
const COLLECTOR: u16 = UPSTREAM;

/// What is switched on, and the settings that say so.
const LEVELS: [(&str, &str); 6] = [
    ("all off", "admin: { listen: ADMIN, metrics: false }\nruns: { keep: 0 }\nlog: { level: \"off\" }\n"),
    ("log", "admin: { listen: ADMIN, metrics: false }\nruns: { keep: 0 }\n"),
    ("metrics", "admin: { listen: ADMIN }\nruns: { keep: 0 }\nlog: { level: \"off\" }\n"),
    ("inspector", "admin: { listen: ADMIN, metrics: false }\nlog: { level: \"off\" }\n"),
    ("metrics, inspector", "admin: { listen: ADMIN }\nlog: { level: \"off\" }\n"),
    (
        "the same, log, traces",
        "admin: { listen: ADMIN }\ntraces: { endpoint: \"http://127.0.0.1:COLLECTOR\" }\n",
    ),
];

pub async fn bench(seconds: f64) {
    let time = Duration::from_secs_f64(seconds);
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let binary = binary(&root);
    let folder = std::env::temp_dir().join(format!("fanfold-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for configurations");
    let me = std::env::current_exe().expect("this binary");
    let mut children = vec![spawn(Command::new(&me).arg("upstream"))];
    let mut targets = Vec::new();
    for (i, (name, settings)) in LEVELS.iter().enumerate() {
        let port = FIRST + 2 * u16::try_from(i).expect("a few");
        let settings = settings.replace("ADMIN", &format!("127.0.0.1:{}", port + 1));
        let settings = settings.replace("COLLECTOR", &COLLECTOR.to_string());
        let text: String = configuration(port, 10)
            .lines()
            .filter(|line| !line.starts_with("admin:"))
            .map(|line| format!("{line}\n"))
            .collect();
        let config = folder.join(format!("{i}.yaml"));
        std::fs::write(&config, text + &settings).expect("a configuration");
        let child = spawn(Command::new(&binary).args(["serve", "--config"]).arg(&config));
        targets.push((*name, port, pid(&child)));
        children.push(child);
    }
    for (_, port, _) in &targets {
        listens(*port).await;
    }
    let scenarios: [(&str, Shot, usize); 3] = [
        ("chat 30 B, 32 conn.", chat("plain", 30, false), 32),
        ("stream, 256 chunks, 32 conn.", chat("burst", 30, true), 32),
        ("turn, 5 calls at once, 16 conn.", chat("turn-5-0-1", 1, true), 16),
    ];
    println!("{:<32} {:<22} {:>9} {:>9} {:>7}", "scenario", "telemetry", "p50 us", "cpu us", "ratio");
    for (name, shot, connections) in scenarios {
        let mut all: Vec<Vec<Result>> = vec![Vec::new(); targets.len()];
        // One short round to warm up, which is not counted.
        for round in 0..=TIMES {
            for (at, (_, port, pid)) in targets.iter().enumerate() {
                let time = if round == 0 { time / 4 } else { time };
                let result = fire(*port, *pid, &shot, connections, time).await;
                if round > 0 {
                    all[at].push(result);
                }
            }
        }
        let base = median(&all[0]);
        for ((level, ..), results) in targets.iter().zip(&all) {
            let result = median(results);
            println!(
                "{name:<32} {level:<22} {:>9.0} {:>9.1} {:>7.2}",
                result.p50,
                result.cpu,
                result.cpu / base.cpu
            );
        }
    }
    println!("ratio: processor time per request to that of all off");
    for child in &mut children {
        let _ = child.kill().await;
    }
    let _ = std::fs::remove_dir_all(&folder);
}
