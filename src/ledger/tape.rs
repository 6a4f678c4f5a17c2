//! The answer of a run as it is written, for those who join: what is there already, then what comes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;

use super::entry::Answer;

/// A recording.
#[derive(Debug)]
pub struct Tape {
    /// The most bytes it holds.
    limit: usize,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    head: Option<(StatusCode, HeaderMap)>,
    pieces: Vec<Bytes>,
    bytes: usize,
    ended: bool,
    /// More came than it holds. What it had is gone.
    lost: bool,
}

/// What a listener hears.
#[derive(Debug)]
pub enum Heard {
    /// More of the body.
    Piece(Bytes),
    /// The end.
    End,
    /// The rest is not to be had: the answer was too large, or its run broke off.
    Lost,
}

impl Tape {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: watch::channel(()).0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if !state.ended {
            change(&mut state);
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// The answer begins.
    pub fn begin(&self, status: StatusCode, headers: &HeaderMap) {
        self.change(|state| state.head = Some((status, headers.clone())));
    }

    /// More of its body.
    pub fn push(&self, bytes: &Bytes) {
        self.change(|state| {
            state.bytes += bytes.len();
            if state.bytes > self.limit {
                state.lost = true;
                state.pieces = Vec::new();
            } else {
                state.pieces.push(bytes.clone());
            }
        });
    }

    /// The answer is complete.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// Nobody hears what was there; this is the answer instead.
    pub(super) fn say_instead(&self, answer: &Answer) {
        self.change(|state| {
            *state = State {
                head: Some((answer.status, answer.headers.clone())),
                pieces: vec![answer.body.clone()],
                bytes: answer.body.len(),
                ended: true,
                lost: false,
            };
        });
    }

    /// Nothing more comes, and what was there is no answer.
    pub(super) fn break_off(&self) {
        self.change(|state| (state.lost, state.ended) = (true, true));
    }

    /// Waits for the head; `None`: there is none and never will be.
    pub async fn head(&self) -> Option<(StatusCode, HeaderMap)> {
        let found = |state: &State| match &state.head {
            _ if state.lost => Some(None),
            Some(head) => Some(Some(head.clone())),
            None => state.ended.then_some(None),
        };
        self.wait(found).await
    }

    /// Waits for the piece after `at` others.
    pub async fn piece(&self, at: usize) -> Heard {
        let found = |state: &State| match state.pieces.get(at) {
            _ if state.lost => Some(Heard::Lost),
            Some(piece) => Some(Heard::Piece(piece.clone())),
            None => state.ended.then_some(Heard::End),
        };
        self.wait(found).await
    }

    /// Waits for the end; `None`: it was too large to be kept.
    pub async fn whole(&self) -> Option<Answer> {
        self.wait(|state| state.ended.then_some(())).await;
        let state = self.state();
        let (status, headers) = state.head.clone().filter(|_| !state.lost)?;
        let body: BytesMut = state.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        Some(Answer { status, headers, body: body.freeze() })
    }

    async fn wait<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(found) = found(&self.state()) {
                return found;
            }
            // The sender lives as long as the tape.
            let _changed = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_joins_late_hears_the_same_from_the_beginning() {
        let tape = Tape::new(8);
        tape.begin(StatusCode::OK, &HeaderMap::new());
        tape.push(&"ab".into());
        assert_eq!(tape.head().await.unwrap().0, StatusCode::OK);
        assert!(matches!(tape.piece(0).await, Heard::Piece(piece) if piece == "ab"));
        let (next, ()) = tokio::join!(tape.piece(1), async { tape.push(&"cd".into()) });
        assert!(matches!(next, Heard::Piece(piece) if piece == "cd"));
        tape.end();
        tape.push(&"no more".into());
        assert!(matches!(tape.piece(2).await, Heard::End));
        assert_eq!(tape.whole().await.unwrap().body, "abcd");
    }

    #[tokio::test]
    async fn what_is_too_large_is_lost_as_a_whole() {
        let tape = Tape::new(3);
        tape.begin(StatusCode::OK, &HeaderMap::new());
        tape.push(&"ab".into());
        tape.push(&"cd".into());
        assert!(matches!(tape.piece(0).await, Heard::Lost));
        tape.end();
        assert!(tape.whole().await.is_none() && tape.head().await.is_none());
        let broken = Tape::new(3);
        broken.break_off();
        assert!(broken.head().await.is_none());
    }
}
