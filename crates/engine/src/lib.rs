//! One operation on one cluster: back up, archive, restore, verify, delete. What is long or destructive is a
//! plan, which is pure and can be shown, and a run, which obeys it.
//!
//! The engine never prints, never reads the environment and never exits; time, progress and cancellation come
//! through `Ctx`.

pub mod archive;
pub mod audit;
pub mod backup;
pub mod capacity;
pub mod check;
pub mod clock;
pub mod cluster;
pub mod ctx;
pub mod delete;
pub mod drill;
pub mod error;
pub mod expire;
pub mod export;
pub mod files;
pub mod foreign;
pub mod info;
pub mod keep;
pub mod keys;
pub mod lock;
pub mod logical;
pub mod pace;
pub mod parts;
pub mod rebuild;
pub mod reencrypt;
pub mod register;
pub mod relist;
pub mod repair;
pub mod replicate;
pub mod reports;
pub mod rescue;
pub mod restore;
pub mod scratch;
mod series;
pub mod several;
pub mod sources;
pub mod table;
pub mod truth;
pub mod validate;
pub mod verify;

pub use ctx::{Ctx, ProgressSink};
pub use error::{EngineError, FailureClass, Result};
