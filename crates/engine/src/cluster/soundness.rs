//! Heaps, indexes and visibility maps read by PostgreSQL's own examiners: amcheck and pg_visibility.
//!
//! Invariants: what cannot be examined is told with its reason, and nothing counts as sound that was not read. An extension is
//! installed only when that was allowed, and only inside a transaction that is rolled back. amcheck evaluates expressions of indexes
//! only where PostgreSQL does that with the rights of the table's owner, and no statement of ours is planned over tables of others. Functions are called with all of their arguments in their own
//! types: one that a user made beside them under the same name can not be meant. No event trigger fires for what is done here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgark_pg::Major;

use super::plannable::{UNSAFE, plannable};
use super::row::{Composed, Row};
use super::{ClusterError, ConnectOptions, Connection, Deadline};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// A session of the server remembers each relation that it has read, some 10 kB of it, and one with a borrowed extension keeps vacuum
/// from removing anything: after so many the next one goes on.
const RELATIONS_PER_SESSION: usize = 1000;

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
            // The second looks up tuples of the table (`heapallindexed`). The first also knows whether a unique index leads to two visible
            // rows of one key: amcheck 1.4, which comes with PostgreSQL 17.
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
                         FROM %I.verify_heapam(%L::regclass, false, true, ''none''::text, NULL::bigint, NULL::bigint) AS h', \
                        $1::text, c.oid) AS statement, $2::text AS unused \
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
                 CASE WHEN {PLANNABLE} THEN format('SELECT count(*) AS rows FROM ONLY %I.%I', n.nspname, c.relname) END AS statement, \
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
    /// Left alone by choice.
    Left {
        relation: String,
        reason: &'static str,
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
    let examination = Examination { target: options.to_database(database), examiners, interrupt, deadline };
    Examined::ALL.into_iter().try_for_each(|examined| examination.all_of(examined, &mut |f| each(examined, f)))
}

struct Examination {
    target: ConnectOptions,
    examiners: Examiners,
    interrupt: Arc<AtomicBool>,
    deadline: Deadline,
}

/// Where the functions of an extension are.
struct Place {
    extension: &'static str,
    schema: Vec<u8>,
    loan: Option<Loan>,
}

/// What of an extension is there for the time of a transaction only.
#[derive(Clone, Copy)]
enum Loan {
    Whole,
    /// Its version: an upgraded cluster keeps the one that it had, which lacks what came since.
    Update,
}

enum Ready {
    In(Place),
    No { reason: String },
}

impl Examination {
    fn open(&self) -> Result<Connection, ClusterError> {
        let conn = Connection::open(&self.target, CONNECT_TIMEOUT)?;
        conn.interrupt_by(self.interrupt.clone());
        let encoding = conn.query_one("SELECT current_setting('server_encoding') AS encoding", &[])?;
        if encoding.text("encoding")? == "SQL_ASCII" {
            conn.use_raw_bytes()?;
        }
        Ok(conn)
    }

    fn all_of(&self, examined: Examined, tell: &mut dyn FnMut(Finding)) -> Result<(), ClusterError> {
        let mut conn = self.open()?;
        if examined == Examined::Heaps && conn.major() == Major::V13 {
            tell(Finding::Unavailable { reason: "amcheck reads heaps from PostgreSQL 14 on".to_owned() });
            return Ok(());
        }
        let ready = examined.extension().map(|extension| prepare(&conn, extension, self.examiners)).transpose();
        let place = match ready {
            Ok(None) => None,
            Ok(Some(Ready::In(place))) => Some(place),
            Ok(Some(Ready::No { reason })) => {
                tell(Finding::Unavailable { reason });
                return Ok(());
            }
            Err(error) => return unavailable(error, tell),
        };
        let borrowed = place.as_ref().filter(|place| place.loan.is_some());
        let schema = place.as_ref().map(|place| place.schema.as_slice()).unwrap_or_default();
        let function = function_of(&conn, examined, schema)?;
        if let (None, Some(extension)) = (function, examined.extension()) {
            let reason = format!(
                "extension {extension} of this database is older than that: ALTER EXTENSION {extension} UPDATE"
            );
            tell(Finding::Unavailable { reason });
            return Ok(());
        }
        let relations = relations(&conn, examined, schema, function == Some(UNIQUE), self.deadline, tell)?;
        for (n, some) in relations.chunks(RELATIONS_PER_SESSION).enumerate() {
            if n > 0 {
                // The transaction of the one before ends first: the next makes a schema of the same name.
                if borrowed.is_some() {
                    conn.script("ROLLBACK")?;
                }
                conn = self.open()?;
                if let Some(Err(error)) = borrowed.map(|place| borrow(&conn, place)) {
                    return unavailable(error, tell);
                }
            }
            for relation in some {
                tell(examine_relation(&conn, examined, relation, borrowed.is_some(), self.deadline)?);
            }
        }
        if borrowed.is_some() {
            conn.script("ROLLBACK")?;
        }
        Ok(())
    }
}

/// The session ends, and with it what was begun.
fn unavailable(error: ClusterError, tell: &mut dyn FnMut(Finding)) -> Result<(), ClusterError> {
    match error {
        ClusterError::Denied { .. } | ClusterError::Query { .. } => {
            tell(Finding::Unavailable { reason: error.to_string() });
            Ok(())
        }
        error => Err(error),
    }
}

fn prepare(conn: &Connection, extension: &'static str, examiners: Examiners) -> Result<Ready, ClusterError> {
    let installed = "SELECT n.nspname AS schema, COALESCE(a.default_version <> e.extversion, false) AS is_other \
                     FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace \
                     LEFT JOIN pg_available_extensions AS a ON a.name = e.extname WHERE e.extname = $1";
    if let Some(row) = conn.query(installed, &[extension])?.first() {
        let mut place = Place { extension, schema: row.bytes("schema")?.unwrap_or_default().to_vec(), loan: None };
        if examiners == Examiners::Borrowed && row.flag("is_other")? {
            place.loan = Some(Loan::Update);
            match borrow(conn, &place) {
                Ok(()) => {}
                // What is there has to do.
                Err(ClusterError::Denied { .. } | ClusterError::Query { .. }) => {
                    conn.script("ROLLBACK")?;
                    place.loan = None;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(Ready::In(place));
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
    let place = Place { extension, schema, loan: Some(Loan::Whole) };
    borrow(conn, &place)?;
    Ok(Ready::In(place))
}

/// Event triggers of the database stay out of what is done in this transaction, which is rolled back.
fn silence_event_triggers(conn: &Connection) -> Result<(), ClusterError> {
    if conn.major() >= Major::V17 {
        return conn.script("SET LOCAL event_triggers = off");
    }
    conn.script("SET LOCAL session_replication_role = replica")?;
    // That is heard by most; some are there for replicas, or for all. What changes event triggers fires none.
    let deaf = "SELECT evtname FROM pg_event_trigger WHERE evtenabled IN ('A', 'R') ORDER BY evtname";
    for row in conn.query(deaf, &[])? {
        let name = row.bytes("evtname")?.unwrap_or_default();
        let disable =
            conn.compose("SELECT format('ALTER EVENT TRIGGER %I DISABLE', $1::text) AS statement", &[name])?;
        conn.query_composed(&disable, &[], conn.default_deadline())?;
    }
    Ok(())
}

/// In a transaction that stays open.
fn borrow(conn: &Connection, place: &Place) -> Result<(), ClusterError> {
    let (schema, extension) = (place.schema.as_slice(), place.extension.as_bytes());
    let statements = match place.loan {
        None => return Ok(()),
        Some(Loan::Whole) => vec![
            conn.compose("SELECT format('CREATE SCHEMA %I', $1::text) AS statement", &[schema])?,
            conn.compose(
                "SELECT format('CREATE EXTENSION %I SCHEMA %I', $1::text, $2::text) AS statement",
                &[extension, schema],
            )?,
        ],
        Some(Loan::Update) => {
            vec![conn.compose("SELECT format('ALTER EXTENSION %I UPDATE', $1::text) AS statement", &[extension])?]
        }
    };
    conn.script("BEGIN")?;
    silence_event_triggers(conn)?;
    for statement in &statements {
        conn.query_composed(statement, &[], conn.default_deadline())?;
    }
    Ok(())
}

/// What of the extension is called, as this version of it has it; None: it lacks it. What a user made is not of the extension.
fn function_of(conn: &Connection, examined: Examined, schema: &[u8]) -> Result<Option<&'static str>, ClusterError> {
    let there = "SELECT EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid \
                 WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' \
                   AND d.objid = to_regprocedure(format('%I.', $1::text) || $2::text) AND e.extname = $3::text) AS there";
    let extension = examined.extension().unwrap_or_default();
    for function in examined.functions() {
        let params = [Some(schema), Some(function.as_bytes()), Some(extension.as_bytes())];
        let rows = conn.query_bytes(there, &params, super::ResultFormat::Text, conn.default_deadline())?;
        if rows.first().map(|row| row.flag("there")).transpose()? == Some(true) {
            return Ok(Some(function));
        }
    }
    Ok(None)
}

/// What there is to be examined, the largest first, with the statement that does it.
fn relations(
    conn: &Connection,
    examined: Examined,
    schema: &[u8],
    unique: bool,
    deadline: Deadline,
    tell: &mut dyn FnMut(Finding),
) -> Result<Vec<Row>, ClusterError> {
    // Before, index expressions were evaluated with the rights of who examines (CVE-2022-1552).
    let careful =
        matches!(conn.version_num(), 130_007.. if conn.major() != Major::V14 || conn.version_num() >= 140_003);
    if examined == Examined::Indexes && !careful {
        let reason =
            "this minor version would run functions of users: indexes are not compared with their tables".to_owned();
        tell(Finding::Lenient { reason });
    }
    let told = match (careful, unique) {
        (true, true) => "true, true",
        (false, true) => "false, true",
        (true, false) => "true",
        (false, false) => "false",
    };
    let params = [Some(schema), Some(told.as_bytes())];
    let sql = examined.query().replace("{PLANNABLE}", &plannable(conn.major(), "c", "n"));
    conn.query_bytes(&sql, &params, super::ResultFormat::Text, deadline)
}

fn examine_relation(
    conn: &Connection,
    examined: Examined,
    row: &Row,
    borrowed: bool,
    deadline: Deadline,
) -> Result<Finding, ClusterError> {
    let name =
        |column| Ok::<_, ClusterError>(String::from_utf8_lossy(row.bytes(column)?.unwrap_or_default()).into_owned());
    let relation = format!("{}.{}", name("schema")?, name("name")?);
    if row.bytes("statement")?.is_none() {
        return Ok(Finding::Left { relation, reason: UNSAFE });
    }
    if borrowed {
        conn.script("SAVEPOINT pgark_relation")?;
    }
    let statement = row.composed("statement")?;
    let problem = match examined {
        Examined::Rows => count_twice(conn, &statement, deadline),
        _ => examine_one(conn, &statement, deadline),
    };
    if borrowed && !matches!(problem, Err(ClusterError::Lost { .. })) {
        // Also when all is well: the locks of thousands of relations would not find room.
        conn.script("ROLLBACK TO pgark_relation")?;
        conn.script("RELEASE pgark_relation")?;
    }
    match problem {
        Ok(None) => Ok(Finding::Sound),
        Ok(Some(problem)) => Ok(Finding::Damaged { relation, problem }),
        Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => Ok(finding_of(error, relation)),
        Err(error) => Err(error),
    }
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
