//! What has to hold for any bytes at all, one file for each thing that reads bytes of strangers.
//!
//! The fuzz targets call `hold` with what the fuzzer makes up; `tests/corpora.rs` calls the same with
//! every input in `tests/fuzz/corpus`, on every run of the tests. An oracle returns if all is well and
//! panics if it is not. Most compare: with a second reader written for this purpose, or with the same
//! bytes cut elsewhere.

#![allow(dead_code, reason = "each fuzz target uses one of the oracles")]

pub mod arguments;
pub mod config;
pub mod engine;
pub mod ledger;
pub mod mcp;
pub mod parked;
pub mod reply;
pub mod request;
pub mod sse;

/// Choices made by bytes. When they are used up, every choice is the first.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Less than `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    pub fn yes(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Yes in one of `of` cases.
    pub fn seldom(&mut self, of: usize) -> bool {
        self.below(of) == of - 1
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The bytes in pieces of `size`.
pub fn cut(bytes: &[u8], size: usize) -> impl Iterator<Item = bytes::Bytes> {
    bytes.chunks(size.max(1)).map(bytes::Bytes::copy_from_slice)
}

/// A JSON string's text; nothing if it holds half a surrogate pair, which no text can.
pub fn text_of(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}
