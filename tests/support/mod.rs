//! What the integration tests lean on: the lab, a scripted upstream and tool server, and the
//! library of recorded deviations it can play.

#![allow(dead_code, reason = "each test binary uses its own part of the support")]
#![allow(unreachable_pub, reason = "a support module has no outside to be reached from")]

pub mod lab;
pub mod scripts;
