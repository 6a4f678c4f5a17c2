//! Names and writes metrics and logs.

pub mod log;
pub mod metrics;

pub use metrics::Telemetry;
