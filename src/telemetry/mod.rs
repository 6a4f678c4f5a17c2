//! Names and writes metrics and logs.

mod handles;
mod json_lines;
pub mod log;
pub mod metrics;

pub use metrics::Telemetry;
