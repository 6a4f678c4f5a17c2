//! Knows which tools exist and runs one call within its limits.
//!
//! ```text
//!  settings ─▶ Catalog::build ─▶ Catalog (immutable) ─▶ Tool::run ─▶ http · command · mcp ─▶ Outcome
//!               all mistakes       ▲                      │
//!                Servers::view ────┘                      └─ arguments: JSON, schema
//! ```
//!
//! Tools of a server come and go. [`Servers`] keeps the servers alive; [`Servers::view`] makes a catalog that also has
//! what they offer at that moment.
//!
//! Promises: the arguments of a call are hostile input and never become more than the values the settings left
//! open; a call holds bounded memory; whether its future is dropped or its `stop` is cancelled, nothing of it
//! stays behind. A failure is an [`Outcome`] for the model, never an error of ours.
//!
//! Not here: slots, who may use a tool, and the journal of calls; they belong to whoever runs a turn.

mod address;
mod arguments;
mod command;
#[doc(hidden)]
pub mod door;
mod http;
pub(crate) mod keeper;
mod load;
mod mcp;
pub mod openapi;
mod place;
pub mod sandbox;
mod secret;
mod servers;
pub mod settings;
pub mod strict;
#[cfg(test)]
mod testing;
pub mod text;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::arguments::MAX_ARGUMENTS;
use self::arguments::{Arguments, Schema};
pub use self::load::LoadError;
use self::load::Mistakes;
pub use self::openapi::load::Remark;
use self::servers::Server;
pub use self::servers::{Condition, NotOffered, Servers, Standing, Withheld, pins};
use self::settings::Settings;
use crate::telemetry::traces::Carried;
use crate::wire::tool::{Effect, OnDisconnect, Outcome, OutcomeKind, OwnedTool, Patience};

/// The longest name a tool may have.
const MAX_NAME: usize = 64;

/// What applies to a tool whose settings do not say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// How long one call may take.
    pub call_timeout: Duration,
    /// How many bytes of a result the model gets.
    pub tool_result: usize,
}

/// Every tool fanfold runs. Immutable; a reload builds a new one while turns in flight keep theirs.
#[derive(Debug)]
pub struct Catalog {
    tools: BTreeMap<Arc<str>, Arc<Tool>>,
    /// What teams have that have servers of their own, the tools of everybody included.
    of_teams: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<Tool>>>,
    servers: BTreeMap<Arc<str>, Arc<Server>>,
    not_offered: Vec<NotOffered>,
    remarks: Arc<[Remark]>,
    children: TaskTracker,
}

/// A tool fanfold runs.
#[derive(Debug)]
pub struct Tool {
    spec: Arc<OwnedTool>,
    schema: Arc<Schema>,
    at_once: Option<u32>,
    result: usize,
    kind: Kind,
    origin: Option<Origin>,
}

/// The operation of an OpenAPI document that a tool is.
#[derive(Debug)]
struct Origin {
    /// The entry under `tools:` that names the document.
    entry: Arc<str>,
    /// What the document calls the operation.
    operation: Arc<str>,
}

/// How a tool runs its calls.
#[derive(Debug)]
enum Kind {
    Http(Box<http::Http>),
    Command(Box<command::Command>),
    Mcp(Box<mcp::Mcp>),
}

/// One call of a tool.
#[derive(Debug, Clone)]
pub struct Call {
    /// The arguments as the model wrote them: JSON text, or nothing.
    pub arguments: String,
    /// The same for every attempt of this call; sent as `idempotency-key`.
    pub idempotency_key: String,
    /// Sent as `x-request-id`.
    pub request_id: String,
    /// Sent as `traceparent` and `tracestate`.
    pub trace: Option<Carried>,
    /// How many bytes of the result the model gets. See [`Tool::result_limit`].
    pub result_limit: usize,
    /// When the call's time is over. The call ends itself then, with [`OutcomeKind::Timeout`].
    pub deadline: tokio::time::Instant,
    /// What becomes of the deadline when the call tells of its progress.
    pub progress: Progress,
    /// Where it is told that the tool is tried again.
    pub tries: Tries,
}

/// How a call that tells of its progress gets more time.
#[derive(Debug, Clone)]
pub struct Progress {
    /// How long it may go on after each news.
    pub silent: Duration,
    /// When its time is over, whatever it tells.
    pub latest: tokio::time::Instant,
    /// Woken at news. Several at once may be one.
    pub heard: Arc<tokio::sync::Notify>,
}

impl Progress {
    /// Of a call that begins now and has so much time; `heard` is woken at news.
    #[must_use]
    pub fn new(patience: Patience, heard: Arc<tokio::sync::Notify>) -> Self {
        Self { silent: patience.silent, latest: tokio::time::Instant::now() + patience.most, heard }
    }
}

/// When a call was tried again, for whoever wants to know.
#[derive(Debug, Clone, Default)]
pub struct Tries(Arc<Mutex<Vec<tokio::time::Instant>>>);

impl Tries {
    /// The moments at which another try began.
    #[must_use]
    pub fn again(&self) -> Vec<tokio::time::Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(tokio::time::Instant::now());
    }
}

impl Catalog {
    /// Builds every tool: compiles schemas, opens secrets, looks for programs. Returns all mistakes at once.
    pub fn build(settings: &BTreeMap<String, Settings>, defaults: &Defaults) -> Result<Self, Vec<LoadError>> {
        let children = TaskTracker::new();
        let (roots, host) = (http::SystemRoots::default(), sandbox::Host::default());
        let (mut tools, mut servers) = (BTreeMap::new(), BTreeMap::new());
        let (mut remarks, mut errors) = (Vec::new(), Vec::new());
        let mut documents = Vec::new();
        for (name, settings) in settings {
            let mut mistakes = Mistakes::of(name);
            if settings.openapi.is_some() {
                // Its tools come last: those of the settings have their names outright.
                documents.extend(openapi::load::load(name, settings, defaults, &roots, &mut mistakes));
            } else if settings.mcp.is_some() {
                if let Some(server) = Server::load(name, settings, defaults, &roots, &host, &mut mistakes) {
                    servers.insert(name.as_str().into(), Arc::new(server));
                }
            } else if let Some(tool) =
                Tool::load(name, settings, defaults, &roots, &children, &host, &mut mistakes)
            {
                tools.insert(Arc::clone(&tool.spec.name), Arc::new(tool));
            }
            errors.extend(mistakes.into_inner());
        }
        for document in documents {
            remarks.extend(document.remarks);
            for tool in document.tools {
                errors.extend(add_of_document(&mut tools, tool));
            }
        }
        if errors.is_empty() {
            Ok(Self {
                tools,
                of_teams: BTreeMap::new(),
                servers,
                not_offered: Vec::new(),
                remarks: remarks.into(),
                children,
            })
        } else {
            Err(errors)
        }
    }

    /// The tool of this name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&Arc<Tool>> {
        self.tools.get(name)
    }

    /// Every tool that everybody has, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tool>> {
        self.tools.values()
    }

    /// What a team has.
    #[must_use]
    pub fn of_team(&self, team: &str) -> Self {
        Self {
            tools: self.of_teams.get(team).unwrap_or(&self.tools).clone(),
            of_teams: BTreeMap::new(),
            servers: self.servers.clone(),
            not_offered: self.not_offered.clone(),
            remarks: Arc::clone(&self.remarks),
            children: self.children.clone(),
        }
    }

    /// The tool of this name that a team has.
    #[must_use]
    pub fn tool_of(&self, team: &str, name: &str) -> Option<&Arc<Tool>> {
        self.of_teams.get(team).unwrap_or(&self.tools).get(name)
    }

    /// Every tool a team has, by name.
    pub fn iter_of(&self, team: &str) -> impl Iterator<Item = &Arc<Tool>> {
        self.of_teams.get(team).unwrap_or(&self.tools).values()
    }

    /// Every tool there is, those of teams with the same name once for each of them.
    pub fn every(&self) -> impl Iterator<Item = &Arc<Tool>> {
        self.tools.values().chain(self.of_teams.values().flat_map(BTreeMap::values))
    }

    /// Whether there are servers that each team has for itself.
    #[must_use]
    pub fn has_servers_of_teams(&self) -> bool {
        self.servers.values().any(|server| server.is_of_teams())
    }

    /// Whether a tool of this name could be one of a server's, by what the names of its tools begin with.
    #[must_use]
    pub fn could_be_of(&self, name: &str, server: &str) -> bool {
        self.servers.get(server).is_some_and(|server| name.starts_with(&*server.prefix))
    }

    /// How many servers there are, whose tools are known only once they run.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Tools of servers that are not offered, and why.
    #[must_use]
    pub fn not_offered(&self) -> &[NotOffered] {
        &self.not_offered
    }

    /// Operations of OpenAPI documents that are not offered, or not whole.
    #[must_use]
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// How many processes of command tools are still being ended or reaped, dropped calls included.
    #[must_use]
    pub fn children(&self) -> usize {
        self.children.len()
    }

    /// Waits until no process of a command tool is left. Calls may still be made meanwhile; it is meant for
    /// the end, when every call was stopped.
    pub async fn settled(&self) {
        self.children.close();
        self.children.wait().await;
    }
}

impl Tool {
    /// What policy and engine see of it.
    #[must_use]
    pub fn spec(&self) -> &Arc<OwnedTool> {
        &self.spec
    }

    /// `http`, `command`, `mcp` or `openapi`.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match &self.kind {
            Kind::Http(_) if self.origin.is_some() => "openapi",
            Kind::Http(_) => "http",
            Kind::Command(_) => "command",
            Kind::Mcp(_) => "mcp",
        }
    }

    /// The server it belongs to, and its name there.
    #[must_use]
    pub fn server(&self) -> Option<(&str, &str)> {
        match &self.kind {
            Kind::Http(_) | Kind::Command(_) => None,
            Kind::Mcp(mcp) => Some((&mcp.server, &mcp.name)),
        }
    }

    /// The entry under `tools:` whose OpenAPI document it is from, and what the operation is called there.
    #[must_use]
    pub fn document(&self) -> Option<(&str, &str)> {
        self.origin.as_ref().map(|origin| (&*origin.entry, &*origin.operation))
    }

    /// Whose it is, in words.
    fn owner(&self) -> String {
        match (self.server(), self.document()) {
            (Some((server, name)), _) => format!("`{}` of the server `{server}`", text::tame(name, 100)),
            (None, Some((entry, operation))) => {
                format!("`{}` of the document `{entry}`", text::tame(operation, 100))
            }
            (None, None) => "the tool of the configuration".into(),
        }
    }

    /// How many calls of it may run at once, all turns together.
    #[must_use]
    pub fn at_once(&self) -> Option<u32> {
        self.at_once
    }

    /// How many bytes of a result the model gets: the tool's own setting, or the default. A turn with a lower
    /// limit puts that into [`Call::result_limit`] instead.
    #[must_use]
    pub fn result_limit(&self) -> usize {
        self.result
    }

    /// Whether these arguments could be run: they are a JSON object, fit the schema and fit their places.
    pub fn check_arguments(&self, arguments: &str) -> Result<(), Outcome> {
        let arguments = self.read(arguments)?;
        match &self.kind {
            Kind::Http(http) => http.check(&arguments, &self.schema),
            Kind::Command(command) => command.check(&arguments),
            Kind::Mcp(_) => Ok(()),
        }
        .map_err(|what| invalid(&what))
    }

    /// Checks the arguments, then runs the call until it has ended, `stop` is cancelled or its deadline is
    /// reached; in the latter two cases a process gets two seconds to end before it is killed. Dropping the
    /// future stops the call as well.
    pub async fn run(&self, call: &Call, stop: &CancellationToken) -> Outcome {
        let arguments = match self.read(&call.arguments) {
            Ok(arguments) => arguments,
            Err(outcome) => return outcome,
        };
        if stop.is_cancelled() {
            return Outcome::failed(OutcomeKind::Stopped, "stopped before it began");
        }
        if call.deadline <= tokio::time::Instant::now() {
            return Outcome::failed(OutcomeKind::Timeout, "its time was over before it began");
        }
        match &self.kind {
            Kind::Http(http) => Box::pin(http.run(&arguments, &self.schema, call, stop)).await,
            Kind::Command(command) => Box::pin(command.run(&arguments, call, stop)).await,
            Kind::Mcp(mcp) => Box::pin(mcp.run(&arguments, call, stop)).await,
        }
    }

    fn read<'a>(&self, arguments: &'a str) -> Result<Arguments<'a>, Outcome> {
        let (arguments, value) = Arguments::parse(arguments).map_err(|what| invalid(&what))?;
        self.schema.check(&value).map_err(|what| invalid(&what))?;
        Ok(arguments)
    }

    fn load(
        name: &str,
        settings: &Settings,
        defaults: &Defaults,
        roots: &http::SystemRoots,
        children: &TaskTracker,
        host: &sandbox::Host,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        check_name(name, mistakes);
        servers::only_for_servers(settings, mistakes);
        let parameters = parameters(settings);
        if settings.strict {
            for fault in strict::check(&parameters) {
                mistakes
                    .add(&below("parameters", fault.path), format!("does not fit strict: {}", fault.message));
            }
        }
        if settings.at_once == Some(0) {
            mistakes.add(&["at_once"], "with 0 the tool could never run");
        }
        let effect = settings.effect.unwrap_or_default();
        let schema = Schema::compile(&parameters)
            .map_err(|broken| mistakes.add(&below("parameters", broken.path), broken.message))
            .ok()
            // The tool cannot be had, but its other mistakes can.
            .or_else(|| Schema::guessed(&parameters))?;
        let http =
            settings.http.as_ref().map(|http| http::Http::load(http, effect, &schema, roots, mistakes));
        let command = settings
            .command
            .as_ref()
            .map(|command| command::Command::load(command, effect, &schema, children, host, mistakes));
        let kind = match (http, command) {
            (Some(http), None) => Kind::Http(Box::new(http?)),
            (None, Some(command)) => Kind::Command(Box::new(command?)),
            (None, None) => {
                mistakes.add_missing(
                    &["http", "command", "mcp", "openapi"],
                    "nothing says how to run it",
                    "add `http:`, `command:`, `mcp:` or `openapi:`",
                );
                return None;
            }
            (Some(_), Some(_)) => {
                mistakes.add_with_fix(
                    &["command"],
                    "a tool has either `http` or `command`",
                    "remove one of them",
                );
                return None;
            }
        };
        mistakes.is_empty().then(|| Self {
            spec: Arc::new(OwnedTool {
                name: name.into(),
                definition: definition(name, settings, parameters).into(),
                strict: settings.strict,
                effect,
                on_disconnect: settings.on_disconnect.unwrap_or_else(|| on_disconnect(effect)),
                timeout: settings.timeout.map_or(defaults.call_timeout, |timeout| timeout.0),
                max_timeout: settings.timeout.map_or(defaults.call_timeout, |timeout| timeout.0),
            }),
            schema: Arc::new(schema),
            at_once: settings.at_once,
            result: settings.result.map_or(defaults.tool_result, |size| size.0),
            kind,
            origin: None,
        })
    }
}

/// Adds a tool of a document. The mistake, if its name is taken, is its document's.
fn add_of_document(tools: &mut BTreeMap<Arc<str>, Arc<Tool>>, tool: Tool) -> Option<LoadError> {
    let Some(taken) = tools.get(&tool.spec.name) else {
        tools.insert(Arc::clone(&tool.spec.name), Arc::new(tool));
        return None;
    };
    let entry = tool.document().map(|(entry, _)| entry.to_owned()).unwrap_or_default();
    let mut mistakes = Mistakes::of(&entry);
    let message = format!(
        "the name `{}` belongs to {}; {} cannot have it, too",
        tool.spec.name,
        taken.owner(),
        tool.owner()
    );
    mistakes.add_with_fix(&["openapi"], message, "write another `prefix`, or name it in `except`");
    mistakes.into_inner().pop()
}

fn check_name(name: &str, mistakes: &mut Mistakes) {
    if !legal(name) {
        mistakes.add::<&str>(
            &[],
            format!("`{name}` is not a legal tool name: ^[a-zA-Z0-9_-]{{1,{MAX_NAME}}}$ (letters, digits, _ and -, at most {MAX_NAME})"),
        );
    }
}

fn invalid(what: &str) -> Outcome {
    Outcome::failed(OutcomeKind::InvalidArguments, what)
}

fn legal(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn below(key: &str, path: Vec<String>) -> Vec<String> {
    std::iter::once(key.to_owned()).chain(path).collect()
}

fn parameters(settings: &Settings) -> Value {
    settings
        .parameters
        .clone()
        .unwrap_or_else(|| json!({ "type": "object", "properties": {}, "additionalProperties": false }))
}

/// The tool as an element of a request's `tools`.
fn definition(name: &str, settings: &Settings, parameters: Value) -> String {
    let mut function = serde_json::Map::new();
    function.insert("name".into(), name.into());
    if let Some(description) = &settings.description {
        function.insert("description".into(), description.as_str().into());
    }
    function.insert("parameters".into(), parameters);
    if settings.strict {
        function.insert("strict".into(), true.into());
    }
    json!({ "type": "function", "function": function }).to_string()
}

fn on_disconnect(effect: Effect) -> OnDisconnect {
    match effect {
        Effect::Read => OnDisconnect::Stop,
        Effect::Idempotent | Effect::Write => OnDisconnect::Finish,
    }
}

/// The time a call had, in words: to a tenth of a second once it is a second or more.
fn took(time: Duration) -> String {
    // A deadline is looked at a moment after the call began.
    let millis = (time.as_micros() + 500) / 1000;
    match millis {
        0..1000 => format!("{millis}ms"),
        _ => {
            let tenths = (millis + 50) / 100;
            let (seconds, rest) = (tenths / 10, tenths % 10);
            if rest == 0 { format!("{seconds}s") } else { format!("{seconds}.{rest}s") }
        }
    }
}

#[cfg(test)]
mod tests;
