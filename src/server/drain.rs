//! The stages of stopping, which only go forward.
//!
//! ```text
//! Serving ── SIGTERM ─▶ NotReady ── accept ─▶ Refusing ── finish ─▶ Now
//!    └───────────────────── second SIGTERM ──────────────────────────▲
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time;
use tokio_util::sync::CancellationToken;

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Not stopping.
    Serving,
    /// Readiness says no; everything else is as before.
    NotReady,
    /// No new connections and no new turns; what is in flight goes on.
    Refusing,
    /// What is in flight says so and ends; a second later it is cut.
    Now,
}

impl Stage {
    /// In their order.
    const ALL: [Self; 4] = [Self::Serving, Self::NotReady, Self::Refusing, Self::Now];
}

/// The stage of stopping, shared by everybody who acts on it. Clones are the same drain.
#[derive(Debug, Clone)]
pub struct Drain(Arc<Reached>);

#[derive(Debug)]
struct Reached {
    /// The place of the stage among all.
    stage: AtomicUsize,
    /// For each stage, whether it is reached.
    each: [CancellationToken; Stage::ALL.len()],
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> Self {
        let drain = Self(Arc::new(Reached { stage: AtomicUsize::new(0), each: Default::default() }));
        drain.advance(Stage::Serving);
        drain
    }

    /// The stage at this moment.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage::ALL[self.0.stage.load(Ordering::Acquire)]
    }

    /// Goes on to `stage`; a stage that is already behind changes nothing.
    pub fn advance(&self, stage: Stage) {
        self.0.stage.fetch_max(stage as usize, Ordering::AcqRel);
        self.0.each[..=stage as usize].iter().for_each(CancellationToken::cancel);
    }

    /// Begins: not ready at once. The future then walks through the stages: new connections for
    /// `accept` more, what is in flight for `finish` after that, then [`Stage::Now`]. Whoever
    /// awaits it may drop it and [`advance`](Self::advance) to `Now` instead.
    pub fn start(&self, accept: Duration, finish: Duration) -> impl Future<Output = ()> + Send + 'static {
        self.advance(Stage::NotReady);
        let drain = self.clone();
        async move {
            time::sleep(accept).await;
            drain.advance(Stage::Refusing);
            time::sleep(finish).await;
            drain.advance(Stage::Now);
        }
    }

    /// Returns once `stage` or a later one is reached.
    pub async fn reached(&self, stage: Stage) {
        // A token of one's own: all who wait at one token share its lock.
        let reached = self.0.each[stage as usize].child_token();
        reached.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_stages_follow_each_other_after_their_times() {
        let drain = Drain::new();
        let begun = time::Instant::now();
        let walk = drain.start(Duration::from_secs(5), Duration::from_secs(120));
        assert_eq!(drain.stage(), Stage::NotReady, "before the future is polled");
        tokio::join!(
            walk,
            async {
                drain.reached(Stage::Refusing).await;
                assert_eq!(begun.elapsed().as_secs(), 5);
            },
            async {
                drain.reached(Stage::Now).await;
                assert_eq!(begun.elapsed().as_secs(), 125);
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn now_overtakes_the_walk_and_nothing_goes_back() {
        let drain = Drain::new();
        let walk = drain.start(Duration::from_secs(5), Duration::from_secs(120));
        drain.advance(Stage::Now);
        drain.reached(Stage::Refusing).await;
        walk.await;
        assert_eq!(drain.stage(), Stage::Now);
        drain.advance(Stage::Serving);
        assert_eq!(drain.stage(), Stage::Now);
    }
}
