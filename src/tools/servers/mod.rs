//! The servers whose tools fanfold offers: which there are, how they are, what they offer.
//!
//! ```text
//!  Catalog (settings) ─▶ Servers::adopt: keeps, starts, lets go ─▶ tasks
//!                        Servers::need: a team's own ──────────────────┤
//!                        Servers::view ◀── news() ─────────────────────┘
//! ```
//!
//! A server that each team has for itself is started when a request of the team comes, and ended when none has come
//! for a while. What it offers is in the team's view only: the tools of a view hold the connection they are called on.
//!
//! A [`Server`] is what the settings say; a server that runs outlives the settings as long as they stay the same for
//! it. A tool whose name somebody else has is not offered: tools of the settings come first, then servers by name.

pub mod pins;
mod server;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::pins::All;
pub(super) use self::server::{Server, only_for_servers, prefix};
use super::mcp::{Link, State};
use super::{Catalog, Kind, Tool};

/// How a server is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name in the settings.
    pub server: Arc<str>,
    /// The team whose own it is.
    pub team: Option<Arc<str>>,
    /// Where it is: a program's name, or an address.
    pub place: String,
    /// fanfold is not ready without it.
    pub required: bool,
    /// How it is.
    pub condition: Condition,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.server)?;
        if let Some(team) = &self.team {
            write!(f, " of {team}")?;
        }
        match &self.condition {
            Condition::Idle => f.write_str(" starts when a team needs it"),
            Condition::Starting => f.write_str(" is starting"),
            Condition::Up { tools, .. } => write!(f, " is up, {tools} tools"),
            Condition::Down(why) => write!(f, " is down: {why}"),
        }
    }
}

/// Whether a server can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// No team needs it now.
    Idle,
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

/// Why a tool that a server has is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Withheld {
    /// The settings leave it out.
    NotChosen,
    /// Its schema is no good.
    Unfit(Arc<str>),
    /// Somebody else has its name.
    Clash(String),
    /// The server is pinned, and nobody has accepted the tool yet.
    New,
    /// The server is pinned, and the tool is not what was accepted.
    Changed,
}

impl std::fmt::Display for Withheld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotChosen => f.write_str("left out by `only` or `except`"),
            Self::Unfit(why) => write!(f, "its schema is no good: {why}"),
            Self::Clash(why) => f.write_str(why),
            Self::New => f.write_str("not accepted yet (`fanfold tools accept`)"),
            Self::Changed => f.write_str("changed since it was accepted (`fanfold tools accept`)"),
        }
    }
}

/// A tool of a server that is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOffered {
    /// The server.
    pub server: Arc<str>,
    /// The team whose own the server is.
    pub team: Option<Arc<str>>,
    /// The tool's name for the server, as it came.
    pub name: Arc<str>,
    /// Why not.
    pub why: Withheld,
}

impl NotOffered {
    /// Whether it waits for somebody to accept it.
    #[must_use]
    pub const fn waits(&self) -> bool {
        matches!(self.why, Withheld::New | Withheld::Changed)
    }

    /// Whether its name belongs to somebody else: a mistake of the settings.
    #[must_use]
    pub const fn clashes(&self) -> bool {
        matches!(self.why, Withheld::Clash(_))
    }
}

impl std::fmt::Display for NotOffered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = super::text::tame(&self.name, 100);
        write!(f, "the tool `{name}` of the server `{}` is not offered: {}", self.server, self.why)
    }
}

/// A server, and the team whose own it is.
type Key = (Arc<str>, Option<Arc<str>>);

/// A server that runs.
#[derive(Debug, Clone)]
struct Runs {
    link: Arc<Link>,
    /// When it was last needed.
    needed: Instant,
}

/// The servers that run. Ended when dropped; [`Servers::stop`] also waits for it.
#[derive(Debug)]
pub struct Servers {
    running: Mutex<BTreeMap<Key, Runs>>,
    news: watch::Sender<u64>,
    /// The last news that whoever makes views has seen.
    seen: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            news: watch::Sender::new(0),
            seen: watch::Sender::new(0),
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
    /// all others: they end when no turn uses them any more. Those of teams are only kept. Needs a runtime.
    pub fn adopt(&self, catalog: &Catalog) {
        let mut running = self.lock();
        running.retain(|(name, team), runs| {
            catalog.servers.get(name).is_some_and(|server| {
                server.is_of_teams() == team.is_some() && runs.link.plan.same(server.plan_of(team.as_deref()))
            })
        });
        for (name, server) in catalog.servers.iter().filter(|(_, server)| !server.is_of_teams()) {
            running.entry((Arc::clone(name), None)).or_insert_with(|| self.start(server, None));
        }
    }

    /// Makes sure that the servers of a catalog that each team has for itself run for this team, as far as it may use
    /// them: `may` is asked with what the names of their tools begin with.
    pub fn need(&self, catalog: &Catalog, team: &Arc<str>, may: impl Fn(&str) -> bool) {
        let mut running = self.lock();
        for (name, server) in catalog.servers.iter().filter(|(_, server)| server.is_of_teams()) {
            if may(&server.prefix) {
                let key = (Arc::clone(name), Some(Arc::clone(team)));
                let runs = running.entry(key).or_insert_with(|| self.start(server, Some(team)));
                runs.needed = Instant::now();
            }
        }
    }

    /// [`Servers::need`], and waits until each of these servers was tried and whoever makes views has seen it, but no
    /// longer than `patience`.
    pub async fn ready(
        &self,
        catalog: &Catalog,
        team: &Arc<str>,
        may: impl Fn(&str) -> bool,
        patience: Duration,
    ) {
        self.need(catalog, team, may);
        let links: Vec<Arc<Link>> = {
            let running = self.lock();
            let of_team = running.iter().filter(|((_, owner), _)| owner.as_ref() == Some(team));
            of_team.map(|(_, runs)| Arc::clone(&runs.link)).collect()
        };
        let all_seen = async {
            for link in links {
                link.tried().await;
            }
            let news = *self.news.borrow();
            // The sender lives in `self`.
            let _ = self.seen.subscribe().wait_for(|seen| *seen >= news).await;
        };
        // Whoever is late comes later.
        let _ = timeout(patience, all_seen).await;
    }

    /// Whoever makes views says that theirs has everything up to these news.
    pub fn seen(&self, news: u64) {
        self.seen.send_if_modified(|seen| std::mem::replace(seen, (*seen).max(news)) < news);
    }

    /// Lets go of the servers of teams that no request needed for long enough.
    pub fn end_idle(&self, catalog: &Catalog) {
        let now = Instant::now();
        let mut ended = Vec::new();
        self.lock().retain(|(name, team), runs| {
            let idle = catalog.servers.get(name).and_then(|server| server.idle());
            let keep = team.is_none() || idle.is_some_and(|idle| now - runs.needed < idle);
            if !keep {
                ended.push((Arc::clone(name), team.clone()));
            }
            keep
        });
        for (server, team) in &ended {
            tracing::info!(%server, team = team.as_deref().unwrap_or_default(), "a tool server is not needed any more");
        }
        if !ended.is_empty() {
            self.news.send_modify(|news| *news = news.wrapping_add(1));
        }
    }

    fn start(&self, server: &Server, team: Option<&Arc<str>>) -> Runs {
        let plan = server.plan_of(team.map(AsRef::as_ref));
        let link = Arc::new(Link::start(plan, self.news.clone(), &self.stop, &self.tasks));
        Runs { link, needed: Instant::now() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Runs>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The catalog with the tools its servers offer now: to everybody, and to teams that have servers of their own.
    #[must_use]
    pub fn view(&self, catalog: &Catalog) -> Catalog {
        let running = self.lock().clone();
        // Without what servers offered before.
        let own = |tool: &&Arc<Tool>| !matches!(tool.kind, Kind::Mcp(_));
        let tools =
            catalog.tools.values().filter(own).map(|tool| (Arc::clone(&tool.spec.name), Arc::clone(tool)));
        let mut base = Catalog {
            tools: tools.collect(),
            of_teams: BTreeMap::new(),
            servers: catalog.servers.clone(),
            not_offered: Vec::new(),
            remarks: Arc::clone(&catalog.remarks),
            children: catalog.children.clone(),
        };
        let teams: BTreeSet<&Arc<str>> = running.keys().filter_map(|(_, team)| team.as_ref()).collect();
        let of_each = teams.into_iter().map(|team| {
            let mut view = base.of_team("");
            view.add_all(&running, Some(team));
            (Arc::clone(team), view)
        });
        let of_each: Vec<(Arc<str>, Catalog)> = of_each.collect();
        base.add_all(&running, None);
        for (team, view) in of_each {
            let more = view.not_offered.into_iter().filter(|tool| !base.not_offered.contains(tool));
            let more: Vec<NotOffered> = more.collect();
            base.not_offered.extend(more);
            base.of_teams.insert(team, view.tools);
        }
        for tool in &base.not_offered {
            match tool.why {
                Withheld::Clash(_) | Withheld::New | Withheld::Changed => tracing::warn!("{tool}"),
                Withheld::NotChosen | Withheld::Unfit(_) => {}
            }
        }
        base
    }

    /// How the servers of a catalog are.
    #[must_use]
    pub fn standings(&self, catalog: &Catalog) -> Vec<Standing> {
        let running = self.lock();
        let mut all = Vec::new();
        for (name, server) in &catalog.servers {
            let standing = |team: Option<Arc<str>>, condition| Standing {
                server: Arc::clone(name),
                team,
                place: server.plan.place(),
                required: server.required,
                condition,
            };
            let before = all.len();
            let its = running.iter().filter(|((other, _), _)| other == name);
            all.extend(its.map(|((_, team), runs)| {
                let condition = match runs.link.state() {
                    State::Starting => Condition::Starting,
                    State::Up(up) => Condition::Up { tools: up.tools.len(), revision: up.revision.clone() },
                    State::Down(why) => Condition::Down(why),
                };
                standing(team.clone(), condition)
            }));
            if all.len() == before {
                let condition = if server.is_of_teams() { Condition::Idle } else { Condition::Starting };
                all.push(standing(None, condition));
            }
        }
        all
    }

    /// The digests of the tools that the pinned servers of a catalog have and offer, as they are now, or wait to be
    /// accepted.
    #[must_use]
    pub fn digests(&self, catalog: &Catalog) -> All {
        let mut all = All::new();
        for ((name, _), runs) in self.lock().iter() {
            let server = catalog.servers.get(name).filter(|server| server.is_pinned());
            if let (Some(server), State::Up(up)) = (server, runs.link.state()) {
                let digests = server.digests(&up.tools);
                all.entry(name.to_string()).or_default().extend(digests);
            }
        }
        all
    }

    /// Tells of changes: of the state of a server, or of its tools.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Waits until every server was tried once, but for those that are not required no longer than `patience`.
    pub async fn tried(&self, catalog: &Catalog, patience: Duration) {
        let links: Vec<Arc<Link>> = self.lock().values().map(|runs| Arc::clone(&runs.link)).collect();
        let required =
            |link: &Link| catalog.servers.get(&link.plan.name).is_some_and(|server| server.required);
        let deadline = Instant::now() + patience;
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
    /// What the servers of everybody, and those of this team, offer.
    fn add_all(&mut self, running: &BTreeMap<Key, Runs>, team: Option<&Arc<str>>) {
        for (name, server) in self.servers.clone() {
            let owner = team.filter(|_| server.is_of_teams()).cloned();
            let Some(runs) = running.get(&(Arc::clone(&name), owner.clone())) else { continue };
            let State::Up(up) = runs.link.state() else { continue };
            for listed in &up.tools {
                let refused = server.offer(&runs.link, listed).and_then(|tool| self.add(tool));
                if let Err(why) = refused {
                    let (server, name) = (Arc::clone(&name), Arc::clone(&listed.name));
                    self.not_offered.push(NotOffered { server, team: owner.clone(), name, why });
                }
            }
        }
    }

    fn add(&mut self, tool: Tool) -> Result<(), Withheld> {
        match self.tools.entry(Arc::clone(&tool.spec.name)) {
            Entry::Vacant(free) => {
                free.insert(Arc::new(tool));
                Ok(())
            }
            Entry::Occupied(taken) => Err(Withheld::Clash(format!(
                "the name `{}` belongs to {}; give one of the servers another `prefix`, or name it in `except`",
                tool.spec.name,
                taken.get().owner(),
            ))),
        }
    }
}
