//! What one request is charged to: its team's quotas, at a price if its model has one.
//!
//! Without quotas and without a price nothing is asked, counted or allocated. A store that is down and may
//! not be replaced by counting here keeps requests and calls out; what was used already goes on being used.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::Team;
use super::money::{Money, Price};
use super::quota::{self, Counts, Quota};
use crate::store::Store;
use crate::store::meter::Taken;
use crate::telemetry::{Telemetry, metrics};
use crate::wire::error::ErrorReply;
use crate::wire::usage::Tokens;

/// Whom a request is charged to.
#[derive(Debug, Clone)]
pub struct Account {
    /// The team.
    pub team: Arc<Team>,
    /// Where its meters are.
    pub store: Arc<Store>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// What amounts of money are called.
    pub currency: Arc<str>,
}

/// What a round was charged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charged {
    /// What it cost, if its model has a price.
    pub cost: Option<Money>,
    /// A quota that has nothing left now.
    pub used_up: Option<Quota>,
}

/// Headers for the answer, by name.
pub type Headers = Vec<(HeaderName, HeaderValue)>;

impl Account {
    /// Lets a request in, if all quotas of its team have something left.
    ///
    /// # Errors
    /// One has not: what the client is told, and the headers that say how it stands.
    pub async fn admit(&self) -> Result<Headers, (ErrorReply, Headers)> {
        let wanted = [(Counts::Requests, 1), (Counts::Tokens, 0), (Counts::Cost, 0)];
        let (quotas, charges) = self.team.quotas.charges(&wanted);
        if charges.is_empty() {
            return Ok(Headers::new());
        }
        let taken = match self.store.take(&self.team.name, &charges).await {
            Ok(taken) => taken,
            Err(why) => {
                tracing::debug!(%why, "quotas are not counted");
                return Err((unavailable(), Headers::new()));
            }
        };
        let headers = quota::headers(&quotas, &taken.standings);
        match self.denied(&quotas, &taken) {
            None => Ok(headers),
            Some((quota, standing, denial)) => {
                Err((quota::refusal(quota, &standing, denial, &self.currency), headers))
            }
        }
    }

    /// Gives back what [`admit`](Self::admit) took, for a request that was not served.
    pub async fn not_served(&self) {
        let (_, charges) = self.team.quotas.charges(&[(Counts::Requests, 1)]);
        if !charges.is_empty()
            && let Err(why) = self.store.refund(&self.team.name, &charges).await
        {
            tracing::debug!(%why, "a request that was not served stays counted");
        }
    }

    /// Charges what a question to a model used, at its price.
    pub async fn charge(&self, tokens: Tokens, price: Option<Price>, model: &Arc<str>) -> Charged {
        let cost = price.map(|price| price.of(tokens));
        if let Some(cost) = cost {
            self.telemetry.cost(&self.team.name, model, &self.currency, cost.smallest());
        }
        let used = [(Counts::Tokens, tokens.total()), (Counts::Cost, cost.map_or(0, Money::nanos))];
        let (quotas, charges) = self.team.quotas.charges(&used);
        if charges.is_empty() {
            return Charged { cost, used_up: None };
        }
        match self.store.debit(&self.team.name, &charges).await {
            Ok(taken) => Charged { cost, used_up: quota::used_up(&quotas, &taken.standings) },
            Err(why) => {
                tracing::debug!(%why, "what a round used is not counted");
                Charged { cost, used_up: None }
            }
        }
    }

    /// Whether what is used is charged to anything, or has a price.
    #[must_use]
    pub fn charges_usage(&self, price: Option<Price>) -> bool {
        price.is_some() || self.team.quotas.count(Counts::Tokens) || self.team.quotas.count(Counts::Cost)
    }

    /// A limit ended a turn early because this quota has nothing left.
    pub fn ended_turn(&self, quota: Quota) {
        self.count_denial(quota);
    }

    /// Takes one tool call.
    ///
    /// # Errors
    /// The quota has none left: what the model is told.
    pub async fn take_call(&self) -> Result<(), String> {
        let (quotas, charges) = self.team.quotas.charges(&[(Counts::ToolCalls, 1)]);
        if charges.is_empty() {
            return Ok(());
        }
        match self.store.take(&self.team.name, &charges).await {
            Ok(taken) => match self.denied(&quotas, &taken) {
                None => Ok(()),
                Some((_, standing, denial)) => Err(quota::call_denied(&standing, denial)),
            },
            Err(why) => {
                tracing::debug!(%why, "quotas are not counted");
                Err("not run: the quota of tool calls cannot be looked up at the moment".into())
            }
        }
    }

    fn denied(
        &self,
        quotas: &[Quota],
        taken: &Taken,
    ) -> Option<(Quota, crate::store::meter::Standing, crate::store::meter::Denial)> {
        let denied = quota::denied(quotas, &taken.standings)?;
        self.count_denial(denied.0);
        Some(denied)
    }

    fn count_denial(&self, quota: Quota) {
        let labels = [("team", &*self.team.name), ("quota", quota.word())];
        self.telemetry.count(metrics::QUOTA_DENIALS, &labels, 1);
    }
}

fn unavailable() -> ErrorReply {
    let message = "This gateway cannot look up your team's quotas at the moment. Try again shortly.";
    ErrorReply::new(503, "quota_unavailable", message).retry_after(1)
}
