//! Bodies of answers, and the bounded pipe behind those that are written bit by bit.
//!
//! ```text
//! Sender ── push ─▶ [ pending bytes ] ── frames ─▶ hyper
//!    ▲                     │
//!    └──── taken, gone ────┘
//! ```
//!
//! The pipe counts bytes, not messages. What was written while hyper was busy leaves together: small
//! pieces as one frame, large ones as they are, for hyper writes what it gets at once in one go. A piece that was made
//! is taken, so that nobody has to keep it; a pipe that is full then slows down whoever makes them, and holds its
//! capacity and what had been made by then. A sender that is dropped without [`Sender::finish`] has failed: the body
//! ends with an error and the connection is cut, because a clean end would look like a whole answer. (hyper throws away
//! what it still holds then; to tell the client what happened, write that and finish.)

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::Notify;

/// Pieces are joined up to so many bytes: copying them costs less than to have one more.
const JOINED: usize = 8 * 1024;

/// Any error of a body.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The body of an answer.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// Everything at once.
    Full(Bytes),
    /// What a [`Sender`] writes.
    Stream(Receiver),
    /// A body that is handed through.
    Boxed(UnsyncBoxBody<Bytes, BoxError>),
}

impl Body {
    /// Hands a body through, an upstream's for example.
    pub fn boxed<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::Boxed(body.map_err(Into::into).boxed_unsync())
    }
}

impl<B: Into<Bytes>> From<B> for Body {
    fn from(bytes: B) -> Self {
        Self::Full(bytes.into())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream(receiver) => receiver.poll(cx).map(|next| match next {
                Some(Ok(bytes)) => Some(Ok(Frame::data(bytes))),
                Some(Err(aborted)) => Some(Err(aborted.into())),
                None => None,
            }),
            Self::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream(receiver) => receiver.rest() == Some(0),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(receiver) => {
                receiver.rest().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest as u64))
            }
            Self::Boxed(body) => body.size_hint(),
        }
    }
}

/// A pipe that is full when it holds `capacity` bytes. Its writer is expected to wait then.
#[must_use]
pub fn channel(capacity: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        capacity,
        state: Mutex::new(State { pending: Pending::default(), end: End::Open, unread: false, reader: None }),
        taken: Notify::new(),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

#[derive(Debug)]
struct Shared {
    capacity: usize,
    state: Mutex<State>,
    /// Told whenever the reader took something, or is gone.
    taken: Notify,
}

#[derive(Debug)]
struct State {
    pending: Pending,
    end: End,
    /// The reader is gone.
    unread: bool,
    reader: Option<Waker>,
}

/// What was written and not taken. A piece that is taken before the next one comes is never copied, nor is a large one.
#[derive(Debug, Default)]
struct Pending {
    /// In order, without the last one.
    before: VecDeque<Bytes>,
    /// Mostly the only one.
    last: Bytes,
    /// Their bytes.
    len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Finished,
    Aborted,
}

impl Pending {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        let last = mem::take(&mut self.last);
        self.last = if last.is_empty() {
            piece
        } else if last.len() + piece.len() <= JOINED {
            let mut joined = last.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
            joined.extend_from_slice(&piece);
            joined.freeze()
        } else {
            self.before.push_back(last);
            piece
        };
    }

    fn take(&mut self) -> Option<Bytes> {
        let piece = self.before.pop_front().unwrap_or_else(|| mem::take(&mut self.last));
        self.len -= piece.len();
        (!piece.is_empty()).then_some(piece)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &State) -> bool {
        state.pending.len < self.capacity.max(1)
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        if state.end == End::Open {
            state.end = end;
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// The pipe's writing end. Dropping it without [`finish`](Self::finish) cuts the answer.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

/// Nobody reads any more: the client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client is gone")
    }
}

impl Error for Closed {}

impl Sender {
    /// Writes a piece. Whether there is room for more; if not, see [`ready`](Self::ready).
    pub fn push(&self, piece: impl Into<Bytes>) -> Result<bool, Closed> {
        let piece = piece.into();
        let mut state = self.shared.state();
        if state.unread {
            return Err(Closed);
        }
        if piece.is_empty() {
            return Ok(self.shared.has_room(&state));
        }
        state.pending.push(piece);
        let room = self.shared.has_room(&state);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(room)
    }

    /// Writes a piece, and waits until there is room for more.
    pub async fn send(&self, piece: impl Into<Bytes> + Send) -> Result<(), Closed> {
        if self.push(piece)? { Ok(()) } else { self.ready().await }
    }

    /// Returns once there is room. May be dropped and asked again.
    pub async fn ready(&self) -> Result<(), Closed> {
        self.when(|state| match state.unread {
            true => Some(Err(Closed)),
            false => self.shared.has_room(state).then_some(Ok(())),
        })
        .await
    }

    /// Waits for something that depends on the reader.
    async fn when<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            // Made before looking, so a reader that takes something in between is not missed.
            let taken = self.shared.taken.notified();
            if let Some(found) = found(&self.shared.state()) {
                return found;
            }
            taken.await;
        }
    }

    /// Nobody reads any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.state().unread
    }

    /// Returns once nobody reads any more.
    pub async fn closed(&self) {
        self.when(|state| state.unread.then_some(())).await;
    }

    /// Bytes that hyper has not taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.shared.state().pending.len
    }

    /// The answer is whole: what is pending still leaves, then the body ends cleanly.
    pub fn finish(&self) {
        self.shared.end(End::Finished);
    }

    /// The answer cannot be completed: the connection is cut (an HTTP/2 stream is reset).
    pub fn abort(self) {
        self.shared.end(End::Aborted);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.end(End::Aborted);
    }
}

/// The pipe's reading end, for [`Body::Stream`].
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
}

/// The writer gave up before the answer was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer broke off")
    }
}

impl Error for Aborted {}

impl Receiver {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Aborted>>> {
        let mut state = self.shared.state();
        if let Some(bytes) = state.pending.take() {
            drop(state);
            self.shared.taken.notify_waiters();
            return Poll::Ready(Some(Ok(bytes)));
        }
        match state.end {
            End::Open => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Finished => Poll::Ready(None),
            End::Aborted => Poll::Ready(Some(Err(Aborted))),
        }
    }

    /// The bytes that are still to come, once that is known.
    fn rest(&self) -> Option<usize> {
        let state = self.shared.state();
        (state.end == End::Finished).then_some(state.pending.len)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.state().unread = true;
        self.shared.taken.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use futures_util::FutureExt;
    use http_body::Body as _;

    async fn next(receiver: &mut Receiver) -> Option<Result<Bytes, Aborted>> {
        std::future::poll_fn(|cx| receiver.poll(cx)).await
    }

    #[tokio::test]
    async fn pieces_leave_in_order_and_together() {
        let (sender, mut receiver) = channel(100);
        sender.push("one ").unwrap();
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "one ");
        for piece in ["two ", "three ", "", "four"] {
            sender.push(piece).unwrap();
        }
        sender.finish();
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "two three four");
        assert_eq!(next(&mut receiver).await, None);
    }

    #[tokio::test]
    async fn neither_a_lone_piece_nor_a_large_one_is_copied() {
        for sizes in [&[50][..], &[JOINED, 1, JOINED]] {
            let (sender, mut receiver) = channel(3 * JOINED);
            let pieces: Vec<Bytes> = sizes.iter().map(|size| vec![7; *size].into()).collect();
            pieces.iter().for_each(|piece| assert!(sender.push(piece.clone()).is_ok()));
            assert_eq!(sender.pending(), sizes.iter().sum::<usize>());
            for piece in &pieces {
                let came = next(&mut receiver).await.unwrap().unwrap();
                assert_eq!((came.as_ptr(), came.len()), (piece.as_ptr(), piece.len()), "{sizes:?}");
            }
            assert_eq!(sender.pending(), 0);
        }
    }

    #[tokio::test]
    async fn small_pieces_are_joined_as_far_as_that_is_cheap() {
        let (sender, mut receiver) = channel(2 * JOINED);
        for piece in [JOINED - 2, 1, 1, 1, 1] {
            sender.push(vec![7; piece]).unwrap();
        }
        sender.finish();
        let mut sizes = Vec::new();
        while let Some(piece) = next(&mut receiver).await {
            sizes.push(piece.unwrap().len());
        }
        assert_eq!(sizes, [JOINED, 2]);
    }

    #[tokio::test]
    async fn a_full_pipe_takes_what_was_made_and_says_when_there_is_room() {
        let (sender, mut receiver) = channel(JOINED);
        assert_eq!(sender.push(vec![7; JOINED - 1]), Ok(true));
        assert_eq!(sender.ready().now_or_never(), Some(Ok(())));
        let mut waiting = Box::pin(sender.send(vec![7; JOINED]));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        assert_eq!(sender.pending(), 2 * JOINED - 1);
        assert_eq!(next(&mut receiver).await.unwrap().unwrap().len(), JOINED - 1);
        assert_eq!(waiting.as_mut().now_or_never(), None, "what is there fills it alone");
        assert_eq!(sender.push(""), Ok(false));
        assert_eq!(next(&mut receiver).await.unwrap().unwrap().len(), JOINED);
        assert_eq!(waiting.as_mut().now_or_never(), Some(Ok(())));
        drop(waiting);
        assert_eq!((sender.push(""), sender.pending()), (Ok(true), 0));
        let (sender, mut receiver) = channel(0);
        assert_eq!((sender.push(""), sender.push("1")), (Ok(true), Ok(false)));
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "1");
        assert_eq!(sender.ready().now_or_never(), Some(Ok(())));
    }

    #[tokio::test]
    async fn the_writer_learns_that_nobody_reads() {
        let (sender, receiver) = channel(4);
        assert_eq!(sender.push("full"), Ok(false));
        let (mut ready, mut closed) = (Box::pin(sender.ready()), pin!(sender.closed()));
        assert_eq!(ready.as_mut().now_or_never(), None);
        assert_eq!(closed.as_mut().now_or_never(), None);
        drop(Body::Stream(receiver));
        assert_eq!(ready.await, Err(Closed));
        closed.await;
        assert_eq!(sender.push("x"), Err(Closed));
    }

    #[tokio::test]
    async fn a_dropped_or_aborted_writer_ends_in_an_error_after_what_was_written() {
        for abort in [Sender::abort, drop] {
            let (sender, mut receiver) = channel(100);
            sender.push("half").unwrap();
            abort(sender);
            assert_eq!(next(&mut receiver).await, Some(Ok("half".into())));
            assert_eq!(next(&mut receiver).await, Some(Err(Aborted)));
            assert!(!Body::Stream(receiver).is_end_stream());
        }
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_by_a_piece_and_by_the_end() {
        let (sender, receiver) = channel(100);
        let writer = async {
            tokio::task::yield_now().await;
            sender.push("late").unwrap();
            tokio::task::yield_now().await;
            sender.finish();
        };
        let (whole, ()) = tokio::join!(Body::Stream(receiver).collect(), writer);
        assert_eq!(whole.unwrap().to_bytes(), "late");
    }

    #[tokio::test]
    async fn sizes_are_told_as_soon_as_they_are_known() {
        assert!(Body::Empty.is_end_stream());
        assert_eq!(Body::from("four").size_hint().exact(), Some(4));
        assert!(Body::from("").is_end_stream());
        let (sender, receiver) = channel(100);
        let body = Body::Stream(receiver);
        sender.push("four").unwrap();
        assert_eq!(body.size_hint().exact(), None);
        sender.finish();
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!body.is_end_stream());
        let boxed = Body::boxed(http_body_util::Full::new(Bytes::from("boxed")));
        assert_eq!(boxed.size_hint().exact(), Some(5));
        assert_eq!(boxed.collect().await.unwrap().to_bytes(), "boxed");
    }
}
