//! Performs the engine's actions until the turn ends, or hands bytes through.
//!
//! [`begin`] makes a turn a task of its own and gives the response as soon as its head is known.

pub mod body;
mod chat;
mod drive;
mod ending;
pub mod headers;
mod metered;
pub mod pass;
mod sink;
mod slots;
mod summary;
pub mod watching;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub use drive::{Parts, Started};
pub use sink::{error_headers, error_response};
pub use slots::Slots;

use crate::engine::Ask;
use crate::policy::plan::TurnPlan;
use crate::wire::request::{ChatRequest, Choice};

/// How the client's side of a turn behaves.
#[derive(Debug, Clone)]
pub struct Client {
    /// Headers of every response.
    pub headers: HeaderMap,
    /// Bytes held for a client that reads slowly.
    pub buffer: usize,
    /// Silence in a stream before a comment.
    pub keep_alive: Duration,
}

/// Begins a turn as a task of its own. `held` is dropped when the turn is over: the places it takes
/// among its team's and the process's turns. `None`: the turn ended without an answer, because the
/// client is gone.
pub async fn begin<H: Send + 'static>(
    started: Started,
    client: Client,
    tasks: &TaskTracker,
    held: H,
) -> Option<Response<body::Body>> {
    let (answer, head) = oneshot::channel();
    let options = sink::Options {
        stream: started.plan.stream,
        include_usage: started.plan.include_usage,
        headers: client.headers,
        fallback: chat::Fallback {
            id: format!("chatcmpl-{}", started.request_id),
            created: seconds_since_1970(),
            model: started.request.model.clone(),
        },
        buffer: client.buffer,
        keep_alive: client.keep_alive,
    };
    let sink = sink::Sink::new(options, answer);
    let driver = drive::Driver::new(started, sink);
    tasks.spawn(async move {
        let rests = driver.run().await;
        drop(held);
        rests.join_all().await;
    });
    head.await.ok()
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The body that the first question of a turn would have.
#[must_use]
pub fn first_question(request: &ChatRequest, plan: &TurnPlan) -> Bytes {
    let owned: Vec<_> = plan.owned.values().map(|tool| tool.definition.clone()).collect();
    let no_tools = owned.is_empty() && plan.foreign.is_empty() && !plan.legacy_functions;
    let ask = Ask {
        id: 1,
        round: 1,
        attempt: 0,
        parallel: plan.decision.send,
        choice: if no_tools { Choice::Drop } else { Choice::Keep },
        drop_tools: false,
    };
    drive::render(request, plan, &owned, &[], &ask)
}
