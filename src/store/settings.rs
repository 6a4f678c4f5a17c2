//! `store:` of the file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::units::{Secret, Span};

/// Where small expiring things are kept: `memory`, or a Redis or Valkey that all replicas share.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Store")]
pub enum Settings {
    /// In this process.
    Here(Here),
    /// In a Redis or Valkey.
    Shared(Shared),
}

impl Settings {
    /// Whether several processes may have it.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// Whether what is not known while it is down is refused.
    #[must_use]
    pub fn denies(&self) -> bool {
        match self {
            Self::Here(Here::Memory) => false,
            Self::Shared(shared) => shared.on_error == OnError::Deny,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::Here(Here::Memory)
    }
}

/// In this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Here {
    /// In its memory.
    Memory,
}

impl JsonSchema for Here {
    fn schema_name() -> Cow<'static, str> {
        "Here".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["memory"] })
    }
}

/// A Redis or Valkey.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SharedStore")]
pub struct Shared {
    /// `redis://HOST:PORT/DATABASE`, or `rediss://…` with TLS. It may hold a password, so it is never shown.
    pub redis: Secret,
    /// The user to log in as, if it is not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The password, if it is not part of the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What every key begins with. Replicas that share it share everything; others share nothing.
    #[serde(default = "namespace")]
    pub namespace: Namespace,
    /// The longest a request waits for it.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// What becomes of quotas, and of tools with effects, while it is down.
    #[serde(default)]
    pub on_error: OnError,
}

fn namespace() -> Namespace {
    Namespace("fanfold".into())
}

fn timeout() -> Span {
    Span(std::time::Duration::from_millis(500))
}

/// What every key begins with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Namespace(pub String);

impl JsonSchema for Namespace {
    fn schema_name() -> Cow<'static, str> {
        "Namespace".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[A-Za-z0-9._:-]{1,64}$",
            "description": "1 to 64 letters, digits, dots, colons, dashes and underscores",
        })
    }
}

/// What becomes of quotas, and of tools with effects, while a shared store is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Each replica counts for itself, from nothing: a quota then is one for each replica. A tool with
    /// effects runs, and a repetition of its request at another replica may run it again.
    #[default]
    Local,
    /// Whoever has a quota is refused. No tool with effects runs, and no repetition of a request is served.
    Deny,
}
