//! The session with PostgreSQL, against throw-away servers that listen on a unix socket only.
//!
//! The server programs come from `PGARK_TEST_BINDIR`, by default those of Debian's PostgreSQL 15.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pgark_engine::cluster::*;
use pgark_pg::{Lsn, Major};

const SECRET: &str = "correct-horse-battery";
const LONG: Duration = Duration::from_secs(60);

/// A temporary directory that the server's user owns; removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pgark-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        give_to_server_user(&path);
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

fn output(command: &mut Command) -> String {
    let result = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(result.status.success(), "{command:?}: {}", String::from_utf8_lossy(&result.stderr));
    String::from_utf8(result.stdout).unwrap()
}

fn we_are_root() -> bool {
    output(Command::new("id").arg("-u")).trim() == "0"
}

fn give_to_server_user(path: &Path) {
    if we_are_root() {
        let id = |what| output(Command::new("id").args([what, "postgres"])).trim().parse().unwrap();
        chown(path, Some(id("-u")), Some(id("-g"))).unwrap();
    }
}

/// A command that runs as the server's user: PostgreSQL refuses to run as root.
fn as_server_user(program: &Path) -> Command {
    if !we_are_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

struct Server {
    bin: PathBuf,
    data: PathBuf,
    dir: TempDir,
    running: bool,
}

impl Server {
    fn prepare() -> Self {
        let dir = TempDir::new();
        let bin = std::env::var_os("PGARK_TEST_BINDIR").unwrap_or_else(|| "/usr/lib/postgresql/15/bin".into());
        Self { bin: bin.into(), data: dir.0.join("data"), dir, running: false }
    }

    fn start() -> Self {
        let mut server = Self::prepare();
        let mut initdb = as_server_user(&server.bin.join("initdb"));
        output(
            initdb.args(["-N", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(&server.data),
        );
        let hba = "local all guarded scram-sha-256\nlocal all all trust\n";
        std::fs::write(server.data.join("pg_hba.conf"), hba).unwrap();
        server.launch();
        server
    }

    /// A standby that follows nobody, made from a stopped server.
    fn standby_of(origin: &mut Self) -> Self {
        origin.stop("fast");
        let mut standby = Self::prepare();
        output(Command::new("cp").arg("-a").args([&origin.data, &standby.data]));
        std::fs::write(standby.data.join("standby.signal"), "").unwrap();
        standby.launch();
        standby
    }

    fn launch(&mut self) {
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nwal_level = replica\n",
            self.dir.0.display()
        );
        std::fs::write(self.data.join("test.conf"), settings).unwrap();
        let conf = self.data.join("postgresql.conf");
        let before = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(&conf, before + "\ninclude 'test.conf'\n").unwrap();
        self.pg_ctl(&["-w", "start", "-l", self.log().to_str().unwrap()]);
        self.running = true;
    }

    fn stop(&mut self, mode: &str) {
        self.pg_ctl(&["-w", "-m", mode, "stop"]);
        self.running = false;
    }

    fn pg_ctl(&self, args: &[&str]) {
        let mut command = as_server_user(&self.bin.join("pg_ctl"));
        let status = command.arg("-D").arg(&self.data).args(args).stdout(std::process::Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
    }

    fn log(&self) -> PathBuf {
        self.dir.0.join("log")
    }

    fn options(&self, more: &[(&str, &str)]) -> ConnectOptions {
        let host = self.dir.0.to_str().unwrap();
        let base = [("host", host), ("port", "5432"), ("user", "postgres"), ("dbname", "postgres")];
        ConnectOptions::new(base.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn open(&self, more: &[(&str, &str)]) -> Result<Connection, ClusterError> {
        Connection::open(&self.options(more), LONG)
    }

    fn sql(&self, statements: &[&str]) {
        let conn = self.open(&[]).unwrap();
        for statement in statements {
            conn.execute(statement, &[]).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    fn start_backup(&self) -> BackupSession {
        BackupSession::start(self.open(&[]).unwrap(), "pgark test", true, soon()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running && !std::thread::panicking() {
            self.stop("immediate");
        } else if self.running {
            // The test has failed already; a second panic would hide why.
            let mut stop = as_server_user(&self.bin.join("pg_ctl"));
            let stopped = stop.arg("-D").arg(&self.data).args(["-w", "-m", "immediate", "stop"]).status();
            eprintln!("stopped the server: {stopped:?}");
        }
    }
}

fn soon() -> Deadline {
    Deadline::after(LONG)
}

/// Asks again until it is so; fails when that takes too long.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = soon();
    while !so() {
        assert!(!deadline.has_passed(), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_backup_yields_its_label_and_the_map_of_tablespaces_byte_for_byte() {
    let server = Server::start();
    let plain = server.start_backup();
    let file = plain.start_wal_file();
    let start = plain.start_lsn();
    plain.check_alive().unwrap();
    let stopped = plain.stop(soon()).unwrap();
    assert!(stopped.backup_label.starts_with(format!("START WAL LOCATION: {start} (file {file})\n").as_bytes()));
    assert!(contains(&stopped.backup_label, b"\nLABEL: pgark test\n"));
    assert!(stopped.stop_lsn > start);
    assert_eq!(stopped.tablespace_map, None);
    assert!(!stopped.in_recovery);

    // Asked for through a LATIN1 database, converted text would double each of these UTF-8 bytes.
    let location = server.dir.0.join("tblé space");
    std::fs::create_dir(&location).unwrap();
    give_to_server_user(&location);
    let create = format!("CREATE TABLESPACE \"spcé\" LOCATION '{}'", location.display());
    server.sql(&[&create, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"]);
    let session = BackupSession::start(server.open(&[("dbname", "latin")]).unwrap(), "é", true, soon()).unwrap();
    let stopped = session.stop(soon()).unwrap();
    let map = stopped.tablespace_map.unwrap();
    assert!(contains(&map, location.as_os_str().as_bytes()), "{}", String::from_utf8_lossy(&map));
    assert!(contains(&stopped.backup_label, "\nLABEL: é\n".as_bytes()));

    let seen = inspect(&server.open(&[("dbname", "latin")]).unwrap()).unwrap();
    let spaces = seen.tablespaces.unwrap();
    let ours = spaces.iter().find(|space| space.location.as_deref() == Some(location.as_path())).unwrap();
    assert_eq!(ours.name, "spcé".as_bytes());
}

#[test]
fn a_session_lost_between_start_and_stop_fails_the_backup() {
    let server = Server::start();
    let session = server.start_backup();
    let pid = session.backend_pid().to_string();
    let other = server.open(&[]).unwrap();
    assert!(other.query_one("SELECT pg_terminate_backend($1::integer) AS t", &[&pid]).unwrap().flag("t").unwrap());
    until("the session has ended", || {
        other.query("SELECT 1 FROM pg_stat_activity WHERE pid = $1::integer", &[&pid]).unwrap().is_empty()
    });
    assert!(matches!(session.check_alive(), Err(ClusterError::Lost { .. })));
    assert!(matches!(session.stop(soon()), Err(ClusterError::Lost { .. })));
}

#[test]
fn an_immediate_stop_of_the_server_fails_the_backup() {
    let mut server = Server::start();
    let session = server.start_backup();
    server.stop("immediate");
    assert!(matches!(session.stop(soon()), Err(ClusterError::Lost { .. })));
    assert!(matches!(server.open(&[]), Err(ClusterError::Unreachable { .. })));
}

#[test]
fn a_dropped_session_makes_postgresql_leave_backup_mode() {
    let server = Server::start();
    drop(server.start_backup());
    until("the server says that it aborts the backup", || {
        std::fs::read_to_string(server.log()).unwrap().contains("aborting backup due to backend exiting")
    });
}

#[test]
fn a_database_named_like_a_connection_string_is_reached_literally() {
    let server = Server::start();
    for name in ["port=1 dbname=postgres", "postgresql://localhost:1/postgres", "-c evil", "a\nb'\"\\ é"] {
        server.sql(&[&format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))]);
        let conn = server.open(&[("dbname", name)]).unwrap();
        let row = conn.query_one("SELECT current_database()::text AS name", &[]).unwrap();
        assert_eq!(row.text("name").unwrap(), name);
        let listed = inspect(&conn).unwrap().databases.unwrap();
        assert!(listed.iter().any(|database| database.name == name.as_bytes()), "{listed:?}");
    }
}

#[test]
fn settings_of_the_role_do_not_reach_the_session() {
    let server = Server::start();
    server.sql(&[
        "CREATE SCHEMA evil",
        "CREATE FUNCTION evil.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE ROLE hasty LOGIN SUPERUSER",
        "ALTER ROLE hasty SET statement_timeout = '100ms'",
        "ALTER ROLE hasty SET lock_timeout = '100ms'",
        "ALTER ROLE hasty SET idle_in_transaction_session_timeout = '100ms'",
        "ALTER ROLE hasty SET search_path = evil, pg_catalog",
        "ALTER ROLE hasty SET datestyle = 'German'",
        "ALTER ROLE hasty SET client_encoding = 'LATIN1'",
    ]);
    let conn = server.open(&[("user", "hasty")]).unwrap();
    if conn.major() >= Major::V14 {
        server.sql(&["ALTER ROLE hasty SET idle_session_timeout = '100ms'"]);
    }
    if conn.major() >= Major::V17 {
        server.sql(&["ALTER ROLE hasty SET transaction_timeout = '100ms'"]);
    }
    let conn = server.open(&[("user", "hasty")]).unwrap();
    let sql = "SELECT name, setting FROM pg_settings WHERE name LIKE '%\\_timeout' \
               AND name ~ '^(statement|lock|idle_in_transaction_session|idle_session|transaction)_timeout$'";
    for row in conn.query(sql, &[]).unwrap() {
        assert_eq!(row.text("setting").unwrap(), "0", "{row:?}");
    }
    assert_eq!(conn.query_one("SHOW client_encoding", &[]).unwrap().text("client_encoding").unwrap(), "UTF8");
    assert_eq!(conn.query_one("SHOW application_name", &[]).unwrap().text("application_name").unwrap(), "pgark");
    let row = conn.query_one("SELECT pg_is_in_recovery() AS evil, pg_sleep(0.3)", &[]).unwrap();
    assert!(!row.flag("evil").unwrap());
    let session = BackupSession::start(conn, "hasty", false, soon()).unwrap();
    session.stop(soon()).unwrap();
}

#[test]
fn a_password_never_shows_in_errors() {
    let server = Server::start();
    let create = format!("CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'");
    server.sql(&["SET password_encryption = 'scram-sha-256'", &create]);
    let right = server.options(&[("user", "guarded"), ("password", SECRET)]);
    let conn = Connection::open(&right, LONG).unwrap();
    let hidden = |text: String| assert!(!text.contains("horse"), "{text}");
    hidden(format!("{right:?} {conn:?}"));

    let uri = format!("postgresql://guarded:{SECRET}@localhost/postgres");
    let attempts: [&[(&str, &str)]; 6] = [
        &[("user", "guarded"), ("password", "wrong-horse-battery")],
        &[("user", SECRET), ("password", SECRET)],
        &[("user", "guarded"), ("password", SECRET), ("dbname", SECRET)],
        &[("user", "guarded"), ("password", SECRET), ("dbname", &uri)],
        &[("user", "guarded"), ("password", SECRET), ("sslmode", SECRET)],
        &[("user", "guarded"), ("password", SECRET), ("host", SECRET)],
    ];
    for attempt in attempts {
        let options = server.options(attempt);
        let error = Connection::open(&options, LONG).unwrap_err();
        hidden(format!("{error} {error:?} {options:?}"));
    }
    let error = conn.query(&format!("SELECT '{SECRET}'::integer"), &[]).unwrap_err();
    hidden(format!("{error} {error:?}"));

    let wrong = Connection::open(&server.options(attempts[0]), LONG);
    let Err(ClusterError::Denied { sqlstate, .. }) = &wrong else { panic!("{wrong:?}") };
    assert_eq!(sqlstate.as_deref(), Some("28P01"));
    let none = server.open(&[("user", "guarded")]);
    assert!(matches!(none, Err(ClusterError::Denied { .. })), "{none:?}");
    let absent = server.open(&[("dbname", "absent")]);
    assert!(matches!(&absent, Err(ClusterError::Query { sqlstate, .. }) if sqlstate == "3D000"), "{absent:?}");
}

#[test]
fn a_socket_that_never_answers_costs_no_more_than_the_deadline() {
    let hole = TempDir::new();
    let _listener = UnixListener::bind(hole.0.join(".s.PGSQL.5432")).unwrap();
    let server = Server::start();
    let began = Instant::now();
    let result = Connection::open(&server.options(&[("host", hole.0.to_str().unwrap())]), Duration::from_secs(1));
    assert!(matches!(result, Err(ClusterError::Timeout { .. })), "{result:?}");
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(5));

    // As the first of two hosts it does not keep us from the second.
    let both = format!("{},{}", hole.0.display(), server.dir.0.display());
    Connection::open(&server.options(&[("host", &both)]), Duration::from_secs(4)).unwrap();
    let holes = format!("{0},{0}", hole.0.display());
    let began = Instant::now();
    let result = Connection::open(&server.options(&[("host", &holes)]), Duration::from_secs(1));
    assert!(matches!(result, Err(ClusterError::Timeout { .. })), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_statement_past_its_deadline_is_cancelled_and_the_session_stays_usable() {
    let server = Server::start();
    let conn = server.open(&[]).unwrap();
    let began = Instant::now();
    let result = conn.query_by("SELECT pg_sleep(600)", &[], Deadline::after(Duration::from_millis(300)));
    assert!(matches!(result, Err(ClusterError::Timeout { .. })), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(conn.query_one("SELECT 42 AS n", &[]).unwrap().parse::<i32>("n").unwrap(), 42);
}

#[test]
fn a_frozen_server_process_costs_the_session_but_does_not_hang_us() {
    let server = Server::start();
    let conn = server.open(&[]).unwrap();
    let pid = conn.announced_backend_pid().to_string();
    output(Command::new("kill").args(["-STOP", &pid]));
    let began = Instant::now();
    let result = conn.query_by("SELECT 1", &[], Deadline::after(Duration::from_millis(300)));
    let after = conn.query_one("SELECT 42 AS n", &[]);
    let took = began.elapsed();
    output(Command::new("kill").args(["-CONT", &pid]));
    assert!(matches!(result, Err(ClusterError::Timeout { .. })), "{result:?}");
    assert!(matches!(after, Err(ClusterError::Lost { .. })), "{after:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_missing_right_costs_only_the_fields_that_need_it() {
    let server = Server::start();
    server.sql(&["CREATE ROLE poor LOGIN"]);
    let rich = inspect(&server.open(&[]).unwrap()).unwrap();
    assert_eq!(rich.unavailable, []);
    assert_eq!(rich.data_directory.as_deref(), Some(server.data.as_path()));
    assert_eq!(rich.unix_socket_directories.as_deref(), server.dir.0.to_str());
    assert_eq!((rich.block_size_bytes, rich.port), (Some(8192), Some(5432)));
    assert_eq!(rich.wal_segment_size.unwrap().bytes(), 16 << 20);
    assert_eq!(rich.max_wal_size_bytes, Some(1 << 30));
    assert_eq!((rich.wal_level.as_deref(), rich.full_page_writes), (Some("replica"), Some(true)));
    assert_eq!(rich.archive_library.is_some(), rich.major >= Major::V15);
    assert!(rich.rights.as_ref().unwrap().backup && rich.rights.as_ref().unwrap().read_files);
    assert!(rich.lsn.unwrap() > Lsn(0));

    let conn = server.open(&[("user", "poor")]).unwrap();
    let poor = inspect(&conn).unwrap();
    assert_eq!(poor.data_directory, None);
    assert!(poor.unavailable.iter().any(|missing| missing.field == "data_directory"), "{:?}", poor.unavailable);
    assert_eq!((poor.system_id, poor.timeline, poor.port), (rich.system_id, rich.timeline, rich.port));
    let rights = poor.rights.unwrap();
    assert!(!rights.superuser && !rights.backup && !rights.switch_wal && !rights.read_all_settings);
    let denied = BackupSession::start(conn, "poor", true, soon());
    assert!(matches!(denied, Err(ClusterError::Denied { .. })), "{denied:?}");
}

#[test]
fn a_standby_promoted_during_its_backup_fails_it() {
    let mut origin = Server::start();
    let point = create_restore_point(&origin.open(&[]).unwrap(), "here").unwrap();
    assert!(switch_wal(&origin.open(&[]).unwrap()).unwrap() >= point);
    let standby = Server::standby_of(&mut origin);
    let conn = standby.open(&[]).unwrap();
    let state = recovery_state(&conn).unwrap();
    assert!(state.in_recovery && state.replay_lsn.unwrap() >= point, "{state:?}");
    assert_eq!(state.pause, Some(PauseState::NotPaused));

    let whole = standby.start_backup();
    assert!(whole.in_recovery());
    let file = whole.start_wal_file();
    let stopped = whole.stop(soon()).unwrap();
    assert!(stopped.in_recovery && contains(&stopped.backup_label, b"\nBACKUP FROM: standby\n"));
    assert!(contains(&stopped.backup_label, format!("(file {file})").as_bytes()));

    let session = standby.start_backup();
    conn.execute("SELECT pg_wal_replay_pause()", &[]).unwrap();
    until("replay is paused", || recovery_state(&conn).unwrap().pause == Some(PauseState::Paused));
    promote(&conn, LONG).unwrap();
    let after = recovery_state(&conn).unwrap();
    assert!(!after.in_recovery && after.pause.is_none(), "{after:?}");
    assert!(inspect(&conn).unwrap().timeline > Some(session.timeline()));
    let result = session.stop(soon());
    assert!(matches!(result, Err(ClusterError::Changed { .. })), "{result:?}");
}

#[test]
fn requests_that_cannot_be_made_are_refused_before_they_are_sent() {
    let server = Server::start();
    let conn = server.open(&[]).unwrap();
    assert!(matches!(conn.query("SELECT $1::text", &["a\0b"]), Err(ClusterError::Invalid { .. })));
    let two = conn.query("SELECT 1; SELECT 2", &[]);
    assert!(matches!(&two, Err(ClusterError::Query { sqlstate, .. }) if sqlstate == "42601"), "{two:?}");
    let binary = conn.query_bytes("SELECT 1::int4, $1::text", &[None], ResultFormat::Binary, soon()).unwrap();
    assert_eq!(binary[0].values(), [Some(vec![0, 0, 0, 1]), None]);
    assert!(matches!(conn.query("COPY (SELECT 1) TO STDOUT", &[]), Err(ClusterError::Unexpected { .. })));
    assert!(matches!(conn.query("SELECT 1", &[]), Err(ClusterError::Lost { .. })));
}

#[test]
fn what_the_server_remarks_is_kept_and_not_printed() {
    let server = Server::start();
    let conn = server.open(&[]).unwrap();
    conn.execute("DO $$ BEGIN RAISE WARNING 'mind this'; END $$", &[]).unwrap();
    let notices = conn.take_notices();
    assert!(notices.iter().any(|n| n.severity == "WARNING" && n.message == "mind this"), "{notices:?}");
    assert_eq!(conn.take_notices(), []);
}
