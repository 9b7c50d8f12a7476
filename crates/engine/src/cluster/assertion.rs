//! Questions written by administrators, asked of a database that may hold functions of people who wish us ill.
//!
//! Invariants: the session is opened as a role without privileges, not switched to one, so that there is nothing to switch back to;
//! the question is the query of a cursor, hence one statement and no command; it runs in a transaction that can only read and is rolled
//! back, with a pinned search path and a time limit, in a session of its own.

use std::time::Duration;

use pgark_pg::Major;

use super::row::Row;
use super::{ClusterError, ConnectOptions, Connection, Deadline, ResultFormat};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// What the server may take to notice its own limit.
const GRACE: Duration = Duration::from_secs(5);

/// As whom questions are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskAs {
    /// The role of the connection; it must be without privileges.
    Connected,
    /// A role for this purpose, by the same connection settings but for the password.
    Role(String),
    /// One that is made and dropped again: for servers of our own, which let everybody in.
    Made,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub sql: String,
    /// Schemas to look for names in, after `pg_catalog`.
    pub schemas: Vec<String>,
    pub within: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// One row with one column; None for NULL.
    Value(Option<String>),
    /// Something else than one value.
    Shape(String),
    /// PostgreSQL's complaint.
    Error(String),
}

/// Who asks questions in one database.
#[derive(Debug)]
pub struct Questioner {
    options: ConnectOptions,
    /// To drop the role with, and its name.
    made: Option<(Connection, String)>,
}

impl Questioner {
    /// `Ok(Err(reason))`: nobody without privileges can ask.
    pub fn find(
        options: &ConnectOptions,
        database: &str,
        ask_as: &AskAs,
    ) -> Result<Result<Self, String>, ClusterError> {
        let options = options.to_database(database);
        let found = match ask_as {
            AskAs::Connected => Questioner { options, made: None },
            AskAs::Role(role) => Questioner { options: options.as_role(role), made: None },
            AskAs::Made => match make_role(&options)? {
                Ok((conn, role)) => {
                    let options = options.as_role(&role);
                    Questioner { options, made: Some((conn, role)) }
                }
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let conn = match Connection::open(&found.options, CONNECT_TIMEOUT) {
            Ok(conn) => conn,
            Err(error) if *ask_as == AskAs::Connected => return Err(error),
            Err(error) => {
                found.finish()?;
                return Ok(Err(error.to_string()));
            }
        };
        match privileges(&conn)? {
            None => Ok(Ok(found)),
            Some(privileges) => {
                found.finish()?;
                Ok(Err(format!("the role {privileges}: functions of users would run with its rights")))
            }
        }
    }

    pub fn ask(&self, question: &Question) -> Result<Reply, ClusterError> {
        let conn = Connection::open(&self.options, CONNECT_TIMEOUT)?;
        match ask(&conn, question) {
            Ok(reply) => Ok(reply),
            Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. } | ClusterError::Invalid { .. })) => {
                Ok(Reply::Error(error.to_string()))
            }
            Err(ClusterError::Timeout { .. }) => {
                Ok(Reply::Error(format!("it took longer than {} s", question.within.as_secs())))
            }
            // A question that ends its own session has been answered, too.
            Err(error @ ClusterError::Lost { .. }) => Ok(Reply::Error(error.to_string())),
            Err(error) => Err(error),
        }
        // The session ends here, and with it whatever the question did to it.
    }

    /// Drops what was made.
    pub fn finish(mut self) -> Result<(), ClusterError> {
        self.drop_role()
    }

    fn drop_role(&mut self) -> Result<(), ClusterError> {
        let Some((conn, role)) = self.made.take() else { return Ok(()) };
        let run = |sql: &'static str| {
            let statement = conn.compose(sql, &[role.as_bytes()])?;
            conn.query_composed(&statement, &[], conn.default_deadline()).map(drop)
        };
        let drop_role = || run("SELECT format('DROP ROLE %I', $1::text) AS statement");
        match drop_role() {
            // It has rights of its own, or something has come to depend on it. Only that is a matter for event triggers.
            Err(ClusterError::Query { sqlstate, .. }) if sqlstate == DEPENDENT_OBJECTS => {
                run("SELECT format('DROP OWNED BY %I', $1::text) AS statement")?;
                drop_role()
            }
            other => other,
        }
    }
}

impl Drop for Questioner {
    fn drop(&mut self) {
        if let Err(error) = self.drop_role() {
            tracing::warn!(target: "pgark", %error, "the role that was made for checks could not be dropped");
        }
    }
}

fn ask(conn: &Connection, question: &Question) -> Result<Reply, ClusterError> {
    let deadline = Deadline::after(question.within.saturating_add(GRACE));
    let schemas = serde_json::to_string(&question.schemas)
        .map_err(|e| ClusterError::Invalid { message: format!("the schemas of a check: {e}") })?;
    conn.query_by(
        "SELECT set_config('search_path', (SELECT string_agg(quote_ident(s.name), ', ' ORDER BY s.place) FROM \
             (SELECT name, place FROM json_array_elements_text($1::json) WITH ORDINALITY AS given(name, place) \
              UNION ALL SELECT 'pg_catalog', 0 UNION ALL SELECT 'pg_temp', 1000000) AS s), false), \
         set_config('statement_timeout', $2, false), set_config('lock_timeout', $2, false), \
         set_config('default_transaction_read_only', 'on', false)",
        &[&schemas, &question.within.as_millis().to_string()],
        deadline,
    )?;
    conn.script("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
    // From its first query on, a transaction cannot be made to write any more.
    conn.query_one_by("SELECT 1 AS one", &[], deadline)?;
    let declare = format!("DECLARE pgark_check NO SCROLL CURSOR FOR {}", question.sql);
    conn.query_by(&declare, &[], deadline)?;
    // Two, to see that there is only one.
    let rows = conn.query_bytes("FETCH FORWARD 2 FROM pgark_check", &[], ResultFormat::Text, deadline)?;
    conn.script("ROLLBACK")?;
    Ok(reply(&rows))
}

fn reply(rows: &[Row]) -> Reply {
    match rows {
        [] => Reply::Shape("no row".to_owned()),
        [row] => match row.values() {
            [value] => Reply::Value(value.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())),
            values => Reply::Shape(format!("{} columns", values.len())),
        },
        _ => Reply::Shape("more than one row".to_owned()),
    }
}

/// What makes the role one that must not run functions of others. None for an ordinary role.
fn privileges(conn: &Connection) -> Result<Option<String>, ClusterError> {
    let row = conn.query_one(
        "SELECT concat_ws(' and ', CASE WHEN r.rolsuper THEN 'is a superuser' END, \
             CASE WHEN r.rolcreaterole THEN 'may create roles' END, CASE WHEN r.rolreplication THEN 'may replicate' END, \
             CASE WHEN current_user <> session_user THEN 'is not the one that connected' END, \
             (SELECT 'is a member of ' || string_agg(quote_ident(m.rolname), ', ') FROM pg_roles AS m \
              WHERE m.oid <> r.oid AND pg_has_role(r.oid, m.oid, 'MEMBER') AND (m.rolsuper OR m.rolcreaterole \
                    OR m.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')))) AS why \
         FROM pg_roles AS r WHERE r.rolname = session_user",
        &[],
    )?;
    let why = row.opt_text("why")?.unwrap_or_default();
    Ok((!why.is_empty()).then(|| why.to_owned()))
}

/// `dependent_objects_still_exist` (`errcodes.txt`).
const DEPENDENT_OBJECTS: &str = "2BP01";
/// For rights and objects of the role; the role itself is a matter for none. Whoever is no superuser cannot ask for that.
const NO_EVENT_TRIGGERS: &str = "SELECT set_config(s.name, wanted.value, false) \
    FROM (VALUES ('session_replication_role', 'replica'), ('event_triggers', 'off')) AS wanted (name, value) \
    JOIN pg_settings AS s USING (name) \
    WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)";

/// A role that may read everything and nothing else.
fn make_role(options: &ConnectOptions) -> Result<Result<(Connection, String), String>, ClusterError> {
    let conn = Connection::open(options, CONNECT_TIMEOUT)?;
    conn.query(NO_EVENT_TRIGGERS, &[])?;
    let row = conn.query_one("SELECT 'pgark_check_' || replace(gen_random_uuid()::text, '-', '') AS name", &[])?;
    let role = row.text("name")?.to_owned();
    let run = |sql: &'static str| -> Result<(), ClusterError> {
        let statement = conn.compose(sql, &[role.as_bytes()])?;
        conn.query_composed(&statement, &[], conn.default_deadline()).map(drop)
    };
    let made = run("SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION BYPASSRLS', $1::text) \
                    AS statement")
    .and_then(|()| match conn.major() {
        Major::V13 => run("SELECT format('DO %L', format('DECLARE s name; BEGIN FOR s IN SELECT nspname FROM pg_catalog.pg_namespace \
             WHERE nspname !~ ''^pg_'' LOOP EXECUTE format(''GRANT USAGE ON SCHEMA %%I TO %1$I'', s); \
             EXECUTE format(''GRANT SELECT ON ALL TABLES IN SCHEMA %%I TO %1$I'', s); END LOOP; END', $1::text)) AS statement"),
        _ => run("SELECT format('GRANT pg_read_all_data TO %I', $1::text) AS statement"),
    });
    match made {
        Ok(()) => Ok(Ok((conn, role))),
        Err(error @ (ClusterError::Denied { .. } | ClusterError::Query { .. })) => {
            Ok(Err(format!("no role can be made for checks: {error}")))
        }
        Err(error) => Err(error),
    }
}
