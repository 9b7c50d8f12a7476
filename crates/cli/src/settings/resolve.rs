//! From files, variables and flags to [`Settings`]: the one place where precedence is decided.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pgark_repo::store::LockPolicy;

use super::deployment;
use super::explain::{self, Entry};
use super::files::{self, Environment};
use super::nearest::{distance, nearest};
use super::repo_url::{AS_OF, RepoUrl};
use super::schema::{ClusterSection, CommandLine, Document, Encryption, RepoSection};
use super::space::SpaceSettings;
use super::tree::{self, Node, TableArrays};
use super::validate::{self, gather_libpq, is_name};
use super::{ClusterSettings, DEFAULT_CLUSTER, Origin, Overrides, Protection, RepoSettings, Settings, Sourced, de};
use crate::failure::Failure;
use crate::secret::{Secret, SecretSource, split_command};

const VARIABLES: &[&str] = &[
    "PGARK_AGE_IDENTITY_FILE",
    "PGARK_CLUSTER",
    "PGARK_CONFIG",
    "PGARK_CACHE_DIR",
    "PGARK_JOBS",
    "PGARK_NEW_PASSPHRASE",
    "PGARK_NEW_PASSPHRASE_FILE",
    "PGARK_PASSPHRASE",
    "PGARK_PASSPHRASE_COMMAND",
    "PGARK_PASSPHRASE_FILE",
    "PGARK_REPO",
    "PGARK_STATE_DIR",
];

const WORKERS_MAX: u32 = 1024;

pub fn settings(overrides: &Overrides, environment: &Environment) -> Result<Settings, Failure> {
    let loaded = match &overrides.in_force {
        Some(texts) => files::Loaded::of(texts)?,
        None => files::load(overrides.config.as_deref(), environment)?,
    };
    let files::Loaded { mut tree, texts, mut warnings } = loaded;
    warnings.extend(misspelt_variables(environment));
    let selected_cluster = selected_cluster(overrides, environment)?;
    lay_defaults(&mut tree, &selected_cluster.value)?;
    let document: Document = de::read(&tree)?;
    validate::document(&document, &tree)?;
    let alerts = validate::alerts(&document, &tree)?;
    let mut entries = explain::entries(&document, &tree)?;

    let passphrase = passphrase(overrides, environment)?;
    let mut repos: BTreeMap<String, RepoSettings> =
        document.repos.into_iter().map(|(name, section)| (name.clone(), repo_settings(name, section))).collect();
    let configured_jobs = document.clusters.get(&selected_cluster.value).and_then(|c| c.jobs);
    let mut clusters: BTreeMap<String, ClusterSettings> =
        document.clusters.into_iter().map(|(name, section)| (name.clone(), cluster_settings(name, section))).collect();
    for cluster in clusters.values_mut() {
        let taken = deployment::apply(cluster, &mut repos, environment)?;
        entries.retain(|entry| taken.iter().all(|t| t.key != entry.key));
        entries.extend(taken);
    }
    if let Some(given) = &passphrase {
        repos.values_mut().for_each(|repo| repo.passphrase = given.value.clone());
    }
    if let Some(at) = overrides.repo_target_time {
        // Those that cannot be looked at so are refused when one of them is chosen.
        repos.values_mut().filter(|repo| repo.url.has_option(AS_OF)).try_for_each(|repo| look_back(repo, at))?;
    }
    let jobs = jobs(overrides, environment, configured_jobs, &selected_cluster.value, &tree)?;
    let mut pgdata = pgdata(overrides, environment);
    if let (Some(given), Some(cluster)) = (&pgdata, clusters.get(&selected_cluster.value))
        && is_of_its_server(cluster, given)
    {
        pgdata = None;
    }
    if let (Some(pgdata), Some(cluster)) = (&pgdata, clusters.get_mut(&selected_cluster.value)) {
        warnings.extend(other_pgdata(cluster, pgdata));
        cluster.pgdata = Some(pgdata.value.clone());
    }
    let chosen_repos = chosen_repos(overrides, environment, &repos, passphrase.as_ref())?;

    if let Some(given) = &passphrase {
        let configured = |e: &Entry| e.key.starts_with("repos.") && e.key.contains(".passphrase");
        entries.retain(|entry| !configured(entry));
        let keys = repos.keys().map(|name| format!("repos.{name}.passphrase")).chain(["passphrase".to_owned()]);
        entries.extend(keys.map(|key| Entry::new(&key, given.value.to_string(), given.origin.clone())));
    }
    entries.push(Entry::new("cluster", selected_cluster.value.clone(), selected_cluster.origin.clone()));
    entries.push(Entry::new("jobs", jobs.value.get(), jobs.origin.clone()));
    if let Some(chosen) = &chosen_repos {
        let urls: Vec<String> = chosen.value.iter().map(|r| r.name.clone()).collect();
        entries.push(Entry::new("repo", urls, chosen.origin.clone()));
    }
    if let Some(pgdata) = &pgdata {
        let key = format!("clusters.{}.pgdata", selected_cluster.value);
        entries.retain(|entry| entry.key != key);
        entries.push(Entry::new(&key, pgdata.value.display().to_string(), pgdata.origin.clone()));
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let home = environment.get_os("HOME").map(|h| Path::new(h).join(".local/state/pgark"));
    let state_dir = environment.get_os("PGARK_STATE_DIR").map(PathBuf::from).or(document.local.state_dir).or(home);
    let (prices, schedules, server) = (document.prices, document.schedules, document.server);
    Ok(Settings {
        texts,
        is_handed: overrides.in_force.is_some(),
        warnings,
        repos,
        clusters,
        prices,
        schedules,
        server,
        alerts,
        state_dir,
        selected_cluster,
        jobs,
        chosen_repos,
        entries,
    })
}

/// A variable of ours that nobody reads is most likely a misspelt one. Only a warning, because container platforms
/// invent variables from the names of services.
fn misspelt_variables(environment: &Environment) -> Vec<String> {
    let unknown = environment.names().filter(|n| n.starts_with("PGARK_") && !VARIABLES.contains(n));
    let near = unknown.filter_map(|name| {
        let near = VARIABLES.iter().find(|known| distance(name, known) <= 2)?;
        Some(format!("variable {name} is not read; did you mean {near}?"))
    });
    near.collect()
}

fn selected_cluster(overrides: &Overrides, environment: &Environment) -> Result<Sourced<String>, Failure> {
    let selected = match (&overrides.cluster, environment.get("PGARK_CLUSTER")?) {
        (Some(name), _) => Sourced { value: name.clone(), origin: Origin::Flag("--cluster") },
        (None, Some(name)) => Sourced { value: name.to_owned(), origin: Origin::Variable("PGARK_CLUSTER") },
        (None, None) => Sourced { value: DEFAULT_CLUSTER.to_owned(), origin: Origin::Default },
    };
    if is_name(&selected.value) {
        return Ok(selected);
    }
    let message = format!("{}: this cannot be the name of a cluster", selected.origin);
    Err(Failure::usage("E-CONFIG-VALUE", message).hint(validate::NAME_RULE))
}

/// Puts `[defaults]` under every cluster. A configuration without clusters has the selected one, made of the defaults.
fn lay_defaults(tree: &mut Node, selected: &str) -> Result<(), Failure> {
    let Some(root) = tree.as_table_mut() else { return Ok(()) };
    let mut defaults = Node::table();
    if let Some(entry) = root.get_mut("defaults")
        && let Some(section) = entry.node.as_table_mut()
    {
        gather_libpq(section)?;
        defaults = entry.node.clone();
    }
    let empty = || tree::Entry { key_at: None, node: Node::table() };
    let clusters = root.entry("clusters".into()).or_insert_with(empty);
    // Anything but a table is reported when the types are read.
    let Some(clusters) = clusters.node.as_table_mut() else { return Ok(()) };
    if clusters.is_empty() {
        clusters.insert(selected.to_owned(), empty());
    }
    for entry in clusters.values_mut() {
        let Some(section) = entry.node.as_table_mut() else { continue };
        gather_libpq(section)?;
        let own = std::mem::replace(&mut entry.node, defaults.clone());
        tree::merge(&mut entry.node, own, TableArrays::Replace);
    }
    Ok(())
}

fn source(inline: Option<Secret>, file: Option<PathBuf>, command: Option<CommandLine>) -> SecretSource {
    match (file, command, inline) {
        (Some(file), _, _) => SecretSource::File(file),
        (None, Some(command), _) => SecretSource::Command(command.0),
        (None, None, Some(secret)) => SecretSource::Inline(secret),
        (None, None, None) => SecretSource::None,
    }
}

fn repo_settings(name: String, section: RepoSection) -> RepoSettings {
    let space = SpaceSettings::of(&section);
    let passphrase = source(section.passphrase, section.passphrase_file, section.passphrase_command);
    let RepoSection { url, encryption, required, parity, key_commands, lock, lock_days, append_only, .. } = section;
    // The days were checked with the rest of the document.
    let lock = lock.zip(lock_days).and_then(|(mode, days)| LockPolicy::new(mode, days));
    let protection = Protection { lock, append_only };
    RepoSettings { name, url, passphrase, encryption, required, parity, protection, key_commands, space }
}

fn cluster_settings(name: String, section: ClusterSection) -> ClusterSettings {
    let secrets = [
        ("password", source(section.password, section.password_file, section.password_command)),
        ("sslpassword", source(section.sslpassword, section.sslpassword_file, section.sslpassword_command)),
        (
            "oauth_client_secret",
            source(section.oauth_client_secret, section.oauth_client_secret_file, section.oauth_client_secret_command),
        ),
    ];
    let given = secrets.into_iter().filter(|(_, source)| *source != SecretSource::None);
    ClusterSettings {
        name,
        pgdata: section.pgdata,
        libpq: section.libpq.into_iter().map(|(keyword, value)| (keyword, value.0)).collect(),
        libpq_secrets: given.map(|(keyword, source)| (keyword.to_owned(), source)).collect(),
        repos: section.repos,
        rpo: section.rpo.map(|span| span.0),
        rto: section.rto.map(|span| span.0),
        bandwidth_limit: section.bandwidth_limit.map(|size| size.0),
        wal_spool: section.wal_spool,
        wal_spool_max: section.wal_spool_max.map(|size| size.0),
        wal_recheck: section.wal_recheck,
        logical: section.logical,
        system: section.system,
        retention: section.retention,
        recover: section.recover,
        checks: section.checks,
        check_user: section.check_user,
        scratch_dir: section.scratch_dir,
        drill: section.drill,
        backups_enabled: true,
    }
}

/// The passphrase of every repository this command uses, when a flag or a variable gives one.
fn passphrase(overrides: &Overrides, environment: &Environment) -> Result<Option<Sourced<SecretSource>>, Failure> {
    if let Some(file) = &overrides.passphrase_file {
        let origin = Origin::Flag("--passphrase-file");
        return Ok(Some(Sourced { value: SecretSource::File(file.clone()), origin }));
    }
    let mut given = Vec::new();
    if let Some(file) = environment.get_os("PGARK_PASSPHRASE_FILE") {
        given.push(("PGARK_PASSPHRASE_FILE", SecretSource::File(file.into())));
    }
    if let Some(command) = environment.get("PGARK_PASSPHRASE_COMMAND")? {
        let argv = split_command(command)
            .map_err(|why| Failure::usage("E-SECRET-COMMAND", format!("variable PGARK_PASSPHRASE_COMMAND: {why}")))?;
        given.push(("PGARK_PASSPHRASE_COMMAND", SecretSource::Command(argv)));
    }
    if let Some(value) = environment.get_os("PGARK_PASSPHRASE") {
        let value = Secret::new(value.as_bytes().to_vec());
        given.push(("PGARK_PASSPHRASE", SecretSource::Environment { variable: "PGARK_PASSPHRASE".into(), value }));
    }
    if let [(first, _), (second, _), ..] = given.as_slice() {
        let message = format!("the variables {first} and {second} are both set, and only one can be meant");
        return Err(Failure::usage("E-SECRET-CHOICE", message));
    }
    Ok(given.pop().map(|(variable, value)| Sourced { value, origin: Origin::Variable(variable) }))
}

fn pgdata(overrides: &Overrides, environment: &Environment) -> Option<Sourced<PathBuf>> {
    let flag = overrides.pgdata.clone().map(|value| Sourced { value, origin: Origin::Flag("--pgdata") });
    let variable = || {
        let value = PathBuf::from(environment.get_os("PGDATA")?);
        Some(Sourced { value, origin: Origin::Variable("PGDATA") })
    };
    flag.or_else(variable)
}

/// A server that was started with a relative directory hands that on to its commands, which run inside of it, where it leads
/// nowhere.
fn is_of_its_server(cluster: &ClusterSettings, given: &Sourced<PathBuf>) -> bool {
    let from_variable = given.origin == Origin::Variable("PGDATA");
    let here = std::env::current_dir().and_then(std::fs::canonicalize);
    let configured = cluster.pgdata.as_deref().and_then(|configured| std::fs::canonicalize(configured).ok());
    from_variable
        && given.value.is_relative()
        && !given.value.exists()
        && configured.is_some()
        && here.ok() == configured
}

/// `PGDATA` is often set for another purpose; when it overrules the configuration the user should know.
fn other_pgdata(cluster: &ClusterSettings, given: &Sourced<PathBuf>) -> Option<String> {
    let is_same = |a: &Path, b: &Path| {
        a == b || std::fs::canonicalize(a).is_ok_and(|a| std::fs::canonicalize(b).is_ok_and(|b| a == b))
    };
    let configured = cluster.pgdata.as_deref().filter(|c| !is_same(c, &given.value))?;
    let from_variable = given.origin == Origin::Variable("PGDATA");
    let (name, given) = (&cluster.name, given.value.display());
    from_variable.then(|| {
        format!("variable PGDATA ({given}) overrules the pgdata of cluster {name} ({})", Path::display(configured))
    })
}

fn jobs(
    overrides: &Overrides,
    environment: &Environment,
    configured: Option<NonZeroU32>,
    cluster: &str,
    tree: &Node,
) -> Result<Sourced<NonZeroU32>, Failure> {
    let wrong = |origin: &Origin| {
        Failure::usage("E-CONFIG-VALUE", format!("{origin}: the number of jobs is between 1 and {WORKERS_MAX}"))
    };
    let jobs = if let Some(value) = overrides.jobs {
        Sourced { value, origin: Origin::Flag("--jobs") }
    } else if let Some(text) = environment.get("PGARK_JOBS")? {
        let origin = Origin::Variable("PGARK_JOBS");
        Sourced { value: text.trim().parse().map_err(|_| wrong(&origin))?, origin }
    } else if let Some(value) = configured {
        let at = tree.find(&["clusters", cluster, "jobs"]).and_then(|node| node.at.clone());
        Sourced { value, origin: at.map_or(Origin::Default, Origin::File) }
    } else {
        let cores = std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
        let value = cores.and_then(|n| NonZeroU32::new(n.min(WORKERS_MAX))).unwrap_or(NonZeroU32::MIN);
        Sourced { value, origin: Origin::Default }
    };
    if jobs.value.get() > WORKERS_MAX { Err(wrong(&jobs.origin)) } else { Ok(jobs) }
}

fn chosen_repos(
    overrides: &Overrides,
    environment: &Environment,
    configured: &BTreeMap<String, RepoSettings>,
    passphrase: Option<&Sourced<SecretSource>>,
) -> Result<Option<Sourced<Vec<RepoSettings>>>, Failure> {
    let (texts, origin): (Vec<&str>, _) = if overrides.repos.is_empty() {
        let Some(text) = environment.get("PGARK_REPO")? else { return Ok(None) };
        // Several are separated by commas; a comma inside a URL is written %2C.
        (text.split(',').map(str::trim).filter(|t| !t.is_empty()).collect(), Origin::Variable("PGARK_REPO"))
    } else {
        (overrides.repos.iter().map(String::as_str).collect(), Origin::Flag("--repo"))
    };
    let mut chosen: Vec<RepoSettings> = Vec::new();
    for text in texts {
        let mut repo = repo(configured, text)?;
        if let Some(given) = passphrase {
            repo.passphrase = given.value.clone();
        }
        if chosen.iter().any(|r| r.url == repo.url) {
            let message = format!("{origin}: repository {} is named twice", repo.name);
            return Err(Failure::usage("E-REPO-CHOICE", message).hint("name each once"));
        }
        chosen.push(repo);
    }
    if let Some(at) = overrides.repo_target_time {
        chosen.iter_mut().try_for_each(|repo| look_back(repo, at))?;
    }
    Ok((!chosen.is_empty()).then_some(Sourced { value: chosen, origin }))
}

const REPO_URLS: &str = "an absolute path, or s3://, az://, gs:// or sftp://: docs/storage.md describes each";

/// From now on the repository is read as it was at this moment.
fn look_back(repo: &mut RepoSettings, at: Timestamp) -> Result<(), Failure> {
    if !repo.url.has_option(AS_OF) {
        let message = format!("--repo-target-time: {} keeps no versions that pgark can read", repo.url);
        return Err(Failure::usage("E-REPO-CHOICE", message).hint("it works with S3 buckets that keep versions"));
    }
    repo.url.options.insert(AS_OF.to_owned(), at.to_string());
    Ok(())
}

/// A configured repository by name, or one by URL; a URL that is configured brings its configuration along.
pub fn repo(configured: &BTreeMap<String, RepoSettings>, text: &str) -> Result<RepoSettings, Failure> {
    if let Some(repo) = configured.get(text) {
        return Ok(repo.clone());
    }
    if !RepoUrl::looks_like_url(text) {
        let failure = Failure::usage("E-REPO-UNKNOWN", format!("repository '{text}' is not configured"));
        let near = nearest(text, configured.keys().map(String::as_str));
        let otherwise = || "a repository that is not configured is named by an absolute path or a URL".to_owned();
        return Err(failure.hint(near.map_or_else(otherwise, |near| format!("did you mean '{near}'?"))));
    }
    let url: RepoUrl = text.parse().map_err(|why: String| Failure::usage("E-REPO-URL", why).hint(REPO_URLS))?;
    // The past of a repository is opened as the repository is.
    let known = configured.values().find(|repo| repo.url.without(AS_OF) == url.without(AS_OF));
    let known = known.map(|repo| RepoSettings { url: url.clone(), ..repo.clone() });
    Ok(known.unwrap_or_else(|| RepoSettings {
        name: url.to_string(),
        url,
        passphrase: SecretSource::None,
        encryption: Encryption::default(),
        required: false,
        parity: None,
        protection: Protection::default(),
        key_commands: BTreeMap::new(),
        space: SpaceSettings::default(),
    }))
}
