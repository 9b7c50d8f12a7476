//! The administrator's own checks, and people who would abuse them.

use pgark_testkit::Outcome;
use serde_json::Value;

use super::{Source, check, named};
use crate::site::strings;

/// Name, SQL, expected answer.
type Asked<'a> = &'a [(&'a str, &'a str, &'a str)];

/// Validates `src` with these checks configured and nothing else.
fn ask(source: &Source, settings: &str, checks: Asked, flags: &[&str]) -> Outcome {
    let quoted = |text: &str| serde_json::to_string(text).expect("text");
    let mut text = format!("[clusters.main]\n{settings}\n");
    for (name, sql, expect) in checks {
        let (name, sql, expect) = (quoted(name), quoted(sql), quoted(expect));
        text += "[[clusters.main.checks]]\ndatabase = \"src\"\nschemas = [\"app\", \"public\"]\n";
        text += &format!("name = {name}\nsql = {sql}\nexpect = {expect}\n");
    }
    let path = source.scratch.join("pgark.toml");
    if path.exists() {
        std::fs::remove_file(&path).expect("removed");
    }
    source.scratch.file("pgark.toml", text.as_bytes(), 0o600);
    let pgark = source.pgark.clone().env("PGARK_CONFIG", &path);
    pgark.run([&["validate", "--database", "src", "--json", "--amcheck", "off"], flags].concat())
}

fn details(document: &Value, name: &str) -> String {
    strings(&check(document, name)["details"]).join("; ")
}

fn with_checker(label: &str) -> Option<Source> {
    let server = match pgark_testkit::Server::installed() {
        Ok(server) => server,
        Err(why) => {
            assert!(!pgark_testkit::demanded(), "{why}");
            eprintln!("SKIPPED: {why}");
            return None;
        }
    };
    let source = Source::new(&server, label);
    source.cluster.psql("create database src");
    source.cluster.psql_db(
        "src",
        "create schema app; create table app.orders as select generate_series(1, 10) as id; create sequence app.seq; \
         create role checker login; grant usage, create on schema app to checker; grant select on all tables in schema app to checker; \
         grant usage on sequence app.seq to checker",
    );
    Some(source)
}

const CHECKER: &str = "check_user = \"checker\"";

#[test]
fn checks_are_asked_and_compared() {
    let Some(source) = with_checker("asked") else { return };
    let asked: Asked = &[
        ("right", "select count(*) > 0 from orders", "t"),
        ("with a semicolon", "select count(*) from app.orders;", "10"),
        ("values", "values ('x')", "x"),
        (
            "as whom",
            "select current_user || session_user || current_setting('transaction_read_only')",
            "checkercheckeron",
        ),
        ("where", "select current_setting('search_path')", "pg_catalog, app, public, pg_temp"),
        ("wrong", "select count(*) from orders", "11"),
        ("null", "select null::text", ""),
        ("no row", "select 1 where false", "1"),
        ("many rows", "select id from orders", "1"),
        ("columns", "select 1, 2", "1"),
        ("slow", "select pg_sleep(60)", ""),
        ("error", "select 1 / 0", "1"),
        ("nothing", "", ""),
    ];
    let document = ask(&source, CHECKER, asked, &["--check-timeout", "500ms"]).expect_code(21).json();
    for (name, ..) in asked {
        let green = ["right", "with a semicolon", "values", "as whom", "where"].contains(name);
        assert_eq!(check(&document, name)["outcome"], if green { "ok" } else { "failed" }, "{name}: {document}");
    }
    assert!(details(&document, "wrong").contains("'10', expected is '11'"));
    assert!(details(&document, "null").contains("NULL"));
    assert!(details(&document, "many rows").contains("more than one row"));
    assert!(
        details(&document, "slow").contains("57014") || details(&document, "slow").contains("longer"),
        "{document}"
    );
}

#[test]
fn a_privileged_role_asks_nothing() {
    let Some(source) = with_checker("asks") else { return };
    let asked: Asked = &[("mine", "select count(*) from app.orders", "10")];
    source.cluster.psql("create role member login; grant postgres to member; create role files login; grant pg_execute_server_program to files");
    for (settings, why) in [
        ("", "superuser"),
        ("check_user = \"postgres\"", "superuser"),
        ("check_user = \"member\"", "member of postgres"),
        ("check_user = \"files\"", "pg_execute_server_program"),
        ("check_user = \"nobody there\"", "nobody there"),
    ] {
        let document = ask(&source, settings, asked, &[]).expect_code(3).json();
        assert!(named(&document, "not_checked").contains("mine"), "{settings}: {document}");
        let reasons = strings(&check(&document, "mine")["reasons"]).join(" ");
        assert!(reasons.contains(why), "{settings}: {reasons}");
    }
    // A role made for it reads everything, and is gone afterwards.
    let document = ask(&source, "", asked, &["--make-check-user"]).json();
    assert_eq!(check(&document, "mine")["outcome"], "ok", "{document}");
    assert_eq!(source.cluster.psql("select count(*) from pg_roles where rolname like 'pgark%'"), "0");
}

#[test]
fn hostile_checks_and_functions_do_nothing() {
    let Some(source) = with_checker("hostile") else { return };
    let program = format!("touch {}", source.scratch.join("owned").display());
    let evil = format!(
        "create function app.evil(what text) returns text language plpgsql as $$ begin \
         if what = 'role' then reset role; elsif what = 'session' then reset session authorization; \
         elsif what = 'postgres' then set session authorization postgres; elsif what = 'set' then set role postgres; \
         elsif what = 'write' then set transaction read write; \
         elsif what = 'default' then set default_transaction_read_only = off; end if; \
         begin execute 'insert into app.orders values (666)'; exception when others then null; end; \
         execute $c$copy (select 1) to program '{program}'$c$; return current_user; end $$; \
         create function public.count(anyelement) returns bigint language sql as 'select 10::bigint'; \
         create view app.trap as select app.evil('session') as x; \
         create table app.mine (i int); alter table app.mine owner to checker"
    );
    source.cluster.psql_db("src", &evil);
    let copy = format!("copy (select 1) to program '{program}'");
    let several = format!("select 1; {copy}");
    let hidden = format!("select 1 union all select 2; {copy}; --");
    let asked: Asked = &[
        ("reset role", "reset role", ""),
        ("reset session", "reset session authorization", ""),
        ("set", "set role postgres", ""),
        ("commit", "commit", ""),
        ("copy", &copy, ""),
        ("several", &several, "1"),
        ("hidden", &hidden, "1"),
        ("do", "do $$ begin execute 'reset role'; end $$", ""),
        ("evil role", "select app.evil('role')", "postgres"),
        ("evil session", "select app.evil('session')", "postgres"),
        ("evil postgres", "select app.evil('postgres')", "postgres"),
        ("evil set", "select app.evil('set')", "postgres"),
        ("evil write", "select app.evil('write')", "postgres"),
        ("evil default", "select app.evil('default')", "postgres"),
        ("trap", "select x from app.trap", "postgres"),
        ("writes", "with w as (insert into app.mine values (1) returning i) select i from w", "1"),
        ("sequence", "select nextval('app.seq')", "1"),
        ("into", "select 1 into app.new", ""),
        ("lock", "select id from app.orders for update", "1"),
        ("end session", "select pg_terminate_backend(pg_backend_pid())", "t"),
        ("still works", "select count(*) from app.orders", "10"),
    ];
    let document = ask(&source, CHECKER, asked, &[]).expect_code(21).json();
    let green: Vec<&str> = vec!["still works"];
    for (name, ..) in asked {
        let outcome = check(&document, name)["outcome"].as_str().unwrap_or_default();
        assert_eq!(outcome, if green.contains(name) { "ok" } else { "failed" }, "{name}: {document}");
    }
    assert!(!source.scratch.join("owned").exists(), "a program was run");
    assert_eq!(source.cluster.psql_db("src", "select count(*) from app.orders where id = 666"), "0");
    assert_eq!(source.cluster.psql_db("src", "select count(*) from app.mine"), "0");
    assert_eq!(source.cluster.psql_db("src", "select is_called from app.seq"), "f");
    assert_eq!(source.cluster.psql_db("src", "select to_regclass('app.new') is null"), "t");
}

#[test]
fn taking_a_truth_runs_no_function_of_a_user() {
    let Some(source) = with_checker("quiet") else { return };
    let program = format!("touch {}", source.scratch.join("owned").display());
    source.cluster.psql_db(
        "src",
        &format!(
            "create function app.own() returns text language plpgsql as $$ begin copy (select 1) to program '{program}'; return 'x'; end $$; \
             create type app.t as (a int); create table app.of_type (t app.t, r text, line text); \
             insert into app.of_type values (row(1), 'a', 'b'); \
             create function app.to_text(app.of_type) returns text language plpgsql as $$ begin perform app.own(); return ''; end $$; \
             create cast (app.of_type as text) with function app.to_text(app.of_type) as implicit; \
             create function public.record_out(app.of_type) returns cstring language internal as 'record_out'; \
             create function public.count() returns bigint language sql as $$ select length(app.own())::bigint $$; \
             create function public.hashtextextended(text, bigint) returns bigint language sql as $$ select length(app.own())::bigint $$; \
             create view app.v as select app.own() as x; \
             alter database src set search_path = app, public; alter role postgres set search_path = app, public, pg_catalog"
        ),
    );
    let truth = source.truth("src", &["--hash"]);
    source.validate("src", Some(&truth), &["--amcheck", "borrowed"]).expect_code(0);
    assert!(!source.scratch.join("owned").exists(), "a function of a user was run");

    // The examiners where everybody may make functions, and such functions beside theirs.
    source.cluster.psql_db(
        "src",
        "create extension amcheck schema public; create extension pg_visibility schema public; \
         create function public.verify_heapam(regclass, boolean, boolean, out blkno bigint, out offnum int, out attnum int, out msg text) \
             returns setof record language plpgsql as $$ begin perform app.own(); end $$; \
         create function public.bt_index_check(regclass, boolean, boolean) returns void language plpgsql as $$ begin perform app.own(); end $$; \
         create function public.pg_visibility(regclass, int, out all_visible bool, out all_frozen bool, out pd_all_visible bool) \
             language plpgsql as $$ begin perform app.own(); end $$",
    );
    let document = source.validate("src", None, &[]).expect_code(0).json();
    for name in ["B-tree indexes agree with their tables (amcheck)", "tables are whole (amcheck)"] {
        assert!(check(&document, name)["checked"].as_u64() > Some(50), "{name}: {document}");
    }
    assert!(!source.scratch.join("owned").exists(), "a function of a user was run");
}
