//! `upstreams:` and `routes:` of the file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy::settings::{LowerLimits, Overrides};
use crate::units::{Secret, Span};

/// A family of servers with known habits. Each habit is also a setting of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenAI itself, and whatever behaves like it.
    #[default]
    Openai,
    /// Azure OpenAI: needs the strict rule.
    Azure,
    /// vLLM.
    Vllm,
    /// Ollama: ignores `tool_choice`, refuses arguments in the history that are not JSON.
    Ollama,
    /// SGLang.
    Sglang,
    /// Mistral: call ids of nine alphanumerics.
    Mistral,
    /// Gemini's OpenAI-compatible endpoint: needs `name` on tool messages.
    Gemini,
    /// Anthropic's OpenAI-compatible endpoint: refuses a history of calls without `tools`.
    Anthropic,
    /// Groq.
    Groq,
}

/// How fanfold asks an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Always streaming, also for a client that wants one JSON: tools can start early.
    #[default]
    Stream,
    /// Always one JSON.
    Whole,
    /// As the client asked.
    Follow,
}

/// One of `upstreams:`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Upstream")]
pub struct Settings {
    /// The URL an OpenAI SDK would be given, with its `/v1`.
    pub base_url: String,
    /// Sent as `authorization: Bearer …`. Without it no `authorization` is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<Secret>,
    /// More request headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// The family whose habits apply.
    #[serde(default)]
    pub kind: Kind,
    /// How to ask.
    #[serde(default)]
    pub mode: Mode,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Establishing a connection, TLS included.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// From the request to the head of the reply.
    #[serde(default = "head_timeout")]
    pub head_timeout: Span,
    /// The longest silence inside a reply; comments do not count as progress.
    #[serde(default = "stall_timeout")]
    pub stall_timeout: Span,
    /// The strict rule is needed here under `strict_parallel: auto`. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_serial_strict: Option<bool>,
    /// Honours `tool_choice: "none"`. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub honours_tool_choice: Option<bool>,
}

fn connect_timeout() -> Span {
    Span::seconds(10)
}
fn head_timeout() -> Span {
    Span::seconds(120)
}
fn stall_timeout() -> Span {
    Span::seconds(60)
}

impl Settings {
    /// An upstream at this URL with every default.
    #[must_use]
    pub fn new(base_url: &str) -> Self {
        Self {
            base_url: base_url.into(),
            api_key: None,
            headers: BTreeMap::new(),
            kind: Kind::default(),
            mode: Mode::default(),
            ca: None,
            connect_timeout: connect_timeout(),
            head_timeout: head_timeout(),
            stall_timeout: stall_timeout(),
            needs_serial_strict: None,
            honours_tool_choice: None,
        }
    }
}

/// One of `routes:`: the first whose pattern matches the request's model is taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A model name, or a pattern in which `*` stands for anything.
    pub model: String,
    /// Names of `upstreams:`; the first is asked.
    #[schemars(length(min = 1))]
    pub upstreams: Vec<String>,
    /// Rules for this route.
    #[serde(default)]
    pub policy: Overrides,
    /// Lower limits for this route.
    #[serde(default)]
    pub limits: LowerLimits,
    /// Whether the model takes `parallel_tool_calls`. Default: not for o1, o3, o3-mini, o4-mini.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
}
