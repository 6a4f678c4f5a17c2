//! Waits for what comes rarely beside what comes often.
//!
//! Whoever waits for many things looks at all of them whenever one has come. Of what is in a [`FuturesUnordered`] only
//! what was woken is looked at.

use std::task::{Context, Poll, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// The futures that `make` gives. Its second call is for when one of the first is ready at once, which is then lost.
///
/// Each has been looked at once: a set asks to be polled again after the first look at all it has, which would have
/// whoever waits for it run once more for nothing.
pub(crate) fn rare<F: Future, const N: usize>(make: impl Fn() -> [F; N]) -> FuturesUnordered<F> {
    let mut all: FuturesUnordered<F> = make().into_iter().collect();
    match all.poll_next_unpin(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => all,
        Poll::Ready(_) => make().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use futures_test::task::new_count_waker;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn waiting_wakes_nobody_and_each_comes_once() {
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let mut all = rare(|| tokens.clone().map(CancellationToken::cancelled_owned));
        let (waker, woken) = new_count_waker();
        let mut poll = || all.poll_next_unpin(&mut Context::from_waker(&waker));
        for (n, token) in tokens.iter().enumerate() {
            assert_eq!(poll(), Poll::Pending);
            assert_eq!(woken.get(), n);
            token.cancel();
            assert_eq!(woken.get(), n + 1);
            assert_eq!(poll(), Poll::Ready(Some(())));
        }
        assert_eq!(poll(), Poll::Ready(None));
    }

    #[test]
    fn what_is_there_already_is_not_lost() {
        let token = CancellationToken::new();
        token.cancel();
        let mut all = rare(|| [token.clone().cancelled_owned()]);
        assert_eq!(all.poll_next_unpin(&mut Context::from_waker(Waker::noop())), Poll::Ready(Some(())));
    }
}
