//! The lab: one server that plays a model server by script, runs test tools, and keeps a journal.
//!
//! ```text
//!   client ─▶ fanfold ─▶ lab /v1/chat/completions   model "script:NAME" plays script NAME
//!                    └─▶ lab /tool/KIND/LABEL?…     echo, text, sleep, fail, hang, …
//!   test ─────────────▶ lab /_script /_journal /_release
//! ```
//!
//! It reads HTTP/1.1 itself and writes raw bytes, so it can say what no HTTP library would. In a
//! Rust test it runs inside the test's runtime ([`Lab::start`]); the suites in other languages run
//! it as a process (`cargo run --example fanfold-lab`).

pub mod http;
pub mod journal;
mod play;
pub mod script;
mod serve;
mod tool;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use journal::{Journal, Snapshot};
use script::Script;

/// A running lab. It stops when it is dropped.
pub struct Lab {
    address: SocketAddr,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: DropGuard,
}

/// What the connections share.
pub(super) struct State {
    scripts: Mutex<BTreeMap<String, Registered>>,
    pub(super) journal: Journal,
}

/// A script, and how far it was played.
struct Registered {
    script: Arc<Script>,
    /// Requests seen, for scripts that advance by requests.
    requests: usize,
    /// One permit for each release of a stall.
    releases: Arc<Semaphore>,
}

impl Lab {
    /// Starts on a free loopback port.
    pub async fn start() -> Self {
        Self::on(0).await.expect("a free port")
    }

    /// Starts on this loopback port.
    pub async fn on(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State { scripts: Mutex::default(), journal: Journal::default() });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(serve::accept(listener, state.clone(), tasks.clone(), stop.clone()));
        Ok(Self { address, state, tasks, stop: stop.drop_guard() })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What an OpenAI SDK would be given.
    pub fn base_url(&self) -> String {
        format!("{}/v1", self.url())
    }

    /// Registers a script; its model is `script:NAME`. Panics on a script that is none.
    pub fn script(&self, name: &str, script: Value) {
        self.state.register(name, serde_json::from_value(script).expect("a script")).expect("a script");
    }

    /// Lets one stall of a script go on.
    pub fn release(&self, name: &str) {
        self.state.release(name);
    }

    /// The journal so far.
    pub fn journal(&self) -> Snapshot {
        self.state.journal.snapshot()
    }

    /// What the journal's clock says: milliseconds since the start.
    pub fn now_ms(&self) -> f64 {
        self.state.journal.now_ms()
    }

    /// Empties the journal; the clock goes on.
    pub fn clear(&self) {
        self.state.journal.clear();
    }

    /// Waits until the journal is as `wanted`. There is no limit in here: tests bring their own.
    pub async fn wait_until(&self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut changes = self.state.journal.changes();
        loop {
            let snapshot = self.journal();
            if wanted(&snapshot) {
                return snapshot;
            }
            changes.changed().await.expect("the lab is running");
        }
    }

    /// Stops and waits until every connection is closed.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl State {
    fn scripts(&self) -> MutexGuard<'_, BTreeMap<String, Registered>> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a script in, or says what is wrong with it.
    pub(super) fn register(&self, name: &str, script: Script) -> Result<(), String> {
        script.check()?;
        let releases = Arc::new(Semaphore::new(0));
        let registered = Registered { script: Arc::new(script), requests: 0, releases };
        self.scripts().insert(name.to_owned(), registered);
        Ok(())
    }

    pub(super) fn forget(&self, name: &str) -> bool {
        self.scripts().remove(name).is_some()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.scripts().keys().cloned().collect()
    }

    pub(super) fn release(&self, name: &str) -> bool {
        self.scripts().get(name).map(|known| known.releases.add_permits(1)).is_some()
    }

    /// The script of this name, the number of requests it had before, and its stall.
    pub(super) fn take(&self, name: &str) -> Option<(Arc<Script>, usize, Arc<Semaphore>)> {
        let mut scripts = self.scripts();
        let known = scripts.get_mut(name)?;
        known.requests += 1;
        Some((known.script.clone(), known.requests - 1, known.releases.clone()))
    }
}
