//! `audit:` of the file.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a call whose intent cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// It is not run; its result is an error that says why.
    #[default]
    Deny,
    /// It is run all the same. The log and a metric tell.
    Continue,
}

/// `audit:` of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Audit")]
pub struct Settings {
    /// The file records are appended to. It is made if it is not there, readable for fanfold alone.
    pub file: PathBuf,
    /// What happens to a call whose intent cannot be written: it is refused, or run all the same.
    #[serde(default)]
    pub on_error: OnError,
    /// An intent is on the disk before its call leaves, so that it also survives a loss of power. Without it, it
    /// survives the death of the process, not of the machine.
    #[serde(default)]
    pub sync: bool,
    /// Arguments are written too, not only their digest.
    #[serde(default)]
    pub arguments: bool,
}
