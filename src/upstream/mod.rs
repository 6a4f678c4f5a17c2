//! Picks an upstream, sends one ask, delivers its reply as what the engine hears.
//!
//! ```text
//! Routes::of(model) ─▶ Route ─▶ Upstream::ask ─▶ Reply::next ─▶ Accepted · Pieces · Ended · Failed
//!                                  └─ Upstream::forward ─▶ a response whose bytes go through
//! ```
//!
//! An event stream is many pieces and a JSON body is one. A failure says what happened in the
//! words of [`crate::wire::failure`]; whether it is asked again is for others to decide.

mod client;
mod connect;
mod fault;
mod reply;
mod route;
pub mod settings;
mod upload;

pub use client::{AskHead, BuildError, Sent, Upstream};
pub use fault::retry_after;
pub use reply::{Expect, Heard, Reply};
pub use route::{Route, Routes};
