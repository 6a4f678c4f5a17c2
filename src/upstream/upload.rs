//! A body that is handed through to an upstream, and how far it has come.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::pool::Sent;

/// How far a body has come, seen from outside.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<State>>);

/// When something of a body came last, and whether that was its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) last: Instant,
    pub(super) ended: bool,
}

impl Progress {
    pub(super) fn state(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn went_on(&self, ended: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { last: Instant::now(), ended };
    }
}

/// A body that tells of its progress.
pub(super) struct Upload {
    body: Sent,
    progress: Progress,
}

impl Upload {
    pub(super) fn new(body: Sent) -> (Self, Progress) {
        let state = State { last: Instant::now(), ended: body.is_end_stream() };
        let progress = Progress(Arc::new(Mutex::new(state)));
        (Self { body, progress: progress.clone() }, progress)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(frame) = &polled {
            let ended = frame.is_none() || self.body.is_end_stream();
            self.progress.went_on(ended);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
