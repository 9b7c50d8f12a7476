//! The server: jobs by schedule and by request, what is known of the clusters, over HTTP.
//!
//! Decides nothing that the command line cannot: a job is a child process of the same program, with the same arguments that
//! somebody would type. Its database can be deleted: what it holds of backups is a copy of what the repositories say.

pub mod access;
pub mod events;
mod figures;
pub mod http;
pub mod jobs;
pub mod known;
pub mod lookup;
pub mod metrics;
pub mod notify;
pub mod oidc;
mod printing;
pub mod refresh;
pub mod schedule;
pub mod serve;
pub mod state;

pub use state::{State, StateError};
