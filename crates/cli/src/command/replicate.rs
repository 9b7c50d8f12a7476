//! `replicate`.

use std::path::PathBuf;

use clap::Args;
use pgark_engine::replicate::{self, ReplicateOptions, ReplicatePlan, ReplicateReport, Which};
use pgark_engine::several::Member;
use pgark_repo::Repository;
use pgark_repo::keyring::{NewKeys, SlotInfo, Unlock};
use pgark_repo::repository::Rekeyed;
use serde_json::{Value, json};

use super::Outcome;
use super::context::{Context, engine_failure, named, refuse_same_place};
use super::delete::parse_id;
use super::locks::{self, Locked};
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, human_bytes};
use crate::secret::SecretSource;
use crate::settings::RepoSettings;
use crate::store::Missing;

#[derive(Debug, Args)]
pub struct ReplicateArgs {
    /// One backup and all WAL; everything that is missing when left out
    id: Option<String>,
    /// Repository to read, by name, path or URL
    #[arg(long, value_name = "NAME|URL")]
    from: String,
    /// Repository to complete; an empty place becomes a copy with the same key ring
    #[arg(long, value_name = "NAME|URL")]
    to: String,
    /// The copy has keys of its own: everything is sealed anew on the way. Opened with --new-passphrase-file
    #[arg(long)]
    rekey: bool,
    /// File with the passphrase of a re-keyed copy [env: PGARK_NEW_PASSPHRASE_FILE, PGARK_NEW_PASSPHRASE]
    #[arg(long, value_name = "FILE", requires = "rekey")]
    new_passphrase_file: Option<PathBuf>,
    /// Slot of the copy that goes where the newer key ring of the source has nothing for it; repeatable
    #[arg(long, value_name = "ID", conflicts_with_all = ["rekey", "dry_run"])]
    drop_slot: Vec<String>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub fn run(args: ReplicateArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    if !global.repo.is_empty() {
        return Err(Failure::usage(
            "E-REPO-CHOICE",
            "replicate takes its repositories from --from and --to, not --repo",
        )
        .hint("--from names what is read, --to what is completed"));
    }
    let mut both = global.clone();
    both.repo = vec![args.from, args.to];
    let context = Context::new(&both)?;
    context.stop_on_signals()?;
    let repos = context.settings.selected_repos()?;
    let [from, to] = repos.as_slice() else {
        return Err(Failure::usage("E-REPO-CHOICE", "replicate needs two repositories")
            .hint("name one with --from and another one with --to"));
    };
    refuse_same_place(&[from.clone(), to.clone()])?;
    let which = args.id.as_deref().map(parse_id).transpose()?.map_or(Which::Missing, Which::One);
    let source = context.open_repository(from).map_err(|f| named(f, &from.name, 2))?;
    let missing = if args.dry_run.dry_run { Missing::Refuse } else { Missing::Create };
    if missing == Missing::Create {
        context.refuse_nested(to)?;
    }
    let ring_before = ring_of(&context, to);
    let target = match args.rekey {
        false => context.open_copy_dropping(&source, to, missing, &args.drop_slot),
        true => rekeyed(&context, &source, to, args.new_passphrase_file, missing),
    };
    let target = target.map_err(|f| named(f, &to.name, 2))?;
    let options = ReplicateOptions { cluster: context.cluster()?, which, jobs: context.jobs() };
    let plan = replicate::plan(&source, target.as_ref(), &options).map_err(engine_failure)?;
    let Some(target) = target.filter(|_| !args.dry_run.dry_run) else {
        output::result(global.form(), &planned(&plan), || plan_text(&plan))?;
        return Ok(Exit::Done);
    };
    let report = replicate::run(&source, &target, &options, &plan, &context.ctx).map_err(engine_failure)?;
    let notices = target.store().notices();
    notices.iter().for_each(|notice| output::warning(notice));
    let member = Member { name: to.name.clone(), repo: target, required: false };
    let locked = locks::extend_all(std::slice::from_ref(&member), &options.cluster, &context.ctx);
    let got_ring = ring_of(&context, to) != ring_before;
    // A copy with keys of its own has slots and a secret of its own.
    let (slots, closed) = match args.rekey {
        true => (SlotsApart::default(), vec![]),
        false => (SlotsApart::of(&source, &member.repo), context.warn_of_closed_copies(std::slice::from_ref(&member))?),
    };
    let shown = || {
        text(&report, got_ring)
            + &slots.text(&from.name, &to.name)
            + &locked.iter().map(Locked::text).collect::<String>()
    };
    if global.says_nothing() {
        report.failed.iter().for_each(|(what, why)| output::warning(&format!("{what} was not copied: {why}")));
    }
    global.report(&document(&report, got_ring, &slots, &locked), shown)?;
    let is_fine =
        report.failed.is_empty() && closed.is_empty() && notices.is_empty() && locked.iter().all(Locked::is_fine);
    Ok(if is_fine { Exit::Done } else { Exit::Warnings })
}

/// Slots that one of two copies has and the other has not: each has its own.
#[derive(Default)]
struct SlotsApart {
    only_from: Vec<String>,
    only_to: Vec<String>,
}

impl SlotsApart {
    fn of(from: &Repository, to: &Repository) -> Self {
        let alone = |of: &Repository, than: &Repository| {
            let alone = |slot: &&SlotInfo| !than.slots().iter().any(|other| other.is_as(slot));
            of.slots().iter().filter(alone).map(SlotInfo::describe).collect()
        };
        SlotsApart { only_from: alone(from, to), only_to: alone(to, from) }
    }

    fn text(&self, from: &str, to: &str) -> String {
        let only = |slots: &[String], name: &str| match slots {
            [] => String::new(),
            slots => format!("key slots that {name} alone has: {}\n", slots.join(", ")),
        };
        let both = only(&self.only_from, from) + &only(&self.only_to, to);
        if both.is_empty() {
            both
        } else {
            both + "slots are not copied: 'pgark key add --repo' makes them in each copy\n"
        }
    }
}

/// The copy with keys of its own, made when there is none and that is allowed.
fn rekeyed(
    context: &Context,
    source: &Repository,
    settings: &RepoSettings,
    file: Option<PathBuf>,
    missing: Missing,
) -> Result<Option<Repository>, Failure> {
    let passphrase = match file {
        Some(path) => SecretSource::File(path),
        None => context.new_passphrase()?,
    };
    let secret = passphrase.read()?.ok_or_else(|| {
        Failure::usage("E-KEY-NEW", "nothing says what the re-keyed copy is opened with")
            .hint("give --new-passphrase-file")
    })?;
    let store = match context.open_store(settings, missing) {
        Err(e) if e.exit == Exit::NoRepository && missing == Missing::Refuse => return Ok(None),
        opened => opened?,
    };
    let new = NewKeys {
        encryption: source.encryption(),
        unlock: Unlock::passphrase(secret.expose()),
        age_recipients: vec![],
        key_commands: vec![],
    };
    let make = if missing == Missing::Create { Rekeyed::Make } else { Rekeyed::Leave };
    let repo = source.open_rekeyed(store.clone(), &new, make).map_err(|e| engine_failure(e.into()))?;
    if let (Some(pin), Some(repo)) = (context.key_pin(&*store), &repo) {
        pin.check(repo)?;
    }
    if let Some(repo) = &repo {
        context.opened(settings, repo);
    }
    Ok(repo)
}

fn ids<'a>(all: impl IntoIterator<Item = &'a pgark_repo::names::BackupId>) -> Vec<String> {
    all.into_iter().map(ToString::to_string).collect()
}

fn planned(plan: &ReplicatePlan) -> Value {
    json!({"schema": SCHEMA, "dry_run": true, "backups": ids(plan.backups.iter().map(|b| &b.id)), "incomplete": ids(plan.lost.iter().map(|(b, _)| &b.id)),
        "unreadable": ids(plan.unreadable.iter().map(|(id, _)| id)), "marks": ids(plan.marks.iter().map(|b| &b.id)), "segments": plan.segments()})
}

fn plan_text(plan: &ReplicatePlan) -> String {
    if plan.is_empty() {
        return "nothing is missing\n".into();
    }
    let mut out = format!("would copy {} WAL segments and {} backups\n", plan.segments(), plan.backups.len());
    for (b, objects) in &plan.lost {
        out += &format!("  {}  has lost {} objects\n", b.id, objects.len());
    }
    for (id, why) in &plan.unreadable {
        out += &format!("  {id}  cannot be compared: {why}\n");
    }
    for b in &plan.marks {
        out += &format!("  {}  would be protected as it is in the source\n", b.id);
    }
    for b in &plan.backups {
        out += &format!("  {}  at most {}\n", b.id, human_bytes(b.stored_bytes));
    }
    out
}

/// The key ring there, as far as it can be read.
fn ring_of(context: &Context, settings: &RepoSettings) -> Option<Vec<u8>> {
    let store = context.open_store(settings, Missing::Refuse).ok()?;
    Repository::ring_bytes(&store).ok()
}

fn document(r: &ReplicateReport, got_ring: bool, slots: &SlotsApart, locked: &[Locked]) -> Value {
    let failed: Vec<Value> = r.failed.iter().map(|(what, why)| json!({"what": what, "why": why})).collect();
    json!({"schema": SCHEMA, "dry_run": false, "backups": ids(&r.backups), "completed": ids(&r.mended), "marked": ids(&r.marked), "segments": r.segments, "objects": r.objects,
        "bytes": r.bytes, "key_ring": got_ring, "slots_only_from": slots.only_from, "slots_only_to": slots.only_to, "failed": failed, "locks": locked.iter().map(Locked::document).collect::<Vec<_>>()})
}

fn text(r: &ReplicateReport, got_ring: bool) -> String {
    let mut out = if got_ring { "the key ring was written there\n".to_owned() } else { String::new() };
    for (what, why) in &r.failed {
        out += &format!("NOT COPIED: {what}: {why}\n");
    }
    for id in &r.mended {
        out += &format!("completed {id}, which had lost objects\n");
    }
    for id in &r.marked {
        out += &format!("protected {id} as it is in the source\n");
    }
    if r.objects == 0 && r.backups.is_empty() && r.failed.is_empty() && !r.marked.is_empty() {
        return out;
    }
    if r.objects == 0 && r.backups.is_empty() && r.failed.is_empty() {
        return if got_ring { out + "nothing else was missing\n" } else { "nothing was missing\n".into() };
    }
    out += &format!(
        "copied {} backups and {} WAL segments: {} objects, {}\n",
        r.backups.len(),
        r.segments,
        r.objects,
        human_bytes(r.bytes)
    );
    out
}
