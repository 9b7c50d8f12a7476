//! The repository as its callers see it: stored samples of the format, damage, hostile bytes, crashes, races.
//! No network, no PostgreSQL.

#![allow(clippy::unwrap_used)]

mod common;
mod crash;
mod expected;
mod golden;
mod hostile;
mod key_commands;
mod keys;
mod meter;
mod races;
mod sample;
mod tamper;
