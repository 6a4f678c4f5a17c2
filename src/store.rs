//! Keeps small expiring things: parked results of mixed replies.
//!
//! Promises: an entry is found by the team that kept it and by nobody else; count, bytes and age are
//! bounded, the oldest going first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

/// The most entries one name of one team may have: names that return in every conversation.
const MOST_PER_NAME: usize = 64;

/// The bounds of a shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Bytes of all entries together.
    pub bytes: usize,
    /// How long an entry lives.
    pub age: Duration,
}

type Name = (Arc<str>, String);

/// Entries by team and name, in this process's memory.
#[derive(Debug)]
pub struct Shelf<V> {
    bounds: Bounds,
    entries: DashMap<Name, Vec<Entry<V>>>,
    order: Mutex<VecDeque<Placed>>,
    count: AtomicUsize,
    bytes: AtomicUsize,
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry<V> {
    number: u64,
    until: Instant,
    size: usize,
    value: Arc<V>,
}

#[derive(Debug)]
struct Placed {
    number: u64,
    until: Instant,
    name: Name,
}

impl<V> Shelf<V> {
    /// An empty shelf.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: DashMap::new(),
            order: Mutex::new(VecDeque::new()),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            next: AtomicU64::new(0),
        }
    }

    /// Keeps a value of about `size` bytes. One that is larger than the whole shelf is not kept.
    pub fn keep(&self, team: &Arc<str>, name: &str, value: V, size: usize) {
        if size > self.bounds.bytes || self.bounds.entries == 0 {
            return;
        }
        let name: Name = (team.clone(), name.to_owned());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.bounds.age;
        let mut of_name = self.entries.entry(name.clone()).or_default();
        if of_name.len() >= MOST_PER_NAME {
            let oldest = of_name.remove(0);
            self.forgot(&oldest);
        }
        of_name.push(Entry { number, until, size, value: Arc::new(value) });
        drop(of_name);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.order().push_back(Placed { number, until, name });
        self.sweep();
    }

    /// The entries of a team under a name, the newest first.
    #[must_use]
    pub fn find(&self, team: &Arc<str>, name: &str) -> Vec<Arc<V>> {
        if self.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let found = self.entries.get(&(team.clone(), name.to_owned()));
        let alive = |list: &Vec<Entry<V>>| {
            list.iter().rev().filter(|e| e.until > now).map(|e| e.value.clone()).collect()
        };
        found.map(|list| alive(list.value())).unwrap_or_default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what is too old or too much.
    pub fn sweep(&self) {
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

    fn forgot(&self, entry: &Entry<V>) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(entry.size, Ordering::Relaxed);
    }

    fn order(&self) -> std::sync::MutexGuard<'_, VecDeque<Placed>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(entries: usize, bytes: usize) -> Shelf<&'static str> {
        Shelf::new(Bounds { entries, bytes, age: Duration::from_secs(3600) })
    }

    fn found(shelf: &Shelf<&'static str>, team: &str, name: &str) -> Vec<&'static str> {
        shelf.find(&team.into(), name).into_iter().map(|v| *v).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_team_finds_its_own_entries_until_they_expire() {
        let shelf = shelf(10, 100);
        shelf.keep(&"blue".into(), "a", "one", 10);
        shelf.keep(&"blue".into(), "a", "two", 10);
        assert_eq!(found(&shelf, "blue", "a"), ["two", "one"]);
        assert!(found(&shelf, "red", "a").is_empty());
        tokio::time::advance(Duration::from_secs(3601)).await;
        assert!(found(&shelf, "blue", "a").is_empty());
        shelf.sweep();
        assert_eq!((shelf.len(), shelf.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn count_and_bytes_are_bounded_and_the_oldest_goes_first() {
        let few = shelf(2, 1000);
        for name in ["a", "b", "c"] {
            few.keep(&"t".into(), name, name, 1);
        }
        assert_eq!((few.len(), found(&few, "t", "a").len(), found(&few, "t", "c").len()), (2, 0, 1));
        let small = shelf(100, 100);
        for name in ["a", "b", "c"] {
            small.keep(&"t".into(), name, name, 40);
        }
        assert_eq!((small.len(), found(&small, "t", "a").len()), (2, 0));
        small.keep(&"t".into(), "huge", "huge", 101);
        assert_eq!(small.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_always_returns_does_not_grow() {
        let shelf = shelf(10_000, 1_000_000);
        for _ in 0..MOST_PER_NAME * 3 {
            shelf.keep(&"t".into(), "call_0", "x", 1);
        }
        assert_eq!((shelf.len(), found(&shelf, "t", "call_0").len()), (MOST_PER_NAME, MOST_PER_NAME));
        let few = Shelf::new(Bounds { entries: 100, bytes: 1_000, age: Duration::from_secs(3600) });
        for _ in 0..1_000 {
            few.keep(&"t".into(), "call_0", "x", 1);
        }
        assert!(few.order().len() <= 200);
    }
}
