//! The engine against real PostgreSQL servers; and retention, which needs none, against failing, full and slow stores.
#![allow(clippy::unwrap_used)]

mod cluster;
mod expire;
mod reencrypt;
/// The small repository of the repository's own tests.
#[allow(dead_code)]
#[path = "../../../repo/tests/it/sample.rs"]
mod sample;
mod stores;
