//! Turns with tool calls, compared with the ideal: a client that asks the model itself and runs its calls
//! itself, side by side, over connections that are open.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::TIMES;
use crate::lab::{Lab, ROOM, Setup, TEAMS, Target};
use crate::load::{Client, Shot, fire};
use crate::report::Part;
use crate::stats::{Measured, Times};

/// So many calls of so long, in so many rounds.
#[derive(Clone, Copy)]
struct Turn {
    calls: u64,
    millis: u64,
    rounds: u64,
}

impl Turn {
    fn model(self) -> String {
        format!("turn-{}-{}-{}", self.calls, self.millis, self.rounds)
    }

    fn name(self) -> String {
        format!(
            "{}×{} ms, {} round{}",
            self.calls,
            self.millis,
            self.rounds,
            if self.rounds == 1 { "" } else { "s" }
        )
    }
}

const KINDS: [(u64, u64); 4] = [(1, 0), (5, 0), (5, 50), (8, 50)];
const COLUMNS: [&str; 8] = ["turn", "at once", "by", "p50 ms", "added", "p99 ms", "ratio", "CPU µs"];

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let target = tools(&mut lab).await;
    let mut part =
        Part::new("turns", "Turns with tool calls, beside a client that runs its calls itself", &COLUMNS);
    part.note("Added and ratio: to the ideal's p50. CPU: processor time of fanfold per turn.");
    let turns =
        [1, 3].into_iter().flat_map(|rounds| KINDS.map(|(calls, millis)| Turn { calls, millis, rounds }));
    for turn in turns {
        for at_once in [1, 16, 64] {
            let mut all = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..TIMES {
                all[0].push(ideal(lab.upstream, turn, at_once, time).await);
                for (results, stream) in all[1..].iter_mut().zip([true, false]) {
                    let shot = Shot::chat(&turn.model(), 1, stream);
                    results.push(fire(&target, &shot, at_once, time).await);
                }
            }
            let [base, streamed, whole] = all.map(|results| Measured::median(&results));
            line(&mut part, turn.name(), at_once, "ideal", base, base);
            for (by, result) in [("fanfold, streamed", streamed), ("fanfold, whole", whole)] {
                line(&mut part, turn.name(), at_once, by, result, base);
                bounds(&mut part, turn, at_once, by, result.p50, base.p50);
            }
        }
    }
    part
}

async fn tools(lab: &mut Lab) -> Target {
    let more = format!("{ROOM}{TEAMS}");
    lab.fanfold("fanfold, 10 tools", &Setup { tools: 10, more: &more, ..Setup::default() }).await
}

fn line(part: &mut Part, name: String, at_once: usize, by: &str, result: Measured, base: Measured) {
    let cpu = if result.cpu > 0.0 { result.cpu.into() } else { serde_json::Value::Null };
    part.row(vec![
        name.into(),
        at_once.into(),
        by.into(),
        (result.p50 / 1e3).into(),
        ((result.p50 - base.p50) / 1e3).into(),
        (result.p99 / 1e3).into(),
        (result.p50 / base.p50).into(),
        cpu,
    ]);
}

fn bounds(part: &mut Part, turn: Turn, at_once: usize, by: &str, ours: f64, ideal: f64) {
    let figure = format!("{}, {at_once} at once, {by}", turn.name());
    match (turn.calls, turn.millis, at_once) {
        (5, 0, 1) => part.bound(figure, (ours - ideal) / 1e3, 0.3, "ms added"),
        (5, 50, 1) => part.bound(figure, (ours - ideal) / 1e3, 1.0, "ms added"),
        (5, 50, 64) => part.bound(figure, ours / ideal, 1.1, "× ideal"),
        _ => {}
    }
}

/// As often as there is time for, by so many clients.
async fn ideal(port: u16, turn: Turn, at_once: usize, time: Duration) -> Measured {
    // All are connected before any of them asks.
    let mut clients = Vec::new();
    for _ in 0..at_once {
        clients.push(Ideal::new(port, turn.calls).await);
    }
    let until = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut times = Times::default();
            while Instant::now() < until {
                let begin = Instant::now();
                client.turn(&turn.model(), turn.millis, turn.rounds).await;
                times.add(begin.elapsed());
            }
            times
        });
    }
    Measured::new(Times::all(tasks.join_all().await), 0.0)
}

/// The client that needs no proxy.
struct Ideal {
    asks: Client,
    tools: Vec<Client>,
}

impl Ideal {
    async fn new(port: u16, calls: u64) -> Self {
        let mut tools = Vec::new();
        for _ in 0..calls {
            tools.push(Client::connect(port).await);
        }
        Self { asks: Client::connect(port).await, tools }
    }

    /// A turn in which every call takes so long.
    async fn turn(&mut self, model: &str, millis: u64, rounds: u64) {
        let tool = Shot::get(format!("/tool?ms={millis}"));
        for round in 0..=rounds {
            let past = r#"{"role":"assistant","tool_calls":[]},"#.repeat(round as usize);
            let body = format!(
                r#"{{"model":"{model}","messages":[{past}{{"role":"user","content":"x"}}],"stream":true}}"#
            );
            self.asks.shoot(&Shot::post("/v1/chat/completions", body)).await;
            if round < rounds {
                let running = self.tools.iter_mut().map(|tool_server| tool_server.shoot(&tool));
                futures_util::future::join_all(running).await;
            }
        }
    }
}

/// Early start: an upstream that writes a call every 50 ms. All of them but the last can have ended before
/// that one is there, so the ideal runs that one alone.
pub async fn early(time: Duration) -> Part {
    const MODEL: &str = "slow-5-50-20";
    let mut lab = Lab::start().await;
    let target = tools(&mut lab).await;
    let mut part = Part::new(
        "early",
        "Early start: five calls, one written every 50 ms, the last runs for 20 ms",
        &COLUMNS,
    );
    part.note("The ideal: the last call's own arrival and its run. Without early start it would be 400 ms.");
    // A turn takes more than a quarter of a second.
    let time = time.max(Duration::from_secs(1));
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..TIMES {
        let (mut client, mut times) = (Ideal::new(lab.upstream, 1).await, Times::default());
        let until = Instant::now() + time;
        while Instant::now() < until {
            let begin = Instant::now();
            client.turn(MODEL, 20, 1).await;
            times.add(begin.elapsed());
        }
        all[0].push(Measured::new(times, 0.0));
        for (results, stream) in all[1..].iter_mut().zip([true, false]) {
            results.push(fire(&target, &Shot::chat(MODEL, 1, stream), 1, time).await);
        }
    }
    let [base, streamed, whole] = all.map(|results| Measured::median(&results));
    line(&mut part, "5 calls, written slowly".into(), 1, "ideal", base, base);
    for (by, result) in [("fanfold, streamed", streamed), ("fanfold, whole", whole)] {
        line(&mut part, "5 calls, written slowly".into(), 1, by, result, base);
        part.bound(format!("early start, {by}"), (result.p50 - base.p50) / 1e3, 2.0, "ms added");
    }
    part
}
