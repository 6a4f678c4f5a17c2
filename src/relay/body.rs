//! Bodies of answers, and the bounded pipe behind those that are written bit by bit.
//!
//! ```text
//! Sender ── try_send ─▶ [ pending bytes ≤ capacity ] ── frames ─▶ hyper
//!    ▲                            │
//!    └─────── taken, gone ────────┘
//! ```
//!
//! The pipe counts bytes, not messages. What was written while hyper was busy leaves together: small
//! pieces as one frame, large ones as they are, for hyper writes what it gets at once in one go. A full
//! pipe slows down whoever writes; it never grows. A sender that is dropped without [`Sender::finish`]
//! has failed: the body ends with an error and the connection is cut, because a clean end would look
//! like a whole answer. (hyper throws away what it still holds then; to tell the client what happened,
//! write that and finish.)

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

/// A pipe that holds at most `capacity` bytes, or one larger piece.
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
    /// In order.
    pieces: VecDeque<Bytes>,
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
        match self.pieces.back_mut() {
            Some(last) if last.len() + piece.len() <= JOINED => {
                let joined = mem::take(last).try_into_mut();
                let mut joined = joined.unwrap_or_else(|shared| BytesMut::from(&*shared));
                joined.extend_from_slice(&piece);
                *last = joined.freeze();
            }
            Some(_) | None => self.pieces.push_back(piece),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.len -= piece.len();
        Some(piece)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fits(&self, state: &State, len: usize) -> bool {
        let held = state.pending.len;
        held == 0 || held.saturating_add(len) <= self.capacity
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

/// Why a piece was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendError {
    /// The pipe is full; here is the piece. See [`Sender::ready`].
    Full(Bytes),
    /// Nobody reads any more: the client is gone.
    Closed,
}

/// Nobody reads any more: the client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the client reads more slowly than the answer is written"),
            Self::Closed => Closed.fmt(f),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client is gone")
    }
}

impl Error for SendError {}
impl Error for Closed {}

impl Sender {
    /// Writes a piece, whole or not at all. An empty pipe takes a piece of any size.
    pub fn try_send(&self, piece: impl Into<Bytes>) -> Result<(), SendError> {
        let piece = piece.into();
        let mut state = self.shared.state();
        if state.unread {
            return Err(SendError::Closed);
        }
        if piece.is_empty() {
            return Ok(());
        }
        if !self.shared.fits(&state, piece.len()) {
            return Err(SendError::Full(piece));
        }
        state.pending.push(piece);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Ok(())
    }

    /// Writes a piece as soon as there is room for it.
    pub async fn send(&self, piece: impl Into<Bytes> + Send) -> Result<(), Closed> {
        let mut piece = piece.into();
        loop {
            match self.try_send(piece) {
                Ok(()) => return Ok(()),
                Err(SendError::Closed) => return Err(Closed),
                Err(SendError::Full(back)) => piece = back,
            }
            self.ready(piece.len()).await?;
        }
    }

    /// Returns once a piece of `len` bytes would be taken. May be dropped and asked again.
    pub async fn ready(&self, len: usize) -> Result<(), Closed> {
        self.when(|state| match state.unread {
            true => Some(Err(Closed)),
            false => self.shared.fits(state, len).then_some(Ok(())),
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

    /// Writes the last pieces, whether there is room for them or not, and finishes.
    pub fn finish_with(self, pieces: impl IntoIterator<Item = Bytes>) {
        let mut state = self.shared.state();
        pieces.into_iter().filter(|piece| !piece.is_empty()).for_each(|piece| state.pending.push(piece));
        drop(state);
        self.finish();
    }

    /// The answer is whole: what is pending still leaves, then the body ends cleanly.
    pub fn finish(self) {
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
        sender.try_send("one ").unwrap();
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "one ");
        for piece in ["two ", "three ", "", "four"] {
            sender.try_send(piece).unwrap();
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
            pieces.iter().for_each(|piece| sender.try_send(piece.clone()).unwrap());
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
            sender.try_send(vec![7; piece]).unwrap();
        }
        sender.finish();
        let mut sizes = Vec::new();
        while let Some(piece) = next(&mut receiver).await {
            sizes.push(piece.unwrap().len());
        }
        assert_eq!(sizes, [JOINED, 2]);
    }

    #[tokio::test]
    async fn a_full_pipe_gives_the_piece_back_and_says_when_there_is_room() {
        let (sender, mut receiver) = channel(10);
        sender.try_send("12345678").unwrap();
        assert_eq!(sender.try_send("9ab"), Err(SendError::Full("9ab".into())));
        assert_eq!(sender.ready(2).now_or_never(), Some(Ok(())));
        let mut waiting = Box::pin(sender.send("9ab"));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "12345678");
        assert_eq!(waiting.as_mut().now_or_never(), Some(Ok(())));
        drop(waiting);
        assert_eq!(sender.pending(), 3);
    }

    #[tokio::test]
    async fn an_empty_pipe_takes_a_piece_larger_than_itself() {
        let (sender, mut receiver) = channel(2);
        assert_eq!(sender.send("larger").await, Ok(()));
        assert!(matches!(sender.try_send("x"), Err(SendError::Full(_))));
        assert_eq!(next(&mut receiver).await.unwrap().unwrap(), "larger");
    }

    #[tokio::test]
    async fn the_writer_learns_that_nobody_reads() {
        let (sender, receiver) = channel(4);
        sender.try_send("full").unwrap();
        let (mut ready, mut closed) = (Box::pin(sender.ready(1)), pin!(sender.closed()));
        assert_eq!(ready.as_mut().now_or_never(), None);
        assert_eq!(closed.as_mut().now_or_never(), None);
        drop(Body::Stream(receiver));
        assert_eq!(ready.await, Err(Closed));
        closed.await;
        assert_eq!(sender.try_send("x"), Err(SendError::Closed));
    }

    #[tokio::test]
    async fn a_dropped_or_aborted_writer_ends_in_an_error_after_what_was_written() {
        for abort in [Sender::abort, drop] {
            let (sender, mut receiver) = channel(100);
            sender.try_send("half").unwrap();
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
            sender.try_send("late").unwrap();
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
        sender.try_send("four").unwrap();
        assert_eq!(body.size_hint().exact(), None);
        sender.finish();
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!body.is_end_stream());
        let boxed = Body::boxed(http_body_util::Full::new(Bytes::from("boxed")));
        assert_eq!(boxed.size_hint().exact(), Some(5));
        assert_eq!(boxed.collect().await.unwrap().to_bytes(), "boxed");
    }
}
