//! fanfold: an OpenAI-compatible reverse proxy that executes tools, in parallel.

pub mod cli;
pub mod config;
pub mod demo;
pub mod policy;
pub mod server;
pub mod team;
pub mod tools;
pub mod units;
pub mod upstream;
pub mod wire;
