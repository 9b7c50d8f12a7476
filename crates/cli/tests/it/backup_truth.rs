//! What a database held is stored with its dump, in the same snapshot; what is restored is compared with it before it takes its
//! place. Each planted defect turns the comparison red for the right reason.

use std::collections::BTreeSet;
use std::process::Stdio;

use pgark_testkit::{Outcome, as_postgres, quote_identifier};
use serde_json::Value;

use crate::site::{Site, strings};

const SCHEMA: &str = include_str!("validate/schema.sql");

fn site(label: &str) -> Option<Site> {
    let server = pgark_testkit::Server::installed().ok()?;
    let site = Site::new(&server, label, |b| {
        b.wal_segsize_mb(1).conf("max_locks_per_transaction = 256").conf("autovacuum = off")
    });
    site.cluster.psql("create database app");
    Some(site)
}

macro_rules! site_or_skip {
    ($label:expr) => {
        match site($label) {
            Some(site) => site,
            None => pgark_testkit::skip!("no PostgreSQL server is installed"),
        }
    };
}

fn dump(site: &Site, more: &[&str]) -> Value {
    site.pgark.json([&["backup", "--kind", "logical", "--database", "app"], more].concat())
}

fn id_of(document: &Value) -> String {
    document["id"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

fn restore(site: &Site, more: &[&str]) -> Outcome {
    site.pgark.run([&["restore", "--kind", "logical", "--database", "app", "--json"], more].concat())
}

fn against(site: &Site, backup: &str, database: &str, more: &[&str]) -> Outcome {
    let words = ["validate", "--against", backup, "--source", "app", "--amcheck", "off", "--json"];
    let database = format!("--database={database}");
    site.pgark.run([&words[..], &[database.as_str()], more].concat())
}

fn checks<'d>(report: &'d Value, outcome: &str) -> BTreeSet<&'d str> {
    let all = report["checks"].as_array().unwrap_or_else(|| panic!("no checks in {report}"));
    all.iter().filter(|c| c["outcome"] == outcome).filter_map(|c| c["name"].as_str()).collect()
}

fn check<'d>(report: &'d Value, name: &str) -> &'d Value {
    let all = report["checks"].as_array().unwrap_or_else(|| panic!("no checks in {report}"));
    all.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn refused(outcome: Outcome, code: &str) {
    let outcome = outcome.expect_code(4);
    assert_eq!(outcome.json()["error"]["code"], code, "{outcome}");
}

/// What is done to the restored database, the checks that then fail, and a word of why.
const DEFECTS: [(&str, &str, &[&str], &str); 6] = [
    (
        "missing row",
        "delete from app.orders_2025 where id = (select min(id) from app.orders_2025)",
        &["rows", "contents"],
        "rows, were",
    ),
    (
        "changed value",
        "update app.customers set raw = raw || '\\x00' where id = 7",
        &["contents"],
        "app.customers: other values or other rows",
    ),
    ("dropped index", "drop index app.trigrams", &["indexes"], "index app.trigrams is missing"),
    (
        "sequence behind",
        "select setval('app.orders_id_seq', 5)",
        &["positions of sequences", "sequences are ahead of their columns"],
        "app.orders_id_seq would give 6 next",
    ),
    ("wrong owner", "alter table app.orders owner to postgres", &["owners"], "table app.orders: owner is 'postgres'"),
    ("missing extension", "drop extension pg_trgm cascade", &["extensions", "indexes"], "extension pg_trgm is missing"),
];

#[test]
fn each_defect_of_a_restored_database_is_found_by_the_truth_in_its_backup() {
    let site = site_or_skip!("through");
    site.cluster.psql_db("app", SCHEMA);
    let document = dump(&site, &["--truth", "hashes"]);
    let truth = &document["logical"]["databases"][0]["truth"];
    assert_eq!((&truth["hashed"], &truth["unread"]), (&true.into(), &0.into()), "{document}");
    assert_eq!(truth["rows"].as_u64().map(|rows| rows > 100), Some(true), "{document}");
    let id = id_of(&document);

    let restored = restore(&site, &[&id, "--to-database", "dst"]).expect_code(0).json();
    let report = &restored["validation"];
    assert_eq!((&report["outcome"], &restored["placed"]), (&"ok".into(), &true.into()), "{restored}");
    assert_eq!(report["against"]["backup"], id.as_str(), "{restored}");
    let green = checks(report, "ok");
    for name in ["rows", "contents", "tables", "indexes", "constraints", "extensions", "owners"] {
        assert!(green.contains(name), "{name}: {restored}");
    }
    // One of them was never used: where it stands is not read.
    let positions = check(report, "positions of sequences");
    assert_eq!((&positions["checked"], &positions["not_checked"]), (&4.into(), &1.into()), "{restored}");
    assert_eq!((&positions["failed"], &positions["expected"]), (&0.into(), &true.into()), "{restored}");
    assert_eq!(check(report, "rows")["checked"], truth["tables"], "{restored}");

    for (name, sql, expected, why) in DEFECTS {
        site.cluster.psql(&format!("create database {} template dst", quote_identifier(name)));
        against(&site, &id, name, &[]).expect_code(0);
        site.cluster.psql_db(name, sql);
        let document = against(&site, "latest", name, &[]).expect_code(21).json();
        let report = &document["databases"][0];
        assert_eq!(checks(report, "failed"), expected.iter().copied().collect(), "{name}: {document}");
        let details: Vec<String> = expected.iter().flat_map(|c| strings(&check(report, c)["details"])).collect();
        assert!(details.iter().any(|d| d.contains(why)), "{name}: {details:?}");
        site.cluster.psql(&format!("drop database {}", quote_identifier(name)));
    }
    // The truth is a part like the dump: it is verified, and a copy has it.
    site.pgark.run(["verify"]).expect_code(0);
    let info = site.pgark.json(["info", &id]);
    assert_eq!(&info["databases"][0]["truth"], truth, "{info}");
    assert!(info["databases"][0]["size_bytes"].as_u64() > Some(1_000_000), "{info}");
    let listed = site.pgark.backup_info(&id);
    assert_eq!(listed["database_bytes"], info["databases"][0]["size_bytes"], "{listed}");
}

#[test]
fn what_is_not_as_it_was_backed_up_does_not_take_the_place_of_what_serves() {
    let site = site_or_skip!("differs");
    // The triggers of a foreign key that were switched off: a dump does not say so, and they come back switched on.
    site.cluster.psql_db(
        "app",
        "create table t (i int primary key); insert into t select generate_series(1, 100);
         create table u (i int references t); alter table u disable trigger all",
    );
    let id = id_of(&dump(&site, &[]));
    site.cluster.psql_db("app", "insert into t values (101)");
    let now = "select count(*), (select oid from pg_database where datname = 'app') from t";
    let before = site.cluster.psql_db("app", now);

    let in_place = [id.as_str(), "--in-place", "--yes", "--no-safety-backup"];
    let document = restore(&site, &in_place).expect_code(21).json();
    let report = &document["validation"];
    assert_eq!(checks(report, "failed"), ["triggers and rules"].into(), "{document}");
    assert!(strings(&check(report, "contents")["reasons"]).iter().any(|r| r.contains("without hashes")), "{document}");
    assert_eq!(document["placed"], false, "{document}");
    let left = document["left_as"].as_str().expect("a name").to_owned();
    assert!(left.starts_with(&format!("pgark_restore_{id}_")), "{left}");
    assert_eq!(site.cluster.psql_db("app", now), before, "the old one serves");
    assert_eq!(site.cluster.psql_db(&left, "select count(*) from t"), "100", "what was restored can be looked at");

    // The next one does not stumble over it, has a name of its own, and says that the other is there. Beside the old one it is the same.
    let document = restore(&site, &[&id, "--to-database", "new"]).expect_code(21).json();
    assert!(strings(&document["notes"]).iter().any(|n| n.contains(&left)), "{document}");
    let other = document["left_as"].as_str().expect("a name");
    assert_ne!(other, left);
    assert_eq!(site.cluster.psql("select count(*) from pg_database where datname = 'new'"), "0");
    site.cluster.psql(&format!("drop database \"{left}\""));
    site.cluster.psql(&format!("drop database \"{other}\""));
    let document = restore(&site, &[&id, "--to-database", "new", "--no-validate"]).expect_code(0).json();
    assert_eq!((&document["placed"], &document["validation"]), (&true.into(), &Value::Null), "{document}");
    assert_eq!(site.cluster.psql("select count(*) from pg_database where datname like 'pgark%'"), "0");
}

#[test]
fn of_a_part_what_was_restored_is_compared() {
    let site = site_or_skip!("part");
    site.cluster.psql_db("app", SCHEMA);
    site.cluster.psql_db("app", "create schema other; create table other.o as select generate_series(1, 10) i");
    let whole = dump(&site, &[]);
    let id = id_of(&whole);
    let part = ["--table", "app.orders", "--table", "app.customers"];
    let words = [&[id.as_str(), "--to-database", "part"], &part[..]].concat();
    let document = restore(&site, &words).expect_code(0).json();
    let report = &document["validation"];
    assert_eq!(report["outcome"], "ok", "{document}");
    assert!(check(report, "objects that were left out")["not_checked"].as_u64() > Some(5), "{document}");
    let compared = check(report, "rows")["checked"].as_u64().expect("a number");
    assert!((2..whole["logical"]["databases"][0]["truth"]["tables"].as_u64().expect("a number")).contains(&compared));
    against(&site, &id, "part", &part).expect_code(0);
    site.cluster.psql_db("part", "insert into app.customers (name) values ('new'); drop index app.trigrams");
    let document = against(&site, &id, "part", &part).expect_code(21).json();
    let failed = checks(&document["databases"][0], "failed");
    assert!(failed.contains("rows") && failed.contains("indexes"), "{document}");
    // As a whole it is not there.
    let document = against(&site, &id, "part", &[]).expect_code(21).json();
    assert!(
        strings(&check(&document["databases"][0], "tables")["details"]).iter().any(|d| d == "table other.o is missing")
    );

    // A backup of a part counts that part, and knows that there was more.
    let document = dump(&site, &["--schema", "other"]);
    let truth = &document["logical"]["databases"][0]["truth"];
    assert_eq!((&truth["tables"], &truth["rows"]), (&1.into(), &10.into()), "{document}");
    let document = restore(&site, &[&id_of(&document), "--to-database", "other"]).expect_code(0).json();
    assert_eq!(
        (&document["validation"]["outcome"], &check(&document["validation"], "rows")["checked"]),
        (&"ok".into(), &1.into())
    );
    site.cluster.psql_db("other", "insert into other.o values (11)");
    against(&site, "latest", "other", &[]).expect_code(21);
}

#[test]
fn a_backup_without_a_truth_is_restored_and_never_called_compared() {
    let site = site_or_skip!("none");
    site.cluster.psql_db("app", "create table t as select generate_series(1, 10) i");
    let config = site.scratch.file("pgark.toml", b"[clusters.main.logical]\ntruth = \"hashes\"\n", 0o644);
    let config = config.display().to_string();
    let document = dump(&site, &["--config", &config]);
    assert_eq!(document["logical"]["databases"][0]["truth"]["hashed"], true, "{document}");
    let document = dump(&site, &["--config", &config, "--truth", "none"]);
    assert!(document["logical"]["databases"][0]["truth"].is_null(), "{document}");
    let id = id_of(&document);
    let restored = restore(&site, &[&id, "--to-database", "dst"]).expect_code(3).json();
    assert_eq!((&restored["placed"], &restored["validation"]["outcome"]), (&true.into(), &"not_checked".into()));
    let reasons = strings(&check(&restored["validation"], "comparison with the backup")["reasons"]);
    assert_eq!(reasons, ["the backup was taken without a truth"]);
    refused(against(&site, &id, "dst", &[]), "E-TRUTH-NONE");
    refused(against(&site, "latest", "dst", &[]), "E-TRUTH-NONE");
    let outcome = site.pgark.run(["backup", "--kind", "physical", "--truth", "counts"]).expect_code(2);
    assert!(outcome.stderr.contains("E-KIND"), "{outcome}");
}

#[test]
fn a_truth_fits_its_dump_while_the_database_is_written() {
    let site = site_or_skip!("busy");
    site.cluster.psql_db(
        "app",
        "create table a (id bigserial primary key, v text); create table b (id bigserial primary key, a bigint references a);
         insert into a (v) select md5(i::text) from generate_series(1, 200000) i",
    );
    let mut writer = as_postgres(site.server.program("psql"));
    writer.arg(format!("--dbname={}", site.cluster.connection_string("app"))).stdout(Stdio::null()).args([
        "-c",
        "do $$ begin loop insert into a (v) values ('x'); insert into b (a) select max(id) from a; \
         update a set v = v || '.' where id = 1 + (random() * 1000)::int; commit; end loop; end $$",
    ]);
    let mut writer = writer.spawn().expect("psql");
    for (n, truth) in ["counts", "hashes", "hashes"].iter().enumerate() {
        let id = id_of(&dump(&site, &["--truth", truth, "--jobs", "3"]));
        let document = restore(&site, &[&id, "--to-database", &format!("dst{n}")]).expect_code(0).json();
        assert_eq!(document["validation"]["outcome"], "ok", "{document}");
    }
    site.cluster.psql("select pg_terminate_backend(pid) from pg_stat_activity where query like 'do %'");
    writer.wait().expect("psql");
}
