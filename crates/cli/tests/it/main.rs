//! pgark against real PostgreSQL: the program is run as its users run it, and what it restores is compared with a
//! ledger kept outside the database.
//!
//! PostgreSQL 15 is used unless `PGARK_TEST_MAJORS` names others (for the tests of targets, timelines and names).
//! `PGARK_SWEEP=full` visits every point of the sweeps instead of a sample, `PGARK_TEST_DEMAND=1` turns skips into
//! failures, and `PGARK_TEST_KEEP=1` keeps the scratch directories.

#[macro_use]
mod site;

mod alert;
mod archive;
mod audit;
mod backup_truth;
mod browse;
mod capacity;
mod cli_contract;
mod crash;
mod dashboard;
mod delta;
mod drill;
mod drill_majors;
mod export;
mod extract;
mod files;
mod files_undo;
mod guides;
mod healing;
mod immutability;
mod import;
mod incremental;
mod key_commands;
mod keys;
mod logical;
mod logical_care;
mod logical_damage;
mod logical_realistic;
mod logical_swap;
mod names;
mod nested;
mod never_short;
mod object_store;
mod oidc;
mod packaging;
mod parity;
mod pharmacy;
mod pitr;
mod power;
mod rebuild;
mod rebuild_catalog;
mod recover;
mod recover_cluster;
mod recover_repoint;
mod reencrypt;
mod refusals;
mod replicate;
mod replicate_stores;
mod reports;
mod restore_table;
mod restored_right;
mod retention;
mod retention_mistakes;
mod serve;
mod serve_examples;
mod serve_guard;
mod several;
mod several_mistakes;
mod several_trusted;
mod several_unusable;
mod sftp;
mod system;
mod tamper;
mod timelines;
mod two_of_two;
mod validate;
mod wal;
mod writer;
