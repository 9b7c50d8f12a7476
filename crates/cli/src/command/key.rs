//! `key list|add|remove|rotate|renew`, and the way to `reencrypt|retire`: what opens the repository, and which key seals new data.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use pgark_engine::EngineError;
use pgark_engine::keys::copies::{self, CopyRing};
use pgark_engine::keys::{self, Mode, NewSlot, Opens, RotateOptions, RunningRestores};
use pgark_engine::restore::renew;
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::{Fate, SlotInfo, Unlock};
use pgark_repo::store::Store;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Outcome;
use super::context::{Context, confirm, engine_failure};
use super::key_reencrypt::{self, ReencryptArgs, RetireArgs};
use crate::args::{ConfirmArgs, DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::output::{self, Align, Table, timestamp};
use crate::prompt;
use crate::secret::{Secret, SecretSource};
use crate::store::Missing;

#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// The slots of the key ring and the generations of the key; no secret is shown
    List,
    /// Add a way to open the repository: a passphrase, an age key, a key command
    Add(AddArgs),
    /// Take a way to open the repository away
    Remove(RemoveArgs),
    /// Make a new master key for new data; what is there stays readable
    Rotate(RotateArgs),
    /// Bring what is there under the newest key: every object is sealed anew, then the older seals go
    Reencrypt(ReencryptArgs),
    /// Give up the older keys, once no object in the repository is under one
    Retire(RetireArgs),
    /// Give a server that recovers, restored before a rotation, the keys to the WAL as they are now
    Renew(RenewArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// File with the new passphrase; without any of these three, it is asked for [env: PGARK_NEW_PASSPHRASE_FILE,
    /// PGARK_NEW_PASSPHRASE]
    #[arg(long, value_name = "FILE", group = "new")]
    new_passphrase_file: Option<PathBuf>,
    /// Public key (age1…) whose owner can open the repository
    #[arg(long, value_name = "KEY", group = "new")]
    age_recipient: Option<String>,
    /// Key command of the configuration: [repos.NAME.key_commands.NAME]
    #[arg(long, value_name = "NAME", group = "new")]
    key_command: Option<String>,
    /// A word for people, such as who holds the secret
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// The new slot archives and backs up the cluster that --cluster names, and reads nothing
    #[arg(long)]
    writer: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The slot's id, as 'pgark key list' shows it
    slot: String,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Debug, Args)]
struct RotateArgs {
    /// File with the passphrase of another slot, which gets the new key with it; repeatable
    #[arg(long, value_name = "FILE")]
    slot_passphrase_file: Vec<PathBuf>,
    /// Slot that does not get the new key and goes; repeatable
    #[arg(long, value_name = "ID")]
    drop_slot: Vec<String>,
    /// Also while a restore runs: it fails when it meets WAL of the new key
    #[arg(long)]
    during_restore: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
    #[command(flatten)]
    confirm: ConfirmArgs,
}

#[derive(Debug, Args)]
struct RenewArgs {
    /// The restored data directory
    dir: PathBuf,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

/// The key ring that is meant, and what opens it.
struct Ring {
    context: Context,
    store: Arc<dyn Store>,
    unlock: Unlock,
}

pub fn run(args: KeyArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    match args.command {
        KeyCommand::List => list(global, &Ring::of(context.admitting_writers())?),
        KeyCommand::Add(args) => add(args, global, &Ring::of(context)?),
        KeyCommand::Remove(args) => remove(&args, global, &Ring::of(context)?),
        KeyCommand::Rotate(args) => rotate(&args, global, &Ring::of(context)?),
        KeyCommand::Reencrypt(args) => key_reencrypt::reencrypt(&args, global, &context),
        KeyCommand::Retire(args) => {
            let ring = Ring::of(context)?;
            key_reencrypt::retire(&args, global, &ring.context, &ring.store, &ring.unlock)
        }
        KeyCommand::Renew(args) => renew(&args, global, &context),
    }
}

impl Ring {
    /// Without the key cache: what is changed has to be seen to open with what was given.
    fn of(context: Context) -> Result<Ring, Failure> {
        let settings = context.one_repo_settings()?;
        let store = context.open_store(&settings, Missing::Refuse)?;
        let unlock = context.unlock(&settings)?;
        // What was put in the place of the true ring must not be carried on.
        context.open_repository(&settings)?;
        Ok(Ring { context, store, unlock })
    }

    /// Of the cluster's other repositories, as far as they can be asked.
    fn copies(&self) -> Result<Vec<CopyRing>, Failure> {
        let (others, silent) = self.context.other_stores(&*self.store);
        for (name, failure) in silent {
            output::warning(&format!(
                "repository {name} cannot be asked for its slots: {}: {}",
                failure.code, failure.message
            ));
        }
        copies::rings_of(&self.store, &self.unlock, &others).map_err(engine_failure)
    }
}

fn mode(dry_run: DryRunArgs) -> Mode {
    if dry_run.dry_run { Mode::Plan } else { Mode::Run }
}

fn list(global: &GlobalArgs, ring: &Ring) -> Result<Outcome, Failure> {
    let keys = keys::list(&ring.store, &ring.unlock).map_err(engine_failure)?;
    let slots: Vec<Value> = keys.slots.iter().map(|s| slot_json(s, keys.proven.contains(&s.id))).collect();
    let document = json!({"schema": SCHEMA, "repository_id": keys.repository_id, "encryption": keys.encryption,
        "generation": keys.generation, "generation_since": keys.newest_since,
        "older_generations": keys.older_generations, "slots": slots,
        "removed_but_readable": keys.left_over.as_ref().map(|left| left.iter().map(|s| slot_json(s, false)).collect::<Vec<_>>())});
    output::result(global.form(), &document, || list_text(&keys))?;
    let left_over = keys.left_over.as_deref().unwrap_or_default();
    for slot in left_over {
        output::warning(&format!(
            "slot {} is not in the key ring any more, and an older one that it opens can still be read: 'pgark key remove {}' \
             makes that go; where the store keeps what is deleted, delete old versions of the objects under keyring/ and keyring-mirror/ in the store",
            slot.describe(),
            slot.id
        ));
    }
    Ok(if left_over.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn list_text(keys: &keys::KeyList) -> String {
    if keys.encryption == Algorithm::None {
        return "the repository is not encrypted: it has no keys\n".into();
    }
    let mut table = Table::new(&[
        ("SLOT", Align::Left),
        ("KIND", Align::Left),
        ("CREATED", Align::Left),
        ("GENERATION", Align::Right),
        ("OPENED", Align::Left),
        ("OPENS", Align::Left),
        ("LABEL", Align::Left),
        ("FOR", Align::Left),
    ]);
    for s in &keys.slots {
        let opened = if keys.proven.contains(&s.id) { "yes" } else { "no" };
        let to = s.recipient.as_ref().or(s.command.as_ref()).map_or("", String::as_str);
        let label = s.label.as_deref().unwrap_or_default();
        let (created, generation) = (timestamp(s.created), keys.generation.to_string());
        let opens = s.writer.as_ref().map_or("everything".to_owned(), |cluster| format!("writer of {cluster}"));
        table.row([&*s.id, s.kind, &created, &generation, opened, &opens, label, to]);
    }
    let older = keys.older_generations.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let mut text = table.to_text();
    text += &format!("\nnew data: generation {} of the key, since {}", keys.generation, timestamp(keys.newest_since));
    if !older.is_empty() {
        text += &format!("; every slot also opens the older data of generation {older}");
    }
    if keys.slots.iter().any(|s| s.writer.is_some()) {
        text += "\na writer's slot opens the books of its cluster, and no content of any generation";
    }
    if keys.left_over.is_none() {
        text += "\nnot checked, for a writer cannot: the authenticity of this list, and whether removed slots are left somewhere";
    }
    text + "\n"
}

fn slot_json(s: &SlotInfo, opened: bool) -> Value {
    json!({"id": s.id, "kind": s.kind, "label": s.label, "created": s.created, "recipient": s.recipient,
        "command": s.command, "writer": s.writer, "opened": opened})
}

fn add(args: AddArgs, global: &GlobalArgs, ring: &Ring) -> Result<Outcome, Failure> {
    let new = match (args.age_recipient, args.key_command) {
        (Some(recipient), _) => NewSlot::Age(recipient),
        (None, Some(name)) => NewSlot::Command(name),
        (None, None) => NewSlot::Passphrase(bytes_of(&new_passphrase(args.new_passphrase_file, &ring.context)?)),
    };
    if let NewSlot::Command(name) = &new
        && !ring.context.one_repo_settings()?.key_commands.contains_key(name)
    {
        let message = format!("the key command '{name}' is not configured for this repository");
        return Err(Failure::usage("E-KEY-COMMAND", message)
            .hint("give the repository key_commands with this name in pgark.toml"));
    }
    let mode = mode(args.dry_run);
    let opens = if args.writer { Opens::Writer(ring.context.cluster()?) } else { Opens::Everything };
    let done = keys::add(&ring.store, &ring.unlock, &new, &opens, args.label.as_deref(), mode).map_err(|e| {
        let failure = engine_failure(e);
        // What was given on the command line, not what was found.
        let is_given = matches!(&*failure.code, "E-INVALID" | "E-KEY-RECIPIENT");
        if is_given { Failure { exit: Exit::Usage, ..failure } } else { failure }
    })?;
    let copies = if mode == Mode::Run { ring.copies()? } else { vec![] };
    let lacking = copies::lacking(&copies, &new, &done.slot).map_err(engine_failure)?;
    let document = json!({"schema": SCHEMA, "slot": slot_json(&done.slot, done.proven),
        "added": done.added && mode == Mode::Run, "copies_without": lacking});
    output::result(global.form(), &document, || {
        let what = done.slot.describe();
        let tried = if done.proven { "it was seen to open" } else { "only its owner can try whether it opens" };
        match (done.added, mode) {
            (false, _) => format!("slot {what} does that already; nothing was changed\n"),
            (true, Mode::Plan) => format!("would add a slot of kind {}\n", done.slot.kind),
            (true, Mode::Run) => format!("added slot {what}; {tried}\n"),
        }
    })?;
    for name in lacking {
        output::warning(&format!("repository {name} does not open with it: repeat this command with --repo {name}"));
    }
    Ok(Exit::Done)
}

/// From the flag, a variable, or the terminal.
fn new_passphrase(file: Option<PathBuf>, context: &Context) -> Result<Secret, Failure> {
    let source = match file {
        Some(path) => SecretSource::File(path),
        None => context.new_passphrase()?,
    };
    if let Some(secret) = source.read()? {
        return Ok(secret);
    }
    if prompt::possible() {
        return prompt::new_passphrase();
    }
    Err(Failure::usage("E-KEY-NEW", "nothing says what the new slot is opened with")
        .hint("give --new-passphrase-file, --age-recipient or --key-command"))
}

fn bytes_of(secret: &Secret) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(secret.expose().to_vec())
}

fn remove(args: &RemoveArgs, global: &GlobalArgs, ring: &Ring) -> Result<Outcome, Failure> {
    let plan = keys::remove(&ring.store, &ring.unlock, &args.slot, Mode::Plan).map_err(engine_failure)?;
    let what = format!("slot {}", plan.slot.describe());
    let document = |removed: bool, gone: bool| {
        json!({"schema": SCHEMA, "slot": slot_json(&plan.slot, false), "removed": removed,
            "remaining": plan.remaining, "older_rings_gone": gone})
    };
    if args.dry_run.dry_run {
        output::result(global.form(), &document(false, false), || {
            format!("would remove {what}; {} remain\n", plan.remaining)
        })?;
        return Ok(Exit::Done);
    }
    confirm(&args.confirm, &format!("remove {what}; hosts that use it cannot open the repository any more"))?;
    let done = keys::remove(&ring.store, &ring.unlock, &args.slot, Mode::Run).map_err(engine_failure)?;
    let still = copies::still_there(&ring.copies()?, &plan.slot);
    let mut document = document(true, done.older_rings_gone);
    document["copies_with"] = still.iter().map(|(name, _)| name.as_str()).collect();
    output::result(global.form(), &document, || {
        format!(
            "removed {what}; {} remain\nWho opened the repository with it may have kept the master key, and copies of \
             the key ring may exist: 'pgark key rotate' protects what is written from now on.\n",
            done.remaining
        )
    })?;
    for (name, slot) in still {
        output::warning(&format!(
            "repository {name} still opens with slot {}: 'pgark key remove {} --repo {name}'",
            slot.describe(),
            slot.id
        ));
    }
    older_rings(done.older_rings_gone)
}

/// What was written is in force; what the store keeps is the administrator's to delete.
pub fn older_rings(gone: bool) -> Result<Outcome, Failure> {
    if gone {
        return Ok(Exit::Done);
    }
    output::warning(
        "an older key ring can still be read from the store, and what was removed opens it: the store keeps what is \
         deleted; delete old versions of the objects under keyring/ and keyring-mirror/ there",
    );
    Ok(Exit::Warnings)
}

fn rotate(args: &RotateArgs, global: &GlobalArgs, ring: &Ring) -> Result<Outcome, Failure> {
    let copies = ring.context.settings.configured_repos();
    let own = ring.context.one_repo_settings()?;
    if let Some(first) = copies.first().filter(|first| first.url != own.url && copies.iter().any(|c| c.url == own.url))
    {
        // A key of its own for a copy would part it from the others.
        return Err(Failure::refused("E-KEY-FIRST", format!("repository {} is a copy of {}", own.name, first.name))
            .hint(format!(
                "rotate --repo {}: the others get the new key with the next backup or replicate",
                first.name
            )));
    }
    let mut passphrases = vec![];
    for path in &args.slot_passphrase_file {
        let secret = SecretSource::File(path.clone()).read()?;
        passphrases.extend(secret.iter().map(bytes_of));
    }
    let running_restores = if args.during_restore { RunningRestores::Allow } else { RunningRestores::Refuse };
    let (unlock, drop) = (&ring.unlock, &args.drop_slot[..]);
    let options = RotateOptions { unlock, passphrases: &passphrases, drop, running_restores };
    let ctx = &ring.context.ctx;
    let failed = |e: EngineError| {
        let locked = e.code() == "E-LOCKED";
        let failure = engine_failure(e);
        if locked { failure.hint("wait for the restore to end, or repeat with --during-restore") } else { failure }
    };
    let plan = keys::rotate(&ring.store, &options, Mode::Plan, ctx).map_err(failed)?;
    let document = |done: &keys::Rotated, rotated: bool| {
        let slots = |fate: Fate| -> Vec<Value> {
            done.slots.iter().filter(|s| s.fate == fate).map(|s| slot_json(&s.slot, false)).collect()
        };
        json!({"schema": SCHEMA, "generation": done.generation, "rotated": rotated,
            "rewrapped": slots(Fate::Rewrapped), "dropped": slots(Fate::Dropped), "running": done.running,
            "older_rings_gone": rotated && done.older_rings_gone})
    };
    if args.dry_run.dry_run {
        let text = || format!("would make generation {} of the key:\n{}", plan.generation, fates(&plan));
        output::result(global.form(), &document(&plan, false), text)?;
        return Ok(Exit::Done);
    }
    let going = plan.slots.iter().filter(|s| s.fate == Fate::Dropped).count();
    let staying = plan.slots.len() - going;
    let question = format!("make generation {} of the key for {staying} slots; {going} slots go", plan.generation);
    confirm(&args.confirm, &question)?;
    let done = keys::rotate(&ring.store, &options, Mode::Run, ctx).map_err(failed)?;
    global.report(&document(&done, true), || {
        format!(
            "new data is sealed under generation {} of the key\n{}what is there stays under the older ones until 'pgark key \
             reencrypt'\n",
            done.generation,
            fates(&done)
        )
    })?;
    let in_the_way = copies::in_the_way(&ring.store, unlock, &ring.copies()?).map_err(engine_failure)?;
    for (name, slots) in in_the_way {
        let named = |slot: &SlotInfo| format!(" --drop-slot {}", slot.id);
        output::warning(&format!(
            "repository {name} does not get the new key by itself, because these of its slots would go: {}. Where their secrets have a \
             slot here: 'pgark replicate --from {} --to {name}{}'",
            slots.iter().map(SlotInfo::describe).collect::<Vec<_>>().join(", "),
            own.name,
            slots.iter().map(named).collect::<String>()
        ));
    }
    older_rings(done.older_rings_gone)
}

fn fates(rotation: &keys::Rotated) -> String {
    let mut text = String::new();
    for s in &rotation.slots {
        let fate = if s.fate == Fate::Dropped { "goes" } else { "gets the new key" };
        text += &format!("  slot {} {fate}\n", s.slot.describe());
    }
    for job in &rotation.running {
        text += &format!("  runs: {job}; it goes on, partly under the old key\n");
    }
    text
}

fn renew(args: &RenewArgs, global: &GlobalArgs, context: &Context) -> Result<Outcome, Failure> {
    let repo = context.open_repository(&context.repo_settings()?)?;
    let done = match mode(args.dry_run) {
        Mode::Plan => renew::plan(&repo, &args.dir),
        Mode::Run => renew::run(&repo, &args.dir),
    };
    let done = done.map_err(engine_failure)?;
    let document = json!({"schema": SCHEMA, "generation_before": done.before, "generation": done.now,
        "renewed": !args.dry_run.dry_run});
    output::result(global.form(), &document, || {
        let verb = if args.dry_run.dry_run { "would hold" } else { "holds" };
        format!("{} {verb} the keys to the WAL up to generation {}\n", args.dir.display(), done.now)
    })?;
    Ok(Exit::Done)
}
