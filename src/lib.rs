//! fanfold: an OpenAI-compatible reverse proxy that executes tools, in parallel.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod engine;
pub mod policy;
pub mod relay;
pub mod server;
pub mod sse;
pub mod store;
pub mod team;
pub mod telemetry;
pub mod tools;
pub mod units;
pub mod upstream;
pub mod wire;
