//! Heaps, indexes and visibility maps read by PostgreSQL's own examiners: amcheck and pg_visibility.
//!
//! Invariants: what cannot be examined is told with its reason, and nothing counts as sound that was not read. An extension is
//! installed only when that was allowed, and only inside a transaction that is rolled back. amcheck evaluates expressions of indexes
//! only where PostgreSQL does that with the rights of the table's owner.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgark_pg::Major;

use super::row::{Composed, Row};
use super::{ClusterError, ConnectOptions, Connection, Deadline};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Examiners {
    Off,
    /// Those that are installed in the database.
    Installed,
    /// Also those that the server has: installed in a transaction that is rolled back.
    Borrowed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Examined {
    Indexes,
    Heaps,
    VisibilityMaps,
    Rows,
}

impl Examined {
    pub const ALL: [Examined; 4] = [Self::Indexes, Self::Heaps, Self::VisibilityMaps, Self::Rows];

    /// None: PostgreSQL needs none for it.
    fn extension(self) -> Option<&'static str> {
        match self {
            Self::Indexes | Self::Heaps => Some("amcheck"),
            Self::VisibilityMaps => Some("pg_visibility"),
            Self::Rows => None,
        }
    }

    /// What is called of it, by version: the first that is there.
    fn functions(self) -> &'static [&'static str] {
        match self {
            // The second looks up tuples of the table (`heapallindexed`), the first also whether unique indexes are (since 17).
            Self::Indexes => &[UNIQUE, "bt_index_check(regclass,boolean)"],
            Self::Heaps => &["verify_heapam(regclass,boolean,boolean,text,bigint,bigint)"],
            Self::VisibilityMaps => &["pg_check_frozen(regclass)"],
            Self::Rows => &[],
        }
    }

    fn query(self) -> &'static str {
        match self {
            // The schema of the extension, and what else the function is told: whether every tuple of the heap is looked up, and equal ones
            // in unique indexes.
            Self::Indexes => {
                "SELECT n.nspname AS schema, c.relname AS name, \
                 format('SELECT 0 AS problems, NULL AS first FROM %I.bt_index_check(%L::regclass, %s) AS checked', \
                        $1::text, c.oid, $2::text) AS statement \
                 FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                 JOIN pg_am AS a ON a.oid = c.relam \
                 WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid AND i.indisready AND c.relpersistence <> 't' \
                   AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery()) ORDER BY c.relpages DESC, c.oid"
            }
            Self::Heaps => {
                "SELECT n.nspname AS schema, c.relname AS name, \
                 format('SELECT count(*) AS problems, min(format(''block %%s, tuple %%s: %%s'', h.blkno, h.offnum, h.msg)) AS first \
                         FROM %I.verify_heapam(%L::regclass, false, true) AS h', $1::text, c.oid) AS statement, $2::text AS unused \
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_am AS a ON a.oid = c.relam \
                 WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' \
                   AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery()) ORDER BY c.relpages DESC, c.oid"
            }
            Self::VisibilityMaps => {
                "SELECT n.nspname AS schema, c.relname AS name, \
                 format('SELECT count(*) AS problems, min(''tuple '' || v.t_ctid::text) AS first FROM \
                         (SELECT t_ctid FROM %1$I.pg_check_visible(%2$L::regclass) UNION ALL \
                          SELECT t_ctid FROM %1$I.pg_check_frozen(%2$L::regclass) UNION ALL \
                          SELECT format(''(%%s,0)'', p.blkno)::tid FROM %1$I.pg_visibility(%2$L::regclass) AS p, \
                          LATERAL %1$I.pg_visibility(%2$L::regclass, p.blkno) AS again \
                          WHERE p.all_visible AND NOT p.pd_all_visible \
                            AND again.all_visible AND NOT again.pd_all_visible) AS v', $1::text, c.oid) AS statement, \
                 $2::text AS unused \
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_am AS a ON a.oid = c.relam \
                 WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' \
                   AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery()) ORDER BY c.relpages DESC, c.oid"
            }
            // An index of which every entry leads to a row.
            Self::Rows => {
                "SELECT n.nspname AS schema, c.relname AS name, \
                 format('SELECT count(*) AS rows FROM ONLY %I.%I', n.nspname, c.relname) AS statement, \
                 $1::text AS unused, $2::text AS unused_too \
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_am AS a ON a.oid = c.relam \
                 WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' \
                   AND (c.relpersistence <> 'u' OR NOT pg_is_in_recovery()) \
                   AND EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS y ON y.oid = x.relam \
                               WHERE i.indrelid = c.oid AND y.amname = 'btree' AND i.indisvalid AND i.indisready AND i.indislive \
                                 AND i.indpred IS NULL) \
                 ORDER BY c.relpages DESC, c.oid"
            }
        }
    }
}

const UNIQUE: &str = "bt_index_check(regclass,boolean,boolean)";

/// Counts once what the table has, and once what an index leads to: entries of pages that the visibility map calls all-visible count
/// without the table being looked at, those of others are looked up.
const BY_TABLE: &str = "SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; \
                        SET LOCAL enable_indexonlyscan = off";
const BY_INDEX: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = on; SET LOCAL enable_indexonlyscan = on";

/// What was found of one relation, or of all that one examiner would have read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    Sound,
    Damaged {
        relation: String,
        problem: String,
    },
    Unread {
        relation: String,
        reason: String,
    },
    /// Nothing was examined.
    Unavailable {
        reason: String,
    },
    /// Worth knowing: less was looked at than there is to see.
    Lenient {
        reason: String,
    },
}

/// Reads everything that the examiners can read. What PostgreSQL complains about is a finding.
pub fn examine(
    options: &ConnectOptions,
    database: &str,
    examiners: Examiners,
    interrupt: Arc<AtomicBool>,
    deadline: Deadline,
    mut each: impl FnMut(Examined, Finding),
) -> Result<(), ClusterError> {
    if examiners == Examiners::Off {
        return Ok(());
    }
    let conn = Connection::open(&options.to_database(database), CONNECT_TIMEOUT)?;
    conn.interrupt_by(interrupt);
    if conn.query_one("SELECT current_setting('server_encoding') AS encoding", &[])?.text("encoding")? == "SQL_ASCII" {
        conn.use_raw_bytes()?;
    }
    for examined in Examined::ALL {
        if examined == Examined::Heaps && conn.major() == Major::V13 {
            each(examined, Finding::Unavailable { reason: "amcheck reads heaps from PostgreSQL 14 on".to_owned() });
            continue;
        }
        let mut tell = |finding| each(examined, finding);
        let ready = match examined.extension() {
            Some(extension) => prepare(&conn, extension, examiners),
            None => Ok(Ready::In { schema: vec![], borrowed: false }),
        };
        match ready {
            Ok(Ready::In { schema, borrowed }) => {
                let done = examine_all(&conn, examined, &schema, borrowed, deadline, &mut tell);
                if borrowed {
                    conn.script("ROLLBACK")?;
                }
                done?;
            }
            Ok(Ready::No { reason }) => tell(Finding::Unavailable { reason }),
            Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => {
                conn.script("ROLLBACK")?;
                tell(Finding::Unavailable { reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

enum Ready {
    In { schema: Vec<u8>, borrowed: bool },
    No { reason: String },
}

fn prepare(conn: &Connection, extension: &str, examiners: Examiners) -> Result<Ready, ClusterError> {
    let installed = "SELECT n.nspname AS schema, COALESCE(a.default_version <> e.extversion, false) AS is_other \
                     FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace \
                     LEFT JOIN pg_available_extensions AS a ON a.name = e.extname WHERE e.extname = $1";
    if let Some(row) = conn.query(installed, &[extension])?.first() {
        let schema = row.bytes("schema")?.unwrap_or_default().to_vec();
        let borrowed = examiners == Examiners::Borrowed && row.flag("is_other")? && updated(conn, extension)?;
        return Ok(Ready::In { schema, borrowed });
    }
    let no = |reason: String| Ok(Ready::No { reason });
    if examiners != Examiners::Borrowed {
        return no(format!("extension {extension} is not installed in this database"));
    }
    if conn.query("SELECT 1 FROM pg_available_extensions WHERE name = $1", &[extension])?.is_empty() {
        return no(format!("the server has no extension {extension}"));
    }
    let schema =
        conn.query_one("SELECT 'pgark_borrowed_' || replace(gen_random_uuid()::text, '-', '') AS name", &[])?;
    let schema = schema.bytes("name")?.unwrap_or_default().to_vec();
    let create_schema = conn.compose("SELECT format('CREATE SCHEMA %I', $1::text) AS statement", &[&schema])?;
    let create = conn.compose(
        "SELECT format('CREATE EXTENSION %I SCHEMA %I', $1::text, $2::text) AS statement",
        &[extension.as_bytes(), &schema],
    )?;
    borrow(conn, &[&create_schema, &create])?;
    Ok(Ready::In { schema, borrowed: true })
}

/// An upgraded cluster keeps the version that it had, which lacks what came since. Whether the server's own could take its place; if
/// not, what is there has to do.
fn updated(conn: &Connection, extension: &str) -> Result<bool, ClusterError> {
    let update =
        conn.compose("SELECT format('ALTER EXTENSION %I UPDATE', $1::text) AS statement", &[extension.as_bytes()])?;
    match borrow(conn, &[&update]) {
        Ok(()) => Ok(true),
        Err(ClusterError::Denied { .. } | ClusterError::Query { .. }) => {
            conn.script("ROLLBACK")?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// In a transaction that is to be rolled back.
fn borrow(conn: &Connection, statements: &[&Composed]) -> Result<(), ClusterError> {
    conn.script("BEGIN")?;
    // Event triggers of the database stay out of it.
    conn.script("SET LOCAL session_replication_role = replica")?;
    for statement in statements {
        conn.query_composed(statement, &[], conn.default_deadline())?;
    }
    Ok(())
}

/// What of the extension is called, as this version of it has it; None: it lacks it.
fn function_of(conn: &Connection, examined: Examined, schema: &[u8]) -> Result<Option<&'static str>, ClusterError> {
    let there = "SELECT to_regprocedure(format('%I.', $1::text) || $2::text) IS NOT NULL AS there";
    for function in examined.functions() {
        let params = [Some(schema), Some(function.as_bytes())];
        let rows = conn.query_bytes(there, &params, super::ResultFormat::Text, conn.default_deadline())?;
        if rows.first().map(|row| row.flag("there")).transpose()? == Some(true) {
            return Ok(Some(function));
        }
    }
    Ok(None)
}

fn examine_all(
    conn: &Connection,
    examined: Examined,
    schema: &[u8],
    borrowed: bool,
    deadline: Deadline,
    tell: &mut dyn FnMut(Finding),
) -> Result<(), ClusterError> {
    // Before, index expressions were evaluated with the rights of who examines (CVE-2022-1552).
    let careful =
        matches!(conn.version_num(), 130_007.. if conn.major() != Major::V14 || conn.version_num() >= 140_003);
    let function = function_of(conn, examined, schema)?;
    if let (None, Some(extension)) = (function, examined.extension()) {
        let reason =
            format!("extension {extension} of this database is older than that: ALTER EXTENSION {extension} UPDATE");
        tell(Finding::Unavailable { reason });
        return Ok(());
    }
    if examined == Examined::Indexes && !careful {
        let reason =
            "this minor version would run functions of users: indexes are not compared with their tables".to_owned();
        tell(Finding::Lenient { reason });
    }
    let told = match (careful, function == Some(UNIQUE)) {
        (true, true) => "true, true",
        (false, true) => "false, true",
        (true, false) => "true",
        (false, false) => "false",
    };
    let params = [Some(schema), Some(told.as_bytes())];
    let rows = conn.query_bytes(examined.query(), &params, super::ResultFormat::Text, deadline)?;
    for row in rows {
        let name = |column| {
            Ok::<_, ClusterError>(String::from_utf8_lossy(row.bytes(column)?.unwrap_or_default()).into_owned())
        };
        let relation = format!("{}.{}", name("schema")?, name("name")?);
        if borrowed {
            conn.script("SAVEPOINT pgark_relation")?;
        }
        let statement = row.composed("statement")?;
        let problem = match examined {
            Examined::Rows => count_twice(conn, &statement, deadline),
            _ => examine_one(conn, &statement, deadline),
        };
        if borrowed {
            // Also when all is well: the locks of thousands of relations would not find room.
            conn.script("ROLLBACK TO pgark_relation")?;
            conn.script("RELEASE pgark_relation")?;
        }
        let finding = match problem {
            Ok(None) => Finding::Sound,
            Ok(Some(problem)) => Finding::Damaged { relation, problem },
            Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => finding_of(error, relation),
            Err(error) => return Err(error),
        };
        tell(finding);
    }
    Ok(())
}

fn examine_one(conn: &Connection, statement: &Composed, deadline: Deadline) -> Result<Option<String>, ClusterError> {
    let row = only_row(conn, statement, deadline)?;
    let (problems, first): (u64, _) = (row.parse("problems")?, row.opt_text("first")?.unwrap_or("not told").to_owned());
    Ok((problems > 0).then(|| format!("{problems} problems, the first: {first}")))
}

/// Both counts of one moment.
fn count_twice(conn: &Connection, statement: &Composed, deadline: Deadline) -> Result<Option<String>, ClusterError> {
    let count = |how| {
        conn.script(how)?;
        only_row(conn, statement, deadline)?.parse::<u64>("rows")
    };
    conn.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let counted = count(BY_TABLE).and_then(|there| Ok((there, count(BY_INDEX)?)));
    if !matches!(counted, Err(ClusterError::Lost { .. })) {
        conn.script("ROLLBACK")?;
    }
    let (there, led_to) = counted?;
    Ok((there != led_to).then(|| format!("{there} rows are there, and an index leads to {led_to}")))
}

fn only_row(conn: &Connection, statement: &Composed, deadline: Deadline) -> Result<Row, ClusterError> {
    let rows = conn.query_composed(statement, &[], deadline)?;
    rows.into_iter().next().ok_or_else(|| ClusterError::Unexpected { message: "no row instead of one".to_owned() })
}

/// Insufficient resources of the server: locks, memory, disk.
const OUT_OF_ROOM: &str = "53";
/// Something is not there, not allowed or not of the right kind: a table was dropped meanwhile, a function in an index's expression finds
/// what it calls by a `search_path` that is not ours.
const NOT_FOUND: &str = "42";

fn finding_of(error: ClusterError, relation: String) -> Finding {
    match &error {
        // Also locked, not supported of this relation: nothing is known of it.
        ClusterError::Query { sqlstate, .. }
            if matches!(sqlstate.as_str(), "55P03" | "0A000" | "25006")
                || [NOT_FOUND, OUT_OF_ROOM].iter().any(|class| sqlstate.starts_with(class)) =>
        {
            Finding::Unread { relation, reason: error.to_string() }
        }
        ClusterError::Query { .. } => Finding::Damaged { relation, problem: error.to_string() },
        _ => Finding::Unread { relation, reason: error.to_string() },
    }
}
