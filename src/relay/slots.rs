//! The slots that calls of several turns share: per tool, per team, in the process.
//!
//! One [`Queue`] holds them. A call has all of its slots or none, so no two calls wait for each other, and
//! a team that waits for itself, or for a slow tool, holds nothing that others need.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::team::Team;
use crate::team::fair::{Kind, Queue, Wanted};

/// All slots of a process, and how many each tool has.
#[derive(Debug, Clone)]
pub struct Slots {
    queue: Queue,
    tools: BTreeMap<Arc<str>, u32>,
}

impl Slots {
    /// Those of a queue, for tools that have a number of their own.
    #[must_use]
    pub fn new(queue: Queue, tools: impl IntoIterator<Item = (Arc<str>, u32)>) -> Self {
        Self { queue, tools: tools.into_iter().collect() }
    }

    /// The same slots when these tools have a number of their own.
    #[must_use]
    pub fn with_tools(&self, tools: impl IntoIterator<Item = (Arc<str>, u32)>) -> Self {
        Self::new(self.queue.clone(), tools)
    }

    /// Where a call waits for its slots.
    #[must_use]
    pub const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The slots a call of this tool needs.
    #[must_use]
    pub fn of(&self, tool: &Arc<str>, team: &Team) -> Wanted {
        let kind = self.tools.get(tool).map(|at_once| Kind { name: tool.clone(), at_once: *at_once });
        team.a_call(kind)
    }
}
