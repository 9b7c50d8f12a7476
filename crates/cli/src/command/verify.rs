//! `verify`.

use std::collections::BTreeSet;

use clap::Args;
use pgark_engine::repair::{self, RepairFrom};
use pgark_engine::verify::{self, Depth, LostWindow, VerifyOptions, VerifyReport};

use pgark_repo::Repository;

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::documents::{VerifyDocument, problem_kind};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, human_bytes, timestamp};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// One backup and the WAL it needs; everything when left out
    id: Option<String>,
    /// Presence and size only: says nothing about content
    #[arg(long)]
    quick: bool,
    /// Replace what is missing or damaged by the same bytes of another repository, and damaged packs also with the help of
    /// the cluster's own directory (--pgdata), where its pages have not changed
    #[arg(long, conflicts_with = "quick")]
    repair: bool,
    /// Repository to repair from; otherwise the others of the cluster
    #[arg(long, value_name = "NAME|URL", requires = "repair")]
    from: Option<String>,
}

pub fn run(args: VerifyArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    context.stop_on_signals()?;
    let only = args.id.as_deref().map(parse_id).transpose()?;
    let repo = context.open_repository(&context.repo_settings()?)?;
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let options = VerifyOptions { cluster: context.cluster()?, only, depth, jobs: context.jobs() };
    let mut report = verify::verify(&options, &repo, &context.ctx).map_err(engine_failure)?;
    let repaired = match args.repair && !report.problems.is_empty() {
        true => repaired(&args, &context, &repo, &options, &mut report)?,
        false => vec![],
    };
    let document = VerifyDocument::new(&report, depth, repaired.clone());
    output::result(global.form(), &document, || {
        repaired.iter().map(|object| format!("REPAIRED: {object}\n")).collect::<String>() + &text(&report, depth)
    })?;
    Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Damage })
}

/// Repairs, and looks again at everything that was affected. What is whole now leaves the report.
fn repaired(
    args: &VerifyArgs,
    context: &Context,
    repo: &Repository,
    options: &VerifyOptions,
    report: &mut VerifyReport,
) -> Result<Vec<String>, Failure> {
    let others = context.open_others(repo, args.from.as_deref())?;
    let data = context.pgdata().ok().filter(|dir| dir.is_dir());
    if others.is_empty() && data.is_none() {
        return Err(Failure::usage("E-REPO-CHOICE", "there is nothing to repair from")
            .hint("name another repository with --from, give the cluster several, or give its --pgdata"));
    }
    let from = RepairFrom { others: &others, data: data.as_deref() };
    let done = repair::repair(repo, &from, &options.cluster, report, &context.ctx).map_err(engine_failure)?;
    for (object, why) in &done.left {
        output::warning(&format!("{object} could not be repaired: {why}"));
    }
    let mut again: BTreeSet<String> = BTreeSet::new();
    for id in &done.backups {
        let one = VerifyOptions { only: Some(id.clone()), ..options.clone() };
        let second = verify::verify(&one, repo, &context.ctx).map_err(engine_failure)?;
        again.extend(second.problems.into_iter().map(|p| p.object));
    }
    let whole = |object: &String| done.repaired.contains(object) && !again.contains(object);
    report.problems.retain(|p| !whole(&p.object));
    Ok(done.repaired.into_iter().filter(|object| !again.contains(object)).collect())
}

fn text(r: &VerifyReport, depth: Depth) -> String {
    let mut out = String::new();
    for p in &r.problems {
        out += &format!("{}: {}: {}\n", problem_kind(p.kind).to_uppercase(), p.object, p.what);
        if !p.backups.is_empty() {
            let ids: Vec<String> = p.backups.iter().map(ToString::to_string).collect();
            out += &format!("  backups that cannot be restored: {}\n", ids.join(", "));
        }
        for w in &p.windows {
            out += &format!("  targets that cannot be reached: {}\n", span(w));
        }
    }
    for note in &r.notes {
        out += &format!("note: {note}\n");
    }
    let depth = match depth {
        Depth::Full => format!("every byte of {} read and authenticated", human_bytes(r.bytes_checked)),
        Depth::Quick => "presence and size only: contents were not checked".to_owned(),
    };
    let verdict = match r.problems.len() {
        0 => "no problem".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    out + &format!("{verdict}: {} backups, {} objects checked, {depth}\n", r.backups_checked.len(), r.objects_checked)
}

fn span(w: &LostWindow) -> String {
    let time = |t: Option<jiff::Timestamp>| t.map(|t| format!(" ({})", timestamp(t))).unwrap_or_default();
    format!("timeline {}, {}{} to {}{}", w.timeline, w.from_lsn, time(w.from_time), w.to_lsn, time(w.to_time))
}
