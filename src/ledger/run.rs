//! One run: who listens to it, whether it may have effects, and what is kept of it.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinSet;

use super::entry::{Answer, Ended, Entry};
use super::tape::Tape;
use super::{ASK_AGAIN, Ledger, Name, patiently};
use crate::store::{Claim, Record, StoreError, Version};

/// Why a call with effects must not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Another attempt of the same request runs its tools.
    Superseded,
    /// Whether one does is not known: the shared store is down.
    Unknown,
}

/// A run in this process.
#[derive(Debug)]
pub struct Run {
    ledger: Arc<Ledger>,
    name: Name,
    /// Its answer.
    pub tape: Tape,
    first: Entry,
    state: Mutex<State>,
    /// The record in the store, while it is ours. Locked while it is written, so that each writing knows the state
    /// the one before left.
    held: tokio::sync::Mutex<Option<Version>>,
    listeners: watch::Sender<usize>,
    permitted: OnceCell<Result<(), Refused>>,
}

#[derive(Debug, Default)]
struct State {
    /// The first tool with effects that was permitted.
    effect: Option<String>,
    /// Nobody listens any more, and the turn knows it.
    left: bool,
    /// Keeps the record alive.
    heart: JoinSet<()>,
}

/// Somebody who listens to a run that another request began. The run goes on as long as there is one.
#[derive(Debug)]
pub struct Listener {
    run: Arc<Run>,
    /// It came when the turn was about to end without anybody to tell: only the end says what is to be told.
    pub late: bool,
}

impl Deref for Listener {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.run.listeners.send_modify(|count| *count -= 1);
    }
}

/// The turn's own hold on its run. Dropped without [`end`](Self::end), the run broke off.
#[derive(Debug)]
pub struct Owner(Arc<Run>);

impl Deref for Owner {
    type Target = Arc<Run>;

    fn deref(&self) -> &Arc<Run> {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.tape.break_off();
        self.0.state().heart.abort_all();
        self.0.ledger.ended(&self.0);
    }
}

/// How a turn ended, for what is kept of it.
#[derive(Debug)]
pub enum End {
    /// With an answer or an error, which is on the tape or about to be.
    Told {
        /// It may have had effects.
        effects: bool,
    },
    /// With nobody to tell. With effects: what a repetition is told.
    Unheard(Option<Answer>),
}

impl Owner {
    pub(super) fn new(ledger: Arc<Ledger>, name: Name, first: Entry, held: Option<Version>) -> Self {
        let run = Arc::new(Run {
            tape: Tape::new(ledger.settings.answer),
            ledger,
            name,
            first,
            state: Mutex::default(),
            held: tokio::sync::Mutex::new(held),
            listeners: watch::channel(0).0,
            permitted: OnceCell::new(),
        });
        if held.is_some() {
            run.stay_alive();
        }
        Self(run)
    }

    /// The turn is over: what a repetition needs to know is kept.
    pub async fn end(self, end: End) {
        let effects = match &end {
            End::Told { effects } => *effects,
            End::Unheard(answer) => answer.is_some(),
        };
        match &end {
            End::Told { .. } => {}
            End::Unheard(Some(answer)) => self.tape.say_instead(answer),
            End::Unheard(None) => self.tape.break_off(),
        }
        let answer = self.tape.whole().await;
        let lasting = answer.as_ref().is_some_and(|answer| !invites_to_repeat(answer.status));
        let keeps = effects || (self.name.is_keyed() && lasting);
        if keeps {
            self.remember(answer.as_ref()).await;
        }
        let mut held = self.held.lock().await;
        let held = held.take();
        if held.is_none() && keeps {
            // The store was down when it should have learned of this run. Perhaps it is there now.
            let entry = self.ended(answer.as_ref());
            let claimed = self.ledger.store.claim(
                self.name.key(),
                entry.write(answer.as_ref()),
                self.ledger.settings.age,
            );
            if let Err(error) = claimed.await {
                tracing::debug!(%error, "only this replica knows how a request ended");
            }
        }
        if let Some(version) = held {
            let written = match keeps {
                true => patiently(|| self.keep(version, answer.clone())).await,
                false => self.forget(version).await,
            };
            if let Err(error) = written {
                tracing::warn!(request_id = %self.first.request_id, %error, "how a request ended is not in the store: a repetition of it may be told that it is not known");
            }
        }
    }
}

impl Run {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn name(&self) -> &Name {
        &self.name
    }

    /// The request that made it.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.first.request_id
    }

    /// Whether it is of the request with this body.
    pub(super) fn is_of(&self, body: &str) -> bool {
        self.first.body == body
    }

    /// Listens to it; `None`: it ends without an answer, and nothing it did speaks against another run.
    pub(super) fn join(self: &Arc<Self>) -> Option<Listener> {
        let state = self.state();
        if state.left && state.effect.is_none() {
            return None;
        }
        self.listeners.send_modify(|count| *count += 1);
        Some(Listener { run: self.clone(), late: state.left })
    }

    /// The turn's client, or everyone who had joined, is gone. Whether the turn has to know: nobody listens.
    #[must_use]
    pub fn leave(&self) -> bool {
        let mut state = self.state();
        state.left |= *self.listeners.borrow() == 0;
        state.left
    }

    /// Waits until nobody listens but, perhaps, the turn's own client.
    pub async fn deserted(&self) {
        let mut listeners = self.listeners.subscribe();
        let _never_closed = listeners.wait_for(|count| *count == 0).await;
    }

    /// Asks for permission to call a tool with effects. The first call asks the store; the others have its answer.
    ///
    /// # Errors
    /// Another attempt of the same request has it, or nobody knows.
    pub async fn permit(self: &Arc<Self>, tool: &str) -> Result<(), Refused> {
        *self.permitted.get_or_init(|| self.ask(tool)).await
    }

    async fn ask(self: &Arc<Self>, tool: &str) -> Result<(), Refused> {
        let entry = Entry { effect: Some(tool.to_owned()), ..self.first.clone() };
        let mut held = self.held.lock().await;
        let had = held.take();
        match patiently(|| self.claim(had, &entry)).await {
            Ok(Some(version)) => {
                *held = Some(version);
                self.stay_alive();
            }
            Ok(None) => return Err(Refused::Superseded),
            Err(StoreError::Down(_)) if self.ledger.settings.deny => return Err(Refused::Unknown),
            Err(error) => {
                tracing::warn!(request_id = %self.first.request_id, %error, "the store does not know of a call with effects: a repetition of its request at another replica would run it again");
            }
        }
        drop(held);
        self.state().effect = Some(tool.to_owned());
        Ok(())
    }

    /// Writes that effects may come, unless another attempt stands against it.
    async fn claim(&self, held: Option<Version>, entry: &Entry) -> Result<Option<Version>, StoreError> {
        let Ledger { store, settings, .. } = &*self.ledger;
        let value = entry.write(None);
        let mut over = held;
        loop {
            if let Some(version) = over.take()
                && let Some(version) =
                    store.replace(self.name.key(), version, value.clone(), settings.age).await?
            {
                return Ok(Some(version));
            }
            match store.claim(self.name.key(), value.clone(), settings.age).await? {
                Claim::Yours(version) => return Ok(Some(version)),
                Claim::Taken(record) if self.yields_to(&record) => return Ok(None),
                Claim::Taken(record) => over = Some(record.version),
            }
        }
    }

    /// Whether what is in the store is, or may be, another attempt of this very request.
    fn yields_to(&self, record: &Record) -> bool {
        let Some((other, _)) = Entry::read(&record.value) else { return false };
        if other.run == self.first.run {
            return false;
        }
        let later = other.began > self.first.began;
        self.name.is_keyed() || (other.retry && later) || (self.first.retry && !later)
    }

    fn stay_alive(self: &Arc<Self>) {
        let (run, every) = (Arc::downgrade(self), self.ledger.settings.lease / 3);
        let mut state = self.state();
        if state.heart.is_empty() {
            state.heart.spawn(beat(run, every));
        }
    }

    /// What is kept of it now that it has ended.
    fn ended(&self, answer: Option<&Answer>) -> Entry {
        let effect = self.state().effect.clone();
        Entry { effect, ended: Some(Ended::of(answer)), ..self.first.clone() }
    }

    /// Keeps how it ended in this process, if the store is a shared one.
    async fn remember(&self, answer: Option<&Answer>) {
        let Ledger { own: Some(own), settings, .. } = &*self.ledger else { return };
        let (entry, key) = (self.ended(answer), self.name.key());
        let write = async |value: Bytes| match own.claim(key, value.clone(), settings.age).await? {
            Claim::Yours(_) => Ok(()),
            Claim::Taken(record) => own.replace(key, record.version, value, settings.age).await.map(drop),
        };
        if write(entry.write(answer)).await == Err(StoreError::TooLarge) {
            // That it ran is worth more than what it said.
            let _too_large = write(self.ended(None).write(None)).await;
        }
    }

    async fn keep(&self, version: Version, answer: Option<Answer>) -> Result<(), StoreError> {
        let mut entry = self.ended(answer.as_ref());
        match self.replace(version, entry.write(answer.as_ref())).await {
            Err(StoreError::TooLarge) => {
                entry.ended = Some(Ended::of(None));
                self.replace(version, entry.write(None)).await
            }
            written => written,
        }
    }

    /// Writes the record if it is still ours, also in a state we did not hear of: a store that did not answer in
    /// time may have done what it was asked to.
    async fn replace(&self, version: Version, value: Bytes) -> Result<(), StoreError> {
        let Ledger { store, settings, .. } = &*self.ledger;
        let key = self.name.key();
        if store.replace(key, version, value.clone(), settings.age).await?.is_some() {
            return Ok(());
        }
        let Some(record) = store.read(key).await? else {
            // It came back without what it had.
            return store.claim(key, value, settings.age).await.map(drop);
        };
        if Entry::read(&record.value).is_some_and(|(entry, _)| entry.run == self.first.run) {
            store.replace(key, record.version, value, settings.age).await?;
        }
        Ok(())
    }

    async fn forget(&self, version: Version) -> Result<(), StoreError> {
        self.ledger.store.remove(self.name.key(), version).await.map(drop)
    }
}

impl Run {
    /// The record's state if it is still this run's, also in a store that came back without it. `None`: somebody
    /// else's by now, a first attempt that is no repetition of this.
    async fn still_ours(&self) -> Result<Option<Version>, StoreError> {
        let Ledger { store, settings, .. } = &*self.ledger;
        if let Some(record) = store.read(self.name.key()).await? {
            let ours = Entry::read(&record.value).is_some_and(|(entry, _)| entry.run == self.first.run);
            return Ok(ours.then_some(record.version));
        }
        let entry = Entry { effect: self.state().effect.clone(), ..self.first.clone() };
        Ok(match store.claim(self.name.key(), entry.write(None), settings.age).await? {
            Claim::Yours(version) => Some(version),
            Claim::Taken(_) => None,
        })
    }
}

/// Tells the store again and again that the owner of a record lives; soon, when it is there again after it was down.
async fn beat(run: Weak<Run>, every: Duration) {
    let mut pause = every;
    loop {
        tokio::time::sleep(pause).await;
        pause = every;
        let Some(run) = run.upgrade() else { return };
        let mut held = run.held.lock().await;
        let Some(version) = *held else { return };
        let Ledger { store, settings, .. } = &*run.ledger;
        match store.extend(run.name.key(), version, settings.age).await {
            Ok(Some(extended)) => *held = Some(extended),
            Ok(None) => match run.still_ours().await {
                Ok(Some(version)) => *held = Some(version),
                Ok(None) => {
                    *held = None;
                    return;
                }
                Err(_) => pause = ASK_AGAIN.min(every),
            },
            Err(_) => pause = ASK_AGAIN.min(every),
        }
    }
}

/// An error that a client should repeat its request after.
fn invites_to_repeat(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 409 | 429 | 500..)
}
