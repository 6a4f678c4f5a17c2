//! A timer for whoever waits again and again for a time that mostly moves away.
//!
//! Setting a timer costs more than looking at one: it stays set while what it waits for comes later than before, and
//! is set anew when it rings too early.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// The timer.
#[derive(Debug)]
pub struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    /// Set for this time.
    #[must_use]
    pub fn new(at: Instant) -> Self {
        Self(Box::pin(sleep_until(at)))
    }

    /// Returns once it is this time. May be dropped and asked again, for another time too.
    pub async fn until(&mut self, at: Instant) {
        poll_fn(|cx| self.poll_until(cx, at)).await;
    }

    /// Ready once it is this time.
    pub fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        loop {
            if at < self.0.deadline() || self.0.is_elapsed() {
                self.0.as_mut().reset(at);
            }
            ready!(self.0.as_mut().poll(cx));
            if at <= self.0.deadline() {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_time_that_was_asked_for_last() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut alarm = Alarm::new(at(10));
        assert!(timeout(Duration::from_secs(1), alarm.until(at(10))).await.is_err());
        assert!(timeout(Duration::from_secs(1), alarm.until(at(30))).await.is_err());
        alarm.until(at(5)).await;
        assert_eq!(Instant::now(), at(5), "earlier than it was set for");
        alarm.until(at(5)).await;
        assert_eq!(Instant::now(), at(5), "what is over is over");
        assert!(timeout(Duration::from_secs(1), alarm.until(at(10))).await.is_err());
        alarm.until(at(30)).await;
        assert_eq!(Instant::now(), at(30), "later than it was set for");
    }
}
