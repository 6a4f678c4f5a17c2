//! `tools:` of the file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Secret, Size, Span};
use crate::wire::tool::{Effect, OnDisconnect};

/// One of `tools:`. Exactly one of `http`, `command`, `mcp`, `openapi` says how a call is run. With `mcp` it is a
/// server, with `openapi` a document; then it is many tools, and the settings hold for each of them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What the model is told about the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON Schema of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<serde_json::Value>,
    /// Goes out with `strict: true`; the schema must then fit the providers' strict subset.
    pub strict: bool,
    /// What a call does to the world.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What happens to a running call when the client leaves.
    /// Default: `stop` for `effect: read`, `finish` for the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long one call may take. Default: `limits.call_timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Of a server: how long one call may take that tells of its progress; each news gives it another `timeout`.
    /// Default: `timeout`, so that news give no more time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_timeout: Option<Span>,
    /// Calls of this tool running at once, all turns together. Default: no limit of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// How much of a result the model gets. Default: `limits.tool_result`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Size>,
    /// Runs a call as one HTTP request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Runs a call as one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// A server of the Model Context Protocol: it says itself which tools it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Mcp>,
    /// An OpenAPI document: each of its operations is a tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openapi: Option<OpenApi>,
    /// Of a server or a document: only the tools with these names; `*` stands for anything. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
    /// Of a server or a document: not the tools with these names; `*` stands for anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
    /// Of a server or a document: what the names of its tools begin with. Default: its own name and `__`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Of a server: without it fanfold does not start, and is not ready.
    #[serde(skip_serializing_if = "is_false")]
    pub required: bool,
    /// Of a server: one connection for all, or one for each team; of a server with `command` that is one process.
    #[serde(skip_serializing_if = "is_default")]
    pub share: Share,
    /// Of a server with `share: team`: headers and environment of single teams, over those of `mcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub teams: BTreeMap<String, OfTeam>,
    /// Of a server with `share: team`: how long a team's connection is kept without a request of that team.
    /// Default: 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// Of a server: its tools are offered only as they were accepted with `fanfold tools accept`.
    #[serde(skip_serializing_if = "is_false")]
    pub pin: bool,
    /// Of a server with `pin`: the file with what was accepted. Default: `fanfold.pins.json` in the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pins: Option<String>,
    /// Of a server: what it says of its own tools may make their effect smaller than `effect`, too.
    #[serde(skip_serializing_if = "is_false")]
    pub trust_annotations: bool,
}

/// Who shares a connection to a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Everybody.
    #[default]
    Process,
    /// The requests of one team.
    Team,
}

/// One of `teams:` of a tool: what a team has of its own.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OfTeam {
    /// Headers of every request to `url`; one of the same name in `mcp` is left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// More of the environment of the program, over that of `mcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// `mcp:` of a tool. Exactly one of `command` and `url` says where the server is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mcp {
    /// A program and its arguments, spoken to through its pipes. No shell. A program without `/` is looked for in
    /// fanfold's own PATH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The environment of the program. Beside it, it has only fanfold's PATH and HOME, and LANG.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// The working directory of the program. Default: fanfold's own, or a fresh one behind a fence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// `https://host/path` of a server that is spoken to over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// More headers of every request to `url`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// Networks that `url` may lead to although they are private, loopback or otherwise refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_cidrs: Vec<String>,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// How long the server may take to start and to list its tools. Default: 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<Span>,
    /// What fences the program in. A host that cannot do it does not start.
    #[serde(skip_serializing_if = "is_default")]
    pub sandbox: Sandbox,
    /// What it may do behind the fence, beside reading programs and libraries and writing into a fresh directory of
    /// its own, which is also its working directory unless `dir` says otherwise.
    #[serde(skip_serializing_if = "is_default")]
    pub may: May,
}

/// `http:` of a tool.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The method, in capitals.
    #[serde(default = "get")]
    pub method: Method,
    /// `https://host/path/{argument}?q={argument}`: places stand in the path or the query only.
    pub url: String,
    /// More request headers; a value may have `{argument}` places.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// How a request proves who it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// How a list or an object is written that is not in a JSON body, by argument. Default: a list in the query or
    /// in a form is repeated, anything else is its JSON text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub styles: BTreeMap<String, Style>,
    /// What becomes of the arguments without a place, where the method is neither GET nor HEAD.
    #[serde(default)]
    pub body: Body,
    /// The argument whose value is the whole body, with `body: json` or `raw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_argument: Option<String>,
    /// The arguments that are files, and their media types, with `body: multipart` or `raw`. A file is an object with
    /// its `text` or its `base64`, and maybe a `filename`; or a mere text, or a list of files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Networks a call may reach although they are private, loopback or otherwise refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_cidrs: Vec<String>,
    /// Follow redirects that stay on the same scheme, host and port.
    #[serde(default)]
    pub follow_own_origin: bool,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// A request method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are HTTP's")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// Whether a request of this method changes nothing, as HTTP means it.
    #[must_use]
    pub const fn reads_only(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

fn get() -> Method {
    Method::Get
}

/// What a body is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// A JSON object of the arguments without a place.
    #[default]
    Json,
    /// A form (`application/x-www-form-urlencoded`) of the arguments without a place.
    Form,
    /// A form in parts (`multipart/form-data`) of the arguments without a place; `files` tells which are files.
    Multipart,
    /// The text of one argument (`body_argument`), or the file it is, if `files` names it.
    Raw,
    /// There is no body: every argument has its place.
    None,
}

/// How a list or an object is written outside of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// `a,b`; of an object `name,value,name,value`.
    Commas,
    /// `a b`, percent-encoded.
    Spaces,
    /// `a|b`, percent-encoded.
    Pipes,
    /// `name=value,name=value`; of a list `a,b`.
    Equals,
    /// Each member of an object is a member of the query or the form itself.
    Spread,
    /// `argument[name]=value`, at any depth; of a list `argument[0]=a`.
    Brackets,
}

/// How a request proves who it is from. Exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// `authorization: Bearer …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Secret>,
    /// `authorization: Basic …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic: Option<Basic>,
    /// A key in a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<ApiKey>,
    /// A key in the query. Servers tend to log the query: prefer a header where there is a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<ApiKey>,
}

/// A user and a password.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user; it has no colon.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// A key and the name it is sent under.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The name of the header or of the query's member.
    pub name: String,
    /// The key.
    pub value: Secret,
}

/// `openapi:` of a tool.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenApi {
    /// The file of the document: OpenAPI 3.0 or 3.1, JSON or YAML. A change of it is a reason to reload.
    pub spec: String,
    /// `https://host/path` that the paths of the document are below. Default: the document's first server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// More headers of every request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// How every request proves who it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Networks a call may reach although they are private, loopback or otherwise refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_cidrs: Vec<String>,
    /// Follow redirects that stay on the same scheme, host and port.
    #[serde(default)]
    pub follow_own_origin: bool,
    /// A PEM file of certificate authorities to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// What is different for single operations, by `operationId`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, Operation>,
}

/// What is different for one operation of a document.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Operation {
    /// Instead of what the document says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What a call does to the world.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// What happens to a running call when the client leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long one call may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Calls of it running at once, all turns together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<u32>,
    /// How much of a result the model gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Size>,
}

/// `command:` of a tool.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// An absolute path and its arguments; an element may have `{argument}` places. No shell.
    #[schemars(length(min = 1))]
    pub argv: Vec<String>,
    /// What the process reads; may have `{argument}` places. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// The whole environment of the process.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
    /// Its working directory. Default: a fresh empty one per call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// Arguments whose values may begin with `-`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_dash: Vec<String>,
    /// Resource limits.
    #[serde(default)]
    pub rlimits: Rlimits,
    /// What fences the process in. A host that cannot do it does not start.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// What it may do behind the fence, beside reading programs and libraries and writing into a fresh directory of
    /// its own.
    #[serde(default)]
    pub may: May,
}

/// What fences a process in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// Nothing: it may do what fanfold's user may.
    #[default]
    None,
    /// The kernel's Landlock: files, TCP and signals.
    Landlock,
    /// Bubblewrap: files, network and processes of its own; nothing of it outlives it.
    Bwrap,
}

/// What a process may do behind its fence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct May {
    /// Files and directories it may read, and run, with all that is below them.
    pub read: Vec<String>,
    /// Files and directories it may write as well, with all that is below them.
    pub write: Vec<String>,
    /// Use the network.
    pub network: bool,
}

/// Resource limits of a command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimits {
    /// Address space of one process.
    pub memory: Size,
    /// Processor seconds of one process.
    pub cpu: Span,
    /// Open files of one process.
    pub open_files: u32,
    /// The largest file a process may write.
    pub file_size: Size,
}

impl Default for Rlimits {
    fn default() -> Self {
        Self { memory: Size::mib(1024), cpu: Span::seconds(60), open_files: 256, file_size: Size::mib(64) }
    }
}
