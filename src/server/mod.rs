//! Accepts, reads, answers, drains.

pub mod settings;
