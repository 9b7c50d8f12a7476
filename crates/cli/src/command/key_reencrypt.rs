//! `key reencrypt|retire`: what is there comes under the newest key, and older keys are given up.

use std::time::Duration;

use clap::Args;
use pgark_engine::keys::Mode;
use pgark_engine::keys::copies::{self, CopyRing};
use pgark_engine::reencrypt::retire::{self, Proof, RetireOptions, Retired};
use pgark_engine::reencrypt::{self, Amount, ReencryptOptions, ReencryptPlan, ReencryptReport};
use pgark_repo::Repository;
use pgark_repo::keyring::Unlock;
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes};
use crate::settings::units::Span;

/// How long older seals stay, and how long the newest key must have been in force, when nothing is said.
const GRACE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub struct ReencryptArgs {
    /// How long what was sealed anew stays under the old key too, for readers under way [default: 1d]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    grace: Option<Span>,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Debug, Args)]
pub struct RetireArgs {
    /// How long the newest key must have been in force: commands that began before may use an older one [default: 1d]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    grace: Option<Span>,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

pub fn reencrypt(args: &ReencryptArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    context.stop_on_signals()?;
    let repo = context.open_repository(&context.one_repo_settings()?)?;
    let options = ReencryptOptions { jobs: context.jobs(), grace: args.grace.map_or(GRACE, |s| s.0) };
    let plan = reencrypt::plan(&repo, &options, &context.ctx).map_err(engine_failure)?;
    if args.dry_run.dry_run {
        output::result(global.form(), &plan_json(&plan), || plan_text(&plan))?;
        return Ok(Exit::Done);
    }
    let old: u64 = plan.clusters.iter().map(|c| c.old.objects).sum();
    let question = format!(
        "seal {old} objects anew under generation {} of the key, {} beside what is there, and remove older seals whose \
         grace is over",
        plan.generation,
        human_bytes(plan.needed_bytes())
    );
    confirm(&args.confirm, &question)?;
    let report = run(&repo, &options, &plan, context)?;
    let older_keys = repo.keys().generations().len() > 1;
    global.report(&report_json(&plan, &report), || report_text(&plan, &report, older_keys))?;
    for (object, why) in &report.failed {
        output::warning(&format!("{object} is not sealed anew: {why}"));
    }
    for dir in &report.books_left {
        output::warning(&format!(
            "an older version of {dir} is under an older key and stays: the store keeps what is deleted, or denies it"
        ));
    }
    Ok(match (report.failed.is_empty(), report.books_left.is_empty()) {
        (false, _) => Exit::Damage,
        (true, false) => Exit::Warnings,
        (true, true) => Exit::Done,
    })
}

fn run(
    repo: &Repository,
    options: &ReencryptOptions,
    plan: &ReencryptPlan,
    context: &Context,
) -> Result<ReencryptReport, Failure> {
    reencrypt::run(repo, options, plan, &context.ctx).map_err(engine_failure)
}

fn amount(a: &Amount) -> Value {
    json!({"objects": a.objects, "bytes": a.bytes})
}

fn plan_json(plan: &ReencryptPlan) -> Value {
    let clusters: Vec<Value> = plan
        .clusters
        .iter()
        .map(|c| {
            json!({"name": c.cluster.to_string(), "old": amount(&c.old), "superseded": amount(&c.superseded),
                "remains": c.remains.iter().map(ToString::to_string).collect::<Vec<_>>()})
        })
        .collect();
    json!({"schema": SCHEMA, "dry_run": true, "generation": plan.generation, "needed_bytes": plan.needed_bytes(),
        "free_bytes": plan.free_bytes, "clusters": clusters})
}

fn plan_text(plan: &ReencryptPlan) -> String {
    if plan.is_empty() {
        return format!("backups and WAL are under generation {} of the key\n", plan.generation);
    }
    let mut out = String::new();
    for c in &plan.clusters {
        let (old, superseded) = (&c.old, &c.superseded);
        out += &format!("{}: {} objects to seal anew, {}", c.cluster, old.objects, human_bytes(old.bytes));
        out += &format!("; {} older seals to remove, {}\n", superseded.objects, human_bytes(superseded.bytes));
        for id in &c.remains {
            out += &format!("  left alone: the remains of {id}, which are removed\n");
        }
    }
    let free = plan.free_bytes.map_or(String::new(), |free| format!("; {} are free", human_bytes(free)));
    out + &format!("needs room for {} until the older seals go{free}\n", human_bytes(plan.needed_bytes()))
}

fn report_json(plan: &ReencryptPlan, report: &ReencryptReport) -> Value {
    let failed: Vec<Value> = report.failed.iter().map(|(o, why)| json!({"object": o, "why": why})).collect();
    let waits: Vec<Value> =
        report.waits_for.iter().map(|(c, why)| json!({"cluster": c.to_string(), "why": why})).collect();
    json!({"schema": SCHEMA, "dry_run": false, "generation": plan.generation, "sealed": amount(&report.sealed),
        "removed": amount(&report.removed), "waiting": amount(&report.waiting), "waits_for": waits,
        "failed": failed, "books_left": report.books_left,
        "remains": report.remains.iter().map(ToString::to_string).collect::<Vec<_>>()})
}

fn report_text(plan: &ReencryptPlan, report: &ReencryptReport, older_keys: bool) -> String {
    let line = |what: &str, a: &Amount| format!("{what} {} objects, {}\n", a.objects, human_bytes(a.bytes));
    let mut out = line(&format!("sealed anew under generation {}:", plan.generation), &report.sealed);
    out += &line("older seals removed:", &report.removed);
    if report.waiting.objects > 0 {
        out += &line("older seals that wait:", &report.waiting);
        for (cluster, why) in &report.waits_for {
            out += &format!("  {cluster}: {why}\n");
        }
        out += "repeat this command later to remove them\n";
    } else if older_keys && report.failed.is_empty() && report.books_left.is_empty() {
        out += "'pgark key retire' gives the older keys up\n";
    }
    out
}

pub fn retire(
    args: &RetireArgs,
    global: &GlobalArgs,
    context: &Context,
    store: &std::sync::Arc<dyn pgark_repo::store::Store>,
    unlock: &Unlock,
) -> Result<Outcome, Failure> {
    let options = RetireOptions { unlock, jobs: context.jobs(), grace: args.grace.map_or(GRACE, |s| s.0) };
    if args.dry_run.dry_run {
        let plan = retire::retire(store, &options, Mode::Plan, &context.ctx).map_err(engine_failure)?;
        output::result(global.form(), &retired_json(&plan, false), || retired_text(&plan, Mode::Plan))?;
        return Ok(if plan.proof.old_count() == 0 { Exit::Done } else { Exit::Refused });
    }
    let (own, (others, silent)) = (context.one_repo_settings()?.name, context.other_stores(&**store));
    retire::refuse_copies_behind(store, &own, &others).map_err(engine_failure)?;
    for (name, failure) in &silent {
        output::warning(&format!(
            "repository {name} cannot be asked for its key ({}: {}): when it is a copy without the newest key, it is cut off",
            failure.code, failure.message
        ));
    }
    let copies = copies::rings_of(store, unlock, &others).map_err(engine_failure)?;
    for CopyRing { name, .. } in copies.iter().filter(|copy| copy.holds_older_keys()) {
        output::warning(&format!(
            "repository {name} holds older keys: nothing is copied from it into {own} until 'pgark key reencrypt' and 'pgark key \
             retire' have run there too"
        ));
    }
    confirm(&args.confirm, "give up all older keys; nothing that is under one can be read after that")?;
    let done = retire::retire(store, &options, Mode::Run, &context.ctx).map_err(engine_failure)?;
    global.report(&retired_json(&done, true), || retired_text(&done, Mode::Run))?;
    super::key::older_rings(done.older_rings_gone)
}

fn retired_json(done: &Retired, run: bool) -> Value {
    let Proof { generation, objects, by_generation, old, strange, strange_count } = &done.proof;
    let by: Vec<Value> = by_generation.iter().map(|(g, n)| json!({"generation": g, "objects": n})).collect();
    let old: Vec<Value> = old.iter().map(|(o, g)| json!({"object": o, "generation": g})).collect();
    json!({"schema": SCHEMA, "generation": generation, "objects_checked": objects, "by_generation": by,
        "in_use": done.proof.old_count(), "in_use_objects": old, "foreign_files": strange_count,
        "foreign_names": strange, "retired": if run { done.generations.clone() } else { vec![] },
        "older_rings_gone": run && done.older_rings_gone})
}

fn retired_text(done: &Retired, mode: Mode) -> String {
    let proof = &done.proof;
    let mut out = format!("{} objects, by the generation of their key:\n", proof.objects);
    for (generation, count) in &proof.by_generation {
        out += &format!("  generation {generation}: {count}\n");
    }
    for (object, generation) in &proof.old {
        out += &format!("  in use: {object} (generation {generation})\n");
    }
    if proof.old_count() > proof.old.len() as u64 {
        out += &format!("  … and {} more\n", proof.old_count() - proof.old.len() as u64);
    }
    if proof.strange_count > 0 {
        out += &format!("  {} files that are no objects of pgark, such as {}\n", proof.strange_count, proof.strange[0]);
    }
    let generations = done.generations.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    out + &match (done.generations.is_empty(), mode, proof.old_count()) {
        (_, _, 1..) => "the older keys are in use and stay\n".to_owned(),
        (true, ..) => "the key ring holds no older key\n".to_owned(),
        (false, Mode::Plan, _) => format!("would give up generation {generations}\n"),
        (false, Mode::Run, _) => format!("gave up generation {generations}: nothing here is under it any more\n"),
    }
}
