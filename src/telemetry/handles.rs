//! Handles of series, found by name and labels: a series is registered once, not at each use.
//!
//! Registering builds a key of its own memory and hashes it with care; looking here costs neither. Series come
//! from closed sets, so soon nothing is added any more, and reading takes no lock.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashTable};

/// A label: its name and value.
pub(super) type Pair<'a> = (&'static str, &'a str);
/// So many series are remembered; more would mean that labels are no closed set.
const MOST: usize = 16 * 1024;

#[derive(Debug, Clone)]
struct Entry<H> {
    name: &'static str,
    labels: Box<[(&'static str, Box<str>)]>,
    handle: H,
}

/// All handles of one kind.
#[derive(Debug)]
pub(super) struct Handles<H> {
    table: ArcSwap<HashTable<Entry<H>>>,
    adding: Mutex<()>,
    state: DefaultHashBuilder,
    most: usize,
}

impl<H> Entry<H> {
    /// A name always comes with the same labels in the same order, so their values tell.
    fn is(&self, name: &'static str, labels: &[Pair<'_>]) -> bool {
        // The text of a constant lies in one place, nearly always.
        let named = std::ptr::eq(self.name, name) || self.name == name;
        let mut values = self.labels.iter().zip(labels).map(|((_, own), (_, value))| (&**own, *value));
        let found = named && self.labels.len() == labels.len() && values.all(|(own, value)| own == value);
        debug_assert!(
            !found || self.labels.iter().zip(labels).all(|((own, _), (name, _))| own == name),
            "{name} has other labels elsewhere"
        );
        found
    }
}

impl<H: Clone> Handles<H> {
    pub(super) fn new() -> Self {
        Self {
            table: ArcSwap::default(),
            adding: Mutex::new(()),
            state: DefaultHashBuilder::default(),
            most: MOST,
        }
    }

    /// The handle of a series; `register` makes it the first time.
    pub(super) fn of(&self, name: &'static str, labels: &[Pair<'_>], register: impl FnOnce() -> H) -> H {
        self.with(name, labels, register, H::clone)
    }

    /// Uses the handle of a series where it lies: a clone would be counted by all threads in one place.
    pub(super) fn with<R>(
        &self,
        name: &'static str,
        labels: &[Pair<'_>],
        register: impl FnOnce() -> H,
        act: impl FnOnce(&H) -> R,
    ) -> R {
        let hash = self.hash(name, labels.iter().map(|(_, value)| *value));
        if let Some(entry) = self.table.load().find(hash, |entry| entry.is(name, labels)) {
            return act(&entry.handle);
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.table.load_full();
        if let Some(entry) = present.find(hash, |entry| entry.is(name, labels)) {
            return act(&entry.handle);
        }
        let handle = register();
        if present.len() < self.most {
            let mut table = HashTable::clone(&present);
            let labels = labels.iter().map(|(name, value)| (*name, (*value).into())).collect();
            let entry = Entry { name, labels, handle: handle.clone() };
            let again =
                |entry: &Entry<H>| self.hash(entry.name, entry.labels.iter().map(|(_, value)| &**value));
            table.insert_unique(hash, entry, again);
            self.table.store(table.into());
        }
        act(&handle)
    }

    fn hash<'a>(&self, name: &str, values: impl Iterator<Item = &'a str>) -> u64 {
        // Values differ more than names do; a separator keeps neighbours apart.
        let mut hasher = self.state.build_hasher();
        hasher.write(name.as_bytes());
        for value in values {
            hasher.write_u8(0xff);
            hasher.write(value.as_bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_registered_once_and_no_two_are_mixed_up() {
        let handles = Handles::new();
        let mut registered = Vec::new();
        let series: [(&'static str, &[(&'static str, &'static str)]); 6] = [
            ("a", &[]),
            ("b", &[]),
            ("a", &[("x", "1")]),
            ("a", &[("x", "2")]),
            ("a", &[("x", "1"), ("y", "2")]),
            ("a", &[("x", "12")]),
        ];
        for _ in 0..3 {
            for (at, (name, labels)) in series.iter().enumerate() {
                let handle = handles.of(name, labels, || {
                    registered.push(at);
                    at
                });
                assert_eq!(handle, at);
            }
        }
        assert_eq!(registered, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let handles = Handles { most: 8, ..Handles::new() };
        for n in 0..64 {
            assert_eq!(handles.of("a", &[("x", &n.to_string())], || n), n);
        }
        assert_eq!(handles.table.load().len(), 8);
    }
}
