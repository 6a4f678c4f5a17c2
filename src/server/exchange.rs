//! One request and its answer, watched from its head to its last byte.
//!
//! hyper drops an answer it could not deliver without a word. Whoever works on it learns of that
//! by its `gone` token, which is cancelled here when the answer is dropped before its end.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::activity::Activity;

tokio::task_local! {
    /// How the answer on this HTTP/2 stream goes on.
    pub(crate) static PROGRESS: Arc<Progress>;
}

/// Held while a request is answered. Dropped before [`done`](Self::done), the client is gone.
#[derive(Debug)]
pub(crate) struct Exchange {
    activity: Arc<Activity>,
    gone: CancellationToken,
    done: bool,
}

impl Exchange {
    /// A request's head is complete.
    pub(crate) fn begin(activity: &Arc<Activity>, gone: CancellationToken) -> Self {
        activity.begin();
        Self { activity: Arc::clone(activity), gone, done: false }
    }

    /// The token that says the client is gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    fn done(&mut self) {
        self.done = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.done {
            self.gone.cancel();
        }
        self.activity.end();
    }
}

/// Whether the client takes what an HTTP/2 stream hands out.
///
/// A stream that has no window left is not written to, so a stalled socket is never seen; what is
/// seen is that the next piece of the body is not asked for.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Option<Instant>>);

impl Progress {
    fn handed_out(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Returns once a piece has been waiting for the client for `stall` (seen up to a quarter later).
    pub(crate) async fn stalled(&self, stall: Duration) {
        loop {
            time::sleep(stall / 4).await;
            let waiting = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_some_and(|since| since.elapsed() >= stall) {
                return;
            }
        }
    }
}

/// An answer's body as hyper gets it.
#[derive(Debug)]
pub(crate) struct Answer<B> {
    body: Either<B>,
    exchange: Exchange,
    progress: Option<Arc<Progress>>,
}

#[derive(Debug)]
enum Either<B> {
    Own(Bytes),
    Handler(B),
}

impl<B: Body> Answer<B> {
    /// What a handler answered.
    pub(crate) fn of_handler(body: B, mut exchange: Exchange) -> Self {
        // hyper never asks an empty body for a frame.
        if body.is_end_stream() {
            exchange.done();
        }
        Self { body: Either::Handler(body), exchange, progress: PROGRESS.try_with(Arc::clone).ok() }
    }

    /// What is answered in the handler's stead.
    pub(crate) fn own(bytes: Bytes, exchange: Exchange) -> Self {
        Self { body: Either::Own(bytes), exchange, progress: None }
    }
}

impl<B> Body for Answer<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let me = self.get_mut();
        if let Some(progress) = &me.progress {
            progress.handed_out(None);
        }
        let frame = match &mut me.body {
            Either::Own(bytes) if bytes.is_empty() => None,
            Either::Own(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Either::Handler(body) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(Into::into)),
        };
        if let (Some(progress), Some(Ok(_))) = (&me.progress, &frame) {
            progress.handed_out(Some(Instant::now()));
        }
        match &frame {
            None => me.exchange.done(),
            Some(Ok(_)) if me.is_end_stream() => me.exchange.done(),
            Some(_) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Own(bytes) => bytes.is_empty(),
            Either::Handler(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Either::Handler(body) => body.size_hint(),
        }
    }
}
