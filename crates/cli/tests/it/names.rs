//! Names and file systems at their worst: tablespaces, small segments, databases that look like options or connection
//! strings, and things in PGDATA that PostgreSQL never put there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use pgark_testkit::{
    Ending, Recovered, Server, StopMode, Target, as_postgres, give_to_postgres, is_root, quote_identifier, skip,
    tree_of,
};

use crate::site::Site;

const DATABASES: [&str; 8] = [
    "port=1 dbname=postgres",
    "--file=pgark-was-here",
    "it's \"quoted\" \\ %p %f",
    "new\nline",
    "$(touch pgark-was-here)`id`;",
    "[#]{}!*?~",
    "naïve 🐘",
    "sixty-three bytes long, which is the most that a name may have.",
];
/// Name of a tablespace and of its directory.
const TABLESPACES: [(&str, &str); 3] =
    [("plain", "ts plain"), ("it's \"odd\" %s", "ts \"double\" \\ %p"), ("🐘\nnext", "ts new\nline 🐘")];

#[test]
fn segments_of_1_mb_three_tablespaces_and_nasty_names_come_back_exactly() {
    for server in majors_or_skip!() {
        nasty_names(&server);
    }
}

fn nasty_names(server: &Server) {
    let site = Site::new(server, "names", |builder| {
        TABLESPACES.iter().fold(builder.wal_segsize_mb(1), |builder, (name, dir)| builder.tablespace(name, dir))
    });
    let databases = create_databases(&site);
    site.ledger.write_rows(&site.cluster, 5);
    site.pgark.backup("full");
    for database in &databases {
        site.cluster.psql_db(database, "insert into here select generate_series(1, 500)");
    }
    site.ledger.write_rows(&site.cluster, 5);
    let backup = site.pgark.run(["backup", "--type", "incr", "--annotate", "why=it's \"so\" % \\ 🐘"]);
    backup.expect_code(0);
    for database in &databases {
        site.cluster.psql_db(database, "delete from here where i % 7 = 0");
    }
    let latest = site.archive_all();

    tablespaces_of_the_source_are_not_touched(&site, &latest);
    let maps = tablespace_maps(&site, "r");
    let maps: Vec<&str> = maps.iter().map(String::as_str).collect();
    let recovered = site.restore("r", &latest, &maps);
    site.ledger.assert_exact(&recovered, &latest, 1);
    for database in &databases {
        let count = "select count(*), sum(i), (select count(*) from there) from here";
        let source = site.cluster.psql_db(database, count);
        assert_eq!(recovered.psql_db(database, count), source, "in database {database:?}");
    }
    let listing = "select spcname from pg_tablespace order by 1";
    assert_eq!(recovered.psql(listing), site.cluster.psql(listing));
    for (_, directory) in TABLESPACES {
        assert!(
            new_location(&site, "r", directory).read_dir().is_ok_and(|mut list| list.next().is_some()),
            "{directory:?} is empty"
        );
    }
    assert!(!Path::new("/pgark-was-here").exists() && !site.cluster.data_dir().join("pgark-was-here").exists());
    recovered.amcheck();
    recovered.verify_checksums();
}

/// Each database has a table in the default tablespace and one in a named tablespace.
fn create_databases(site: &Site) -> Vec<&'static str> {
    let mut made = Vec::new();
    for (number, database) in DATABASES.into_iter().enumerate() {
        match site.cluster.try_psql_db("postgres", &format!("create database {}", quote_identifier(database))) {
            Ok(_) => made.push(database),
            // Later releases refuse a line feed in a name; then there is nothing to test.
            Err(why) if database.contains('\n') && why.contains("newline") => continue,
            Err(why) => panic!("create database {database:?}: {why}"),
        }
        let (tablespace, _) = TABLESPACES.get(number % TABLESPACES.len()).expect("a tablespace");
        let role = format!("role {database}").chars().take(40).collect::<String>();
        site.cluster.psql_db(
            database,
            &format!(
                "create table here (i int primary key); insert into here select generate_series(-999, 0);\n\
                 create table there tablespace {} as select * from here; create role {};",
                quote_identifier(tablespace),
                quote_identifier(&role)
            ),
        );
    }
    assert!(made.len() >= DATABASES.len() - 1);
    made
}

fn new_location(site: &Site, name: &str, directory: &str) -> std::path::PathBuf {
    site.scratch.join(format!("{name}-{directory}"))
}

fn tablespace_maps(site: &Site, name: &str) -> Vec<String> {
    let map = |directory: &str| {
        let old = site.cluster.socket_dir().join(directory);
        let new = new_location(site, name, directory);
        ["--tablespace-map".to_owned(), format!("{}={}", old.display(), new.display())]
    };
    TABLESPACES.iter().flat_map(|(_, directory)| map(directory)).collect()
}

/// Without a map the restore would write into the directories of the running cluster.
fn tablespaces_of_the_source_are_not_touched(site: &Site, latest: &Target) {
    site.cluster.psql("checkpoint");
    let (_, directory) = TABLESPACES[0];
    let live = site.cluster.socket_dir().join(directory);
    let before = tree_of(&live);
    let (to, outcome) = site.try_restore("unmapped", latest, &[]);
    outcome.expect_code(4);
    before.assert_same(&tree_of(&live), "a tablespace of the running cluster");
    assert!(!to.exists(), "a refused restore left its directory behind");
}

#[test]
fn foreign_things_in_pgdata_neither_hang_nor_break_a_backup() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "foreign");
    let outside = site.scratch.file("outside", b"not a part of the cluster", 0o600);
    let secret = site.scratch.dir("outside-dir");
    plant_foreign_things(site.cluster.data_dir(), &outside, &secret);
    site.ledger.write_rows(&site.cluster, 5);
    let outcome = site.pgark.run(["backup", "--type", "full"]);
    assert!(matches!(outcome.code, Some(0 | 3)), "{outcome}");
    let latest = site.archive_all();
    // Links out of the data directory are left out with a warning.
    let (to, outcome) = site.try_restore("r", &latest, &[]);
    assert!(outcome.succeeded(), "{outcome}");
    let recovered = Recovered::start(&server, &site.scratch, &to).expect(Ending::Promoted);
    site.ledger.assert_exact(&recovered, &latest, 1);
    let odd = recovered.data_dir().join(OsStr::from_bytes(b"odd \xff\xfe name"));
    assert_eq!(fs::read(odd).expect("a file whose name is not UTF-8"), b"odd");
    for link in ["link-to-file", "link-to-dir"] {
        let path = recovered.data_dir().join(link);
        let followed = fs::symlink_metadata(&path).is_ok_and(|meta| !meta.file_type().is_symlink());
        assert!(!followed, "{link} was followed out of the data directory");
    }
}

fn plant_foreign_things(data: &Path, outside: &Path, outside_dir: &Path) {
    let made = Command::new("mkfifo").arg(data.join("a fifo")).status().expect("mkfifo");
    assert!(made.success());
    // The socket file stays when the listener goes.
    drop(UnixListener::bind(data.join("a socket")).expect("bind a socket"));
    symlink(outside, data.join("link-to-file")).expect("link");
    symlink(outside_dir, data.join("link-to-dir")).expect("link");
    symlink("nowhere", data.join("dangling")).expect("link");
    symlink("circular", data.join("circular")).expect("link");
    for (name, content) in [
        (b"core".as_slice(), b"\x7fELF".as_slice()),
        (b"postgresql.conf~", b"# old"),
        (b"global/pg_control.old", b"stale"),
        (b"base/1/99999.bak", b"not a relation"),
        (b"odd \xff\xfe name", b"odd"),
        (b"-leading dash", b""),
        (b"new\nline", b""),
    ] {
        let path = data.join(OsStr::from_bytes(name));
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        give_to_postgres(&path);
    }
}

#[test]
fn an_unreadable_file_in_pgdata_fails_the_backup_and_is_named() {
    if !is_root() {
        skip!("only root can plant a file that PostgreSQL's user cannot read");
    }
    let server = installed_or_skip!();
    let site = Site::small(&server, "unread");
    site.ledger.write_rows(&site.cluster, 2);
    let path = site.cluster.data_dir().join("base/1/unreadable");
    fs::write(&path, b"x").expect("write");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let outcome = site.pgark.run(["backup", "--type", "full"]);
    assert!(outcome.failed_cleanly() && !matches!(outcome.code, Some(3)), "{outcome}");
    assert!(outcome.stderr.contains("base/1/unreadable"), "the file is not named: {outcome}");
    let info = site.pgark.json(["info"]);
    let complete =
        info["clusters"][0]["backups"].as_array().into_iter().flatten().filter(|one| one["complete"] == true);
    assert_eq!(complete.count(), 0, "{info}");
    fs::remove_file(&path).expect("remove");
    site.pgark.backup("full");
}

/// As Debian lays a cluster out: all configuration lies elsewhere and names the original's directories.
#[test]
fn a_cluster_with_its_configuration_elsewhere_restores_beside_the_original() {
    let server = installed_or_skip!();
    let mut site = Site::small(&server, "debian");
    site.cluster.stop(StopMode::Fast);
    let (data, etc) = (site.cluster.data_dir().to_owned(), site.scratch.dir("etc"));
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), etc.join(name)).expect("move the configuration");
    }
    fs::create_dir(etc.join("conf.d")).expect("conf.d");
    give_to_postgres(&etc.join("conf.d"));
    let quoted = |path: &Path| format!("'{}'", path.display());
    let lines = format!(
        "\ndata_directory = {}\nhba_file = {}\nident_file = {}\nexternal_pid_file = {}\ninclude_dir = 'conf.d'\n",
        quoted(&data),
        quoted(&etc.join("pg_hba.conf")),
        quoted(&etc.join("pg_ident.conf")),
        quoted(&site.scratch.join("original.pid")),
    );
    let mut conf = fs::read_to_string(etc.join("postgresql.conf")).expect("postgresql.conf");
    conf.push_str(&lines);
    fs::write(etc.join("postgresql.conf"), conf).expect("postgresql.conf");
    let pg_ctl = |directory: &Path, words: &[&str]| {
        let mut command = as_postgres(server.program("pg_ctl"));
        command.arg("-D").arg(directory).arg("-w").arg("-l").arg(site.scratch.join("elsewhere.log")).args(words);
        assert!(command.status().expect("pg_ctl").success(), "pg_ctl {words:?}");
    };
    pg_ctl(&etc, &["start"]);
    site.pgark.backup("full");
    site.ledger.write_rows(&site.cluster, 7);
    let latest = site.archive_all();
    let original = fs::read_to_string(site.scratch.join("original.pid")).expect("original.pid");
    let recovered = site.restore("r", &latest, &[]);
    site.ledger.assert_exact(&recovered, &latest, 1);
    assert_eq!(recovered.psql("show data_directory"), recovered.data_dir().display().to_string());
    assert_eq!(fs::read_to_string(site.scratch.join("original.pid")).expect("original.pid"), original);
    assert_eq!(site.cluster.psql("select 1"), "1", "the original was disturbed");
    pg_ctl(&data, &["-m", "fast", "stop"]);
}
