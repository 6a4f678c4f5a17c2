//! What the integration tests lean on: the lab (a scripted upstream and tool server), the library
//! of habits of real upstreams it can play, a plain client, one shape for all answers, and the demo.

#![allow(dead_code, reason = "each test binary uses its own part of the support")]
#![allow(unreachable_pub, reason = "a support module has no outside to be reached from")]

pub mod client;
pub mod collector;
pub mod demo;
pub mod door;
pub mod faults;
pub mod fold;
pub mod gateway;
pub mod hostile;
pub mod lab;
pub mod matrix;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod scripts;
pub mod stage;
pub mod store;
pub mod tls;
pub mod ways;
