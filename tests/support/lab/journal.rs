//! What the lab saw, and when.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

/// The most entries kept; later ones are counted only.
const ENTRIES: usize = 50_000;

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number, from 1.
    pub n: u64,
    /// Milliseconds since the lab started.
    pub at_ms: f64,
    /// The connection it happened on.
    pub connection: u64,
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A connection was accepted.
    Opened,
    /// A connection ended.
    Closed { by: By },
    /// A request was read to its end (or to the end of its head, for an early script).
    Request(Box<Request>),
    /// The answer to entry `request` ended.
    Answered { request: u64, how: How },
    /// A tool began to work on entry `request`.
    ToolStarted { request: u64, tool: String },
    /// A tool ended its work on entry `request`.
    ToolEnded { request: u64, tool: String, how: How },
}

/// A request as it was received.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in small letters; a name that came twice has its values joined by `, `.
    pub headers: BTreeMap<String, String>,
    /// The body as JSON; a text if it is none.
    pub body: Value,
    /// The body as it came, for what reading it as JSON would change.
    #[serde(skip)]
    pub text: Box<str>,
    /// The script that answers it.
    pub script: Option<String>,
    /// The round of that script, from 0.
    pub round: Option<usize>,
    /// Why the request broke a rule of OpenAI's and was refused.
    pub refused: Option<String>,
    /// The label of the tool asked for.
    pub tool: Option<String>,
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Peer,
    Lab,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Written to its end.
    Complete,
    /// The lab closed or reset the connection, as it was told to.
    Cut,
    /// The other side closed first.
    PeerLeft,
}

/// How often a tool ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Runs {
    pub started: u64,
    pub complete: u64,
    pub running: u64,
    pub most_at_once: u64,
}

/// The journal at one moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Snapshot {
    pub entries: Vec<Entry>,
    /// Entries that found no room.
    pub dropped: u64,
    /// By the tool's label.
    pub tools: BTreeMap<String, Runs>,
    /// Calls of all tools together.
    pub all_tools: Runs,
    pub connections_open: u64,
}

impl Snapshot {
    /// The requests a script answered, in order.
    pub fn of_script<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a Entry, &'a Request)> {
        self.requests().filter(move |(_, request)| request.script.as_deref() == Some(name))
    }

    /// All requests, in order.
    pub fn requests(&self) -> impl Iterator<Item = (&Entry, &Request)> {
        self.entries.iter().filter_map(|entry| match &entry.what {
            What::Request(request) => Some((entry, &**request)),
            What::Opened
            | What::Closed { .. }
            | What::Answered { .. }
            | What::ToolStarted { .. }
            | What::ToolEnded { .. } => None,
        })
    }

    /// The bodies a script was asked with, in order.
    pub fn bodies(&self, script: &str) -> Vec<Value> {
        self.of_script(script).map(|(_, request)| request.body.clone()).collect()
    }

    /// How the answer to entry `n` ended, if it has.
    pub fn how(&self, n: u64) -> Option<How> {
        self.end(n).map(|(_, how)| how)
    }

    /// When and how the answer to entry `n` ended, if it has.
    pub fn end(&self, n: u64) -> Option<(f64, How)> {
        self.entries.iter().find_map(|entry| match &entry.what {
            What::Answered { request, how } if *request == n => Some((entry.at_ms, *how)),
            What::Answered { .. }
            | What::Opened
            | What::Closed { .. }
            | What::Request(_)
            | What::ToolStarted { .. }
            | What::ToolEnded { .. } => None,
        })
    }
}

/// The journal. All times are counted from its making.
pub struct Journal {
    start: Instant,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    seen: Snapshot,
    last: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self { start: Instant::now(), inner: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Journal {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since the lab started.
    pub fn now_ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1000.0
    }

    /// Writes an entry and returns its number.
    pub fn note(&self, connection: u64, what: What) -> u64 {
        let at_ms = self.now_ms();
        let mut inner = self.inner();
        inner.last += 1;
        let n = inner.last;
        inner.seen.count(&what);
        if inner.seen.entries.len() < ENTRIES {
            inner.seen.entries.push(Entry { n, at_ms, connection, what });
        } else {
            inner.seen.dropped += 1;
        }
        drop(inner);
        self.changes.send_replace(n);
        n
    }

    /// A connection turned out to be the test's own: it was never there.
    pub fn disown(&self, connection: u64) {
        let mut inner = self.inner();
        inner.seen.entries.retain(|e| e.connection != connection || !matches!(e.what, What::Opened));
        inner.seen.connections_open = inner.seen.connections_open.saturating_sub(1);
    }

    /// Everything so far.
    pub fn snapshot(&self) -> Snapshot {
        self.inner().seen.clone()
    }

    /// Forgets everything but what is still open or running.
    pub fn clear(&self) {
        let mut inner = self.inner();
        let open = inner.seen.connections_open;
        let running = |runs: &Runs| Runs { running: runs.running, ..Runs::default() };
        let tools = inner.seen.tools.iter().filter(|(_, runs)| runs.running > 0);
        let tools = tools.map(|(name, runs)| (name.clone(), running(runs))).collect();
        let all_tools = running(&inner.seen.all_tools);
        inner.seen = Snapshot { connections_open: open, tools, all_tools, ..Snapshot::default() };
    }

    /// Changes with every entry.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Snapshot {
    fn count(&mut self, what: &What) {
        match what {
            What::Opened => self.connections_open += 1,
            What::Closed { .. } => self.connections_open = self.connections_open.saturating_sub(1),
            What::ToolStarted { tool, .. } => {
                for runs in [self.tools.entry(tool.clone()).or_default(), &mut self.all_tools] {
                    runs.started += 1;
                    runs.running += 1;
                    runs.most_at_once = runs.most_at_once.max(runs.running);
                }
            }
            What::ToolEnded { tool, how, .. } => {
                for runs in [self.tools.entry(tool.clone()).or_default(), &mut self.all_tools] {
                    runs.running = runs.running.saturating_sub(1);
                    runs.complete += u64::from(*how == How::Complete);
                }
            }
            What::Request(_) | What::Answered { .. } => {}
        }
    }
}
