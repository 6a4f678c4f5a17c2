//! Records in this process's memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::store::{Bounds, Claim, Key, OVERHEAD, Record, StoreError, Version};

/// Records by key. When there are too many, the one longest not written goes: a record whose owner
/// is alive is written again and again.
#[derive(Debug)]
pub(in crate::store) struct Records {
    bounds: Bounds,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    kept: HashMap<String, Kept>,
    by_write: BTreeMap<u64, String>,
    by_end: BTreeSet<(Instant, u64)>,
    bytes: usize,
    writes: u64,
}

#[derive(Debug)]
struct Kept {
    version: Version,
    value: Bytes,
    written: Instant,
    /// The number of the write, and until when it is kept.
    write: u64,
    until: Instant,
}

impl Records {
    pub(in crate::store) fn new(bounds: Bounds) -> Self {
        Self { bounds, all: Mutex::default() }
    }

    pub(in crate::store) fn claim(
        &self,
        key: Key<'_>,
        value: Bytes,
        live: Duration,
    ) -> Result<Claim, StoreError> {
        self.fits(key, &value)?;
        let live = live.min(self.bounds.age);
        Ok(self.with(|all, now| match all.kept.get(&name(key)) {
            Some(kept) => Claim::Taken(kept.record(now)),
            None => Claim::Yours(all.write(name(key), value, live, now)),
        }))
    }

    pub(in crate::store) fn read(&self, key: Key<'_>) -> Option<Record> {
        self.with(|all, now| all.kept.get(&name(key)).map(|kept| kept.record(now)))
    }

    pub(in crate::store) fn replace(
        &self,
        key: Key<'_>,
        version: Version,
        value: Option<Bytes>,
        live: Duration,
    ) -> Result<Option<Version>, StoreError> {
        self.fits(key, value.as_ref().unwrap_or(&Bytes::new()))?;
        let live = live.min(self.bounds.age);
        Ok(self.with(|all, now| {
            let kept = all.kept.get(&name(key)).filter(|kept| kept.version == version)?;
            let value = value.unwrap_or_else(|| kept.value.clone());
            Some(all.write(name(key), value, live, now))
        }))
    }

    pub(in crate::store) fn remove(&self, key: Key<'_>, version: Version) -> bool {
        self.with(|all, _| {
            let ours = all.kept.get(&name(key)).is_some_and(|kept| kept.version == version);
            if ours {
                all.forget(&name(key));
            }
            ours
        })
    }

    /// How many there are that are not too old.
    pub(in crate::store) fn len(&self) -> usize {
        self.with(|all, _| all.kept.len())
    }

    /// Drops what is too old.
    pub(in crate::store) fn sweep(&self) {
        self.with(|_, _| ());
    }

    fn fits(&self, key: Key<'_>, value: &Bytes) -> Result<(), StoreError> {
        let fits = self.bounds.entries > 0 && size(&name(key), value) <= self.bounds.bytes;
        if fits { Ok(()) } else { Err(StoreError::TooLarge) }
    }

    /// Does something while nothing is too old, and sees to it that there is not too much after it.
    fn with<T>(&self, what: impl FnOnce(&mut All, Instant) -> T) -> T {
        let now = Instant::now();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.drop_ended(now);
        let done = what(&mut all, now);
        all.drop_over(&self.bounds);
        done
    }
}

impl All {
    fn write(&mut self, name: String, value: Bytes, live: Duration, now: Instant) -> Version {
        self.forget(&name);
        self.writes += 1;
        let (write, version, until) = (self.writes, Version::new(), now + live);
        self.bytes += size(&name, &value);
        self.by_write.insert(write, name.clone());
        self.by_end.insert((until, write));
        self.kept.insert(name, Kept { version, value, written: now, write, until });
        version
    }

    fn forget(&mut self, name: &str) {
        if let Some(kept) = self.kept.remove(name) {
            self.bytes -= size(name, &kept.value);
            self.by_write.remove(&kept.write);
            self.by_end.remove(&(kept.until, kept.write));
        }
    }

    fn drop_ended(&mut self, now: Instant) {
        while let Some((_, write)) = self.by_end.first().copied().filter(|(until, _)| *until <= now) {
            let name = self.by_write.get(&write).cloned().unwrap_or_default();
            self.forget(&name);
        }
    }

    fn drop_over(&mut self, bounds: &Bounds) {
        while self.kept.len() > bounds.entries || self.bytes > bounds.bytes {
            let Some(name) = self.by_write.first_key_value().map(|(_, name)| name.clone()) else { return };
            self.forget(&name);
        }
    }
}

impl Kept {
    fn record(&self, now: Instant) -> Record {
        Record { version: self.version, value: self.value.clone(), age: now - self.written }
    }
}

/// Team names have no NUL in them; names of records may have any byte.
fn name(key: Key<'_>) -> String {
    format!("{}\0{}\0{}", key.space.word(), key.team, key.name)
}

/// What a record takes in memory, about: three maps hold its name or its number.
fn size(name: &str, value: &Bytes) -> usize {
    value.len() + 2 * name.len() + OVERHEAD
}
