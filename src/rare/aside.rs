//! A time and some ends, waited for beside something that comes often.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{Rare, first};

/// A timer for a time that mostly moves away, and futures that come once each, if at all.
///
/// Setting a timer costs more than looking at one, and looking at one more than not to: it stays set while what it is
/// to ring for comes later than before, is set anew when it rings too early, and is not touched until it rings.
#[derive(Debug)]
pub(crate) struct Aside<F, const N: usize> {
    /// It rings then, unless it has rung.
    set: Option<Instant>,
    waiting: Rare<Waiting<F, N>>,
}

type Waiting<F, const N: usize> = (Pin<Box<Sleep>>, [Option<F>; N]);

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came<T> {
    /// The time.
    Time,
    /// One of the futures.
    One(T),
}

impl<F: Future + Unpin, const N: usize> Aside<F, N> {
    /// Set for this time.
    pub(crate) fn new(at: Instant, futures: [F; N]) -> Self {
        Self { set: Some(at), waiting: Rare::new((Box::pin(sleep_until(at)), futures.map(Some))) }
    }

    /// Waits for this time, if there is one, and for the futures. May be dropped and asked again, for another time too.
    pub(crate) async fn until(&mut self, at: Option<Instant>) -> Came<F::Output> {
        poll_fn(|cx| self.poll_until(cx, at)).await
    }

    /// Ready once it is this time, or one of the futures has come.
    pub(crate) fn poll_until(&mut self, cx: &Context<'_>, at: Option<Instant>) -> Poll<Came<F::Output>> {
        let Self { set, waiting } = self;
        if let Some(at) = at.filter(|at| set.is_none_or(|set| *at < set)) {
            waiting.change().0.as_mut().reset(at);
            *set = Some(at);
        }
        waiting.poll(cx, |(timer, futures), cx| {
            if let Poll::Ready(one) = first(futures, cx) {
                return Poll::Ready(Came::One(one));
            }
            while timer.as_mut().poll(cx).is_ready() {
                match (at, *set) {
                    (Some(at), Some(set)) if at <= set => return Poll::Ready(Came::Time),
                    (None, _) => {
                        *set = None;
                        break;
                    }
                    (Some(at), _) => {
                        timer.as_mut().reset(at);
                        *set = Some(at);
                    }
                }
            }
            Poll::Pending
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Pending;
    use std::time::Duration;

    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_time_that_was_asked_for_last() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut aside = Aside::<Pending<()>, 0>::new(at(10), []);
        let second = Duration::from_secs(1);
        assert!(timeout(second, aside.until(Some(at(10)))).await.is_err());
        assert!(timeout(second, aside.until(Some(at(30)))).await.is_err());
        assert_eq!(aside.until(Some(at(5))).await, Came::Time);
        assert_eq!(Instant::now(), at(5), "earlier than it was set for");
        assert_eq!(aside.until(Some(at(5))).await, Came::Time);
        assert_eq!(Instant::now(), at(5), "what is over is over");
        assert!(timeout(second, aside.until(Some(at(10)))).await.is_err());
        assert_eq!(aside.until(Some(at(30))).await, Came::Time);
        assert_eq!(Instant::now(), at(30), "later than it was set for");
        assert!(timeout(second * 60, aside.until(None)).await.is_err());
        assert_eq!(aside.until(Some(at(100))).await, Came::Time);
        assert_eq!(Instant::now(), at(100), "it rang while nobody asked for a time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_comes_once_before_the_time_and_after_it() {
        let begin = Instant::now();
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let ends = tokens.clone().map(|token| Box::pin(token.cancelled_owned()));
        let mut aside = Aside::new(begin + Duration::from_secs(10), ends);
        let ten = Some(begin + Duration::from_secs(10));
        tokens[0].cancel();
        assert_eq!(aside.until(ten).await, Came::One(()));
        assert_eq!(aside.until(ten).await, Came::Time);
        tokens[1].cancel();
        assert_eq!(aside.until(None).await, Came::One(()));
        assert_eq!(aside.until(ten).await, Came::Time);
        assert!(timeout(Duration::from_secs(60), aside.until(None)).await.is_err());
    }
}
