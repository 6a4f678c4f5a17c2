//! The life of a server: started, listened to, ended, started again.
//!
//! ```text
//!             ┌───────────── 1 … 60 s ─────────────┐
//!             ▼                                     │
//!  Starting ─▶ Up (tools) ── ends, hangs, floods ─▶ Down (why)
//! ```
//!
//! A task of its own, which lives as long as somebody holds the [`Link`]: a configuration that was replaced keeps the
//! server while turns still use it. When the task ends nothing of the server is left.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rmcp::{Peer, RoleClient};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::asked::Watched;
use super::connect::{Conversation, Habit, open, subscribe};
use super::listing::{Listed, list};
use super::plan::Plan;
use crate::workers;

/// The shortest and the longest pause before a server is started again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a server must have been up for the pauses to begin anew.
const STEADY: Duration = Duration::from_secs(60);
/// How long a question for the tools may take that also asks whether the server is still there; less where it had less
/// to start.
const PROBE: Duration = Duration::from_secs(10);
/// The shortest time between two such questions.
const BETWEEN: Duration = Duration::from_secs(1);
/// How long the SDK may take to close a conversation.
const CLOSE: Duration = Duration::from_millis(500);
/// How long answers of a process that has ended are still read.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How it is with a server.
#[derive(Debug, Clone)]
pub(in crate::tools) enum State {
    /// Nobody knows yet.
    Starting,
    /// It can be called.
    Up(Arc<Up>),
    /// It cannot be called. Why, for the operator.
    Down(Arc<str>),
}

/// A server that can be called.
#[derive(Debug)]
pub(in crate::tools) struct Up {
    pub(super) peer: Peer<RoleClient>,
    /// The calls that are told of their progress.
    pub(super) watched: Watched,
    /// Its tools.
    pub(in crate::tools) tools: Vec<Listed>,
    /// The revision of the protocol it speaks.
    pub(in crate::tools) revision: String,
}

/// Holds a server. It ends when the last clone is gone.
#[derive(Debug)]
pub(in crate::tools) struct Link {
    pub(in crate::tools) plan: Arc<Plan>,
    shared: Arc<Shared>,
    _alive: DropGuard,
}

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    /// Somebody's call went wrong in a way that makes one wonder.
    doubt: Notify,
    /// Told at every change of the state.
    news: watch::Sender<u64>,
}

impl Link {
    /// Starts the server in a task. Changes of its state count up `news`; `stop` ends it whoever holds it.
    pub(in crate::tools) fn start(
        plan: &Arc<Plan>,
        news: watch::Sender<u64>,
        stop: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let shared =
            Arc::new(Shared { state: watch::Sender::new(State::Starting), doubt: Notify::new(), news });
        let alive = stop.child_token();
        tasks.spawn_on(live(Arc::clone(plan), Arc::clone(&shared), alive.clone()), &workers::background());
        Self { plan: Arc::clone(plan), shared, _alive: alive.drop_guard() }
    }

    /// How it is with the server now.
    pub(in crate::tools) fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Waits until the server was tried once.
    pub(in crate::tools) async fn tried(&self) {
        let mut state = self.shared.state.subscribe();
        // The sender lives in `self`.
        let _ = state.wait_for(|state| !matches!(state, State::Starting)).await;
    }

    /// Has the server asked whether it is still there.
    pub(super) fn doubt(&self) {
        self.shared.doubt.notify_one();
    }
}

impl Shared {
    fn set(&self, state: State) {
        // In one step: who has seen the state sees the news as well.
        self.news.send_modify(|news| {
            self.state.send_replace(state);
            *news = news.wrapping_add(1);
        });
    }
}

async fn live(plan: Arc<Plan>, shared: Arc<Shared>, stop: CancellationToken) {
    let mut habit = Habit::default();
    let mut pause = PAUSE.0;
    let changed = Arc::new(Notify::new());
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            opened = open(&plan, &mut habit, &changed) => opened,
        };
        let why = match opened {
            Ok(conversation) => {
                let since = Instant::now();
                let why = attend(&plan, &shared, &changed, conversation, &stop).await;
                if since.elapsed() >= STEADY {
                    pause = PAUSE.0;
                }
                why
            }
            Err(why) => why,
        };
        if stop.is_cancelled() {
            return;
        }
        let jitter = pause.mul_f64(fastrand::f64() / 10.0);
        tracing::warn!(server = %plan.name, again_in = ?pause, "a tool server is down: {why}");
        shared.set(State::Down(why.into()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause + jitter) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Stays with a conversation until it is over; then ends the server. Returns why.
async fn attend(
    plan: &Plan,
    shared: &Shared,
    changed: &Notify,
    conversation: Conversation,
    stop: &CancellationToken,
) -> String {
    let Conversation { running, mut process, schemas, watched, tools } = conversation;
    let (peer, cancel) = (running.peer().clone(), running.cancellation_token());
    let revision = peer.peer_info().map(|info| info.protocol_version.to_string()).unwrap_or_default();
    tracing::info!(server = %plan.name, tools = tools.len(), revision, "a tool server is up");
    let up = |tools| {
        let (peer, watched, revision) = (peer.clone(), watched.clone(), revision.clone());
        State::Up(Arc::new(Up { peer, watched, tools, revision }))
    };
    shared.set(up(tools.clone()));
    let mut over = pin!(running.waiting());
    let patience = PROBE.min(plan.start_timeout);
    let ask_again = async {
        let mut known = tools;
        loop {
            tokio::select! {
                () = changed.notified() => {}
                () = shared.doubt.notified() => {}
            }
            match timeout(patience, list(&plan.name, &peer, &schemas)).await {
                Ok(Ok(tools)) if tools == known => {}
                Ok(Ok(tools)) => {
                    tracing::info!(server = %plan.name, tools = tools.len(), "a tool server changed its tools");
                    shared.set(up(tools.clone()));
                    known = tools;
                }
                Ok(Err(why)) => return why,
                Err(_) => return format!("it did not list its tools within {patience:?}"),
            }
            sleep(BETWEEN).await;
        }
    };
    let exit = async {
        match &mut process {
            Some(process) => process.exited().await,
            None => std::future::pending().await,
        }
        sleep(LAST_WORDS).await;
    };
    let (why, is_over) = tokio::select! {
        biased;
        () = stop.cancelled() => ("stopped".to_owned(), false),
        _ = &mut over => ("it closed the connection".to_owned(), true),
        () = exit => ("it ended".to_owned(), false),
        why = ask_again => (why, false),
        () = subscribe(&peer, changed) => (String::new(), false),
    };
    // No call may begin any more; those that run are told when the conversation closes.
    if !stop.is_cancelled() {
        shared.set(State::Down(why.as_str().into()));
    }
    cancel.cancel();
    if !is_over && timeout(CLOSE, over).await.is_err() {
        tracing::debug!(server = %plan.name, "the conversation did not close in time");
    }
    match process {
        None => why,
        Some(process) => match process.end().await {
            Some(status) if !status.success() && !stop.is_cancelled() => format!("{why} ({status})"),
            Some(_) | None => why,
        },
    }
}
