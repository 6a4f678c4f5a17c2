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
    /// Azure OpenAI: needs the strict rule; has paths of its own where `api_version` is set.
    Azure,
    /// vLLM.
    Vllm,
    /// Ollama: ignores `tool_choice`, refuses arguments in the history that are not JSON.
    Ollama,
    /// SGLang.
    Sglang,
    /// Mistral: call ids of nine alphanumerics, and no user or system message right after results.
    Mistral,
    /// Gemini's OpenAI-compatible endpoint: needs `name` on tool messages, refuses `response_format`
    /// together with tools.
    Gemini,
    /// Anthropic's OpenAI-compatible endpoint: refuses a history of calls without `tools`.
    Anthropic,
    /// Groq: refuses `response_format` together with tools.
    Groq,
}

impl Kind {
    /// Its name among OpenTelemetry's providers (`gen_ai.provider.name`), or its own.
    #[must_use]
    pub const fn provider(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Azure => "azure.ai.openai",
            Self::Vllm => "vllm",
            Self::Ollama => "ollama",
            Self::Sglang => "sglang",
            Self::Mistral => "mistral_ai",
            Self::Gemini => "gcp.gemini",
            Self::Anthropic => "anthropic",
            Self::Groq => "groq",
        }
    }
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
    /// Several keys instead of one: used in turn. One that is refused rests, and the next is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_keys: Vec<Secret>,
    /// How long a key rests that was refused with 401 or 403, and at most after a 429.
    #[serde(default = "key_rest")]
    pub key_rest: Span,
    /// Azure: the `api-version` of its URLs. With it, and unless `base_url` ends in `/openai/v1`, a chat goes to
    /// `/openai/deployments/MODEL/chat/completions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
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
    /// Takes `response_format` together with tools; else it is sent in a last round, without tools. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format_with_tools: Option<bool>,
    /// Takes a `reasoning_effort` other than `none` together with tools. Default: yes, until it says no for a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort_with_tools: Option<bool>,
    /// Needs `name` on tool messages, also on those of the client. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names_on_results: Option<bool>,
    /// Takes call ids of nine letters and digits only. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_call_ids: Option<bool>,
    /// Refuses a history in which the arguments of a call are not JSON. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json_arguments: Option<bool>,
    /// Refuses a history with calls when no `tools` are sent. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_needs_tools: Option<bool>,
    /// Takes a user or system message right after tool messages. Default: by `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_after_results: Option<bool>,
    /// When this upstream is left alone.
    #[serde(default)]
    pub breaker: Breaker,
    /// How much may be asked again.
    #[serde(default)]
    pub retries: Retries,
}

/// `breaker:` of an upstream: when it is left alone. Refusals that are the client's own fault never count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// So many of a hundred questions failed, within `window`.
    #[schemars(range(min = 1, max = 100))]
    pub percent: u32,
    /// Fewer questions than this within `window` say nothing.
    #[schemars(range(min = 1))]
    pub requests: u32,
    /// What is looked back at.
    pub window: Span,
    /// Or so many connections in a row could not be made.
    #[schemars(range(min = 1))]
    pub connects: u32,
    /// How long it is left alone at first. Then one question is let through; if that fails too, the time doubles.
    pub rest: Span,
    /// How long it is left alone at most.
    pub longest_rest: Span,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            percent: 50,
            requests: 20,
            window: Span::seconds(10),
            connects: 5,
            rest: Span::seconds(5),
            longest_rest: Span::seconds(60),
        }
    }
}

/// `retries:` of an upstream: how much may be asked again, so that a failing server is not asked ever more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// So many for each hundred questions of the last 10 s.
    #[schemars(range(max = 100))]
    pub percent: u32,
    /// And so many a second beside them.
    pub per_second: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self { percent: 20, per_second: 10 }
    }
}

fn key_rest() -> Span {
    Span::seconds(60)
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
            api_keys: Vec::new(),
            key_rest: key_rest(),
            api_version: None,
            headers: BTreeMap::new(),
            kind: Kind::default(),
            mode: Mode::default(),
            ca: None,
            connect_timeout: connect_timeout(),
            head_timeout: head_timeout(),
            stall_timeout: stall_timeout(),
            needs_serial_strict: None,
            honours_tool_choice: None,
            response_format_with_tools: None,
            reasoning_effort_with_tools: None,
            names_on_results: None,
            short_call_ids: None,
            json_arguments: None,
            history_needs_tools: None,
            user_after_results: None,
            breaker: Breaker::default(),
            retries: Retries::default(),
        }
    }

    /// Its keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        self.api_key.iter().chain(&self.api_keys)
    }
}

/// One of the upstreams of a route.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Target {
    /// The name of an upstream.
    Name(String),
    /// An upstream with a share, or under another model name.
    Full(FullTarget),
}

/// An upstream of a route, with what is special about it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SharedTarget")]
pub struct FullTarget {
    /// The name of an upstream.
    pub name: String,
    /// Neighbours with a weight are one group: each request takes one of them, by these shares, and then the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub weight: Option<u32>,
    /// The model's name there, if not the one the client sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl Target {
    /// The name of the upstream.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Full(full) => &full.name,
        }
    }

    /// Its share within its group.
    #[must_use]
    pub const fn weight(&self) -> Option<u32> {
        match self {
            Self::Name(_) => None,
            Self::Full(full) => full.weight,
        }
    }

    /// The model's name there.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Name(_) => None,
            Self::Full(full) => full.model.as_deref(),
        }
    }
}

impl From<&str> for Target {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

/// One of `routes:`: the first whose pattern matches the request's model is taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A model name, or a pattern in which `*` stands for anything.
    pub model: String,
    /// Names of `upstreams:`, in order: the next is asked where the one before it fails and nothing was shown yet.
    #[schemars(length(min = 1))]
    pub upstreams: Vec<Target>,
    /// The model's name at the upstreams, if not the one the client sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_model: Option<String>,
    /// Rules for this route.
    #[serde(default)]
    pub policy: Overrides,
    /// Lower limits for this route.
    #[serde(default)]
    pub limits: LowerLimits,
    /// Whether the model takes `parallel_tool_calls`. Default: not for o1, o3, o3-mini, o4-mini.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// Whether the model takes `response_format` together with tools. Default: as the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format_with_tools: Option<bool>,
    /// Whether the model takes a `reasoning_effort` other than `none` together with tools. Default: as the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort_with_tools: Option<bool>,
}
