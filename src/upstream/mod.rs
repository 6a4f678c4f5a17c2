//! Picks an upstream, sends one ask, delivers its reply as what the engine hears.
//!
//! ```text
//! Routes::of(model) ─▶ Route ─▶ Upstream::ask ─▶ Reply::next ─▶ Accepted · Pieces · Ended · Failed
//!                                  ├─ Upstream::forward_chat ─▶ a reply that was looked at, whose bytes go through
//!                                  └─ Upstream::forward ─▶ a response whose bytes go through
//! ```
//!
//! An event stream is many pieces and a JSON body is one. A failure says what happened in the
//! words of [`crate::wire::failure`]; whether it is asked again is for others to decide.

mod breaker;
mod budget;
mod client;
mod connect;
mod fault;
mod health;
mod keys;
mod opening;
mod place;
mod reply;
mod route;
pub mod settings;
mod upload;
mod window;

pub use crate::pool::{Received, Sent};
pub use breaker::State;
pub use client::{Answered, AskHead, Asking, BuildError, Chatted, Setup, Upstream, chat_path};
pub use fault::retry_after;
pub use health::Standing;
pub use opening::{Opened, is_event_stream};
pub use reply::{Expect, Heard, Pieces, Reply, Utterance};
pub use route::{MOST_TARGETS, Route, Routes, Target};
