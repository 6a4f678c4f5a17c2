//! The configuration file, as a whole.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{audit, policy, runs, server, store, team, telemetry, tools, upstream};

/// `fanfold.yaml`. Every key has a default but `upstreams`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The proxy's address and port.
    #[serde(default = "listen")]
    pub listen: String,
    /// Serves HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<server::settings::Tls>,
    /// Health and metrics.
    #[serde(default)]
    pub admin: server::settings::Admin,
    /// What a client connection may take.
    #[serde(default)]
    pub server: server::settings::Settings,
    /// Model servers, by a name of your choice.
    #[schemars(extend("minProperties" = 1))]
    pub upstreams: BTreeMap<String, upstream::settings::Settings>,
    /// How a model name finds its upstream. None: every model goes to the only upstream.
    #[serde(default)]
    pub routes: Vec<upstream::settings::Route>,
    /// The tools fanfold runs, by the name the model sees.
    #[serde(default)]
    pub tools: BTreeMap<String, tools::settings::Settings>,
    /// The strict-versus-parallel rule and what a client sees.
    #[serde(default)]
    pub policy: policy::settings::Settings,
    /// Every bound.
    #[serde(default)]
    pub limits: policy::settings::Limits,
    /// Who may ask. None: no keys, loopback only.
    #[serde(default)]
    pub teams: BTreeMap<String, team::settings::Settings>,
    /// What a million tokens cost, by model (`*` stands for anything). None: nothing is said about cost.
    #[serde(default)]
    pub prices: BTreeMap<String, team::money::Price>,
    /// What amounts of money are called.
    #[serde(default = "currency")]
    pub currency: String,
    /// Where small expiring things are kept.
    #[serde(default)]
    pub store: store::settings::Settings,
    /// Writes down what calls with effects are about to do, before they do it, and what became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<audit::settings::Settings>,
    /// What is written to the log.
    #[serde(default)]
    pub log: Log,
    /// What is remembered of the last turns, for the inspector.
    #[serde(default)]
    pub runs: runs::settings::Settings,
    /// What is never kept or handed on of what is said in a turn.
    #[serde(default)]
    pub redact: telemetry::redact::Settings,
    /// Sends a trace of each turn to an OpenTelemetry collector. None: there are no traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traces: Option<telemetry::traces::settings::Settings>,
}

fn listen() -> String {
    "127.0.0.1:4100".into()
}

fn currency() -> String {
    "USD".into()
}

/// `log:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter as of `RUST_LOG`: `info`, `fanfold=debug`.
    pub level: String,
    /// Arguments and results of tool calls appear in the log.
    pub content: bool,
    /// Lines as JSON. Default: when standard error is not a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<bool>,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), content: false, json: None }
    }
}
