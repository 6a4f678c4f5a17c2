//! The slots that calls of several turns share: per tool, per team, in the process.
//!
//! They are taken in this order and held together; every call takes them in the same order, so no
//! two calls wait for each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// All slots of a process.
#[derive(Debug)]
pub struct Slots {
    process: Arc<Semaphore>,
    tools: BTreeMap<Arc<str>, Arc<Semaphore>>,
}

/// The slots one call waits for.
#[derive(Debug, Clone)]
pub struct Wanted([Option<Arc<Semaphore>>; 3]);

/// The slots one call holds.
#[derive(Debug)]
pub struct Taken {
    _permits: [Option<OwnedSemaphorePermit>; 3],
}

impl Slots {
    /// Slots for so many calls in the process, and for tools that have a number of their own.
    #[must_use]
    pub fn new(process: u32, tools: impl IntoIterator<Item = (Arc<str>, u32)>) -> Self {
        let slots = |n: u32| Arc::new(Semaphore::new(n as usize));
        Self { process: slots(process), tools: tools.into_iter().map(|(name, n)| (name, slots(n))).collect() }
    }

    /// The same slots when these tools have a number of their own; a tool that had one keeps its slots.
    #[must_use]
    pub fn with_tools(&self, tools: impl IntoIterator<Item = (Arc<str>, u32)>) -> Self {
        let slots = |name: &str, n: u32| {
            self.tools.get(name).cloned().unwrap_or_else(|| Arc::new(Semaphore::new(n as usize)))
        };
        Self {
            process: self.process.clone(),
            tools: tools.into_iter().map(|(name, n)| (name.clone(), slots(&name, n))).collect(),
        }
    }

    /// The slots a call of this tool needs, for a team with these slots.
    #[must_use]
    pub fn of(&self, tool: &str, team: &Arc<Semaphore>) -> Wanted {
        Wanted([self.tools.get(tool).cloned(), Some(team.clone()), Some(self.process.clone())])
    }
}

impl Wanted {
    /// Takes them at once, if all are free.
    #[must_use]
    pub fn try_take(&self) -> Option<Taken> {
        let mut permits = [None, None, None];
        for (permit, slots) in permits.iter_mut().zip(&self.0) {
            if let Some(slots) = slots {
                *permit = Some(slots.clone().try_acquire_owned().ok()?);
            }
        }
        Some(Taken { _permits: permits })
    }

    /// Waits for them, in order. Dropping the future gives back what it has.
    pub async fn take(&self) -> Result<Taken, AcquireError> {
        let mut permits = [None, None, None];
        for (permit, slots) in permits.iter_mut().zip(&self.0) {
            if let Some(slots) = slots {
                *permit = Some(slots.clone().acquire_owned().await?);
            }
        }
        Ok(Taken { _permits: permits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn a_call_holds_all_of_its_slots_or_none() {
        let slots = Slots::new(2, [("t".into(), 1)]);
        let team = Arc::new(Semaphore::new(2));
        let first = slots.of("t", &team).try_take().unwrap();
        assert!(slots.of("t", &team).try_take().is_none(), "the tool's only slot is taken");
        let other = slots.of("u", &team).try_take().unwrap();
        assert!(slots.of("u", &team).try_take().is_none(), "the team's slots are taken");
        let wanted = slots.of("t", &team);
        let mut waiting = Box::pin(wanted.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        assert!(waiting.as_mut().now_or_never().is_some());
        drop((waiting, other));
        assert_eq!(team.available_permits(), 2);
    }

    #[tokio::test]
    async fn other_tools_leave_the_slots_that_are_taken_taken() {
        let before = Slots::new(2, [("t".into(), 1)]);
        let team = Arc::new(Semaphore::new(9));
        let _held = before.of("t", &team).try_take().unwrap();
        let after = before.with_tools([("t".into(), 1), ("v".into(), 1)]);
        assert!(after.of("t", &team).try_take().is_none(), "the tool's only slot is taken");
        let _last = after.of("v", &team).try_take().unwrap();
        assert!(after.of("w", &team).try_take().is_none(), "the process's slots are taken");
    }
}
