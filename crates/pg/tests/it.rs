//! The crate against PostgreSQL itself: golden files it wrote, and servers started for the test.

#![allow(clippy::unwrap_used)]

#[path = "it/chain.rs"]
mod chain;
#[path = "it/changes/mod.rs"]
mod changes;
#[path = "it/golden.rs"]
mod golden;
#[path = "it/server.rs"]
mod server;
#[path = "it/waldump.rs"]
mod waldump;
