//! `teams:` of the file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::settings::{LowerLimits, Overrides};

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
pub struct Settings {
    /// The keys that prove a client belongs to this team.
    pub keys: Vec<Key>,
    /// Models the team may use, `*` standing for anything. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Owned tools the team may use, `*` standing for anything. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Rules for this team.
    pub policy: Overrides,
    /// Lower limits for this team.
    pub limits: Limits,
}

/// `limits:` of a team: those of a turn, which may only be lowered, and the team's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// The limits of one turn.
    #[serde(flatten)]
    pub turn: LowerLimits,
    /// Turns in flight at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns_at_once: Option<u32>,
    /// Calls running at once, all turns of the team together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_at_once_per_team: Option<u32>,
}
