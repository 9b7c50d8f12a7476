//! One table on its way from a scratch cluster to the live one: found, taken out of its surroundings, compared afterwards.
//!
//! Invariants: statements are put together by the server from names that travel as parameters; in the scratch cluster neither
//! triggers nor event triggers fire; nothing that is loaded into the live database makes it run functions of users.

use std::time::Duration;

use super::content::{position, stands, table_rows};
use super::plannable::{UNSAFE, plannable};
use super::{Answer, ClusterError, ConnectOptions, Connection, Deadline, ResultFormat};

/// Each statement sees what was committed before it.
const HOLD: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '10s'";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// PostgreSQL's NAMEDATALEN - 1.
pub const NAME_BYTES_MAX: usize = 63;

/// Schema and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A session for names and tables: names are text here, so the database's encoding must be one that converts to UTF-8.
pub struct TableSession {
    conn: Connection,
}

/// What a table is, and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub oid: u32,
    pub owner: String,
    /// Its rows are copied into a plain table, because they lie in several, or in no table.
    pub must_copy: bool,
    pub unlogged: bool,
    pub size_bytes: u64,
}

/// Something of the original that the rescued table does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub what: &'static str,
    pub name: String,
    /// As PostgreSQL prints it.
    pub definition: String,
}

/// A foreign key of the original.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub definition: String,
    pub refers_to: TableName,
    /// JSON arrays of the columns.
    columns: String,
    refers_to_columns: String,
}

impl ForeignKey {
    /// One that did not come with its table.
    pub fn of_dump(key: pgark_pg::foreign_key::ForeignKey) -> Result<Self, ClusterError> {
        Ok(ForeignKey {
            columns: json(&key.columns)?,
            refers_to_columns: json(&key.refers_to_columns)?,
            name: key.name,
            definition: key.definition,
            refers_to: TableName { schema: key.refers_to_schema, name: key.refers_to_table },
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    /// So many rows have no counterpart in the live database.
    Checked {
        orphans: u64,
    },
    NotChecked {
        reason: String,
    },
}

impl TableSession {
    pub fn open(options: &ConnectOptions, database: &str) -> Result<Self, ClusterError> {
        let conn = Connection::open(&options.to_database(database), CONNECT_TIMEOUT)?;
        Ok(TableSession { conn })
    }

    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// A name as it is written in SQL: folded, unless it is quoted.
    pub fn parse_name(&self, text: &str) -> Result<Vec<String>, ClusterError> {
        let row = self.conn.query_one("SELECT array_to_json(parse_ident($1))::text AS parts", &[text])?;
        serde_json::from_str(row.text("parts")?)
            .map_err(|e| ClusterError::Unexpected { message: format!("parts of a name: {e}") })
    }

    /// The role that `initdb` made, which every cluster has.
    pub fn bootstrap_superuser(&self) -> Result<String, ClusterError> {
        Ok(self.conn.query_one("SELECT pg_get_userbyid(10)::text AS role", &[])?.text("role")?.to_owned())
    }

    pub fn role_exists(&self, role: &str) -> Result<bool, ClusterError> {
        Ok(!self.conn.query("SELECT 1 FROM pg_roles WHERE rolname = $1", &[role])?.is_empty())
    }

    pub fn schema_exists(&self, schema: &str) -> Result<bool, ClusterError> {
        Ok(!self.conn.query("SELECT 1 FROM pg_namespace WHERE nspname = $1", &[schema])?.is_empty())
    }

    /// Whether a relation or a type has this name already: each table makes a type of its name.
    pub fn name_is_taken(&self, table: &TableName) -> Result<bool, ClusterError> {
        let sql = "SELECT 1 FROM pg_namespace AS n WHERE n.nspname = $1 AND (EXISTS \
             (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = $2) OR EXISTS \
             (SELECT FROM pg_type AS t WHERE t.typnamespace = n.oid AND t.typname = $2))";
        Ok(!self.conn.query(sql, &[&table.schema, &table.name])?.is_empty())
    }

    pub fn find(&self, table: &TableName) -> Result<Option<Found>, ClusterError> {
        let sql = "SELECT c.oid, pg_get_userbyid(c.relowner)::text AS owner, c.relpersistence = 'u' AS unlogged, \
                 c.relkind <> 'r' OR EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid OR i.inhparent = c.oid) \
                     OR c.reloftype <> 0 AS must_copy, \
                 (SELECT sum(pg_table_size(x.relid)) FROM (SELECT c.oid AS relid UNION SELECT p.relid FROM pg_partition_tree(c.oid) AS p) AS x) \
                     AS size_bytes \
             FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'm')";
        let rows = self.conn.query(sql, &[&table.schema, &table.name])?;
        let found = rows.first().map(|row| {
            Ok::<_, ClusterError>(Found {
                oid: row.parse("oid")?,
                owner: row.text("owner")?.to_owned(),
                must_copy: row.flag("must_copy")?,
                unlogged: row.flag("unlogged")?,
                size_bytes: row.opt_parse("size_bytes")?.unwrap_or(0),
            })
        });
        found.transpose()
    }

    /// What this name has that is no table, in words.
    pub fn other_kind(&self, table: &TableName) -> Result<Option<&'static str>, ClusterError> {
        let sql = "SELECT c.relkind::text AS relkind FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND c.relname = $2";
        let rows = self.conn.query(sql, &[&table.schema, &table.name])?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(match row.text("relkind")? {
            "v" => Some("a view"),
            "S" => Some("a sequence"),
            "f" => Some("a foreign table"),
            "i" | "I" => Some("an index"),
            "c" => Some("a composite type"),
            _ => None,
        })
    }

    /// Tables of names that differ from this one in no more than capital letters, as SQL writes them.
    pub fn alike(&self, table: &TableName) -> Result<Vec<String>, ClusterError> {
        let sql = "SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                   WHERE c.relkind IN ('r', 'p', 'm') AND lower(n.nspname::text) = lower($1) AND lower(c.relname::text) = lower($2) ORDER BY 1";
        let rows = self.conn.query(sql, &[&table.schema, &table.name])?;
        rows.iter().map(|row| Ok(row.text("name")?.to_owned())).collect()
    }

    /// Types of columns, as SQL writes them.
    pub fn column_types(&self, oid: u32) -> Result<Vec<String>, ClusterError> {
        let sql = "SELECT DISTINCT format_type(atttypid, NULL) AS name FROM pg_attribute \
                   WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY 1";
        let rows = self.conn.query(sql, &[&oid.to_string()])?;
        rows.iter().map(|row| Ok(row.text("name")?.to_owned())).collect()
    }

    /// Those of the types that this database does not have.
    pub fn unknown_types(&self, types: &[String]) -> Result<Vec<String>, ClusterError> {
        let list = json(types)?;
        let sql = "SELECT t.name FROM json_array_elements_text($1::json) AS t(name) WHERE to_regtype(t.name) IS NULL";
        self.conn.query(sql, &[&list])?.iter().map(|row| Ok(row.text("name")?.to_owned())).collect()
    }

    pub fn foreign_keys(&self, oid: u32) -> Result<Vec<ForeignKey>, ClusterError> {
        let columns = |keys: &str, table: &str| {
            format!(
                "(SELECT json_agg(a.attname ORDER BY u.place) FROM unnest({keys}) WITH ORDINALITY AS u(attnum, place) \
                 JOIN pg_attribute AS a ON a.attrelid = {table} AND a.attnum = u.attnum)::text"
            )
        };
        let sql = format!(
            "SELECT k.conname::text AS name, pg_get_constraintdef(k.oid) AS definition, n.nspname::text AS schema, \
                    c.relname::text AS table_name, {} AS columns, {} AS refers_to_columns \
             FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.confrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE k.conrelid = $1::oid AND k.contype = 'f' AND k.confrelid <> 0 ORDER BY 1",
            columns("k.conkey", "k.conrelid"),
            columns("k.confkey", "k.confrelid")
        );
        let rows = self.conn.query(&sql, &[&oid.to_string()])?;
        let keys = rows.iter().map(|row| {
            Ok(ForeignKey {
                name: row.text("name")?.to_owned(),
                definition: row.text("definition")?.to_owned(),
                refers_to: TableName {
                    schema: row.text("schema")?.to_owned(),
                    name: row.text("table_name")?.to_owned(),
                },
                columns: row.text("columns")?.to_owned(),
                refers_to_columns: row.text("refers_to_columns")?.to_owned(),
            })
        });
        keys.collect()
    }

    /// Rows of `table` without a counterpart where the key refers to.
    pub fn orphans(&self, table: &TableName, key: &ForeignKey, deadline: Deadline) -> Result<KeyState, ClusterError> {
        self.conn.script(HOLD)?;
        let counted = self.hold_still(&[table, &key.refers_to]).and_then(|()| self.count_orphans(table, key, deadline));
        if !matches!(counted, Err(ClusterError::Lost { .. })) {
            self.conn.script("ROLLBACK")?;
        }
        match counted {
            // The other table is gone, its columns are others, it is locked, or not to be read.
            Err(error @ (ClusterError::Query { .. } | ClusterError::Denied { .. } | ClusterError::Invalid { .. })) => {
                Ok(KeyState::NotChecked { reason: error.to_string() })
            }
            counted => Ok(KeyState::Checked { orphans: counted? }),
        }
    }

    /// Until the transaction ends, these names mean the same tables, and nobody adds an index or statistics to them. Reading and writing
    /// go on. An error when there is already something that would run functions of others.
    fn hold_still(&self, tables: &[&TableName]) -> Result<(), ClusterError> {
        let schema = "SELECT 1 AS one FROM pg_namespace WHERE nspname = $1 FOR SHARE";
        let lock =
            "SELECT format('LOCK TABLE ONLY %I.%I IN SHARE UPDATE EXCLUSIVE MODE', $1::text, $2::text) AS statement";
        let tree = "SELECT 1 AS one FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND (c.relkind <> 'r' OR EXISTS \
                 (SELECT FROM pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent)))";
        for table in tables {
            self.conn.query(schema, &[&table.schema])?;
            self.run(lock, &[&table.schema, &table.name], self.conn.default_deadline())?;
        }
        for table in tables {
            if !self.conn.query(tree, &[&table.schema, &table.name])?.is_empty() && !self.may_plan(table)? {
                return Err(ClusterError::Invalid { message: format!("{table} is not a table by itself: {UNSAFE}") });
            }
            self.refuse_traps(table)?;
        }
        Ok(())
    }

    fn count_orphans(&self, table: &TableName, key: &ForeignKey, deadline: Deadline) -> Result<u64, ClusterError> {
        let compose = "SELECT format('SELECT count(*) AS orphans FROM %I.%I AS t WHERE %s AND NOT EXISTS (SELECT FROM %I.%I AS r WHERE %s)', \
                 $1::text, $2::text, string_agg(format('t.%I IS NOT NULL', f.name), ' AND '), $3::text, $4::text, \
                 string_agg(format('r.%I = t.%I', g.name, f.name), ' AND ')) AS statement \
             FROM json_array_elements_text($5::json) WITH ORDINALITY AS f(name, place) \
             JOIN json_array_elements_text($6::json) WITH ORDINALITY AS g(name, place) USING (place)";
        let params = [
            &table.schema,
            &table.name,
            &key.refers_to.schema,
            &key.refers_to.name,
            &key.columns,
            &key.refers_to_columns,
        ];
        let params: Vec<&[u8]> = params.iter().map(|p| p.as_bytes()).collect();
        let statement = self.conn.compose(compose, &params)?;
        let rows = self.conn.query_composed(&statement, &[], deadline)?;
        let none = || ClusterError::Unexpected { message: "no row instead of one".to_owned() };
        rows.first().ok_or_else(none)?.parse("orphans")
    }

    /// Whether a statement may be planned over it.
    fn may_plan(&self, table: &TableName) -> Result<bool, ClusterError> {
        let sql = format!(
            "SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND {}",
            plannable(self.conn.major(), "c", "n")
        );
        Ok(!self.conn.query(&sql, &[&table.schema, &table.name])?.is_empty())
    }

    /// How many rows, and a hash of them.
    pub fn rows(&self, table: &TableName, deadline: Deadline) -> Result<Answer, ClusterError> {
        table_rows(&self.conn, table.schema.as_bytes(), table.name.as_bytes(), deadline)
    }

    /// For a scratch cluster: nothing fires from here on.
    pub fn still(&self) -> Result<(), ClusterError> {
        self.conn.script("SET session_replication_role = replica")
    }

    /// A plain table of the same columns with the rows of a partitioned one, of one with children, or of a materialised view.
    pub fn copy_into_plain(
        &self,
        from: &TableName,
        to: &str,
        owner: &str,
        deadline: Deadline,
    ) -> Result<(), ClusterError> {
        self.refuse_traps(from)?;
        let steps = [
            // Without its indexes, defaults and constraints: they would run functions of users, or refer to what is not there.
            "SELECT format('CREATE TABLE %1$I.%3$I (LIKE %1$I.%2$I INCLUDING STORAGE)', $1::text, $2::text, $3::text) AS statement",
            "SELECT format('INSERT INTO %1$I.%3$I SELECT * FROM %1$I.%2$I', $1::text, $2::text, $3::text) AS statement",
        ];
        for step in steps {
            self.run(step, &[&from.schema, &from.name, to], deadline)?;
        }
        let owned = "SELECT format('ALTER TABLE %I.%I OWNER TO %I', $1::text, $2::text, $3::text) AS statement";
        self.run(owned, &[&from.schema, to, owner], deadline)
    }

    /// What is copied by a statement is planned, as a superuser, and the planner evaluates what indexes, statistics and partition keys call.
    /// In a scratch cluster nobody adds any meanwhile.
    fn refuse_traps(&self, table: &TableName) -> Result<(), ClusterError> {
        let sql = "WITH RECURSIVE tree AS (SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = $2 \
                 UNION SELECT i.inhrelid FROM tree AS t JOIN pg_inherits AS i ON i.inhparent = t.oid), \
             parts AS (SELECT 'pg_class'::regclass::oid AS classid, oid AS objid FROM tree \
                 UNION SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i JOIN tree AS t ON t.oid = i.indrelid \
                 UNION SELECT 'pg_statistic_ext'::regclass, s.oid FROM pg_statistic_ext AS s JOIN tree AS t ON t.oid = s.stxrelid) \
             SELECT pg_describe_object(d.classid, d.objid, 0) AS what FROM pg_depend AS d JOIN parts AS p USING (classid, objid) \
             LEFT JOIN pg_operator AS o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid \
             JOIN pg_proc AS f ON f.oid = CASE WHEN d.refclassid = 'pg_proc'::regclass THEN d.refobjid ELSE o.oprcode::oid END \
             JOIN pg_roles AS w ON w.oid = f.proowner \
             WHERE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND NOT w.rolsuper \
             ORDER BY 1 LIMIT 1";
        match self.conn.query(sql, &[&table.schema, &table.name])?.first() {
            None => Ok(()),
            Some(row) => Err(ClusterError::Invalid {
                message: format!(
                    "reading {table} would run a function of its owner with the rights of this session: {} calls one",
                    row.text("what")?
                ),
            }),
        }
    }

    /// Takes away what must not come along, and tells of it.
    pub fn strip(&self, table: &TableName, oid: u32, deadline: Deadline) -> Result<Vec<LeftOut>, ClusterError> {
        let mut left_out = vec![];
        for (what, sql) in STRIP {
            let rows = self.hanging_on(sql, oid, table)?;
            for row in rows {
                let (name, definition) = (row.text("name")?.to_owned(), row.text("definition")?.to_owned());
                self.conn.query_composed(&row.composed("statement")?, &[], deadline)?;
                left_out.push(LeftOut { what, name, definition });
            }
        }
        self.run(
            "SELECT format('ALTER TABLE %I.%I DISABLE ROW LEVEL SECURITY', $1::text, $2::text) AS statement",
            &[&table.schema, &table.name],
            deadline,
        )?;
        Ok(left_out)
    }

    /// What is told of a table that was copied into a plain one.
    pub fn surroundings(&self, oid: u32, table: &TableName) -> Result<Vec<LeftOut>, ClusterError> {
        let mut left_out = vec![];
        for (what, sql) in STRIP.iter().chain(&COPIED_WITHOUT) {
            for row in self.hanging_on(sql, oid, table)? {
                let (name, definition) = (row.text("name")?.to_owned(), row.text("definition")?.to_owned());
                left_out.push(LeftOut { what, name, definition });
            }
        }
        Ok(left_out)
    }

    fn hanging_on(&self, sql: &str, oid: u32, table: &TableName) -> Result<Vec<super::Row>, ClusterError> {
        // So that each of them takes the same parameters.
        let sql = format!("WITH given AS (SELECT $1::oid, $2::text, $3::text) {sql}");
        self.conn.query(&sql, &[&oid.to_string(), &table.schema, &table.name])
    }

    /// Indexes and sequences that come along with the table and need names of their own: kind, schema, name.
    pub fn companions(&self, oid: u32) -> Result<Vec<(Companion, String, String)>, ClusterError> {
        let sql = "SELECT x.kind, n.nspname::text AS schema, c.relname::text AS name FROM \
                 (SELECT 'index' AS kind, i.indexrelid AS relid FROM pg_index AS i WHERE i.indrelid = $1::oid UNION ALL \
                  SELECT 'sequence', d.objid FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass \
                    AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.deptype IN ('a', 'i')) AS x \
             JOIN pg_class AS c ON c.oid = x.relid AND (x.kind = 'index' OR c.relkind = 'S') \
             JOIN pg_namespace AS n ON n.oid = c.relnamespace ORDER BY 1, 2, 3";
        let rows = self.conn.query(sql, &[&oid.to_string()])?;
        let companion = |row: &super::Row| {
            let kind = if row.text("kind")? == "index" { Companion::Index } else { Companion::Sequence };
            Ok((kind, row.text("schema")?.to_owned(), row.text("name")?.to_owned()))
        };
        rows.iter().map(companion).collect()
    }

    pub fn rename(
        &self,
        kind: Companion,
        schema: &str,
        from: &str,
        to: &str,
        deadline: Deadline,
    ) -> Result<(), ClusterError> {
        let sql = match kind {
            Companion::Table => {
                "SELECT format('ALTER TABLE %I.%I RENAME TO %I', $1::text, $2::text, $3::text) AS statement"
            }
            Companion::Index => {
                "SELECT format('ALTER INDEX %I.%I RENAME TO %I', $1::text, $2::text, $3::text) AS statement"
            }
            Companion::Sequence => {
                "SELECT format('ALTER SEQUENCE %I.%I RENAME TO %I', $1::text, $2::text, $3::text) AS statement"
            }
        };
        self.run(sql, &[schema, from, to], deadline)
    }

    /// Drops a table that was loaded and is not what it should be.
    pub fn drop_table(&self, table: &TableName, deadline: Deadline) -> Result<(), ClusterError> {
        self.run(
            "SELECT format('DROP TABLE %I.%I', $1::text, $2::text) AS statement",
            &[&table.schema, &table.name],
            deadline,
        )
    }

    /// Where the sequences of a table stand: (column, sequence, last value, furthest value in the column).
    pub fn sequences(&self, table: &TableName) -> Result<Vec<SequenceState>, ClusterError> {
        let sql = "SELECT a.attname::text AS column_name, s.relname::text AS sequence, \
                 CASE WHEN {PLANNABLE} THEN \
                 format('SELECT (SELECT max(t.%I)::text FROM %I.%I AS t) AS furthest, last_value::text AS last_value FROM %I.%I', \
                        a.attname, n.nspname, c.relname, m.nspname, s.relname) END AS statement, {POSITION} AS position, \
                 format('COPY %I.%I (%I) TO STDOUT', n.nspname, c.relname, a.attname) AS copy \
             FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace AS m ON m.oid = s.relnamespace \
             JOIN pg_class AS c ON c.oid = d.refobjid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') \
               AND n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum";
        let both =
            [("c", "n"), ("s", "m")].map(|(class, schema)| plannable(self.conn.major(), class, schema)).join(" AND ");
        let sql = sql.replace("{PLANNABLE}", &both).replace("{POSITION}", &position(self.conn.major(), "s.oid"));
        let mut states = vec![];
        for row in self.conn.query(&sql, &[&table.schema, &table.name])? {
            if row.bytes("statement")?.is_none() {
                let (position, copy) = (row.composed("position")?, row.composed("copy")?);
                let (last_value, furthest) = match stands(&self.conn, &position, &copy, self.conn.default_deadline()) {
                    // A partitioned table cannot be copied as one.
                    Err(ClusterError::Query { .. } | ClusterError::Denied { .. }) => {
                        (Some("not read".to_owned()), None)
                    }
                    told => told?,
                };
                states.push(SequenceState {
                    column: row.text("column_name")?.to_owned(),
                    sequence: row.text("sequence")?.to_owned(),
                    last_value: last_value.unwrap_or_else(|| "where it began".to_owned()),
                    furthest,
                });
                continue;
            }
            let rows = self.conn.query_composed(&row.composed("statement")?, &[], self.conn.default_deadline())?;
            let Some(state) = rows.first() else { continue };
            states.push(SequenceState {
                column: row.text("column_name")?.to_owned(),
                sequence: row.text("sequence")?.to_owned(),
                last_value: state.text("last_value")?.to_owned(),
                furthest: state.opt_text("furthest")?.map(str::to_owned),
            });
        }
        Ok(states)
    }

    fn run(&self, compose: &'static str, params: &[&str], deadline: Deadline) -> Result<(), ClusterError> {
        let params: Vec<&[u8]> = params.iter().map(|p| p.as_bytes()).collect();
        let statement = self.conn.compose(compose, &params)?;
        self.conn.query_composed(&statement, &[], deadline).map(drop)
    }

    /// The number of seconds since the server was started, to see that it answers.
    pub fn answers(&self) -> Result<(), ClusterError> {
        self.conn.query_bytes("SELECT 1 AS one", &[], ResultFormat::Text, self.conn.default_deadline()).map(drop)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Companion {
    Table,
    Index,
    Sequence,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceState {
    pub column: String,
    pub sequence: String,
    pub last_value: String,
    pub furthest: Option<String>,
}

fn json(list: &[String]) -> Result<String, ClusterError> {
    serde_json::to_string(list).map_err(|e| ClusterError::Invalid { message: format!("a list of names: {e}") })
}

/// Each: what it is called, and a question that gives name, definition and the statement that takes it away. The parameters are
/// the table's OID, schema and name.
const STRIP: [(&str, &str); 9] = [
    (
        "foreign key",
        "SELECT conname::text AS name, pg_get_constraintdef(oid) AS definition, \
         format('ALTER TABLE %I.%I DROP CONSTRAINT %I', $2::text, $3::text, conname) AS statement \
         FROM pg_constraint WHERE conrelid = $1::oid AND contype = 'f' ORDER BY 1",
    ),
    (
        "trigger",
        "SELECT tgname::text AS name, pg_get_triggerdef(oid) AS definition, \
         format('DROP TRIGGER %I ON %I.%I', tgname, $2::text, $3::text) AS statement \
         FROM pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal ORDER BY 1",
    ),
    (
        "rule",
        "SELECT rulename::text AS name, pg_get_ruledef(oid) AS definition, \
         format('DROP RULE %I ON %I.%I', rulename, $2::text, $3::text) AS statement \
         FROM pg_rewrite WHERE ev_class = $1::oid AND rulename <> '_RETURN' ORDER BY 1",
    ),
    (
        "policy of row security",
        "SELECT polname::text AS name, coalesce(pg_get_expr(polqual, polrelid), '') AS definition, \
         format('DROP POLICY %I ON %I.%I', polname, $2::text, $3::text) AS statement \
         FROM pg_policy WHERE polrelid = $1::oid ORDER BY 1",
    ),
    (
        "statistics object",
        "SELECT s.stxname::text AS name, pg_get_statisticsobjdef(s.oid) AS definition, \
         format('DROP STATISTICS %I.%I', n.nspname, s.stxname) AS statement \
         FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace WHERE s.stxrelid = $1::oid ORDER BY 1",
    ),
    (
        "check constraint that calls a function",
        "SELECT k.conname::text AS name, pg_get_constraintdef(k.oid) AS definition, \
         format('ALTER TABLE %I.%I DROP CONSTRAINT %I', $2::text, $3::text, k.conname) AS statement \
         FROM pg_constraint AS k WHERE k.conrelid = $1::oid AND k.contype = 'c' AND EXISTS (SELECT FROM pg_depend AS d \
             WHERE d.classid = 'pg_constraint'::regclass AND d.objid = k.oid \
               AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND d.refobjid >= 16384) ORDER BY 1",
    ),
    (
        "generation of a column by a function",
        "SELECT a.attname::text AS name, pg_get_expr(f.adbin, f.adrelid) AS definition, \
         format('ALTER TABLE %I.%I ALTER COLUMN %I DROP EXPRESSION', $2::text, $3::text, a.attname) AS statement \
         FROM pg_attrdef AS f JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         WHERE f.adrelid = $1::oid AND a.attgenerated = 's' AND EXISTS (SELECT FROM pg_depend AS d \
             WHERE (d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid \
                    OR d.classid = 'pg_class'::regclass AND d.objid = f.adrelid AND d.objsubid = f.adnum) \
               AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND d.refobjid >= 16384) ORDER BY 1",
    ),
    (
        "default value",
        "SELECT a.attname::text AS name, pg_get_expr(f.adbin, f.adrelid) AS definition, \
         format('ALTER TABLE %I.%I ALTER COLUMN %I DROP DEFAULT', $2::text, $3::text, a.attname) AS statement \
         FROM pg_attrdef AS f JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         WHERE f.adrelid = $1::oid AND a.attgenerated = '' AND EXISTS (SELECT FROM pg_depend AS d \
             WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refobjid >= 16384 \
               AND (d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) \
                    OR d.refclassid = 'pg_class'::regclass AND d.refobjid <> f.adrelid AND NOT EXISTS \
                       (SELECT FROM pg_depend AS o WHERE o.classid = 'pg_class'::regclass AND o.objid = d.refobjid \
                          AND o.refclassid = 'pg_class'::regclass AND o.refobjid = f.adrelid AND o.deptype IN ('a', 'i')))) ORDER BY 1",
    ),
    (
        "index that calls a function",
        "SELECT c.relname::text AS name, pg_get_indexdef(c.oid) AS definition, \
         format('DROP INDEX %I.%I', n.nspname, c.relname) AS statement \
         FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE i.indrelid = $1::oid AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid) \
           AND EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
                         AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass) AND d.refobjid >= 16384) ORDER BY 1",
    ),
];

/// What a copy into a plain table goes without, beside all of the above.
const COPIED_WITHOUT: [(&str, &str); 2] = [
    (
        "index",
        "SELECT c.relname::text AS name, pg_get_indexdef(c.oid) AS definition FROM pg_index AS i \
         JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = $1::oid ORDER BY 1",
    ),
    (
        "constraint",
        "SELECT conname::text AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint \
         WHERE conrelid = $1::oid AND contype IN ('c', 'x') ORDER BY 1",
    ),
];
