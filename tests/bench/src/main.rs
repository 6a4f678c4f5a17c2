//! fanfold's benchmark: it starts a scripted upstream, a bare relay, nginx and fanfold, drives them alternately,
//! in three measurements, and prints medians and their ratios to the bare relay.
//!
//! ```text
//! tests/bench/run [usual] [PART…] [SECONDS]
//! ```
//!
//! | part | what it measures |
//! |---|---|
//! | `chat` | relayed requests, whole chats of three sizes, 256 chunks at once: latency, processor time and memory, beside the bare relay and nginx |
//! | `streams` | 16 and 1,000 streams of 20 chunks a second: lateness of each chunk, processor time, memory |
//! | `turns` | turns with tool calls, beside a client that runs its calls itself |
//! | `early` | early start, with an upstream that writes slowly |
//! | `neighbour` | a quiet team beside a noisy one |
//! | `breaker` | what the refusals of an open breaker take |
//! | `hostile` | good clients beside hostile ones, and the memory these cost |
//! | `telemetry` | what metrics, log, inspector and traces cost |
//!
//! Without a part it is all of them, about twenty minutes. `SECONDS` is the time of one measurement, by default one.
//! `train` is no part, and measures nothing: see its module.
//! The results are also in `target/bench.json`, where each part stays until it is measured anew; `table` prints
//! what is there. Each figure that fanfold is held to stands at the end with its bound.
//!
//! It wants a quiet machine with two cores or more, and leave to open 10,500 files at once (`ulimit -Hn`), here and
//! in fanfold, and nginx, which `run` installs. `run` builds fanfold by a profile; `usual` is its word for a build without
//! one, `FANFOLD_BIN` another fanfold to measure. Everything listens on loopback, runs for a bounded time and ends with
//! the benchmark, also when that is interrupted.

mod account;
mod alternate;
mod breaker;
mod chat;
mod hostile;
mod lab;
mod load;
mod neighbour;
mod relay;
mod report;
mod script;
mod stats;
mod streams;
mod telemetry;
mod train;
mod turns;
mod upstream;

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How often everything is measured; medians are told.
const TIMES: usize = 3;
const PARTS: [&str; 8] =
    ["chat", "streams", "turns", "early", "neighbour", "breaker", "hostile", "telemetry"];
const USAGE: &str = "usage: fanfold-bench [table|train] [chat|streams|turns|early|neighbour|breaker|hostile|telemetry]… [SECONDS]";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if arguments.first() == Some(&"side") {
        play(&arguments[1..]).await;
        return ExitCode::SUCCESS;
    }
    let seconds = match arguments.last().and_then(|last| last.parse().ok()) {
        Some(seconds) => {
            arguments.pop();
            seconds
        }
        None => 1.0,
    };
    let (only_table, train) = (arguments.first() == Some(&"table"), arguments == ["train"]);
    let names: Vec<&str> = arguments[usize::from(only_table || train)..].to_vec();
    if names.iter().any(|name| !PARTS.contains(name)) || !(0.1..=60.0).contains(&seconds) {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let names = if names.is_empty() { PARTS.to_vec() } else { names };
    let file = lab::root().join("target/bench.json");
    if !only_table {
        if !lab::binary().exists() {
            eprintln!(
                "{} is missing: tests/bench/run builds it, or set FANFOLD_BIN",
                lab::binary().display()
            );
            return ExitCode::FAILURE;
        }
        // Whoever interrupts drops what is being measured, and with it every process it started.
        tokio::select! {
            () = train::train(Duration::from_secs_f64(seconds)), if train => return ExitCode::SUCCESS,
            () = measure(&names, seconds, &file), if !train => {}
            () = interrupted() => return ExitCode::from(130),
        }
    }
    print!("{}", report::show(&file, &names));
    ExitCode::SUCCESS
}

async fn measure(names: &[&str], seconds: f64, file: &std::path::Path) {
    account::open_files();
    let time = Duration::from_secs_f64(seconds);
    for name in names {
        eprintln!("measuring: {name}");
        let part = match *name {
            "chat" => chat::part(time).await,
            "streams" => streams::part(time).await,
            "turns" => turns::part(time).await,
            "early" => turns::early(time).await,
            "neighbour" => neighbour::part(time).await,
            "breaker" => breaker::part(time).await,
            "hostile" => hostile::part(time).await,
            _ => telemetry::part(time).await,
        };
        report::keep(file, &part, seconds);
    }
}

async fn interrupted() {
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(|kind| signal(kind).expect("a signal"));
    let [interrupt, terminate, hangup] = &mut signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// A process beside the benchmark's own, which ends when that is gone.
async fn play(arguments: &[&str]) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let number = |at: usize| -> u16 { arguments[at].parse().expect("a number") };
    match arguments[0] {
        "upstream" => upstream::run(number(1)).await,
        "relay" => relay::run(number(1), number(2)).await,
        "noise" => {
            neighbour::noise(number(1), Duration::from_secs_f64(arguments[2].parse().expect("seconds"))).await
        }
        "attack" => hostile::attack(arguments[1], number(2), number(3).into()).await,
        other => panic!("no part is called {other}"),
    }
}
