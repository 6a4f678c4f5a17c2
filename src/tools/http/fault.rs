//! Whether an HTTP call is tried again, and what the model is told when it has no answer.
//!
//! Pure. What may have reached the server is repeated only when repeating does no harm:
//!
//! | | `read`, `idempotent` | `write` |
//! |---|---|---|
//! | not sent | once more | once more |
//! | sent, no answer | once more | never |
//! | 5xx | once more | never |
//! | refused by policy, out of time, stopped | never | never |

use http::StatusCode;

use super::connect::ConnectError;
pub(in crate::tools) use crate::wire::tool::UNKNOWN;
use crate::wire::tool::{Effect, Outcome, OutcomeKind};

/// How often a call is tried in all.
const MAX_ATTEMPTS: u32 = 2;

/// Why an attempt has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tools) enum Fault {
    /// There was no connection.
    NotSent(ConnectError),
    /// The request, or a part of it, went out, and no whole answer came. How it ended.
    NoAnswer(&'static str),
    /// The call's time is over; whether a request had gone out.
    Late { sent: bool },
    /// We stopped it; whether a request had gone out.
    Stopped { sent: bool },
}

impl Fault {
    /// The same of a request that follows a redirect: one before it arrived, and may have had its effect.
    pub(super) const fn after_redirect(self) -> Self {
        match self {
            Self::NotSent(_) => Self::NoAnswer("its redirect could not be followed"),
            Self::Late { .. } => Self::Late { sent: true },
            Self::Stopped { .. } => Self::Stopped { sent: true },
            Self::NoAnswer(_) => self,
        }
    }
}

/// Whether an attempt that ended like this is made again.
pub(in crate::tools) fn again(ended: Result<StatusCode, Fault>, effect: Effect, attempts: u32) -> bool {
    let repeatable = match effect {
        Effect::Read | Effect::Idempotent => true,
        Effect::Write => false,
    };
    let worth = match ended {
        Ok(status) => status.is_server_error() && repeatable,
        Err(Fault::NotSent(ConnectError::Blocked) | Fault::Late { .. } | Fault::Stopped { .. }) => false,
        Err(Fault::NotSent(_)) => true,
        Err(Fault::NoAnswer(_)) => repeatable,
    };
    worth && attempts < MAX_ATTEMPTS
}

/// What the model is told. `took`: the time the call had, in words.
pub(super) fn outcome(fault: Fault, effect: Effect, took: &str) -> Outcome {
    let unsure = |sent: bool| sent && effect == Effect::Write;
    let with_unknown =
        |what: String, sent: bool| if unsure(sent) { format!("{what}; {UNKNOWN}") } else { what };
    match fault {
        Fault::NotSent(ConnectError::Blocked) => Outcome::failed(OutcomeKind::Denied, "blocked by policy"),
        Fault::NotSent(why) => {
            Outcome::failed(OutcomeKind::Error, &format!("unreachable: {}", why.message()))
        }
        Fault::NoAnswer(how) if unsure(true) => {
            Outcome::failed(OutcomeKind::Error, &format!("{UNKNOWN} ({how})"))
        }
        Fault::NoAnswer(how) => Outcome::failed(OutcomeKind::Error, &format!("no answer: {how}")),
        Fault::Late { sent } => {
            Outcome::failed(OutcomeKind::Timeout, &with_unknown(format!("timed out after {took}"), sent))
        }
        Fault::Stopped { sent } => {
            Outcome::failed(OutcomeKind::Stopped, &with_unknown("stopped".into(), sent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_again_and_what_never_is() {
        use Effect::{Idempotent, Read, Write};
        let ok = |status: u16| Ok(StatusCode::from_u16(status).unwrap());
        // ended, then: again for read, idempotent, write
        let table = [
            (ok(200), [false, false, false]),
            (ok(302), [false, false, false]),
            (ok(400), [false, false, false]),
            (ok(429), [false, false, false]),
            (ok(500), [true, true, false]),
            (ok(503), [true, true, false]),
            (Err(Fault::NotSent(ConnectError::Blocked)), [false, false, false]),
            (Err(Fault::NotSent(ConnectError::Lookup)), [true, true, true]),
            (Err(Fault::NotSent(ConnectError::Refused)), [true, true, true]),
            (Err(Fault::NotSent(ConnectError::Tls)), [true, true, true]),
            (Err(Fault::NotSent(ConnectError::TooLong)), [true, true, true]),
            (Err(Fault::NoAnswer("reset")), [true, true, false]),
            (Err(Fault::Late { sent: true }), [false, false, false]),
            (Err(Fault::Late { sent: false }), [false, false, false]),
            (Err(Fault::Stopped { sent: true }), [false, false, false]),
        ];
        for (ended, expected) in table {
            for (effect, expected) in [Read, Idempotent, Write].into_iter().zip(expected) {
                assert_eq!(again(ended, effect, 1), expected, "{ended:?} {effect:?}");
                assert!(!again(ended, effect, 2), "{ended:?} {effect:?} a third time");
            }
        }
    }

    #[test]
    fn what_comes_after_a_redirect_is_never_without_effect() {
        for fault in [
            Fault::NotSent(ConnectError::Blocked),
            Fault::NotSent(ConnectError::Refused),
            Fault::Late { sent: false },
            Fault::Stopped { sent: false },
        ] {
            let told = outcome(fault.after_redirect(), Effect::Write, "10s");
            assert!(told.kind != OutcomeKind::Denied && told.content.contains(UNKNOWN), "{told:?}");
        }
    }

    #[test]
    fn only_a_write_that_may_have_arrived_is_called_unknown() {
        let says = |fault, effect| outcome(fault, effect, "10s").content;
        assert_eq!(says(Fault::Late { sent: true }, Effect::Read), "error: timed out after 10s");
        assert_eq!(says(Fault::Late { sent: false }, Effect::Write), "error: timed out after 10s");
        let unknown = "outcome unknown: may have been executed";
        assert_eq!(
            says(Fault::Late { sent: true }, Effect::Write),
            format!("error: timed out after 10s; {unknown}")
        );
        assert_eq!(says(Fault::Stopped { sent: true }, Effect::Write), format!("error: stopped; {unknown}"));
        assert!(says(Fault::NoAnswer("x"), Effect::Write).contains(unknown));
        assert!(!says(Fault::NoAnswer("x"), Effect::Idempotent).contains(unknown));
        assert_eq!(says(Fault::NotSent(ConnectError::Blocked), Effect::Write), "error: blocked by policy");
    }
}
