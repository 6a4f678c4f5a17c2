//! Several keys of one upstream: used in turn, and a key that was refused rests. Time is handed in.

use std::time::Duration;

/// When each key may be used again.
#[derive(Debug)]
pub(super) struct Keys {
    rests_until: Vec<Duration>,
    next: usize,
}

impl Keys {
    pub(super) fn new(count: usize) -> Self {
        Self { rests_until: vec![Duration::ZERO; count], next: 0 }
    }

    /// The key to use: the next in turn that does not rest; if all do, the one that has rested
    /// longest of what it should. `None` without keys.
    pub(super) fn take(&mut self, now: Duration) -> Option<usize> {
        let count = self.rests_until.len();
        let in_turn = (0..count).map(|i| (self.next + i) % count);
        let taken = in_turn.clone().find(|at| self.rests_until[*at] <= now);
        let taken = taken.or_else(|| in_turn.min_by_key(|at| self.rests_until[*at]))?;
        self.next = (taken + 1) % count;
        Some(taken)
    }

    /// Lets a key rest. Gives whether there is another one to use instead.
    pub(super) fn rest(&mut self, key: usize, now: Duration, rest: Duration) -> bool {
        if let Some(until) = self.rests_until.get_mut(key) {
            *until = (*until).max(now + rest);
        }
        self.usable(now) > 0
    }

    /// How many keys do not rest.
    pub(super) fn usable(&self, now: Duration) -> usize {
        self.rests_until.iter().filter(|until| **until <= now).count()
    }

    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.rests_until.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn keys_are_used_in_turn_and_those_that_rest_are_left_out() {
        let mut keys = Keys::new(3);
        let mut take = |now| keys.take(at(now));
        assert_eq!([take(0), take(0), take(0), take(0)], [Some(0), Some(1), Some(2), Some(0)]);
        assert!(keys.rest(1, at(1), at(10)));
        assert_eq!([keys.take(at(2)), keys.take(at(2)), keys.take(at(2))], [Some(2), Some(0), Some(2)]);
        assert_eq!(keys.usable(at(2)), 2);
        assert_eq!([keys.take(at(11)), keys.take(at(11))], [Some(0), Some(1)]);
    }

    #[test]
    fn when_all_rest_the_one_that_is_done_first_is_used_all_the_same() {
        let mut keys = Keys::new(2);
        assert!(keys.rest(0, at(0), at(60)));
        assert!(!keys.rest(1, at(0), at(5)), "there is no other");
        assert_eq!([keys.take(at(1)), keys.take(at(1))], [Some(1), Some(1)]);
        assert_eq!(Keys::new(0).take(at(0)), None);
    }

    #[test]
    fn the_longer_of_two_rests_counts_and_nothing_rests_that_is_not_there() {
        let mut keys = Keys::new(2);
        assert_eq!((keys.count(), keys.usable(at(0))), (2, 2));
        keys.rest(0, at(1), at(60));
        keys.rest(0, at(2), at(3));
        assert_eq!((keys.usable(at(60)), keys.usable(at(61))), (1, 2));
        assert!(keys.rest(7, at(61), at(60)));
        assert_eq!((keys.count(), keys.usable(at(61))), (2, 2));
    }
}
