//! Builds the parts from a configuration and owns their start, reload and stop.
//!
//! ```text
//! SIGTERM ─▶ not ready ─ drain_accept ─▶ no new turns ─ drain ─▶ turns end with an error ─▶ exit
//!                 └───────────────── second SIGTERM ────────────▶┘
//! ```

mod fixed;
mod snapshot;
mod start_error;
mod tool_servers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::fixed::Fixed;
use self::snapshot::{Keeper, capacity, ledger_settings, log_remarks, shown, snapshot};
pub use self::start_error::StartError;
use self::tool_servers::ToolServers;
use crate::admin::Admin;
use crate::admin::inspector::{InUse, Inspector};
use crate::config::watch::{Cause, Watcher};
use crate::config::{self, Flags, Loaded, process_env};
use crate::ledger::Ledger;
use crate::runs::Runs;
use crate::server::body::InFlightBudget;
use crate::server::drain::{Drain, Stage};
use crate::server::listener::{Listener, Options};
use crate::server::proxy::{Proxy, Shutdown, Snapshot};
use crate::server::visitors::Visitors;
use crate::store::{Health, Store};
use crate::team::fair::Queue;
use crate::telemetry::{Telemetry, log, metrics};
use crate::tools::{Catalog, Standing};
use crate::units::Secret;
use crate::upstream::{State, Upstream};
use crate::workers::Workers;

/// How often histograms and parked results are swept.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long turns get to say goodbye once they are told to end.
const GOODBYE: Duration = Duration::from_secs(3);

/// What the system tells the process. Listened for before anything is served: until then each of
/// these signals would end the process on the spot.
#[derive(Debug)]
pub struct Signals {
    ends: Ends,
    watcher: Watcher,
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Begins to listen, and to watch the configuration's files.
    pub async fn register(origin: Option<&Origin>) -> Result<Self, StartError> {
        let system = |e: std::io::Error| StartError::System(format!("cannot listen for signals: {e}"));
        let watched = origin.map(|origin| origin.watched.clone()).unwrap_or_default();
        let ends = Ends {
            terminate: signal(SignalKind::terminate()).map_err(system)?,
            interrupt: signal(SignalKind::interrupt()).map_err(system)?,
        };
        Ok(Self { ends, watcher: Watcher::new(watched).await.map_err(system)? })
    }
}

impl Ends {
    /// Resolves when the process is asked to end.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where a configuration comes from when it is read again.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// `--config`.
    pub path: Option<PathBuf>,
    /// What the command line lays over the file.
    pub flags: Flags,
    /// The files whose change leads to a reload, at first.
    pub watched: Vec<PathBuf>,
}

/// A running fanfold.
pub struct App {
    /// Where the proxy listens.
    pub proxy_address: SocketAddr,
    /// Where the admin side listens.
    pub admin_address: SocketAddr,
    drain: Drain,
    admin_drain: Drain,
    drain_times: (Duration, Duration),
    fixed: Fixed,
    snapshot: Arc<ArcSwap<Snapshot>>,
    keeper: Keeper,
    tool_servers: Arc<ToolServers>,
    shutdown: CancellationToken,
    turns: TaskTracker,
    listeners: TaskTracker,
    admin_listeners: TaskTracker,
    upkeep: CancellationToken,
}

impl App {
    /// Starts the tool servers, binds the listeners and begins to serve. `workers` serve the proxy's connections;
    /// the admin side's stay here, where they are in nobody's way.
    pub async fn start(loaded: &Loaded, catalog: Catalog, workers: &Workers) -> Result<Self, StartError> {
        let telemetry = if loaded.file.admin.metrics { Telemetry::new() } else { Telemetry::off() };
        let telemetry = telemetry.map_err(|e| StartError::System(e.to_string()))?;
        raise_open_files();
        let file = &loaded.file;
        let limits = &file.limits;
        let open = |secret: &Secret| config::secret::open(secret, &process_env);
        let store = Store::new(&file.store, open, capacity(limits), telemetry.clone())
            .map_err(|why| StartError::Store { setting: why.setting, message: why.message })?;
        store.connect().await;
        let store = Arc::new(store);
        let own = file.store.is_shared().then(|| Store::memory(&capacity(limits)));
        let ledger = Ledger::new(store.clone(), own, ledger_settings(limits, file.store.denies()));
        let (admin_listeners, upkeep) = (TaskTracker::new(), CancellationToken::new());
        let keeper = Keeper {
            telemetry: telemetry.clone(),
            store,
            turns: Queue::new(limits.turns_at_once),
            calls: Queue::new(limits.calls_at_once_in_process),
            ledger,
            runs: Runs::new(&file.runs),
            config: Arc::new(ArcSwap::from_pointee(shown(loaded))),
            workers: workers.clone(),
            runtime: Handle::current(),
            exporters: admin_listeners.clone(),
            upkeep: upkeep.clone(),
        };
        let catalog = Arc::new(catalog);
        log_remarks(&catalog);
        let first = snapshot(loaded, &catalog, &keeper, None)?;
        let snapshot = Arc::new(ArcSwap::from_pointee(first));
        let options = |setting, tls, connections, open, workers: &Workers| Options {
            setting,
            settings: file.server.clone(),
            tls,
            connections,
            open,
            workers: workers.clone(),
        };
        let connections = limits.connections as usize;
        let open = telemetry.connections.clone();
        let listener =
            Listener::bind(&file.listen, options("listen", file.tls.clone(), connections, open, workers))
                .await;
        let listener = listener.map_err(StartError::Bind)?;
        let noop = ::metrics::Gauge::noop();
        let admin =
            Listener::bind(&file.admin.listen, options("admin.listen", None, 256, noop, &Workers::default()))
                .await;
        let admin = admin.map_err(StartError::Bind)?;
        // Last: what is started must be ended again if something refuses.
        let tool_servers = ToolServers::start(catalog, snapshot.clone(), telemetry.clone()).await?;
        let (drain, admin_drain) = (Drain::new(), Drain::new());
        let (turns, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let app = Self {
            proxy_address: listener.local_addr(),
            admin_address: admin.local_addr(),
            drain: drain.clone(),
            admin_drain: admin_drain.clone(),
            drain_times: (file.server.drain_accept.0, file.server.drain.0),
            fixed: Fixed::new(file),
            snapshot: snapshot.clone(),
            keeper,
            tool_servers: Arc::new(tool_servers),
            shutdown: shutdown.clone(),
            turns: turns.clone(),
            listeners: TaskTracker::new(),
            admin_listeners,
            upkeep,
        };
        let proxy = Proxy {
            address: app.proxy_address,
            snapshot,
            servers: app.tool_servers.servers.clone(),
            drain: drain.clone(),
            tasks: turns,
            shutdown: Shutdown::new(shutdown),
            bodies: InFlightBudget::new(limits.bodies_in_flight.0),
            turns: app.keeper.turns.clone(),
        };
        let scheme = if file.tls.is_some() { "https" } else { "http" };
        let (servers, in_use) = (app.tool_servers.clone(), app.snapshot.clone());
        let in_use = move || {
            let parts = &in_use.load().parts;
            InUse { tools: parts.tools.clone(), content: parts.runs_content }
        };
        let inspector = Inspector {
            runs: app.keeper.runs.clone(),
            in_use: Arc::new(in_use),
            standings: Arc::new(move || servers.standings()),
            config: app.keeper.config.clone(),
            base_url: format!("{scheme}://{}/v1", app.proxy_address),
            tasks: app.admin_listeners.clone(),
        };
        let keeper = app.keeper.clone();
        let visitors = Visitors::new(app.admin_address, &file.admin.hosts);
        let admin_side = Admin::new(
            Arc::new(move || keeper.metrics()),
            app.tool_servers.readiness.clone(),
            drain.clone(),
            visitors,
            inspector,
        );
        let upstreams = app.snapshot.clone();
        app.tool_servers.readiness.remark_by("upstreams", move || {
            upstreams.load().routes.upstreams().map(|upstream| in_words(upstream)).collect()
        });
        app.listeners.spawn(listener.serve(Arc::new(proxy), drain));
        app.admin_listeners.spawn(admin.serve(Arc::new(admin_side), admin_drain));
        app.spawn_upkeep();
        app.spawn_store();
        let (tool_servers, stop) = (app.tool_servers.clone(), app.upkeep.clone());
        app.admin_listeners.spawn(async move { tool_servers.follow(stop).await });
        Ok(app)
    }

    fn spawn_upkeep(&self) {
        let (keeper, stop) = (self.keeper.clone(), self.upkeep.clone());
        let snapshot = self.snapshot.clone();
        self.admin_listeners.spawn(async move {
            let mut every = tokio::time::interval(UPKEEP);
            loop {
                tokio::select! {
                    _ = every.tick() => {}
                    () = stop.cancelled() => return,
                }
                keeper.telemetry.upkeep();
                keeper.telemetry.counter(metrics::LOG_LINES_LOST, &[]).absolute(log::lost());
                // Looking at an upstream tells the metric that its rest is over.
                snapshot.load().routes.upstreams().for_each(|upstream| _ = upstream.standing());
                keeper.store.sweep();
                keeper.ledger.sweep();
            }
        });
    }

    /// Keeps up the connection to a shared store, and reports how it is. It is not needed to be ready: what
    /// is kept in it is missed, and no more.
    fn spawn_store(&self) {
        let (store, stop) = (self.keeper.store.clone(), self.upkeep.clone());
        let readiness = self.tool_servers.readiness.clone();
        self.admin_listeners.spawn(async move {
            let tell = |health: &Health| {
                let line = match health {
                    Health::Up => {
                        tracing::info!("the store is up");
                        "up".to_owned()
                    }
                    Health::Down(why) => {
                        tracing::warn!(%why, "the store is down");
                        format!("down: {why}")
                    }
                };
                readiness.remark("store", vec![line]);
            };
            tokio::select! {
                () = store.keep_up(tell) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Metrics as text.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.keeper.metrics()
    }

    /// The tools that can be called now.
    #[must_use]
    pub fn tools(&self) -> Arc<Catalog> {
        self.snapshot.load().parts.tools.clone()
    }

    /// How every tool server is.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.tool_servers.standings()
    }

    /// Swaps in another configuration. Turns in flight finish on the old one, but call no tool that was taken
    /// away from their team. Listeners stay, and so does what teams hold, wait for and have used.
    pub fn reload(&self, loaded: &Loaded, catalog: Catalog) -> Result<(), StartError> {
        let catalog = Arc::new(catalog);
        log_remarks(&catalog);
        let before = self.snapshot.load_full();
        let new = snapshot(loaded, &catalog, &self.keeper, Some(&before))?;
        self.tool_servers.replace(&new, catalog);
        new.teams.take_effect(Some(&before.teams));
        self.keeper.turns.resize(new.limits.turns_at_once);
        self.keeper.calls.resize(new.limits.calls_at_once_in_process);
        self.keeper.config.store(Arc::new(shown(loaded)));
        let waiting = self.fixed.waiting(&loaded.file);
        if !waiting.is_empty() {
            tracing::warn!(settings = %waiting.join(", "), "these settings differ from those at the start; all or part of what they say takes a restart");
        }
        Ok(())
    }

    /// Serves until a signal ends it, reading the configuration again when it changes. Without an
    /// origin there is nothing to read again.
    pub async fn run(self, signals: Signals, origin: Option<Origin>) {
        let Signals { mut ends, mut watcher } = signals;
        loop {
            tokio::select! {
                () = ends.asked() => break,
                cause = watcher.changed() => match &origin {
                    Some(origin) => self.read_again(origin, cause, &mut watcher).await,
                    None => tracing::warn!("there is no configuration file to read again"),
                },
            }
        }
        self.drain.advance(Stage::NotReady);
        tracing::info!(
            "stopping: no longer ready, finishing what is in flight (a second signal ends it at once)"
        );
        let drained = self.drained();
        tokio::select! {
            () = drained => {}
            () = ends.asked() => self.drain.advance(Stage::Now),
        }
        self.end().await;
    }

    /// Walks through the drain; returns when nothing is in flight any more.
    async fn drained(&self) {
        let (accept, finish) = self.drain_times;
        let stages = self.drain.start(accept, finish);
        let idle = async {
            self.drain.reached(Stage::Refusing).await;
            self.turns.close();
            self.turns.wait().await;
        };
        tokio::select! {
            () = stages => {}
            () = idle => {}
        }
    }

    /// Stops at once: turns in flight get an error, then everything is cut.
    pub async fn stop(self) {
        self.end().await;
    }

    async fn end(self) {
        // Answers that are complete may still have to leave; the drain's last stage allows for it.
        self.drain.advance(Stage::Refusing);
        self.shutdown.cancel();
        self.turns.close();
        if tokio::time::timeout(GOODBYE, self.turns.wait()).await.is_err() {
            tracing::warn!(turns = self.turns.len(), "turns did not end in time and are cut");
        }
        self.drain.advance(Stage::Now);
        self.listeners.close();
        self.listeners.wait().await;
        let parts = self.snapshot.load().parts.clone();
        let (tools, audit) = (&parts.tools, &parts.audit);
        self.upkeep.cancel();
        let ended = async { tokio::join!(tools.settled(), self.tool_servers.stop()) };
        if tokio::time::timeout(GOODBYE, ended).await.is_err() {
            tracing::warn!("tools did not end in time");
        }
        if let Some(audit) = audit
            && tokio::time::timeout(GOODBYE, audit.flush()).await.is_err()
        {
            tracing::error!("the last records of the audit log may be missing: the disk is too slow");
        }
        self.admin_drain.advance(Stage::Now);
        self.admin_listeners.close();
        self.admin_listeners.wait().await;
    }

    async fn read_again(&self, origin: &Origin, cause: Cause, watcher: &mut Watcher) {
        let from = origin.clone();
        let read = tokio::task::spawn_blocking(move || {
            config::load(from.path.as_deref(), &process_env, &from.flags)
        })
        .await;
        let gauge = self.keeper.telemetry.gauge(metrics::RELOAD_SUCCESS, &[]);
        let failed = |why: &str| {
            tracing::error!("the configuration was read again and is not used; the one before stays: {why}");
            gauge.set(0.0);
        };
        match read {
            Ok(Ok((loaded, catalog))) => match self.reload(&loaded, catalog) {
                Ok(()) => {
                    watcher.watch(loaded.watched()).await;
                    gauge.set(1.0);
                    tracing::info!(?cause, "the configuration was read again and is used from now on");
                }
                Err(error) => failed(&error.to_string()),
            },
            Ok(Err(problems)) => failed(&problems.to_string()),
            Err(error) => failed(&error.to_string()),
        }
    }
}

/// How an upstream stands, for operators.
fn in_words(upstream: &Upstream) -> String {
    let standing = upstream.standing();
    let mut text = match standing.state {
        State::Closed => format!("{} is asked", upstream.name),
        State::Probing => format!("{} failed; the next question shows whether it is back", upstream.name),
        State::Open(rest) => {
            format!("{} failed too often and is left alone for {}s", upstream.name, rest.as_secs() + 1)
        }
    };
    if let (keys @ 2.., usable) = standing.keys {
        text.push_str(&format!("; {usable} of its {keys} keys can be used"));
    }
    text
}

/// Raises the soft limit of open files to the hard one: thousands of connections need it.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files stays low");
        }
    }
}
