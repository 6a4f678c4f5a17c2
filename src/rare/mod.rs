//! Waits for what comes rarely beside what comes often.
//!
//! Whoever waits for many things looks at all of them whenever one has come. What is in a [`Rare`] is looked at only
//! when it asked to be: until then it costs one flag, and nothing of it is touched. Where thousands wait,
//! most of what a look touches has to be fetched from far away.

mod aside;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

pub(crate) use aside::{Aside, Came};

/// What is waited for, and the bell it rings when it wants to be looked at.
#[derive(Debug)]
pub(crate) struct Rare<T> {
    inside: T,
    bell: Arc<Bell>,
    /// Whom the bell wakes: the same as it knows, to be compared without touching it.
    wakes: Option<Waker>,
}

#[derive(Debug)]
struct Bell {
    state: AtomicU8,
    wakes: Mutex<Waker>,
}

/// The bell rang, and nobody has looked since.
const RANG: u8 = 1;
/// Somebody is about to look whether it rang.
const SOON: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(RANG, Ordering::AcqRel) == 0 {
            let waker = self.wakes.lock().unwrap_or_else(PoisonError::into_inner).clone();
            waker.wake();
        }
    }
}

impl<T> Rare<T> {
    /// It is looked at when it is polled for the first time.
    pub(crate) fn new(inside: T) -> Self {
        let bell = Bell { state: AtomicU8::new(RANG), wakes: Mutex::new(Waker::noop().clone()) };
        Self { inside, bell: Arc::new(bell), wakes: None }
    }

    /// What is inside, to be changed: it is looked at when it is polled next.
    pub(crate) fn change(&mut self) -> &mut T {
        self.bell.state.fetch_or(RANG, Ordering::AcqRel);
        &mut self.inside
    }

    /// It is about to be polled: if it rings before that, nobody is woken.
    pub(crate) fn soon(&self) {
        self.bell.state.fetch_or(SOON, Ordering::AcqRel);
    }

    /// Lets `look` poll what is inside, if that asked for it since the last time. After it was ready it is looked at
    /// the next time too.
    pub(crate) fn poll<O>(
        &mut self,
        cx: &Context<'_>,
        look: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<O>,
    ) -> Poll<O> {
        if !self.wakes.as_ref().is_some_and(|wakes| wakes.will_wake(cx.waker())) {
            self.wakes = Some(cx.waker().clone());
            cx.waker().clone_into(&mut self.bell.wakes.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // What rings from now on is heard, whatever the look sees of it.
        let quiet = self.bell.state.load(Ordering::Acquire) == 0;
        if quiet || self.bell.state.swap(0, Ordering::AcqRel) & RANG == 0 {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        let looked = look(&mut self.inside, &mut Context::from_waker(&waker));
        if looked.is_ready() {
            self.change();
        }
        looked
    }
}

/// Futures that come once each, if at all.
pub(crate) type Once<F, const N: usize> = Rare<[Option<F>; N]>;

impl<F: Future + Unpin, const N: usize> Once<F, N> {
    pub(crate) fn each(futures: [F; N]) -> Self {
        Self::new(futures.map(Some))
    }

    /// Ready with one that has come.
    pub(crate) fn poll_next(&mut self, cx: &Context<'_>) -> Poll<F::Output> {
        self.poll(cx, first)
    }
}

/// Ready with one that is ready, which is gone then.
fn first<F: Future + Unpin, const N: usize>(
    futures: &mut [Option<F>; N],
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    for place in futures {
        if let Some(Poll::Ready(output)) = place.as_mut().map(|future| Pin::new(future).poll(cx)) {
            *place = None;
            return Poll::Ready(output);
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_test::task::new_count_waker;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn waiting_wakes_nobody_and_each_comes_once() {
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let mut all = Once::each(tokens.clone().map(|token| Box::pin(token.cancelled_owned())));
        let (waker, woken) = new_count_waker();
        let mut poll = || all.poll_next(&Context::from_waker(&waker));
        for (n, token) in tokens.iter().enumerate() {
            assert_eq!(poll(), Poll::Pending);
            assert_eq!(woken.get(), n);
            token.cancel();
            assert_eq!(woken.get(), n + 1);
            assert_eq!(poll(), Poll::Ready(()));
        }
        assert_eq!(poll(), Poll::Pending);
    }

    #[test]
    fn what_comes_together_comes_one_by_one_though_it_rang_once() {
        let token = CancellationToken::new();
        let mut all =
            Once::each([token.clone(), token.clone()].map(|token| Box::pin(token.cancelled_owned())));
        let (waker, woken) = new_count_waker();
        let mut poll = || all.poll_next(&Context::from_waker(&waker));
        assert_eq!(poll(), Poll::Pending);
        token.cancel();
        assert_eq!(woken.get(), 1);
        assert_eq!([poll(), poll(), poll()], [Poll::Ready(()), Poll::Ready(()), Poll::Pending]);
    }

    #[test]
    fn what_is_there_already_is_not_lost() {
        let token = CancellationToken::new();
        token.cancel();
        let mut all = Once::each([Box::pin(token.clone().cancelled_owned())]);
        assert_eq!(all.poll_next(&Context::from_waker(Waker::noop())), Poll::Ready(()));
    }

    #[test]
    fn whoever_polled_last_is_woken_each_time() {
        let mut looks = 0;
        let mut inner = Vec::new();
        let mut rare = Rare::new(());
        let wakers = [new_count_waker(), new_count_waker()];
        for round in 1..3 {
            for (waker, woken) in &wakers {
                let cx = Context::from_waker(waker);
                for _ in 0..3 {
                    let polled: Poll<()> = rare.poll(&cx, |(), cx| {
                        looks += 1;
                        inner.push(cx.waker().clone());
                        Poll::Pending
                    });
                    assert!(polled.is_pending());
                }
                for _ in 0..3 {
                    inner.last().unwrap().wake_by_ref();
                }
                assert_eq!(woken.get(), round, "once until somebody looks");
            }
        }
        assert_eq!(looks, 4, "once for each time it rang");
        // What was changed is looked at again.
        *rare.change() = ();
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(rare.poll(&cx, |(), _| Poll::Ready(7)), Poll::Ready(7));
    }

    #[test]
    fn who_looks_soon_anyway_is_not_woken_and_sees_it() {
        let token = CancellationToken::new();
        let mut all = Once::each([Box::pin(token.clone().cancelled_owned())]);
        let (waker, woken) = new_count_waker();
        let poll = |all: &mut Once<_, 1>| all.poll_next(&Context::from_waker(&waker));
        assert_eq!(poll(&mut all), Poll::Pending);
        all.soon();
        assert_eq!(poll(&mut all), Poll::Pending);
        all.soon();
        token.cancel();
        assert_eq!(woken.get(), 0);
        assert_eq!(poll(&mut all), Poll::Ready(()));
    }

    #[test]
    fn who_looked_after_it_said_so_is_woken_as_ever() {
        let token = CancellationToken::new();
        let mut all = Once::each([Box::pin(token.clone().cancelled_owned())]);
        let (waker, woken) = new_count_waker();
        for _ in 0..2 {
            all.soon();
            assert_eq!(all.poll_next(&Context::from_waker(&waker)), Poll::Pending);
        }
        token.cancel();
        assert_eq!(woken.get(), 1);
    }

    /// Two threads: one rings, the other goes to sleep when there was nothing to be seen.
    #[test]
    fn no_ring_is_lost_between_looking_and_waiting() {
        use std::sync::mpsc;
        const TIMES: u32 = 20_000;
        let (ring, rings) = mpsc::channel::<Waker>();
        let seen = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = Arc::clone(&seen);
        let ringer = std::thread::spawn(move || {
            for waker in rings {
                count.fetch_add(1, Ordering::Release);
                waker.wake();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rare = Rare::new(ring);
        for n in 0..TIMES {
            let mut asked = false;
            runtime.block_on(poll_fn(|cx| {
                rare.poll(cx, |ring, cx| {
                    if !std::mem::replace(&mut asked, true) {
                        ring.send(cx.waker().clone()).unwrap();
                    }
                    if seen.load(Ordering::Acquire) > n { Poll::Ready(()) } else { Poll::Pending }
                })
            }));
        }
        drop(rare);
        ringer.join().unwrap();
    }
}
