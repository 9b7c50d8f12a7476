//! Drills on every major version: a sound cluster is green as far as that version's examiners see, and each planted defect is found
//! by the one that can see it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pgark_testkit::{Server, StopMode, give_to_postgres};
use serde_json::Value;

use crate::site::{Site, strings};

/// `stale` has one row, whose page the visibility map calls all-visible.
const TABLES: &str = "create table one (i int primary key); insert into one select generate_series(1, 200); \
    create table two (i int primary key); insert into two select generate_series(1001, 1200); \
    create table stale (i int); insert into stale values (1), (2); \
    create table broken (i int); insert into broken select generate_series(1, 100); \
    create table twice (i int); insert into twice values (1), (1), (2); create index twice_i on twice (i); \
    create function plain(text) returns text language sql immutable as 'select lower($1)'; \
    create function by_name(text) returns text language plpgsql immutable as 'begin return plain($1); end'; \
    create table named (t text); insert into named values ('A'), ('B')";

/// Since 14, which reads tables.
const OLDER_AMCHECK: &str = "create extension amcheck version '1.2'";
const FIRST_WITH_VERIFY_HEAPAM: u32 = 14;
/// `CREATE INDEX` finds no functions by a `search_path` any more; `bt_index_check` looks for equal entries of unique indexes.
const FIRST_WITH_SAFE_PATHS_AND_CHECKUNIQUE: u32 = 17;

fn texts(document: &Value) -> Vec<String> {
    let all = document["reasons"].as_array().into_iter().flatten();
    all.map(|r| format!("{} {}", r["code"].as_str().unwrap_or("?"), r["what"].as_str().unwrap_or("?"))).collect()
}

fn file_of(site: &Site, relation: &str) -> PathBuf {
    site.cluster.data_dir().join(site.cluster.psql_db("app", &format!("select pg_relation_filepath('{relation}')")))
}

fn write_at(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.write_all_at(bytes, at).expect("written");
}

#[test]
fn every_major_is_green_when_it_is_sound_and_red_for_what_its_examiners_see() {
    majors_or_skip!().iter().for_each(green_then_red);
}

fn green_then_red(server: &Server) {
    let major = server.major();
    let mut site = Site::new(server, &format!("drill{major}"), |b| {
        b.wal_segsize_mb(1).checksums(false).conf("autovacuum = off").conf("full_page_writes = off")
    });
    let (psql, dir) = (|sql: &str| site.cluster.psql_db("app", sql), site.scratch.dir("d"));
    let bin = server.program("postgres").parent().expect("a directory").display().to_string();
    let drill = |id: &str, code: i32| {
        let words = ["drill", "--json", "--backup", id, "--target-immediate", "--pg-bin", &bin, "--dir"];
        let outcome = site.elsewhere.run([&words[..], &[&dir.display().to_string()]].concat()).expect_code(code);
        assert_eq!(fs::read_dir(&dir).expect("listed").count(), 0, "something is left of {outcome}");
        outcome.json()
    };
    let evidence = |id: &str| site.elsewhere.backup_info(id)["evidence"].clone();
    site.cluster.psql("create database app");
    psql(TABLES);
    let reads_tables = major >= FIRST_WITH_VERIFY_HEAPAM;
    if reads_tables {
        psql(OLDER_AMCHECK);
    }
    psql("vacuum (freeze, analyze)");

    // Sound: read with what the server has now, whatever version of it the database was given once.
    let sound = site.pgark.backup("full");
    let found = drill(&sound, if reads_tables { 0 } else { 3 });
    assert_eq!(texts(&found), [""; 0], "PostgreSQL {major}: {found:#}");
    let unread = strings(&found["not_checked"]);
    assert_eq!(unread.is_empty(), reads_tables, "PostgreSQL {major}: {found:#}");
    assert!(unread.iter().all(|why| why.contains("amcheck reads heaps from PostgreSQL 14 on")), "{found:#}");
    assert_eq!(evidence(&sound), if reads_tables { "drilled" } else { "replayed" }, "PostgreSQL {major}");
    let databases = found["databases"].as_array().expect("databases");
    let app = databases.iter().find(|d| d["database"] == "app").expect("the database");
    for name in ["tables are whole (amcheck)", "visibility maps are right (pg_visibility)"] {
        let check = app["checks"].as_array().into_iter().flatten().find(|c| c["name"] == name).expect(name);
        let is_read = check["checked"].as_u64() > Some(0);
        assert_eq!(is_read, reads_tables || !name.starts_with("tables"), "PostgreSQL {major}, {name}: {app:#}");
    }
    if reads_tables {
        assert_eq!(psql("select extversion from pg_extension where extname = 'amcheck'"), "1.2", "production's own");
        // Where nothing may be borrowed, what is there does not read tables: that is no damage.
        let words = ["validate", "--database", "app", "--amcheck", "installed", "--json"];
        let found = site.pgark.run(words).expect_code(3).stdout;
        assert!(found.contains("ALTER EXTENSION amcheck UPDATE"), "PostgreSQL {major}: {found}");
    }

    // An index of another table, a map that was not told, a row longer than its page, a value twice in what is said to be unique. And one
    // that is sound, and cannot be compared: what its expression calls is found by a search_path alone.
    psql(
        "update pg_index set indisunique = true where indexrelid = 'twice_i'::regclass; delete from stale where i = 1",
    );
    let has_path = major < FIRST_WITH_SAFE_PATHS_AND_CHECKUNIQUE;
    if has_path {
        psql("create index named_by on named (by_name(t))");
    }
    let (one, two, broken) = (file_of(&site, "one_pkey"), file_of(&site, "two_pkey"), file_of(&site, "broken"));
    let map = PathBuf::from(format!("{}_vm", file_of(&site, "stale").display()));
    site.cluster.stop(StopMode::Fast);
    fs::copy(&one, &two).expect("copied");
    give_to_postgres(&two);
    // The two bits of the first page; the length of the second line pointer.
    write_at(&map, 24, &[0b11]);
    write_at(&broken, 28, &0x0ffe_9fc0u32.to_le_bytes());
    site.cluster.start();
    let id = site.pgark.backup("full");
    let found = drill(&id, 21);
    let reasons = texts(&found);
    let is_seen = |what: &str| reasons.iter().any(|r| r.starts_with("E-DRILL-CHECK ") && r.contains(what));
    for (what, expected) in [
        ("B-tree indexes agree with their tables (amcheck): ", true),
        ("two_pkey", true),
        ("public.stale: ", true),
        ("tables are whole (amcheck): public.broken", reads_tables),
        ("twice_i", !has_path),
        ("named_by", false),
    ] {
        assert_eq!(is_seen(what), expected, "PostgreSQL {major}, {what}: {found:#}");
    }
    let checks = found["databases"].as_array().into_iter().flatten().flat_map(|d| d["checks"].as_array());
    let unread: Vec<String> = checks.flatten().flat_map(|c| strings(&c["reasons"])).collect();
    assert_eq!(unread.iter().any(|why| why.contains("public.named_by: ")), has_path, "PostgreSQL {major}: {found:#}");
    assert_eq!(evidence(&id), "replayed", "PostgreSQL {major}");
}
