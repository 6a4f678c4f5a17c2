//! The scripts, each one atomic step of the server's.

use redis::Script;

/// The formula of the meters, for the test that compares it with [`meter`](crate::store::meter).
pub const BUCKET: &str = include_str!("bucket.lua");
const INDEX: &str = include_str!("index.lua");

/// Every script.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    pub(super) keep: Script,
    pub(super) claim: Script,
    pub(super) read: Script,
    pub(super) replace: Script,
    pub(super) remove: Script,
    pub(super) charge: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        let indexed = |code: &str| Script::new(&[INDEX, code].join("\n"));
        Self {
            keep: indexed(include_str!("keep.lua")),
            claim: indexed(include_str!("claim.lua")),
            replace: indexed(include_str!("replace.lua")),
            remove: indexed(include_str!("remove.lua")),
            read: Script::new(include_str!("read.lua")),
            charge: Script::new(&[BUCKET, include_str!("charge.lua")].join("\n")),
        }
    }
}
