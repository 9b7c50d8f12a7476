//! `examples/fullsystem.toml`'s data: a database, its configuration and the files that it speaks of, in one backup; everything
//! lost; everything, or any part, back.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgark_testkit::{Outcome, Pgark, as_postgres};
use serde_json::Value;

use crate::files::{NEVER, app, facts, wanted};
use crate::site::{Site, alerts_into};

fn failed(outcome: Outcome, code: i32, name: &str) {
    let outcome = outcome.expect_code(code);
    assert!(outcome.stdout.contains(name) || outcome.stderr.contains(name), "{name} is not said\n{outcome}");
}

const EXAMPLE: &str = include_str!("../../../../examples/fullsystem.toml");

/// The example with the places of this test, and nothing from the environment.
pub fn configured(site: &Site, app: &Path) -> Pgark {
    let places = [
        ("\"/var/lib/pgark\"", format!("\"{}\"", site.pgark.repo().display())),
        ("\"/etc/pgark/passphrase\"", format!("\"{}\"", site.pgark.passphrase_file().display())),
        ("\"/var/run/postgresql\"", format!("\"{}\"", site.cluster.socket_dir().display())),
        ("port = 5432", format!("port = {}", site.cluster.port())),
        ("\"/srv/app/", format!("\"{}/", app.display())),
    ];
    let text = places.iter().fold(EXAMPLE.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    let text = alerts_into(&site.scratch.join("told"), &text);
    without_environment(site, &site.scratch.file("pgark.toml", text.as_bytes(), 0o600))
}

fn without_environment(site: &Site, config: &Path) -> Pgark {
    let bare = ["PGARK_REPO", "PGARK_PASSPHRASE_FILE", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE"];
    bare.iter().fold(site.pgark.clone(), |pgark, name| pgark.without_env(name)).env("PGARK_CONFIG", config)
}

/// A service that is told by variables where everything is.
#[test]
fn the_variables_of_a_deployment_are_enough() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "system-env");
    let app = app(&site);
    site.cluster.psql("create database radiology_db");
    site.cluster.psql_db("radiology_db", "create table t as select generate_series(1, 7) i");
    let text = format!(
        "[clusters.main.system]\ndeployment_variables = true\nconfig_files = [\"{0}/docker-compose.yml\"]\ndirectories = [\"{0}/uploads\"]\n",
        app.display()
    );
    let config = site.scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let place = |name: &str| site.scratch.join(name).display().to_string();
    let pgark = without_environment(&site, &config)
        .env("DB_HOST", site.cluster.socket_dir())
        .env("DB_PORT", site.cluster.port().to_string())
        .env("DB_NAME", "radiology_db")
        .env("DB_USER", "postgres")
        .env("BACKUP_DIR", place("own"))
        .env("BACKUP_ENCRYPTION_KEY", "a key of the deployment")
        .env("REMOTE_BACKUP_ENABLED", "true")
        .env("REMOTE_BACKUP_PATH", place("remote"))
        .env("MAX_BACKUPS", "1");
    pgark.run(["init"]).expect_code(0);
    let first = pgark.json(["backup", "--kind", "system"]);
    let second = pgark.json(["backup", "--kind", "system"]);
    assert_eq!(first["logical"]["databases"][0]["name"], "radiology_db");
    for place in [place("own"), place("remote")] {
        pgark.run(["expire", "--yes", "--repo", &place]).expect_code(0);
        let outcome = pgark.run(["info", "--json", "--repo", &place]);
        let document = outcome.expect_code(0).json();
        let ids: Vec<&Value> =
            document["clusters"][0]["backups"].as_array().expect("backups").iter().map(|b| &b["id"]).collect();
        assert_eq!(ids, [&second["id"]], "{place}");
    }
    failed(pgark.clone().env("BACKUP_ENABLED", "false").run(["backup", "--kind", "system"]), 4, "E-BACKUP-DISABLED");
    failed(pgark.env("BACKUP_ENCRYPTION_KEY", "another").run(["info"]), 12, "E-KEY-WRONG");
}

#[test]
fn everything_is_lost_and_comes_back() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "system");
    let cluster = &site.cluster;
    let app = app(&site);
    let up = app.join("uploads");
    cluster.psql("create role radio login password 'x'");
    cluster.psql("create database radiology_db owner radio");
    cluster.psql_db(
        "radiology_db",
        "create table studies as select i, md5(i::text) m from generate_series(1, 5000) i; alter table studies owner to radio",
    );
    let pgark = configured(&site, &app);
    let first = pgark.json(["backup", "--kind", "system"]);
    let id = first["id"].as_str().expect("an id").to_owned();
    assert!(id.ends_with('S') && first["kind"] == "system", "{first}");
    assert_eq!(first["logical"]["databases"][0]["name"], "radiology_db");
    assert_eq!(first["logical"]["globals"]["roles"], 2);
    let second = pgark.json(["backup", "--kind", "system"]);
    assert!(second["stored_bytes"].as_u64().is_some_and(|n| n < 40_000), "{second}");
    let wanted = wanted(&up);
    let rows = "select count(*), md5(string_agg(s::text, ',' order by i)), (select pg_get_userbyid(datdba) from pg_database \
                where datname = current_database()) from studies s";
    let table = cluster.psql_db("radiology_db", rows);

    // Asked for something, and not told where it is to go.
    failed(pgark.run(["restore", &id, "--kind", "system"]), 2, "E-DATABASE-TO");
    failed(pgark.run(["restore", &id, "--kind", "system", "--files"]), 2, "E-FILES-TO");
    failed(pgark.run(["restore", &id, "--kind", "system", "--in-place"]), 4, "E-CONFIRM");
    pgark.run(["restore", &id, "--kind", "system", "--in-place", "--dry-run"]).expect_code(0);

    // Everything is lost.
    cluster.psql("drop database radiology_db");
    cluster.psql("drop role radio");
    fs::remove_dir_all(&app).expect("everything");
    let document =
        pgark.run(["restore", &id, "--kind", "system", "--in-place", "--yes", "--json"]).expect_code(0).json();
    assert_eq!(document["databases"][0]["globals_created"][0], "role 'radio'", "{document}");
    assert_eq!(cluster.psql_db("radiology_db", rows), table);
    assert_eq!(facts(&up), wanted);
    for name in NEVER {
        assert!(!up.join(name).exists(), "{name}");
    }
    assert!(!app.join(".env").exists() && app.join(".env.example").exists() && up.join(".env.example").exists());
    assert_eq!(fs::read(app.join("docker-compose.yml")).expect("read"), b"services: {}\n");

    parts(&site, &pgark, &app, &id, &table, rows);
    export(&site, &pgark, &up, &id, &table, rows);
    pgark.run(["verify"]).expect_code(0);
}

/// Any of database, configuration and files.
fn parts(site: &Site, pgark: &Pgark, app: &Path, id: &str, table: &str, rows: &str) {
    let restore = |words: &[&str]| {
        let words = [&["restore", id, "--kind", "system", "--yes", "--json"], words].concat();
        pgark.run(words).expect_code(0).json()
    };
    let spoil = || {
        site.cluster.psql_db("radiology_db", "delete from studies where i > 10");
        fs::write(app.join("docker-compose.yml"), b"spoiled").expect("write");
        fs::write(app.join("uploads/2025/000.txt"), b"spoiled").expect("write");
    };
    let state = || {
        let whole = site.cluster.psql_db("radiology_db", rows) == table;
        let config = fs::read(app.join("docker-compose.yml")).expect("read") != b"spoiled";
        let files = fs::read(app.join("uploads/2025/000.txt")).expect("read") != b"spoiled";
        (whole, config, files)
    };
    spoil();
    assert_eq!(state(), (false, false, false));
    restore(&["--in-place", "--config"]);
    assert_eq!(state(), (false, true, false));
    restore(&["--in-place", "--files"]);
    assert_eq!(state(), (false, true, true));
    let document = restore(&["--in-place", "--database"]);
    assert_eq!(state(), (true, true, true));
    assert!(document["databases"][0]["safety_backup"].is_string() && document["files"].is_null(), "{document}");
    spoil();
    restore(&["--in-place", "--config", "--files"]);
    assert_eq!(state(), (false, true, true));
    // Beside what is there.
    let to = site.scratch.join("beside").display().to_string();
    restore(&["--to", &to, "--to-database", "beside"]);
    assert_eq!(site.cluster.psql_db("beside", rows), table);
    assert!(Path::new(&format!("{to}/config{}/docker-compose.yml", app.display())).is_file());
    restore(&["--in-place", "--database"]);
    assert_eq!(state(), (true, true, true));
}

/// The form that others can open without us.
fn export(site: &Site, pgark: &Pgark, up: &Path, id: &str, table: &str, rows: &str) {
    let dir = site.scratch.dir("export");
    let file = dir.join("x.tar.gz");
    let file = file.to_str().expect("UTF-8");
    let newest = pgark.json(["export", "--to", file, "--dry-run"]);
    assert!(newest["kind"] == "system" && newest["backup"].as_str() > Some(id), "{newest}");
    let document = pgark.json(["export", id, "--to", file]);
    let name = document["directory"].as_str().expect("a name").to_owned();
    assert!(
        name.starts_with("radiology_backup_20") && name.len() == "radiology_backup_20250104_143022".len(),
        "{name}"
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    failed(pgark.run(["export", id, "--to", file]), 4, "E-EXPORT-EXISTS");
    let mut tar = as_postgres("tar");
    tar.args(["--xattrs", "--xattrs-include=user.*", "-xpf", file, "-C"]).arg(&dir);
    assert!(tar.status().expect("tar").success());
    let top = dir.join(&name);
    let metadata: Value =
        serde_json::from_slice(&fs::read(top.join("backup_metadata.json")).expect("metadata")).expect("JSON");
    assert_eq!(
        (&metadata["backup_name"], &metadata["database"]["success"]),
        (&Value::from(name.as_str()), &Value::from(true))
    );
    assert_eq!(
        (&metadata["configuration"]["files_count"], &metadata["files"]["directories_count"]),
        (&Value::from(2), &Value::from(1))
    );
    assert!(metadata["database"]["size_mb"].is_number() && metadata["backup_size_mb"].is_number(), "{metadata}");
    let timestamp = metadata["timestamp"].as_str().expect("a time");
    assert_eq!(metadata["database"]["file"], format!("database_{timestamp}.sql"));
    // Seconds alone are in a tar, and it was unpacked by the same user.
    let found = facts(&top.join("files").join(up.strip_prefix("/").expect("absolute")));
    let wanted = facts(up);
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, facts) in &wanted {
        assert!(found[path].same_but_for_times(facts), "{path:?}");
    }
    site.cluster.psql("create database loaded");
    let mut psql = as_postgres(site.server.program("psql"));
    psql.arg(format!("--dbname={}", site.cluster.connection_string("loaded")));
    psql.args(["-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(top.join(format!("database_{timestamp}.sql")));
    run(psql);
    let loaded = site.cluster.psql_db("loaded", rows);
    assert_eq!(loaded.split('|').take(2).collect::<Vec<_>>(), table.split('|').take(2).collect::<Vec<_>>());
}

fn run(mut command: Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn files_stay_as_they_are_when_a_database_is_not_what_it_was() {
    let server = installed_or_skip!();
    let site = Site::small(&server, "system-21");
    let app = app(&site);
    site.cluster.psql("create database radiology_db");
    // The triggers of a foreign key that are off come back switched on.
    site.cluster.psql_db(
        "radiology_db",
        "create table off (i int primary key, j int references off); alter table off disable trigger all",
    );
    let config = format!(
        "[clusters.main.logical]\ntruth = \"hashes\"\n[clusters.main.system]\nprefix = \"r\"\ndatabase = \"radiology_db\"\n\
         config_files = [\"{0}/docker-compose.yml\"]\ndirectories = [\"{0}/uploads\"]\n",
        app.display()
    );
    let config = site.scratch.file("pgark.toml", config.as_bytes(), 0o600);
    let pgark = site.pgark.clone().env("PGARK_CONFIG", &config);
    let id = pgark.json(["backup", "--kind", "system"])["id"].as_str().expect("an id").to_owned();
    fs::write(app.join("docker-compose.yml"), b"newer").expect("write");
    site.cluster.psql_db("radiology_db", "create table newer()");
    let restore = ["restore", id.as_str(), "--kind", "system", "--in-place", "--yes", "--json"];
    let document = pgark.run(restore).expect_code(21).json();
    assert_eq!(document["databases"][0]["placed"], false, "{document}");
    assert!(document["files"].is_null(), "{document}");
    assert_eq!(fs::read(app.join("docker-compose.yml")).expect("read"), b"newer");
    site.cluster.psql_db("radiology_db", "select * from newer");
    let left = fs::read_dir(&app)
        .expect("list")
        .filter(|e| e.as_ref().expect("an entry").file_name().to_string_lossy().contains("pgark"));
    assert_eq!(left.count(), 0, "what was staged is still there");
    let loaded = document["databases"][0]["left_as"].as_str().expect("a name");
    site.cluster.psql(&format!("drop database \"{loaded}\""));
    pgark.run([restore.as_slice(), &["--no-validate"]].concat()).expect_code(0);
    assert_eq!(fs::read(app.join("docker-compose.yml")).expect("read"), b"services: {}\n");
}
