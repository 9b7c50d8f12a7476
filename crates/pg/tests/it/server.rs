//! Servers started for the test, in a temporary directory, on a Unix socket only.
//!
//! Versions come from `/usr/lib/postgresql/*/bin` and from `PGARK_TEST_PG_BINDIRS` (separated by colons; they need only
//! `initdb`, `pg_ctl` and `postgres`, clients are taken from the first version that has them). Without any version the
//! tests fail, unless `PGARK_TEST_WITHOUT_POSTGRES=1` says that this is meant.

use std::env;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pgark_pg::wal::{SegmentExpect, Tail, scan_segment};
use pgark_pg::{
    BackupFrom, BackupLabel, BlockNo, ControlFile, ControlState, Lsn, Major, PAGE_SIZE, PageVerdict, PathClass,
    SegmentName, SegmentNo, TimelineHistory, TimelineId, check_page, classify, parse_tablespace_map,
};

use super::{chain, waldump};

const WORKLOAD: &str = "
create table t(a int primary key, b text);
insert into t select g, repeat('x', 60) from generate_series(1,3000) g;
select pg_create_restore_point('before the update');
update t set b = 'y' where a < 100;
begin; insert into t values (10001,'p'); prepare transaction 'gid-1';
begin; insert into t values (10002,'p'); create table dropped(); savepoint s; insert into t values (10003,'q'); prepare transaction 'gid-2';
commit prepared 'gid-1';
rollback prepared 'gid-2';
begin; savepoint s; insert into t values (10004,'r'); rollback to s; insert into t values (10005,'s'); rollback;
create index on t using gin (to_tsvector('simple', b));
create unlogged table u(a int); insert into u values (1);
vacuum full t;
vacuum freeze t;
select pg_logical_emit_message(true, 'pgark', repeat(md5('a'), 300));
select pg_logical_emit_message(true, 'big', repeat(md5('b'), 100000));
select pg_switch_wal();
truncate t;
create database d; drop database d;
select pg_create_restore_point('after');
";

pub struct Server {
    bin_dir: PathBuf,
    client_dir: PathBuf,
    root: PathBuf,
    running: bool,
}

fn bin_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = env::var_os("PGARK_TEST_PG_BINDIRS")
        .map(|list| env::split_paths(&list).filter(|dir| !dir.as_os_str().is_empty()).collect())
        .unwrap_or_default();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        dirs.extend(versions.map(|version| version.unwrap().path().join("bin")));
    }
    dirs.retain(|dir| dir.join("initdb").exists());
    dirs.sort();
    dirs
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout.trim_ascii() == b"0"
}

impl Server {
    fn create(bin_dir: &Path, client_dir: &Path, number: usize) -> Self {
        let root = env::temp_dir().join(format!("pgark-pg-{}-{number}", std::process::id()));
        fs::create_dir(&root).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&root).status().unwrap().success());
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Self { bin_dir: bin_dir.into(), client_dir: client_dir.into(), root, running: false };
        server.run("initdb", &["-k", "-U", "postgres", "-A", "trust", "--wal-segsize=1", "-D", &server.data_text()]);
        let settings = format!(
            "listen_addresses=''\nunix_socket_directories='{}'\nwal_compression=on\nmax_prepared_transactions=5\n\
             max_connections=23\nwal_keep_size='4GB'\nfsync=off\nautovacuum=off\nmax_locks_per_transaction=77\n",
            server.root.display()
        );
        let conf = server.data().join("postgresql.conf");
        let old = fs::read_to_string(&conf).unwrap();
        fs::write(&conf, old + &settings).unwrap();
        server.start();
        server
    }

    fn start(&mut self) {
        let log = self.root.join("log").display().to_string();
        self.run("pg_ctl", &["-w", "-D", &self.data_text(), "-l", &log, "start"]);
        self.running = true;
    }

    fn make_dir(&self, name: &str) {
        let made = self.as_owner(Path::new("mkdir"), |command| {
            command.arg(self.root.join(name));
        });
        assert!(made.status.success(), "{made:?}");
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    fn data_text(&self) -> String {
        self.data().display().to_string()
    }

    /// The program of this version, or else of the version that brings the clients.
    pub fn bin(&self, program: &str) -> PathBuf {
        let own = self.bin_dir.join(program);
        if own.exists() { own } else { self.client_dir.join(program) }
    }

    /// Runs as the owner of the server: PostgreSQL refuses root.
    pub fn as_owner(&self, program: &Path, arguments: impl FnOnce(&mut Command)) -> Output {
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(&self.root);
        arguments(&mut command);
        command.output().unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.as_owner(&self.bin(program), |command| {
            command.args(arguments);
        });
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn sql(&self, sql: &str) -> String {
        let socket = self.root.display().to_string();
        let arguments =
            ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", &socket, "-U", "postgres", "-d", "postgres"];
        // One command at a time, because some refuse to run inside a transaction block.
        let file = self.root.join("workload.sql");
        fs::write(&file, sql).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let file = file.display().to_string();
        self.run("psql", &[&arguments[..], &["-f", &file]].concat())
    }

    fn pgbench(&self, arguments: &[&str]) {
        let socket = self.root.display().to_string();
        self.run("pgbench", &[arguments, &["-h", &socket, "-U", "postgres", "postgres"]].concat());
    }

    fn stop(&mut self) {
        self.run("pg_ctl", &["-w", "-D", &self.data_text(), "-m", "fast", "stop"]);
        self.running = false;
    }

    fn control(&self) -> ControlFile {
        ControlFile::parse(&fs::read(self.data().join("global/pg_control")).unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running {
            self.as_owner(&self.bin("pg_ctl"), |command| {
                command.args(["-D", &self.data_text(), "-m", "immediate", "-w", "stop"]);
            });
        }
        if let Err(error) = fs::remove_dir_all(&self.root) {
            eprintln!("{}: {error}", self.root.display());
        }
    }
}

#[test]
fn a_real_cluster_of_each_version_is_read_as_it_describes_itself() {
    let dirs = bin_dirs();
    if dirs.is_empty() {
        let meant = env::var("PGARK_TEST_WITHOUT_POSTGRES").is_ok_and(|value| value == "1");
        assert!(meant, "no PostgreSQL found; set PGARK_TEST_PG_BINDIRS or PGARK_TEST_WITHOUT_POSTGRES=1");
        return;
    }
    let client = dirs.iter().find(|dir| dir.join("psql").exists()).expect("a version with psql and pgbench");
    for (number, dir) in dirs.iter().enumerate() {
        check(Server::create(dir, client, number));
    }
}

fn check(mut server: Server) {
    server.pgbench(&["-i", "-q"]);
    server.make_dir("space");
    let space = server.root.join("space").display().to_string();
    server.sql(&format!("create tablespace s location '{space}'; create table ts(a int) tablespace s;"));
    server.sql(WORKLOAD);
    server.pgbench(&["-n", "-c", "3", "-t", "300"]);
    server.sql("checkpoint");
    check_control_running(&server);
    check_backup_label(&server);
    server.sql("checkpoint");
    let prepared = server.sql("select count(*) from pg_prepared_xacts");
    assert_eq!(prepared.trim(), "0");
    server.stop();
    let control = server.control();
    assert_eq!(control.state, ControlState::ShutDown);
    check_control_text(&server, &control);
    let end = check_wal(&server, &control);
    let pages = check_pages(&server);
    assert!(pages > 2000, "{pages}");
    check_promotion(&mut server, end);
    check_poisoned(&server);
}

/// The label that a backup of this version gets.
fn check_backup_label(server: &Server) {
    let (start, stop) = if server.control().major >= Major::V15 {
        ("pg_backup_start('my label', true)", "pg_backup_stop(false)")
    } else {
        ("pg_start_backup('my label', true, false)", "pg_stop_backup(false, false)")
    };
    let said = server.sql(&format!("select {start}; select labelfile, '|', spcmapfile from {stop};"));
    let (start, rest) = said.split_once('\n').unwrap();
    let (label, map) = rest.split_once("||").unwrap();
    let label = BackupLabel::parse(label.as_bytes()).unwrap();
    let control = server.control();
    assert_eq!((label.start, label.start), (start.parse().unwrap(), control.checkpoint_redo));
    assert_eq!(label.checkpoint, control.checkpoint);
    let segment = SegmentNo::containing(label.start, control.segment_size);
    assert_eq!(label.start_segment.number(control.segment_size), Ok(segment));
    assert_eq!((label.from, label.start_timeline), (BackupFrom::Primary, TimelineId::FIRST));
    assert_eq!((label.label.as_slice(), label.method.as_slice()), (&b"my label"[..], &b"streamed"[..]));
    let tablespaces = parse_tablespace_map(map.trim_start_matches('|').trim_start().as_bytes()).unwrap();
    let [(oid, path)] = tablespaces.as_slice() else { panic!("{tablespaces:?}") };
    assert_eq!(path, server.root.join("space").as_os_str().as_bytes());
    assert!(server.data().join("pg_tblspc").join(oid.to_string()).join(control.major.tablespace_dir()).is_dir());
}

/// The server becomes a standby and is promoted: its new timeline begins where the WAL of the old one ended.
fn check_promotion(server: &mut Server, end: Lsn) {
    fs::write(server.data().join("standby.signal"), "").unwrap();
    server.start();
    server.run("pg_ctl", &["-w", "-D", &server.data_text(), "promote"]);
    server.sql("insert into u values (5); select pg_create_restore_point('on two'); checkpoint");
    server.stop();
    let control = server.control();
    let two = TimelineId::new(2).unwrap();
    assert_eq!((control.checkpoint_timeline, control.prev_timeline), (two, two));
    let pg_wal = server.data().join("pg_wal");
    let history = TimelineHistory::parse(two, &fs::read(pg_wal.join("00000002.history")).unwrap()).unwrap();
    assert_eq!(history.switch_point(TimelineId::FIRST), Some(end));
    assert_eq!((history.timeline_at(end), history.entries.len()), (two, 1));
    assert_eq!(history.entries[0].reason, b"no recovery target specified");
    let name = SegmentName { timeline: two, segment: SegmentNo::containing(end, control.segment_size) };
    let bytes = fs::read(pg_wal.join(name.format(control.segment_size))).unwrap();
    let (timeline, segment) = (name.timeline, name.segment);
    let system_id = Some(control.system_id);
    let expect = SegmentExpect { timeline, segment, size: control.segment_size, system_id };
    let scan = scan_segment(&bytes, expect, &mut ()).unwrap();
    assert_eq!((scan.first_page_timeline, scan.undecodable), (TimelineId::FIRST, 0));
    assert!(scan.end > end && scan.restore_points.iter().any(|point| point.3 == b"on two"));
    let old = scan_segment(&bytes, SegmentExpect { timeline: TimelineId::FIRST, ..expect }, &mut ()).unwrap();
    assert!(old.end <= scan.end, "a page of timeline 2 is not taken for one of timeline 1");
}

/// Against the server's own functions, which every version has.
fn check_control_running(server: &Server) {
    let control = server.control();
    let said = server.sql(
        "select system_identifier, pg_control_version, catalog_version_no, checkpoint_lsn, redo_lsn, timeline_id,
            prev_timeline_id, full_page_writes, extract(epoch from checkpoint_time)::bigint, min_recovery_end_lsn,
            min_recovery_end_timeline, backup_start_lsn, backup_end_lsn, end_of_backup_record_required,
            database_block_size, blocks_per_segment, wal_block_size, bytes_per_wal_segment, data_page_checksum_version,
            current_setting('max_connections'), current_setting('max_worker_processes'),
            current_setting('max_wal_senders'), current_setting('max_prepared_transactions'),
            current_setting('max_locks_per_transaction'), current_setting('server_version_num')::int / 10000
         from pg_control_system(), pg_control_checkpoint(), pg_control_recovery(), pg_control_init()",
    );
    let flag = |value| if value { "t" } else { "f" };
    let read = [
        control.system_id.to_string(),
        control.control_version.to_string(),
        control.catalog_version.to_string(),
        control.checkpoint.to_string(),
        control.checkpoint_redo.to_string(),
        control.checkpoint_timeline.to_string(),
        control.prev_timeline.to_string(),
        flag(control.full_page_writes).to_string(),
        control.checkpoint_time.to_string(),
        control.min_recovery_point.to_string(),
        control.min_recovery_timeline.to_string(),
        control.backup_start_point.to_string(),
        control.backup_end_point.to_string(),
        flag(control.backup_end_required).to_string(),
        control.block_size.to_string(),
        control.relation_segment_blocks.to_string(),
        control.wal_block_size.to_string(),
        control.segment_size.bytes().to_string(),
        control.data_checksum_version.to_string(),
        control.max_connections.to_string(),
        control.max_worker_processes.to_string(),
        control.max_wal_senders.to_string(),
        control.max_prepared_xacts.to_string(),
        control.max_locks_per_xact.to_string(),
        control.major.to_string(),
    ];
    assert_eq!(said.trim(), read.join("|"));
    assert_eq!(control.state, ControlState::InProduction);
    assert_eq!(control.wal_level, 1);
}

/// Against `pg_controldata`, where this version brings it.
fn check_control_text(server: &Server, control: &ControlFile) {
    if !server.bin_dir.join("pg_controldata").exists() {
        return;
    }
    let text = server.run("pg_controldata", &[&server.data_text()]);
    let said = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_string()
    };
    assert_eq!(said("Database cluster state"), "shut down");
    assert_eq!(said("Latest checkpoint location"), control.checkpoint.to_string());
    assert_eq!(said("wal_level setting"), "replica");
    assert_eq!(said("track_commit_timestamp setting"), if control.track_commit_timestamp { "on" } else { "off" });
    assert_eq!(said("max_locks_per_xact setting"), "77");
}

/// Returns where the WAL ends.
fn check_wal(server: &Server, control: &ControlFile) -> Lsn {
    let pg_wal = server.data().join("pg_wal");
    let chain = chain::read(&pg_wal, control.segment_size, control.system_id);
    chain.assert_linked();
    assert!(chain.records.len() > 10_000 && chain.joined > 0, "{} {}", chain.records.len(), chain.joined);
    assert!(chain.scans.iter().all(|scan| scan.major == control.major));
    // The last record is the shutdown checkpoint that pg_control names.
    let last = chain.scans.last().unwrap();
    assert_eq!(last.last_record.unwrap().0, control.checkpoint);
    assert!(matches!(&last.tail, Tail::Ended { at, .. } if *at == last.end), "{:?}", last.tail);
    assert_eq!(last.checkpoints_last_time, Some(control.checkpoint_time));
    let points: Vec<_> =
        chain.scans.iter().flat_map(|scan| &scan.restore_points).map(|point| point.3.as_slice()).collect();
    assert_eq!(points, [&b"before the update"[..], b"after"]);
    let kinds =
        |kind| chain.records.values().filter(|seen| seen.transaction.is_some_and(|end| end.kind == kind)).count();
    assert_eq!(kinds(pgark_pg::wal::TransactionEndKind::CommitPrepared), 1);
    assert_eq!(kinds(pgark_pg::wal::TransactionEndKind::AbortPrepared), 1);
    assert!(chain.scans.iter().any(|scan| scan.tail == Tail::Switch));
    assert!(chain.scans.iter().any(|scan| scan.leading.as_ref().is_some_and(|leading| leading.end.is_none())));
    let mut compared = "not compared with pg_waldump".to_string();
    if server.bin_dir.join("pg_waldump").exists() {
        compared = format!("{} equal to pg_waldump", waldump::assert_equal(server, &pg_wal, &chain));
    }
    println!(
        "version {}: {} records, {} across segments, {compared}",
        control.major,
        chain.records.len(),
        chain.joined
    );
    last.end
}

/// Every page of every relation has the checksum that the server wrote; returns how many were checked.
fn check_pages(server: &Server) -> u64 {
    let mut checked = 0;
    let data = server.data();
    let mut dirs = vec![data.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let path = entry.path();
            let relative = path.strip_prefix(&data).unwrap().to_str().unwrap();
            let PathClass::Relation(file) = classify(relative.as_bytes()) else { continue };
            for (page, block) in fs::read(&path).unwrap().chunks(PAGE_SIZE).zip(0..) {
                let verdict = check_page(page, BlockNo(file.segment * 131_072 + block), Lsn(u64::MAX));
                assert!(matches!(verdict, PageVerdict::Ok | PageVerdict::New), "{relative} {block}: {verdict:?}");
                checked += u64::from(verdict == PageVerdict::Ok);
            }
        }
    }
    checked
}

/// A poisoned control file is valid, but the server does not start from it.
fn check_poisoned(server: &Server) {
    let path = server.data().join("global/pg_control");
    let good = fs::read(&path).unwrap();
    let poisoned = ControlFile::poison(&good).unwrap();
    assert_eq!(poisoned.len(), good.len());
    assert!(ControlFile::parse(&poisoned).unwrap().is_poisoned());
    fs::write(&path, poisoned).unwrap();
    let log = server.root.join("log-poisoned");
    let output = server.as_owner(&server.bin("pg_ctl"), |command| {
        command.arg("-w").arg("-D").arg(server.data()).arg("-l").arg(&log).arg("start");
    });
    assert!(!output.status.success(), "the server started from a poisoned pg_control");
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("checkpoint record") || log.contains("checkpoint location"), "{log}");
}
