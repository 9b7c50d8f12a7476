//! A session with one server: how it is opened, what it is pinned to, and how questions are asked in it.
//!
//! Invariants: whatever role, database or environment set, a `Connection` looks names up in `pg_catalog` only and
//! has no server-side timeouts; each question is one statement whose values travel as parameters. It does not know
//! what the questions mean.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgark_pg::Major;
use zeroize::Zeroizing;

use super::libpq::{Libpq, Notice, ResultFormat, ResultSet, Value};
use super::{ClusterError, Deadline};

/// Shorter secrets are not replaced in messages: that would garble every word and give them away.
const SECRET_BYTES_MIN: usize = 4;
/// PostgreSQL truncates names to this before it repeats them in a message (NAMEDATALEN - 1).
const NAME_BYTES_MAX: usize = 63;
/// Keywords whose values may be shown; everything else is taken for a secret.
const SHOWN_KEYWORDS: [&str; 13] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "service",
    "passfile",
    "connect_timeout",
    "application_name",
    "target_session_attrs",
];
/// Keywords whose values must not appear in a message.
const SECRET_KEYWORDS: [&str; 5] =
    ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"];

/// Keywords that came after PostgreSQL 13 and have a value even when nobody gives one.
const NEWER_KEYWORDS: [(&str, &str); 6] = [
    ("sslsni", "PGSSLSNI"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
];

/// The timeouts first, so that a tiny `statement_timeout` of the role has no time to strike.
/// `pg_temp` last: where it is not named, temporary tables would shadow the catalog.
const PIN_SESSION: &str = "SET statement_timeout = 0; SET search_path = pg_catalog, pg_temp; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET standard_conforming_strings = on";
const PIN_SESSION_14: &str = "SET idle_session_timeout = 0";
const PIN_SESSION_17: &str = "SET transaction_timeout = 0";

/// How to reach a server. What is left out, libpq takes from `PG*` variables, service and password files.
#[derive(Clone)]
pub struct ConnectOptions {
    /// libpq keywords with literal values; a later one wins over an earlier one of the same name.
    pub keywords: Vec<(String, String)>,
    /// How long one statement may take before it is cancelled, unless the call has a deadline of its own.
    pub statement_timeout: Duration,
}

impl ConnectOptions {
    /// Enough for every question this program asks of a healthy server.
    pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

    pub fn new(keywords: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { keywords: keywords.into_iter().collect(), statement_timeout: Self::STATEMENT_TIMEOUT }
    }

    /// The same server, another database. The name is taken literally.
    pub fn to_database(&self, database: &str) -> Self {
        self.with("dbname", database)
    }

    pub fn with(&self, keyword: &str, value: &str) -> Self {
        let others = self.keywords.iter().filter(|(name, _)| name != keyword).cloned();
        let keywords = others.chain([(keyword.to_owned(), value.to_owned())]).collect();
        Self { keywords, statement_timeout: self.statement_timeout }
    }

    pub fn without(&self, keyword: &str) -> Self {
        let keywords = self.keywords.iter().filter(|(name, _)| name != keyword).cloned().collect();
        Self { keywords, statement_timeout: self.statement_timeout }
    }

    fn has(&self, keyword: &str) -> bool {
        self.keywords.iter().any(|(name, _)| name == keyword)
    }

    /// The caller's keywords over our defaults: a name for the session, and keepalives so that neither a firewall
    /// nor a dead peer goes unnoticed during the hours of a backup.
    fn completed(&self) -> Vec<(String, String)> {
        let ours = [
            ("application_name", "pgark"),
            ("keepalives", "1"),
            ("keepalives_idle", "60"),
            ("keepalives_interval", "10"),
            ("keepalives_count", "6"),
        ];
        let missing = ours.into_iter().filter(|(name, _)| !self.has(name));
        missing.map(|(name, value)| (name.to_owned(), value.to_owned())).chain(self.keywords.iter().cloned()).collect()
    }

    fn secrets(&self) -> Vec<String> {
        let is_secret = |name: &str, value: &str| {
            SECRET_KEYWORDS.contains(&name) || (name == "dbname" && looks_like_conninfo(value))
        };
        self.keywords.iter().filter(|(name, value)| is_secret(name, value)).map(|(_, value)| value.clone()).collect()
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.secrets();
        let shown = |name: &str, value: &str| {
            // A value may be shown and yet repeat a secret: a user called like their password.
            let open = SHOWN_KEYWORDS.contains(&name) && !looks_like_conninfo(value);
            if open { redact(value, secrets.iter().map(String::as_str)) } else { "***".to_owned() }
        };
        let keywords = self.keywords.iter().map(|(name, value)| (name.as_str(), shown(name, value)));
        f.debug_struct("ConnectOptions")
            .field("keywords", &keywords.collect::<Vec<_>>())
            .field("statement_timeout", &self.statement_timeout)
            .finish()
    }
}

/// How another program reaches the server that a session is with. libpq's password file counts there, too.
#[derive(Clone)]
pub struct Handover {
    /// Keywords that may stand in an argument.
    pub keywords: Vec<(String, String)>,
    /// Options that older versions do not know, as variables.
    pub variables: Vec<(&'static str, String)>,
    /// For `PGPASSWORD`.
    pub password: Option<String>,
    /// Secrets for which libpq has no way but the connection string.
    pub other_secrets: Vec<String>,
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").field("keywords", &self.keywords).finish_non_exhaustive()
    }
}

impl Handover {
    /// A connection string to this database. Every value is quoted, so that none is taken for more than a value.
    pub fn connection_string(&self, database: &str) -> String {
        let ours = [("dbname", database), ("application_name", "pgark")];
        let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let all = self.keywords.iter().cloned().chain(ours);
        all.map(|(name, value)| format!("{name}='{}'", quoted(&value))).collect::<Vec<_>>().join(" ")
    }
}

/// In which encoding text arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    /// The server's own bytes, for names and paths that have to be kept exactly.
    Raw,
}

/// One open session. It may move between threads but is used by one at a time.
pub struct Connection {
    pq: Libpq,
    statement_timeout: Duration,
    version_num: u32,
    major: Major,
    encoding: Cell<Encoding>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("version_num", &self.version_num).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects, checks the version and pins the settings of the session. With several hosts each is tried in
    /// turn with an equal share of the time, so that one that swallows packets does not hide the others.
    pub fn open(options: &ConnectOptions, within: Duration) -> Result<Self, ClusterError> {
        let deadline = Deadline::after(within);
        let pq = connect(options, deadline)?;
        let version_num = u32::try_from(pq.server_version()).unwrap_or(0);
        let major = Major::from_version_num(version_num).ok_or_else(|| ClusterError::Unsupported {
            message: format!("the server reports version number {version_num}, PostgreSQL 13 to 18 is needed"),
        })?;
        pq.exec_script(PIN_SESSION, deadline)?;
        if major >= Major::V14 {
            pq.exec_script(PIN_SESSION_14, deadline)?;
        }
        if major >= Major::V17 {
            pq.exec_script(PIN_SESSION_17, deadline)?;
        }
        let encoding = Cell::new(set_encoding(&pq, Encoding::Utf8, deadline)?);
        Ok(Self { pq, statement_timeout: options.statement_timeout, version_num, major, encoding })
    }

    /// The server's version as a number: 150018 is 15.18.
    pub fn version_num(&self) -> u32 {
        self.version_num
    }

    pub fn major(&self) -> Major {
        self.major
    }

    /// What another program has to be told to reach the same server in the same way.
    pub fn handover(&self) -> Handover {
        let mut handover = Handover { keywords: vec![], variables: vec![], password: None, other_secrets: vec![] };
        for option in self.pq.effective_options() {
            // A libpq of an older major does not know the keyword and refuses it; an unknown variable it passes over.
            if let Some((_, variable)) = NEWER_KEYWORDS.iter().find(|(newer, _)| *newer == option.keyword) {
                handover.variables.push((variable, option.value));
                continue;
            }
            match option.keyword.as_str() {
                "password" => handover.password = Some(option.value),
                name if SECRET_KEYWORDS.contains(&name) => handover.other_secrets.push(option.keyword),
                // Of this session, not of the way to the server.
                "dbname"
                | "service"
                | "servicefile"
                | "options"
                | "replication"
                | "client_encoding"
                | "application_name"
                | "fallback_application_name"
                | "target_session_attrs"
                | "load_balance_hosts" => {}
                name if option.is_default && name != "port" => {}
                _ => handover.keywords.push((option.keyword, option.value)),
            }
        }
        let is_known = handover.keywords.iter().any(|(name, _)| name == "host" || name == "hostaddr");
        if let Some(host) = self.pq.host().filter(|_| !is_known) {
            handover.keywords.push(("host".into(), host));
        }
        handover
    }

    /// The process id the server announced when the session began; a connection pooler announces one of its own.
    pub fn announced_backend_pid(&self) -> i32 {
        self.pq.backend_pid()
    }

    pub fn query(&self, sql: &str, params: &[&str]) -> Result<Vec<Row>, ClusterError> {
        self.query_by(sql, params, self.default_deadline())
    }

    pub fn query_by(&self, sql: &str, params: &[&str], deadline: Deadline) -> Result<Vec<Row>, ClusterError> {
        let params: Vec<_> = params.iter().map(|p| Some(p.as_bytes())).collect();
        self.query_bytes(sql, &params, ResultFormat::Text, deadline)
    }

    /// Parameters may be NULL or text of any encoding; with `Binary`, columns come in PostgreSQL's binary form.
    pub fn query_bytes(
        &self,
        sql: &str,
        params: &[Option<&[u8]>],
        format: ResultFormat,
        deadline: Deadline,
    ) -> Result<Vec<Row>, ClusterError> {
        let ResultSet { columns, rows, .. } = self.pq.exec_params(sql.as_bytes(), params, format, deadline)?;
        let columns: Arc<[String]> = columns.into();
        Ok(rows.into_iter().map(|values| Row { columns: Arc::clone(&columns), values }).collect())
    }

    /// Exactly one row, or an error.
    pub fn query_one(&self, sql: &str, params: &[&str]) -> Result<Row, ClusterError> {
        self.query_one_by(sql, params, self.default_deadline())
    }

    pub fn query_one_by(&self, sql: &str, params: &[&str], deadline: Deadline) -> Result<Row, ClusterError> {
        let mut rows = self.query_by(sql, params, deadline)?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            (None, _) => Err(ClusterError::Unexpected { message: "no row instead of one".to_owned() }),
            (Some(_), more) => Err(ClusterError::Unexpected { message: format!("{} rows instead of one", more + 1) }),
        }
    }

    /// Runs a statement and returns the number of rows it touched, 0 where it does not count rows.
    pub fn execute(&self, sql: &str, params: &[&str]) -> Result<u64, ClusterError> {
        let params: Vec<_> = params.iter().map(|p| Some(p.as_bytes())).collect();
        let result = self.pq.exec_params(sql.as_bytes(), &params, ResultFormat::Text, self.default_deadline())?;
        Ok(result.affected.unwrap_or(0))
    }

    /// Runs a statement that the server itself put together.
    pub(super) fn query_composed(
        &self,
        statement: &Composed,
        params: &[Option<&[u8]>],
        deadline: Deadline,
    ) -> Result<Vec<Row>, ClusterError> {
        let set = self.pq.exec_params(&statement.0, params, ResultFormat::Text, deadline)?;
        let columns: Arc<[String]> = set.columns.into();
        Ok(set.rows.into_iter().map(|values| Row { columns: Arc::clone(&columns), values }).collect())
    }

    /// One statement that the server puts together from these parameters, with `format()`, in the only column of the only row.
    pub(super) fn compose(&self, sql: &'static str, params: &[&[u8]]) -> Result<Composed, ClusterError> {
        let params: Vec<_> = params.iter().map(|p| Some(*p)).collect();
        let rows = self.query_bytes(sql, &params, ResultFormat::Text, self.default_deadline())?;
        match (rows.first(), rows.len()) {
            (Some(row), 1) => row.composed("statement"),
            (_, n) => Err(ClusterError::Unexpected { message: format!("{n} rows instead of one statement") }),
        }
    }

    /// Several statements without parameters; `sql` is constant text.
    pub(super) fn script(&self, sql: &'static str) -> Result<(), ClusterError> {
        self.pq.exec_script(sql, self.default_deadline())
    }

    /// From here on a statement under way is cancelled, and fails as one that was too late, once this is set.
    pub fn interrupt_by(&self, flag: Arc<AtomicBool>) {
        self.pq.interrupt_by(flag);
    }

    /// What this session really uses, for programs that are to reach the same server: everything but secrets.
    pub fn effective_options(&self) -> Vec<(String, String)> {
        self.pq.reached_options()
    }

    /// The password that was used to open this session, if any.
    pub fn used_password(&self) -> Option<Zeroizing<String>> {
        self.pq.used_password().map(Zeroizing::new)
    }

    /// What the server remarked since the last call.
    pub fn take_notices(&self) -> Vec<Notice> {
        self.pq.take_notices()
    }

    pub(super) fn default_deadline(&self) -> Deadline {
        Deadline::after(self.statement_timeout)
    }

    /// From here on text arrives as the server stores it. Converted text is not what lies on disk: the path of a
    /// tablespace is bytes, whatever the encoding of the database that asks for it.
    pub(super) fn use_raw_bytes(&self) -> Result<(), ClusterError> {
        self.encoding.set(set_encoding(&self.pq, Encoding::Raw, self.default_deadline())?);
        Ok(())
    }

    /// Runs `ask` with text as the server stores it.
    pub(super) fn with_raw_bytes<T>(
        &self,
        ask: impl FnOnce(&Self) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        let before = self.encoding.get();
        self.use_raw_bytes()?;
        let answer = ask(self);
        let restored = set_encoding(&self.pq, before, self.default_deadline());
        // The answer's own error says more than that of a session which is lost with it.
        let answer = answer?;
        self.encoding.set(restored?);
        Ok(answer)
    }
}

/// UTF-8 where the server can convert to it, else its own bytes (SQL_ASCII: no conversion).
fn set_encoding(pq: &Libpq, wanted: Encoding, deadline: Deadline) -> Result<Encoding, ClusterError> {
    if wanted == Encoding::Utf8 {
        match pq.exec_script("SET client_encoding = 'UTF8'", deadline) {
            Ok(()) => return Ok(Encoding::Utf8),
            // MULE_INTERNAL and a few others have no conversion.
            Err(ClusterError::Query { sqlstate, .. }) if matches!(sqlstate.as_str(), "0A000" | "22023") => {}
            Err(error) => return Err(error),
        }
    }
    pq.exec_script("SET client_encoding = 'SQL_ASCII'", deadline)?;
    Ok(Encoding::Raw)
}

fn connect(options: &ConnectOptions, deadline: Deadline) -> Result<Libpq, ClusterError> {
    let keywords = options.completed();
    let first = Libpq::start(&keywords, options.secrets())?;
    let lists = ["host", "hostaddr", "port"].map(|keyword| (keyword, first.effective_option(keyword)));
    let candidates = split_hosts(&lists)?;
    if candidates.len() <= 1 {
        first.complete(deadline)?;
        return Ok(first);
    }
    drop(first);
    let mut failures = Vec::new();
    for (tried, candidate) in candidates.iter().enumerate() {
        let share = u32::try_from(candidates.len() - tried).unwrap_or(u32::MAX);
        let one: Vec<_> = keywords.iter().chain(candidate).cloned().collect();
        let pq = Libpq::start(&one, options.secrets())?;
        match pq.complete(Deadline::after(deadline.remaining() / share)) {
            Ok(()) => return Ok(pq),
            Err(error) => failures.push(error),
        }
    }
    Err(join_failures(failures))
}

/// All hosts failed: one reason for all, refused only where every host that answered refused.
fn join_failures(mut failures: Vec<ClusterError>) -> ClusterError {
    let same = failures.iter().all(|f| f.code() == failures.first().map_or("", ClusterError::code));
    let message = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match failures.pop() {
        Some(ClusterError::Denied { sqlstate, .. }) if same => ClusterError::Denied { sqlstate, message },
        Some(error @ ClusterError::Timeout { .. }) if same => error,
        _ => ClusterError::Unreachable { message },
    }
}

/// The keywords that single out each host of libpq's comma-separated lists; `port` may be one for all.
fn split_hosts(lists: &[(&str, Option<String>)]) -> Result<Vec<Vec<(String, String)>>, ClusterError> {
    let split = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let lists: Vec<(&str, Vec<String>)> =
        lists.iter().filter_map(|(name, value)| value.as_deref().map(|v| (*name, split(v)))).collect();
    let count = lists.iter().filter(|(name, _)| *name != "port").map(|(_, values)| values.len()).max().unwrap_or(1);
    let mut candidates = vec![Vec::new(); count];
    for (name, values) in &lists {
        if values.len() != count && values.len() != 1 {
            return Err(ClusterError::Invalid {
                message: format!("{} values of {name} for {count} hosts", values.len()),
            });
        }
        for (candidate, value) in candidates.iter_mut().zip(values.iter().cycle()) {
            candidate.push(((*name).to_owned(), value.clone()));
        }
    }
    Ok(candidates)
}

/// A statement that the server put together, so that names in it are quoted by its own rules and in its own bytes. Nothing
/// else makes one.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Composed(Vec<u8>);

impl fmt::Debug for Composed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Composed({})", String::from_utf8_lossy(&self.0))
    }
}

/// One row of a result; columns are asked for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    columns: Arc<[String]>,
    values: Vec<Value>,
}

impl Row {
    /// The bytes of a column, `None` for NULL.
    pub fn bytes(&self, column: &str) -> Result<Option<&[u8]>, ClusterError> {
        let at = self.columns.iter().position(|name| name == column);
        let value = at.and_then(|at| self.values.get(at));
        value.map(Option::as_deref).ok_or_else(|| unexpected(column, "is missing"))
    }

    /// A column as text, `None` for NULL.
    pub fn opt_text(&self, column: &str) -> Result<Option<&str>, ClusterError> {
        let text = self.bytes(column)?.map(std::str::from_utf8).transpose();
        text.map_err(|_| unexpected(column, "is not UTF-8"))
    }

    pub fn text(&self, column: &str) -> Result<&str, ClusterError> {
        self.opt_text(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    pub fn opt_parse<T: FromStr>(&self, column: &str) -> Result<Option<T>, ClusterError> {
        let parsed = self.opt_text(column)?.map(str::parse).transpose();
        parsed.map_err(|_| unexpected(column, "does not parse"))
    }

    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T, ClusterError> {
        self.opt_parse(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    /// A boolean column, `None` for NULL.
    pub fn opt_flag(&self, column: &str) -> Result<Option<bool>, ClusterError> {
        match self.opt_text(column)? {
            None => Ok(None),
            Some("t" | "true" | "on") => Ok(Some(true)),
            Some("f" | "false" | "off") => Ok(Some(false)),
            Some(_) => Err(unexpected(column, "is not a boolean")),
        }
    }

    pub fn flag(&self, column: &str) -> Result<bool, ClusterError> {
        self.opt_flag(column)?.ok_or_else(|| unexpected(column, "is NULL"))
    }

    /// A column in which a query of ours put together a statement with `format()`.
    pub(super) fn composed(&self, column: &str) -> Result<Composed, ClusterError> {
        let bytes = self.bytes(column)?.ok_or_else(|| unexpected(column, "is NULL"))?;
        Ok(Composed(bytes.to_vec()))
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The values in the order of the columns.
    pub fn values(&self) -> &[Option<Vec<u8>>] {
        &self.values
    }
}

fn unexpected(column: &str, problem: &str) -> ClusterError {
    ClusterError::Unexpected { message: format!("column {column} {problem}") }
}

/// A connection URI or string given as a database name: it is used literally, but may hold a password.
fn looks_like_conninfo(value: &str) -> bool {
    value.contains("://") || value.contains("password=")
}

/// `message` without any of the `secrets`.
pub(super) fn redact<'a>(message: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let mut secrets: Vec<&str> = secrets
        .flat_map(|secret| [secret, shortened(secret, NAME_BYTES_MAX)])
        .filter(|secret| secret.len() >= SECRET_BYTES_MIN)
        .collect();
    // The longest first, else the rest of a longer secret that contains a shorter one would stay.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.iter().fold(message.to_owned(), |message, secret| message.replace(secret, "***"))
}

/// The first `bytes_max` bytes of a text, or a little less where that would split a character.
pub(super) fn shortened(text: &str, bytes_max: usize) -> &str {
    (0..=bytes_max.min(text.len())).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Takes the SQLSTATE out of libpq's verbose form, `FATAL:  28P01: text` with a `LOCATION:` line after it.
/// The severity and the text may be in any language; the shape is fixed (libpq: pqBuildErrorMessage3).
pub(super) fn split_verbose(message: &str) -> (String, Option<String>) {
    let is_state = |code: &str| code.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    let mut state = None;
    let mut lines = Vec::new();
    for line in message.lines() {
        let found = line.match_indices(":  ").find_map(|(at, mark)| {
            let start = at + mark.len();
            let code = line.get(start..start + 5).filter(|code| is_state(code))?;
            let rest = line.get(start + 5..)?.strip_prefix(": ")?;
            Some((line.get(..start)?, code, rest))
        });
        match found {
            Some((before, code, rest)) => {
                state = Some(code.to_owned());
                lines.push(format!("{before}{rest}"));
            }
            // The source location follows as the last line of its message: `LOCATION:  function, file.c:123`.
            None if state.is_some() && is_location(line) => {}
            None => lines.push(line.to_owned()),
        }
    }
    (lines.join("; "), state)
}

fn is_location(line: &str) -> bool {
    line.rsplit_once(".c:").is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(keywords: &[(&str, &str)]) -> ConnectOptions {
        ConnectOptions::new(keywords.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn debug_shows_where_but_no_secret() {
        let shown = format!(
            "{:?}",
            options(&[
                ("host", "db1"),
                ("password", "hunter2"),
                ("options", "-c x=hunter3"),
                ("sslpassword", "hunter4")
            ])
        );
        assert!(shown.contains("db1"), "{shown}");
        assert!(!shown.contains("hunter"), "{shown}");
        let uri = format!("{:?}", options(&[("dbname", "postgresql://u:hunter2@h/d")]));
        assert!(!uri.contains("hunter"), "{uri}");
    }

    #[test]
    fn secrets_are_cut_out_longest_first_and_also_truncated() {
        assert_eq!(redact("a hunter22 b hunter2", ["hunter2", "hunter22"].into_iter()), "a *** b ***");
        let long = "x".repeat(80);
        assert_eq!(redact(&format!("db \"{}\"", &long[..63]), [long.as_str()].into_iter()), "db \"***\"");
        assert_eq!(redact("abc", ["", "a"].into_iter()), "abc");
    }

    #[test]
    fn sqlstate_is_found_in_any_language_and_the_location_dropped() {
        let message = "connection to server at \"h\", port 5432 failed: FATAL:  28P01: Passwort-Authentifizierung \
                       für Benutzer »a« fehlgeschlagen\nORT:  auth_failed, auth.c:323";
        let (text, state) = split_verbose(message);
        assert_eq!(state.as_deref(), Some("28P01"));
        assert!(text.ends_with("fehlgeschlagen") && text.contains("FATAL:  Passwort"), "{text}");
        assert_eq!(
            split_verbose("could not translate host name: x"),
            ("could not translate host name: x".into(), None)
        );
    }

    #[test]
    fn host_lists_are_split_with_one_port_for_all() {
        let lists = [("host", Some("a,b".to_owned())), ("hostaddr", None), ("port", Some("5433".to_owned()))];
        let hosts = split_hosts(&lists).expect("valid lists");
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            hosts,
            [vec![pair("host", "a"), pair("port", "5433")], vec![pair("host", "b"), pair("port", "5433")]]
        );
        let uneven = [("host", Some("a,b,c".to_owned())), ("port", Some("1,2".to_owned()))];
        assert!(matches!(split_hosts(&uneven), Err(ClusterError::Invalid { .. })));
    }

    #[test]
    fn callers_keywords_win_over_ours() {
        let completed = options(&[("application_name", "mine")]).completed();
        let names: Vec<_> = completed.iter().filter(|(k, _)| k == "application_name").collect();
        assert_eq!(names, [&("application_name".to_owned(), "mine".to_owned())]);
    }

    #[test]
    fn a_connection_string_holds_whatever_a_name_is_made_of() {
        let keywords = vec![("host".to_owned(), "/tmp/it's".to_owned())];
        let handover =
            Handover { keywords, variables: vec![], password: Some("hunter2".into()), other_secrets: vec![] };
        let text = handover.connection_string("port=1 dbname='x\\");
        assert_eq!(text, r"host='/tmp/it\'s' dbname='port=1 dbname=\'x\\' application_name='pgark'");
        assert!(!text.contains("hunter") && !format!("{handover:?}").contains("hunter"));
    }
}
