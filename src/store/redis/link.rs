//! One connection to the server, replaced when it is lost.
//!
//! ```text
//!        ┌─ connected ──▶ up ── an operation fails, or a ping ──┐
//!      down ◀───────────────────────────────────────────────────┘
//!        └─ not: again, after 0.1 s doubling to 3 s
//! ```
//!
//! While it is down every operation fails at once, so a server that is gone costs a request nothing; of
//! those under way when it goes each waits for its own timeout at most. A connection that was too slow
//! once is given up: on a dead one nothing would ever come, and a new one costs a millisecond.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::store::StoreError;

/// The longest a connection may take to be made, TLS and password included.
const CONNECT: Duration = Duration::from_secs(2);
/// How often a connection that nobody uses is tried.
const PING: Duration = Duration::from_secs(5);
/// The first and the longest pause between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// How the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Up,
    /// It does not; why, for the operator.
    Down(String),
}

/// The connection there is, or none.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    timeout: Duration,
    current: ArcSwapOption<MultiplexedConnection>,
    lost: Notify,
    health: watch::Sender<Health>,
}

impl Link {
    pub(super) fn new(client: Client, timeout: Duration) -> Self {
        let health = watch::Sender::new(Health::Down("not connected yet".into()));
        Self { client, timeout, current: ArcSwapOption::empty(), lost: Notify::new(), health }
    }

    pub(super) fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Asks the server something, within the timeout.
    pub(super) async fn ask<T>(
        &self,
        what: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, StoreError> {
        let Some(connection) = self.current.load_full() else {
            let why = match &*self.health.borrow() {
                Health::Up => "not connected".to_owned(),
                Health::Down(why) => why.clone(),
            };
            return Err(StoreError::Down(why));
        };
        match timeout(self.timeout, what(connection.as_ref().clone())).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if concerns_the_operation(&error) => Err(StoreError::Down(told(&error))),
            Ok(Err(error)) => Err(self.lose(&connection, told(&error))),
            Err(_) => {
                Err(self.lose(&connection, format!("no answer within {} ms", self.timeout.as_millis())))
            }
        }
    }

    fn lose(&self, connection: &Arc<MultiplexedConnection>, why: String) -> StoreError {
        let before = self.current.compare_and_swap(connection, None);
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, connection)) {
            self.health.send_replace(Health::Down(why.clone()));
            self.lost.notify_one();
        }
        StoreError::Down(why)
    }

    /// Connects once, if there is no connection.
    pub(super) async fn connect(&self) {
        if self.current.load().is_some() {
            return;
        }
        let health = match timeout(CONNECT, connected(&self.client)).await {
            Ok(Ok(connection)) => {
                self.current.store(Some(Arc::new(connection)));
                Health::Up
            }
            Ok(Err(error)) => Health::Down(told(&error)),
            Err(_) => Health::Down(format!("no connection within {} s", CONNECT.as_secs())),
        };
        self.health.send_if_modified(|now| {
            *now != health && {
                *now = health;
                true
            }
        });
    }

    /// Keeps a connection, for as long as it is polled.
    pub(super) async fn keep_up(&self) {
        let mut pause = PAUSES.0;
        loop {
            self.connect().await;
            if self.current.load().is_none() {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
            pause = PAUSES.0;
            tokio::select! {
                () = self.lost.notified() => {}
                () = sleep(PING) => {
                    // A failure is told by the link's health.
                    let ping = self.ask(async |mut link| redis::cmd("PING").query_async::<()>(&mut link).await);
                    let _ = ping.await;
                }
            }
        }
    }
}

async fn connected(client: &Client) -> RedisResult<MultiplexedConnection> {
    // The timeouts are the link's own.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    redis::cmd("PING").query_async::<()>(&mut connection).await?;
    Ok(connection)
}

/// Whether the server is well and only this operation is refused: for want of memory or of a right, or
/// because somebody else has put something under our keys.
fn concerns_the_operation(error: &RedisError) -> bool {
    let one = |code: &str| matches!(code, "ERR" | "EXECABORT" | "MISCONF" | "NOPERM" | "OOM" | "WRONGTYPE");
    let all = error.clone().into_server_errors();
    all.is_some_and(|all| all.iter().all(|(_, error)| one(error.code())))
        || error.kind() == ErrorKind::UnexpectedReturnType
}

/// An error for the operator. The server's own words may be in it, but none of ours: no password.
fn told(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "it refuses the user name or the password".into();
    }
    error.to_string()
}
