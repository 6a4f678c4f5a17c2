//! What was counted within the last seconds. Time is handed in.

use std::time::Duration;

/// How finely a window forgets: a tenth of it at a time.
const SLOTS: u32 = 10;

/// Counts of two things over a sliding window.
#[derive(Debug, Clone)]
pub(super) struct Window {
    slot: Duration,
    slots: [Counts; SLOTS as usize],
    /// The number of the slot that is counted in now.
    now: u128,
}

/// How many there were, and how many of them were of the kind that matters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u32,
    pub(super) marked: u32,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        let slot = (length / SLOTS).max(Duration::from_millis(1));
        Self { slot, slots: [Counts::default(); SLOTS as usize], now: 0 }
    }

    /// Counts at a time since some fixed moment.
    pub(super) fn add(&mut self, now: Duration, counts: Counts) {
        self.forget(now);
        let slot = &mut self.slots[index(self.now)];
        slot.all = slot.all.saturating_add(counts.all);
        slot.marked = slot.marked.saturating_add(counts.marked);
    }

    /// What was counted within the window.
    pub(super) fn sum(&mut self, now: Duration) -> Counts {
        self.forget(now);
        self.slots.iter().fold(Counts::default(), |sum, slot| Counts {
            all: sum.all.saturating_add(slot.all),
            marked: sum.marked.saturating_add(slot.marked),
        })
    }

    fn forget(&mut self, now: Duration) {
        let now = now.as_nanos() / self.slot.as_nanos();
        let passed = now.saturating_sub(self.now).min(SLOTS.into());
        for ahead in 0..passed {
            self.slots[index(now - ahead)] = Counts::default();
        }
        self.now = self.now.max(now);
    }
}

fn index(slot: u128) -> usize {
    usize::try_from(slot % u128::from(SLOTS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::new(Duration::from_secs(10));
        let at = Duration::from_millis;
        let one = Counts { all: 1, marked: 1 };
        window.add(at(500), one);
        window.add(at(5_500), Counts { all: 1, marked: 0 });
        assert_eq!(window.sum(at(9_999)), Counts { all: 2, marked: 1 });
        assert_eq!(window.sum(at(10_000)), Counts { all: 1, marked: 0 });
        // A clock that seems to go back counts in the present.
        window.add(at(3), one);
        assert_eq!(window.sum(at(10_001)), Counts { all: 2, marked: 1 });
        assert_eq!(window.sum(at(1_000_000)), Counts::default());
    }
}
