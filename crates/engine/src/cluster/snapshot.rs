//! A session that reads one exported snapshot and changes nothing.
//!
//! Invariants: what is read through a `SnapshotSession` is the state of one moment, the same in every session of that
//! snapshot; how values are written as text does not depend on settings of the role, the database or the server; rows that
//! row security would hide are an error, never silently missing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::connection::{Composed, Row};
use super::{ClusterError, ConnectOptions, Connection, Deadline};

/// What `Connection` pins does not decide how money and intervals are written, nor whether row security filters.
pub(super) const PIN_READING: &str = "SET intervalstyle = 'postgres'; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; \
     SET row_security = off; SET quote_all_identifiers = off; SET jit = off";
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
    /// Opens a session in `database` and exports a snapshot of its own, or takes over the given one.
    pub fn open(
        options: &ConnectOptions,
        database: &str,
        snapshot: Option<&SnapshotId>,
        within: Duration,
    ) -> Result<Self, ClusterError> {
        let conn = Connection::open(&options.to_database(database), within)?;
        conn.script(PIN_READING)?;
        conn.script("SET default_transaction_read_only = on")?;
        if conn.query_one("SELECT current_setting('server_encoding') AS encoding", &[])?.text("encoding")?
            == "SQL_ASCII"
        {
            // Names may be of any encoding there, and must come and go as they are.
            conn.use_raw_bytes()?;
        }
        let id = match snapshot {
            Some(id) => id.clone(),
            None => {
                conn.script(BEGIN)?;
                let id = conn.query_one("SELECT pg_export_snapshot() AS id", &[])?.text("id")?.parse()?;
                // A parameter is not allowed in the statement, so the server quotes it.
                let use_snapshot = compose_use(&conn, &id)?;
                return Ok(Self { conn, id, use_snapshot });
            }
        };
        let use_snapshot = compose_use(&conn, &id)?;
        let session = Self { conn, id, use_snapshot };
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

    pub(super) fn run(&self, statement: &Composed, deadline: Deadline) -> Result<Vec<Row>, ClusterError> {
        self.conn.query_composed(statement, &[], deadline)
    }
}

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
