//! Reads what people wrote.

pub mod file;
