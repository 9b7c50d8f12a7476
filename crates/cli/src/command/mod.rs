//! The commands, one file each: arguments to options, a call, output.

mod alert;
mod annotate;
mod archive;
mod attempt;
mod audit;
mod backup;
mod backup_files;
mod backup_logical;
mod browse;
mod check;
mod config;
pub mod context;
mod delete;
mod demo;
mod documents;
mod drill;
mod expire;
mod expire_text;
mod export;
mod import;
mod incident;
mod info;
mod init;
mod job;
mod keep;
mod key;
mod key_reencrypt;
mod lifecycle;
mod locks;
mod markdown;
mod metrics;
mod misc;
pub mod readers;
mod rebuild_catalog;
mod recover;
mod recover_logical;
mod recover_opening;
mod recover_physical;
mod recover_text;
mod rehearsed;
mod replicate;
mod report;
mod restore;
mod restore_files;
mod restore_logical;
mod restore_system;
mod restore_table;
mod runbook;
mod schedule;
mod serve;
mod space;
mod target;
mod token;
mod truth;
mod unexpire;
mod user;
mod validate;
mod verify;
mod wal;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};

/// How a command ended that did not fail.
pub type Outcome = Exit;

/// Backs up, archives, restores and rehearses PostgreSQL, and proves that it works.
#[derive(Debug, Parser)]
#[command(name = "pgark", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What PostgreSQL calls for every segment, each time as a process of its own: without the arguments of all other commands, which
/// cost more time than anything else before the first segment is read.
#[derive(Parser)]
#[command(name = "pgark", version, propagate_version = true)]
struct WalCli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: WalCommand,
}

#[derive(Subcommand)]
enum WalCommand {
    ArchivePush(archive::PushArgs),
    ArchiveGet(archive::GetArgs),
}

impl Cli {
    pub fn read(argv: &[OsString]) -> Result<Cli, clap::Error> {
        let is_wal = argv.iter().any(|word| word == "archive-push" || word == "archive-get");
        // What is wrong, and help, is told by the whole.
        if is_wal && let Ok(WalCli { global, command }) = WalCli::try_parse_from(argv) {
            let command = match command {
                WalCommand::ArchivePush(args) => Command::ArchivePush(args),
                WalCommand::ArchiveGet(args) => Command::ArchiveGet(args),
            };
            return Ok(Cli { global, command });
        }
        Cli::try_parse_from(argv)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it: a throw-away cluster, a backup, a disaster, recovery to just before it, and the proof
    Demo(demo::DemoArgs),
    /// Create the repository and its key when missing, register the cluster, print the settings to add
    Init(init::InitArgs),
    /// Prove the set-up end to end
    #[command(alias = "doctor")]
    Check(check::CheckArgs),
    /// Back up the cluster
    Backup(backup::BackupArgs),
    /// List backups, recoverable time windows, WAL gaps and sizes
    #[command(aliases = ["list", "list-backups"])]
    Info(info::InfoArgs),
    /// Store one WAL file: PostgreSQL's archive_command
    ArchivePush(archive::PushArgs),
    /// Fetch one WAL file: PostgreSQL's restore_command
    ArchiveGet(archive::GetArgs),
    /// What the WAL archive holds, and what happened when
    Wal(wal::WalArgs),
    /// Restore the cluster, to now or to a moment in the past
    Restore(Box<restore::RestoreArgs>),
    /// Bring one table back as it was at some moment, beside the live one
    RestoreTable(Box<restore_table::RestoreTableArgs>),
    /// Guided recovery: from stopping the application to the one that answers again, written down step by step
    Recover(Box<recover::RecoverArgs>),
    /// The written procedure for disasters, made of the configuration
    Runbook(runbook::RunbookArgs),
    /// The server: runs jobs by schedule and by request
    Serve(serve::ServeArgs),
    /// Jobs of the server: what they do and how they ended
    Job(job::JobArgs),
    /// Tokens: who may ask the server for what
    Token(token::TokenArgs),
    /// Local users: who may sign in to the server with a password
    User(user::UserArgs),
    /// When jobs run next
    Schedule(schedule::ScheduleArgs),
    #[command(hide = true)]
    ScratchKeeper(restore_table::KeeperArgs),
    /// Read and authenticate everything that backups and WAL consist of
    Verify(verify::VerifyArgs),
    /// Compare a database with the truth about it, read its tables and indexes, ask the configured checks
    Validate(Box<validate::ValidateArgs>),
    /// Rehearse a recovery in a directory of its own: restore, recover, check, measure, remove
    Drill(Box<drill::DrillArgs>),
    /// Write down what a database holds at this moment, to compare another one with
    Truth(truth::TruthArgs),
    /// What Prometheus is told of the clusters, for machines without a server
    Metrics(metrics::MetricsArgs),
    /// What people are told of trouble, and have still to be told
    Alert(alert::AlertArgs),
    /// Declare a disaster: the recovery time is measured from there
    Incident(incident::IncidentArgs),
    /// Who tried what, and what came of it: the audit trail
    Audit(audit::AuditArgs),
    /// What restores, validations and drills found, as the repository has it
    Report(report::ReportArgs),
    /// Remove what the retention policy gives up: backups, and WAL that nothing kept needs
    Expire(expire::ExpireArgs),
    /// Bring back a backup that retention gave up, before its objects are removed
    Unexpire(unexpire::UnexpireArgs),
    /// Protect a backup from deletion and retention
    Keep(keep::KeepArgs),
    /// Take the protection away
    Unkeep(keep::UnkeepArgs),
    /// Remove a backup
    Delete(delete::DeleteArgs),
    /// Who opens the repository: passphrases, age keys, key commands; and the master key behind them
    Key(key::KeyArgs),
    /// Write notes on a backup
    Annotate(annotate::AnnotateArgs),
    /// Write a backup into a tar that starts with PostgreSQL's own means, without this program
    Export(export::ExportArgs),
    /// Take an unpacked export, or a backup by pg_basebackup, into the repository
    Import(import::ImportArgs),
    /// List the objects of the repository
    RepoLs(browse::ListArgs),
    /// Print what an object of the repository holds
    RepoGet(browse::GetArgs),
    /// Print the rules by which a bucket moves packs into cheaper classes
    RepoLifecycle(lifecycle::LifecycleArgs),
    /// List backups again that lie in the repository and that a damaged or lost catalog does not list
    RebuildCatalog(rebuild_catalog::RebuildCatalogArgs),
    /// Copy backups and WAL from one repository to another, without the database
    Replicate(replicate::ReplicateArgs),
    /// Check the configuration, or explain where a value comes from
    Config(config::ConfigArgs),
    /// Print shell completions
    Completions(misc::CompletionsArgs),
    /// Print the manual page, or write all manual pages into a directory
    Man(misc::ManArgs),
}

/// Runs a command, and tells the audit trail of it.
pub fn run(mut cli: Cli, argv: &[OsString]) -> Result<Outcome, Failure> {
    let trail = attempt::trail_of(&cli.command, argv);
    cli.global.trail = trail.clone();
    if let Some(dir) = &cli.global.job_dir {
        attempt::on_behalf(&trail, dir);
    }
    let told_of = attempt::told_of(&cli.command, argv);
    let outcome = refuse_in_the_past(&cli.command, &cli.global).and_then(|()| dispatch(cli.command, &cli.global));
    attempt::ended(&trail, &outcome);
    if let Some(told_of) = told_of {
        attempt::tell(told_of, &cli.global, &outcome);
    }
    outcome
}

/// The past is read, and nothing is written into it.
fn refuse_in_the_past(command: &Command, global: &GlobalArgs) -> Result<(), Failure> {
    let writes = matches!(
        command,
        Command::Init(_)
            | Command::Backup(_)
            | Command::ArchivePush(_)
            | Command::Expire(_)
            | Command::Unexpire(_)
            | Command::Keep(_)
            | Command::Unkeep(_)
            | Command::Delete(_)
            | Command::Annotate(_)
            | Command::Import(_)
            | Command::RebuildCatalog(_)
    );
    if writes && global.repo_target_time.is_some() {
        let message = "--repo-target-time is for commands that read: nothing is written into the past of a repository";
        return Err(Failure::usage("E-REPO-PAST", message).hint("leave --repo-target-time out"));
    }
    Ok(())
}

fn dispatch(command: Command, global: &GlobalArgs) -> Result<Outcome, Failure> {
    match command {
        Command::Demo(a) => demo::run(a, global),
        Command::Init(a) => init::run(a, global),
        Command::Check(a) => check::run(a, global),
        Command::Backup(a) => backup::run(a, global),
        Command::Info(a) => info::run(a, global),
        Command::ArchivePush(a) => archive::push(a, global),
        Command::ArchiveGet(a) => archive::get(a, global),
        Command::Wal(a) => wal::run(a, global),
        Command::Restore(a) => restore::run(*a, global),
        Command::RestoreTable(a) => restore_table::run(&a, global),
        Command::Recover(a) => recover::run(&a, global),
        Command::Runbook(a) => runbook::run(&a, global),
        Command::Serve(a) => serve::run(&a, global),
        Command::Job(a) => job::run(&a, global),
        Command::Token(a) => token::run(&a, global),
        Command::User(a) => user::run(&a, global),
        Command::Schedule(a) => schedule::run(&a, global),
        Command::ScratchKeeper(a) => restore_table::keep(&a),
        Command::Verify(a) => verify::run(a, global),
        Command::Validate(a) => validate::run(*a, global),
        Command::Drill(a) => drill::run(&a, global),
        Command::Truth(a) => truth::run(&a, global),
        Command::Metrics(a) => metrics::run(&a, global),
        Command::Alert(a) => alert::run(&a, global),
        Command::Incident(a) => incident::run(&a, global),
        Command::Audit(a) => audit::run(&a, global),
        Command::Report(a) => report::run(&a, global),
        Command::Expire(a) => expire::run(a, global),
        Command::Unexpire(a) => unexpire::run(a, global),
        Command::Keep(a) => keep::keep(a, global),
        Command::Unkeep(a) => keep::unkeep(a, global),
        Command::Delete(a) => delete::run(a, global),
        Command::Key(a) => key::run(a, global),
        Command::Annotate(a) => annotate::run(&a, global),
        Command::Export(a) => export::run(a, global),
        Command::Import(a) => import::run(a, global),
        Command::RepoLs(a) => browse::list(&a, global),
        Command::RepoGet(a) => browse::get(&a, global),
        Command::RepoLifecycle(a) => lifecycle::run(&a, global),
        Command::RebuildCatalog(a) => rebuild_catalog::run(a, global),
        Command::Replicate(a) => replicate::run(a, global),
        Command::Config(a) => config::run(a, global),
        Command::Completions(a) => misc::completions(a),
        Command::Man(a) => misc::man(a),
    }
}
