//! The vocabulary of requests, replies, calls and errors.

pub mod tool;
