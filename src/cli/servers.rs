//! Tool servers for a command that needs them only for a moment.

use std::time::Duration;

use super::out;
use crate::tools::{Catalog, Condition, Servers, Standing};

/// How long servers may take to start. Their own `start_timeout` is usually reached before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of the servers is waited for.
const ENDING: Duration = Duration::from_secs(3);

/// Servers that run, and what they offer.
pub(super) struct Running {
    servers: Servers,
    /// The catalog, with the tools of the servers.
    pub(super) catalog: Catalog,
    /// How the servers are.
    pub(super) standings: Vec<Standing>,
}

impl Running {
    /// Starts the servers of a catalog and waits until each was tried.
    pub(super) async fn start(catalog: &Catalog) -> Self {
        let servers = Servers::new();
        servers.adopt(catalog);
        servers.tried(catalog, PATIENCE).await;
        let (catalog, standings) = (servers.view(catalog), servers.standings(catalog));
        Self { servers, catalog, standings }
    }

    /// Says which servers are not up, and which tools are hidden by others.
    pub(super) fn complain(&self) {
        for standing in self.standings.iter().filter(|standing| !up(standing)) {
            out::report(&format!("warning: the tool server {standing}\n"));
        }
        for clash in self.catalog.clashes() {
            out::report(&format!("warning: {clash}\n"));
        }
    }

    /// Ends the servers.
    pub(super) async fn stop(&self) {
        let _ended = tokio::time::timeout(ENDING, self.servers.stop()).await;
    }
}

/// Whether a server can be called.
pub(super) fn up(standing: &Standing) -> bool {
    matches!(standing.condition, Condition::Up { .. })
}
