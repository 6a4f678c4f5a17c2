//! Tool servers for a command that needs them only for a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Exit, out};
use crate::config::{Loaded, did_you_mean};
use crate::policy::pattern::any_may_begin;
use crate::tools::{Catalog, Condition, Servers, Standing, Withheld, pins};

/// How long servers may take to start. Their own `start_timeout` is usually reached before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the end of the servers is waited for.
const ENDING: Duration = Duration::from_secs(3);
/// Whose servers are started when nobody says for which team: the team of a fanfold without teams.
const NOBODY: &str = "default";

/// Servers that run, and what they offer.
pub(super) struct Running {
    servers: Servers,
    /// The catalog, with the tools of the servers.
    pub(super) catalog: Catalog,
    /// How the servers are.
    pub(super) standings: Vec<Standing>,
}

impl Running {
    /// Starts the servers of a catalog, as far as they are of everybody or of these teams, and waits until each was
    /// tried. As when fanfold serves, none is started for a team that may use none of its tools.
    pub(super) async fn start(loaded: &Loaded, catalog: &Catalog, teams: &[Arc<str>]) -> Self {
        let servers = Servers::new();
        servers.adopt(catalog);
        for team in teams {
            let may_use = loaded.file.teams.get(&**team).and_then(|team| team.tools.as_ref());
            servers.need(catalog, team, |beginning| {
                may_use.is_none_or(|patterns| any_may_begin(patterns, beginning))
            });
        }
        servers.tried(catalog, PATIENCE).await;
        let (catalog, standings) = (servers.view(catalog), servers.standings(catalog));
        Self { servers, catalog, standings }
    }

    /// Says which servers are not up, and which tools are hidden by others or wait to be accepted.
    pub(super) fn complain(&self) {
        for standing in self.standings.iter().filter(|standing| !up(standing)) {
            out::report(&format!("warning: the tool server {standing}\n"));
        }
        for tool in self.catalog.not_offered() {
            match tool.why {
                Withheld::Clash(_) | Withheld::New | Withheld::Changed | Withheld::Unfit(_) => {
                    out::report(&format!("warning: {tool}\n"));
                }
                Withheld::NotChosen => {}
            }
        }
    }

    /// The servers that are not up and could have a tool of this name, if they were; all that are not up, if there is
    /// no tool at all.
    pub(super) fn missed(&self, name: &str) -> Vec<&Standing> {
        let nothing = self.catalog.every().next().is_none();
        let down = self.standings.iter().filter(|standing| !up(standing));
        down.filter(|standing| nothing || self.catalog.could_be_of(name, &standing.server)).collect()
    }

    /// The digests of the tools of pinned servers.
    pub(super) fn digests(&self) -> pins::All {
        self.servers.digests(&self.catalog)
    }

    /// Ends the servers.
    pub(super) async fn stop(&self) {
        let _ended = tokio::time::timeout(ENDING, self.servers.stop()).await;
    }
}

/// Whether a server can be called, or could if a team needed it.
pub(super) fn up(standing: &Standing) -> bool {
    matches!(standing.condition, Condition::Up { .. } | Condition::Idle)
}

/// The team of `--team`. `Err`: there is no such team, and that has been said.
pub(super) fn team(loaded: &Loaded, name: Option<&str>) -> Result<Arc<str>, Exit> {
    let Some(name) = name else { return Ok(NOBODY.into()) };
    if loaded.file.teams.contains_key(name) {
        return Ok(name.into());
    }
    let known: Vec<&str> = loaded.file.teams.keys().map(String::as_str).collect();
    let more = did_you_mean(name, known.iter().copied()).unwrap_or_else(|| match known.is_empty() {
        true => "there are none in the configuration".into(),
        false => format!("there are {}", known.join(", ")),
    });
    out::report(&format!("error: there is no team `{name}`: {more}\n"));
    Err(Exit::Usage)
}

/// The files of digests, by the servers that are pinned.
pub(super) fn pin_files(loaded: &Loaded) -> BTreeMap<&str, &str> {
    let pinned = loaded.file.tools.iter().filter(|(_, tool)| tool.pin);
    pinned.map(|(name, tool)| (name.as_str(), tool.pins.as_deref().unwrap_or(pins::FILE))).collect()
}
