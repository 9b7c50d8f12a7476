//! `init`: repository, key and cluster; prints what to add to `postgresql.conf`.

use clap::Args;
use pgark_engine::register::{self, Identity, Registered};
use pgark_repo::crypto::Algorithm;
use pgark_repo::keyring::NewKeys;
use serde::Serialize;

use super::Outcome;
use super::context::{CONNECT_TIMEOUT, Context, engine_failure, explain_lock, refuse_same_place};
use crate::args::{DryRunArgs, GlobalArgs};
use crate::failure::{Exit, Failure, SCHEMA};
use crate::key_cache;
use crate::output;
use crate::settings::RepoSettings;
use crate::settings::repo_url::Scheme;
use crate::settings::schema::Encryption;
use crate::store::Missing;

#[derive(Debug, Args)]
pub struct InitArgs {
    /// How new data is encrypted; 'none' only when written out
    #[arg(long, value_name = "CIPHER", value_parser = ["aes-256-gcm", "chacha20-poly1305", "none"])]
    encryption: Option<String>,
    /// Public key (age1…) whose owner can open the repository too; repeatable
    #[arg(long = "age-recipient", value_name = "KEY")]
    age_recipients: Vec<String>,
    /// Key command of the configuration that can open the repository too; repeatable
    #[arg(long = "key-command", value_name = "NAME")]
    key_commands: Vec<String>,
    /// Register another cluster under a name that is taken: after an upgrade or a new initdb
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

#[derive(Serialize)]
struct InitDocument {
    schema: u32,
    repository: String,
    repository_created: bool,
    /// Further repositories, with the same key ring.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    copies: Vec<String>,
    encryption: Algorithm,
    cluster: String,
    cluster_registered: bool,
    system_id: String,
    settings: Vec<Setting>,
}

#[derive(Serialize)]
struct Setting {
    name: &'static str,
    value: String,
    /// What the running server has, when it could be asked.
    current: Option<String>,
}

pub fn run(args: InitArgs, global: &GlobalArgs) -> Result<Outcome, Failure> {
    let context = Context::new(global)?;
    let settings = context.repo_settings()?;
    let others = context.settings.selected_repos()?.split_off(1);
    refuse_same_place(&context.settings.selected_repos()?)?;
    let unlock = context.unlock(&settings)?;
    let encryption = encryption(&args, &settings);
    if encryption != Algorithm::None && unlock.is_empty() {
        return Err(Failure::new(
            "E-KEY-REQUIRED",
            Exit::WrongKey,
            "the repository is to be encrypted and no passphrase was given",
        )
        .hint(
            "give --passphrase-file, PGARK_PASSPHRASE_FILE or PGARK_PASSPHRASE_COMMAND; or write out --encryption none",
        ));
    }
    let cache = context.key_cache(&settings, &unlock);
    let keys = NewKeys { encryption, unlock, age_recipients: args.age_recipients, key_commands: args.key_commands };
    let cluster = context.cluster()?;
    let connect = context.connect_options()?;
    let pgdata = context.cluster_settings()?.pgdata.clone();
    let mut sources = vec![];
    if let Some(dir) = &pgdata {
        sources.push(Identity::Directory(dir));
    }
    sources.push(Identity::Server(&connect, CONNECT_TIMEOUT));
    if args.dry_run.dry_run {
        for one in std::iter::once(&settings).chain(&others) {
            context.refuse_nested(one)?;
            // Of an object store nobody is asked until something is read.
            if one.url.scheme.is_object_store() {
                context.open_store(one, Missing::Refuse)?;
            }
        }
        let urls = std::iter::once(&settings).chain(&others).map(|r| r.url.to_string());
        let urls = urls.collect::<Vec<_>>().join(" and ");
        output::text(&format!("would create or open {urls}, and register cluster '{cluster}' there\n"))?;
        return Ok(Exit::Done);
    }
    for one in std::iter::once(&settings).chain(&others) {
        context.refuse_nested(one)?;
    }
    make_copy_of_others(&context, &settings, &others)?;
    refuse_where_one_was(&context, &settings)?;
    let store = context.open_store(&settings, Missing::Create)?;
    let done = register::init(store.clone(), &keys, &cluster, &sources, args.adopt, &context.ctx)
        .map_err(|e| explain_lock(&*store, engine_failure(e)))?;
    context.opened(&settings, &done.repository);
    if let Some(pin) = context.key_pin(&**done.repository.store()) {
        if done.repository_created {
            pin.renew(&done.repository);
        } else {
            pin.check(&done.repository)?;
        }
    }
    if let Some(cache) = &cache {
        key_cache::remember(&done.repository, cache);
    }
    let mut copies = vec![];
    for other in &others {
        context.refuse_nested(other)?;
        // The first repository's key ring: what is in one can be copied into the other as it is.
        let copy = context.open_copy(&done.repository, other, Missing::Create)?.expect("it is made when missing");
        let catalog = pgark_repo::catalog::CatalogStore::new(&copy, &cluster);
        catalog.register(&done.lineage, args.adopt).map_err(|e| engine_failure(e.into()))?;
        pgark_engine::rescue::place(&**copy.store()).map_err(engine_failure)?;
        copies.push(other.url.to_string());
    }
    let document = InitDocument {
        copies,
        schema: SCHEMA,
        repository: settings.url.to_string(),
        repository_created: done.repository_created,
        encryption: done.repository.encryption(),
        cluster: cluster.to_string(),
        cluster_registered: done.cluster_registered,
        system_id: done.lineage.system_id.to_string(),
        settings: settings_to_add(&done, global, std::iter::once(&settings).chain(&others))?,
    };
    output::result(global.form(), &document, || text(&document))?;
    Ok(Exit::Done)
}

/// Where the first repository has gone and another one is there, it becomes a copy of that one again: a key ring of its own
/// would part them.
fn make_copy_of_others(context: &Context, first: &RepoSettings, others: &[RepoSettings]) -> Result<(), Failure> {
    if has_ring(context, first)? {
        return Ok(());
    }
    for other in others {
        if has_ring(context, other)? {
            let of = context.open_repository(other)?;
            context.open_copy(&of, first, Missing::Create)?;
            output::warning(&format!(
                "repository {} was not there and is a copy of {} now: 'pgark replicate --from {} --to {}' completes it",
                first.name, other.name, other.name, first.name
            ));
            break;
        }
    }
    Ok(())
}

fn has_ring(context: &Context, settings: &RepoSettings) -> Result<bool, Failure> {
    match context.open_store(settings, Missing::Refuse) {
        Ok(store) => {
            let ring = pgark_repo::keyring::register(store).read();
            ring.map(|ring| ring.is_some()).map_err(|e| engine_failure(e.into()))
        }
        Err(failure) if failure.exit == Exit::NoRepository => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// A file system that is not mounted looks like a place where nothing was ever made.
fn refuse_where_one_was(context: &Context, settings: &RepoSettings) -> Result<(), Failure> {
    if has_ring(context, settings)? {
        return Ok(());
    }
    let url = match context.open_store(settings, Missing::Refuse) {
        Ok(store) => store.url(),
        Err(_) if settings.url.scheme == Scheme::File => {
            let path = std::path::Path::new(&settings.url.path);
            format!("file://{}", std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display())
        }
        Err(_) => settings.url.to_string(),
    };
    let pin = crate::key_pin::KeyPin::find(context.cache_dir(), &url);
    let Some(remembered) = pin.and_then(|pin| pin.remembered()) else { return Ok(()) };
    let message = format!("this host has seen a repository at {url}, and there is none now");
    Err(Failure::refused("E-REPO-GONE", message).hint(format!(
        "is its file system mounted? When a new repository is to take its place, remove {}",
        remembered.display()
    )))
}

fn encryption(args: &InitArgs, settings: &RepoSettings) -> Algorithm {
    match args.encryption.as_deref() {
        Some("none") => Algorithm::None,
        Some("chacha20-poly1305") => Algorithm::ChaCha20Poly1305,
        Some(_) => Algorithm::Aes256Gcm,
        None => match settings.encryption {
            Encryption::None => Algorithm::None,
            _ => Algorithm::Aes256Gcm,
        },
    }
}

/// The command line that PostgreSQL's archiver needs: this program with the settings that this call was given.
fn settings_to_add<'a>(
    done: &Registered,
    global: &GlobalArgs,
    repos: impl Iterator<Item = &'a RepoSettings>,
) -> Result<Vec<Setting>, Failure> {
    let program =
        std::env::current_exe().map_err(|e| Failure::failed("E-SYSTEM", format!("this program's path: {e}")))?;
    let mut words = vec![program.to_string_lossy().into_owned(), "archive-push".to_owned()];
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    // The server has neither this environment nor this working directory.
    let config = global.config.clone().or_else(|| std::env::var_os("PGARK_CONFIG").map(Into::into));
    if let Some(config) = config {
        let config = std::path::absolute(&config).unwrap_or(config);
        add("--config", config.to_string_lossy().into_owned());
    }
    if !global.repo.is_empty() || std::env::var_os("PGARK_REPO").is_some() {
        repos.for_each(|repo| add("--repo", repo.url.to_string()));
    }
    if let Some(file) =
        global.passphrase_file.clone().or_else(|| std::env::var_os("PGARK_PASSPHRASE_FILE").map(Into::into))
    {
        let file = std::path::absolute(&file).unwrap_or(file);
        add("--passphrase-file", file.to_string_lossy().into_owned());
    }
    let cluster = global.cluster.clone().or_else(|| std::env::var("PGARK_CLUSTER").ok());
    if let Some(cluster) = cluster {
        add("--cluster", cluster);
    }
    let command = words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ") + " \"%p\"";
    let seen = done.inspection.as_ref();
    let wal_level = seen.and_then(|i| i.wal_level.clone());
    // Logical WAL holds all that is needed, and who set it needs it.
    let enough = wal_level.clone().filter(|level| level == "logical").unwrap_or_else(|| "replica".into());
    Ok(vec![
        Setting { name: "archive_mode", value: "on".into(), current: seen.and_then(|i| i.archive_mode.clone()) },
        Setting { name: "archive_command", value: command, current: seen.and_then(|i| i.archive_command.clone()) },
        Setting { name: "wal_level", value: enough, current: wal_level },
    ])
}

/// One word for the shell that runs `archive_command`, and for its `%` expansion.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@+,".contains(c);
    if word.chars().all(plain) && !word.is_empty() {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''").replace('%', "%%"))
}

fn text(d: &InitDocument) -> String {
    let mut out = format!(
        "repository {} {}\ncluster '{}' (system identifier {}) {}\n",
        d.repository,
        if d.repository_created { "created" } else { "was there" },
        d.cluster,
        d.system_id,
        if d.cluster_registered { "registered" } else { "was registered" },
    );
    for copy in &d.copies {
        out += &format!("repository {copy} has the same key ring\n");
    }
    if d.encryption == Algorithm::None {
        out += "WARNING: the repository is not encrypted\n";
    } else if d.repository_created {
        out += "Keep the passphrase, or what else opens it, in a second, safe place: without it nothing can be restored.\n";
    }
    out += "\nIn postgresql.conf:\n";
    for s in &d.settings {
        let value = s.value.replace('\\', r"\\").replace('\'', "''");
        let value = if value.contains([' ', '\'', '/']) { format!("'{value}'") } else { value };
        let fine = s.current.as_deref() == Some(s.value.as_str());
        out += &format!("  {} = {value}{}\n", s.name, if fine { "   # as it is" } else { "" });
    }
    out + "A change of archive_mode or wal_level needs a restart. Then: pgark check\n"
}
