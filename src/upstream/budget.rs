//! How much may be asked again: a share of what was asked, and a little beside it. Without it, a
//! server that fails gets three times the load it fails under. Time is handed in.

use std::time::Duration;

use super::settings;
use super::window::{Counts, Window};

/// What a share is a share of: the questions of this long.
const LENGTH: Duration = Duration::from_secs(10);

/// The questions of the last seconds, and how many of them were repetitions.
#[derive(Debug)]
pub(super) struct Budget {
    settings: settings::Retries,
    asked: Window,
}

impl Budget {
    pub(super) fn new(settings: settings::Retries) -> Self {
        Self { settings, asked: Window::new(LENGTH) }
    }

    /// A question goes out for the first time.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked.add(now, Counts { all: 1, marked: 0 });
    }

    /// Whether one more may be asked again; if so, it counts.
    pub(super) fn again(&mut self, now: Duration) -> bool {
        let Counts { all, marked } = self.asked.sum(now);
        let share = u64::from(all) * u64::from(self.settings.percent) / 100;
        let beside = u64::from(self.settings.per_second) * LENGTH.as_secs();
        let may = u64::from(marked) < share + beside;
        if may {
            self.asked.add(now, Counts { all: 0, marked: 1 });
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn allowed(percent: u32, per_second: u32, asked: u32) -> u32 {
        let mut budget = Budget::new(settings::Retries { percent, per_second });
        (0..asked).for_each(|_| budget.asked(NOW));
        u32::try_from((0..10_000).filter(|_| budget.again(NOW)).count()).unwrap()
    }

    #[test]
    fn a_share_of_the_questions_and_some_beside_it_may_be_asked_again() {
        assert_eq!(allowed(20, 10, 0), 100);
        assert_eq!(allowed(20, 10, 1000), 300);
        assert_eq!(allowed(20, 0, 1000), 200);
        assert_eq!(allowed(0, 1, 1000), 10);
        assert_eq!(allowed(0, 0, 1000), 0);
    }

    #[test]
    fn what_was_spent_comes_back_with_time() {
        let mut budget = Budget::new(settings::Retries { percent: 0, per_second: 1 });
        while budget.again(NOW) {}
        assert!(!budget.again(NOW + Duration::from_secs(8)));
        assert!(budget.again(NOW + Duration::from_secs(10)));
    }
}
