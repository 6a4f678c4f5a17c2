//! The shelf in this process's memory: several values under one name of one team.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::time::Instant;

use crate::store::{Bounds, MOST_PER_NAME, OVERHEAD, StoreError};

type Name = (Arc<str>, String);

/// Entries by team and name, in this process's memory.
#[derive(Debug)]
pub(in crate::store) struct Shelf {
    bounds: Bounds,
    entries: DashMap<Name, Vec<Entry>>,
    order: Mutex<VecDeque<Placed>>,
    count: AtomicUsize,
    bytes: AtomicUsize,
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    until: Instant,
    size: usize,
    value: Bytes,
}

#[derive(Debug)]
struct Placed {
    number: u64,
    until: Instant,
    name: Name,
}

impl Shelf {
    /// An empty shelf.
    pub(in crate::store) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: DashMap::new(),
            order: Mutex::new(VecDeque::new()),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// Keeps a value. One that is larger than the whole shelf is not kept.
    pub(in crate::store) fn keep(&self, team: &Arc<str>, name: &str, value: Bytes) -> Result<(), StoreError> {
        let size = value.len() + name.len() + OVERHEAD;
        if size > self.bounds.bytes || self.bounds.entries == 0 {
            return Err(StoreError::TooLarge);
        }
        let name: Name = (team.clone(), name.to_owned());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.bounds.age;
        let mut of_name = self.entries.entry(name.clone()).or_default();
        if of_name.len() >= MOST_PER_NAME {
            let oldest = of_name.remove(0);
            self.forgot(&oldest);
        }
        of_name.push(Entry { number, until, size, value });
        drop(of_name);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.order().push_back(Placed { number, until, name });
        self.sweep();
        Ok(())
    }

    /// The entries of a team under a name, the newest first.
    pub(in crate::store) fn find(&self, team: &Arc<str>, name: &str) -> Vec<Bytes> {
        if self.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let found = self.entries.get(&(team.clone(), name.to_owned()));
        let alive = |list: &Vec<Entry>| {
            list.iter().rev().filter(|e| e.until > now).map(|e| e.value.clone()).collect()
        };
        found.map(|list| alive(list.value())).unwrap_or_default()
    }

    /// How many entries there are.
    pub(in crate::store) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub(in crate::store) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what is too old or too much.
    pub(in crate::store) fn sweep(&self) {
        let now = Instant::now();
        loop {
            let over =
                self.len() > self.bounds.entries || self.bytes.load(Ordering::Relaxed) > self.bounds.bytes;
            let mut order = self.order();
            // Entries that left because their name returned too often are still in the order.
            let over = over || order.len() > self.bounds.entries.saturating_mul(2);
            let due = order.front().is_some_and(|first| over || first.until <= now);
            let Some(oldest) = due.then(|| order.pop_front()).flatten() else { return };
            drop(order);
            self.remove(&oldest);
        }
    }

    fn remove(&self, placed: &Placed) {
        self.entries.remove_if_mut(&placed.name, |_, list| {
            if let Some(at) = list.iter().position(|entry| entry.number == placed.number) {
                let entry = list.remove(at);
                self.forgot(&entry);
            }
            list.is_empty()
        });
    }

    fn forgot(&self, entry: &Entry) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(entry.size, Ordering::Relaxed);
    }

    fn order(&self) -> std::sync::MutexGuard<'_, VecDeque<Placed>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shelf(entries: usize, bytes: usize) -> Shelf {
        Shelf::new(Bounds { entries, bytes, age: Duration::from_secs(3600) })
    }

    fn keep(shelf: &Shelf, name: &str, value: &'static str) {
        shelf.keep(&"t".into(), name, Bytes::from_static(value.as_bytes())).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_expired_leaves_no_trace() {
        let shelf = shelf(10, 1_000);
        keep(&shelf, "a", "one");
        keep(&shelf, "b", "two");
        tokio::time::advance(Duration::from_secs(3601)).await;
        assert!(shelf.find(&"t".into(), "a").is_empty());
        shelf.sweep();
        assert_eq!((shelf.len(), shelf.bytes.load(Ordering::Relaxed), shelf.entries.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_always_returns_does_not_grow() {
        let many = shelf(10_000, 1_000_000);
        for _ in 0..MOST_PER_NAME * 3 {
            keep(&many, "call_0", "x");
        }
        assert_eq!((many.len(), many.find(&"t".into(), "call_0").len()), (MOST_PER_NAME, MOST_PER_NAME));
        let few = shelf(100, 1_000_000);
        for _ in 0..1_000 {
            keep(&few, "call_0", "x");
        }
        assert!(few.order().len() <= 200);
    }
}
