//! Knows which tools exist and runs one call within its limits.

pub mod settings;
