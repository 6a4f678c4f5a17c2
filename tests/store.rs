//! The store in memory keeps every promise of a store.

mod support;

use fanfold::store::{Capacity, Store};

async fn memory(capacity: Capacity) -> Store {
    Store::memory(&capacity)
}

support::store::promises!(memory);
