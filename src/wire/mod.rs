//! The vocabulary of requests, replies, calls and errors.
//!
//! Pure: text in, values out. Members fanfold does not know stay as they came: same text, same
//! order, same number.

pub mod call;
mod careful;
pub mod chunk;
pub mod error;
pub mod failure;
pub mod fold;
pub mod history;
pub mod message;
pub mod named;
pub mod raw;
pub mod repeat;
pub mod reply;
pub mod request;
mod scan;
pub mod texts;
pub mod tool;
pub mod usage;
pub mod usual;
