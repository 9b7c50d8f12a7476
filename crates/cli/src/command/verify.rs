//! `verify`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use pgark_engine::repair::{self, Act, RepairFrom, RepairReport};
use pgark_engine::several::Member;
use pgark_engine::verify::{self, Depth, LostWindow, ProblemKind, VerifyOptions, VerifyReport};

use pgark_repo::Repository;
use pgark_repo::names::{self, BackupId};

use super::Outcome;
use super::context::{Context, engine_failure};
use super::delete::parse_id;
use super::documents::{VerifyDocument, problem_kind};
use crate::args::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{self, human_bytes, timestamp};
use crate::store::Missing;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// One backup and the WAL it needs; everything when left out
    id: Option<String>,
    /// Presence and size only: says nothing about content
    #[arg(long)]
    quick: bool,
    /// Make right what is missing or damaged, from parity, another repository, or (packs alone) unchanged pages of the
    /// cluster's own directory (--pgdata), and write parity where it lacks
    #[arg(long, conflicts_with = "quick")]
    repair: bool,
    /// Repository to repair from, a copy with keys of its own too; otherwise the others of the cluster
    #[arg(long, value_name = "NAME|URL", requires = "repair")]
    from: Option<String>,
    /// With --repair: say what could be repaired and from what, and change nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
}

pub fn run(args: VerifyArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let context = if args.quick { context.admitting_writers() } else { context };
    context.stop_on_signals()?;
    let only = args.id.as_deref().map(parse_id).transpose()?;
    let repo = context.open_repository(&context.repo_settings()?)?;
    if let Some(from) = &args.from {
        check_from(&context, &repo, from)?;
    }
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let options = VerifyOptions { cluster: context.cluster()?, only, depth, jobs: context.jobs() };
    let mut report = verify::verify(&options, &repo, &context.ctx).map_err(engine_failure)?;
    let something_to_do =
        !report.problems.is_empty() || !report.parity_missing.is_empty() || !report.leftovers.is_empty();
    let (mut done, mut possible) = (vec![], vec![]);
    match args.repair && something_to_do {
        true if args.dry_run => possible = looked_for(&args, &context, &repo, &options, &report)?,
        true => done = repaired(&args, &context, &repo, &options, &mut report)?,
        false => {}
    }
    let document = VerifyDocument::new(&report, depth, done.clone(), &possible);
    output::result(global.form(), &document, || {
        let line = |(object, from): &(String, String)| format!("COULD BE REPAIRED: {object}: from {from}\n");
        done.iter().map(|object| format!("REPAIRED: {object}\n")).collect::<String>()
            + &text(&report, depth, done.len())
            + &possible.iter().map(line).collect::<String>()
    })?;
    Ok(match (report.problems.is_empty(), report.unchecked.is_empty()) {
        (false, _) => Exit::Damage,
        (true, false) => Exit::Warnings,
        (true, true) => Exit::Done,
    })
}

/// Before anything is read: there is a repository, and another one.
fn check_from(context: &Context, repo: &Repository, from: &str) -> Result<(), Failure> {
    let store = context.open_store(&context.settings.repo(from)?, Missing::Refuse)?;
    if store.url() == repo.store().url() {
        let message = format!("--from {from} is the repository that is to be repaired");
        return Err(Failure::usage("E-REPO-CHOICE", message).hint("name another copy of it"));
    }
    Repository::ring_bytes(&store).map(drop).map_err(|e| engine_failure(e.into()))
}

/// How often what a repair uncovers is repaired in turn: records hide manifests, and these hide packs.
const ROUNDS: usize = 4;

/// What a repair takes the right bytes from.
struct Helpers {
    others: Vec<Member>,
    data: Option<PathBuf>,
}

impl Helpers {
    fn open(args: &VerifyArgs, context: &Context, repo: &Repository, report: &VerifyReport) -> Result<Self, Failure> {
        let others = match report.problems.is_empty() {
            true => vec![],
            false => context.open_others(repo, args.from.as_deref())?,
        };
        Ok(Helpers { others, data: context.pgdata().ok().filter(|dir| dir.is_dir()) })
    }

    fn from(&self, act: Act) -> RepairFrom<'_> {
        RepairFrom { others: &self.others, data: self.data.as_deref(), act }
    }

    fn are_none(&self) -> bool {
        self.others.is_empty() && self.data.is_none()
    }
}

/// What could be repaired, and from what. Only the first round: what damaged records and manifests hide is not known yet.
fn looked_for(
    args: &VerifyArgs,
    context: &Context,
    repo: &Repository,
    options: &VerifyOptions,
    report: &VerifyReport,
) -> Result<Vec<(String, String)>, Failure> {
    let helpers = Helpers::open(args, context, repo, report)?;
    let found = repair::repair(repo, &helpers.from(Act::LookOnly), &options.cluster, report, &context.ctx);
    let found = found.map_err(engine_failure)?;
    for (object, why) in &found.left {
        output::warning(&format!("{object} could not be repaired: {why}"));
    }
    let removed = report.leftovers.iter().map(|object| (object.clone(), "nothing: it would be removed".to_owned()));
    let written = report.parity_missing.iter().map(|name| (format!("the parity of {name}"), "its bytes".to_owned()));
    Ok(found.possible.into_iter().chain(removed).chain(written).collect())
}

/// Repairs, and looks again at everything that was affected. What is whole now leaves the report, what comes to light joins it.
fn repaired(
    args: &VerifyArgs,
    context: &Context,
    repo: &Repository,
    options: &VerifyOptions,
    report: &mut VerifyReport,
) -> Result<Vec<String>, Failure> {
    let helpers = Helpers::open(args, context, repo, report)?;
    let from = helpers.from(Act::Repair);
    let mut all = vec![];
    for round in 0..ROUNDS {
        let done = repair::repair(repo, &from, &options.cluster, report, &context.ctx).map_err(engine_failure)?;
        if round == 0 && done.had_no_source() && helpers.are_none() {
            output::warning(
                "there is no parity, repository or cluster to repair from: name another repository with --from, give the \
                 cluster several, or give its directory with --pgdata",
            );
        }
        let left = done.left.iter().map(|(object, why)| format!("{object} could not be repaired: {why}"));
        repo.store().notices().into_iter().chain(left).for_each(|line| output::warning(&line));
        if round == 0 && report.problems.iter().any(|p| p.kind == ProblemKind::Gap) {
            output::warning(&never_got(context, &helpers));
        }
        report.parity_missing.retain(|name| !done.protected.contains(name));
        report.parity_present += done.protected.len() as u64;
        report.leftovers.retain(|object| !done.repaired.contains(object));
        let uncovered = look_again(context, repo, options, &done, report)?;
        let whole = done.repaired.into_iter().filter(|object| !report.problems.iter().any(|p| p.object == *object));
        all.extend(whole);
        if !uncovered {
            break;
        }
    }
    Ok(all)
}

/// A repair puts back what was here. What never was is for another command.
fn never_got(context: &Context, helpers: &Helpers) -> String {
    let own = context.repo_settings().map(|s| s.name).unwrap_or_default();
    let from = helpers.others.first().map_or("…", |member| &member.name);
    format!(
        "segments that never got here are not repaired: 'pgark replicate --from {from} --to {own}' brings what another repository has"
    )
}

/// Whether there is more to be repaired than before.
fn look_again(
    context: &Context,
    repo: &Repository,
    options: &VerifyOptions,
    done: &RepairReport,
    report: &mut VerifyReport,
) -> Result<bool, Failure> {
    report.problems.retain(|p| !done.repaired.contains(&p.object));
    let mut uncovered = false;
    for id in &done.backups {
        let one = VerifyOptions { only: Some(id.clone()), ..options.clone() };
        let second = verify::verify(&one, repo, &context.ctx).map_err(engine_failure)?;
        // A manifest that can be read again says whose packs these are.
        let is_known =
            |object: &str| names::healed_from(object).is_none() && second.accounted.contains(names::principal(object));
        report.problems.retain(|p| p.kind != ProblemKind::Unexpected || !is_known(&p.object));
        for problem in second.problems {
            if !report.problems.iter().any(|p| p.object == problem.object) {
                uncovered = true;
                report.problems.push(problem);
            }
        }
        let missing = second.parity_missing.into_iter().filter(|name| !report.parity_missing.contains(name));
        let missing: Vec<_> = missing.collect();
        uncovered |= !missing.is_empty();
        report.parity_missing.extend(missing);
    }
    Ok(uncovered)
}

fn text(r: &VerifyReport, depth: Depth, repaired: usize) -> String {
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
    if let Some(first) = r.unchecked.first() {
        let backups: BTreeSet<&BackupId> = r.unchecked.iter().flat_map(|u| &u.backups).collect();
        let ids: Vec<String> = backups.into_iter().map(ToString::to_string).collect();
        out += &format!(
            "NOT CHECKED: {} packs are archived and have to be thawed before they can be read, {} among them\n  backups \
             that need them: {}\n",
            r.unchecked.len(),
            first.object,
            ids.join(", ")
        );
    }
    for note in r.remarks() {
        out += &format!("note: {note}\n");
    }
    out += &match (r.parity_present, r.parity_missing.len()) {
        (0, 0) => String::new(),
        (n, 0) => format!("parity: {n} objects have it\n"),
        (n, missing) => {
            format!("parity: {n} objects have it, {missing} have not: 'pgark verify --repair' writes it\n")
        }
    };
    let depth = match depth {
        Depth::Full if !r.unchecked.is_empty() => {
            format!("{} read and authenticated, {} objects not read", human_bytes(r.bytes_checked), r.unchecked.len())
        }
        Depth::Full => format!("every byte of {} read and authenticated", human_bytes(r.bytes_checked)),
        Depth::Quick if r.by_books => "as far as a writer sees them: contents were not checked".to_owned(),
        Depth::Quick => "presence and size only: contents were not checked".to_owned(),
    };
    let verdict = match r.problems.len() {
        0 => "no problem".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let left = match repaired {
        0 => String::new(),
        n => format!(" left, {n} objects repaired"),
    };
    out + &format!(
        "{verdict}{left}: {} backups, {} objects checked, {depth}\n",
        r.backups_checked.len(),
        r.objects_checked
    )
}

fn span(w: &LostWindow) -> String {
    let time = |t: Option<jiff::Timestamp>| t.map(|t| format!(" ({})", timestamp(t))).unwrap_or_default();
    format!("timeline {}, {}{} to {}{}", w.timeline, w.from_lsn, time(w.from_time), w.to_lsn, time(w.to_time))
}
