//! The run ledger: a repetition of a request gets the answer of the run that the request already had.
//!
//! OpenAI's SDKs repeat a request by themselves when its connection breaks, and a person's program may do so with an
//! `Idempotency-Key`. A tool with `effect: write` must not run again by that. A *run* is one turn; an *attempt* is one
//! request that asks for it.
//!
//! ```text
//!                        ┌─ joined: a run in this process ─▶ its tape, from the beginning
//!  attempt ─▶ find ──────┼─ replayed: the store has its end ─▶ the answer, or one 424
//!  (keyed or a retry)    ├─ waits: another replica runs it ─┘
//!                        └─ nothing ─▶ claims the record, runs
//!  attempt ─▶ begin ──────────────────▶ runs; its first write call claims the record
//!  (first, without key)
//! ```
//!
//! # Why nothing runs twice
//!
//! Attempts meet under a *name*: the client's key, or the digest of who asked and what. The store has one record
//! for a name, and each operation on it is atomic.
//!
//! 1. **No `write` call leaves before [`Run::permit`].** It says yes only after the record says that this run has effects.
//!    So whoever comes later, here or at another replica, finds that out.
//! 2. **A repetition never begins a run while there is such a record.** It joins, waits, or is told the end. If the owner
//!    of the record died (it was not renewed for [`Settings::lease`]), that is one 424 that no SDK repeats.
//! 3. **A repetition that found nothing claims the record before it runs.** If the attempt it repeats has not noticed yet
//!    that its client left, and only then wants its first effect, it finds the claim of a repetition that began after
//!    itself, and is refused ([`Refused::Superseded`]): exactly one of the two has the permission.
//! 4. **Two first attempts at once are two requests.** Neither is a repetition, so the second takes the record over. A
//!    repetition of either then gets the answer of the latest: the same request, and no third run.
//! 5. **A run that its client left** goes on for whoever joined before the turn knew; [`Run::leave`] and joining
//!    exclude each other. Without effects it ends and is forgotten, and its repetition simply runs; with effects
//!    what is kept is an error that says which tools ran.
//!
//! What it costs: a turn whose tools cannot write, and that has no key, pays nothing. One whose tools can write pays a
//! digest and an entry in a map of this process; the store is asked when the first `write` call is due, or when the
//! request says that it repeats or has a key.
//!
//! A shared store may go down, and may come back without what it had. So each replica remembers how its own runs ended,
//! and writes anew what the store lost of those that run.
//!
//! What it cannot know: with a store in memory, what ran before the process was killed; anything, while a shared store
//! is down for longer than a few seconds, of other replicas (then the operator's `store.on_error` says whether such
//! calls and repetitions run all the same); what was pushed out of the store by its bounds. Replicas compare when two
//! attempts began by their clocks, which a repetition's pause (half a second) allows to differ a little.

mod entry;
mod run;
mod tape;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

pub use self::entry::Answer;
use self::entry::Entry;
#[doc(hidden)]
pub use self::entry::reread;
pub use self::run::{End, Listener, Owner, Refused, Run};
pub use self::tape::{Heard, Tape};
use crate::store::{Claim, Key, Space, Store, StoreError, Version};
use crate::wire::error::ErrorReply;

/// How often another replica's run is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long the store is asked again while it is down, where not knowing could let a tool run twice: as
/// long as a restart or a failover of it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked then.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The bounds of the ledger. How many runs and how many bytes there are is for the store to bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long the end of a run is known.
    pub age: Duration,
    /// The most bytes of one answer that are kept.
    pub answer: usize,
    /// How long a record may go unrenewed before its owner counts as dead.
    pub lease: Duration,
    /// What is not known because a shared store is down is refused, rather than taken for new.
    pub deny: bool,
}

/// What is known of runs.
#[derive(Debug)]
pub struct Ledger {
    store: Arc<Store>,
    /// How runs of this process ended, where the store is shared: it may be down, or come back without what it had.
    own: Option<Store>,
    settings: Settings,
    /// Runs of this process that have not ended.
    running: Mutex<HashMap<Name, Vec<Arc<Run>>>>,
}

/// What attempts of one request have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    keyed: bool,
    team: Arc<str>,
    name: String,
}

impl Name {
    fn key(&self) -> Key<'_> {
        let space = if self.keyed { Space::Keyed } else { Space::Alike };
        Key { space, team: &self.team, name: &self.name }
    }

    const fn is_keyed(&self) -> bool {
        self.keyed
    }
}

/// One request that asks for a run.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Whose it is.
    pub team: Arc<str>,
    /// The client's own key.
    pub key: Option<String>,
    /// The digest of who asked and what, in hexadecimal digits.
    pub alike: String,
    /// An SDK says that it repeats.
    pub retry: bool,
    /// The request's id.
    pub request_id: String,
}

/// What an attempt gets.
#[derive(Debug)]
pub enum Found {
    /// Nothing stands against a run; this is it.
    Begin(Owner),
    /// A run in this process, to listen to.
    Join(Listener),
    /// The answer of a run, and the id of its request.
    Replay(Answer, String),
    /// An error.
    Refuse(ErrorReply),
}

/// What became of one look into the store.
enum Looked {
    Found(Found),
    /// Another replica runs it; it may have had this effect.
    Running(Option<String>),
}

impl Ledger {
    /// A ledger in this store. `own`: memory of this process for the ends of its runs, where the store is shared.
    #[must_use]
    pub fn new(store: Arc<Store>, own: Option<Store>, settings: Settings) -> Arc<Self> {
        Arc::new(Self { store, own, settings, running: Mutex::default() })
    }

    /// Drops what is too old; to be called every few seconds.
    pub fn sweep(&self) {
        if let Some(own) = &self.own {
            own.sweep();
        }
    }

    /// How much this process knows: records in its memory, and runs that have not ended.
    #[must_use]
    pub fn entries(&self) -> usize {
        let running = self.running().values().map(Vec::len).sum::<usize>();
        running + self.store.recorded() + self.own.as_ref().map_or(0, Store::recorded)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Name, Vec<Arc<Run>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an attempt gets. Waits for a run of another replica, for as long as `patience`.
    pub async fn find(self: &Arc<Self>, attempt: Attempt, patience: Duration) -> Found {
        let name = Name {
            keyed: attempt.key.is_some(),
            team: attempt.team.clone(),
            name: attempt.key.clone().unwrap_or_else(|| attempt.alike.clone()),
        };
        let entry = Entry {
            run: uuid::Uuid::now_v7().to_string(),
            request_id: attempt.request_id,
            body: attempt.alike,
            began: millis_since_1970(),
            retry: attempt.retry,
            effect: None,
            ended: None,
        };
        if !name.keyed && !entry.retry {
            return Found::Begin(self.begin(name, entry, None));
        }
        let end = Instant::now() + patience;
        loop {
            if let Some(found) = self.here(&name, &entry) {
                return found;
            }
            let effect = match self.look(&name, &entry).await {
                Looked::Found(found) => return found,
                Looked::Running(effect) => effect,
            };
            if Instant::now() >= end {
                return Found::Refuse(effect.map_or_else(too_slow, |tool| no_answer(&tool)));
            }
            sleep(LOOK).await;
        }
    }

    /// A run of this process.
    fn here(&self, name: &Name, entry: &Entry) -> Option<Found> {
        let running = self.running();
        let runs = running.get(name)?;
        if name.keyed && runs.iter().any(|run| !run.is_of(&entry.body)) {
            return Some(Found::Refuse(other_body()));
        }
        // The newest first: an older one may be about to notice that its client left.
        runs.iter().rev().find_map(Run::join).map(Found::Join)
    }

    async fn look(self: &Arc<Self>, name: &Name, entry: &Entry) -> Looked {
        let claim = || self.store.claim(name.key(), entry.write(None), self.settings.age);
        let record = match patiently(claim).await {
            Ok(Claim::Yours(version)) => {
                let known = self.known_here(name, entry, Some(version)).await;
                let begin = || Found::Begin(self.begin(name.clone(), entry.clone(), Some(version)));
                return Looked::Found(known.unwrap_or_else(begin));
            }
            Err(_) => {
                let known = self.known_here(name, entry, None).await;
                return Looked::Found(known.unwrap_or_else(|| self.blind(name, entry)));
            }
            Ok(Claim::Taken(record)) => record,
        };
        let dead = record.age > self.settings.lease;
        let Some((other, body)) = Entry::read(&record.value) else {
            return self.take_over(name, entry, record.version).await;
        };
        if name.keyed && other.body != entry.body {
            return Looked::Found(Found::Refuse(other_body()));
        }
        // The answer to an earlier claim of ours was lost on its way.
        if other.run == entry.run {
            return Looked::Found(Found::Begin(self.begin(
                name.clone(),
                entry.clone(),
                Some(record.version),
            )));
        }
        match (other.ended, other.effect) {
            (Some(ended), effect) => Looked::Found(told(&ended, body, other.request_id, effect)),
            (None, Some(effect)) if dead => Looked::Found(Found::Refuse(no_answer(&effect))),
            (None, None) if dead => self.take_over(name, entry, record.version).await,
            (None, effect) => Looked::Running(effect),
        }
    }

    /// What this process itself knows of a run that has ended and that the store does not know of. A store that is
    /// there, and gave `claimed` for it, is told again.
    async fn known_here(&self, name: &Name, entry: &Entry, claimed: Option<Version>) -> Option<Found> {
        let value = self.own.as_ref()?.read(name.key()).await.ok()??.value;
        let (other, body) = Entry::read(&value)?;
        let other_body_came = name.keyed && other.body != entry.body;
        let ended = other.ended?;
        if let Some(version) = claimed
            && let Err(error) = self.store.replace(name.key(), version, value, self.settings.age).await
        {
            tracing::debug!(%error, "the store is not told again how a request ended");
        }
        Some(match other_body_came {
            true => Found::Refuse(other_body()),
            false => told(&ended, body, other.request_id, other.effect),
        })
    }

    /// Makes a record that nobody cares for any more one's own.
    async fn take_over(self: &Arc<Self>, name: &Name, entry: &Entry, of: Version) -> Looked {
        let replace = || self.store.replace(name.key(), of, entry.write(None), self.settings.age);
        match patiently(replace).await {
            Ok(Some(version)) => {
                Looked::Found(Found::Begin(self.begin(name.clone(), entry.clone(), Some(version))))
            }
            // Somebody was faster; the next look says who.
            Ok(None) => Looked::Running(None),
            Err(_) => Looked::Found(self.blind(name, entry)),
        }
    }

    /// The store is down and has said so in the log; what this process knows was looked at.
    fn blind(self: &Arc<Self>, name: &Name, entry: &Entry) -> Found {
        match self.settings.deny {
            true => Found::Refuse(not_known()),
            false => Found::Begin(self.begin(name.clone(), entry.clone(), None)),
        }
    }

    fn begin(self: &Arc<Self>, name: Name, entry: Entry, held: Option<Version>) -> Owner {
        let run = Owner::new(self.clone(), name.clone(), entry, held);
        self.running().entry(name).or_default().push(run.clone());
        run
    }

    fn ended(&self, run: &Arc<Run>) {
        let mut running = self.running();
        if let Some(runs) = running.get_mut(run.name()) {
            runs.retain(|other| !Arc::ptr_eq(other, run));
            if runs.is_empty() {
                running.remove(run.name());
            }
        }
    }
}

/// What a repetition of a run that has ended is told.
fn told(ended: &entry::Ended, body: bytes::Bytes, request_id: String, effect: Option<String>) -> Found {
    match ended.answer(body) {
        Some(answer) => Found::Replay(answer, request_id),
        None => Found::Refuse(lost(&effect.unwrap_or_default())),
    }
}

/// Asks the store, again and again for a while if it is down.
async fn patiently<T, F>(mut ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let end = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(StoreError::Down(_)) if Instant::now() < end => sleep(ASK_AGAIN).await,
            answer => return answer,
        }
    }
}

fn millis_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn other_body() -> ErrorReply {
    ErrorReply::new(
        422,
        "idempotency_key_reused",
        "This Idempotency-Key came with another body before. A key belongs to one request and its repetitions: make a new one for each request.",
    )
}

fn not_known() -> ErrorReply {
    ErrorReply::new(
        503,
        "store_unavailable",
        "Whether this request was served before cannot be found out right now: this gateway's shared store is down. Try again later.",
    )
    .retry_after(5)
}

fn after_tools(what: &str) -> ErrorReply {
    ErrorReply::new(424, "turn_failed_after_tools", what).never_retry()
}

fn no_answer(tool: &str) -> ErrorReply {
    after_tools(&format!(
        "An earlier attempt of this request called a tool with effects, {tool}, and ended without an answer. Repeating it could repeat those effects, so check them first."
    ))
}

fn lost(tool: &str) -> ErrorReply {
    let after =
        if tool.is_empty() { String::new() } else { format!(" It called a tool with effects, {tool}.") };
    after_tools(&format!(
        "An earlier attempt of this request was answered, and the answer was too large to be kept.{after} Check what it did before you repeat it."
    ))
}

fn too_slow() -> ErrorReply {
    ErrorReply::new(
        504,
        "turn_timeout",
        "An earlier attempt of this request is still running elsewhere. Try again later.",
    )
}
