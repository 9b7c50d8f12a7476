//! A session with one server: how it is opened, what it is pinned to, and how questions are asked in it.
//!
//! Invariants: whatever role, database or environment set, a `Connection` looks names up in `pg_catalog` only and
//! has no server-side timeouts and may write; each question is one statement whose values travel as parameters. It does not know
//! what the questions mean.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgark_pg::Major;

use super::libpq::{Libpq, Notice, ResultFormat, ResultSet};
use super::options::{ConnectOptions, Handover, SECRET_KEYWORDS};
use super::row::{Composed, Row};
use super::{ClusterError, Deadline};

/// Keywords that came after PostgreSQL 13 and have a value even when nobody gives one.
const NEWER_KEYWORDS: [(&str, &str); 6] = [
    ("sslsni", "PGSSLSNI"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
];

/// Before everything else, so that a tiny `statement_timeout` of the role has little time to strike.
const NO_TIMEOUT: &str = "SET statement_timeout = 0";
/// It may do so all the same, on a busy server.
const TIMEOUTS_STRUCK_MAX: usize = 100;
/// SQLSTATE `query_canceled`.
const CANCELED: &str = "57014";
/// `pg_temp` last: where it is not named, temporary tables would shadow the catalog.
const PIN_SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET standard_conforming_strings = on; \
     SET default_transaction_read_only = off";
/// As the session was before it was pinned.
const BEGAN_READ_ONLY: &str =
    "SELECT reset_val = 'on' AS read_only FROM pg_settings WHERE name = 'default_transaction_read_only'";
const PIN_SESSION_14: &str = "SET idle_session_timeout = 0";
const PIN_SESSION_17: &str = "SET transaction_timeout = 0";

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

fn outlast_timeouts(pq: &Libpq, deadline: Deadline) -> Result<(), ClusterError> {
    let mut struck = 0;
    loop {
        match pq.exec_script(NO_TIMEOUT, deadline) {
            Err(ClusterError::Query { sqlstate, .. }) if sqlstate == CANCELED && struck < TIMEOUTS_STRUCK_MAX => {
                struck += 1;
            }
            outcome => return outcome,
        }
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
        outlast_timeouts(&pq, deadline)?;
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

    /// The same for a program that writes: a default of the database, of the role or of the server does not keep it from that.
    pub fn handover_to_write(&self) -> Result<Handover, ClusterError> {
        let mut handover = self.handover();
        let row = self.query_one(BEGAN_READ_ONLY, &[])?;
        // Only where it must be: connection poolers refuse options.
        if row.flag("read_only")? {
            handover.variables.push(("PGOPTIONS", "-c default_transaction_read_only=off".into()));
        }
        Ok(handover)
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
        let set = self.pq.exec_params(statement.bytes(), params, ResultFormat::Text, deadline)?;
        let columns: Arc<[String]> = set.columns.into();
        Ok(set.rows.into_iter().map(|values| Row { columns: Arc::clone(&columns), values }).collect())
    }

    /// Runs a `COPY … TO STDOUT` that the server itself put together.
    pub(super) fn copy_composed(
        &self,
        statement: &Composed,
        deadline: Deadline,
        each: &mut dyn FnMut(&[u8]) -> Result<(), ClusterError>,
    ) -> Result<(), ClusterError> {
        self.pq.copy_out(statement.bytes(), deadline, each)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
