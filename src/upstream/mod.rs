//! Picks an upstream, sends one ask, delivers its reply.

pub mod settings;
