//! The store in this process's memory: nothing waits, nothing fails, nobody else sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use self::meters::{Meters, Now};
use self::records::Records;
use self::shelf::Shelf;
use super::Capacity;
use super::meter::{Charge, Taken};

mod meters;
mod records;
mod shelf;

pub(super) use self::meters::Deed;

/// Everything the store keeps.
#[derive(Debug)]
pub struct Memory {
    pub(super) shelf: Shelf,
    pub(super) records: Records,
    meters: Meters,
    since: Instant,
}

impl Memory {
    pub(super) fn new(capacity: &Capacity) -> Self {
        Self {
            shelf: Shelf::new(capacity.parked),
            records: Records::new(capacity.records),
            meters: Meters::default(),
            since: Instant::now(),
        }
    }

    pub(super) fn charge(&self, team: &Arc<str>, charges: &[Charge<'_>], deed: Deed) -> Taken {
        self.meters.charge(team, charges, deed, self.now())
    }

    pub(super) fn sweep(&self) {
        self.shelf.sweep();
        self.records.sweep();
        self.meters.sweep(self.now());
    }

    fn now(&self) -> Now {
        let calendar = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { steady: millis(self.since.elapsed()), calendar: millis(calendar) }
    }
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
