//! `backup --kind files`, and the files of `--kind system`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use pgark_engine::files::{self, FilesJob, FilesOptions, FilesPlan, FilesReport, Root};
use pgark_repo::record::{FilesPart, LeftOut, LeftOutWhy};

use super::Outcome;
use super::backup::{BackupArgs, annotations, compression, into_others, take_into_first};
use super::backup_logical::scratch;
use super::context::{Context, engine_failure};
use super::documents::BackupDocument;
use super::locks::Locked;
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes, human_duration};
use crate::settings::repo_url::Scheme;
use crate::settings::schema::Kind;

/// Paths that the text for people names, of each kind.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Backups of files and systems")]
pub struct FilesArgs {
    /// A directory or file to back up, instead of those of the configuration; repeatable
    #[arg(long, value_name = "PATH", num_args = 1.., action = clap::ArgAction::Append, allow_hyphen_values = false)]
    path: Vec<PathBuf>,
    /// Only what matches this pattern, such as '*.pdf'; repeatable
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Not what matches this pattern, such as 'cache/**'; repeatable, besides those of the configuration
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Leave out directories on which another file system is mounted
    #[arg(long)]
    one_file_system: bool,
}

impl FilesArgs {
    pub fn refuse_for(&self, kind: Kind) -> Result<(), Failure> {
        let given = [
            ("--path", !self.path.is_empty()),
            ("--include", !self.include.is_empty()),
            ("--exclude", !self.exclude.is_empty()),
            ("--one-file-system", self.one_file_system),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => {
                let kind = pgark_repo::catalog::BackupKind::from(kind);
                Err(Failure::usage("E-KIND", format!("{flag} is for backups of files, and this is a {kind} one"))
                    .hint("add --kind files or --kind system"))
            }
        }
    }
}

/// Flags over the settings. Patterns of secrets are not among them: secrets are never backed up.
pub fn files_options(args: &FilesArgs, context: &Context) -> Result<FilesOptions, Failure> {
    let configured = context.cluster_settings()?.system.clone().unwrap_or_default();
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|e| Failure::usage("E-FILES-PATH", format!("{}: {e}", path.display())))
    };
    let (config, files) = match args.path.is_empty() {
        true => (configured.config_files, configured.directories),
        false => (vec![], args.path.iter().map(absolute).collect::<Result<Vec<_>, Failure>>()?),
    };
    let include = if args.include.is_empty() { configured.include } else { args.include.clone() };
    let exclude = configured.exclude.into_iter().chain(args.exclude.iter().cloned()).collect();
    let local =
        |r: &crate::settings::RepoSettings| (r.url.scheme == Scheme::File).then(|| PathBuf::from(r.url.path.clone()));
    let mut own: Vec<PathBuf> = context.settings.selected_repos()?.iter().filter_map(local).collect();
    own.extend(context.settings.repos_of_cluster().iter().filter_map(local));
    own.extend(context.cluster_settings()?.pgdata.clone());
    let one_file_system = args.one_file_system || configured.one_file_system;
    Ok(FilesOptions { config, files, include, exclude, one_file_system, own })
}

pub fn job(args: &BackupArgs, context: &Context) -> Result<FilesJob, Failure> {
    Ok(FilesJob {
        cluster: context.cluster()?,
        files: files_options(&args.files, context)?,
        scratch: scratch(&context.cluster_settings()?.logical.clone().unwrap_or_default()),
        compression: compression(&args.compress)?,
        keep: args.keep,
        annotations: annotations(&args.annotate)?,
    })
}

pub fn run(args: &BackupArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let mut context = Context::new(global)?;
    super::backup::refuse_switched_off(&context)?;
    args.priority.apply()?;
    let limit = context.cluster_settings()?.bandwidth_limit;
    args.rate.apply(limit, &mut context.ctx)?;
    context.stop_on_signals()?;
    let job = job(args, &context)?;
    let mut opened = context.open_members(None)?;
    if args.dry_run.dry_run {
        let plan = files::plan(&job, &opened.first().repo, &context.ctx).map_err(engine_failure)?;
        plan.warnings.iter().for_each(|w| output::warning(w));
        output::result(global.form(), &plan_document(&job, &plan), || plan_text(&job, &plan))?;
        return Ok(Exit::Done);
    }
    let began = Instant::now();
    let mut report = take_into_first(&context, &mut opened, |opened| {
        files::run(&job, &opened.first().repo, &context.ctx).map_err(engine_failure)
    })?;
    report.warnings.iter().for_each(|w| output::warning(w));
    context.trail().about("backup", &report.entry.id);
    let others = into_others(&context, &opened, &report.entry.id)?;
    for notice in opened.members.iter().flat_map(|m| m.repo.store().notices()) {
        output::warning(&notice);
        report.warnings.push(notice);
    }
    let locked = super::locks::extend_all(&opened.members, &job.cluster, &context.ctx);
    let all_have_it = others.all_have_all() && locked.iter().all(Locked::is_fine);
    let document = BackupDocument::files(job.cluster.as_str(), &report, others.outcomes, others.lacking)
        .locked(locked.iter().map(Locked::document).collect(), locked.iter().flat_map(Locked::warnings));
    output::result(global.form(), &document, || {
        if global.quiet {
            return format!("{}\n", report.entry.id);
        }
        text(&report, began.elapsed()) + &locked.iter().map(Locked::text).collect::<String>()
    })?;
    match others.required {
        Some(failure) => Err(failure),
        None if report.warnings.is_empty() && all_have_it => Ok(Exit::Done),
        None => Ok(Exit::Warnings),
    }
}

fn text(report: &FilesReport, took: Duration) -> String {
    let entry = &report.entry;
    format!(
        "{}\n  {} read, {} of it new, {} stored, in {}\n",
        entry.id,
        human_bytes(entry.size_bytes),
        human_bytes(report.new_bytes),
        human_bytes(entry.stored_bytes),
        human_duration(took)
    ) + &contents(&report.files)
}

/// What is in it, and what is not.
pub fn contents(part: &FilesPart) -> String {
    let mut out = format!(
        "  {} files, {} directories, {} symbolic links, {} further hard links\n",
        part.files, part.directories, part.symlinks, part.hard_links
    );
    for (why, count) in &part.left_out_counts {
        out += &format!("  left out, {}: {count}\n", told(*why));
        for l in part.left_out.iter().filter(|l| l.why == *why).take(SHOWN_MAX) {
            out += &format!("    {}\n", path(&l.path));
        }
        if *count > SHOWN_MAX as u64 {
            out += "    … and more: 'pgark info ID' lists them\n";
        }
    }
    out
}

fn told(why: LeftOutWhy) -> &'static str {
    match why {
        LeftOutWhy::Secret => "secrets",
        LeftOutWhy::Excluded => "by a pattern",
        LeftOutWhy::Special => "sockets, pipes and devices",
        LeftOutWhy::Vanished => "gone while they were looked at",
        LeftOutWhy::OtherFileSystem => "in other file systems",
        LeftOutWhy::Own => "repositories and data directories",
        LeftOutWhy::Missing => "not there",
        LeftOutWhy::Unreadable => "COULD NOT BE READ",
    }
}

/// For people, and for documents: what is no text is shown as well as it can be.
pub fn path(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

pub fn roots(roots: &[Root]) -> Vec<serde_json::Value> {
    let one = |r: &Root| serde_json::json!({"section": r.section.as_str(), "path": r.as_path().to_string_lossy()});
    roots.iter().map(one).collect()
}

pub fn document(part: &FilesPart) -> serde_json::Value {
    let left_out =
        |l: &LeftOut| serde_json::json!({"path": String::from_utf8_lossy(&l.path), "why": l.why, "detail": l.detail});
    serde_json::json!({
        "paths": part.roots.iter().map(|r| serde_json::json!({"section": r.section.as_str(),
            "path": String::from_utf8_lossy(&r.path), "directory": r.is_directory})).collect::<Vec<_>>(),
        "files": part.files, "directories": part.directories, "symlinks": part.symlinks,
        "hard_links": part.hard_links, "size_bytes": part.size_bytes,
        "include": part.include, "exclude": part.exclude,
        "left_out": part.left_out.iter().map(left_out).collect::<Vec<_>>(), "left_out_counts": part.left_out_counts,
        "changed": part.changed.iter().map(|p| String::from_utf8_lossy(&p.0).into_owned()).collect::<Vec<_>>(),
        "changed_count": part.changed_count,
    })
}

fn plan_document(job: &FilesJob, plan: &FilesPlan) -> serde_json::Value {
    serde_json::json!({
        "schema": SCHEMA, "id": plan.id.to_string(), "cluster": job.cluster.to_string(), "kind": "files",
        "paths": roots(&plan.roots), "missing": roots(&plan.missing),
        "compared_with": plan.base.as_ref().map(ToString::to_string), "warnings": plan.warnings,
    })
}

fn plan_text(job: &FilesJob, plan: &FilesPlan) -> String {
    let mut out = format!("would take the files backup {} of '{}'\n", plan.id, job.cluster);
    for root in &plan.roots {
        out += &format!("  {} {}\n", root.section.as_str(), root.as_path().display());
    }
    out
}
