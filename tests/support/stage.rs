//! The process in which faults are played, beside a team that has nothing to do with them.
//!
//! The neighbour asks all the time, with an upstream and a tool of its own, and every answer of its has to be
//! right. [`Stage::calm`] holds it still for a moment and looks at what the process holds: nothing in
//! flight, and hardly more tasks, descriptors and children than at the start. [`Stage::ends`] looks at the memory too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::client::{self, Got};
use super::faults;
use super::fold::{self, Folded};
use super::gateway::{SOON, metric, soon};
use super::lab::Lab;
use super::process::{Process, folder_with};
use super::proxy::key;

/// Memory that may be left over once everything was played, in bytes: a process that is not compiled for
/// release, and the runs it remembers.
const LEFT_OVER: usize = 48 << 20;

/// Tasks that may be there besides: one for each worker and each pool of connections that was ever used, to close
/// what rests too long. It is the same number after the first fault and after the last, so nothing adds up.
const POOLS: i64 = 48;
/// Descriptors that may come and go: the connection that asks for the metrics, and what a keeper of commands has.
const LOOKS: i64 = 4;

/// What the process holds, its connections to the lab left out.
#[derive(Debug, Clone, Copy)]
struct Holds {
    tasks: i64,
    descriptors: i64,
    children: usize,
}

impl Holds {
    fn no_more_than(self, before: Self) -> bool {
        // The first command starts a keeper, which stays.
        self.children <= before.children + 1
            && self.tasks <= before.tasks + POOLS
            && self.descriptors <= before.descriptors + LOOKS
    }
}

/// A lab, a process in front of it, and a neighbour.
pub struct Stage {
    pub lab: Lab,
    pub process: Process,
    /// Whoever asks or looks holds it.
    quiet: Arc<Mutex<()>>,
    answers: Arc<AtomicU64>,
    stop: CancellationToken,
    neighbour: Mutex<JoinSet<()>>,
    before: Holds,
    memory: usize,
}

/// The configuration with a neighbour in it: a team, a route, an upstream and a tool more.
fn with_neighbour(mut config: Value, lab: &Lab) -> Value {
    let own = json!({ "base_url": format!("{}/at/neighbour/v1", lab.url()) });
    let still = json!({ "effect": "read", "http": { "method": "GET", "url": format!("{}/tool/echo/still", lab.url()) } });
    let tools: Vec<String> = config["tools"].as_object().expect("tools").keys().cloned().collect();
    config["upstreams"]["neighbour"] = own;
    config["tools"]["still"] = still;
    let routes = config["routes"].as_array_mut().expect("routes");
    routes.insert(0, json!({ "model": "neighbour", "upstreams": ["neighbour"] }));
    let mut teams = json!({
        "neighbour": { "keys": [key("fk-neighbour")], "models": ["neighbour"], "tools": ["still"] },
        "players": { "keys": [key("fk-players")], "tools": tools },
    });
    if let Some(more) = config["teams"]["players"].as_object() {
        teams["players"].as_object_mut().expect("a team").extend(more.clone());
    }
    config["teams"] = teams;
    config
}

impl Stage {
    /// Starts the process with this configuration (no listeners, no teams) in front of a lab.
    pub async fn start(lab: Lab, config: Value) -> Self {
        Self::in_folder(lab, config, async |folder| Process::in_folder(folder).await).await
    }

    /// The same, the process being started by the caller.
    pub async fn in_folder(lab: Lab, config: Value, start: impl AsyncFnOnce(TempDir) -> Process) -> Self {
        let folder = folder_with(&faults::yaml(&with_neighbour(config, &lab)));
        let process = start(folder).await;
        let calls = json!([{ "name": "still", "arguments": {} }]);
        let rounds = json!([{ "reply": { "calls": calls } }, { "reply": { "text": "as ever" } }]);
        lab.script("neighbour", json!({ "rounds": rounds }));
        let answers = Arc::new(AtomicU64::new(0));
        let (quiet, stop, neighbour) = (Arc::default(), CancellationToken::new(), Mutex::default());
        let nothing = Holds { tasks: 0, descriptors: 0, children: 0 };
        let mut stage = Self { lab, process, quiet, answers, stop, neighbour, before: nothing, memory: 0 };
        // What is made once is there, and the worker that nobody asked yet has been asked.
        for _ in 0..8 {
            ask_as_neighbour(&stage.process.base_url()).await;
        }
        stage.settled().await;
        (stage.before, stage.memory) = (stage.holds().await, stage.process.resident_memory());
        let (url, quiet, answers) = (stage.process.base_url(), stage.quiet.clone(), stage.answers.clone());
        let stop = stage.stop.clone();
        stage.neighbour.get_mut().spawn(async move {
            while !stop.is_cancelled() {
                let turn = quiet.lock().await;
                ask_as_neighbour(&url).await;
                answers.fetch_add(1, Ordering::Relaxed);
                drop(turn);
                time::sleep(Duration::from_millis(20)).await;
            }
        });
        stage
    }

    /// Asks for a script, as the team whose faults are played.
    pub async fn ask(&self, script: &str, stream: bool, headers: &[(&str, &str)]) -> Got {
        self.ask_with(script, &faults::chat(script, stream), headers).await
    }

    /// The same with this body.
    pub async fn ask_with(&self, script: &str, body: &Value, headers: &[(&str, &str)]) -> Got {
        let headers = [&[("authorization", "Bearer fk-players")], headers].concat();
        faults::ask_with(&self.process.base_url(), script, body, &headers).await
    }

    /// The run of an answer, as operators see it.
    pub async fn run(&self, got: &Got) -> Value {
        let url = format!("http://{}/api/runs/{}", self.process.admin, got.header("x-request-id"));
        soon(client::send(http::Method::GET, &url, &[], None)).await.expect("an answer").json()["run"].clone()
    }

    async fn settled(&self) {
        for gauge in ["fanfold_turns_in_flight", "fanfold_tool_calls_in_flight", "fanfold_connections"] {
            self.process.metric_becomes(gauge, 0.0).await;
        }
        soon(self.lab.wait_until(|seen| seen.all_tools.running == 0)).await;
    }

    async fn holds(&self) -> Holds {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
        let tasks = metric(&self.process.metrics().await, "fanfold_tasks") as i64;
        let number = |n: usize| i64::try_from(n).expect("few");
        let connections = i64::try_from(self.lab.journal().connections_open).expect("few");
        let descriptors = number(self.process.descriptors());
        // A connection to the lab that rests is one descriptor and one task.
        Holds {
            tasks: tasks - connections,
            descriptors: descriptors - connections,
            children: self.process.children().len(),
        }
    }

    /// Waits until everything that was begun is over and the process holds what it held at its start.
    /// Then the lab's journal is emptied.
    pub async fn calm(&self, what: &str) {
        // Whatever is played, it goes on, and nothing it got was wrong.
        if let Some(ended) = self.neighbour.lock().await.try_join_next() {
            ended.expect("the neighbour");
        }
        let _turn = soon(self.quiet.lock()).await;
        self.settled().await;
        let same = async {
            while !self.holds().await.no_more_than(self.before) {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        if time::timeout(SOON, same).await.is_err() {
            panic!("after {what} it holds {:?}, and {:?} before", self.holds().await, self.before);
        }
        self.lab.clear();
    }

    /// The last look: nobody else has noticed, and the memory is as before.
    pub async fn ends(mut self) {
        self.calm("everything").await;
        // A stage on which little was played is over soon.
        soon(async {
            while self.answers.load(Ordering::Relaxed) <= 5 {
                time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        self.stop.cancel();
        while let Some(ended) = soon(self.neighbour.get_mut().join_next()).await {
            ended.expect("the neighbour");
        }
        let (before, after) = (self.memory, self.process.resident_memory());
        assert!(after <= before + LEFT_OVER, "memory: {before} before, {after} after");
        assert!(!self.process.log().contains("panicked"), "{}", self.process.log());
    }
}

async fn ask_as_neighbour(base_url: &str) {
    let headers = [("authorization", "Bearer fk-neighbour")];
    let body = json!({ "model": "neighbour", "messages": [{ "role": "user", "content": "hi" }] });
    let got = faults::ask_with(base_url, "neighbour", &body, &headers).await;
    match fold::answer(&got) {
        Ok(Folded::Reply(reply)) if reply.text == "as ever" => {}
        other => panic!("another team's faults reached the neighbour: {other:?} {}", got.body),
    }
}
