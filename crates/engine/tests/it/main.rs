//! The engine against real PostgreSQL servers.
#![allow(clippy::unwrap_used)]

mod cluster;
