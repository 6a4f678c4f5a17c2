//! What is decided about a request before anything is asked.

pub mod settings;
