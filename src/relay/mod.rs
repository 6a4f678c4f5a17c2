//! Performs the engine's actions until the turn ends, or hands bytes through.
//!
//! [`begin`] makes a turn a task of its own and gives the response as soon as its head is known.

mod answer;
pub mod body;
mod chat;
mod drive;
mod ending;
mod events;
pub mod headers;
mod heard;
mod listen;
mod metered;
pub mod pass;
pub mod render;
mod sink;
mod slots;
mod spans;
mod summary;
pub mod watching;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use http::{HeaderMap, Response};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub use drive::{Parts, Started};
pub use listen::{listen, replay};
pub use sink::{error_headers, error_response};
pub use slots::Slots;
pub(crate) use summary::repetition;

use crate::ledger::Owner;

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

/// Begins a turn as a task of its own. `run`: what the ledger knows it as, if it is in the ledger. `held` is dropped when the turn is over: the places it takes
/// among its team's and the process's turns.
pub async fn begin<H: Send + 'static>(
    started: Box<Started>,
    run: Option<Owner>,
    client: Client,
    tasks: &TaskTracker,
    held: H,
) -> Response<body::Body> {
    let (answer, head) = oneshot::channel();
    let broken = summary::Broken::of(&started);
    let options = sink::Options {
        stream: started.plan.stream,
        include_usage: started.plan.include_usage,
        headers: client.headers,
        fallback: chat::Fallback {
            request_id: started.request_id.clone(),
            created: seconds_since_1970(),
            model: started.request.model.clone(),
        },
        buffer: client.buffer,
        keep_alive: client.keep_alive,
    };
    let sink = Box::new(sink::Sink::new(options, answer, run.as_deref().cloned()));
    // Boxed before they are handed on: what is called or spawned is moved several times.
    let driver = Box::new(drive::Driver::new(started, run, sink));
    let run = AssertUnwindSafe(Box::pin(driver.run())).catch_unwind();
    tasks.spawn(async move {
        let rests = run.await;
        drop(held);
        match rests {
            Ok(rests) => _ = rests.join_all().await,
            Err(_) => broken.tell(),
        }
    });
    // A turn that ends without an answer has nobody to read one.
    head.await.unwrap_or_else(|_| error_response(&sink::broke_off()))
}

/// An id that nobody else has; ids of different milliseconds are in the order of time. Those of the same one are not:
/// that would take a lock which all threads share.
pub(crate) fn new_id() -> uuid::Uuid {
    uuid::Uuid::new_v7(uuid::Timestamp::now(uuid::NoContext))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
