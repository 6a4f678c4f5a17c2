//! Quotas, counted by this process alone.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use hashbrown::{DefaultHashBuilder, HashMap};

use super::millis;
use crate::store::meter::{Charge, Level, Rule, Taken, standing};

/// The levels of every team's meters: as many as the configuration names. What has nothing to remember
/// any more is swept out.
#[derive(Debug, Default)]
pub(in crate::store) struct Meters {
    teams: DashMap<Arc<str>, HashMap<Box<str>, Counted>, DefaultHashBuilder>,
}

/// What one meter counted.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    level: Level,
    /// In which period of the calendar; 0 for a rate.
    period: i64,
    /// From when on nothing of it need be remembered, by the steady clock.
    until: u64,
}

/// The time in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::store) struct Now {
    /// By a clock that only goes forward.
    pub(in crate::store) steady: u64,
    /// Of the calendar, since 1970.
    pub(in crate::store) calendar: u64,
}

/// What is done with charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Deed {
    /// They are counted if every meter admits its charge.
    Take,
    /// They are counted.
    Debit,
    /// They are taken back.
    Refund,
}

impl Deed {
    /// As the script of a shared store calls it.
    pub(in crate::store) const fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Debit => "debit",
            Self::Refund => "refund",
        }
    }
}

impl Meters {
    /// Does it. A meter appears once among the charges.
    pub(in crate::store) fn charge(
        &self,
        team: &Arc<str>,
        charges: &[Charge<'_>],
        deed: Deed,
        now: Now,
    ) -> Taken {
        let mut meters = self.teams.entry(team.clone()).or_default();
        let found: Vec<Found> = charges.iter().map(|charge| Found::of(charge, &meters, now)).collect();
        let done = deed != Deed::Take || found.iter().all(|found| found.admits);
        let each = charges.iter().zip(found);
        let standings = each.map(|(charge, found)| {
            let bucket = charge.meter.rule.bucket();
            let level = match deed {
                Deed::Take | Deed::Debit if done => bucket.debit(found.level, charge.amount),
                Deed::Refund => bucket.refund(found.level, charge.amount),
                Deed::Take | Deed::Debit => found.level,
            };
            let denied = (!done && !found.admits).then_some(charge.amount);
            let standing = standing(charge.meter.rule, level, denied, found.ends);
            if done {
                let until = now.steady.saturating_add(millis(standing.reset));
                let counted = Counted { level, period: found.period, until };
                remember(&mut meters, &charge.meter.name, counted);
            }
            standing
        });
        Taken { standings: standings.collect(), local: false }
    }

    /// Forgets what has leaked away and what is of a period that is over.
    pub(in crate::store) fn sweep(&self, now: Now) {
        self.teams.retain(|_, meters| {
            meters.retain(|_, counted| counted.until > now.steady);
            !meters.is_empty()
        });
    }
}

/// What there is of a meter before a charge.
struct Found {
    level: Level,
    period: i64,
    /// How long the period still lasts.
    ends: Duration,
    admits: bool,
}

impl Found {
    fn of(charge: &Charge<'_>, meters: &HashMap<Box<str>, Counted>, now: Now) -> Self {
        let rule = charge.meter.rule;
        let (period, ends) = match rule {
            Rule::Rate(_) => (0, Duration::ZERO),
            Rule::Budget(budget) => {
                let span = budget.period.at(now.calendar);
                (span.number, Duration::from_millis(span.end.saturating_sub(now.calendar)))
            }
        };
        let counted = meters.get(charge.meter.name.as_ref()).filter(|counted| counted.period == period);
        let level = rule.bucket().leaked(counted.map(|c| c.level).unwrap_or_default(), now.steady);
        Self { level, period, ends, admits: rule.bucket().admits(level, charge.amount) }
    }
}

fn remember(meters: &mut HashMap<Box<str>, Counted>, name: &str, counted: Counted) {
    match meters.get_mut(name) {
        Some(there) => *there = counted,
        None => drop(meters.insert(name.into(), counted)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::meter::{Budget, Meter, Period, Rate};

    const DAY: u64 = 86_400_000;

    #[test]
    fn a_new_period_has_a_new_budget_and_nothing_is_remembered_for_ever() {
        let (meters, team) = (Meters::default(), Arc::from("blue"));
        let day =
            Meter { name: "day".into(), rule: Rule::Budget(Budget { amount: 10, period: Period::Day }) };
        let rate = Meter { name: "rate".into(), rule: Rule::Rate(Rate::per_minute(60, 10)) };
        let at = |millis| Now { steady: millis, calendar: DAY * 20_000 + millis };
        let take = |amount, now| {
            let charges = [Charge { meter: &day, amount }, Charge { meter: &rate, amount: 1 }];
            meters.charge(&team, &charges, Deed::Take, now).admitted()
        };
        assert!(take(10, at(0)));
        assert!(!take(1, at(DAY - 1)));
        meters.sweep(at(2_000));
        assert_eq!(meters.teams.get("blue").map(|meters| meters.len()), Some(1), "the rate is full again");
        assert!(take(10, at(DAY)));
        meters.sweep(at(2 * DAY));
        assert!(meters.teams.is_empty());
    }
}
