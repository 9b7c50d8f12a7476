//! A session that reads one exported snapshot and changes nothing.
//!
//! Invariants: what is read through a `SnapshotSession` is the state of one moment, the same in every session of that
//! snapshot; how values are written as text does not depend on settings of the role, the database or the server; rows that
//! row security would hide are an error, never silently missing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

use super::row::{Composed, Row};
use super::{ClusterError, ConnectOptions, Connection, Deadline};

/// What `Connection` pins does not decide how money and intervals are written, nor whether row security filters.
pub(super) const PIN_READING: &str = "SET intervalstyle = 'postgres'; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; \
     SET row_security = off; SET quote_all_identifiers = off; SET jit = off";
/// What is locked for longer cannot be read now; whoever waits for it keeps others from it, too.
const LOCK_WAIT: &str = "SET lock_timeout = '60s'";
const END_WITHIN: Duration = Duration::from_secs(60);
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";

/// What `pg_export_snapshot()` gives; it only has hexadecimal digits and dashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotId(String);

impl FromStr for SnapshotId {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let valid = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if valid {
            Ok(SnapshotId(text.to_owned()))
        } else {
            Err(ClusterError::Invalid { message: "this is not the id of an exported snapshot".to_owned() })
        }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ends with its transaction when it is dropped; others can use an exported snapshot only while its session lives.
#[derive(Debug)]
pub struct SnapshotSession {
    conn: Connection,
    id: SnapshotId,
    use_snapshot: Composed,
}

impl SnapshotSession {
    /// Opens a session in `database` and exports a snapshot of its own; the moment is the one of the snapshot, by the server's clock.
    pub fn export(
        options: &ConnectOptions,
        database: &str,
        within: Duration,
    ) -> Result<(Self, Timestamp), ClusterError> {
        let conn = connect(options, database, within)?;
        conn.script(BEGIN)?;
        let row = conn
            .query_one("SELECT pg_export_snapshot() AS id, floor(extract(epoch FROM now()))::bigint AS seconds", &[])?;
        let id = row.text("id")?.parse()?;
        let taken = Timestamp::from_second(row.parse("seconds")?)
            .map_err(|e| ClusterError::Unexpected { message: format!("the server's clock: {e}") })?;
        let use_snapshot = compose_use(&conn, &id)?;
        Ok((Self { conn, id, use_snapshot }, taken))
    }

    /// Opens a session in `database` that sees what the one that exported this snapshot sees.
    pub fn join(
        options: &ConnectOptions,
        database: &str,
        snapshot: &SnapshotId,
        within: Duration,
    ) -> Result<Self, ClusterError> {
        let conn = connect(options, database, within)?;
        let use_snapshot = compose_use(&conn, snapshot)?;
        let session = Self { conn, id: snapshot.clone(), use_snapshot };
        session.begin()?;
        Ok(session)
    }

    fn begin(&self) -> Result<(), ClusterError> {
        self.conn.script(BEGIN)?;
        self.conn.query_composed(&self.use_snapshot, &[], self.conn.default_deadline()).map(drop)
    }

    /// After a failed statement: the same snapshot again. Only for sessions that took it over.
    pub(super) fn begin_again(&self) -> Result<(), ClusterError> {
        self.conn.script("ROLLBACK")?;
        self.begin()
    }

    pub fn id(&self) -> &SnapshotId {
        &self.id
    }

    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// `pg_database_size` of the database that it is in; None where this role may not know.
    pub fn database_bytes(&self) -> Result<Option<u64>, ClusterError> {
        // An error would end the transaction, and the snapshot with it.
        let allowed = "SELECT CASE WHEN has_database_privilege(current_database(), 'connect') \
             OR pg_has_role('pg_read_all_stats', 'usage') THEN pg_database_size(current_database())::text END AS bytes";
        self.conn.query_one(allowed, &[])?.opt_parse("bytes")
    }

    pub fn has_public_schema(&self) -> Result<bool, ClusterError> {
        let sql = "SELECT count(*) > 0 AS there FROM pg_namespace WHERE nspname = 'public'";
        self.conn.query_one(sql, &[])?.flag("there")
    }

    /// An error when the session, and with it the snapshot, was lost meanwhile.
    pub fn end(self) -> Result<(), ClusterError> {
        self.conn.query_by("COMMIT", &[], Deadline::after(END_WITHIN)).map(drop)
    }

    pub(super) fn run(&self, statement: &Composed, deadline: Deadline) -> Result<Vec<Row>, ClusterError> {
        self.conn.query_composed(statement, &[], deadline)
    }
}

fn connect(options: &ConnectOptions, database: &str, within: Duration) -> Result<Connection, ClusterError> {
    let conn = Connection::open(&options.to_database(database), within)?;
    conn.script(PIN_READING)?;
    conn.script("SET default_transaction_read_only = on")?;
    conn.script(LOCK_WAIT)?;
    let encoding = conn.query_one("SELECT current_setting('server_encoding') AS encoding", &[])?;
    if encoding.text("encoding")? == "SQL_ASCII" {
        // Names may be of any encoding there, and must come and go as they are.
        conn.use_raw_bytes()?;
    }
    Ok(conn)
}

/// A parameter is not allowed in the statement, so the server quotes it.
fn compose_use(conn: &Connection, id: &SnapshotId) -> Result<Composed, ClusterError> {
    conn.compose("SELECT format('SET TRANSACTION SNAPSHOT %L', $1::text) AS statement", &[id.0.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_postgresql_gives_out_is_a_snapshot_id() {
        assert_eq!("00000003-0000001B-1".parse::<SnapshotId>().expect("valid").to_string(), "00000003-0000001B-1");
        for wrong in ["", "1'; select 1", "0000\n", &"0".repeat(65)] {
            assert!(wrong.parse::<SnapshotId>().is_err(), "{wrong:?}");
        }
    }
}
