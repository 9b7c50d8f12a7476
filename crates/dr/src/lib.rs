//! Many operations over time: what is done around a restore until the service is back, written down before it is done.
//!
//! Touches no byte of a backup; what it does to a database it asks of `pgark-engine`.

pub mod alert;
pub mod incident;
pub mod journal;
pub mod operator;
pub mod probe;
pub mod program;
pub mod recover;
pub mod repoint;
pub mod runbook;
pub mod schedule;
pub mod service;
pub mod trail;
