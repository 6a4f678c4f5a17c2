//! Performs the engine's actions until the turn ends.

pub mod body;
