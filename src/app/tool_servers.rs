//! Follows the tool servers: when one comes, goes or changes its tools, requests from then on see it.
//!
//! Also tells the operator: a gauge per server, and readiness, which only a required server can end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::admin::readiness::Readiness;
use crate::server::proxy::Snapshot;
use crate::telemetry::{Telemetry, metrics};
use crate::tools::{Catalog, Condition, Servers, Standing};

/// How long the start waits for servers that are not required.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often connections of teams are looked at that nobody needs.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// The check, and the remark, of readiness.
const NAME: &str = "tool_servers";

/// What follows.
pub(super) struct ToolServers {
    pub(super) servers: Arc<Servers>,
    /// The catalog of the configuration in use, without what servers offer. Whoever swaps the snapshot holds it.
    base: Mutex<Arc<Catalog>>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    telemetry: Telemetry,
    pub(super) readiness: Readiness,
}

impl ToolServers {
    /// Starts the servers of a catalog and waits for them a while.
    ///
    /// # Errors
    /// A required server does not come up, or two servers that did have a tool of the same name.
    pub(super) async fn start(
        catalog: Arc<Catalog>,
        snapshot: Arc<ArcSwap<Snapshot>>,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        let servers = Arc::new(Servers::new());
        servers.adopt(&catalog);
        servers.tried(&catalog, PATIENCE).await;
        let missing = servers.standings(&catalog).into_iter().find(|standing| !fine(standing));
        if let Some(standing) = missing {
            servers.stop().await;
            let why = match standing.condition {
                Condition::Down(why) => why.to_string(),
                Condition::Idle | Condition::Starting | Condition::Up { .. } => "it did not start".into(),
            };
            return Err(StartError::ToolServer { name: standing.server.to_string(), why });
        }
        let view = servers.view(&catalog);
        let clashes: Vec<String> =
            view.not_offered().iter().filter(|tool| tool.clashes()).map(ToString::to_string).collect();
        if !clashes.is_empty() {
            servers.stop().await;
            return Err(StartError::Clash(clashes.join("\n")));
        }
        let readiness = Readiness::new();
        let following = Self { servers, base: Mutex::new(catalog), snapshot, telemetry, readiness };
        following.refresh();
        Ok(following)
    }

    /// Swaps in a snapshot that was made of another catalog, with what servers offer.
    pub(super) fn replace(&self, snapshot: &Snapshot, catalog: Arc<Catalog>) {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        self.servers.adopt(&catalog);
        *base = catalog;
        let news = *self.servers.news().borrow();
        let view = self.servers.view(&base);
        self.tell(&view);
        self.snapshot.store(Arc::new(snapshot.with_tools(view)));
        self.servers.seen(news);
    }

    /// Follows until told to stop. Several changes at once are one.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let mut news = self.servers.news();
        let mut every = tokio::time::interval(IDLE_CHECK);
        // What happened since the start.
        self.refresh();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = news.changed() => if changed.is_err() { return },
                _ = every.tick() => {
                    let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    self.servers.end_idle(&base);
                    continue;
                }
            }
            self.refresh();
        }
    }

    /// Ends all servers.
    pub(super) async fn stop(&self) {
        self.servers.stop().await;
    }

    /// How every server is.
    pub(super) fn standings(&self) -> Vec<Standing> {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        self.servers.standings(&base)
    }

    fn refresh(&self) {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *self.servers.news().borrow();
        if base.servers() > 0 {
            let view = self.servers.view(&base);
            self.tell(&view);
            self.snapshot.store(Arc::new(self.snapshot.load().with_tools(view)));
        }
        self.servers.seen(news);
    }

    fn tell(&self, catalog: &Catalog) {
        let standings = self.servers.standings(catalog);
        let mut servers: BTreeMap<&str, (bool, u32)> = BTreeMap::new();
        for standing in &standings {
            let up = matches!(standing.condition, Condition::Up { .. } | Condition::Idle);
            let (all_up, _) = servers.entry(&standing.server).or_insert((true, 0));
            *all_up &= up;
        }
        for tool in catalog.not_offered().iter().filter(|tool| tool.waits()) {
            let (_, waiting) = servers.entry(&tool.server).or_insert((true, 0));
            *waiting += 1;
        }
        for (server, (up, waiting)) in servers {
            let labels = [("server", server)];
            self.telemetry.gauge(metrics::TOOL_SERVERS_UP, &labels).set(f64::from(u8::from(up)));
            self.telemetry.gauge(metrics::TOOLS_WAITING, &labels).set(f64::from(waiting));
        }
        let missing: Vec<&str> =
            standings.iter().filter(|standing| !fine(standing)).map(|standing| &*standing.server).collect();
        let check = if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("required, but not up: {}", missing.join(", ")))
        };
        match standings.is_empty() {
            true => self.readiness.unset(NAME),
            false => self.readiness.set(NAME, check),
        }
        let waiting = catalog.not_offered().iter().filter(|tool| tool.waits()).map(ToString::to_string);
        self.readiness.remark(NAME, standings.iter().map(ToString::to_string).chain(waiting).collect());
    }
}

/// Whether fanfold can do without, or need not.
fn fine(standing: &Standing) -> bool {
    !standing.required || matches!(standing.condition, Condition::Up { .. })
}
