//! Names and writes metrics, logs and traces.

mod handles;
mod json_lines;
pub mod log;
pub mod metrics;
pub mod redact;
pub mod traces;

pub use metrics::Telemetry;
