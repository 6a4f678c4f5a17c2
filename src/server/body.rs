//! Reads a request's body into one piece: bounded in size, in time and in what all bodies hold.
//!
//! hyper answers `Expect: 100-continue` when the body is first asked for, so a body that is refused
//! by its announced length is refused before the client sends it.

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{self, Instant};

use crate::units::{Size, Span};

/// How long a body may come as slowly as it likes.
const FREE: Duration = Duration::from_secs(5);
/// The most that is set aside on the word of a `content-length`.
const AHEAD: usize = 256 * 1024;

/// Bodies of so many bytes are copied out of what the connection read.
const SMALL: usize = 4 * 1024;

/// What one body may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Its bytes.
    pub limit: usize,
    /// The time from the first look at it to its end.
    pub deadline: Duration,
    /// The bytes a second it has to bring, counted after the first five seconds. 0: any.
    pub rate: usize,
}

/// The bytes that all bodies together may hold.
#[derive(Debug)]
pub struct InFlightBudget {
    capacity: usize,
    used: AtomicUsize,
}

/// A part of an [`InFlightBudget`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<InFlightBudget>,
    bytes: usize,
}

impl InFlightBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, used: AtomicUsize::new(0) })
    }

    /// The bytes that are held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.capacity
    }

    fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }
}

impl Reservation {
    fn grow(&mut self, by: usize) -> bool {
        let capacity = self.budget.capacity;
        let grown = |used: usize| used.checked_add(by).filter(|new| *new <= capacity);
        let done = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        if done {
            self.bytes += by;
        }
        done
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A whole body. Its share of the budget is given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    bytes: Bytes,
    reservation: Reservation,
}

impl Held {
    /// The body, and the share of the budget that belongs to it.
    #[must_use]
    pub fn into_parts(self) -> (Bytes, Reservation) {
        (self.bytes, self.reservation)
    }
}

impl Deref for Held {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// The caller's: it is larger than allowed.
    TooLarge {
        /// The bound, in bytes.
        limit: usize,
    },
    /// The caller's: it came too slowly.
    Timeout {
        /// The bound on the whole body.
        deadline: Duration,
        /// The bytes a second that were asked for.
        rate: usize,
    },
    /// The caller's: it broke off, or its framing is wrong.
    Broken,
    /// Ours: the bodies in flight hold all that may be held.
    Overloaded,
}

impl BodyError {
    /// Status, code and message for the client. `Overloaded` wants a `retry-after` beside it.
    #[must_use]
    pub fn parts(&self) -> (StatusCode, &'static str, String) {
        let (status, code) = match self {
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::Timeout { .. } => (StatusCode::REQUEST_TIMEOUT, "request_timeout"),
            Self::Broken => (StatusCode::BAD_REQUEST, "incomplete_body"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
        };
        (status, code, self.to_string())
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { limit } => {
                write!(f, "the request body is larger than {}: send less", Size(*limit))
            }
            Self::Timeout { deadline, rate } => write!(
                f,
                "the request body came too slowly: it has to be complete within {} and to bring {} a second",
                Span(*deadline),
                Size(*rate),
            ),
            Self::Broken => f.write_str("the request body broke off before its end"),
            Self::Overloaded => {
                f.write_str("the proxy holds as many request bodies as it may: try again shortly")
            }
        }
    }
}

impl Error for BodyError {}

/// Reads the whole body that belongs to `headers`.
///
/// A body that comes in one piece is handed on without a copy, unless it is small: it would keep the whole
/// buffer that the connection reads into as long as its answer takes.
pub async fn read<B>(
    headers: &HeaderMap,
    mut body: B,
    bounds: &Bounds,
    budget: &Arc<InFlightBudget>,
) -> Result<Held, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = announced(headers);
    if announced.is_some_and(|length| length > bounds.limit) {
        return Err(BodyError::TooLarge { limit: bounds.limit });
    }
    if !budget.has_room_for(announced.unwrap_or(0)) {
        return Err(BodyError::Overloaded);
    }
    let started = Instant::now();
    let mut reservation = budget.reserve();
    let mut parts = Parts::Empty;
    while let Some(piece) = next_piece(&mut body, bounds, started, parts.len()).await? {
        if piece.len() > bounds.limit - parts.len() {
            return Err(BodyError::TooLarge { limit: bounds.limit });
        }
        if !reservation.grow(piece.len()) {
            return Err(BodyError::Overloaded);
        }
        parts = parts.with(piece, announced);
    }
    Ok(Held { bytes: parts.whole(), reservation })
}

/// A `content-length` that can be read; others are hyper's to refuse. One that does not fit a
/// `usize` is larger than any limit.
fn announced(headers: &HeaderMap) -> Option<usize> {
    let text = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(usize::MAX))
}

async fn next_piece<B>(
    body: &mut B,
    bounds: &Bounds,
    started: Instant,
    received: usize,
) -> Result<Option<Bytes>, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame =
            time::timeout_at(started + patience(bounds, received), Pin::new(&mut *body).frame()).await;
        match frame {
            Err(_) => return Err(BodyError::Timeout { deadline: bounds.deadline, rate: bounds.rate }),
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(BodyError::Broken),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => return Ok(Some(piece)),
                // Trailers: nothing we read, and the end follows.
                Err(_) => {}
            },
        }
    }
}

/// How long after its start a body that has brought `received` bytes must have brought another.
fn patience(bounds: &Bounds, received: usize) -> Duration {
    let earned = match bounds.rate {
        0 => return bounds.deadline,
        rate => Duration::from_millis((received as u64).saturating_mul(1000) / rate as u64),
    };
    (FREE + earned).min(bounds.deadline)
}

/// One piece stays as it is; from the second on they are joined.
enum Parts {
    Empty,
    One(Bytes),
    Joined(BytesMut),
}

impl Parts {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(bytes) => bytes.len(),
            Self::Joined(bytes) => bytes.len(),
        }
    }

    fn with(self, piece: Bytes, announced: Option<usize>) -> Self {
        let mut all = match self {
            Self::Empty => return Self::One(piece),
            Self::One(first) => {
                let mut all = BytesMut::with_capacity(announced.unwrap_or(0).min(AHEAD));
                all.extend_from_slice(&first);
                all
            }
            Self::Joined(all) => all,
        };
        all.extend_from_slice(&piece);
        Self::Joined(all)
    }

    fn whole(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::One(bytes) if bytes.len() <= SMALL => Bytes::copy_from_slice(&bytes),
            Self::One(bytes) => bytes,
            Self::Joined(bytes) => bytes.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    const BOUNDS: Bounds = Bounds { limit: 100_000, deadline: Duration::from_secs(30), rate: 1024 };

    fn length(n: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_LENGTH, n.parse().unwrap())])
    }

    /// A body of pieces, each after a pause.
    fn slowly(pieces: Vec<(u64, Bytes)>) -> impl Body<Data = Bytes, Error = BodyError> + Unpin {
        StreamBody::new(Box::pin(stream::iter(pieces).then(|(pause, piece)| async move {
            time::sleep(Duration::from_secs(pause)).await;
            Ok(Frame::data(piece))
        })))
    }

    async fn read_slowly(
        headers: HeaderMap,
        pieces: Vec<(u64, Bytes)>,
        budget: &Arc<InFlightBudget>,
    ) -> Result<Held, BodyError> {
        read(&headers, slowly(pieces), &BOUNDS, budget).await
    }

    #[tokio::test]
    async fn one_large_piece_is_not_copied_and_several_are_joined() {
        let budget = InFlightBudget::new(20_000);
        let small = Bytes::from_static(b"small");
        let read = read_slowly(length("5"), vec![(0, small.clone())], &budget).await.unwrap();
        assert_eq!((&*read, read.as_ptr() == small.as_ptr()), (&small, false));
        drop(read);
        let piece = Bytes::from(vec![b'a'; 5000]);
        let one = read_slowly(length("5000"), vec![(0, piece.clone())], &budget).await.unwrap();
        assert_eq!(one.as_ptr(), piece.as_ptr());
        let two = vec![(0, piece.clone()), (0, Bytes::new()), (0, piece)];
        let two = read_slowly(HeaderMap::new(), two, &budget).await.unwrap();
        assert_eq!((two.len(), budget.used()), (10_000, 15_000));
        let (bytes, reservation) = two.into_parts();
        drop((one, bytes));
        assert_eq!(budget.used(), 10_000, "the share lives as long as its reservation");
        drop(reservation);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_announced_too_large_is_not_even_asked_for() {
        let budget = InFlightBudget::new(1000);
        for announced in ["100001", "99999999999999999999999999"] {
            let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, BodyError>>());
            let got = read(&length(announced), never, &BOUNDS, &budget).await;
            assert_eq!(got.unwrap_err(), BodyError::TooLarge { limit: 100_000 });
        }
    }

    #[tokio::test]
    async fn a_body_that_grows_too_large_is_given_up_and_its_share_given_back() {
        let budget = InFlightBudget::new(1 << 20);
        let piece = Bytes::from(vec![0; 60_000]);
        let got = read_slowly(HeaderMap::new(), vec![(0, piece.clone()), (0, piece)], &budget).await;
        assert_eq!(got.unwrap_err(), BodyError::TooLarge { limit: 100_000 });
        assert_eq!(budget.used(), 0);
        let whole = Bytes::from(vec![0; 100_000]);
        assert_eq!(read_slowly(HeaderMap::new(), vec![(0, whole)], &budget).await.unwrap().len(), 100_000);
    }

    #[tokio::test]
    async fn an_exhausted_budget_is_overload() {
        let budget = InFlightBudget::new(1000);
        let held = read_slowly(HeaderMap::new(), vec![(0, vec![0; 900].into())], &budget).await.unwrap();
        let announced = read_slowly(length("101"), vec![], &budget).await;
        assert_eq!(announced.unwrap_err(), BodyError::Overloaded);
        let surprise = read_slowly(HeaderMap::new(), vec![(0, vec![0; 101].into())], &budget).await;
        assert_eq!(surprise.unwrap_err().parts().0, 503);
        drop(held);
        assert!(read_slowly(length("101"), vec![(0, vec![0; 101].into())], &budget).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_body_is_refused_after_five_seconds() {
        let begun = Instant::now();
        let drip = vec![(1, Bytes::from("x")); 100];
        let got = read_slowly(HeaderMap::new(), drip, &InFlightBudget::new(1000)).await;
        assert_eq!(got.unwrap_err().parts().0, 408);
        assert_eq!(begun.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_the_minimum_rate_has_until_the_deadline() {
        let begun = Instant::now();
        let steady = vec![(1, Bytes::from(vec![0; 1100])); 60];
        let got = read_slowly(HeaderMap::new(), steady, &InFlightBudget::new(1 << 20)).await;
        assert_eq!(got.unwrap_err(), BodyError::Timeout { deadline: BOUNDS.deadline, rate: 1024 });
        assert_eq!(begun.elapsed().as_secs(), 30);
        let steady = vec![(1, Bytes::from(vec![0; 1100])); 29];
        assert!(read_slowly(HeaderMap::new(), steady, &InFlightBudget::new(1 << 20)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_broken() {
        let body = StreamBody::new(stream::iter([
            Ok(Frame::data(Bytes::from("half"))),
            Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
        ]));
        let got = read(&HeaderMap::new(), body, &BOUNDS, &InFlightBudget::new(1000)).await;
        assert_eq!(got.unwrap_err(), BodyError::Broken);
    }

    #[test]
    fn the_message_names_the_bound() {
        let (status, code, message) = BodyError::TooLarge { limit: 16 << 20 }.parts();
        assert_eq!((status.as_u16(), code), (413, "request_too_large"));
        assert!(message.contains("16MiB"), "{message}");
        let (_, _, message) = BodyError::Timeout { deadline: BOUNDS.deadline, rate: 1024 }.parts();
        assert!(message.contains("30s") && message.contains("1KiB"), "{message}");
    }
}
