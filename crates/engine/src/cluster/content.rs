//! Rows and values: counts and hashes of tables, positions of sequences, large objects.
//!
//! The hash of a table is that of a multiset. Each row is written as text by its type's output function (`record_out`, so that no
//! cast of a user's can stand in its way), hashed to 64 bits twice with different seeds, and the two are summed up exactly, as
//! numbers that do not wrap. Beside them stand the number of rows and the bytes of their texts. The order of rows, their place,
//! TOAST, fill factors and dropped columns do not matter. A row that is lost, twice there or changed leaves both sums as they were only by
//! a coincidence of 128 bits; it is a proof against accidents, not against somebody who chooses rows in order to deceive.
//!
//! Invariants: each statement is put together by the server from names in its own catalog; none runs a function of a user's, but
//! for the output functions of types, which only superusers can make. Tables over which a statement must not be planned (`plannable`)
//! are copied, and counted and hashed here.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgark_pg::Major;

use super::objects_sql::SEQUENCE_USES;
use super::plannable::{UNSAFE, plannable};
use super::row::Composed;
use super::rows_text::{RowSums, SECOND_SEED, hash_text};
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
    way: Way,
    /// For the figures of progress.
    pub size_bytes: u64,
    /// Schema and name of the table that is read.
    pub table: Option<(Vec<u8>, Vec<u8>)>,
}

/// How it is read.
#[derive(Debug)]
enum Way {
    Ask(Composed),
    Copy(Copied),
    /// The furthest value of a column in these tables, beside the position of its sequence.
    Furthest {
        copies: Vec<Composed>,
        position: Composed,
        by: Step,
    },
    /// It cannot be read without running functions of its owner.
    Left,
}

/// A table that is copied.
#[derive(Debug)]
struct Copied {
    statement: Composed,
    /// None: rows are only counted, by one narrow column.
    hashed: Option<HashedCopy>,
}

#[derive(Debug)]
struct HashedCopy {
    columns: usize,
    /// COPY leaves generated columns out.
    generated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Up,
    Down,
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
    /// Left alone by choice, for this reason.
    Left {
        reason: &'static str,
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
    let mut tasks = sequences(conn, deadline)?;
    tasks.extend(sequence_uses(conn, deadline)?);
    if reading.hashes {
        tasks.push(Task {
            what: Subject::LargeObjects,
            way: Way::Ask(conn.compose(LARGE_OBJECTS, &[PIECE.as_bytes()])?),
            size_bytes: 0,
            table: None,
        });
    }
    tasks.extend(tables(conn, reading, deadline)?);
    Ok(tasks)
}

/// Where a sequence stands, by its OID: nothing is planned over it. NULL where it was never used; only 18 tells more then.
pub(super) fn position(major: Major, oid: &str) -> String {
    match major {
        Major::V13 | Major::V14 | Major::V15 | Major::V16 | Major::V17 => {
            format!("format('SELECT pg_sequence_last_value(%s::oid) AS last_value, true AS is_called', {oid})")
        }
        _ => format!("format('SELECT last_value, is_called FROM pg_get_sequence_data(%s::oid)', {oid})"),
    }
}

fn sequences(conn: &Connection, deadline: Deadline) -> Result<Vec<Task>, ClusterError> {
    let sql = format!(
        "SELECT c.oid::bigint AS key, CASE WHEN {} THEN format('SELECT last_value, is_called FROM %I.%I', n.nspname, c.relname) \
             ELSE {} END AS statement \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'",
        plannable(conn.major(), "c", "n"),
        position(conn.major(), "c.oid")
    );
    let task = |row: &super::Row| {
        let what = Subject::Sequence { key: row.parse("key")? };
        Ok(Task { what, way: Way::Ask(row.composed("statement")?), size_bytes: 0, table: None })
    };
    conn.query_by(&sql, &[], deadline)?.iter().map(task).collect()
}

/// Of relations that are copied there is one row for each, the table itself and what inherits from it.
fn sequence_uses(conn: &Connection, deadline: Deadline) -> Result<Vec<Task>, ClusterError> {
    let asked = "format('SELECT m.furthest::text AS furthest, \
             CASE WHEN s.is_called THEN m.furthest %s s.last_value ELSE m.furthest %s= s.last_value END AS behind \
             FROM %I.%I AS s CROSS JOIN (SELECT %s(t.%I) AS furthest FROM %I.%I AS t) AS m', \
             m.op, m.op, u.sequence_schema, u.sequence, m.f, u.column_name, u.table_schema, u.table_name)";
    let (table, sequence) = (plannable(conn.major(), "c", "n"), plannable(conn.major(), "s", "sn"));
    let position = position(conn.major(), "u.sequence_oid");
    let sql = format!(
        "WITH RECURSIVE uses AS MATERIALIZED (SELECT u.*, \
             (SELECT {table} FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = u.table_oid) \
             AND (SELECT {sequence} FROM pg_class AS s JOIN pg_namespace AS sn ON sn.oid = s.relnamespace WHERE s.oid = u.sequence_oid) \
                 AS plannable \
             FROM ({SEQUENCE_USES}) AS u WHERE u.whole_numbers AND NOT u.cycles), \
         members AS (SELECT use_key, table_oid AS oid FROM uses WHERE NOT plannable \
             UNION SELECT m.use_key, i.inhrelid FROM members AS m JOIN pg_inherits AS i ON i.inhparent = m.oid) \
         SELECT u.use_key AS key, u.table_schema, u.table_name, u.increment > 0 AS up, {position} AS position, \
             CASE WHEN u.plannable THEN {asked} END AS statement, k.relkind::text AS relkind, \
             CASE WHEN k.relkind = 'r' THEN format('COPY %I.%I (%I) TO STDOUT', kn.nspname, k.relname, u.column_name) END AS copy \
         FROM uses AS u CROSS JOIN LATERAL (SELECT CASE WHEN u.increment > 0 THEN 'max' ELSE 'min' END AS f, \
             CASE WHEN u.increment > 0 THEN '>' ELSE '<' END AS op) AS m \
         LEFT JOIN members AS e ON e.use_key = u.use_key LEFT JOIN pg_class AS k ON k.oid = e.oid \
         LEFT JOIN pg_namespace AS kn ON kn.oid = k.relnamespace ORDER BY u.use_key, k.oid"
    );
    let mut tasks: Vec<Task> = vec![];
    for row in conn.query_by(&sql, &[], deadline)? {
        let what = Subject::SequenceUse { key: row.parse("key")? };
        if tasks.last().is_none_or(|task| task.what != what) {
            let way = match row.bytes("statement")? {
                Some(_) => Way::Ask(row.composed("statement")?),
                None => Way::Furthest {
                    copies: vec![],
                    position: row.composed("position")?,
                    by: if row.flag("up")? { Step::Up } else { Step::Down },
                },
            };
            let table = Some((bytes(&row, "table_schema")?, bytes(&row, "table_name")?));
            tasks.push(Task { what, way, size_bytes: 0, table });
        }
        let Some(task) = tasks.last_mut() else { continue };
        match (&mut task.way, row.opt_text("relkind")?) {
            (Way::Furthest { copies, .. }, Some("r")) => copies.push(row.composed("copy")?),
            // A partitioned table has no rows of its own; a foreign one has them elsewhere.
            (Way::Furthest { .. }, Some("p")) | (Way::Ask(_) | Way::Copy(_) | Way::Left, _) => {}
            (way @ Way::Furthest { .. }, _) => *way = Way::Left,
        }
    }
    Ok(tasks)
}

/// Whether hashes made here are those that the server would make.
fn hashes_alike(conn: &Connection) -> Result<bool, ClusterError> {
    let texts = ["pgark", "pgark, and more than twelve bytes"];
    let row = conn.query_one(
        "SELECT current_setting('server_encoding') = 'UTF8' AS is_utf8, hashtextextended($1 COLLATE \"C\", 0) AS a, \
                hashtextextended($2 COLLATE \"C\", 8117) AS b",
        &texts,
    )?;
    // In UTF-8, what counts as a space within a row's text is the same everywhere.
    Ok(row.flag("is_utf8")?
        && row.parse::<i64>("a")? == hash_text(texts[0].as_bytes(), 0)
        && row.parse::<i64>("b")? == hash_text(texts[1].as_bytes(), SECOND_SEED))
}

fn tables(conn: &Connection, reading: Reading, deadline: Deadline) -> Result<Vec<Task>, ClusterError> {
    // Unlogged tables cannot be read during recovery; the answer says so.
    let (select, with_generated) = if reading.hashes { (HASH, HASH_GIVEN) } else { (COUNT, COUNT) };
    let hash_copies = reading.hashes && hashes_alike(conn)?;
    // Before 18 a materialised view cannot be copied.
    let copied = match conn.major() {
        Major::V13 | Major::V14 | Major::V15 | Major::V16 | Major::V17 => "c.relkind = 'r'",
        _ => "c.relkind IN ('r', 'm')",
    };
    let sql = format!(
        "SELECT c.oid::bigint AS key, c.relpages::bigint * current_setting('block_size')::bigint AS size_bytes, \
           CASE WHEN NOT {} THEN NULL WHEN g.generated THEN format($2::text, n.nspname, c.relname, g.given) \
                ELSE format($1::text, n.nspname, c.relname) END AS statement, \
           CASE WHEN {copied} THEN format('COPY %I.%I %s TO STDOUT (FORMAT text, ENCODING ''SQL_ASCII'')', n.nspname, c.relname, \
                CASE WHEN $3::boolean THEN '(' || g.columns || ')' ELSE g.narrow END) END AS copy, \
           COALESCE(g.count, 0) AS columns, COALESCE(g.generated, false) AS generated, \
           n.nspname AS table_schema, c.relname AS table_name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         CROSS JOIN LATERAL (SELECT bool_or(a.attgenerated <> '') AS generated, \
             string_agg(format('t.%I', a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS given, \
             string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS columns, \
             count(*) FILTER (WHERE a.attgenerated = '') AS count, \
             (array_agg(format('(%I)', a.attname) ORDER BY a.attlen < 0, abs(a.attlen), a.attnum) \
              FILTER (WHERE a.attgenerated = ''))[1] AS narrow \
             FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS g \
         WHERE (c.relkind = 'r' OR c.relkind = 'm' AND c.relispopulated) AND c.relpersistence <> 't' \
           AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY c.relpages DESC, c.oid",
        plannable(conn.major(), "c", "n")
    );
    let mut tasks = vec![];
    for row in conn.query_by(&sql, &[select, with_generated, if hash_copies { "true" } else { "false" }], deadline)? {
        let what = Subject::Table { key: row.parse("key")? };
        // As last counted by the server: asking for the size of a file would wait for whoever has locked the table.
        let size_bytes = row.parse("size_bytes")?;
        let table = Some((bytes(&row, "table_schema")?, bytes(&row, "table_name")?));
        let way = match (row.bytes("statement")?, row.bytes("copy")?) {
            (Some(_), _) => Way::Ask(row.composed("statement")?),
            (None, Some(_)) => {
                let hashed = HashedCopy { columns: row.parse("columns")?, generated: row.flag("generated")? };
                Way::Copy(Copied { statement: row.composed("copy")?, hashed: hash_copies.then_some(hashed) })
            }
            (None, None) => Way::Left,
        };
        tasks.push(Task { what, way, size_bytes, table });
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
        let mut outcome = self.read(task, deadline);
        if let Err(ClusterError::Query { sqlstate, .. }) = &outcome
            && sqlstate == OUT_OF_MEMORY
        {
            // Locks of earlier tasks may have taken the room.
            self.session.begin_again()?;
            self.answered.set(1);
            outcome = self.read(task, deadline);
        }
        let answer = match outcome {
            Ok(answer) => answer,
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

    fn read(&self, task: &Task, deadline: Deadline) -> Result<Answer, ClusterError> {
        match &task.way {
            Way::Ask(statement) => answer(task.what, self.session.run(statement, deadline)?),
            Way::Copy(copied) => copied_rows(self.session.connection(), copied, deadline),
            Way::Furthest { copies, position, by } => self.furthest(copies, position, *by, deadline),
            Way::Left => Ok(Answer::Left { reason: UNSAFE }),
        }
    }

    fn furthest(
        &self,
        copies: &[Composed],
        position: &Composed,
        by: Step,
        deadline: Deadline,
    ) -> Result<Answer, ClusterError> {
        let conn = self.session.connection();
        let further = |a: i64, b: i64| if by == Step::Up { a.max(b) } else { a.min(b) };
        let mut furthest: Option<i64> = None;
        for copy in copies {
            conn.copy_composed(copy, deadline, &mut |line| {
                let text = std::str::from_utf8(line).unwrap_or_default().trim_end_matches('\n');
                if text != "\\N" {
                    let not_whole = || ClusterError::Unexpected { message: "a value is no whole number".to_owned() };
                    let value = text.parse().map_err(|_| not_whole())?;
                    furthest = Some(furthest.map_or(value, |known| further(known, value)));
                }
                Ok(())
            })?;
        }
        let Some(there) = furthest else { return Ok(Answer::Behind { behind: false, furthest: None }) };
        let rows = self.session.run(position, deadline)?;
        let stands = rows
            .first()
            .map(|row| Ok::<_, ClusterError>((row.opt_parse::<i64>("last_value")?, row.flag("is_called")?)));
        let Some((Some(last), called)) = stands.transpose()? else { return Ok(Answer::Left { reason: NEVER_USED }) };
        let passed = if by == Step::Up { there > last } else { there < last };
        Ok(Answer::Behind { behind: passed || !called && there == last, furthest: Some(there.to_string()) })
    }
}

const NEVER_USED: &str = "where a sequence stands that was never used is told by reading it, which could run functions of its owner with \
     the rights of this session";

fn copied_rows(conn: &Connection, copied: &Copied, deadline: Deadline) -> Result<Answer, ClusterError> {
    let mut sums = RowSums::default();
    conn.copy_composed(&copied.statement, deadline, &mut |line| match &copied.hashed {
        Some(hashed) => sums.hash(line, hashed.columns),
        None => {
            sums.count();
            Ok(())
        }
    })?;
    let (hash, given) = match &copied.hashed {
        None => (None, None),
        Some(hashed) if hashed.generated => (None, Some(sums.finish())),
        Some(_) => (Some(sums.finish()), None),
    };
    Ok(Answer::Rows { rows: sums.rows, hash, given })
}

/// Where a sequence stands, if that is told, and the furthest value of a column, for people to read; what is no whole number does not count.
pub(super) fn stands(
    conn: &Connection,
    position: &Composed,
    copy: &Composed,
    deadline: Deadline,
) -> Result<(Option<String>, Option<String>), ClusterError> {
    let mut furthest: Option<i64> = None;
    conn.copy_composed(copy, deadline, &mut |line| {
        let value = std::str::from_utf8(line).ok().and_then(|text| text.trim_end_matches('\n').parse::<i64>().ok());
        furthest = furthest.max(value);
        Ok(())
    })?;
    let rows = conn.query_composed(position, &[], deadline)?;
    let last_value = rows.first().map(|row| row.opt_text("last_value")).transpose()?.flatten().map(str::to_owned);
    Ok((last_value, furthest.map(|value| value.to_string())))
}

/// Rows and hash of one table, as they are now. No function of its owner is run.
pub(super) fn table_rows(
    conn: &Connection,
    schema: &[u8],
    name: &[u8],
    deadline: Deadline,
) -> Result<Answer, ClusterError> {
    conn.script(super::snapshot::PIN_READING)?;
    let all = tables(conn, Reading { hashes: true }, deadline)?;
    let wanted = all.iter().find(|task| task.table.as_ref().is_some_and(|(s, n)| s == schema && n == name));
    match wanted.map(|task| &task.way) {
        Some(Way::Ask(statement)) => answer(Subject::Table { key: 0 }, conn.query_composed(statement, &[], deadline)?),
        Some(Way::Copy(copied)) => copied_rows(conn, copied, deadline),
        _ => Ok(Answer::Left { reason: UNSAFE }),
    }
}

fn answer(what: Subject, mut rows: Vec<super::Row>) -> Result<Answer, ClusterError> {
    let row = match (rows.pop(), rows.len()) {
        (Some(row), 0) => row,
        (_, n) => return Err(ClusterError::Unexpected { message: format!("{} rows instead of one", n) }),
    };
    Ok(match what {
        Subject::Sequence { .. } => match row.opt_text("last_value")? {
            Some(last_value) => {
                Answer::Sequence { last_value: last_value.to_owned(), is_called: row.flag("is_called")? }
            }
            None => Answer::Left { reason: NEVER_USED },
        },
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
