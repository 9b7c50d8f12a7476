//! `truth` and `validate`: a restored database is green, and each planted defect turns it red for the right reason.

mod checks;
mod finer;
mod traps;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgark_testkit::{
    Outcome, Pgark, Scratch, Server, StopMode, TestCluster, as_postgres, connection_string, quote_identifier,
    run_bounded,
};
use serde_json::Value;

use crate::site::{BINARY, strings};

const SCHEMA: &str = include_str!("schema.sql");
const CLIENTS: &str = "/usr/lib/postgresql/15/bin";

/// A server with a source database, and the program connected to it.
struct Source {
    cluster: TestCluster,
    pgark: Pgark,
    scratch: Scratch,
}

impl Source {
    fn new(server: &Server, label: &str) -> Source {
        let scratch = Scratch::new(label);
        let cluster = TestCluster::builder(server).conf("max_locks_per_transaction = 256").start(&scratch, "c");
        let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo")).on(&cluster);
        Source { cluster, pgark, scratch }
    }

    fn filled(server: &Server, label: &str) -> Source {
        let source = Source::new(server, label);
        source.cluster.psql("create database src");
        source.cluster.psql_db("src", SCHEMA);
        source
    }

    fn truth(&self, database: &str, more: &[&str]) -> PathBuf {
        let path = self.scratch.join(format!("truth-{}", database.len()));
        let path_text = path.display().to_string();
        self.pgark.run([&["truth", "--database", database, "--to", &path_text], more].concat()).expect_code(0);
        path
    }

    /// Dumps and restores as an administrator would, into a database of another name.
    fn dump_and_restore(&self, from: &str, to: &str) {
        let dump = self.scratch.join(format!("{}.dump", to.len()));
        let connection = |database: &str| {
            format!("--dbname={}", connection_string(self.cluster.socket_dir(), self.cluster.port(), database))
        };
        let mut command = as_postgres(format!("{CLIENTS}/pg_dump"));
        succeed(command.arg("--format=custom").arg("--file").arg(&dump).arg(connection(from)));
        self.cluster.psql(&format!("create database {}", quote_identifier(to)));
        let mut command = as_postgres(format!("{CLIENTS}/pg_restore"));
        succeed(command.arg("--exit-on-error").arg(connection(to)).arg(&dump));
    }

    fn validate(&self, database: &str, truth: Option<&Path>, more: &[&str]) -> Outcome {
        let mut words = vec!["validate".to_owned(), format!("--database={database}"), "--json".into()];
        words.extend(truth.into_iter().flat_map(|t| ["--truth".to_owned(), t.display().to_string()]));
        words.extend(more.iter().map(|word| (*word).to_owned()));
        self.pgark.run(words)
    }

    /// A copy of a database, changed by this SQL.
    fn copy(&self, from: &str, to: &str, sql: &str) {
        self.cluster.psql(&format!("create database {} template {}", quote_identifier(to), quote_identifier(from)));
        self.cluster.psql_db(to, sql);
    }
}

fn succeed(command: &mut std::process::Command) {
    let shown = format!("{command:?}");
    let command = std::mem::replace(command, std::process::Command::new("true"));
    let output = run_bounded(command, b"", Duration::from_secs(120)).expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.is_some_and(|s| s.success()), "{shown}: {stderr}");
}

fn checks(document: &Value) -> &Vec<Value> {
    document["databases"][0]["checks"].as_array().unwrap_or_else(|| panic!("no checks in {document}"))
}

fn named(document: &Value, outcome: &str) -> BTreeSet<String> {
    let these = checks(document).iter().filter(|check| check["outcome"] == outcome);
    these.filter_map(|check| check["name"].as_str().map(str::to_owned)).collect()
}

fn check<'d>(document: &'d Value, name: &str) -> &'d Value {
    checks(document).iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {document}"))
}

#[test]
fn a_rich_database_with_odd_names_is_equal_after_dump_and_restore() {
    let server = installed_or_skip!();
    let source = Source::filled(&server, "truth");
    let truth = source.truth("src", &["--hash"]);
    for name in ["dst", "port=1 dbname=postgres", "--file=x \"';\n"] {
        source.dump_and_restore("src", name);
        let outcome = source.validate(name, Some(&truth), &["--amcheck", "borrowed"]).expect_code(0);
        let document = outcome.json();
        // The rows of a foreign table lie elsewhere: nobody says that they are right.
        // What another role owns is not planned over: its views, generated columns and unused sequences are left alone.
        let left = BTreeSet::from(
            [
                "rows of foreign tables",
                "contents of materialized views",
                "generated columns",
                "positions of sequences",
                "indexes lead to as many rows as tables have",
            ]
            .map(str::to_owned),
        );
        assert_eq!(named(&document, "not_checked"), left, "{document}");
        assert_eq!(named(&document, "ok").len() + left.len(), checks(&document).len(), "{document}");
        assert!(check(&document, "rows")["checked"].as_u64() >= Some(14), "{document}");
        assert!(check(&document, "B-tree indexes agree with their tables (amcheck)")["checked"].as_u64() > Some(100));
    }
    // Nothing was installed for good, and the source is equal to itself.
    assert_eq!(
        source
            .cluster
            .psql_db("dst", "select count(*) from pg_extension where extname in ('amcheck', 'pg_visibility')"),
        "0"
    );
    assert_eq!(source.cluster.psql_db("dst", "select count(*) from pg_namespace where nspname like 'pgark%'"), "0");
    source.validate("src", Some(&truth), &["--amcheck", "off"]).expect_code(0);
    assert!(!Path::new("/x").exists());
}

/// A name, what is done to the database, and the checks that then fail.
const DEFECTS: [(&str, &str, &[&str]); 21] = [
    (
        "missing row",
        "delete from app.orders_2025 where id = (select min(id) from app.orders_2025)",
        &["rows", "contents"],
    ),
    ("changed value", "update app.customers set raw = raw || '\\x00' where id = 7", &["contents"]),
    (
        "swapped values",
        "update app.customers c set doc = o.doc from app.customers o where c.id in (7, 8) and o.id = 15 - c.id",
        &["contents"],
    ),
    ("extra row", "insert into app.parent values (1, 'p')", &["rows", "contents"]),
    ("dropped index", "drop index app.trigrams", &["indexes"]),
    (
        "invalid index",
        "update pg_index set indisvalid = false where indexrelid = 'app.trigrams'::regclass",
        &["indexes are valid"],
    ),
    (
        "sequence behind",
        "select setval('app.orders_id_seq', 5)",
        &["positions of sequences", "sequences are ahead of their columns"],
    ),
    ("wrong owner", "alter table app.orders owner to postgres", &["owners"]),
    ("missing extension", "drop extension pg_trgm cascade", &["extensions", "indexes"]),
    (
        "invalid constraint",
        "update pg_constraint set convalidated = false where conname = 'no \"bad\" names'",
        &["constraints are validated", "definitions"],
    ),
    ("missing constraint", "alter table app.customers drop constraint \"no \"\"bad\"\" names\"", &["constraints"]),
    ("disabled trigger", "alter table app.customers disable trigger \"note it\"", &["triggers and rules"]),
    ("disabled foreign key", "alter table app.orders_2025 disable trigger all", &["triggers and rules"]),
    ("row security off", "alter table app.customers disable row level security", &["row security"]),
    (
        "revoked",
        "revoke select on app.customers from \"it's \"\"reader\"\"; drop role postgres\" cascade",
        &["privileges"],
    ),
    ("large object", "select lo_put(70002, 5, 'x')", &["large objects"]),
    ("missing table", "drop table app.empty cascade", &["tables", "constraints", "indexes", "triggers and rules"]),
    ("extra table", "create table app.new_one (i int)", &["tables"]),
    (
        "function",
        "create or replace function app.twice(int) returns int language sql immutable as 'select $1 * 3'",
        &["definitions"],
    ),
    ("enumeration", "alter type app.mood add value 'new'", &["definitions"]),
    ("view", "create or replace view app.names as select id, name from app.customers where age > 4", &["definitions"]),
];

#[test]
fn each_planted_defect_turns_validation_red_for_the_right_reason() {
    let server = installed_or_skip!();
    let source = Source::filled(&server, "defects");
    let truth = source.truth("src", &["--hash"]);
    source.dump_and_restore("src", "dst");
    for (name, sql, expected) in DEFECTS {
        source.copy("dst", name, sql);
        let document = source.validate(name, Some(&truth), &["--amcheck", "off"]).expect_code(21).json();
        assert_eq!(document["outcome"], "failed", "{name}");
        let expected: BTreeSet<String> = expected.iter().map(|&n| n.to_owned()).collect();
        let mut failed = named(&document, "failed");
        // What hangs on a table that is gone is gone, too.
        if name == "missing table" {
            failed.retain(|check| expected.contains(check));
        }
        assert_eq!(failed, if name == "missing table" { failed.clone() } else { expected }, "{name}: {document}");
        assert!(!failed.is_empty(), "{name}");
        for check in checks(&document).iter().filter(|check| check["outcome"] == "failed") {
            assert!(!strings(&check["details"]).is_empty(), "{name}: {check}");
        }
        source.cluster.psql(&format!("drop database {}", quote_identifier(name)));
    }
    // What only went on is no defect.
    source.copy("dst", "went on", "select nextval('app.shared'), nextval('app.down'), nextval('app.orders_id_seq')");
    source.validate("went on", Some(&truth), &["--amcheck", "off"]).expect_code(0);
}

#[test]
fn what_was_not_checked_is_never_ok() {
    let server = installed_or_skip!();
    let source = Source::filled(&server, "unchecked");
    // A role that may read one table, and of another what its policies let it see.
    source.cluster.psql_db(
        "src",
        "create role lowly login; grant usage on schema app to lowly; grant select on app.parent, app.customers to lowly",
    );
    // Without extensions amcheck cannot look, without hashes contents cannot be compared.
    let truth = source.truth("src", &[]);
    let document = source.validate("src", Some(&truth), &[]).expect_code(3).json();
    let not_checked = named(&document, "not_checked");
    for name in ["contents", "tables are whole (amcheck)", "visibility maps are right (pg_visibility)"] {
        assert!(not_checked.contains(name), "{name}: {document}");
    }
    assert!(strings(&check(&document, "contents")["reasons"]).iter().any(|r| r.contains("without hashes")));
    assert!(named(&document, "failed").is_empty());
    let flags = ["--user", "lowly", "--amcheck", "off"];
    let document = source.validate("src", Some(&truth), &flags).expect_code(3).json();
    let rows = check(&document, "rows");
    assert_eq!((&rows["outcome"], &rows["checked"]), (&"not_checked".into(), &1.into()), "{document}");
    assert!(strings(&rows["reasons"]).iter().any(|r| r.contains("app.customers") && r.contains("row-level security")));
    assert!(named(&document, "failed").is_empty(), "{document}");
}

#[test]
fn damage_of_an_index_is_found_by_reading_it() {
    let server = installed_or_skip!();
    let mut source = Source::filled(&server, "damage");
    let truth = source.truth("src", &[]);
    source.cluster.psql_db("src", "create extension amcheck; create extension pg_visibility; checkpoint");
    let path = source.cluster.psql_db("src", "select pg_relation_filepath('app.customers_pkey')");
    source.validate("src", None, &[]).expect_code(0);
    source.cluster.stop(StopMode::Fast);
    let file = source.cluster.data_dir().join(path);
    let mut bytes = std::fs::read(&file).expect("the index");
    bytes[8192 + 4000..8192 + 4200].fill(0xA5);
    std::fs::write(&file, bytes).expect("damaged");
    source.cluster.start();
    let document = source.validate("src", Some(&truth), &["--no-hash"]).expect_code(21).json();
    let found = check(&document, "B-tree indexes agree with their tables (amcheck)");
    assert_eq!(found["outcome"], "failed", "{document}");
    assert!(strings(&found["details"]).iter().any(|d| d.contains("app.customers_pkey")), "{found}");
}

#[test]
fn reports_are_written_for_machines_and_people() {
    let server = installed_or_skip!();
    let source = Source::new(&server, "report");
    source.cluster.psql("create database \"<script>alert(1)</script>\"");
    source.cluster.psql_db("<script>alert(1)</script>", "create table t (i int); insert into t values (1)");
    let truth = source.truth("<script>alert(1)</script>", &["--hash"]);
    source.cluster.psql_db("<script>alert(1)</script>", "insert into t values (2)");
    let base = source.scratch.dir("reports").join("r");
    let base_text = base.display().to_string();
    source
        .validate("<script>alert(1)</script>", Some(&truth), &["--amcheck", "off", "--report", &base_text])
        .expect_code(21);
    let read = |ending: &str| std::fs::read_to_string(base.with_extension(ending)).expect(ending);
    let report: Value = serde_json::from_str(&read("json")).expect("JSON");
    assert_eq!(
        (&report["outcome"], &report["against"]["server_version_num"].is_u64()),
        (&Value::from("failed"), &true)
    );
    assert!(read("html").contains("public.t: 2 rows, were 1") && !read("html").contains("<script>"));
    assert!(read("md").contains("2 rows, were 1"));
    // Neither is ever written over.
    source.validate("<script>alert(1)</script>", Some(&truth), &["--report", &base_text]).expect_code(4);
    let nowhere = source.scratch.join("nowhere/r").display().to_string();
    source.validate("<script>alert(1)</script>", Some(&truth), &["--report", &nowhere]).expect_code(4);
    let again = source.pgark.run(["truth", "--database", "postgres", "--to", &truth.display().to_string()]);
    assert!(again.expect_code(4).stderr.contains("E-TRUTH-EXISTS"));
}

#[test]
fn a_truth_that_is_cut_short_is_refused() {
    let server = installed_or_skip!();
    let source = Source::filled(&server, "cut");
    let truth = source.truth("src", &["--hash"]);
    let whole = std::fs::read(&truth).expect("read");
    for keep in [0, 100, whole.len() / 2, whole.len() - 1] {
        let part = source.scratch.file(&format!("part-{keep}"), &whole[..keep], 0o644);
        let outcome = source.validate("src", Some(&part), &["--amcheck", "off"]).expect_code(1);
        assert_eq!(outcome.json()["error"]["code"], "E-TRUTH-DAMAGED", "{outcome}");
    }
}

#[test]
fn names_that_are_not_utf8_are_kept_and_compared() {
    let server = installed_or_skip!();
    let source = Source::new(&server, "bytes");
    source.cluster.psql("create database raw encoding 'SQL_ASCII' template template0");
    // PostgreSQL takes names of any bytes there.
    let sql = "set client_encoding = 'SQL_ASCII'; do $$ begin execute 'create table \"caf' || chr(233) || '\" (i int)'; \
               execute 'insert into \"caf' || chr(233) || '\" values (1), (2)'; end $$";
    source.cluster.psql_db("raw", sql);
    let truth = source.truth("raw", &["--hash"]);
    assert!(std::fs::read_to_string(&truth).expect("text").contains("\"hex\":\"636166e9\""));
    source.validate("raw", Some(&truth), &["--amcheck", "off"]).expect_code(0);
    source.cluster.psql_db(
        "raw",
        &sql.replace("create table", "alter table").replace("(i int)", "add j int").replace("(1), (2)", "(3)"),
    );
    let document = source.validate("raw", Some(&truth), &["--amcheck", "off"]).expect_code(21).json();
    assert_eq!(named(&document, "failed"), ["contents", "definitions", "rows"].map(String::from).into());
}

#[test]
fn counts_and_hashes_are_the_same_on_every_major() {
    let servers = majors_or_skip!();
    let mut truths: Vec<(u32, String)> = vec![];
    for server in servers {
        let source = Source::new(&server, &format!("m{}", server.major()));
        source.cluster.psql("create database src");
        source.cluster.psql_db("src", PORTABLE);
        let truth = source.truth("src", &["--hash"]);
        let text = std::fs::read_to_string(&truth).expect("text");
        let contents: Vec<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|object| object["facts"]["hash"].is_string())
            .map(|object| format!("{} {} {}", object["name"], object["facts"]["rows"], object["facts"]["hash"]))
            .collect();
        assert!(contents.len() >= 5, "{contents:?}");
        truths.push((server.major(), contents.join("\n")));
        for (major, other) in &truths {
            assert_eq!(other, &contents.join("\n"), "{major} and {}", server.major());
        }
    }
}

/// Values of many types, without extensions.
const PORTABLE: &str = "create schema app; create type app.mood as enum ('a', 'it''s'); create type app.pair as (a int, b text);
create table app.numbers as select i, i::smallint as s, i / 3.0::float8 as f, (i / 7.0)::real as r, i / 9.0 as n,
    case i % 5 when 0 then 'NaN'::float8 when 1 then 'Infinity' else 1e-300 * i end as odd, i::numeric(20, 5)::money as m
    from generate_series(-200, 200) as i;
create table app.times as select i, timestamptz '2026-03-29 01:30:00+01' + make_interval(hours => i) as at, date '4713-01-01 BC' + i as d,
    make_interval(years => i, days => -i, secs => i * 1.25) as v, time '12:34:56.789' as t, timetz '12:34:56+05:30' as tz,
    timestamp 'infinity' as never from generate_series(0, 300) as i;
create table app.texts as select i, repeat(chr(64 + i % 60), i) || E'\\n\\\\\"' as t, decode(md5(i::text), 'hex') as b,
    jsonb_build_object('k', i, 'a', array[i, null], 'f', 1.10) as j, ('{\"b\": 1, \"a\" :  2}')::json as p, (i % 2 = 0) as yes,
    ('a b c ' || i)::tsvector as v, array[array['x', null], array['y,\"', '']] as arr, '[2:3]={1,2}'::int[] as low,
    (array['a', 'it''s']::app.mood[])[i % 2 + 1] as mood, row(i, ' ,\"')::app.pair as pair, int4range(i, i + 5) as span,
    '192.168.0.0/16'::cidr as net, B'1011' as bits, '<a/>'::text as x, gen_random_uuid() is not null as u, point(i, 1 / 3.0) as pt
    from generate_series(1, 250) as i;
create table app.wide (t text); insert into app.wide select string_agg(md5(i::text), '') from generate_series(1, 5000) as i;
create table app.none (i int);
select lo_from_bytea(9, 'some bytes')";

#[test]
fn a_truth_of_one_major_fits_the_others() {
    let mut first: Option<Vec<u8>> = None;
    for server in majors_or_skip!() {
        let source = Source::filled(&server, &format!("f{}", server.major()));
        let bytes = first.get_or_insert_with(|| std::fs::read(source.truth("src", &["--hash"])).expect("read"));
        let truth = source.scratch.file("first", bytes, 0o644);
        let outcome = source.validate("src", Some(&truth), &["--amcheck", "borrowed"]);
        // What is printed otherwise is not checked; nothing is taken for a difference.
        assert!(outcome.succeeded(), "PostgreSQL {}: {outcome}", server.major());
        let document = outcome.json();
        let green = named(&document, "ok");
        for check in ["rows", "contents", "large objects", "tables", "indexes", "constraints"] {
            assert!(green.contains(check), "PostgreSQL {}: {check}: {document}", server.major());
        }
        assert_eq!(
            check(&document, "positions of sequences")["failed"],
            0,
            "PostgreSQL {}: {document}",
            server.major()
        );
        two_rows_of_one_key(&source, server.major());
    }
}

/// amcheck knows of it from 17 on.
fn two_rows_of_one_key(source: &Source, major: u32) {
    source.cluster.psql_db(
        "src",
        "create table app.twice (i int); insert into app.twice values (1), (1), (null), (null); create index twice_i on app.twice (i); \
         update pg_index set indisunique = true where indexrelid = 'app.twice_i'::regclass",
    );
    let document = source.validate("src", None, &["--amcheck", "borrowed"]).json();
    let indexes = check(&document, "B-tree indexes agree with their tables (amcheck)");
    let told = strings(&indexes["details"]).join("\n");
    assert_eq!(told.contains("app.twice_i") && told.contains("unique"), major >= 17, "PostgreSQL {major}: {indexes}");
    assert_eq!(indexes["failed"], u64::from(major >= 17), "PostgreSQL {major}: {indexes}");
}

#[test]
fn more_tables_than_one_transaction_can_lock_are_read() {
    let server = installed_or_skip!();
    let scratch = Scratch::new("locks");
    let cluster = TestCluster::builder(&server).conf("max_locks_per_transaction = 10").start(&scratch, "c");
    let pgark = Pgark::new(BINARY, &scratch, &scratch.join("repo")).on(&cluster);
    cluster.psql("create database src");
    let blocks: String = (0..30)
        .map(|block| {
            format!(
                "do $$ begin for i in {}..{} loop execute format('create table t%s (id serial primary key)', i); end loop; end $$;\n",
                block * 50,
                block * 50 + 49
            )
        })
        .collect();
    cluster.psql_db("src", &blocks);
    assert!(
        cluster
            .try_psql_db(
                "src",
                "do $$ begin for i in 0..1499 loop execute format('select count(*) from t%s', i); end loop; end $$"
            )
            .is_err()
    );
    let to = scratch.join("truth");
    let document = pgark.json(["truth", "--database", "src", "--hash", "--to", &to.display().to_string()]);
    assert_eq!((&document["tables"], &document["unread"]), (&1500.into(), &0.into()), "{document}");
    // Nor do borrowed examiners, which go on in a second session.
    let words = ["validate", "--database", "src", "--amcheck", "borrowed", "--json"];
    let document = pgark.run(words).expect_code(0).json();
    let examined = checks(&document).iter().filter(|check| check["kind"] == "storage");
    let all: Vec<_> = examined.map(|check| (&check["outcome"], check["checked"].as_u64() >= Some(1500))).collect();
    assert_eq!(all, [(&Value::from("ok"), true); 4], "{document}");
    assert_eq!(cluster.psql_db("src", "select count(*) from pg_namespace where nspname like 'pgark%'"), "0");
}
