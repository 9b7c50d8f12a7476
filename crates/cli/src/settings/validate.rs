//! What the types alone cannot see: names that must exist, choices that exclude each other, paths, calendars.
//!
//! Every complaint carries the place of the value it is about.

mod space;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_repo::store::lock::LOCK_DAYS_MAX;

use super::alerts::AlertSettings;
use super::nearest::nearest;
use super::recover::{Asking, Recover, ServiceControl};
use super::repo_url::Scheme;
use super::schedule::{Job, Schedule};
use super::schema::{ClusterSection, Document, Kind, RepoSection, Retention, SECRET_KEYS};
use super::tree::{Node, Table, Value};
use crate::failure::Failure;

pub fn document(document: &Document, tree: &Node) -> Result<(), Failure> {
    for (name, repo) in &document.repos {
        self::name(tree, &["repos", name], "repository", name)?;
        one_secret_source(tree, &["repos", name])?;
        absolute(tree, &["repos", name, "passphrase_file"], repo.passphrase_file.as_deref())?;
        protection(tree, name, repo)?;
        for (command, section) in &repo.key_commands {
            let at = ["repos", name, "key_commands", command];
            self::name(tree, &at, "key command", command)?;
            if section.timeout.is_some_and(|t| t.0.is_zero() || t.0 > KEY_COMMAND_TIMEOUT_MAX) {
                return Err(complaint(tree, &at, "E-CONFIG-VALUE", "the timeout is between 1ms and 10m"));
            }
        }
    }
    for (name, prices) in &document.prices {
        self::name(tree, &["prices", name], "price table", name)?;
        space::prices(tree, name, prices)?;
    }
    for (name, repo) in &document.repos {
        space::repo(document, tree, name, repo)?;
    }
    for (name, section) in &document.clusters {
        self::name(tree, &["clusters", name], "cluster", name)?;
        cluster(document, tree, name, section)?;
    }
    for (index, schedule) in document.schedules.iter().enumerate() {
        self::schedule(document, tree, &index.to_string(), schedule)?;
    }
    absolute(tree, &["local", "state_dir"], document.local.state_dir.as_deref())?;
    server(document, tree)
}

fn server(document: &Document, tree: &Node) -> Result<(), Failure> {
    let server = &document.server;
    absolute(tree, &["server", "state_dir"], Some(&server.state_dir))?;
    if let Some(tls) = &server.tls {
        for (key, path) in
            [("certificate", Some(&tls.certificate)), ("key", Some(&tls.key)), ("client_ca", tls.client_ca.as_ref())]
        {
            absolute(tree, &["server", "tls", key], path.map(PathBuf::as_path))?;
        }
    }
    if let Some(oidc) = &server.oidc {
        absolute(tree, &["server", "oidc", "client_secret_file"], oidc.client_secret_file.as_deref())?;
        absolute(tree, &["server", "oidc", "ca_file"], oidc.ca_file.as_deref())?;
    }
    server.check().map_err(|wrong| {
        let path: Vec<&str> = ["server"].into_iter().chain(wrong.path.iter().map(String::as_str)).collect();
        complaint(tree, &path, "E-CONFIG-VALUE", &wrong.message).hint(wrong.hint)
    })?;
    let clients = server.tls.iter().flat_map(|tls| &tls.clients).enumerate();
    for (index, cluster) in clients.filter_map(|(index, client)| Some((index, client.cluster.as_ref()?))) {
        known_cluster(document, tree, &["server", "tls", "clients", &index.to_string(), "cluster"], cluster)?;
    }
    for (index, rule) in server.oidc.iter().flat_map(|oidc| &oidc.roles).enumerate() {
        for (place, cluster) in rule.clusters.iter().flatten().enumerate() {
            let (index, place) = (index.to_string(), place.to_string());
            known_cluster(document, tree, &["server", "oidc", "roles", &index, "clusters", &place], cluster)?;
        }
    }
    Ok(())
}

fn known_cluster(document: &Document, tree: &Node, path: &[&str], cluster: &str) -> Result<(), Failure> {
    if document.clusters.contains_key(cluster) {
        return Ok(());
    }
    let failure = complaint(tree, path, "E-CONFIG-VALUE", "no such cluster");
    let near = nearest(cluster, document.clusters.keys().map(String::as_str));
    Err(if let Some(near) = near { failure.hint(format!("did you mean '{near}'?")) } else { failure })
}

/// Who is told, as it is written.
pub fn alerts(document: &Document, tree: &Node) -> Result<AlertSettings, Failure> {
    for name in document.alerts.sinks.keys() {
        self::name(tree, &["alerts", "sinks", name], "sink", name)?;
    }
    document.alerts.settings().map_err(|(path, why)| {
        let path: Vec<&str> = ["alerts"].into_iter().chain(path.iter().map(String::as_str)).collect();
        complaint(tree, &path, "E-CONFIG-VALUE", &why)
    })
}

fn protection(tree: &Node, name: &str, repo: &RepoSection) -> Result<(), Failure> {
    let wrong = |key: &str, message: &str| complaint(tree, &["repos", name, key], "E-CONFIG-VALUE", message);
    match (repo.lock, repo.lock_days) {
        (None, None) => Ok(()),
        (None, Some(_)) => {
            Err(wrong("lock_days", "without lock nothing is locked").hint("lock = \"compliance\" or \"governance\""))
        }
        (Some(_), None) => Err(wrong("lock", "for how long?").hint("lock_days = 30, for example")),
        (Some(_), Some(_)) if repo.url.scheme != Scheme::S3 => {
            Err(wrong("lock", "objects are locked in s3:// repositories alone"))
        }
        (Some(_), Some(days)) if !(1..=LOCK_DAYS_MAX).contains(&days) => {
            Err(wrong("lock_days", &format!("the days are between 1 and {LOCK_DAYS_MAX}")))
        }
        _ => Ok(()),
    }
}

/// A complaint about the value under `path`, or about the nearest table that contains it.
fn complaint(tree: &Node, path: &[&str], code: &'static str, message: &str) -> Failure {
    let place = (0..=path.len()).rev().find_map(|n| tree.find(path.get(..n)?)?.at.as_ref());
    let key = path.join(".");
    match place {
        Some(at) => Failure::usage(code, format!("{at}: {key}: {message}")),
        None => Failure::usage(code, format!("{key}: {message}")),
    }
}

/// Archiving waits for it.
const KEY_COMMAND_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Names become parts of paths and of commands.
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 63 && !name.starts_with(['.', '-']) && name.chars().all(allowed)
}

/// One word of a setting of PostgreSQL, from its own directory.
pub fn is_library(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 63 && !name.starts_with('.') && name.chars().all(allowed)
}

pub const NAME_RULE: &str =
    "a name has up to 63 letters, digits, '-', '_' and '.', and starts with none of '-' and '.'";

fn name(tree: &Node, path: &[&str], what: &str, name: &str) -> Result<(), Failure> {
    if is_name(name) {
        return Ok(());
    }
    Err(complaint(tree, path, "E-CONFIG-VALUE", &format!("this cannot be the name of a {what}")).hint(NAME_RULE))
}

fn absolute(tree: &Node, path: &[&str], value: Option<&Path>) -> Result<(), Failure> {
    match value {
        Some(value) if !value.is_absolute() => Err(complaint(
            tree,
            path,
            "E-CONFIG-VALUE",
            "the path must be absolute, to mean the same in every directory",
        )),
        _ => Ok(()),
    }
}

fn one_secret_source(tree: &Node, path: &[&str]) -> Result<(), Failure> {
    let empty = Table::new();
    let table = tree.find(path).and_then(Node::as_table).unwrap_or(&empty);
    for stem in SECRET_KEYS {
        let keys = [(*stem).to_owned(), format!("{stem}_file"), format!("{stem}_command")];
        let given: Vec<&str> = keys.iter().map(String::as_str).filter(|k| table.contains_key(*k)).collect();
        if let [first, second, ..] = given.as_slice() {
            let path: Vec<&str> = path.iter().copied().chain([*second]).collect();
            return Err(complaint(
                tree,
                &path,
                "E-CONFIG-VALUE",
                &format!("'{first}' is set too; one source is enough"),
            ));
        }
    }
    Ok(())
}

fn cluster(document: &Document, tree: &Node, name: &str, section: &ClusterSection) -> Result<(), Failure> {
    let at = |rest: &[&'static str]| -> Vec<String> {
        ["clusters", name].into_iter().chain(rest.iter().copied()).map(str::to_owned).collect()
    };
    let check_path = |rest: &[&'static str], value: Option<&Path>| {
        let path = at(rest);
        absolute(tree, &path.iter().map(String::as_str).collect::<Vec<_>>(), value)
    };
    one_secret_source(tree, &["clusters", name])?;
    check_path(&["pgdata"], section.pgdata.as_deref())?;
    check_path(&["wal_spool"], section.wal_spool.as_deref())?;
    check_path(&["password_file"], section.password_file.as_deref())?;
    check_path(&["scratch_dir"], section.scratch_dir.as_deref())?;
    check_path(&["drill", "dir"], section.drill.as_ref().map(|d| d.dir.as_path()))?;
    check_path(&["drill", "pg_bin"], section.drill.as_ref().and_then(|d| d.pg_bin.as_deref()))?;
    if let Some(library) = section.drill.iter().flat_map(|d| &d.libraries).find(|library| !is_library(library)) {
        let message = format!("'{}' cannot be the name of a library", library.escape_debug());
        return Err(complaint(tree, &["clusters", name, "drill", "libraries"], "E-CONFIG-VALUE", &message)
            .hint("names as in shared_preload_libraries, without a path: pg_stat_statements"));
    }
    check_path(&["recover", "report_dir"], section.recover.as_ref().and_then(|r| r.report_dir.as_deref()))?;
    if let Some(system) = &section.system {
        for (key, paths) in [("config_files", &system.config_files), ("directories", &system.directories)] {
            paths.iter().try_for_each(|path| check_path(&["system", key], Some(path)))?;
        }
        for (key, patterns) in [("include", &system.include), ("exclude", &system.exclude)] {
            for pattern in patterns {
                if let Err(why) = pgark_engine::files::glob::Pattern::parse(pattern) {
                    let message = format!("'{}' is no pattern: {why}", pattern.escape_debug());
                    return Err(complaint(tree, &["clusters", name, "system", key], "E-CONFIG-VALUE", &message));
                }
            }
        }
        if let Some(prefix) = system.prefix.as_deref().filter(|prefix| !is_name(prefix)) {
            let message = format!("'{}' cannot begin the names of exports", prefix.escape_debug());
            return Err(
                complaint(tree, &["clusters", name, "system", "prefix"], "E-CONFIG-VALUE", &message).hint(NAME_RULE)
            );
        }
    }
    section.recover.as_ref().map_or(Ok(()), |r| recover(tree, name, r))?;
    for (index, repo) in section.repos.iter().enumerate() {
        if section.repos.iter().take(index).any(|earlier| earlier == repo) {
            let index = index.to_string();
            return Err(complaint(tree, &["clusters", name, "repos", &index], "E-CONFIG-VALUE", "it is named twice"));
        }
        if !document.repos.contains_key(repo) {
            let index = index.to_string();
            let failure = complaint(tree, &["clusters", name, "repos", &index], "E-CONFIG-VALUE", "no such repository");
            let near = nearest(repo, document.repos.keys().map(String::as_str));
            return Err(failure.hint(near.map_or_else(
                || format!("add [repos.{repo}], or take the name out"),
                |near| format!("did you mean '{near}'?"),
            )));
        }
    }
    retention(tree, name, &section.retention)?;
    // libpq expands a connection string in `dbname`, where a password would be shown by everything that shows settings.
    let dbname = section.libpq.get("dbname").map_or("", |v| v.0.as_str());
    if dbname.contains("://") || dbname.contains("password") && dbname.contains('=') {
        let message = "a database name, not a connection string, belongs here";
        return Err(complaint(tree, &["clusters", name, "libpq", "dbname"], "E-CONFIG-VALUE", message));
    }
    Ok(())
}

fn retention(tree: &Node, name: &str, retention: &Retention) -> Result<(), Failure> {
    let kinds = [
        ("physical", &retention.physical),
        ("logical", &retention.logical),
        ("files", &retention.files),
        ("system", &retention.system),
    ];
    let own = kinds.iter().filter_map(|(kind, rules)| {
        let rules = rules.as_ref()?;
        Some((Some(*kind), rules.time_zone.as_deref(), rules.max_backups))
    });
    for (kind, zone, max) in [(None, retention.time_zone.as_deref(), retention.max_backups)].into_iter().chain(own) {
        let wrong = |key: &str, message: &str| {
            let path: Vec<&str> = ["clusters", name, "retention"].into_iter().chain(kind).chain([key]).collect();
            complaint(tree, &path, "E-CONFIG-VALUE", message)
        };
        if zone.is_some_and(|zone| jiff::tz::TimeZone::get(zone).is_err()) {
            return Err(
                wrong("time_zone", "no such time zone").hint("names are those of the IANA database, Europe/Berlin")
            );
        }
        if max == Some(0) {
            return Err(wrong("max_backups", "a maximum of 0 would keep none").hint("leave it out for no maximum"));
        }
    }
    Ok(())
}

fn recover(tree: &Node, name: &str, recover: &Recover) -> Result<(), Failure> {
    let at = ["clusters", name, "recover"];
    for (key, service) in [("service", &recover.service), ("server", &recover.server), ("fence", &recover.fence)] {
        let Some(service) = service else { continue };
        let path = [&at[..], &[key]].concat();
        // The server's own program stops and starts it, in the time that is given here.
        if key != "server" || service.names_something() {
            service_control(tree, &path, service)?;
        }
        absolute(tree, &path, service.compose_file.as_deref())?;
        if service.keep_running && (key != "service" || recover.repoint.is_empty()) {
            let why = "keep_running is for an application that is pointed to a new instance: it needs repoint";
            return Err(complaint(tree, &path, "E-CONFIG-VALUE", why));
        }
    }
    for (key, path) in [("to", &recover.to), ("socket_dir", &recover.socket_dir), ("pg_bin", &recover.pg_bin)] {
        absolute(tree, &[&at[..], &[key]].concat(), path.as_deref())?;
    }
    for (old, path) in &recover.tablespaces {
        absolute(tree, &[&at[..], &["tablespaces", old]].concat(), Some(path))?;
    }
    if recover.to.is_some() && recover.in_place {
        let why = "it is restored to a new place (to) or to its own (in_place), not to both";
        return Err(complaint(tree, &at, "E-CONFIG-VALUE", why));
    }
    let of_a_cluster =
        recover.to.is_some() || recover.in_place || recover.fence.is_some() || !recover.repoint.is_empty();
    if recover.kind != Kind::Physical && of_a_cluster {
        let why = "to, in_place, fence and repoint are for kind = \"physical\"";
        return Err(complaint(tree, &at, "E-CONFIG-VALUE", why));
    }
    for (n, repoint) in recover.repoint.iter().enumerate() {
        let n = n.to_string();
        let path = [&at[..], &["repoint", &n]].concat();
        absolute(tree, &path, repoint.file.as_deref())?;
        repoint.check().map_err(|why| complaint(tree, &path, "E-CONFIG-VALUE", &why))?;
    }
    for (key, asking, probes) in
        [("ready", Asking::UntilReady, &recover.ready), ("smoke", Asking::Once, &recover.smoke)]
    {
        for (n, probe) in probes.iter().enumerate() {
            let n = n.to_string();
            let path = [&at[..], &[key, &n]].concat();
            probe.ask(asking).map_err(|why| complaint(tree, &path, "E-CONFIG-VALUE", &why))?;
        }
    }
    Ok(())
}

fn service_control(tree: &Node, path: &[&str], service: &ServiceControl) -> Result<(), Failure> {
    let managers = [&service.systemd, &service.docker, &service.compose, &service.kubernetes, &service.windows];
    let managers = managers.iter().filter(|m| m.is_some()).count();
    let commands =
        [&service.stop, &service.start, &service.status, &service.kill].iter().filter(|c| c.is_some()).count();
    let wrong = match (managers, commands) {
        (0, 0) => "says neither which service manager nor which commands",
        (0, _) if service.stop.is_none() || service.start.is_none() => "needs both stop and start",
        (0, _) | (1, 0) => return Ok(()),
        _ => "names more than one way to stop and start the service",
    };
    Err(complaint(tree, path, "E-CONFIG-VALUE", wrong)
        .hint("give one of systemd, docker, compose, kubernetes and windows, or the commands stop, start and status"))
}

fn schedule(document: &Document, tree: &Node, index: &str, schedule: &Schedule) -> Result<(), Failure> {
    let wrong = |key: &str, message: &str| complaint(tree, &["schedules", index, key], "E-CONFIG-VALUE", message);
    if !document.clusters.contains_key(&schedule.cluster) {
        let failure = wrong("cluster", "no such cluster");
        let near = nearest(&schedule.cluster, document.clusters.keys().map(String::as_str));
        return Err(if let Some(near) = near { failure.hint(format!("did you mean '{near}'?")) } else { failure });
    }
    if schedule.backup_type.is_some() && schedule.job != Job::Backup {
        return Err(wrong("type", "only a backup has a type"));
    }
    if schedule.kind.is_some() && !matches!(schedule.job, Job::Backup | Job::Drill) {
        return Err(wrong("kind", "only a backup and a drill have a kind"));
    }
    if (schedule.from.is_some() && schedule.to.is_some()) != (schedule.job == Job::Replicate) {
        return Err(wrong("to", "a replication goes from one repository to another, and nothing else does")
            .hint("job = \"replicate\", from = \"main\", to = \"second\""));
    }
    for (key, repo) in [("from", &schedule.from), ("to", &schedule.to), ("repo", &schedule.repo)] {
        if repo.as_ref().is_some_and(|repo| !document.repos.contains_key(repo)) {
            return Err(wrong(key, "no such repository"));
        }
    }
    if schedule.repo.is_some() && !matches!(schedule.job, Job::Backup | Job::Verify | Job::Expire) {
        return Err(wrong("repo", "only a backup, a verification and an expiry work on one repository"));
    }
    if schedule.name.as_ref().is_some_and(|name| !is_name(name)) {
        return Err(wrong("name", "this cannot be the name of a schedule").hint(NAME_RULE));
    }
    let same = |other: &&Schedule| other.name() == schedule.name();
    if document.schedules.iter().filter(same).count() > 1 {
        return Err(wrong("name", &format!("several schedules are called '{}'", schedule.name()))
            .hint("give each a name: name = \"nightly\""));
    }
    if let Some(Err(message)) = schedule.cron.as_deref().map(cron) {
        return Err(wrong("cron", &message).hint("minute hour day-of-month month day-of-week, such as \"0 2 * * *\""));
    }
    schedule.plan().map(|_| ()).map_err(|found| {
        let failure = wrong(found.key, &found.message);
        match found.key {
            "time_zone" => failure.hint("names are those of the IANA database, Europe/Berlin"),
            "cron" => failure.hint("cron = \"0 2 * * *\", or every = \"monthly\" and at = \"04:00\""),
            _ => failure,
        }
    })
}

const CRON_MACROS: &[&str] = &["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"];

/// Catches what is no calendar at all; the scheduler decides what the rest means.
fn cron(text: &str) -> Result<(), String> {
    if text.starts_with('@') {
        let known = CRON_MACROS.contains(&text);
        return if known { Ok(()) } else { Err(format!("known are {}", CRON_MACROS.join(", "))) };
    }
    let limits = [("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7)];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != limits.len() {
        return Err(format!("a calendar has 5 fields, this has {}", fields.len()));
    }
    for (field, (what, low, high)) in fields.iter().zip(limits) {
        let numbers = field.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '*' | ',' | '-' | '/' | '#' | '?');
        if !field.chars().all(allowed) {
            return Err(format!("the {what} has a character that cannot be"));
        }
        // A step (`*/90`) may be larger than the field; it is then taken once.
        let in_range = |n: &str| n.parse::<u32>().is_ok_and(|n| (low..=high).contains(&n));
        if !field.contains(['/', '#']) && !numbers.clone().all(in_range) {
            return Err(format!("the {what} is between {low} and {high}"));
        }
    }
    Ok(())
}

/// libpq keywords are written beside a cluster's own keys; the types want them in a table of their own.
pub fn gather_libpq(section: &mut Table) -> Result<(), Failure> {
    if let Some(entry) = section.get("libpq") {
        let place = entry.key_at.as_ref().map_or(String::new(), |at| format!("{at}: "));
        return Err(Failure::usage("E-CONFIG-KEY", format!("{place}unknown key 'libpq'"))
            .hint("libpq's keywords (host, port, user, …) stand directly in the cluster's section"));
    }
    let (libpq, own): (Table, Table) =
        std::mem::take(section).into_iter().partition(|(key, _)| super::schema::LIBPQ_KEYWORDS.contains(&key.as_str()));
    *section = own;
    if !libpq.is_empty() {
        let node = Node { value: Value::Table(libpq), at: None };
        section.insert("libpq".into(), super::tree::Entry { key_at: None, node });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendars_are_checked_for_what_cannot_be() {
        for right in ["0 2 * * *", "*/5 * * * 1-5", "0 0 1 jan,jul MON#1", "@daily", "0 0 L * *"] {
            assert_eq!(cron(right), Ok(()), "{right}");
        }
        for wrong in ["", "0 2 * *", "60 2 * * *", "0 24 * * *", "@dayly", "0 2 * * *; x", "0 2 0 * *"] {
            assert!(cron(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_safe_as_parts_of_paths() {
        for wrong in ["", ".", "..", "a/b", "-x", "a b", "ü", &"x".repeat(64)] {
            assert!(!is_name(wrong), "{wrong}");
        }
        assert!(is_name("prod-1_b.eu"));
    }
}
