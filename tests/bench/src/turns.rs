//! Turns with tool calls, compared with the ideal: a client that asks the model itself, with the same requests as
//! fanfold's, and runs its calls itself, side by side, over connections that are open.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alternate::{Driven, MANY, Rounds, Slice, alternately};
use crate::lab::{Lab, ROOM, Setup, TEAMS, Target};
use crate::load::{Client, Load, Shot};
use crate::report::Part;
use crate::script::{question, whole_results};
use crate::stats::Measured;

/// Tools that are offered in each request.
const TOOLS: usize = 10;
const KINDS: [(u64, u64); 4] = [(1, 0), (5, 0), (5, 50), (8, 50)];
const COLUMNS: [&str; 8] = ["turn", "at once", "by", "p50 ms", "added", "p99 ms", "ratio", "CPU µs"];

/// Rounds of calls.
#[derive(Clone, Copy)]
struct Turn {
    calls: u64,
    /// How long each takes; where the model writes slowly, the last one.
    millis: u64,
    rounds: u64,
    /// Between two calls that the model writes.
    gap: Option<u64>,
}

impl Turn {
    fn model(self) -> String {
        let Self { calls, millis, rounds, gap } = self;
        match gap {
            None => format!("turn-{calls}-{millis}-{rounds}"),
            Some(gap) => format!("slow-{calls}-{gap}-{millis}"),
        }
    }

    fn name(self) -> String {
        let many = if self.rounds == 1 { "" } else { "s" };
        match self.gap {
            None => format!("{}×{} ms, {} round{many}", self.calls, self.millis, self.rounds),
            Some(_) => format!("{} calls, written slowly", self.calls),
        }
    }

    /// Calls that the ideal has to wait for: all that are written slowly but the last have ended before it is there.
    fn waited_for(self) -> u64 {
        if self.gap.is_some() { 1 } else { self.calls }
    }

    /// What the model is asked, round after round.
    fn questions(self) -> Vec<Shot> {
        let past = |rounds| (0..rounds).map(|round| whole_results(round, self.calls, self.millis)).collect();
        let body = |rounds| question(&self.model(), TOOLS, past(rounds));
        (0..=self.rounds).map(|rounds| Shot::post("/v1/chat/completions", body(rounds))).collect()
    }
}

pub async fn part(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let target = tools(&mut lab).await;
    let mut part =
        Part::new("turns", "Turns with tool calls, beside a client that runs its calls itself", &COLUMNS);
    part.note("Added and ratio: to the ideal's p50. CPU: processor time of fanfold per turn.");
    let turns = [1, 3]
        .into_iter()
        .flat_map(|rounds| KINDS.map(|(calls, millis)| Turn { calls, millis, rounds, gap: None }));
    for turn in turns {
        for at_once in [1, 16, 64] {
            for (by, ours, ideal) in lines(&mut part, &lab, &target, turn, at_once, time).await {
                let figure = format!("{}, {at_once} at once, {by}", turn.name());
                match (turn.calls, turn.millis, at_once) {
                    (5, 0, 1) => part.bound(figure, (ours - ideal) / 1e3, 0.3, "ms added"),
                    (5, 50, 1) => part.bound(figure, (ours - ideal) / 1e3, 1.0, "ms added"),
                    (5, 50, 64) => part.bound(figure, ours / ideal, 1.1, "× ideal"),
                    _ => {}
                }
            }
        }
    }
    part
}

/// Early start: an upstream that writes a call every 50 ms.
pub async fn early(time: Duration) -> Part {
    let mut lab = Lab::start().await;
    let target = tools(&mut lab).await;
    let mut part = Part::new(
        "early",
        "Early start: five calls, one written every 50 ms, the last runs for 20 ms",
        &COLUMNS,
    );
    part.note("The ideal: the last call's own arrival and its run. Without early start it would be 400 ms.");
    let turn = Turn { calls: 5, millis: 20, rounds: 1, gap: Some(50) };
    for (by, ours, ideal) in lines(&mut part, &lab, &target, turn, 1, time).await {
        part.bound(format!("early start, {by}"), (ours - ideal) / 1e3, 2.0, "ms added");
    }
    part
}

async fn tools(lab: &mut Lab) -> Target {
    let more = format!("{ROOM}{TEAMS}");
    lab.fanfold("fanfold, 10 tools", &Setup { tools: TOOLS, more: &more, ..Setup::default() }).await
}

/// A line for the ideal and one for each way of asking fanfold, whose p50 is returned beside the ideal's.
async fn lines(
    part: &mut Part,
    lab: &Lab,
    target: &Target,
    turn: Turn,
    at_once: usize,
    time: Duration,
) -> [(&'static str, f64, f64); 2] {
    let planned = Client::connect(target.port).await.plan(&Shot::chat(&turn.model(), 1, true)).await;
    assert!(planned.contains(&turn.questions()[0].text()), "the ideal asks something else: {planned}");
    let mut ideals = Vec::new();
    for _ in 0..at_once {
        ideals.push(Ideal::new(lab.upstream, turn).await);
    }
    let fanfold = async |stream| {
        By::Fanfold(Load::connect(target, &Shot::chat(&turn.model(), 1, stream), at_once).await)
    };
    let mut all = [By::Itself(ideals), fanfold(true).await, fanfold(false).await];
    // A turn of calls that take their time is most of a short slice.
    let slices = if turn.millis > 0 { 2 } else { MANY };
    let measured = alternately(&mut all, slices, time).await;
    let base = measured[0];
    let bys = ["ideal", "fanfold, streamed", "fanfold, whole"];
    for (by, result) in bys.into_iter().zip(&measured) {
        part.row(line(turn.name(), at_once, by, *result, base));
    }
    [1, 2].map(|at| (bys[at], measured[at].p50, base.p50))
}

fn line(name: String, at_once: usize, by: &str, result: Measured, base: Measured) -> Vec<serde_json::Value> {
    let cpu = if result.cpu > 0.0 { result.cpu.into() } else { serde_json::Value::Null };
    vec![
        name.into(),
        at_once.into(),
        by.into(),
        (result.p50 / 1e3).into(),
        ((result.p50 - base.p50) / 1e3).into(),
        (result.p99 / 1e3).into(),
        (result.p50 / base.p50).into(),
        cpu,
    ]
}

/// Who runs the calls.
enum By {
    Itself(Vec<Ideal>),
    Fanfold(Load),
}

impl Driven for By {
    async fn slice(&mut self, time: Duration) -> Slice {
        let clients = match self {
            Self::Fanfold(load) => return load.slice(time).await,
            Self::Itself(clients) => clients,
        };
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for mut client in clients.drain(..) {
            tasks.spawn(async move {
                let mut rounds = Rounds::until(until);
                while rounds.go_on() {
                    let begin = Instant::now();
                    client.turn().await;
                    rounds.took(begin.elapsed());
                }
                (client, rounds)
            });
        }
        let (back, rounds): (Vec<_>, Vec<_>) = tasks.join_all().await.into_iter().unzip();
        *clients = back;
        Slice::of(rounds, 0.0)
    }
}

/// The client that needs no proxy.
struct Ideal {
    asks: Client,
    /// A connection for each call.
    tools: Vec<Client>,
    questions: Vec<Shot>,
    tool: Shot,
}

impl Ideal {
    async fn new(port: u16, turn: Turn) -> Self {
        let mut tools = Vec::new();
        for _ in 0..turn.waited_for() {
            tools.push(Client::connect(port).await);
        }
        let tool = Shot::get(format!("/tool?ms={}", turn.millis));
        Self { asks: Client::connect(port).await, tools, questions: turn.questions(), tool }
    }

    async fn turn(&mut self) {
        for (n, question) in self.questions.iter().enumerate() {
            if n > 0 {
                let running = self.tools.iter_mut().map(|tool_server| tool_server.shoot(&self.tool));
                futures_util::future::join_all(running).await;
            }
            self.asks.shoot(question).await;
        }
    }
}
