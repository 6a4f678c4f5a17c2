//! What is decided about a request before anything is asked: relay, turn or refuse; the
//! strict-versus-parallel rule.
//!
//! Pure: request, rules and tools in, a plan or a refusal out.

pub mod parallel;
pub mod pattern;
pub mod plan;
pub mod retry;
pub mod settings;
