//! Making databases and roles. Statements of this kind take no parameters, so the server itself puts them together: names and
//! values travel as parameters of its `format`, which quotes them.

mod settings;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pgark_pg::Major;
use pgark_repo::record::{DatabaseDump, Grant};

use super::database::{Globals, ParameterFacts, Role, TablespaceFacts};
use super::{ClusterError, Connection, Deadline};

/// Copying a template, or removing the files of a database.
const DATABASE_WITHIN: Duration = Duration::from_secs(3600);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the statement that the server makes of this format; `$1` and so on are text. Qualified, because a setting that is being
/// restored may have changed the search path.
fn run_made(conn: &Connection, format: &str, params: &[&str]) -> Result<(), ClusterError> {
    let list: Vec<String> = (1..=params.len()).map(|n| format!("${n}::pg_catalog.text")).collect();
    let with = if list.is_empty() { String::new() } else { format!(", {}", list.join(", ")) };
    let sql = format!("SELECT pg_catalog.format('{format}'{with}) AS statement");
    let row = conn.query_one(&sql, params)?;
    conn.query_by(row.text("statement")?, &[], Deadline::after(DATABASE_WITHIN)).map(drop)
}

fn exists(conn: &Connection, sql: &str, name: &str) -> Result<bool, ClusterError> {
    Ok(!conn.query(sql, &[name])?.is_empty())
}

pub fn database_exists(conn: &Connection, name: &str) -> Result<bool, ClusterError> {
    exists(conn, "SELECT 1 FROM pg_database WHERE datname = $1::text", name)
}

pub fn role_exists(conn: &Connection, name: &str) -> Result<bool, ClusterError> {
    exists(conn, "SELECT 1 FROM pg_roles WHERE rolname = $1::text", name)
}

pub fn tablespace_exists(conn: &Connection, name: &str) -> Result<bool, ClusterError> {
    exists(conn, "SELECT 1 FROM pg_tablespace WHERE spcname = $1::text", name)
}

/// What keeps a database from being replaced, but for connections.
pub fn obstacles(conn: &Connection, database: &str) -> Result<Vec<String>, ClusterError> {
    let sql = "SELECT 'prepared transaction ' || quote_literal(gid) AS what FROM pg_prepared_xacts WHERE database = $1::text \
         UNION ALL SELECT 'replication slot ' || quote_literal(slot_name) FROM pg_replication_slots WHERE database = $1::text \
         UNION ALL SELECT 'subscription ' || quote_literal(s.subname) FROM pg_subscription s JOIN pg_database d \
             ON d.oid = s.subdbid WHERE d.datname = $1::text ORDER BY 1";
    conn.query(sql, &[database])?.iter().map(|row| row.text("what").map(str::to_owned)).collect()
}

/// An empty database with the owner, encoding and locale of the dumped one. `tablespace`: None for the default.
pub fn create_database(
    conn: &Connection,
    name: &str,
    like: &DatabaseDump,
    tablespace: Option<&str>,
) -> Result<(), ClusterError> {
    let mut format = "CREATE DATABASE %I TEMPLATE template0 OWNER %I ENCODING %L LC_COLLATE %L LC_CTYPE %L".to_owned();
    let mut params = vec![name, &like.owner, &like.encoding, &like.collate, &like.ctype];
    let mut push = |text: &str, value| {
        format.push_str(text);
        params.push(value);
    };
    match (like.locale_provider.as_str(), conn.major()) {
        ("c", major) if major >= Major::V15 => push(" LOCALE_PROVIDER %s", "libc"),
        ("c", _) => {}
        ("i", major) if major >= Major::V15 => {
            push(" LOCALE_PROVIDER %s", "icu");
            like.locale.iter().for_each(|l| push(" ICU_LOCALE %L", l));
            if major >= Major::V16 {
                like.icu_rules.iter().for_each(|r| push(" ICU_RULES %L", r));
            }
        }
        ("b", major) if major >= Major::V17 => {
            push(" LOCALE_PROVIDER %s", "builtin");
            like.locale.iter().for_each(|l| push(" BUILTIN_LOCALE %L", l));
        }
        (provider, major) => {
            return Err(ClusterError::Unsupported {
                message: format!("PostgreSQL {} has no locale provider '{provider}'", major.number()),
            });
        }
    }
    tablespace.iter().for_each(|t| push(" TABLESPACE %I", t));
    run_made(conn, &format, &params)
}

/// Settings, rights, comment and limit, which a dump does not bring by itself. Returns what could not be set and why: none of
/// it keeps the data from being used.
pub fn finish_database(conn: &Connection, name: &str, like: &DatabaseDump) -> Result<Vec<String>, ClusterError> {
    let mut left = vec![];
    let mut note = |what: String, outcome: Result<(), ClusterError>| match outcome {
        Ok(()) => Ok(()),
        Err(ClusterError::Query { message, .. } | ClusterError::Denied { message, .. }) => {
            left.push(format!("{what}: {message}"));
            Ok(())
        }
        Err(e) => Err(e),
    };
    for setting in &like.settings {
        note(format!("setting {}", setting.name), settings::for_database(conn, name, setting))?;
    }
    if let Some(acl) = &like.acl {
        note("rights".into(), run_made(conn, "REVOKE ALL ON DATABASE %I FROM PUBLIC", &[name]))?;
        for grant in acl {
            note(format!("the right to {}", grant.privilege), grant_on(conn, "DATABASE", name, grant))?;
        }
    }
    if let Some(comment) = &like.comment {
        note("comment".into(), run_made(conn, "COMMENT ON DATABASE %I IS %L", &[name, comment]))?;
    }
    if like.connection_limit >= 0 {
        let limit = like.connection_limit.to_string();
        note("connection limit".into(), run_made(conn, "ALTER DATABASE %I CONNECTION LIMIT %s", &[name, &limit]))?;
    }
    if like.is_template {
        note("template".into(), run_made(conn, "ALTER DATABASE %I IS_TEMPLATE true", &[name]))?;
    }
    Ok(left)
}

fn grant_on(conn: &Connection, what: &str, name: &str, grant: &Grant) -> Result<(), ClusterError> {
    // Not taken from the backup as text: only what PostgreSQL calls a right of such an object.
    let privilege = match grant.privilege.as_str() {
        known @ ("CONNECT" | "CREATE" | "TEMPORARY" | "SET" | "ALTER SYSTEM") => known,
        other => return Err(ClusterError::Invalid { message: format!("'{}' is no right", other.escape_debug()) }),
    };
    let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
    match &grant.grantee {
        None => run_made(conn, &format!("GRANT {privilege} ON {what} %I TO PUBLIC{option}"), &[name]),
        Some(role) => run_made(conn, &format!("GRANT {privilege} ON {what} %I TO %I{option}"), &[name, role]),
    }
}

/// One database in the place of another.
#[derive(Debug)]
pub struct Swap<'a> {
    pub old: &'a str,
    /// The name under which the old one steps aside.
    pub aside: &'a str,
    /// Whether that stays, without connections.
    pub keep: bool,
    /// Takes the name of the old one.
    pub new: &'a str,
    pub within: Duration,
    /// Once it is set, nothing is changed any more.
    pub stop: &'a AtomicBool,
}

/// In one transaction the old one steps aside and the new one takes its name. Sessions in the old one are ended meanwhile, through
/// `ender`; whoever connects waits, and is then told to connect again. False when some are left after `within`, or it was to stop.
///
/// Nothing of it outlives these sessions: `RENAME` locks the database against new sessions before it looks for others (`RenameDatabase`
/// in `dbcommands.c`), so there is no moment at which the database would have to be closed.
pub fn swap_databases(conn: &Connection, ender: Connection, swap: &Swap<'_>) -> Result<bool, ClusterError> {
    let (done, old, new) = (&AtomicBool::new(false), swap.old, swap.new);
    thread::scope(|threads| {
        let ending = threads.spawn(move || end_sessions(&ender, [old, new], done));
        let swapped = try_to_swap(conn, swap);
        done.store(true, Ordering::Relaxed);
        let ended = ending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match swapped {
            // Perhaps because nobody could end them.
            Ok(false) => ended.map(|()| false),
            other => other,
        }
    })
}

/// A session that does not end keeps `RENAME` waiting for 5 s; who waits for the lock meanwhile gets in before the next try.
fn try_to_swap(conn: &Connection, swap: &Swap<'_>) -> Result<bool, ClusterError> {
    let until = Instant::now() + swap.within;
    let stopped = || swap.stop.load(Ordering::Relaxed);
    conn.script("SET lock_timeout = '5s'")?;
    while !stopped() && Instant::now() < until {
        conn.query("BEGIN", &[])?;
        let renamed = rename_database(conn, swap.old, swap.aside)
            .and_then(|()| rename_database(conn, swap.new, swap.old))
            .and_then(|()| match swap.keep {
                true => run_made(conn, "ALTER DATABASE %I ALLOW_CONNECTIONS false", &[swap.aside]),
                false => Ok(()),
            });
        match renamed {
            Ok(()) if stopped() => break,
            Ok(()) => return conn.query("COMMIT", &[]).map(|_| true),
            Err(ClusterError::Query { sqlstate, .. }) if IN_USE.contains(&sqlstate.as_str()) => {
                conn.query("ROLLBACK", &[])?;
            }
            Err(e) => return Err(e),
        }
    }
    // What is begun ends with the session.
    Ok(false)
}

/// `object_in_use`, `lock_not_available`.
const IN_USE: [&str; 2] = ["55006", "55P03"];

/// Also in the new one: monitors visit every database there is. Sessions of superusers are left alone where only superusers may
/// end them, and are waited for.
fn end_sessions(conn: &Connection, [old, new]: [&str; 2], done: &AtomicBool) -> Result<(), ClusterError> {
    let sql = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid \
               WHERE a.datname IN ($1::text, $2::text) AND a.pid <> pg_backend_pid() \
               AND (NOT coalesce(r.rolsuper, true) OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))";
    while !done.load(Ordering::Relaxed) {
        conn.query(sql, &[old, new])?;
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Databases that restores made for a while, or put aside.
pub fn remains(conn: &Connection) -> Result<Vec<String>, ClusterError> {
    let sql = "SELECT datname::text AS name FROM pg_database WHERE datname ~ '^pgark_(restore|replaced)_' ORDER BY 1";
    conn.query(sql, &[])?.iter().map(|row| row.text("name").map(str::to_owned)).collect()
}

/// Somebody else has this name: of a database that was to be made, or to get it.
pub fn is_taken(e: &ClusterError) -> bool {
    // `duplicate_database`; of two that make it at the same time, the second meets the index.
    matches!(e, ClusterError::Query { sqlstate, .. } if matches!(sqlstate.as_str(), "42P04" | "23505"))
}

/// Every new database has one; not every old one.
pub fn drop_public_schema(conn: &Connection) -> Result<(), ClusterError> {
    conn.script("DROP SCHEMA IF EXISTS public")
}

pub fn create_schema(conn: &Connection, name: &str) -> Result<(), ClusterError> {
    run_made(conn, "CREATE SCHEMA %I", &[name])
}

pub fn rename_database(conn: &Connection, from: &str, to: &str) -> Result<(), ClusterError> {
    run_made(conn, "ALTER DATABASE %I RENAME TO %I", &[from, to])
}

/// With whoever is connected to it. PostgreSQL drops no template.
pub fn drop_database(conn: &Connection, name: &str) -> Result<(), ClusterError> {
    let templates = conn.query("SELECT datname FROM pg_database WHERE datname = $1 AND datistemplate", &[name])?;
    if !templates.is_empty() {
        run_made(conn, "ALTER DATABASE %I IS_TEMPLATE false", &[name])?;
    }
    run_made(conn, "DROP DATABASE %I WITH (FORCE)", &[name])
}

/// What became of globals.
#[derive(Clone, Debug, Default)]
pub struct AppliedGlobals {
    pub created: Vec<String>,
    /// Were there, and stay as they are.
    pub present: Vec<String>,
    pub failed: Vec<String>,
}

/// Makes the roles and tablespaces that are missing. What is there is left alone, its password too.
pub fn apply_globals(conn: &Connection, globals: &Globals) -> Result<AppliedGlobals, ClusterError> {
    let mut done = AppliedGlobals::default();
    let mut made = vec![];
    for role in &globals.roles {
        let what = format!("role '{}'", role.name.escape_debug());
        if role_exists(conn, &role.name)? {
            done.present.push(what);
        } else if note(&mut done.failed, &what, create_role(conn, role))? {
            made.push(&role.name);
            done.created.push(what);
        }
    }
    for m in globals.memberships.iter().filter(|m| made.contains(&&m.member) || made.contains(&&m.role)) {
        let what = format!("membership of '{}' in '{}'", m.member.escape_debug(), m.role.escape_debug());
        note(&mut done.failed, &what, grant_membership(conn, m))?;
    }
    for role in globals.roles.iter().filter(|r| made.contains(&&r.name)) {
        for setting in role.settings.iter().flatten() {
            let what = format!("setting {} of role '{}'", setting.name, role.name.escape_debug());
            note(&mut done.failed, &what, settings::for_role(conn, &role.name, setting))?;
        }
    }
    for t in &globals.tablespaces {
        let what = format!("tablespace '{}'", t.name.escape_debug());
        if tablespace_exists(conn, &t.name)? {
            done.present.push(what);
            continue;
        }
        let made = run_made(conn, "CREATE TABLESPACE %I OWNER %I LOCATION %L", &[&t.name, &t.owner, &t.location]);
        if note(&mut done.failed, &what, made)? {
            finish_tablespace(conn, t, &mut done.failed)?;
            done.created.push(what);
        }
    }
    for parameter in globals.parameters.iter().flatten() {
        grant_parameter(conn, parameter, &made, &mut done.failed)?;
    }
    Ok(done)
}

fn finish_tablespace(conn: &Connection, t: &TablespaceFacts, failed: &mut Vec<String>) -> Result<(), ClusterError> {
    let of = format!("of tablespace '{}'", t.name.escape_debug());
    for grant in t.acl.iter().flatten() {
        note(failed, &format!("a right {of}"), grant_on(conn, "TABLESPACE", &t.name, grant))?;
    }
    for option in t.options.iter().flatten() {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let set = run_made(conn, "ALTER TABLESPACE %I SET (%I = %L)", &[&t.name, name, value]);
        note(failed, &format!("option {name} {of}"), set)?;
    }
    if let Some(comment) = &t.comment {
        note(failed, &format!("comment {of}"), run_made(conn, "COMMENT ON TABLESPACE %I IS %L", &[&t.name, comment]))?;
    }
    Ok(())
}

/// To roles that were made, and to all where nobody has been granted anything on this parameter: what is there stays as it is.
fn grant_parameter(
    conn: &Connection,
    parameter: &ParameterFacts,
    made: &[&String],
    failed: &mut Vec<String>,
) -> Result<(), ClusterError> {
    let known = conn.major() >= Major::V15
        && exists(conn, "SELECT 1 FROM pg_parameter_acl WHERE parname = $1::text", &parameter.name)?;
    let wanted = |grant: &&Grant| !known || grant.grantee.as_ref().is_some_and(|role| made.contains(&role));
    for grant in parameter.acl.iter().filter(wanted) {
        let to = grant.grantee.as_deref().unwrap_or("PUBLIC");
        let what = format!("{} on parameter {} for '{}'", grant.privilege, parameter.name, to.escape_debug());
        note(failed, &what, grant_on(conn, "PARAMETER", &parameter.name, grant))?;
    }
    Ok(())
}

/// Whether it was done; what the server refuses is noted, and a lost session is an error.
fn note(failed: &mut Vec<String>, what: &str, outcome: Result<(), ClusterError>) -> Result<bool, ClusterError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(
            ClusterError::Query { message, .. }
            | ClusterError::Denied { message, .. }
            | ClusterError::Invalid { message },
        ) => {
            failed.push(format!("{what}: {message}"));
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn create_role(conn: &Connection, role: &Role) -> Result<(), ClusterError> {
    let flags = [
        (role.superuser, "SUPERUSER", "NOSUPERUSER"),
        (role.inherit, "INHERIT", "NOINHERIT"),
        (role.createrole, "CREATEROLE", "NOCREATEROLE"),
        (role.createdb, "CREATEDB", "NOCREATEDB"),
        (role.login, "LOGIN", "NOLOGIN"),
        (role.replication, "REPLICATION", "NOREPLICATION"),
        (role.bypassrls, "BYPASSRLS", "NOBYPASSRLS"),
    ];
    let words: Vec<&str> = flags.iter().map(|(on, yes, no)| if *on { *yes } else { *no }).collect();
    let limit = role.connection_limit.to_string();
    let mut format = format!("CREATE ROLE %I WITH {} CONNECTION LIMIT %s", words.join(" "));
    let mut params = vec![role.name.as_str(), &limit];
    for (text, value) in [(" PASSWORD %L", &role.password), (" VALID UNTIL %L", &role.valid_until)] {
        if let Some(value) = value {
            format.push_str(text);
            params.push(value);
        }
    }
    run_made(conn, &format, &params)?;
    match &role.comment {
        Some(comment) => run_made(conn, "COMMENT ON ROLE %I IS %L", &[&role.name, comment]),
        None => Ok(()),
    }
}

fn grant_membership(conn: &Connection, m: &super::Membership) -> Result<(), ClusterError> {
    let options = match (conn.major() >= Major::V16, m.inherit, m.set) {
        (true, Some(inherit), Some(set)) => format!(" WITH ADMIN {}, INHERIT {inherit}, SET {set}", m.admin),
        _ if m.admin => " WITH ADMIN OPTION".to_owned(),
        _ => String::new(),
    };
    run_made(conn, &format!("GRANT %I TO %I{options}"), &[&m.role, &m.member])
}
