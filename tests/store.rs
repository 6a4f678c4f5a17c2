//! The store in memory keeps every promise of a store.

mod support;

use fanfold::store::{Capacity, Store};

struct Memory;

#[allow(clippy::unused_async, reason = "other stores have to be waited for")]
impl Memory {
    async fn start() -> Self {
        Self
    }

    async fn store(&self, capacity: Capacity) -> Store {
        Store::memory(&capacity)
    }
}

support::store::promises!(Memory);
