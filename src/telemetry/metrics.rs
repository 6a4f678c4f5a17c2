//! Every metric: its name, kind, help and labels, in one table; and the handles that write them.
//!
//! Label values come from closed sets: configured teams, routes, upstreams and tools, and words of
//! this program.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::handles::{Handles, Pair};

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the names are Prometheus's")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// The name.
    pub name: &'static str,
    /// The kind, and a histogram's buckets.
    pub kind: Kind,
    /// The labels, separated by spaces.
    pub labels: &'static str,
    /// What it counts.
    pub help: &'static str,
}

const SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0];
const SHORT: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];
const WAITS: &[f64] = &[0.000_1, 0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0];
const COUNTS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 16.0, 32.0, 64.0];

macro_rules! table {
    ($($const:ident $name:literal $kind:expr, $labels:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $const: &str = $name;)*
        /// Every metric there is.
        pub const TABLE: &[Row] = &[$(Row { name: $name, kind: $kind, labels: $labels, help: $help }),*];
    };
}

table! {
    REQUEST_SECONDS "gen_ai_server_request_duration_seconds" Kind::Histogram(SECONDS), "team model outcome", "Duration of a client request until its answer was complete.";
    FIRST_TOKEN_SECONDS "gen_ai_server_time_to_first_token_seconds" Kind::Histogram(SECONDS), "team model outcome", "Time from a client request to the first content of its answer.";
    OPERATION_SECONDS "gen_ai_client_operation_duration_seconds" Kind::Histogram(SECONDS), "upstream model outcome", "Duration of one round: a question to the upstream until its reply was complete.";
    TOKENS "gen_ai_client_token_usage_total" Kind::Counter, "team model token_type", "Tokens that upstreams reported.";
    INFERENCE_CALLS "gen_ai_invoke_agent_inference_calls" Kind::Histogram(COUNTS), "team", "Rounds per turn.";
    AGENT_TOOL_CALLS "gen_ai_invoke_agent_tool_calls" Kind::Histogram(COUNTS), "team", "Owned tool calls per turn.";
    TOOL_SECONDS "gen_ai_execute_tool_duration_seconds" Kind::Histogram(SECONDS), "tool outcome", "Duration of one tool call, waiting for a slot left out.";
    TOOL_WAIT_SECONDS "fanfold_tool_wait_seconds" Kind::Histogram(WAITS), "tool", "Time a tool call waited for a slot.";
    TURN_WAIT_SECONDS "fanfold_turn_wait_seconds" Kind::Histogram(WAITS), "team", "Time a request waited for a place among the turns, if it had to.";
    TURNS_WAITING "fanfold_turns_waiting" Kind::Gauge, "team", "Requests that wait for a place among the turns.";
    DECISIONS "fanfold_parallel_decisions_total" Kind::Counter, "decision reason", "Decisions of the strict-versus-parallel rule.";
    COST "fanfold_cost_millionths_total" Kind::Counter, "team model currency", "Cost by the configured prices, in millionths of the currency.";
    QUOTA_DENIALS "fanfold_quota_denials_total" Kind::Counter, "team quota", "Requests, tool calls and further rounds that a quota did not admit.";
    SECONDS_SAVED "fanfold_tool_seconds_saved_total" Kind::Counter, "team", "Sum of tool call times minus the wall time of their batches.";
    OVERHEAD_SECONDS "fanfold_overhead_seconds" Kind::Histogram(SHORT), "", "Time of a turn in which neither the upstream nor a tool was at work.";
    TURNS_IN_FLIGHT "fanfold_turns_in_flight" Kind::Gauge, "", "Turns that are running.";
    CALLS_IN_FLIGHT "fanfold_tool_calls_in_flight" Kind::Gauge, "", "Tool calls that are running.";
    CONNECTIONS "fanfold_connections" Kind::Gauge, "", "Open client connections.";
    TASKS "fanfold_tasks" Kind::Gauge, "", "Tasks of the process that have not ended.";
    TURNS "fanfold_turns_total" Kind::Counter, "team outcome", "Turns that ended.";
    MIXED_REPLIES "fanfold_mixed_replies_total" Kind::Counter, "", "Replies with owned and foreign calls.";
    PARKED "fanfold_parked_entries" Kind::Gauge, "", "Parked results of mixed replies in this process's memory.";
    LEDGER "fanfold_ledger_entries" Kind::Gauge, "", "What the run ledger has in this process's memory: records, and runs that have not ended.";
    STORE_UP "fanfold_store_up" Kind::Gauge, "", "Whether the store answers (1) or not (0); memory always does.";
    STORE_SECONDS "fanfold_store_operation_duration_seconds" Kind::Histogram(SHORT), "operation", "Duration of an operation of a shared store.";
    STORE_ERRORS "fanfold_store_errors_total" Kind::Counter, "operation", "Operations of a shared store that failed.";
    LIMIT_HITS "fanfold_limit_hits_total" Kind::Counter, "limit", "Limits that were reached.";
    DISCONNECTS "fanfold_client_disconnects_total" Kind::Counter, "", "Clients that left before their answer was complete.";
    CLIENT_RETRIES "fanfold_client_retries_total" Kind::Counter, "", "Requests that an SDK marked as its own repetition.";
    REPETITIONS "fanfold_repeated_requests_total" Kind::Counter, "result", "Requests that repeat another by key or by an SDK's mark, by what they got: begun, joined, replayed, refused, superseded.";
    UPSTREAM_RETRIES "fanfold_upstream_retries_total" Kind::Counter, "reason", "Questions that were asked again.";
    UPSTREAM_STATE "fanfold_upstream_state" Kind::Gauge, "upstream", "Whether questions go to an upstream (0), one goes to see whether it is back (1), or none (2).";
    UPSTREAM_SHED "fanfold_upstream_shed_total" Kind::Counter, "upstream", "Questions an upstream was spared because it failed too often.";
    RETRIES_WITHHELD "fanfold_upstream_retries_withheld_total" Kind::Counter, "upstream", "Questions that were not asked again because enough had been.";
    FAILOVERS "fanfold_upstream_failovers_total" Kind::Counter, "upstream reason", "Questions that went to the next upstream of their route; the label names the one before.";
    EFFORT_LEARNED "fanfold_effort_refused_total" Kind::Counter, "upstream", "Refusals of tools beside a reasoning_effort that fanfold learned from.";
    PARALLEL_LEARNED "fanfold_parallel_refused_total" Kind::Counter, "upstream", "Refusals of parallel_tool_calls that fanfold learned from.";
    CREDENTIALS_REFUSED "fanfold_upstream_credentials_refused_total" Kind::Counter, "upstream", "Refusals of fanfold's own credentials.";
    AUDIT_UP "fanfold_audit_up" Kind::Gauge, "", "Whether the audit log can be written (1) or not (0); only there with `audit`.";
    AUDIT_NOT_WRITTEN "fanfold_audit_not_written_total" Kind::Counter, "", "Audit records that could not be written.";
    TOOL_SERVERS_UP "fanfold_tool_servers_up" Kind::Gauge, "server", "Whether a tool server can be called (1) or not (0).";
    TOOLS_WAITING "fanfold_tools_waiting" Kind::Gauge, "server", "Tools of a pinned server that are new or have changed and wait to be accepted.";
    SPANS_EXPORTED "fanfold_spans_exported_total" Kind::Counter, "", "Spans that the collector took; only there with `traces`.";
    SPANS_DROPPED "fanfold_spans_dropped_total" Kind::Counter, "reason", "Spans that did not reach the collector: no room for them (full), refused, unreachable, or stopped before they were sent.";
    LOG_LINES_LOST "fanfold_log_lines_lost_total" Kind::Counter, "", "Log lines that were lost because nobody read standard error.";
    RELOAD_SUCCESS "fanfold_config_reload_success" Kind::Gauge, "", "Whether the last reading of the configuration succeeded (1) or not (0).";
    BUILD_INFO "fanfold_build_info" Kind::Gauge, "version", "Always 1; the label tells the version.";
}

/// The label value of everything that is not configured.
pub const OTHER: &str = "other";

type TeamAndModel = (Arc<str>, Arc<str>);

/// Writes metrics, and gives them as text. Clones share them.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

impl Deref for Telemetry {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// What all clones of [`Telemetry`] share.
pub struct Inner {
    /// Whether anything is counted at all.
    counts: bool,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    series: Series,
    /// Milliseconds that are not yet whole seconds, by team.
    saved: DashMap<Arc<str>, u64>,
    /// Cost that is not yet a whole millionth, in millionths of it, by team and model.
    cost: DashMap<TeamAndModel, u128>,
    /// `fanfold_turns_in_flight`.
    pub turns_in_flight: Gauge,
    /// `fanfold_tool_calls_in_flight`.
    pub calls_in_flight: Gauge,
    /// `fanfold_connections`.
    pub connections: Gauge,
    /// `fanfold_tasks`.
    pub tasks: Gauge,
    /// `fanfold_parked_entries`.
    pub parked: Gauge,
    /// `fanfold_ledger_entries`.
    pub ledger: Gauge,
}

/// The handles that were asked for so far.
struct Series {
    counters: Handles<Counter>,
    gauges: Handles<Gauge>,
    histograms: Handles<Histogram>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

const METADATA: Metadata<'static> = Metadata::new("fanfold", Level::INFO, None);

impl Telemetry {
    /// All metrics, described and at zero.
    ///
    /// # Errors
    /// The exporter refuses the buckets of the table.
    pub fn new() -> Result<Self, BuildError> {
        Ok(Self(Arc::new(Inner::new()?)))
    }

    /// Nothing is counted, and there is nothing to be seen.
    ///
    /// # Errors
    /// As [`Telemetry::new`].
    pub fn off() -> Result<Self, BuildError> {
        Ok(Self(Arc::new(Inner {
            counts: false,
            turns_in_flight: Gauge::noop(),
            calls_in_flight: Gauge::noop(),
            connections: Gauge::noop(),
            parked: Gauge::noop(),
            ledger: Gauge::noop(),
            ..Inner::new()?
        })))
    }
}

impl Inner {
    fn new() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for row in TABLE {
            if let Kind::Histogram(buckets) = row.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(row.name.into()), buckets)?;
            }
        }
        let recorder = builder.build_recorder();
        for row in TABLE {
            describe(&recorder, row);
        }
        let handle = recorder.handle();
        let gauge = |name| recorder.register_gauge(&Key::from_name(name), &METADATA);
        let inner = Self {
            counts: true,
            turns_in_flight: gauge(TURNS_IN_FLIGHT),
            calls_in_flight: gauge(CALLS_IN_FLIGHT),
            connections: gauge(CONNECTIONS),
            tasks: gauge(TASKS),
            parked: gauge(PARKED),
            ledger: gauge(LEDGER),
            saved: DashMap::default(),
            cost: DashMap::default(),
            recorder,
            handle,
            series: Series { counters: Handles::new(), gauges: Handles::new(), histograms: Handles::new() },
        };
        inner.gauge(BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        inner.gauge(RELOAD_SUCCESS, &[]).set(1.0);
        inner.gauge(STORE_UP, &[]).set(1.0);
        for name in [MIXED_REPLIES, DISCONNECTS, CLIENT_RETRIES, LOG_LINES_LOST] {
            inner.counter(name, &[]).absolute(0);
        }
        for gauge in [
            &inner.turns_in_flight,
            &inner.calls_in_flight,
            &inner.connections,
            &inner.tasks,
            &inner.parked,
            &inner.ledger,
        ] {
            gauge.set(0.0);
        }
        Ok(inner)
    }

    /// A counter with these labels.
    pub fn counter(&self, name: &'static str, labels: &[Pair<'_>]) -> Counter {
        if !self.counts {
            return Counter::noop();
        }
        let register = || self.recorder.register_counter(&key(name, labels), &METADATA);
        self.series.counters.of(name, labels, register)
    }

    /// A gauge with these labels.
    pub fn gauge(&self, name: &'static str, labels: &[Pair<'_>]) -> Gauge {
        if !self.counts {
            return Gauge::noop();
        }
        let register = || self.recorder.register_gauge(&key(name, labels), &METADATA);
        self.series.gauges.of(name, labels, register)
    }

    /// Adds to a counter with these labels.
    pub fn count(&self, name: &'static str, labels: &[Pair<'_>], more: u64) {
        if !self.counts {
            return;
        }
        let register = || self.recorder.register_counter(&key(name, labels), &METADATA);
        self.series.counters.with(name, labels, register, |counter| counter.increment(more));
    }

    /// Records a value in a histogram with these labels.
    pub fn record(&self, name: &'static str, labels: &[Pair<'_>], value: f64) {
        if !self.counts {
            return;
        }
        let register = || self.recorder.register_histogram(&key(name, labels), &METADATA);
        self.series.histograms.with(name, labels, register, |histogram| histogram.record(value));
    }

    /// Records a duration, in seconds.
    pub fn seconds(&self, name: &'static str, labels: &[Pair<'_>], took: Duration) {
        self.record(name, labels, took.as_secs_f64());
    }

    /// Adds to `fanfold_tool_seconds_saved_total`. Counters count whole seconds here; the rest is
    /// carried over to the next time.
    pub fn saved(&self, team: &Arc<str>, saved: Duration) {
        if !self.counts {
            return;
        }
        let millis = u64::try_from(saved.as_millis()).unwrap_or(0);
        let mut carried = self.saved.entry(team.clone()).or_default();
        *carried += millis;
        let seconds = *carried / 1000;
        *carried %= 1000;
        drop(carried);
        self.count(SECONDS_SAVED, &[("team", team)], seconds);
    }

    /// Adds to `fanfold_cost_millionths_total`, in millionths of a millionth of the currency. What is no whole
    /// millionth is carried over to the next time.
    pub fn cost(&self, team: &Arc<str>, model: &Arc<str>, currency: &Arc<str>, cost: u128) {
        if !self.counts {
            return;
        }
        let mut carried = self.cost.entry((team.clone(), model.clone())).or_default();
        *carried = carried.saturating_add(cost);
        let millionths = u64::try_from(*carried / 1_000_000).unwrap_or(u64::MAX);
        *carried %= 1_000_000;
        drop(carried);
        let labels = [("team", &**team), ("model", &**model), ("currency", &**currency)];
        self.count(COST, &labels, millionths);
    }

    /// All metrics in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        if !self.counts {
            return "# metrics are off: admin.metrics\n".into();
        }
        self.handle.render()
    }

    /// Has to be called every few seconds, or histograms grow without end.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn key(name: &'static str, labels: &[Pair<'_>]) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}

fn describe(recorder: &PrometheusRecorder, row: &Row) {
    let (name, help) = (KeyName::from(row.name), SharedString::from(row.help));
    match row.kind {
        Kind::Counter => recorder.describe_counter(name, None::<Unit>, help),
        Kind::Gauge => recorder.describe_gauge(name, None, help),
        Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_counts_nothing_and_says_so() {
        let telemetry = Telemetry::off().unwrap();
        telemetry.count(TURNS, &[("team", "a"), ("outcome", "ok")], 1);
        telemetry.seconds(TOOL_SECONDS, &[], Duration::from_secs(1));
        telemetry.saved(&"a".into(), Duration::from_secs(5));
        telemetry.cost(&"a".into(), &"m".into(), &"USD".into(), 5_000_000);
        telemetry.turns_in_flight.increment(1.0);
        assert_eq!(telemetry.render(), "# metrics are off: admin.metrics\n");
        assert!(
            telemetry.handle.render().contains("fanfold_turns_in_flight 0"),
            "{}",
            telemetry.handle.render()
        );
    }

    #[test]
    fn a_histogram_has_the_buckets_of_the_table_and_its_help() {
        let telemetry = Telemetry::new().unwrap();
        telemetry.seconds(TOOL_SECONDS, &[("tool", "t"), ("outcome", "ok")], Duration::from_millis(30));
        let text = telemetry.render();
        assert!(
            text.contains(
                r#"gen_ai_execute_tool_duration_seconds_bucket{tool="t",outcome="ok",le="0.05"} 1"#
            ),
            "{text}"
        );
        assert!(
            text.contains("# HELP gen_ai_execute_tool_duration_seconds Duration of one tool call"),
            "{text}"
        );
        assert!(text.contains("# TYPE fanfold_turns_in_flight gauge"), "{text}");
    }

    #[test]
    fn names_are_unique_and_follow_prometheus_rules() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|other| other.name != row.name), "{}", row.name);
            assert_eq!(row.name.ends_with("_total"), row.kind == Kind::Counter, "{}", row.name);
            assert!(!row.help.is_empty());
        }
    }
}
