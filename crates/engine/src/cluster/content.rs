//! Rows and values: counts and hashes of tables, positions of sequences, large objects.
//!
//! The hash of a table is that of a multiset. Each row is written as text by its type's output function (`record_out`, so that no
//! cast of a user's can stand in its way), hashed to 64 bits twice with different seeds, and the two are summed up exactly, as
//! numbers that do not wrap. Beside them stand the number of rows and the bytes of their texts. The order of rows, their place,
//! TOAST, fill factors and dropped columns do not matter. A row that is lost, twice there or changed leaves both sums as they were only by
//! a coincidence of 128 bits; it is a proof against accidents, not against somebody who chooses rows in order to deceive.
//!
//! Invariants: each statement is put together by the server from names in its own catalog; none runs a function of a user's, but
//! for the output functions of types, which only superusers can make.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::objects_sql::SEQUENCE_USES;
use super::row::Composed;
use super::{ClusterError, ConnectOptions, Connection, Deadline, SnapshotId, SnapshotSession};

/// The second seed; the first is 0. Any other number would do, but it is part of the meaning of a stored hash.
macro_rules! hashes {
    ($text:literal) => {
        hashes!($text, "hash")
    };
    ($text:literal, $name:literal) => {
        concat!(
            "sum(hashtextextended(",
            $text,
            " COLLATE \"C\", 0)) AS ",
            $name,
            "_a, sum(hashtextextended(",
            $text,
            " COLLATE \"C\", 8117)) AS ",
            $name,
            "_b"
        )
    };
}

/// Large objects are hashed in pieces of so many bytes, whatever pages they lie in.
const PIECE: &str = "16777216";

/// What is to be read. The biggest tables come first, so that the last ones to be read are small.
#[derive(Debug)]
pub struct Task {
    pub what: Subject,
    statement: Composed,
    /// For the figures of progress.
    pub size_bytes: u64,
    /// Schema and name of the table that is read.
    pub table: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Sequence { key: u64 },
    SequenceUse { key: u64 },
    LargeObjects,
    Table { key: u64 },
}

/// What was read, or why it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Sequence {
        last_value: String,
        is_called: bool,
    },
    /// Whether the next value of the sequence is there already, or was passed.
    Behind {
        behind: bool,
        furthest: Option<String>,
    },
    Rows {
        rows: u64,
        hash: Option<RowsHash>,
        /// Of what was given to the table: without generated columns, where it has some.
        given: Option<RowsHash>,
    },
    Unread {
        reason: String,
        /// The role may not, or the server does not do that in its present state; otherwise something is wrong with the object.
        refused: bool,
    },
}

/// Of all rows of a table. Sums have as many digits as it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsHash {
    pub a: String,
    pub b: String,
    /// Bytes of the rows' texts.
    pub text_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Hash rows and large objects, too.
    pub hashes: bool,
}

/// Everything to be read. Sequences come first: a dump that begins later finds them no earlier than here.
pub fn tasks(session: &SnapshotSession, reading: Reading, deadline: Deadline) -> Result<Vec<Task>, ClusterError> {
    let conn = session.connection();
    let mut tasks = vec![];
    let sequences = "SELECT c.oid::bigint AS key, format('SELECT last_value, is_called FROM %I.%I', n.nspname, c.relname) AS statement \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    for row in conn.query_by(sequences, &[], deadline)? {
        let what = Subject::Sequence { key: row.parse("key")? };
        tasks.push(Task { what, statement: row.composed("statement")?, size_bytes: 0, table: None });
    }
    let uses = format!(
        "SELECT u.use_key AS key, format('SELECT m.furthest::text AS furthest, \
             CASE WHEN s.is_called THEN m.furthest %s s.last_value ELSE m.furthest %s= s.last_value END AS behind \
             FROM %I.%I AS s CROSS JOIN (SELECT %s(t.%I) AS furthest FROM %I.%I AS t) AS m', \
             m.op, m.op, u.sequence_schema, u.sequence, m.f, u.column_name, u.table_schema, u.table_name) AS statement, \
             u.table_schema, u.table_name \
         FROM ({SEQUENCE_USES}) AS u CROSS JOIN LATERAL (SELECT CASE WHEN u.increment > 0 THEN 'max' ELSE 'min' END AS f, \
             CASE WHEN u.increment > 0 THEN '>' ELSE '<' END AS op) AS m \
         WHERE u.whole_numbers AND NOT u.cycles"
    );
    for row in conn.query_by(&uses, &[], deadline)? {
        let what = Subject::SequenceUse { key: row.parse("key")? };
        let table = Some((bytes(&row, "table_schema")?, bytes(&row, "table_name")?));
        tasks.push(Task { what, statement: row.composed("statement")?, size_bytes: 0, table });
    }
    if reading.hashes {
        tasks.push(Task {
            what: Subject::LargeObjects,
            statement: conn.compose(LARGE_OBJECTS, &[PIECE.as_bytes()])?,
            size_bytes: 0,
            table: None,
        });
    }
    // Unlogged tables cannot be read during recovery; the answer says so.
    let (select, with_generated) = if reading.hashes { (HASH, HASH_GIVEN) } else { (COUNT, COUNT) };
    let tables = "SELECT c.oid::bigint AS key, c.relpages::bigint * current_setting('block_size')::bigint AS size_bytes, \
           CASE WHEN g.generated THEN format($2::text, n.nspname, c.relname, g.given) \
                ELSE format($1::text, n.nspname, c.relname) END AS statement, \
           n.nspname AS table_schema, c.relname AS table_name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL (SELECT bool_or(a.attgenerated <> '') AS generated, \
             string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS given \
             FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS g \
         WHERE (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated) AND c.relpersistence <> 't' \
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY c.relpages DESC, c.oid";
    for row in conn.query_by(tables, &[select, with_generated], deadline)? {
        let what = Subject::Table { key: row.parse("key")? };
        // As last counted by the server: asking for the size of a file would wait for whoever has locked the table.
        let size_bytes = row.parse("size_bytes")?;
        let table = Some((bytes(&row, "table_schema")?, bytes(&row, "table_name")?));
        tasks.push(Task { what, statement: row.composed("statement")?, size_bytes, table });
    }
    Ok(tasks)
}

fn bytes(row: &super::Row, column: &str) -> Result<Vec<u8>, ClusterError> {
    Ok(row.bytes(column)?.unwrap_or_default().to_vec())
}

const COUNT: &str = "SELECT count(*) AS rows FROM ONLY %I.%I";
/// OFFSET 0 keeps the row from being written as text three times. A column called like the alias does not matter: `t.*` is the row.
const HASH: &str = concat!(
    "SELECT count(*) AS rows, ",
    hashes!("r.line"),
    ", coalesce(sum(octet_length(r.line)), 0) AS text_bytes FROM (SELECT textin(record_out(t.*)) AS line FROM ONLY %I.%I AS t OFFSET 0) AS r"
);
/// With the names of the columns that are not generated.
const HASH_GIVEN: &str = concat!(
    "SELECT count(*) AS rows, ",
    hashes!("r.line"),
    ", coalesce(sum(octet_length(r.line)), 0) AS text_bytes, ",
    hashes!("r.given", "given"),
    ", coalesce(sum(octet_length(r.given)), 0) AS given_text_bytes FROM (SELECT textin(record_out(t.*)) AS line, \
     textin(record_out(ROW(%3$s))) AS given FROM ONLY %1$I.%2$I AS t OFFSET 0) AS r"
);
const LARGE_OBJECTS: &str = concat!(
    "SELECT format($f$SELECT (SELECT count(*) FROM pg_largeobject_metadata) AS rows, ",
    hashes!("p.line"),
    ", coalesce(sum(p.bytes), 0) AS text_bytes FROM (SELECT m.oid::text || ' ' || i || ' ' || encode(sha256(g.piece), 'hex') AS line, \
     octet_length(g.piece) AS bytes FROM (SELECT loid AS oid, max(pageno)::bigint * current_setting('block_size')::bigint / 4 AS last_byte \
     FROM pg_largeobject GROUP BY loid) AS m CROSS JOIN LATERAL generate_series(0, m.last_byte / %1$s) AS i \
     CROSS JOIN LATERAL (SELECT lo_get(m.oid, i * %1$s, %1$s) AS piece) AS g OFFSET 0) AS p$f$, $1::integer) AS statement"
);

/// A session that answers tasks, in a snapshot that another one holds.
#[derive(Debug)]
pub struct ContentReader {
    session: SnapshotSession,
    /// Since the transaction was begun.
    answered: Cell<u32>,
}

/// A transaction keeps a lock on each table it has read, and the server has room for so many of them only.
const TASKS_PER_TRANSACTION: u32 = 50;
/// `out_of_memory`, of which the table of locks is a case.
const OUT_OF_MEMORY: &str = "53200";

impl ContentReader {
    pub fn open(
        options: &ConnectOptions,
        database: &str,
        snapshot: &SnapshotId,
        within: Duration,
    ) -> Result<Self, ClusterError> {
        Ok(Self { session: SnapshotSession::join(options, database, snapshot, within)?, answered: Cell::new(0) })
    }

    pub fn session(&self) -> &SnapshotSession {
        &self.session
    }

    /// What the server refuses to tell of one object is part of the answer; a lost session or a missed deadline is an error.
    pub fn answer(&self, task: &Task, deadline: Deadline) -> Result<(Answer, Duration), ClusterError> {
        let began = Instant::now();
        if self.answered.replace(self.answered.get() + 1) >= TASKS_PER_TRANSACTION {
            self.session.begin_again()?;
            self.answered.set(1);
        }
        let mut outcome = self.session.run(&task.statement, deadline);
        if let Err(ClusterError::Query { sqlstate, .. }) = &outcome
            && sqlstate == OUT_OF_MEMORY
        {
            // Locks of earlier tasks may have taken the room.
            self.session.begin_again()?;
            self.answered.set(1);
            outcome = self.session.run(&task.statement, deadline);
        }
        let answer = match outcome {
            Ok(rows) => answer(task.what, rows)?,
            Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => {
                self.session.begin_again()?;
                let refused = match &error {
                    ClusterError::Query { sqlstate, .. } => {
                        // The server lacks means, or was told to stop: that says nothing of the object.
                        sqlstate.starts_with("53") || matches!(sqlstate.as_str(), "0A000" | "55000" | "55P03" | "57014")
                    }
                    _ => true,
                };
                Answer::Unread { reason: error.to_string(), refused }
            }
            Err(error) => return Err(error),
        };
        Ok((answer, began.elapsed()))
    }
}

/// Rows and hash of one table, as they are now.
pub(super) fn table_rows(
    conn: &Connection,
    schema: &[u8],
    name: &[u8],
    deadline: Deadline,
) -> Result<Answer, ClusterError> {
    conn.script(super::snapshot::PIN_READING)?;
    let compose = "SELECT format($3::text, $1::text, $2::text) AS statement";
    let statement = conn.compose(compose, &[schema, name, HASH.as_bytes()])?;
    let rows = conn.query_composed(&statement, &[], deadline)?;
    answer(Subject::Table { key: 0 }, rows)
}

fn answer(what: Subject, mut rows: Vec<super::Row>) -> Result<Answer, ClusterError> {
    let row = match (rows.pop(), rows.len()) {
        (Some(row), 0) => row,
        (_, n) => return Err(ClusterError::Unexpected { message: format!("{} rows instead of one", n) }),
    };
    Ok(match what {
        Subject::Sequence { .. } => {
            Answer::Sequence { last_value: row.text("last_value")?.to_owned(), is_called: row.flag("is_called")? }
        }
        Subject::SequenceUse { .. } => Answer::Behind {
            behind: row.opt_flag("behind")?.unwrap_or(false),
            furthest: row.opt_text("furthest")?.map(str::to_owned),
        },
        Subject::Table { .. } | Subject::LargeObjects => Answer::Rows {
            rows: row.parse("rows")?,
            hash: rows_hash(&row, ["hash_a", "hash_b", "text_bytes"])?,
            given: rows_hash(&row, ["given_a", "given_b", "given_text_bytes"])?,
        },
    })
}

/// None where it was not asked for.
fn rows_hash(row: &super::Row, [a, b, text_bytes]: [&str; 3]) -> Result<Option<RowsHash>, ClusterError> {
    if !row.columns().iter().any(|c| c == a) {
        return Ok(None);
    }
    let sum = |column| Ok::<_, ClusterError>(row.opt_text(column)?.unwrap_or("0").to_owned());
    Ok(Some(RowsHash { a: sum(a)?, b: sum(b)?, text_bytes: row.parse(text_bytes)? }))
}
