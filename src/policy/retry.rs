//! Whether a question that failed is asked once more, and of whom. The same for rounds of a turn and
//! for chats that only go through.
//!
//! ```text
//! failed ─▶ another key of this upstream? ─▶ the same upstream, at once
//!        ─▶ may the next upstream do better? ─▶ it, at once; after a full circle, after a pause
//!        ─▶ may the same one do better now? ─▶ it, after a pause
//! ```

use crate::wire::error::ErrorReply;
use crate::wire::failure::{Failure, FailureKind};

/// How many other keys of its upstreams are tried for one question.
const MOST_KEYS: u8 = 8;

/// What was tried before the question that is out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tries {
    again: u8,
    keys: u8,
    /// The upstreams since the last question that were not asked, because they are left alone.
    passed_over: usize,
    /// How often it went on to the next upstream, asked or not.
    moves: usize,
    /// How the last question failed that was asked.
    failed: Option<ErrorReply>,
}

/// The next try.
#[derive(Debug, Clone, PartialEq)]
pub struct Next {
    /// What was tried by then.
    pub tries: Tries,
    /// It goes to the next upstream of the route.
    pub moves_on: bool,
    /// It need not wait: whom it goes to was not asked yet.
    pub at_once: bool,
}

impl Tries {
    /// How often the question was asked before.
    #[must_use]
    pub const fn count(&self) -> u8 {
        self.again + self.keys
    }

    /// How many back-offs there were.
    #[must_use]
    pub const fn again(&self) -> u8 {
        self.again
    }

    /// What follows a failure, where so many upstreams take turns.
    #[must_use]
    pub fn after(&self, failure: &Failure, upstreams: usize) -> Option<Next> {
        let mut tries = Self { failed: Some(failure.reply.clone()), ..self.clone() };
        if failure.other_key && tries.keys < MOST_KEYS {
            tries.keys += 1;
            return Some(Next { tries, moves_on: false, at_once: true });
        }
        if failure.kind == FailureKind::LeftAlone {
            tries.failed.clone_from(&self.failed);
            tries.passed_over += 1;
            tries.moves += 1;
            let others = tries.passed_over < upstreams;
            return others.then_some(Next { tries, moves_on: true, at_once: true });
        }
        // What could not be left out the first time would be refused again.
        if failure.kind.fact().is_some() || tries.again >= failure.kind.again_among(upstreams) {
            return None;
        }
        let moves_on = failure.kind.moves_on() && upstreams > 1;
        tries.moves += usize::from(moves_on);
        let at_once = moves_on && tries.moves < upstreams;
        tries.again += 1;
        tries.passed_over = 0;
        (at_once || failure.may_wait()).then_some(Next { tries, moves_on, at_once })
    }

    /// What the client reads when nothing follows. Who was not asked does not know what is wrong; who
    /// was asked before does.
    #[must_use]
    pub fn last_word(self, failure: &Failure) -> ErrorReply {
        match (failure.kind, self.failed) {
            (FailureKind::LeftAlone | FailureKind::Withheld, Some(reply)) => reply,
            (_, _) => failure.reply.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whom a question goes to that fails like this again and again: letters for upstreams, a dot for
    /// a pause before.
    fn way(upstreams: usize, mut failure: impl FnMut(usize) -> Failure) -> String {
        let (mut way, mut at, mut tries) = (String::from("a"), 0, Tries::default());
        while let Some(next) = tries.after(&failure(at), upstreams) {
            at = if next.moves_on { (at + 1) % upstreams } else { at };
            way.push_str(if next.at_once { "" } else { "." });
            way.push(char::from(b"abcd"[at]));
            tries = next.tries;
            assert!(way.len() < 100, "it is asked for ever: {way}");
        }
        way
    }

    fn always(kind: FailureKind) -> impl FnMut(usize) -> Failure {
        move |_| Failure::new(kind, "")
    }

    #[test]
    fn each_kind_is_asked_again_as_often_as_its_row_says() {
        for (kind, ways) in [
            (FailureKind::Unresolved, ["a.a.a", "ab.a", "abc"]),
            (FailureKind::Unreachable, ["a.a.a", "ab.a", "abc"]),
            (FailureKind::ConnectTimeout, ["a.a", "ab", "abc"]),
            (FailureKind::Reset, ["a.a", "ab", "abc"]),
            (FailureKind::Timeout, ["a.a", "ab", "abc"]),
            (FailureKind::Truncated, ["a.a", "ab", "abc"]),
            (FailureKind::InvalidReply, ["a.a", "ab", "abc"]),
            (FailureKind::InReply, ["a.a", "ab", "abc"]),
            (FailureKind::ServerError, ["a.a", "ab", "abc"]),
            (FailureKind::Busy, ["a.a.a", "ab.a", "abc"]),
            (FailureKind::LeftAlone, ["a", "ab", "abc"]),
            (FailureKind::ToolUseFailed, ["a.a", "a.a", "a.a"]),
            (FailureKind::Tls, ["a", "a", "a"]),
            (FailureKind::Protocol, ["a", "a", "a"]),
            (FailureKind::TooLarge, ["a", "a", "a"]),
            (FailureKind::Refused, ["a", "a", "a"]),
            (FailureKind::Credentials, ["a", "a", "a"]),
            (FailureKind::ParallelRefused, ["a", "a", "a"]),
            (FailureKind::Withheld, ["a", "a", "a"]),
            (FailureKind::ClientSlow, ["a", "a", "a"]),
        ] {
            assert_eq!([1, 2, 3].map(|upstreams| way(upstreams, always(kind))), ways, "{kind:?}");
        }
    }

    #[test]
    fn a_long_wait_is_not_waited_for_but_the_next_upstream_is_asked() {
        let busy = |_| Failure::of_status(429, bytes::Bytes::new(), Some(Duration::from_secs(30)));
        assert_eq!([1, 2].map(|upstreams| way(upstreams, busy)), ["a", "ab"]);
    }

    #[test]
    fn an_upstream_that_is_left_alone_costs_no_try() {
        let first_open =
            |at| Failure::new(if at == 0 { FailureKind::LeftAlone } else { FailureKind::ServerError }, "");
        assert_eq!(way(2, first_open), "ab.ab");
        assert_eq!(way(3, first_open), "abc.ab");
    }

    #[test]
    fn other_keys_are_tried_first_and_only_so_many() {
        let refused = |_| Failure { other_key: true, ..Failure::new(FailureKind::Credentials, "") };
        assert_eq!(way(2, refused), "a".repeat(1 + usize::from(MOST_KEYS)));
    }

    #[test]
    fn with_one_upstream_there_is_no_next_one() {
        let failed = Failure::new(FailureKind::ServerError, "");
        let moves_on = |upstreams| Tries::default().after(&failed, upstreams).unwrap().moves_on;
        assert_eq!([1, 2].map(moves_on), [false, true]);
    }

    #[test]
    fn other_keys_are_counted_as_questions_and_not_as_pauses() {
        let refused = Failure { other_key: true, ..Failure::new(FailureKind::Credentials, "") };
        let failed = Failure::new(FailureKind::ServerError, "");
        let counts = |tries: &Tries| (tries.count(), tries.again());
        let first = Tries::default();
        assert_eq!(counts(&first), (0, 0));
        let second = first.after(&refused, 1).unwrap().tries;
        assert_eq!(counts(&second), (1, 0));
        let third = second.after(&refused, 1).unwrap().tries;
        assert_eq!(counts(&third), (2, 0));
        assert_eq!(counts(&third.after(&failed, 1).unwrap().tries), (3, 1));
    }

    #[test]
    fn the_last_word_has_who_was_asked() {
        let failed = Failure::new(FailureKind::ServerError, "");
        let open = Failure::left_alone(Duration::from_secs(5));
        let tries = Tries::default().after(&failed, 2).unwrap().tries;
        assert_eq!(tries.last_word(&open).status, 502);
        assert_eq!(Tries::default().last_word(&open).status, 503);
    }
}
