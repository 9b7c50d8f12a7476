//! `restore`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pgark_engine::restore::start::start;
use pgark_engine::restore::timed::{Timed, Took};
use pgark_engine::restore::{
    ArchiveMode, RestoreOptions, RestorePlan, StartOptions, TablespaceMap, Target, TargetAction, run as restoring,
};
use pgark_engine::sources::Sources;
use pgark_repo::names::BackupId;

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use super::delete::parse_id;
use super::documents::{RepositoryTrouble, RestoreDocument, StartedDocument};
use super::readers::{Readers, Taken, tell};
use super::restore_files::{self, FilesRestoreArgs};
use super::restore_logical::{self, LogicalRestoreArgs};
use super::restore_system;
use super::target::{TargetArgs, parse_lsn, parse_name, parse_time, parse_xid};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs, RateArgs};
use crate::failure::{Exit, Failure};
use crate::output::{self, human_bytes, human_duration, timestamp};
use crate::settings::schema::Kind;
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// A backup's id; 'latest' or nothing for the newest one that reaches the target
    pub(super) id: Option<String>,
    /// What is restored: the cluster's files, a database from a dump, files, or a system of both; of a backup that is named
    /// by its id, what that is, otherwise physical
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    #[command(flatten)]
    pub(super) logical: LogicalRestoreArgs,
    #[command(flatten)]
    pub(super) files: FilesRestoreArgs,
    /// The directory to restore into: absent or empty, but for --delta
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
    /// As in pgBackRest: default, immediate, time, lsn, xid or name, with --target
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "target", hide = true)]
    target_type: Option<TypeArg>,
    #[arg(long = "target", value_name = "VALUE", requires = "target_type", hide = true, id = "target_value")]
    target_value: Option<String>,
    /// What to do at the target
    #[arg(long, value_name = "ACTION", default_value = "promote")]
    target_action: ActionArg,
    /// Restore over the directory of the same cluster, which is stopped: only what differs is fetched and written
    #[arg(long)]
    pub(super) delta: bool,
    /// Put the tablespace that was at OLD (a path or an OID) into NEW; '\=' stands for '=' in a path; repeatable
    #[arg(long, value_name = "OLD=NEW")]
    tablespace_map: Vec<String>,
    /// Whether the restored cluster archives: a copy must not archive into the original's history. The default is keep for
    /// the cluster's own directory and off for any other
    #[arg(long, value_name = "MODE")]
    archive_mode: Option<ArchiveArg>,
    #[command(flatten)]
    pub(super) rate: RateArgs,
    #[command(flatten)]
    pub(super) confirm: ConfirmArgs,
    /// Start the server, check that recovery reached the planned end, then act as --target-action says
    #[arg(long)]
    pub(super) start: bool,
    /// Port for --start
    #[arg(long, value_name = "PORT", requires = "start")]
    port: Option<u16>,
    /// Directory of the socket for --start; the restored directory when left out
    #[arg(long, value_name = "DIR", requires = "start")]
    socket_dir: Option<PathBuf>,
    /// Directory with the postgres program for --start, or with pg_restore for a logical backup
    #[arg(long, value_name = "DIR")]
    pub(super) pg_bin: Option<PathBuf>,
    /// How long recovery may take with --start
    #[arg(long, value_name = "TIME", default_value = "24h")]
    recovery_timeout: Span,
    #[command(flatten)]
    pub(super) dry_run: DryRunArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    Default,
    Immediate,
    Time,
    Lsn,
    Xid,
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ActionArg {
    Pause,
    Promote,
    Shutdown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArchiveArg {
    Keep,
    Off,
}

impl RestoreArgs {
    fn refuse_physical(&self) -> Result<(), Failure> {
        let given = [("--delta", self.delta), ("--start", self.start), ("a target", self.has_target())];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Failure::usage("E-KIND", format!("{flag} is for physical backups"))
                .hint("files and dumps are of one moment; restore a physical backup for any other")),
        }
    }

    /// An id that is none is told as such by whoever looks for the backup.
    fn kind(&self) -> Kind {
        let of_id = || self.id.as_deref().and_then(|id| BackupId::parse(id).ok()).map(|id| id.kind().into());
        self.kind.or_else(of_id).unwrap_or(Kind::Physical)
    }

    pub(super) fn has_target(&self) -> bool {
        self.target.is_given() || self.target_type.is_some()
    }
}

pub fn run(args: RestoreArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    match args.kind() {
        Kind::Physical => {
            args.logical.refuse_for_physical()?;
            args.files.refuse_others()?;
        }
        Kind::Logical => {
            restore_logical::refuse_others(&args)?;
            args.files.refuse_others()?;
            return restore_logical::run(&args, global);
        }
        Kind::Files => {
            args.refuse_physical()?;
            return restore_files::run(&args, global);
        }
        Kind::System => {
            args.refuse_physical()?;
            return restore_system::run(&args, global);
        }
    }
    let mut context = Context::new(global)?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let mut options = options(&args, &context)?;
    let readers = Readers::opened(&context)?;
    let sources = &readers.sources;
    options.places = readers.places(&context)?;
    if args.dry_run.dry_run {
        let (plan, remains) = restoring::prepare(&options, sources, &[]).map_err(|e| readers.failure(e))?;
        tell(&sources.troubles(), &[], Taken::Unknown);
        output::result(global.form(), &RestoreDocument::new(&plan), || {
            let left = if remains.are_there() {
                "  the remains of an interrupted restore there would be removed\n"
            } else {
                ""
            };
            format!("would restore into {}\n{}{left}", options.to.display(), describe(&plan))
        })?;
        return Ok(Exit::Done);
    }
    if args.delta && std::io::stdin().is_terminal() {
        // Without a terminal the flag itself is the consent.
        let what =
            format!("overwrite what differs in {}, and remove what the backup does not have", options.to.display());
        confirm(&args.confirm, &what)?;
    }
    let (began, at) = (Instant::now(), context.ctx.now());
    let quiet = global.quiet;
    let mut announce = |plan: &RestorePlan| {
        if !quiet {
            describe(plan).lines().for_each(|line| context.ctx.progress.note(line));
        }
    };
    let done = restoring::run(&options, sources, &context.ctx, &mut announce);
    let notices = sources.notices();
    notices.iter().for_each(|notice| output::warning(notice));
    let (plan, report) = done.map_err(|e| {
        tell(&sources.troubles(), &[], Taken::Unknown);
        readers.failure(e)
    })?;
    context.trail().about("backup", &plan.backup.id);
    tell(&report.troubles, &report.mended, Taken::FromAnother);
    for warning in &report.warnings {
        output::warning(warning);
    }
    let mut document = RestoreDocument::new(&plan);
    document.bytes_restored = Some(report.bytes_restored);
    document.bytes_written = Some(report.bytes_written);
    document.repositories = RepositoryTrouble::all(&report);
    let restored = Took::new(began.elapsed(), report.bytes_restored);
    let started = match args.start {
        true => Some(start_server(&args, &options, &plan, sources, &context, (at, restored))?),
        false => None,
    };
    let duration = began.elapsed();
    document.duration_ms = Some(duration.as_millis().try_into().unwrap_or(u64::MAX));
    let done = done_text(&options, &plan, report.bytes_restored, duration, started.as_ref());
    document.started = started;
    global.report(&document, || done)?;
    let healed = !notices.is_empty() || !report.troubles.is_empty();
    let degraded = healed || plan.notes.iter().any(|n| n.starts_with("DEGRADED")) || !report.warnings.is_empty();
    Ok(if degraded { Exit::Warnings } else { Exit::Done })
}

fn done_text(
    options: &RestoreOptions,
    plan: &RestorePlan,
    bytes: u64,
    took: Duration,
    started: Option<&StartedDocument>,
) -> String {
    let mut out = format!(
        "restored {} from backup {} into {} in {}\n",
        human_bytes(bytes),
        plan.backup.id,
        options.to.display(),
        human_duration(took)
    );
    out += &match started {
        None => format!(
            "  started with pg_ctl it recovers to {} and then does: {}\n",
            plan.stop.end,
            options.action.as_str()
        ),
        Some(s) => format!(
            "  recovery reached the planned end {}{}; {}\n",
            s.reached,
            if s.promoted { " and the cluster was promoted" } else { "" },
            if s.running {
                format!("it runs as process {} on port {}, socket in {}", s.pid, s.port, s.socket_dir)
            } else {
                "it was stopped".into()
            }
        ),
    };
    out
}

fn start_server(
    args: &RestoreArgs,
    options: &RestoreOptions,
    plan: &RestorePlan,
    sources: &Sources,
    context: &Context,
    (at, restored): (jiff::Timestamp, Took),
) -> Result<StartedDocument, Failure> {
    let began = Instant::now();
    let start_options = StartOptions {
        bin: args.pg_bin.clone(),
        port: args.port,
        socket_dir: args.socket_dir.clone(),
        within: args.recovery_timeout.0,
        settings: vec![],
        role: None,
    };
    let done = start(&options.to, plan, options.action, &start_options, &context.ctx).map_err(engine_failure)?;
    if let Err(e) = restoring::record_replay(sources, &options.cluster, plan) {
        tracing::warn!(target: "pgark", %e, "that the backup was recovered could not be recorded in the repository");
    }
    if !options.delta {
        let timed = Timed::new(plan, done.reached, at, restored, began.elapsed());
        if let Err(e) = timed.store(sources, plan, &options.cluster, &context.ctx) {
            tracing::warn!(target: "pgark", %e, "how long it took could not be recorded in the repository");
        }
    }
    Ok(StartedDocument {
        reached: done.reached.to_string(),
        promoted: done.promoted,
        running: done.running,
        port: done.port,
        socket_dir: done.socket_dir.to_string_lossy().into_owned(),
        pid: done.pid,
    })
}

/// What is about to happen, for the person who may still stop it.
pub fn describe(plan: &RestorePlan) -> String {
    let size = plan.record.segment_size;
    let mut out = format!(
        "  target    {}\n  backup    {} (finished {}, {})\n  recovery  from {} to {} on timeline {}, WAL {} to {}\n",
        plan.target,
        plan.backup.id,
        timestamp(plan.backup.finished),
        human_bytes(plan.record.totals.size_bytes),
        plan.backup.lsn_start,
        plan.stop.end,
        plan.timeline,
        plan.wal_from.format(size),
        plan.wal_to.format(size),
    );
    for note in &plan.notes {
        out += &format!("  {note}\n");
    }
    out
}

fn options(args: &RestoreArgs, context: &Context) -> Result<RestoreOptions, Failure> {
    let backup = match args.id.as_deref() {
        None | Some("latest") => None,
        Some(id) => Some(parse_id(id)?),
    };
    let to = args.to.as_ref().ok_or_else(|| Failure::usage("E-TARGET-PATH", "--to DIR is missing"))?;
    let to = std::path::absolute(to).map_err(|e| Failure::usage("E-TARGET-PATH", format!("--to: {e}")))?;
    let program =
        std::env::current_exe().map_err(|e| Failure::failed("E-SYSTEM", format!("this program's path: {e}")))?;
    let is_own = context.pgdata().is_ok_and(|own| clean(&own) == to);
    Ok(RestoreOptions {
        cluster: context.cluster()?,
        backup,
        to: clean(&to),
        target: target(args)?,
        timeline: args.target.timeline()?,
        action: match args.target_action {
            ActionArg::Pause => TargetAction::Pause,
            ActionArg::Promote => TargetAction::Promote,
            ActionArg::Shutdown => TargetAction::Shutdown,
        },
        tablespace_map: tablespace_map(&args.tablespace_map)?,
        archive_mode: match args.archive_mode {
            Some(ArchiveArg::Keep) => ArchiveMode::Keep,
            Some(ArchiveArg::Off) => ArchiveMode::Off,
            None if is_own => ArchiveMode::Keep,
            None => ArchiveMode::Off,
        },
        delta: args.delta,
        jobs: context.jobs(),
        program,
        places: vec![],
    })
}

/// Without a trailing slash, which would make the system follow a link.
fn clean(path: &std::path::Path) -> PathBuf {
    path.components().collect()
}

fn target(args: &RestoreArgs) -> Result<Target, Failure> {
    let Some(kind) = args.target_type else { return args.target.target() };
    let bound = args.target.bound();
    let value = || args.target_value.as_deref().ok_or_else(|| Failure::usage("E-TARGET", "this --type needs --target"));
    match kind {
        TypeArg::Default => Ok(Target::Latest),
        TypeArg::Immediate => Ok(Target::Immediate),
        TypeArg::Time => parse_time(value()?, bound),
        TypeArg::Lsn => parse_lsn(value()?, bound),
        TypeArg::Xid => parse_xid(value()?, bound),
        TypeArg::Name => parse_name(value()?),
    }
}

/// A path may contain '=' itself, written as it is or, as for pg_basebackup, as '\\='.
fn tablespace_map(maps: &[String]) -> Result<Vec<TablespaceMap>, Failure> {
    let plain = |text: &str| text.replace(r"\=", "=");
    maps.iter()
        .map(|given| {
            let splits = given.match_indices('=').map(|(at, _)| (plain(&given[..at]), plain(&given[at + 1..])));
            let readings = splits
                .filter(|(old, new)| !old.is_empty() && !new.is_empty())
                .map(|(old, new)| {
                    let new =
                        std::path::absolute(new).map_err(|e| Failure::usage("E-TABLESPACE-MAP", e.to_string()))?;
                    Ok((old.trim_end_matches('/').to_owned(), clean(&new)))
                })
                .collect::<Result<Vec<_>, Failure>>()?;
            if readings.is_empty() {
                return Err(Failure::usage("E-TABLESPACE-MAP", format!("'{given}' is not OLD=NEW")));
            }
            Ok(TablespaceMap { given: given.clone(), readings })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_read_a_map_is_kept() {
        let maps = tablespace_map(&["/a=b=/c".into(), r"/x\=y/=/z\=".into()]).unwrap();
        let readings: Vec<Vec<(String, PathBuf)>> = maps.into_iter().map(|m| m.readings).collect();
        let pair = |old: &str, new: &str| (old.to_owned(), PathBuf::from(new));
        assert!(readings[0].contains(&pair("/a=b", "/c")), "{readings:?}");
        assert!(readings[1].contains(&pair("/x=y", "/z=")), "{readings:?}");
        for bad in ["", "=", "a=", "=b", "ab"] {
            assert!(tablespace_map(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
