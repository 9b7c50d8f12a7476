//! The repository: what pgark writes to storage and reads back. It knows objects, keys and backups' books;
//! it never opens a data directory and never talks to PostgreSQL.
//!
//! Invariant: every byte that is read here is untrusted until it is authenticated, and every size that is
//! allocated is bounded by a named limit first. `docs/format.md` specifies the bytes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod audit;
pub mod browse;
pub mod catalog;
pub mod codec;
pub mod crypto;
pub mod direct;
pub mod error;
pub mod gc;
pub mod keyring;
pub mod limits;
pub mod manifest;
pub mod names;
pub mod pack;
pub mod parity;
pub mod record;
pub mod register;
pub mod report;
pub mod repository;
pub mod seals;
pub mod store;
pub mod stream;
pub mod wal;
pub mod wreck;

pub use error::{RepoError, Result};
pub use repository::Repository;
