//! When an upstream is left alone, and when it is tried again. A state machine without a clock.
//!
//! ```text
//!          half of enough questions failed,            rest over: one question
//!          or connects failed in a row                  goes out as a probe
//!  Closed ───────────────────────────────────▶ Open ──────────────────────────▶ Probing
//!     ▲                                         ▲                                │  │
//!     │                                         └─── failed: rest twice as long ─┘  │
//!     └──────────────────────────────── answered ───────────────────────────────────┘
//! ```
//!
//! Every question that is let through holds a [`Pass`] and says with it how it went, once. A pass of
//! an earlier state says nothing any more: what was asked before the breaker opened neither closes
//! it nor makes its rest longer.

use std::time::Duration;

use super::settings;
use super::window::{Counts, Window};

/// How a question went, as far as the upstream's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answered; also with a refusal that is the client's own fault.
    Fine,
    /// It answered badly, late or not at all.
    Failed,
    /// There was no connection.
    Unreachable,
    /// Nobody knows: the client left before.
    Unknown,
}

/// The right to ask once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    epoch: u64,
    probe: bool,
}

impl Pass {
    /// Whether everything else waits for how this question goes.
    pub(super) const fn is_probe(self) -> bool {
        self.probe
    }
}

/// What a breaker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Questions go through.
    Closed,
    /// One question goes through, to see.
    Probing,
    /// None goes through for this long.
    Open(Duration),
}

#[derive(Debug)]
enum Stage {
    Closed { seen: Window, unreachable: u32 },
    Open { until: Duration, rest: Duration },
    Probing { rest: Duration },
}

/// One upstream's breaker. All times are since some fixed moment.
#[derive(Debug)]
pub(super) struct Breaker {
    settings: settings::Breaker,
    stage: Stage,
    /// Counts the changes of state.
    epoch: u64,
}

impl Breaker {
    pub(super) fn new(settings: settings::Breaker) -> Self {
        let stage = Stage::Closed { seen: Window::new(settings.window.0), unreachable: 0 };
        Self { settings, stage, epoch: 0 }
    }

    /// Asks to ask. Refused, it gives how long to wait before trying again.
    pub(super) fn admit(&mut self, now: Duration) -> Result<Pass, Duration> {
        match self.stage {
            Stage::Closed { .. } => Ok(Pass { epoch: self.epoch, probe: false }),
            Stage::Open { until, .. } if now < until => Err(until - now),
            Stage::Open { rest, .. } => {
                self.change(Stage::Probing { rest });
                Ok(Pass { epoch: self.epoch, probe: true })
            }
            Stage::Probing { rest } => Err(rest.min(self.settings.rest.0)),
        }
    }

    /// Hears how a question went.
    pub(super) fn hear(&mut self, now: Duration, pass: Pass, verdict: Verdict) {
        if pass.epoch != self.epoch {
            return;
        }
        match &mut self.stage {
            Stage::Closed { seen, unreachable } => {
                match verdict {
                    Verdict::Unknown => return,
                    Verdict::Fine | Verdict::Failed => *unreachable = 0,
                    Verdict::Unreachable => *unreachable += 1,
                }
                let failed = u32::from(verdict != Verdict::Fine);
                seen.add(now, Counts { all: 1, marked: failed });
                let unreachable = *unreachable;
                let counts = seen.sum(now);
                if failed > 0 && self.is_too_much(counts, unreachable) {
                    self.open(now, self.settings.rest.0);
                }
            }
            Stage::Probing { rest } => {
                let rest = *rest;
                match verdict {
                    Verdict::Fine => self
                        .change(Stage::Closed { seen: Window::new(self.settings.window.0), unreachable: 0 }),
                    Verdict::Failed | Verdict::Unreachable => {
                        self.open(now, (rest * 2).min(self.settings.longest_rest.0).max(rest));
                    }
                    // The next one is the probe, at once.
                    Verdict::Unknown => self.change(Stage::Open { until: now, rest }),
                }
            }
            Stage::Open { .. } => {}
        }
    }

    fn is_too_much(&self, counts: Counts, unreachable: u32) -> bool {
        let share =
            u64::from(counts.marked) * 100 >= u64::from(counts.all) * u64::from(self.settings.percent);
        unreachable >= self.settings.connects || (counts.all >= self.settings.requests && share)
    }

    fn open(&mut self, now: Duration, rest: Duration) {
        self.change(Stage::Open { until: now + rest, rest });
    }

    fn change(&mut self, stage: Stage) {
        self.stage = stage;
        self.epoch += 1;
    }

    /// Where it stands.
    pub(super) fn state(&self, now: Duration) -> State {
        match self.stage {
            Stage::Closed { .. } => State::Closed,
            Stage::Open { until, .. } if now < until => State::Open(until - now),
            Stage::Open { .. } | Stage::Probing { .. } => State::Probing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn breaker() -> Breaker {
        Breaker::new(settings::Breaker::default())
    }

    /// Asks and hears at once.
    fn play(breaker: &mut Breaker, now: f64, verdict: Verdict) {
        let pass = breaker.admit(at(now)).expect("it lets questions through");
        breaker.hear(at(now), pass, verdict);
    }

    /// A breaker that has just opened, at second 0.
    fn opened() -> Breaker {
        let mut breaker = breaker();
        for _ in 0..5 {
            play(&mut breaker, 0.0, Verdict::Unreachable);
        }
        assert_eq!(breaker.state(at(0.0)), State::Open(at(5.0)));
        breaker
    }

    #[test]
    fn half_of_twenty_within_ten_seconds_open_it_and_fewer_do_not() {
        for (fine, failed, opens) in
            [(10, 10, true), (11, 9, false), (0, 19, false), (9, 10, false), (0, 20, true)]
        {
            let mut breaker = breaker();
            for _ in 0..fine {
                play(&mut breaker, 1.0, Verdict::Fine);
            }
            for _ in 0..failed {
                play(&mut breaker, 2.0, Verdict::Failed);
            }
            let open = breaker.state(at(2.0)) != State::Closed;
            assert_eq!(open, opens, "{fine} fine, {failed} failed");
        }
    }

    #[test]
    fn failures_that_are_spread_over_more_than_the_window_do_not_open_it() {
        let mut breaker = breaker();
        for second in 0..60u8 {
            play(&mut breaker, f64::from(second), Verdict::Failed);
        }
        assert_eq!(breaker.state(at(60.0)), State::Closed);
    }

    #[test]
    fn five_failed_connects_in_a_row_open_it_and_an_answer_between_them_counts_anew() {
        let mut breaker = breaker();
        for verdict in [Verdict::Unreachable; 4].into_iter().chain([Verdict::Failed]) {
            play(&mut breaker, 0.0, verdict);
        }
        for _ in 0..4 {
            play(&mut breaker, 1.0, Verdict::Unreachable);
        }
        assert_eq!(breaker.state(at(1.0)), State::Closed);
        play(&mut breaker, 1.0, Verdict::Unreachable);
        assert_eq!(breaker.state(at(1.0)), State::Open(at(5.0)));
    }

    #[test]
    fn open_it_refuses_until_its_rest_is_over_and_then_lets_one_through() {
        let mut breaker = opened();
        assert_eq!(breaker.admit(at(1.5)), Err(at(3.5)));
        let probe = breaker.admit(at(5.0)).unwrap();
        assert!(probe.is_probe());
        assert_eq!(breaker.state(at(5.0)), State::Probing);
        assert_eq!(breaker.admit(at(5.0)), Err(at(5.0)), "one probe at a time");
        breaker.hear(at(5.1), probe, Verdict::Fine);
        assert_eq!(breaker.state(at(5.1)), State::Closed);
        assert!(breaker.admit(at(5.1)).is_ok());
    }

    #[test]
    fn a_failed_probe_doubles_the_rest_up_to_a_minute_and_an_answer_resets_it() {
        let mut breaker = opened();
        let mut now = 5.0;
        for rest in [10.0, 20.0, 40.0, 60.0, 60.0] {
            play(&mut breaker, now, Verdict::Failed);
            assert_eq!(breaker.state(at(now)), State::Open(at(rest)));
            now += rest;
        }
        play(&mut breaker, now, Verdict::Fine);
        for _ in 0..5 {
            play(&mut breaker, now, Verdict::Unreachable);
        }
        assert_eq!(breaker.state(at(now)), State::Open(at(5.0)));
    }

    #[test]
    fn a_probe_whose_client_left_is_followed_by_another() {
        let mut breaker = opened();
        let probe = breaker.admit(at(5.0)).unwrap();
        breaker.hear(at(6.0), probe, Verdict::Unknown);
        assert!(breaker.admit(at(6.0)).unwrap().is_probe());
    }

    #[test]
    fn news_of_an_earlier_state_changes_nothing() {
        let mut breaker = breaker();
        let early = breaker.admit(at(0.0)).unwrap();
        for _ in 0..5 {
            play(&mut breaker, 0.0, Verdict::Unreachable);
        }
        breaker.hear(at(1.0), early, Verdict::Fine);
        assert_eq!(breaker.state(at(1.0)), State::Open(at(4.0)));
        let probe = breaker.admit(at(5.0)).unwrap();
        breaker.hear(at(5.0), early, Verdict::Failed);
        assert_eq!(breaker.state(at(5.0)), State::Probing);
        breaker.hear(at(5.0), probe, Verdict::Fine);
        breaker.hear(at(5.0), probe, Verdict::Failed);
        assert_eq!(breaker.state(at(5.0)), State::Closed);
    }
}
