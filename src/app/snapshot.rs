//! What a configuration amounts to, and what of a process outlives one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use secrecy::ExposeSecret;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use crate::audit::Audit;
use crate::config::file::File;
use crate::config::{self, Loaded, process_env};
use crate::ledger::{self, Ledger};
use crate::policy::settings::Limits;
use crate::relay::{Parts, Slots};
use crate::runs::Runs;
use crate::server::proxy::Snapshot;
use crate::store::{Bounds, Capacity, Store};
use crate::team::fair::Queue;
use crate::team::{Defaults, Teams};
use crate::telemetry::Telemetry;
use crate::telemetry::redact::Redact;
use crate::telemetry::traces::{Tracer, Wrong, resolve};
use crate::tools::Catalog;
use crate::units::Secret;
use crate::upstream::{Routes, Setup, Upstream};
use crate::workers::Workers;

/// The most operations of OpenAPI documents the log names as left out.
const MOST_REMARKS: usize = 20;

/// What outlives a reload.
#[derive(Clone)]
pub(super) struct Keeper {
    pub(super) telemetry: Telemetry,
    pub(super) store: Arc<Store>,
    /// The places of turns.
    pub(super) turns: Queue,
    /// The places of calls.
    pub(super) calls: Queue,
    pub(super) ledger: Arc<Ledger>,
    pub(super) runs: Option<Arc<Runs>>,
    /// The settings in use, for the inspector.
    pub(super) config: Arc<ArcSwap<Box<RawValue>>>,
    /// Who serves connections.
    pub(super) workers: Workers,
    /// Who does the rest.
    pub(super) runtime: Handle,
    /// Who waits for what is sent to a collector.
    pub(super) exporters: TaskTracker,
    /// Cancelled when nothing more is to be done beside serving.
    pub(super) upkeep: CancellationToken,
}

impl Keeper {
    /// Metrics as text; what is not counted as it happens is looked at now.
    pub(super) fn metrics(&self) -> String {
        let tasks = self.runtime.metrics().num_alive_tasks() + self.workers.tasks();
        #[expect(clippy::cast_precision_loss, reason = "gauges")]
        {
            self.telemetry.tasks.set(tasks as f64);
            self.telemetry.parked.set(self.store.parked() as f64);
            self.telemetry.ledger.set(self.ledger.entries() as f64);
        }
        self.telemetry.render()
    }
}

pub(super) fn ledger_settings(limits: &Limits, deny: bool) -> ledger::Settings {
    ledger::Settings {
        age: limits.ledger_for.0,
        answer: limits.ledger_answer.0,
        lease: limits.ledger_lease.0,
        deny,
    }
}

/// What the store may keep.
pub(super) fn capacity(limits: &Limits) -> Capacity {
    let parked = Bounds {
        entries: limits.parked_entries as usize,
        bytes: limits.parked_bytes.0,
        age: limits.parked_for.0,
    };
    let records = Bounds {
        entries: limits.ledger_entries as usize,
        bytes: limits.ledger_bytes.0,
        age: limits.ledger_for.0,
    };
    Capacity { parked, records }
}

/// The settings as the inspector shows them.
pub(super) fn shown(loaded: &Loaded) -> Box<RawValue> {
    let shown = serde_json::json!({
        "source": loaded.name(),
        "settings": loaded.effective().unwrap_or_default(),
        "warnings": loaded.warnings().collect::<Vec<_>>(),
    });
    serde_json::value::to_raw_value(&shown).unwrap_or_default()
}

/// What a configuration amounts to. Of what was in use `before`, the audit log's chain goes on, teams keep what
/// they share, and upstreams whose settings stay remember what they learned.
pub(super) fn snapshot(
    loaded: &Loaded,
    catalog: &Arc<Catalog>,
    keeper: &Keeper,
    before: Option<&Snapshot>,
) -> Result<Snapshot, StartError> {
    let file = &loaded.file;
    let open = |secret: &Secret| {
        config::secret::open(secret, &process_env).map(|secret| secret.expose_secret().to_owned())
    };
    let known = |name: &str| before.and_then(|before| before.routes.upstreams().find(|u| *u.name == *name));
    let mut upstreams = BTreeMap::new();
    for (name, settings) in &file.upstreams {
        let of_team = |(team, of): (&String, &crate::team::settings::Settings)| {
            Some((team.clone(), of.upstream_keys.get(name)?.clone()))
        };
        let team_keys = file.teams.iter().filter_map(of_team).collect();
        let setup = Setup {
            team_keys: &team_keys,
            before: known(name).map(|upstream| &**upstream),
            telemetry: &keeper.telemetry,
        };
        let upstream = Upstream::new(name, settings, setup, open).map_err(|e| StartError::Upstream {
            name: name.clone(),
            setting: e.setting,
            message: e.message,
        })?;
        upstreams.insert(name.clone(), Arc::new(upstream));
    }
    let audited = before.and_then(|before| before.parts.audit.as_deref());
    let audit = file.audit.as_ref().map(|audit| Audit::open(audit, audited, &keeper.telemetry));
    let audit = audit.transpose().map_err(StartError::Audit)?.map(Arc::new);
    let redact = Redact::new(&file.redact).map_err(|wrong| {
        StartError::Redact(wrong.iter().map(|wrong| wrong.message.as_str()).collect::<Vec<_>>().join("; "))
    })?;
    let limits = Arc::new(file.limits.clone());
    let specs: Vec<_> = catalog.iter().map(|tool| tool.spec().clone()).collect();
    let of_tools = catalog.iter().filter_map(|tool| Some((tool.spec().name.clone(), tool.at_once()?)));
    let slots = Slots::new(keeper.calls.clone(), of_tools);
    let defaults = Defaults { calls_at_once: limits.calls_at_once_per_team };
    Ok(Snapshot {
        teams: Teams::new(&file.teams, &specs, defaults, before.map(|before| &before.teams)),
        routes: Routes::new(&file.routes, upstreams),
        parts: Arc::new(Parts {
            tools: catalog.clone(),
            slots: Arc::new(slots),
            ledger: keeper.ledger.clone(),
            audit,
            store: keeper.store.clone(),
            telemetry: keeper.telemetry.clone(),
            redact: Arc::new(redact),
            log_content: file.log.content,
            runs: keeper.runs.clone(),
            runs_content: file.runs.content,
            traces: tracer(file, keeper).map_err(StartError::Traces)?,
        }),
        policy: file.policy.clone(),
        limits,
        server: file.server.clone(),
        prices: Arc::new(file.prices.clone()),
        currency: file.currency.as_str().into(),
    })
}

/// What takes the spans of turns. A reload makes a new one; what the one before still has is sent when the last
/// turn that knows it is over.
fn tracer(file: &File, keeper: &Keeper) -> Result<Option<Arc<Tracer>>, String> {
    let Some(settings) = &file.traces else { return Ok(None) };
    let open = |secret: &Secret| {
        config::secret::open(secret, &process_env).map(|secret| secret.expose_secret().to_owned())
    };
    let in_words = |mistakes: Vec<Wrong>| {
        let each = mistakes.iter().map(|mistake| format!("traces.{}: {}", mistake.setting, mistake.message));
        each.collect::<Vec<_>>().join("; ")
    };
    let Some(resolved) = resolve(settings, &process_env, &open).map_err(in_words)? else { return Ok(None) };
    let (tracer, exporter) = Tracer::new(settings, resolved, &keeper.telemetry);
    keeper.exporters.spawn(exporter.run(keeper.upkeep.clone()));
    Ok(Some(Arc::new(tracer)))
}

/// Says which operations of OpenAPI documents are left out.
pub(super) fn log_remarks(catalog: &Catalog) {
    let remarks = catalog.remarks();
    for remark in remarks.iter().take(MOST_REMARKS) {
        tracing::warn!(document = &*remark.entry, "left out of an OpenAPI document: {}", remark.unmapped);
    }
    if remarks.len() > MOST_REMARKS {
        let more = remarks.len() - MOST_REMARKS;
        tracing::warn!("{more} more operations are left out: `fanfold check` lists them");
    }
}
