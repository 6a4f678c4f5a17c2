//! `teams:` of the file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::settings::{LowerLimits, Overrides};
use crate::units::{Secret, Size, Span};

/// A key of a team, stored as a hash only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The SHA-256 of the key, as 64 hexadecimal digits (`fanfold keys hash`).
    #[schemars(regex(pattern = r"^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
}

/// One of `teams:`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Team")]
pub struct Settings {
    /// The keys that prove a client belongs to this team.
    pub keys: Vec<Key>,
    /// Models the team may use, `*` standing for anything. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Owned tools the team may use, `*` standing for anything. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// The team's own keys at upstreams, by the upstream's name. Default: the upstream's keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub upstream_keys: BTreeMap<String, Secret>,
    /// Rules for this team.
    pub policy: Overrides,
    /// Lower limits for this team.
    pub limits: Limits,
}

/// `limits:` of a team: those of a turn, which may only be lowered, and the team's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "TeamLimits")]
pub struct Limits {
    /// Questions to the upstream inside one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rounds: Option<u32>,
    /// Tool calls inside one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls_per_turn: Option<u32>,
    /// Calls running at once in one turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls_at_once: Option<u32>,
    /// One call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_timeout: Option<Span>,
    /// One whole turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_timeout: Option<Span>,
    /// A tool's result as handed to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_result: Option<Size>,
    /// Turns in flight at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub turns_at_once: Option<u32>,
    /// Calls running at once, all turns of the team together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls_at_once_per_team: Option<u32>,
}

impl Limits {
    /// The limits of one turn. (Written out above, because serde cannot refuse unknown keys in a
    /// flattened struct.)
    #[must_use]
    pub fn turn(&self) -> LowerLimits {
        LowerLimits {
            rounds: self.rounds,
            calls_per_turn: self.calls_per_turn,
            calls_at_once: self.calls_at_once,
            call_timeout: self.call_timeout,
            turn_timeout: self.turn_timeout,
            tool_result: self.tool_result,
        }
    }
}
