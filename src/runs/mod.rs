//! Remembers the last runs and those that are under way, and tells who watches.
//!
//! ```text
//!  a turn ─▶ Watch ── change ─▶ running ── end ─▶ the last `keep` runs, within `bytes`
//!                        └─ if somebody watches ─▶ broadcast (who is slow loses updates)
//! ```
//!
//! Whoever drives a turn says what is new when a round or a call begins or ends, never for a piece of
//! text. What is new is changed in its place; a run is written out when somebody looks. Nothing here waits: a
//! watcher that does not read misses events and is told so. What was said in a run is only taken along when the
//! operator wants it, and counts against the same bound while the run goes on.

mod run;
pub mod settings;
mod stats;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use serde_json::value::RawValue;
use smallvec::SmallVec;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

pub use self::run::{
    About, Again, Asked, Batch, Call, CallContent, Content, End, Kind, Progress, Round, Run, Summary, Text,
};
use self::settings::Settings;
pub use self::stats::Figures;
use self::stats::Stats;
use crate::telemetry::redact::Redact;

/// Events that wait for a slow watcher before it loses the oldest.
const EVENTS: usize = 256;

/// The runs of this process.
#[derive(Debug)]
pub struct Runs {
    keep: usize,
    bytes: usize,
    /// How much is kept of one text, in bytes.
    pub text: usize,
    watchers: usize,
    kept: Mutex<Kept>,
    /// What runs that go on hold of what was said.
    held: AtomicUsize,
    events: broadcast::Sender<Arc<RawValue>>,
    followers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Kept {
    running: HashMap<u64, Arc<Running>>,
    /// Numbers those that run.
    next: u64,
    /// The oldest first.
    ended: VecDeque<Entry>,
    bytes: usize,
    stats: Stats,
}

/// A run that goes on.
#[derive(Debug)]
struct Running {
    about: Arc<About>,
    progress: Mutex<Progress>,
}

impl Running {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> Arc<Run> {
        Arc::new(Run::new(self.about.clone(), self.progress().clone(), None))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    run: Arc<Run>,
    content: Option<Arc<Content>>,
    size: usize,
}

/// A run somebody asked for.
#[derive(Debug, Clone)]
pub struct Found {
    /// The run.
    pub run: Arc<Run>,
    /// What was said in it, if that is kept.
    pub content: Option<Arc<Content>>,
}

impl Runs {
    /// `None`: nothing is to be remembered.
    #[must_use]
    pub fn new(settings: &Settings) -> Option<Arc<Self>> {
        if settings.keep == 0 {
            return None;
        }
        Some(Arc::new(Self {
            keep: settings.keep as usize,
            bytes: settings.bytes.0,
            text: settings.text.0,
            watchers: settings.watchers as usize,
            kept: Mutex::default(),
            held: AtomicUsize::new(0),
            events: broadcast::Sender::new(EVENTS),
            followers: AtomicUsize::new(0),
        }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>, about: About, progress: Progress) -> Watch {
        let running = Arc::new(Running { about: Arc::new(about), progress: progress.into() });
        let mut kept = self.kept();
        kept.next += 1;
        let number = kept.next;
        kept.running.insert(number, running.clone());
        drop(kept);
        self.tell(&running);
        Watch { runs: self.clone(), number, running, held: 0, ended: false }
    }

    /// The runs that go on and those that ended, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Run>> {
        let kept = self.kept();
        let mut all: Vec<Arc<Run>> = kept.running.values().map(|running| running.look()).collect();
        all.extend(kept.ended.iter().map(|entry| entry.run.clone()));
        drop(kept);
        all.sort_by(|a, b| (b.about.began, &b.about.id).cmp(&(a.about.began, &a.about.id)));
        all
    }

    /// A run by its id or its request's; of several the last.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Found> {
        let kept = self.kept();
        let named = |about: &About| about.id == id || about.request_id == id;
        if let Some(running) = kept.running.values().find(|running| named(&running.about)) {
            return Some(Found { run: running.look(), content: None });
        }
        let entry = kept.ended.iter().rev().find(|entry| named(&entry.run.about))?;
        Some(Found { run: entry.run.clone(), content: entry.content.clone() })
    }

    /// How calls of a tool went.
    #[must_use]
    pub fn figures(&self, tool: &str) -> Figures {
        self.kept().stats.of(tool)
    }

    /// Follows what happens, from now on: a run, as JSON, whenever something of it is new. `None`: as many
    /// follow already as may.
    #[must_use]
    pub fn follow(self: &Arc<Self>) -> Option<Follower> {
        let room = |followers| (followers < self.watchers).then_some(followers + 1);
        self.followers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        Some(Follower { events: self.events.subscribe(), runs: self.clone() })
    }

    /// To ask the channel would take its lock.
    fn is_followed(&self) -> bool {
        self.followers.load(Ordering::SeqCst) > 0
    }

    fn tell(&self, running: &Running) {
        if self.is_followed() {
            self.send(&running.look());
        }
    }

    fn send(&self, run: &Run) {
        if !self.is_followed() {
            return;
        }
        if let Ok(event) = serde_json::value::to_raw_value(run) {
            // Nobody may be left by now.
            let _nobody = self.events.send(event.into());
        }
    }

    /// Takes room for what was said in a run that goes on.
    fn hold(&self, bytes: usize) -> bool {
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|held| *held <= self.bytes)
        });
        taken.is_ok()
    }

    /// The run of this number is over.
    fn keep(&self, number: u64, running: &Running, end: End, mut content: Option<Content>) {
        let mut kept = self.kept();
        kept.running.remove(&number);
        // Nobody finds it among those that run any more.
        let progress = std::mem::take(&mut *running.progress());
        let run = Run::new(running.about.clone(), progress, Some(end));
        let mut size = run.size();
        let said = content.as_ref().map_or(0, Content::size);
        if size + said > self.bytes {
            content = None;
        } else {
            size += said;
        }
        let run = Arc::new(run);
        let told = run.clone();
        for call in &run.progress.calls {
            kept.stats.add(call);
        }
        kept.bytes += size;
        kept.ended.push_back(Entry { run, content: content.map(Arc::new), size });
        let mut forgotten = SmallVec::<[Entry; 2]>::new();
        while kept.ended.len() > self.keep || kept.bytes > self.bytes {
            let Some(oldest) = kept.ended.pop_front() else { break };
            kept.bytes -= oldest.size;
            forgotten.push(oldest);
        }
        // They are many pieces of memory, which are given back while nobody waits for it.
        drop(kept);
        drop(forgotten);
        // Who hears of it and asks finds it.
        self.send(&told);
    }
}

/// Somebody who follows what happens, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    events: broadcast::Receiver<Arc<RawValue>>,
    runs: Arc<Runs>,
}

impl Follower {
    /// The next event; an error says how many were lost.
    pub async fn next(&mut self) -> Result<Arc<RawValue>, RecvError> {
        self.events.recv().await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.runs.followers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A run that goes on. Dropped before its end was told, it counts as lost.
#[derive(Debug)]
pub struct Watch {
    runs: Arc<Runs>,
    number: u64,
    running: Arc<Running>,
    held: usize,
    ended: bool,
}

impl Watch {
    /// What was known of the run at its start.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.running.about
    }

    /// How much is kept of one text, in bytes.
    #[must_use]
    pub fn text(&self) -> usize {
        self.runs.text
    }

    /// Something is new: `change` writes it in its place.
    pub fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.running.progress());
        self.runs.tell(&self.running);
    }

    /// The beginning of a text without its secrets, if there is memory left for it.
    pub fn hold(&mut self, bytes: &[u8], redact: &Redact) -> Option<Text> {
        let text = Text::of_bytes(bytes, self.runs.text, redact);
        let size = text.text.len();
        self.runs.hold(size).then(|| {
            self.held += size;
            text
        })
    }

    /// The run is over: `change` writes what is new in its place.
    pub fn end(mut self, change: impl FnOnce(&mut Progress), end: End, content: Option<Content>) {
        change(&mut self.running.progress());
        self.ended = true;
        self.runs.keep(self.number, &self.running, end, content);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.runs.held.fetch_sub(self.held, Ordering::Relaxed);
        if self.ended {
            return;
        }
        let end = End { outcome: "lost", ..End::default() };
        self.runs.keep(self.number, &self.running, end, None);
    }
}

#[cfg(test)]
pub(crate) mod tests;
