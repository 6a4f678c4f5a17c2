//! What a connection is doing, and how long it may go on doing that.
//!
//! ```text
//! Fresh ──────────── request ──▶ Busy ── last answer done ──▶ Idle
//!   │                             ▲                            │ first byte (HTTP/1)
//!   │ head timeout                └───────── request ──────── Head
//!   ▼                                                          │ head timeout
//!  cut                     Idle ── idle timeout ─▶ goodbye     ▼ cut
//! ```
//!
//! hyper has one timer for both an idle connection and a slow head, and none at all on HTTP/2, so
//! both are kept here. While Busy, the request's own bounds hold.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{pin::Pin, sync::Arc};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

/// How long a connection may wait without serving a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the head of a request, from its first byte on; for the first one, from the beginning.
    pub(crate) head: Duration,
    /// For the first byte of the next request.
    pub(crate) idle: Duration,
}

/// Why a connection waited long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// A request's head did not come in time.
    Head,
    /// No further request came.
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh { since: Instant },
    Idle { since: Instant },
    Head { since: Instant },
    Busy { requests: usize },
}

impl Phase {
    fn byte(self, now: Instant) -> Self {
        match self {
            Self::Idle { .. } => Self::Head { since: now },
            Self::Fresh { .. } | Self::Head { .. } | Self::Busy { .. } => self,
        }
    }

    fn begin(self) -> Self {
        match self {
            Self::Fresh { .. } | Self::Idle { .. } | Self::Head { .. } => Self::Busy { requests: 1 },
            Self::Busy { requests } => Self::Busy { requests: requests + 1 },
        }
    }

    fn end(self, now: Instant) -> Self {
        match self {
            Self::Busy { requests: 0 | 1 } => Self::Idle { since: now },
            Self::Busy { requests } => Self::Busy { requests: requests - 1 },
            Self::Fresh { .. } | Self::Idle { .. } | Self::Head { .. } => self,
        }
    }

    fn deadline(self, patience: Patience) -> Option<(Instant, Expired)> {
        match self {
            Self::Fresh { since } | Self::Head { since } => Some((since + patience.head, Expired::Head)),
            Self::Idle { since } => Some((since + patience.idle, Expired::Idle)),
            Self::Busy { .. } => None,
        }
    }
}

/// The phase of one connection, told by its parts and watched by its task.
#[derive(Debug)]
pub(crate) struct Activity {
    phase: Mutex<Phase>,
    watcher: AtomicWaker,
}

impl Activity {
    /// A connection that has just been accepted.
    pub(crate) fn new() -> Arc<Self> {
        let phase = Mutex::new(Phase::Fresh { since: Instant::now() });
        Arc::new(Self { phase, watcher: AtomicWaker::new() })
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, next: impl FnOnce(Phase) -> Phase) {
        let mut phase = self.phase();
        let before = *phase;
        *phase = next(before);
        let later = *phase != before && !matches!(*phase, Phase::Busy { .. });
        drop(phase);
        // Whoever serves requests is not waited for.
        if later {
            self.watcher.wake();
        }
    }

    /// Bytes came in. Only for HTTP/1, where a byte without a request begins one.
    pub(crate) fn byte(&self) {
        self.change(|phase| phase.byte(Instant::now()));
    }

    /// A request's head is complete.
    pub(crate) fn begin(&self) {
        self.change(Phase::begin);
    }

    /// A request's answer is done with.
    pub(crate) fn end(&self) {
        self.change(|phase| phase.end(Instant::now()));
    }

    /// Whether a request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(*self.phase(), Phase::Busy { .. })
    }

    /// Ready once the connection has waited longer than `patience` allows; `sleep` is the caller's timer. Wakes its
    /// caller too when the connection begins to wait.
    pub(crate) fn poll_expired(
        &self,
        patience: Patience,
        mut sleep: Pin<&mut Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Expired> {
        self.watcher.register(cx.waker());
        let phase = *self.phase();
        let Some((deadline, cause)) = phase.deadline(patience) else { return Poll::Pending };
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        ready!(sleep.poll(cx));
        Poll::Ready(cause)
    }
}

#[cfg(test)]
mod tests {
    use futures_test::task::new_count_waker;

    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(120) };

    fn after(phase: Phase, start: Instant) -> Option<(u64, Expired)> {
        phase.deadline(PATIENCE).map(|(at, cause)| ((at - start).as_secs(), cause))
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_own_deadline() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let fresh = Phase::Fresh { since: start };
        assert_eq!(after(fresh, start), Some((10, Expired::Head)));
        assert_eq!(fresh.byte(at(9)), fresh, "dripping bytes does not prolong the first head");
        let busy = fresh.begin();
        assert_eq!(after(busy, start), None);
        let idle = busy.end(at(20));
        assert_eq!(after(idle, start), Some((140, Expired::Idle)));
        let head = idle.byte(at(100));
        assert_eq!(after(head, start), Some((110, Expired::Head)));
        assert_eq!(head.byte(at(109)), head, "nor a later one");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watcher_is_woken_when_there_is_something_to_wait_for() {
        let (activity, (waker, woken)) = (Activity::new(), new_count_waker());
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut look = || {
            let cx = &mut Context::from_waker(&waker);
            assert!(activity.poll_expired(PATIENCE, sleep.as_mut(), cx).is_pending());
            woken.get()
        };
        assert_eq!(look(), 0);
        activity.begin();
        assert_eq!(look(), 0, "busy");
        activity.end();
        assert_eq!(look(), 1, "idle");
        activity.byte();
        assert_eq!(look(), 2, "a head");
        activity.byte();
        assert_eq!(look(), 2, "more of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_after_its_last_answer() {
        let start = Instant::now();
        let two = Phase::Fresh { since: start }.begin().begin();
        assert_eq!(two.end(start), Phase::Busy { requests: 1 });
        assert_eq!(two.end(start).end(start), Phase::Idle { since: start });
        assert_eq!(two.byte(start), two, "body bytes are no head");
    }
}
