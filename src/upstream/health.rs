//! What is remembered of an upstream from question to question: how it fares, how much is asked
//! again, which keys rest, what it refuses. It outlives a reload that leaves the upstream as it is.
//!
//! The machines are pure; here they get the time, a lock and their metrics.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Breaker, Pass, State, Verdict};
use super::budget::Budget;
use super::keys::Keys;
use super::settings::Settings;
use crate::telemetry::{Telemetry, metrics};
use crate::wire::failure::{Fact, Failure, FailureKind};

/// The most models one upstream's refusals are remembered for.
const MOST_LEARNED: usize = 256;
/// How long a key rests after a 429 that does not say for how long.
const REST_AFTER_429: Duration = Duration::from_secs(5);

/// The memory of one upstream.
#[derive(Debug)]
pub(super) struct Health {
    start: Instant,
    key_rest: Duration,
    machines: Mutex<Machines>,
    learned: RwLock<BTreeSet<(Fact, String)>>,
    meters: Meters,
}

#[derive(Debug)]
struct Machines {
    /// The state the metric was told last.
    told: State,
    breaker: Breaker,
    budget: Budget,
    keys: Keys,
}

#[derive(Debug)]
struct Meters {
    state: ::metrics::Gauge,
    shed: ::metrics::Counter,
    withheld: ::metrics::Counter,
}

/// Whose key goes with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// None is configured.
    None,
    /// One of the upstream's own.
    Own(usize),
    /// The team's.
    Team,
}

/// How an upstream stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its breaker.
    pub state: State,
    /// Its keys, and how many of them do not rest.
    pub keys: (usize, usize),
}

impl Health {
    pub(super) fn new(name: &str, settings: &Settings, telemetry: &Telemetry) -> Arc<Self> {
        let labels = [("upstream", name)];
        let meters = Meters {
            state: telemetry.gauge(metrics::UPSTREAM_STATE, &labels),
            shed: telemetry.counter(metrics::UPSTREAM_SHED, &labels),
            withheld: telemetry.counter(metrics::RETRIES_WITHHELD, &labels),
        };
        meters.state.set(0.0);
        Arc::new(Self {
            start: Instant::now(),
            key_rest: settings.key_rest.0,
            machines: Mutex::new(Machines {
                told: State::Closed,
                breaker: Breaker::new(settings.breaker),
                budget: Budget::new(settings.retries),
                keys: Keys::new(settings.keys().count()),
            }),
            learned: RwLock::default(),
            meters,
        })
    }

    /// Asks to ask, for the first time or again.
    pub(super) fn admit(self: &Arc<Self>, again: bool, of_team: bool) -> Result<Ticket, Failure> {
        let now = self.now();
        let mut machines = self.machines();
        let pass = machines.breaker.admit(now).map_err(|wait| {
            self.meters.shed.increment(1);
            Failure::left_alone(wait)
        })?;
        if again && !machines.budget.again(now) {
            machines.breaker.hear(now, pass, Verdict::Unknown);
            self.meters.withheld.increment(1);
            return Err(Failure::new(FailureKind::Withheld, "not asked again: the retry budget is spent"));
        }
        if !again {
            machines.budget.asked(now);
        }
        let key = match of_team {
            true => Key::Team,
            false => machines.keys.take(now).map_or(Key::None, Key::Own),
        };
        self.tell(&mut machines, now);
        Ok(Ticket { health: self.clone(), pass: Some(pass), key })
    }

    /// The keys are others now.
    pub(super) fn forget_rests(&self) {
        let mut machines = self.machines();
        machines.keys = Keys::new(machines.keys.count());
    }

    /// Lets a key rest. Gives whether there is another one to use instead.
    fn rest_key(&self, key: usize, status: u16, wait: Option<Duration>) -> bool {
        let rest = match status {
            429 => wait.unwrap_or(REST_AFTER_429).min(self.key_rest),
            _ => self.key_rest,
        };
        let now = self.now();
        self.machines().keys.rest(key, now, rest)
    }

    fn hear(&self, pass: Pass, verdict: Verdict) {
        let now = self.now();
        let mut machines = self.machines();
        machines.breaker.hear(now, pass, verdict);
        self.tell(&mut machines, now);
    }

    /// Tells the metric what changed.
    fn tell(&self, machines: &mut Machines, now: Duration) {
        let state = machines.breaker.state(now);
        if state != std::mem::replace(&mut machines.told, state) {
            self.write(state);
        }
    }

    fn write(&self, state: State) {
        self.meters.state.set(match state {
            State::Closed => 0.0,
            State::Probing => 1.0,
            State::Open(_) => 2.0,
        });
    }

    /// How it stands now. The metric learns of it, too.
    pub(super) fn standing(&self) -> Standing {
        let now = self.now();
        let machines = self.machines();
        let state = machines.breaker.state(now);
        // Whatever was told before: turns in flight may still tell of what an upstream of this name was before a
        // reload.
        self.write(state);
        let keys = (machines.keys.count(), machines.keys.usable(now));
        Standing { state, keys }
    }

    pub(super) fn has_learned(&self, fact: Fact, model: &str) -> bool {
        let learned = self.learned.read().unwrap_or_else(PoisonError::into_inner);
        learned.iter().any(|(known, of)| *known == fact && of == model)
    }

    pub(super) fn learn(&self, fact: Fact, model: &str) {
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        // What is forgotten is learned again when it matters.
        if learned.len() >= MOST_LEARNED {
            learned.pop_first();
        }
        learned.insert((fact, model.to_owned()));
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A question that was let through. It says once how that went; dropped before, nobody knows.
#[derive(Debug)]
pub(super) struct Ticket {
    health: Arc<Health>,
    pass: Option<Pass>,
    pub(super) key: Key,
}

impl Ticket {
    /// The head of a good answer is there. What waits for a probe need not wait for its whole answer.
    pub(super) fn accepted(&mut self) {
        if self.pass.is_some_and(Pass::is_probe) {
            self.answered();
        }
    }

    /// It answered.
    pub(super) fn answered(&mut self) {
        self.say(Verdict::Fine);
    }

    /// It failed. Says so in the failure if another key may do better.
    pub(super) fn failed(&mut self, failure: &mut Failure) {
        failure.other_key = self.refused(failure.kind, failure.reply.status, failure.wait);
    }

    /// The same of a failure that is only known by its parts. Gives whether another key may do better.
    pub(super) fn refused(&mut self, kind: FailureKind, status: u16, wait: Option<Duration>) -> bool {
        let of_the_key = kind == FailureKind::Credentials || (kind == FailureKind::Busy && status == 429);
        // The quota of one team's own key says nothing about the upstream.
        let theirs = self.key == Key::Team && of_the_key;
        self.say(if theirs { Verdict::Fine } else { verdict(kind) });
        match self.key {
            Key::Own(key) if of_the_key => self.health.rest_key(key, status, wait),
            Key::Own(_) | Key::None | Key::Team => false,
        }
    }

    fn say(&mut self, verdict: Verdict) {
        if let Some(pass) = self.pass.take() {
            self.health.hear(pass, verdict);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.say(Verdict::Unknown);
    }
}

const fn verdict(kind: FailureKind) -> Verdict {
    match kind {
        FailureKind::Unresolved
        | FailureKind::Unreachable
        | FailureKind::ConnectTimeout
        | FailureKind::Tls => Verdict::Unreachable,
        FailureKind::Reset
        | FailureKind::Protocol
        | FailureKind::Timeout
        | FailureKind::Truncated
        | FailureKind::InvalidReply
        | FailureKind::InReply
        | FailureKind::Busy
        | FailureKind::ServerError => Verdict::Failed,
        FailureKind::TooLarge
        | FailureKind::Refused
        | FailureKind::ParallelRefused
        | FailureKind::EffortRefused
        | FailureKind::ToolUseFailed
        | FailureKind::Credentials => Verdict::Fine,
        FailureKind::ClientSlow | FailureKind::LeftAlone | FailureKind::Withheld => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_corrects_what_an_upstream_of_before_told() {
        let telemetry = Telemetry::new().unwrap();
        let new = || Health::new("main", &Settings::new("http://a.example/v1"), &telemetry);
        let (before, now) = (new(), new());
        for _ in 0..20 {
            if let Ok(mut ticket) = before.admit(false, false) {
                ticket.say(Verdict::Unreachable);
            }
        }
        let told = |state| {
            telemetry.render().contains(&format!("fanfold_upstream_state{{upstream=\"main\"}} {state}"))
        };
        assert!(told(2));
        now.standing();
        assert!(told(0));
    }

    fn health(keys: usize) -> Arc<Health> {
        let mut settings = Settings::new("http://a.example/v1");
        settings.api_keys = (0..keys).map(|n| crate::units::Secret::Text(n.to_string())).collect();
        Health::new("main", &settings, &Telemetry::new().unwrap())
    }

    fn fail(health: &Arc<Health>, kind: FailureKind, status: u16, of_team: bool) -> bool {
        let mut ticket = health.admit(false, of_team).unwrap();
        ticket.refused(kind, status, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clients_own_refusals_never_open_the_breaker_and_storms_do() {
        let health = health(0);
        for kind in [FailureKind::Refused, FailureKind::Credentials, FailureKind::ToolUseFailed] {
            (0..50).for_each(|_| _ = fail(&health, kind, 400, false));
        }
        assert_eq!(health.standing().state, State::Closed);
        tokio::time::advance(Duration::from_secs(20)).await;
        (0..20).for_each(|_| _ = fail(&health, FailureKind::Busy, 429, false));
        let refused = health.admit(false, false).unwrap_err();
        assert_eq!((refused.kind, refused.reply.status), (FailureKind::LeftAlone, 503));
        assert_eq!(refused.reply.retry_after, Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn the_quota_of_a_teams_own_key_is_not_the_upstreams_fault() {
        let health = health(1);
        (0..50).for_each(|_| _ = fail(&health, FailureKind::Busy, 429, true));
        assert_eq!(health.standing().state, State::Closed);
        (0..50).for_each(|_| _ = fail(&health, FailureKind::ServerError, 502, true));
        assert!(matches!(health.standing().state, State::Open(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_key_rests_and_the_failure_says_whether_there_is_another() {
        let health = health(2);
        assert!(fail(&health, FailureKind::Credentials, 502, false));
        assert_eq!(health.standing().keys, (2, 1));
        assert!(!fail(&health, FailureKind::Busy, 429, false));
        assert_eq!(health.standing().keys, (2, 0));
        tokio::time::advance(REST_AFTER_429).await;
        assert_eq!(health.standing().keys, (2, 1));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(health.standing().keys, (2, 2));
        assert!(!fail(&health, FailureKind::Busy, 503, false), "no key is to blame for that");
        assert_eq!(health.standing().keys, (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_that_is_spent_withholds_repetitions_only() {
        let health = health(0);
        let again = || health.admit(true, false).map(|mut ticket| ticket.answered());
        let allowed = (0..500).filter(|_| again().is_ok()).count();
        assert_eq!(allowed, 100);
        assert_eq!(again().unwrap_err().kind, FailureKind::Withheld);
        assert!(health.admit(false, false).is_ok());
    }

    #[tokio::test]
    async fn what_was_learned_is_bounded() {
        let health = health(0);
        for n in 0..2 * MOST_LEARNED {
            health.learn(Fact::NoParallel, &format!("m{n}"));
        }
        assert_eq!(health.learned.read().unwrap().len(), MOST_LEARNED);
        health.learn(Fact::NoEffort, "m");
        assert!(health.has_learned(Fact::NoEffort, "m") && !health.has_learned(Fact::NoParallel, "m"));
    }
}
