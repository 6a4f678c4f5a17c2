//! Keeps small expiring things: parked results of mixed replies, records of runs, and what quotas
//! have counted.
//!
//! There is one [`Store`]. It is this process's memory, or a Redis or Valkey that all replicas share;
//! callers do not know which. Three families of things are in it, each with its own operations:
//!
//! | family | operations | for |
//! |---|---|---|
//! | the shelf | [`keep`](Store::keep), [`find`](Store::find) | several values under one name: parked results |
//! | records | [`claim`](Store::claim), [`read`](Store::read), [`replace`](Store::replace), [`extend`](Store::extend), [`remove`](Store::remove) | one value under a name, with one owner at a time: the ledger of runs |
//! | meters | [`take`](Store::take), [`debit`](Store::debit), [`refund`](Store::refund) | quotas and budgets, see [`meter`] |
//!
//! Promises: what a team kept is found by that team and by nobody else. Everything expires, and
//! count and bytes are bounded, the oldest going first. Each operation is atomic: of several
//! claims at once one wins. No operation waits longer than the store's timeout; in memory none
//! waits at all. What the values mean is left to those who keep them: they are bytes here, and
//! bytes out of a shared store may be anybody's.
//!
//! A store that cannot be asked is an error of the operation, never of the turn: the caller goes on
//! without.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use secrecy::SecretString;

pub mod meter;
pub mod settings;

mod memory;
mod redis;

use self::memory::Deed;
pub use self::memory::Memory;
use self::meter::{Charge, Taken};
pub use self::redis::{BUCKET, Health, Redis, Unusable};
use self::settings::Settings;
use crate::telemetry::Telemetry;
use crate::units::Secret;

/// The most values one name on the shelf may have: names that return in every conversation.
const MOST_PER_NAME: usize = 64;
/// What an entry takes beside its name and its value, about, in bytes.
const OVERHEAD: usize = 200;

/// The bounds of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Bytes of all entries together.
    pub bytes: usize,
    /// How long an entry lives; a record at the longest.
    pub age: Duration,
}

/// How much a store keeps: in memory in all, in a shared store for each team.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// On the shelf.
    pub parked: Bounds,
    /// Of records.
    pub records: Bounds,
}

/// What the name of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// The client's own idempotency key.
    Keyed,
    /// Who asked and what: the key's and the body's digest.
    Alike,
}

impl Space {
    const fn word(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Alike => "alike",
        }
    }
}

/// The key of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// What the name is.
    pub space: Space,
    /// Whose it is.
    pub team: &'a str,
    /// The name, of any text and at most a few hundred bytes.
    pub name: &'a str,
}

/// One state of a record. Each writing makes a new one, and no two are ever equal: who holds the
/// version knows that nobody has written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version(uuid::Uuid);

impl Version {
    fn new() -> Self {
        Self(uuid::Uuid::now_v7())
    }
}

/// A record as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its state.
    pub version: Version,
    /// Its value.
    pub value: Bytes,
    /// How long ago it was written or extended, by the store's own clock: an owner that extends its
    /// record every second is dead when this is ten.
    pub age: Duration,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nothing was there; the value is, now, in this state.
    Yours(Version),
    /// This was there, and still is.
    Taken(Record),
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The shared store cannot be asked: it is not there, does not answer in time, or refuses us. What
    /// was asked may have been done all the same. For the log.
    Down(String),
    /// The value is larger than all there is room for, or as much as is read at once.
    TooLarge,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(why) => write!(f, "the store is down: {why}"),
            Self::TooLarge => f.write_str("the value is too large for the store"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Where small expiring things are kept.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub enum Store {
    /// In this process.
    Memory(Memory),
    /// In a server that all replicas share.
    Redis(Redis),
}

// What a request asks a shared store is boxed: most need no room for it.
impl Store {
    /// A store in this process's memory.
    #[must_use]
    pub fn memory(capacity: &Capacity) -> Self {
        Self::Memory(Memory::new(capacity))
    }

    /// The store of these settings. One that is shared is not connected to yet.
    ///
    /// # Errors
    /// The settings of a shared store cannot be used.
    pub fn new(
        settings: &Settings,
        open: impl Fn(&Secret) -> Result<SecretString, String>,
        capacity: Capacity,
        telemetry: Telemetry,
    ) -> Result<Self, Unusable> {
        Ok(match settings {
            Settings::Here(settings::Here::Memory) => Self::memory(&capacity),
            Settings::Shared(shared) => Self::Redis(Redis::new(shared, open, capacity, telemetry)?),
        })
    }

    /// Tries once to connect to a shared store, for two seconds at most. If it is not there, operations
    /// fail until [`keep_up`](Self::keep_up) finds it.
    pub async fn connect(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Redis(redis) => redis.connect().await,
        }
    }

    /// Keeps the connections to a shared store, again and again if they are lost, and tells when it goes
    /// down and when it is there again. Never ends.
    pub async fn keep_up(&self, tell: impl FnMut(&Health)) {
        match self {
            Self::Memory(_) => std::future::pending().await,
            Self::Redis(redis) => redis.keep_up(tell).await,
        }
    }

    /// Puts a value on the shelf, beside those that are there under this name already.
    ///
    /// # Errors
    /// It is larger than the whole shelf, or the store is down.
    pub async fn keep(&self, team: &Arc<str>, name: &str, value: Bytes) -> Result<(), StoreError> {
        match self {
            Self::Memory(memory) => memory.shelf.keep(team, name, value),
            Self::Redis(redis) => Box::pin(redis.keep(team, name, &value)).await,
        }
    }

    /// The values on the shelf under each of these names, the newest first.
    ///
    /// # Errors
    /// The store is down.
    pub async fn find(&self, team: &Arc<str>, names: &[String]) -> Result<Vec<Vec<Bytes>>, StoreError> {
        match self {
            Self::Memory(memory) => Ok(names.iter().map(|name| memory.shelf.find(team, name)).collect()),
            Self::Redis(redis) => Box::pin(redis.find(team, names)).await,
        }
    }

    /// Writes a record if there is none under this key. It lives for `live`.
    ///
    /// # Errors
    /// The value is too large, or the store is down: then it may have been written or not.
    pub async fn claim(&self, key: Key<'_>, value: Bytes, live: Duration) -> Result<Claim, StoreError> {
        match self {
            Self::Memory(memory) => memory.records.claim(key, value, live),
            Self::Redis(redis) => Box::pin(redis.claim(key, &value, live)).await,
        }
    }

    /// The record under this key.
    ///
    /// # Errors
    /// The store is down.
    pub async fn read(&self, key: Key<'_>) -> Result<Option<Record>, StoreError> {
        match self {
            Self::Memory(memory) => Ok(memory.records.read(key)),
            Self::Redis(redis) => Box::pin(redis.read(key)).await,
        }
    }

    /// Writes another value if the record is still in this state, and gives its new one. `None`: it is
    /// not; somebody else wrote or removed it, or it expired.
    ///
    /// # Errors
    /// The value is too large, or the store is down: then it may have been written or not.
    pub async fn replace(
        &self,
        key: Key<'_>,
        version: Version,
        value: Bytes,
        live: Duration,
    ) -> Result<Option<Version>, StoreError> {
        match self {
            Self::Memory(memory) => memory.records.replace(key, version, Some(value), live),
            Self::Redis(redis) => Box::pin(redis.replace(key, version, Some(&value), live)).await,
        }
    }

    /// Makes the record young again, its value as it is, if it is still in this state; gives its new one.
    ///
    /// # Errors
    /// The store is down: then it may have been extended or not.
    pub async fn extend(
        &self,
        key: Key<'_>,
        version: Version,
        live: Duration,
    ) -> Result<Option<Version>, StoreError> {
        match self {
            Self::Memory(memory) => memory.records.replace(key, version, None, live),
            Self::Redis(redis) => Box::pin(redis.replace(key, version, None, live)).await,
        }
    }

    /// Removes the record if it is still in this state; whether it did.
    ///
    /// # Errors
    /// The store is down: then it may have been removed or not.
    pub async fn remove(&self, key: Key<'_>, version: Version) -> Result<bool, StoreError> {
        match self {
            Self::Memory(memory) => Ok(memory.records.remove(key, version)),
            Self::Redis(redis) => Box::pin(redis.remove(key, version)).await,
        }
    }

    /// Takes all charges from their meters, or none if one meter does not admit its own. A meter appears
    /// once among them; a charge of 0 asks whether anything is left.
    ///
    /// # Errors
    /// The store is down, and quotas are not to be counted here instead.
    pub async fn take(&self, team: &Arc<str>, charges: &[Charge<'_>]) -> Result<Taken, StoreError> {
        self.charge(team, charges, Deed::Take).await
    }

    /// Takes all charges, whether or not that much is left: what was used and is known only now.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    pub async fn debit(&self, team: &Arc<str>, charges: &[Charge<'_>]) -> Result<Taken, StoreError> {
        self.charge(team, charges, Deed::Debit).await
    }

    /// Gives charges back that were taken and not used.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    pub async fn refund(&self, team: &Arc<str>, charges: &[Charge<'_>]) -> Result<Taken, StoreError> {
        self.charge(team, charges, Deed::Refund).await
    }

    async fn charge(&self, team: &Arc<str>, charges: &[Charge<'_>], deed: Deed) -> Result<Taken, StoreError> {
        match self {
            Self::Memory(memory) => Ok(memory.charge(team, charges, deed)),
            Self::Redis(redis) => Box::pin(redis.charge(team, charges, deed)).await,
        }
    }

    /// Whether it is known that there is nothing on the shelf.
    #[must_use]
    pub fn parks_nothing(&self) -> bool {
        match self {
            Self::Memory(memory) => memory.shelf.is_empty(),
            Self::Redis(_) => false,
        }
    }

    /// How many entries the shelf of this process has; none if it is shared.
    #[must_use]
    pub fn parked(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.shelf.len(),
            Self::Redis(_) => 0,
        }
    }

    /// How many records this process has; none if they are shared.
    #[must_use]
    pub fn recorded(&self) -> usize {
        match self {
            Self::Memory(memory) => memory.records.len(),
            Self::Redis(_) => 0,
        }
    }

    /// Drops what is too old; to be called every few seconds.
    pub fn sweep(&self) {
        match self {
            Self::Memory(memory) => memory.sweep(),
            Self::Redis(redis) => redis.sweep(),
        }
    }
}
