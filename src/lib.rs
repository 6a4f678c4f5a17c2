//! fanfold: an OpenAI-compatible reverse proxy that executes tools, in parallel.
//!
//! A client points its OpenAI SDK at fanfold and sees a plain chat API. fanfold adds the operator's
//! tools to the request, decides whether calls may be parallel, asks the upstream model, runs the
//! tool calls itself, gives the results back, and repeats until there is a final answer.
//!
//! # The map
//!
//! ```text
//!  bytes ─▶ server ─▶ team ─▶ policy::plan ─▶ relay ───────────────────────────────┐
//!           (http,    (who,    (what is        │  ▲                                │
//!            limits)   quota)   owned, strict  │  │ Input                          ▼
//!                               or parallel,   ▼  │                              sink
//!                               limits)   engine::Turn ── Action ─▶ upstream (ask)
//!                                              ▲                     tools (run, stop)
//!                                              └── Piece · Ended · Failed · Outcome
//! ```
//!
//! The centre is pure, the world is around it. A module may name those above it in this table and
//! nothing below; `tests/layers.rs` holds the source to that.
//!
//! | layer | module | in one sentence |
//! |---|---|---|
//! | 0 pure | [`units`] | Durations, sizes and secrets as people write them. |
//! | 0 pure | [`wire`] | The vocabulary: requests, replies, calls, messages, errors; what it does not know stays as it came. |
//! | 0 pure | [`sse`] | Bytes to events, in bounded memory. |
//! | 1 pure | [`policy`] | Relay, turn or refuse; the strict-versus-parallel rule. |
//! | 1 pure | [`engine`] | Given everything heard so far, what happens next. |
//! | 2 service | [`trust`] | Whose certificates are believed. |
//! | 2 service | [`workers`] | Threads that serve connections, each with a runtime of its own. |
//! | 2 service | `rare` | Waits for what comes rarely beside what comes often. |
//! | 2 service | [`pool`] | Connections to one server, kept for the next request. |
//! | 2 service | [`telemetry`] | Names and writes metrics, logs and traces. |
//! | 2 service | [`upstream`] | Sends one ask and delivers its reply as engine inputs. |
//! | 2 service | [`tools`] | Knows which tools exist and runs one call within its limits. |
//! | 2 service | [`audit`] | Writes what calls with effects are about to do, before they do it. |
//! | 2 service | [`store`] | Keeps small expiring things. |
//! | 2 service | [`ledger`] | Knows what became of requests, so that a repetition gets their answer. |
//! | 2 service | [`runs`] | Remembers the last runs and tells who watches. |
//! | 2 service | [`team`] | Turns a key into a team. |
//! | 3 shell | [`relay`] | Performs the engine's actions until the turn ends, or hands bytes through. |
//! | 4 shell | [`server`], [`admin`] | Accept, read, answer, drain; health, metrics and the inspector. |
//! | 5 root | [`config`], [`demo`], [`app`], [`cli`] | Read what people wrote, build the parts, own start and stop. |
//!
//! # What is absent, on purpose
//!
//! - Nothing in `wire`, `sse`, `policy` or `engine` reads a clock, makes a random number, waits or
//!   touches a socket. Time and seeds are handed in, so every order of events can be tested.
//! - There is one turn engine for streaming and whole answers, towards clients and towards upstreams.
//!   Streaming is an adapter at each end: a JSON body is an event stream of one piece.
//! - The engine speaks of pieces, calls and results, never of chat chunks.
//! - No request or reply is made a tree of values on its way: numbers, order and unknown members
//!   stay as they came.
//! - There is no app-wide bag of state. [`app`] gives each part what it needs; a request takes one
//!   snapshot at its start, so a reload never changes a running turn.
//! - A tool that fails is news for the model, not the end of a turn.

pub mod admin;
pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod demo;
pub mod engine;
pub mod ledger;
pub mod policy;
pub mod pool;
mod rare;
pub mod relay;
pub mod runs;
pub mod server;
pub mod sse;
pub mod store;
pub mod team;
pub mod telemetry;
pub mod tools;
pub mod trust;
pub mod units;
pub mod upstream;
pub mod wire;
pub mod workers;
