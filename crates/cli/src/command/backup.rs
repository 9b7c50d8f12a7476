//! `backup`.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::{Args, ValueEnum};
use pgark_engine::EngineError;
use pgark_engine::backup::base::Wanted;
use pgark_engine::backup::recheck::Rechecked;
use pgark_engine::backup::room::RoomOptions;
use pgark_engine::backup::{self, BackupOptions, BackupReport};
use pgark_engine::replicate::{ReplicateOptions, Which, lacking};
use pgark_engine::several::{self, Member};
use pgark_repo::catalog::BackupKind;
use pgark_repo::codec::Compression;
use pgark_repo::names::BackupId;
use pgark_repo::record::Base;

use super::Outcome;
use super::backup_files::{self, FilesArgs};
use super::backup_logical::{self, LogicalArgs};
use super::context::{CONNECT_TIMEOUT, Context, Opened, engine_failure, is_its_own, left_out};
use super::documents::{BackupDocument, RepoOutcome, type_name};
use super::locks::Locked;
use crate::args::{DryRunArgs, GlobalArgs, PriorityArgs, RateArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::schema::Kind;
use crate::settings::units::Span;

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// What is read: everything, what changed since the last backup, or since the last full one
    #[arg(long = "type", value_name = "TYPE", default_value = "incr")]
    backup_type: TypeArg,
    /// What is backed up
    #[arg(long, value_name = "KIND", default_value = "physical")]
    pub(super) kind: Kind,
    #[command(flatten)]
    pub(super) logical: LogicalArgs,
    #[command(flatten)]
    pub(super) files: FilesArgs,
    /// Also read what the WAL says has not changed, and compare it with the earlier backup
    #[arg(long)]
    verify_incremental: bool,
    /// Never remove it by retention
    #[arg(long)]
    pub(super) keep: bool,
    /// A note kept with the backup; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) annotate: Vec<String>,
    /// none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "CODEC", default_value = "zstd:1")]
    pub(super) compress: String,
    /// How long to wait for the last WAL segment
    #[arg(long, value_name = "TIME", default_value = "60s")]
    archive_timeout: Span,
    /// Go on where the backup seems not to fit into the repository
    #[arg(long)]
    ignore_space: bool,
    #[command(flatten)]
    pub(super) rate: RateArgs,
    #[command(flatten)]
    pub(super) priority: PriorityArgs,
    #[command(flatten)]
    pub(super) dry_run: DryRunArgs,
}

impl BackupArgs {
    pub fn kind(&self) -> BackupKind {
        self.kind.into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TypeArg {
    Full,
    Incr,
    Diff,
}

pub fn run(args: BackupArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    match args.kind {
        Kind::Physical => {
            args.logical.refuse_for_physical()?;
            args.files.refuse_for(args.kind)?;
        }
        Kind::Logical => {
            args.files.refuse_for(args.kind)?;
            return backup_logical::run(&args, global);
        }
        Kind::System => return backup_logical::run(&args, global),
        Kind::Files => {
            args.logical.refuse_for_files()?;
            return backup_files::run(&args, global);
        }
    }
    let mut context = Context::new(global)?.admitting_writers();
    refuse_switched_off(&context)?;
    args.priority.apply()?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let mut opened = context.open_members_with_books(None)?;
    let several = opened.is_several();
    let failed = |e: EngineError, of: &Member| {
        engine_failure(if several && e.repo().is_some() { e.in_repository(&of.name) } else { e })
    };
    if args.dry_run.dry_run {
        let (options, first) = (options(&args, &context, &opened)?, opened.first());
        let plan = backup::plan(&options, &first.repo, &context.ctx).map_err(|e| failed(e, first))?;
        let document = serde_json::json!({
            "schema": SCHEMA, "id": plan.id.to_string(), "cluster": options.cluster.to_string(), "type": type_name(plan.backup_type),
            "base": plan.base.as_ref().map(ToString::to_string), "timeline": plan.timeline.get(), "size_bytes": plan.size_bytes, "files": plan.files,
            "tablespaces": plan.tablespaces, "estimated_stored_bytes": plan.need.as_ref().map(|n| n.bytes),
            "estimated_by": plan.need.as_ref().map(|n| n.how.as_str()), "warnings": plan.warnings,
        });
        output::result(global.form(), &document, || {
            format!(
                "would take the {} backup {} of '{}': {} in {} files, {} tablespaces\n{}",
                if plan.base.is_some() { "incremental" } else { "full" },
                plan.id,
                options.cluster,
                human_bytes(plan.size_bytes),
                plan.files,
                plan.tablespaces,
                plan.need
                    .as_ref()
                    .map(|n| format!("  about {} to store: {}\n", human_bytes(n.bytes), n.how))
                    .unwrap_or_default()
            )
        })?;
        return Ok(Exit::Done);
    }
    super::archive::drain_spool(&context, &opened.members)?;
    let began = Instant::now();
    let mut report = take_into_first(&context, &mut opened, |opened| {
        let (options, first) = (options(&args, &context, opened)?, opened.first());
        backup::run(&options, &first.repo, &context.ctx).map_err(|e| failed(e, first))
    })?;
    let cluster = context.cluster()?;
    for w in &report.warnings {
        output::warning(w);
    }
    context.trail().about("backup", &report.entry.id);
    let others = into_others(&context, &opened, &report.entry.id)?;
    for notice in opened.members.iter().flat_map(|m| m.repo.store().notices()) {
        output::warning(&notice);
        report.warnings.push(notice);
    }
    let entry = &report.entry;
    let locked = super::locks::extend_all(&opened.members, &cluster, &context.ctx);
    let all_have_it = others.all_have_all() && locked.iter().all(Locked::is_fine);
    let document = BackupDocument::new(cluster.as_str(), &report, others.outcomes, others.lacking)
        .locked(locked.iter().map(Locked::document).collect(), locked.iter().flat_map(Locked::warnings));
    output::result(global.form(), &document, || {
        if global.quiet {
            return format!("{}\n", entry.id);
        }
        format!(
            "{}\n  {}{} read, {} stored ({:.1}x), {} to {} on timeline {}, in {}\n",
            entry.id,
            ground(&report),
            human_bytes(entry.read_bytes),
            human_bytes(entry.stored_bytes),
            entry.size_bytes as f64 / entry.stored_bytes.max(1) as f64,
            entry.lsn_start,
            entry.lsn_stop,
            entry.timeline,
            human_duration(began.elapsed())
        ) + &resumed(&report)
            + &report.rechecked.as_ref().map(rechecked).unwrap_or_default()
            + &locked.iter().map(Locked::text).collect::<String>()
    })?;
    match others.required {
        Some(failure) => Err(failure),
        None if report.warnings.is_empty() && all_have_it => Ok(Exit::Done),
        None => Ok(Exit::Warnings),
    }
}

/// Takes a backup into the first repository. Where that one goes away meanwhile, is full or lets something not be read or written,
/// and is not required, it is taken anew into the next one.
pub(super) fn take_into_first<T>(
    context: &Context,
    opened: &mut Opened,
    mut take: impl FnMut(&Opened) -> Result<T, Failure>,
) -> Result<T, Failure> {
    loop {
        let failure = match take(opened) {
            Ok(taken) => return Ok(taken),
            Err(failure) => failure,
        };
        let [first, next, ..] = opened.members.as_slice() else { return Err(failure) };
        if first.required || context.ctx.check_cancelled().is_err() {
            return Err(failure);
        }
        let what = if !context.can_be_read(&first.name)? {
            "went away in the middle of the backup"
        } else if failure.code == "E-REPO-SPACE" && !is_of_another(opened, &failure) {
            "has no room for the backup"
        } else if is_its_own(&failure) && failure.code.starts_with("E-REPO-") && !is_of_another(opened, &failure) {
            "cannot take the backup"
        } else {
            return Err(failure);
        };
        output::warning(&format!(
            "repository {} {what}: {}: {}; it is taken anew into {}",
            first.name, failure.code, failure.message, next.name
        ));
        let gone = opened.members.remove(0);
        opened.away.push((gone.name, failure));
    }
}

/// Of a required one among the others, which is named.
fn is_of_another(opened: &Opened, failure: &Failure) -> bool {
    opened.members.iter().skip(1).any(|m| failure.message.starts_with(&format!("repository {}: ", m.name)))
}

/// By a variable of the deployment.
pub(super) fn refuse_switched_off(context: &Context) -> Result<(), Failure> {
    let cluster = context.cluster_settings()?;
    if cluster.backups_enabled {
        return Ok(());
    }
    let message = format!("backups of '{}' are switched off by variable BACKUP_ENABLED", cluster.name);
    Err(Failure::refused("E-BACKUP-DISABLED", message).hint("set it to true, or unset it"))
}

/// How the repositories beside the first fared.
pub(super) struct Others {
    pub outcomes: Vec<RepoOutcome>,
    /// The failure, when a required one lacks the backup.
    pub required: Option<Failure>,
    /// Which lack it, and why; and what each lacks that another one got.
    pub lacking: Vec<String>,
}

impl Others {
    pub fn all_have_all(&self) -> bool {
        self.lacking.is_empty() && self.outcomes.iter().all(|o| o.ok)
    }
}

/// Copies the new backup into the other repositories. Returns how each fared, and the failure when a required one lacks it.
pub(super) fn into_others(context: &Context, opened: &Opened, id: &BackupId) -> Result<Others, Failure> {
    let members = &opened.members;
    let first = members.first().expect("there is at least one");
    let mut outcomes = vec![RepoOutcome { name: first.name.clone(), ok: true }];
    let mut required = None;
    let mut lacking: Vec<String> = opened.away.iter().map(|(name, failure)| left_out(name, failure)).collect();
    let options = ReplicateOptions { cluster: context.cluster()?, which: Which::Newer, jobs: context.jobs() };
    for (name, why) in several::complete(members, &options, id, &context.ctx) {
        let ok = why.is_none();
        if let Some(why) = why {
            let message = format!("backup {id} is in repository {}, and {name} lacks it: {why}", first.name);
            output::warning(&message);
            lacking.push(message.clone());
            if members.iter().any(|m| m.name == name && m.required) {
                let hint = format!("'pgark replicate --from {} --to {name}' completes it", first.name);
                required = Some(Failure::failed("E-REPO-REQUIRED", message).hint(hint));
            }
        }
        outcomes.push(RepoOutcome { name, ok });
    }
    // What they got while another one was away comes into that one by 'replicate' alone.
    let told = |name: &str| outcomes.iter().any(|o: &RepoOutcome| o.name == name && !o.ok);
    for one in lacking::among(members, &options.cluster) {
        let Ok(lacks) = one.found else { continue };
        if !told(&one.to.name) {
            let message = format!("repository {} {}", one.to.name, lacks.describe(&one.from.name, &one.to.name));
            output::warning(&message);
            lacking.push(message);
        }
    }
    lacking.extend(context.warn_of_closed_copies(members.get(1..).unwrap_or_default())?);
    outcomes.extend(opened.away.iter().map(|(name, _)| RepoOutcome { name: name.clone(), ok: false }));
    Ok(Others { outcomes, required, lacking })
}

fn resumed(report: &BackupReport) -> String {
    let ids: Vec<String> = report.resumed.backups.iter().map(ToString::to_string).collect();
    match ids.as_slice() {
        [] => String::new(),
        ids => format!("  resumed {}: {} were stored already\n", ids.join(", "), human_bytes(report.resumed.bytes)),
    }
}

fn rechecked(r: &Rechecked) -> String {
    format!(
        "  compared with the earlier backup: {} pages taken over, {} of them with other hints, {} changed since the start, \
         {} wrong\n",
        r.pages, r.hints, r.later, r.wrong
    )
}

/// What the backup rests on, for people.
fn ground(report: &BackupReport) -> String {
    match (&report.base, &report.full_because) {
        (Some(Base { backup, reason: None, .. }), _) => format!("changes since {backup}: "),
        (Some(Base { backup, reason: Some(why), .. }), _) => {
            format!("changes since {backup}, found by reading everything ({why}): ")
        }
        (None, Some(why)) => format!("full ({why}): "),
        (None, None) => "full: ".into(),
    }
}

/// Rules of room by repository, in the order in which they were opened.
fn room(args: &BackupArgs, context: &Context, opened: &Opened) -> Result<RoomOptions, Failure> {
    let selected = context.settings.selected_repos()?;
    let rules = |name: &str| selected.iter().find(|s| s.name == name).map(|s| s.space.rules).unwrap_or_default();
    let mut members = opened.members.iter().map(|m| (m.clone(), rules(&m.name)));
    let first = members.next().map(|(_, rules)| rules).unwrap_or_default();
    Ok(RoomOptions { rules: first, ignore: args.ignore_space, others: members.collect() })
}

fn options(args: &BackupArgs, context: &Context, opened: &Opened) -> Result<BackupOptions, Failure> {
    let annotations = annotations(&args.annotate)?;
    Ok(BackupOptions {
        cluster: context.cluster()?,
        pgdata: context.pgdata()?,
        connect: context.connect_options()?,
        connect_timeout: CONNECT_TIMEOUT,
        wanted: match args.backup_type {
            TypeArg::Full => Wanted::Full,
            TypeArg::Incr => Wanted::Incremental,
            TypeArg::Diff => Wanted::Differential,
        },
        jobs: context.jobs(),
        compression: compression(&args.compress)?,
        verify_incremental: args.verify_incremental,
        keep: args.keep,
        annotations,
        archive_timeout: args.archive_timeout.0,
        room: room(args, context, opened)?,
    })
}

pub fn annotations(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |a: &String| {
        let split = a.split_once('=').filter(|(k, _)| !k.is_empty());
        let (k, v) = split.ok_or_else(|| {
            Failure::usage("E-ANNOTATION", format!("'{a}' is not KEY=VALUE")).hint("such as ticket=42")
        })?;
        Ok((k.to_owned(), v.to_owned()))
    };
    given.iter().map(pair).collect()
}

pub fn compression(text: &str) -> Result<Compression, Failure> {
    Compression::parse(text).ok_or_else(|| {
        Failure::usage("E-COMPRESSION", format!("'{text}' is not a compression"))
            .hint("none, lz4, zstd, or zstd:LEVEL with a level from -7 to 19")
    })
}
