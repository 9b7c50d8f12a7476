//! Which commands the audit trail is told of: all that read or change data of a backup, or who may. Not `archive-push` and
//! `archive-get`, which run for every segment: what they did stands in the WAL head, what failed in PostgreSQL's log.

use std::ffi::OsString;
use std::path::Path;

use pgark_dr::trail::{Attempt, Ended, Trail};

use super::{Command, Outcome};
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::notices::ToldOf;
use crate::output;

/// Whose journal it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Repository,
}

pub fn trail_of(command: &Command, argv: &[OsString]) -> Trail {
    let arguments: Vec<String> = argv.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    match audited(command, &arguments) {
        Some((name, scope)) => Trail::of(Attempt {
            command: name.to_owned(),
            arguments,
            of_repository: scope == Scope::Repository,
            sudo_user: std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty()),
        }),
        None => Trail::default(),
    }
}

/// In a job of the server, for whom it is done.
pub fn on_behalf(trail: &Trail, job_dir: &Path) {
    let Some((requested_by, approved_by)) = pgark_server::state::asked_by(job_dir) else { return };
    trail.about("requested_by", requested_by);
    if let Some(approved_by) = approved_by {
        trail.about("approved_by", approved_by);
    }
}

/// Exhaustive, so that a new command has to be decided on.
fn audited(command: &Command, arguments: &[String]) -> Option<(&'static str, Scope)> {
    let given = |flag: &str| arguments.iter().take_while(|a| *a != "--").any(|a| a == flag);
    // Plans read no data and change none.
    let is_plan = given("--dry-run");
    let of_cluster = |name| (!is_plan).then_some((name, Scope::Cluster));
    match command {
        Command::Init(_) => of_cluster("init"),
        Command::Backup(_) => of_cluster("backup"),
        Command::Restore(_) => of_cluster("restore"),
        Command::RestoreTable(_) => of_cluster("restore-table"),
        Command::Recover(_) if given("--plan") => None,
        Command::Recover(_) => of_cluster("recover"),
        Command::Verify(_) if given("--repair") => of_cluster("verify"),
        Command::Validate(_) => of_cluster("validate"),
        Command::Drill(_) => of_cluster("drill"),
        Command::Truth(_) => of_cluster("truth"),
        Command::Expire(_) => of_cluster("expire"),
        Command::Unexpire(_) => of_cluster("unexpire"),
        Command::Keep(_) => of_cluster("keep"),
        Command::Unkeep(_) => of_cluster("unkeep"),
        Command::Delete(_) => of_cluster("delete"),
        Command::Key(_) => (!is_plan).then_some(("key", Scope::Repository)),
        Command::Annotate(_) => of_cluster("annotate"),
        Command::Export(_) => of_cluster("export"),
        Command::Import(_) => of_cluster("import"),
        Command::RepoGet(_) => of_cluster("repo-get"),
        Command::RebuildCatalog(_) => of_cluster("rebuild-catalog"),
        Command::Replicate(_) => of_cluster("replicate"),
        Command::Incident(_) => of_cluster("incident"),
        Command::Alert(args) if args.is_said() => of_cluster("alert"),
        Command::Audit(args) if args.takes_data_out() => of_cluster("audit"),
        Command::Alert(_)
        | Command::Audit(_)
        | Command::ArchiveGet(_)
        | Command::ArchivePush(_)
        | Command::Check(_)
        | Command::Completions(_)
        | Command::Config(_)
        | Command::Demo(_)
        | Command::Info(_)
        | Command::Job(_)
        | Command::Man(_)
        | Command::Metrics(_)
        | Command::RepoLifecycle(_)
        | Command::RepoLs(_)
        | Command::Report(_)
        | Command::Runbook(_)
        | Command::Schedule(_)
        | Command::ScratchKeeper(_)
        | Command::Serve(_)
        | Command::Token(_)
        | Command::User(_)
        | Command::Verify(_)
        | Command::Wal(_) => None,
    }
}

/// Of which people want to know how it ended.
pub fn told_of(command: &Command, argv: &[OsString]) -> Option<ToldOf> {
    if argv.iter().take_while(|a| *a != "--").any(|a| a == "--dry-run" || a == "--plan") {
        return None;
    }
    let kind = if let Command::Backup(args) = command { Some(args.kind()) } else { None };
    let command = match command {
        Command::Backup(_) => "backup",
        Command::Restore(_) => "restore",
        Command::RestoreTable(_) => "restore-table",
        Command::Recover(_) => "recover",
        Command::Drill(_) => "drill",
        Command::Verify(_) => "verify",
        Command::Validate(_) => "validate",
        Command::Expire(_) => "expire",
        Command::Replicate(_) => "replicate",
        _ => return None,
    };
    Some(ToldOf { command, kind })
}

/// Tells people, where that is configured.
pub fn tell(told_of: ToldOf, global: &GlobalArgs, outcome: &Result<Outcome, Failure>) {
    let (code, failure) = match outcome {
        Ok(exit) => (exit.code(), None),
        Err(failure) => (failure.exit.code(), Some(failure)),
    };
    global.notices.ended(told_of, code, failure, global.trail.has_told("rto", "missed"));
}

/// Tells the trail how it ended. What goes wrong with that is a warning, and changes no result.
pub fn ended(trail: &Trail, outcome: &Result<Outcome, Failure>) {
    let ended = match outcome {
        Ok(exit) => Ended { exit_code: exit.code(), error: None },
        Err(failure) => Ended { exit_code: failure.exit.code(), error: Some(failure.code.to_string()) },
    };
    trail.end(&ended).iter().for_each(|warning| output::warning(warning));
}
