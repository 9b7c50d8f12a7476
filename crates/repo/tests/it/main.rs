//! The repository as its callers see it: stored samples of the format, damage, hostile bytes, crashes, races.
//! No PostgreSQL; a network only within this machine, to object stores that the tests start.

#![allow(clippy::unwrap_used)]

mod audit;
mod cloud;
mod cloud_faults;
mod common;
mod crash;
mod expected;
mod golden;
mod hostile;
mod key_commands;
mod keys;
mod locks;
mod meter;
mod races;
mod sample;
mod sftp;
mod tamper;
mod transient;
mod writer;
