//! How quotas count: pure, without a clock.
//!
//! A [`Rate`] (so much a minute, in bursts) is the generic cell rate algorithm, in its form of a leaking
//! bucket (ITU-T I.371, annex A): what was taken fills a bucket that leaks at the rate, and a take is
//! admitted when it still fits. A [`Budget`] (so much a day or month) is the same bucket without a leak,
//! a new one in every period. So both have one formula, [`Bucket`], written in whole numbers: the level
//! is counted in units times the window's milliseconds, and each millisecond takes away the rate's amount.
//!
//! The same formula stands in `meters.lua` for a shared store; a test compares both. Numbers stay below
//! 2⁵², which a double holds exactly, because Lua has no others.
//!
//! What was used is not always known before. A charge of 0 asks whether anything is left; a later
//! debit may then go below nothing, and what is below keeps further takes out until it has leaked away.

use std::borrow::Cow;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};

/// The most a bucket counts, in its own units; more is counted as this much.
pub const CEILING: u64 = 1 << 52;

/// Something a team has a quota of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// Its name, fixed in the code or the configuration: `requests`, `tokens_per_day`. Teams have few.
    pub name: Cow<'static, str>,
    /// How much of it.
    pub rule: Rule,
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// So much per time, in bursts.
    Rate(Rate),
    /// So much in a period of the calendar.
    Budget(Budget),
}

/// So much per time, in bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    amount: u64,
    window: u64,
    burst: u64,
}

impl Rate {
    /// `amount` per `window`, at most `burst` of it at once after a pause. Neither is less than one, the
    /// window not less than a millisecond; amount and burst are not more than [`Rate::most`].
    #[must_use]
    pub fn new(amount: u64, window: Duration, burst: u64) -> Self {
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        let most = Self::most(window);
        Self { amount: amount.clamp(1, most), window: millis, burst: burst.clamp(1, most) }
    }

    /// `amount` a minute, at most `burst` of it at once.
    #[must_use]
    pub fn per_minute(amount: u64, burst: u64) -> Self {
        Self::new(amount, Duration::from_secs(60), burst)
    }

    /// The most that can be counted per `window`: about 37 thousand million a minute.
    #[must_use]
    pub fn most(window: Duration) -> u64 {
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40);
        CEILING / 2 / millis
    }
}

/// So much in a period of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How much; at most [`CEILING`].
    pub amount: u64,
    /// In which period.
    pub period: Period,
}

/// A period of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From the first of a month to the first of the next.
    Month,
}

impl Period {
    /// The period that holds this moment, in milliseconds since 1970.
    #[must_use]
    pub fn at(self, now: u64) -> Span {
        let date = date(now);
        let next = match self {
            Self::Day => date.tomorrow(),
            Self::Month => date.last_of_month().tomorrow(),
        };
        let number = match self {
            Self::Day => {
                i64::from(date.year()) * 10_000 + i64::from(date.month()) * 100 + i64::from(date.day())
            }
            Self::Month => i64::from(date.year()) * 100 + i64::from(date.month()),
        };
        let end = next.ok().and_then(|next| next.to_zoned(TimeZone::UTC).ok());
        let end = end.and_then(|end| u64::try_from(end.timestamp().as_millisecond()).ok());
        Span { number, end: end.unwrap_or(now) }
    }
}

fn date(now: u64) -> Date {
    let now = i64::try_from(now).ok().and_then(|now| Timestamp::from_millisecond(now).ok());
    now.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC).date()
}

/// One day or month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// `20270131` or `202701`.
    pub number: i64,
    /// When it ends, in milliseconds since 1970.
    pub end: u64,
}

/// What is taken of a meter.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// From which.
    pub meter: &'a Meter,
    /// How much. A take of 0 asks whether anything is left.
    pub amount: u64,
}

/// What a take came to: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// How each meter stands now, in the order of the charges.
    pub standings: Vec<Standing>,
    /// Whether this was counted by this process alone, because the shared store was down.
    pub local: bool,
}

impl Taken {
    /// Every meter admitted it, and it was counted. Otherwise nothing was.
    #[must_use]
    pub fn admitted(&self) -> bool {
        self.standings.iter().all(|standing| standing.denial.is_none())
    }
}

/// How a meter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The quota: of a rate the amount per window, of a budget the amount per period.
    pub limit: u64,
    /// What is left of it at this moment; below zero after debits.
    pub remaining: i64,
    /// When all of it is there again.
    pub reset: Duration,
    /// The meter did not admit the charge.
    pub denial: Option<Denial>,
}

/// Why a meter does not admit a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// It would after this long, if nobody else takes any.
    For(Duration),
    /// It never will: the charge is larger than the whole quota.
    Ever,
}

/// The formula: a bucket that leaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// What leaks away in a millisecond.
    pub leak: u64,
    /// What one unit of a charge counts.
    pub unit: u64,
    /// What fits.
    pub capacity: u64,
}

/// What is in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// How much, at most [`CEILING`].
    pub full: u64,
    /// When, in milliseconds.
    pub at: u64,
}

impl Rule {
    /// The bucket that counts it.
    #[must_use]
    pub const fn bucket(self) -> Bucket {
        match self {
            Self::Rate(Rate { amount, window, burst }) => {
                Bucket { leak: amount, unit: window, capacity: burst * window }
            }
            Self::Budget(Budget { amount, .. }) => {
                let capacity = if amount < CEILING { amount } else { CEILING };
                Bucket { leak: 0, unit: 1, capacity }
            }
        }
    }

    const fn limit(self) -> u64 {
        match self {
            Self::Rate(rate) => rate.amount,
            Self::Budget(budget) => budget.amount,
        }
    }
}

impl Bucket {
    /// What is in it now. A clock that went back leaks nothing and starts over from there.
    #[must_use]
    pub const fn leaked(self, level: Level, now: u64) -> Level {
        let gone = now.saturating_sub(level.at).saturating_mul(self.leak);
        Level { full: level.full.saturating_sub(gone), at: now }
    }

    /// Whether a charge fits; one of 0 needs room for one.
    #[must_use]
    pub fn admits(self, level: Level, amount: u64) -> bool {
        level.full.saturating_add(self.cost(amount.max(1))) <= self.capacity
    }

    /// The level with so much more in it, whether or not it fits.
    #[must_use]
    pub fn debit(self, level: Level, amount: u64) -> Level {
        Level { full: level.full.saturating_add(self.cost(amount)).min(CEILING), at: level.at }
    }

    /// The level with so much less in it.
    #[must_use]
    pub const fn refund(self, level: Level, amount: u64) -> Level {
        Level { full: level.full.saturating_sub(self.cost(amount)), at: level.at }
    }

    const fn cost(self, amount: u64) -> u64 {
        amount.saturating_mul(self.unit)
    }

    /// The milliseconds until so much has leaked away; `None` without a leak.
    fn until_leaked(self, much: u64) -> Option<Duration> {
        (self.leak > 0).then(|| Duration::from_millis(much.div_ceil(self.leak)))
    }
}

/// How a meter stands at this level. `denied` is the charge it did not admit; `ends` is how long a
/// budget's period still lasts.
pub(super) fn standing(rule: Rule, level: Level, denied: Option<u64>, ends: Duration) -> Standing {
    let bucket = rule.bucket();
    let denial = denied.map(|amount| {
        let wanted = bucket.cost(amount.max(1));
        if wanted > bucket.capacity {
            return Denial::Ever;
        }
        let over = level.full.saturating_add(wanted).saturating_sub(bucket.capacity);
        Denial::For(bucket.until_leaked(over).unwrap_or(ends))
    });
    // Both are at most `CEILING`, so they fit.
    let (capacity, full) = (bucket.capacity.cast_signed(), level.full.cast_signed());
    Standing {
        limit: rule.limit(),
        remaining: (capacity - full).div_euclid(bucket.unit.cast_signed()),
        reset: bucket.until_leaked(level.full).unwrap_or(ends),
        denial,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Level = Level { full: 0, at: 0 };

    /// Takes if it is admitted.
    fn take(bucket: Bucket, level: Level, amount: u64, now: u64) -> (bool, Level) {
        let level = bucket.leaked(level, now);
        let admitted = bucket.admits(level, amount);
        (admitted, if admitted { bucket.debit(level, amount) } else { level })
    }

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Rule::Rate(Rate::per_minute(60, 5)).bucket();
        let mut level = NONE;
        let mut admitted = Vec::new();
        for now in (0..10_000).step_by(100) {
            let (yes, after) = take(bucket, level, 1, now);
            level = after;
            if yes {
                admitted.push(now);
            }
        }
        assert_eq!(admitted, [0, 100, 200, 300, 400, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000]);
    }

    #[test]
    fn the_wait_that_is_told_is_the_wait_there_is() {
        let rule = Rule::Rate(Rate::per_minute(7, 3));
        let bucket = rule.bucket();
        let level = bucket.debit(NONE, 5);
        let told = standing(rule, level, Some(2), Duration::ZERO);
        assert_eq!((told.limit, told.remaining), (7, -2));
        let Some(Denial::For(wait)) = told.denial else { panic!("{told:?}") };
        let wait = u64::try_from(wait.as_millis()).unwrap();
        assert!(!take(bucket, level, 2, wait - 1).0);
        assert!(take(bucket, level, 2, wait).0);
        let full = u64::try_from(told.reset.as_millis()).unwrap();
        assert_eq!(bucket.leaked(level, full).full, 0);
        assert_ne!(bucket.leaked(level, full - 1).full, 0);
    }

    #[test]
    fn a_clock_that_goes_back_neither_gives_nor_blocks() {
        let bucket = Rule::Rate(Rate::per_minute(60, 1)).bucket();
        let level = take(bucket, NONE, 1, 10_000_000).1;
        let (admitted, level) = take(bucket, level, 1, 5_000);
        assert!(!admitted);
        assert!(take(bucket, level, 1, 6_000).0);
    }

    #[test]
    fn periods_are_those_of_the_calendar() {
        let at = |text: &str| u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap();
        let day = Period::Day.at(at("2028-02-29T23:59:59.999Z"));
        assert_eq!(day, Span { number: 20_280_229, end: at("2028-03-01T00:00:00Z") });
        let month = Period::Month.at(at("2027-12-01T00:00:00Z"));
        assert_eq!(month, Span { number: 202_712, end: at("2028-01-01T00:00:00Z") });
        assert_eq!(Period::Day.at(u64::MAX).number, 19_700_101);
    }

    proptest! {
        /// In any stretch of time no more is admitted than the burst and what the rate gives in it.
        #[test]
        fn no_more_is_admitted_than_burst_and_rate(
            amount in 1u64..100_000, burst in 1u64..1_000,
            steps in proptest::collection::vec((0u64..2_000, 1u64..50), 1..200),
        ) {
            let bucket = Rule::Rate(Rate::per_minute(amount, burst)).bucket();
            let (mut level, mut now, mut sum) = (NONE, 0, 0u64);
            for (pause, wanted) in steps {
                now += pause;
                let (admitted, after) = take(bucket, level, wanted, now);
                level = after;
                sum += if admitted { wanted } else { 0 };
                prop_assert!(sum * 60_000 <= burst * 60_000 + now * amount);
            }
        }

        #[test]
        fn no_number_overflows(
            amount in any::<u64>(), window in any::<u64>(), burst in any::<u64>(), much in any::<u64>(), now in any::<u64>(),
        ) {
            let rate = Rule::Rate(Rate::new(amount, Duration::from_millis(window), burst));
            let budget = Rule::Budget(Budget { amount, period: Period::Day });
            for rule in [rate, budget] {
                let bucket = rule.bucket();
                prop_assert!(bucket.capacity <= CEILING && bucket.leak <= CEILING);
                let level = bucket.debit(bucket.leaked(NONE, now), much);
                prop_assert!(level.full <= CEILING);
                standing(rule, level, Some(much), Duration::ZERO);
                prop_assert!(bucket.refund(level, much).full <= level.full);
            }
        }
    }
}
