//! What a team may use in a time: which quotas there are, and what is said when one is used up.
//!
//! A quota is a [`Meter`] of the store. Quotas a minute are refilled all the time, and after a quiet minute
//! all of one may be used at once; those a day or a month begin anew with the day or month, in UTC. What
//! requests and calls take is known before; tokens and money are known only afterwards, so a request is let
//! in while anything is left, and what it takes too much is missing afterwards.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::money::Money;
use super::settings::{Budget as BudgetSettings, Limits};
use crate::store::meter::{Budget, Charge, Denial, Meter, Period, Rate, Rule, Standing};
use crate::units::Span;
use crate::wire::error::ErrorReply;

/// The quotas there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named like the settings")]
pub enum Quota {
    RequestsPerMinute,
    TokensPerMinute,
    ToolCallsPerMinute,
    TokensPerDay,
    TokensPerMonth,
    CostPerDay,
    CostPerMonth,
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Requests.
    Requests,
    /// Tokens, of input and output.
    Tokens,
    /// Calls of owned tools.
    ToolCalls,
    /// Money.
    Cost,
}

impl Quota {
    /// The name of the setting, which is the label of the metric and the name of the meter.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::ToolCallsPerMinute => "tool_calls_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::TokensPerMonth => "tokens_per_month",
            Self::CostPerDay => "cost_per_day",
            Self::CostPerMonth => "cost_per_month",
        }
    }

    /// What it counts.
    #[must_use]
    pub const fn counts(self) -> Counts {
        match self {
            Self::RequestsPerMinute => Counts::Requests,
            Self::ToolCallsPerMinute => Counts::ToolCalls,
            Self::TokensPerMinute | Self::TokensPerDay | Self::TokensPerMonth => Counts::Tokens,
            Self::CostPerDay | Self::CostPerMonth => Counts::Cost,
        }
    }

    /// Whether it is one of `budget:`: nothing comes back before its period ends.
    #[must_use]
    pub const fn is_budget(self) -> bool {
        match self {
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::ToolCallsPerMinute => false,
            Self::TokensPerDay | Self::TokensPerMonth | Self::CostPerDay | Self::CostPerMonth => true,
        }
    }

    const fn period(self) -> &'static str {
        match self {
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::ToolCallsPerMinute => "minute",
            Self::TokensPerDay | Self::CostPerDay => "day",
            Self::TokensPerMonth | Self::CostPerMonth => "month",
        }
    }
}

/// The quotas of a team.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas(Vec<(Quota, Meter)>);

impl Quotas {
    /// Those that are set.
    #[must_use]
    pub fn new(limits: &Limits, budget: &BudgetSettings) -> Self {
        let rate = |amount: Option<u64>| amount.map(|amount| Rule::Rate(Rate::per_minute(amount, amount)));
        let budgeted =
            |amount: Option<u64>, period| amount.map(|amount| Rule::Budget(Budget { amount, period }));
        let cost = |amount: Option<Money>, period| budgeted(amount.map(Money::nanos), period);
        let all = [
            (Quota::RequestsPerMinute, rate(limits.requests_per_minute)),
            (Quota::TokensPerMinute, rate(limits.tokens_per_minute)),
            (Quota::ToolCallsPerMinute, rate(limits.tool_calls_per_minute)),
            (Quota::TokensPerDay, budgeted(budget.tokens_per_day, Period::Day)),
            (Quota::TokensPerMonth, budgeted(budget.tokens_per_month, Period::Month)),
            (Quota::CostPerDay, cost(budget.cost_per_day, Period::Day)),
            (Quota::CostPerMonth, cost(budget.cost_per_month, Period::Month)),
        ];
        let set = all.into_iter().filter_map(|(quota, rule)| Some((quota, rule?)));
        Self(set.map(|(quota, rule)| (quota, Meter { name: quota.word().into(), rule })).collect())
    }

    /// Whether there is one of these.
    pub(super) fn count(&self, what: Counts) -> bool {
        self.0.iter().any(|(quota, _)| quota.counts() == what)
    }

    /// The quotas that count one of these, and what each is charged.
    pub(super) fn charges(&self, of: &[(Counts, u64)]) -> (Vec<Quota>, Vec<Charge<'_>>) {
        let amount = |quota: Quota| of.iter().find(|(counts, _)| *counts == quota.counts()).map(|(_, n)| *n);
        let (mut quotas, mut charges) = (Vec::with_capacity(self.0.len()), Vec::with_capacity(self.0.len()));
        for (quota, meter) in &self.0 {
            if let Some(amount) = amount(*quota) {
                quotas.push(*quota);
                charges.push(Charge { meter, amount });
            }
        }
        (quotas, charges)
    }
}

/// Which of the quotas a charge was denied by: the one that will be denied for longest.
pub(super) fn denied(quotas: &[Quota], standings: &[Standing]) -> Option<(Quota, Standing, Denial)> {
    let all = quotas.iter().zip(standings).filter_map(|(quota, s)| Some((*quota, *s, s.denial?)));
    all.max_by_key(|(quota, _, denial)| match denial {
        Denial::Ever => (true, true, Duration::ZERO),
        Denial::For(wait) => (quota.is_budget(), false, *wait),
    })
}

/// Which of the quotas has nothing left: budgets first, because they stay so for longer.
pub(super) fn used_up(quotas: &[Quota], standings: &[Standing]) -> Option<Quota> {
    let empty = quotas.iter().zip(standings).filter(|(_, standing)| standing.remaining < 1);
    empty.map(|(quota, _)| *quota).max()
}

/// The error of a request that a quota does not let in.
pub(super) fn refusal(quota: Quota, standing: &Standing, denial: Denial, currency: &str) -> ErrorReply {
    let amount = match quota.counts() {
        Counts::Requests => format!("{} requests", standing.limit),
        Counts::Tokens => format!("{} tokens", standing.limit),
        Counts::ToolCalls => format!("{} tool calls", standing.limit),
        Counts::Cost => format!("{} {currency}", thousandths_of_millionths(standing.limit)),
    };
    let period = quota.period();
    let wait = match denial {
        Denial::For(wait) => wait,
        Denial::Ever => standing.reset,
    };
    if quota.is_budget() {
        let message = format!(
            "Your team has used up its budget of {amount} a {period}. A new one begins with the next {period} (in UTC), in {}. \
             Ask the operator of this gateway if you need more.",
            Span(Duration::from_secs(seconds(wait)))
        );
        return ErrorReply::new(429, "insufficient_quota", message).never_retry();
    }
    let seconds = seconds(wait);
    let message = format!("Your team may use {amount} a {period}, and has. Try again in {seconds}s.");
    ErrorReply::new(429, "rate_limit_exceeded", message).retry_after(seconds)
}

/// The result of a tool call that a quota does not let run.
pub(super) fn call_denied(standing: &Standing, denial: Denial) -> String {
    let after = match denial {
        Denial::For(wait) => format!("again in {}s", seconds(wait)),
        Denial::Ever => "no more".into(),
    };
    format!(
        "not run: the quota of {} tool calls a minute is used up; tools can be called {after}",
        standing.limit
    )
}

/// Whole seconds, rounded up, at least one.
fn seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

fn thousandths_of_millionths(nanos: u64) -> String {
    let decimals = format!("{:09}", nanos % 1_000_000_000);
    let shown = decimals.trim_end_matches('0').len().max(2);
    format!("{}.{}", nanos / 1_000_000_000, &decimals[..shown])
}

/// The headers that tell a client how it stands, as OpenAI names and writes them.
pub(super) fn headers(quotas: &[Quota], standings: &[Standing]) -> Vec<(HeaderName, HeaderValue)> {
    const fn names(limit: &'static str, remaining: &'static str, reset: &'static str) -> [HeaderName; 3] {
        [HeaderName::from_static(limit), HeaderName::from_static(remaining), HeaderName::from_static(reset)]
    }
    const OF_REQUESTS: [HeaderName; 3] =
        names("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests");
    const OF_TOKENS: [HeaderName; 3] =
        names("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens");
    let mut headers = Vec::with_capacity(OF_REQUESTS.len() + OF_TOKENS.len());
    for (quota, standing) in quotas.iter().zip(standings) {
        let names = match quota {
            Quota::RequestsPerMinute => OF_REQUESTS,
            Quota::TokensPerMinute => OF_TOKENS,
            Quota::ToolCallsPerMinute
            | Quota::TokensPerDay
            | Quota::TokensPerMonth
            | Quota::CostPerDay
            | Quota::CostPerMonth => continue,
        };
        let [limit, remaining, reset] = names;
        headers.push((limit, standing.limit.into()));
        headers.push((remaining, standing.remaining.max(0).into()));
        if let Ok(time) = HeaderValue::try_from(go_duration(standing.reset)) {
            headers.push((reset, time));
        }
    }
    headers
}

/// `1h2m3s`, `6m0s`, `1.5s`, `120ms`, `0s`: how OpenAI writes the time until a quota is whole again.
fn go_duration(time: Duration) -> String {
    let millis = time.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_until_a_quota_is_whole_is_written_like_openais() {
        let of = |millis| go_duration(Duration::from_millis(millis));
        let times = [0, 1, 120, 1000, 1500, 20_000, 60_000, 360_000, 3_723_040].map(of);
        assert_eq!(times, ["0s", "1ms", "120ms", "1s", "1.5s", "20s", "1m0s", "6m0s", "1h2m3.04s"]);
    }

    #[test]
    fn the_quota_that_lasts_longest_is_the_one_that_is_told() {
        let of = |denial| Standing { limit: 5, remaining: 0, reset: Duration::from_secs(60), denial };
        let standings = [
            of(Some(Denial::For(Duration::from_millis(1001)))),
            of(Some(Denial::For(Duration::from_millis(900)))),
        ];
        let quotas = [Quota::RequestsPerMinute, Quota::CostPerDay];
        let (quota, standing, denial) = denied(&quotas, &standings).unwrap();
        let told = refusal(quota, &standing, denial, "EUR");
        assert_eq!((told.status, told.code.as_str(), told.never_retry), (429, "insufficient_quota", true));
        let (quota, standing, denial) = denied(&quotas[..1], &standings[..1]).unwrap();
        let told = refusal(quota, &standing, denial, "EUR");
        assert_eq!((told.code.as_str(), told.retry_after), ("rate_limit_exceeded", Some(2)));
        assert_eq!(used_up(&quotas, &standings), Some(Quota::CostPerDay));
        let whole = Standing { limit: 2_500_000_000, remaining: 1, ..of(None) };
        assert!(refusal(Quota::CostPerDay, &whole, Denial::Ever, "EUR").message.contains("2.50 EUR a day"));
        assert!(denied(&quotas, &[whole, whole]).is_none() && used_up(&quotas, &[whole, whole]).is_none());
    }
}
