//! Turns a key into a team.

pub mod settings;
