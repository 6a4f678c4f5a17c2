//! The servers whose tools fanfold offers: which there are, how they are, what they offer.
//!
//! ```text
//!  Catalog (settings) ─▶ Servers::adopt: keeps, starts, lets go ─▶ tasks
//!                        Servers::view ◀── changed() ───────────────┘
//! ```
//!
//! A [`Server`] is what the settings say; a server that runs outlives the settings as long as they stay the same for
//! it. A tool whose name somebody else has is not offered: tools of the settings come first, then servers by name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::load::Mistakes;
use super::mcp::{Link, Listed, Mcp, Plan, State, effect, offered, public};
use super::settings::Settings;
use super::{Catalog, Defaults, Kind, Tool, check_name, http, on_disconnect};
use crate::wire::tool::{Effect, OnDisconnect, OwnedTool};

/// The longest beginning of the names of a server's tools.
const MAX_PREFIX: usize = 40;

/// A server, as the settings say.
#[derive(Debug)]
pub(super) struct Server {
    plan: Arc<Plan>,
    only: Option<Vec<String>>,
    except: Vec<String>,
    prefix: String,
    required: bool,
    trusted: bool,
    effect: Effect,
    on_disconnect: Option<OnDisconnect>,
    timeout: Duration,
    max_timeout: Duration,
    at_once: Option<u32>,
    result: usize,
}

/// How a server is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name in the settings.
    pub server: Arc<str>,
    /// Where it is: a program's name, or an address.
    pub place: String,
    /// fanfold is not ready without it.
    pub required: bool,
    /// How it is.
    pub condition: Condition,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.condition {
            Condition::Starting => write!(f, "{} is starting", self.server),
            Condition::Up { tools, .. } => write!(f, "{} is up, {tools} tools", self.server),
            Condition::Down(why) => write!(f, "{} is down: {why}", self.server),
        }
    }
}

/// Whether a server can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nobody knows yet.
    Starting,
    /// It can.
    Up {
        /// How many tools it has, offered or not.
        tools: usize,
        /// The revision of the protocol it speaks.
        revision: String,
    },
    /// It cannot, and why not.
    Down(Arc<str>),
}

/// The servers that run. Ended when dropped; [`Servers::stop`] also waits for it.
#[derive(Debug)]
pub struct Servers {
    running: Mutex<BTreeMap<Arc<str>, Arc<Link>>>,
    news: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            news: watch::Sender::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Servers {
    /// Without a server.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts the servers of a catalog that do not run yet, keeps those whose settings are the same, and lets go of
    /// all others: they end when no turn uses them any more. Needs a runtime.
    pub fn adopt(&self, catalog: &Catalog) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *running);
        for (name, server) in &catalog.servers {
            let kept = before.remove(name).filter(|link| link.plan.same(&server.plan));
            let start = || Arc::new(Link::start(&server.plan, self.news.clone(), &self.stop, &self.tasks));
            running.insert(Arc::clone(name), kept.unwrap_or_else(start));
        }
    }

    /// The catalog with the tools its servers offer now.
    #[must_use]
    pub fn view(&self, catalog: &Catalog) -> Catalog {
        // Without what servers offered before.
        let own = |tool: &&Arc<Tool>| matches!(tool.kind, Kind::Http(_) | Kind::Command(_));
        let tools =
            catalog.tools.values().filter(own).map(|tool| (Arc::clone(&tool.spec.name), Arc::clone(tool)));
        let mut view = Catalog {
            tools: tools.collect(),
            servers: catalog.servers.clone(),
            clashes: Vec::new(),
            children: catalog.children.clone(),
        };
        for (name, server) in &catalog.servers {
            let link = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            let Some(link) = link else { continue };
            let State::Up(up) = link.state() else { continue };
            for listed in &up.tools {
                if offered(&listed.name, server.only.as_deref(), &server.except) {
                    view.add(server.tool(&link, listed));
                }
            }
        }
        for clash in &view.clashes {
            tracing::warn!("{clash}");
        }
        view
    }

    /// How the servers of a catalog are.
    #[must_use]
    pub fn standings(&self, catalog: &Catalog) -> Vec<Standing> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let condition = |name: &Arc<str>| match running.get(name).map(|link| link.state()) {
            None | Some(State::Starting) => Condition::Starting,
            Some(State::Up(up)) => Condition::Up { tools: up.tools.len(), revision: up.revision.clone() },
            Some(State::Down(why)) => Condition::Down(why),
        };
        let standing = |(name, server): (&Arc<str>, &Arc<Server>)| Standing {
            server: Arc::clone(name),
            place: server.plan.place(),
            required: server.required,
            condition: condition(name),
        };
        catalog.servers.iter().map(standing).collect()
    }

    /// Tells of changes: of the state of a server, or of its tools.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Waits until every server was tried once, but for those that are not required no longer than `patience`.
    pub async fn tried(&self, catalog: &Catalog, patience: Duration) {
        let links: Vec<Arc<Link>> =
            self.running.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let required =
            |link: &Link| catalog.servers.get(&link.plan.name).is_some_and(|server| server.required);
        let deadline = tokio::time::Instant::now() + patience;
        for link in links {
            if required(&link) {
                link.tried().await;
            } else {
                // Whoever is late comes later.
                let _ = tokio::time::timeout_at(deadline, link.tried()).await;
            }
        }
    }

    /// Ends all servers and waits until nothing of them is left.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Catalog {
    fn add(&mut self, tool: Tool) {
        let owner = |tool: &Tool| match tool.server() {
            Some((server, name)) => format!("`{}` of the server `{server}`", super::text::tame(name, 100)),
            None => "the tool of the configuration".into(),
        };
        match self.tools.entry(Arc::clone(&tool.spec.name)) {
            Entry::Vacant(free) => {
                free.insert(Arc::new(tool));
            }
            Entry::Occupied(taken) => self.clashes.push(format!(
                "the name `{}` belongs to {}; {} is not offered: give one of the servers another `prefix`, or name it in `except`",
                tool.spec.name,
                owner(taken.get()),
                owner(&tool),
            )),
        }
    }
}

impl Server {
    /// Reads the settings.
    pub(super) fn load(
        name: &str,
        settings: &Settings,
        defaults: &Defaults,
        roots: &http::SystemRoots,
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        check_name(name, mistakes);
        let mcp = settings.mcp.as_ref()?;
        if settings.http.is_some() || settings.command.is_some() {
            let other = if settings.http.is_some() { "http" } else { "command" };
            mistakes.add_with_fix(
                &["mcp"],
                format!("a tool has either `{other}` or `mcp`"),
                "remove one of them",
            );
        }
        let its_own = [
            ("description", settings.description.is_some()),
            ("parameters", settings.parameters.is_some()),
            ("strict", settings.strict),
        ];
        for (key, _) in its_own.into_iter().filter(|(_, given)| *given) {
            mistakes.add(&[key], format!("a server says the `{key}` of its tools itself"));
        }
        if settings.at_once == Some(0) {
            mistakes.add(&["at_once"], "with 0 its tools could never run");
        }
        let prefix = settings.prefix.clone().unwrap_or_else(|| format!("{name}__"));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if prefix.len() > MAX_PREFIX || !prefix.bytes().all(legal) {
            let fix = "write a short one under `prefix`, or \"\" for none";
            let message = format!(
                "names of tools cannot begin with `{prefix}`: letters, digits, _ and -, at most {MAX_PREFIX}"
            );
            match settings.prefix {
                Some(_) => mistakes.add_with_fix(&["prefix"], message, fix),
                None => mistakes.add_with_fix::<&str>(&[], message, fix),
            }
        }
        let timeout = settings.timeout.map_or(defaults.call_timeout, |timeout| timeout.0);
        let max_timeout = settings.max_timeout.map_or(timeout, |most| most.0);
        if max_timeout < timeout {
            let message =
                format!("it is less than the `timeout` of each call, {}", crate::units::Span(timeout));
            mistakes.add_with_fix(&["max_timeout"], message, "raise it, or lower `timeout`");
        }
        let plan = Plan::load(name, mcp, roots, mistakes)?;
        mistakes.is_empty().then(|| Self {
            plan: Arc::new(plan),
            only: settings.only.clone(),
            except: settings.except.clone().unwrap_or_default(),
            prefix,
            required: settings.required,
            trusted: settings.trust_annotations,
            effect: settings.effect.unwrap_or_default(),
            on_disconnect: settings.on_disconnect,
            timeout,
            max_timeout,
            at_once: settings.at_once,
            result: settings.result.map_or(defaults.tool_result, |size| size.0),
        })
    }

    fn tool(&self, link: &Arc<Link>, listed: &Listed) -> Tool {
        let effect = effect(self.effect, listed.said.as_ref(), self.trusted);
        let name: Arc<str> = public(&self.prefix, &listed.name).into();
        Tool {
            spec: Arc::new(OwnedTool {
                definition: definition(&name, listed).into(),
                name,
                strict: false,
                effect,
                on_disconnect: self.on_disconnect.unwrap_or_else(|| on_disconnect(effect)),
                timeout: self.timeout,
                max_timeout: self.max_timeout,
            }),
            schema: Arc::clone(&listed.schema),
            at_once: self.at_once,
            result: self.result,
            kind: Kind::Mcp(Box::new(Mcp { link: Arc::clone(link), name: Arc::clone(&listed.name), effect })),
        }
    }
}

/// The element of a request's `tools`; the schema is the text the server sent.
fn definition(name: &str, listed: &Listed) -> String {
    #[derive(serde::Serialize)]
    struct Definition<'a> {
        r#type: &'static str,
        function: Function<'a>,
    }
    #[derive(serde::Serialize)]
    struct Function<'a> {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        parameters: &'a RawValue,
    }
    let parameters = serde_json::from_str::<&RawValue>(&listed.parameters);
    let function = |parameters| Function { name, description: listed.description.as_deref(), parameters };
    let text = parameters.and_then(|parameters| {
        serde_json::to_string(&Definition { r#type: "function", function: function(parameters) })
    });
    // It was JSON when it was listed.
    text.unwrap_or_default()
}

/// What only a server can have.
pub(super) fn only_for_servers(settings: &Settings, mistakes: &mut Mistakes) {
    let given = [
        ("only", settings.only.is_some()),
        ("except", settings.except.is_some()),
        ("prefix", settings.prefix.is_some()),
        ("max_timeout", settings.max_timeout.is_some()),
        ("required", settings.required),
        ("trust_annotations", settings.trust_annotations),
    ];
    for (key, _) in given.into_iter().filter(|(_, given)| *given) {
        mistakes.add(&[key], format!("`{key}` belongs to a server: a tool with `mcp`"));
    }
}
