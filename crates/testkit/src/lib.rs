//! The harness of the tests that need real PostgreSQL: servers of six majors, throw-away clusters, a ledger of
//! acknowledged commits kept outside the database, restored clusters, and the tools that break things on purpose.
//!
//! Invariant: whatever a value of this crate starts, mounts or creates is gone when that value is dropped; nothing
//! else on the machine is touched. It knows pgark only as a program that is run, never as a library, so a test can
//! never agree with the product by sharing its code.

mod application;
mod browser;
mod cluster;
mod faulty_http;
mod ledger;
mod loopfs;
mod object_server;
mod oidc_provider;
mod os;
mod pgark;
mod psql;
mod receivers;
mod recovered;
mod servers;
mod sshd;
mod state;
mod strace;
mod tamper;
mod tls_client;
mod tree;

pub use application::{Application, Mood};
pub use browser::Browser;
pub use cluster::{ClusterBuilder, StopMode, TestCluster};
pub use faulty_http::{FaultyHttp, HttpFault};
pub use ledger::{Expected, Ledger, Pgbench, Row, Target, Writer};
pub use loopfs::LoopFs;
pub use object_server::{BUCKET, ObjectServer, ObjectServerKind, StoredVersion, free_port};
pub use oidc_provider::OidcProvider;
pub use os::{Scratch, as_postgres, give_to_postgres, is_root, run_bounded, wait_until};
pub use pgark::{Outcome, Pgark};
pub use psql::{connection_string, quote_identifier, quote_literal};
pub use receivers::{Alertmanager, Certificate, Mail, MailServer, Received, Receiver, schemathesis};
pub use recovered::{Ending, Recovered};
pub use servers::{Server, majors_asked_for};
pub use sshd::{Proxy, Sshd, Subsystem};
pub use state::{Ask, assert_same_state, assert_sound, state_of};
pub use strace::{Errno, Fault, IO_SYSCALLS, Point, killed_alone, points_of, strace_works, traced, traced_without};
pub use tamper::{Damage, Damaged, objects_under};
pub use tls_client::TlsClient;
pub use tree::{Tree, repository_tree, tree_of};

/// True when a missing tool must fail the test instead of skipping it.
pub fn demanded() -> bool {
    std::env::var_os("PGARK_TEST_DEMAND").is_some_and(|value| value == "1")
}

/// Leaves the calling test with a visible line, or fails it when `PGARK_TEST_DEMAND=1`.
///
/// A function with this macro returns `()`.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        let why = format!($($why)+);
        assert!(!$crate::demanded(), "skipping is not allowed here (PGARK_TEST_DEMAND=1): {why}");
        eprintln!("SKIPPED: {}:{}: {why}", file!(), line!());
        return;
    }};
}
