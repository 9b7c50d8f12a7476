//! A restore that is right is said to be right, also where PostgreSQL prints, computes or leaves out after a dump was loaded; and what
//! is really different is still found.

use pgark_testkit::{Server, quote_identifier};
use serde_json::Value;

use crate::site::{Site, strings};

/// No schema `public`. IN and BETWEEN wherever an expression can stand; what only the database's own name makes what it is; a
/// view that was not refreshed; an index that is not valid.
const SCHEMA: &str = "
drop schema public; create schema s; set search_path = s;
create domain code as varchar(10) check (value in ('a', 'it''s, [b])::text[]'));
create table t (
    id int primary key, x varchar(10) default case when 'a'::varchar in ('a', 'b') then 'a' end, y int, z int, f float8, d code,
    up boolean generated always as (x in ('a', 'b')) stored,
    constraint listed check (x in ('a', 'b', 'c')), constraint ranged check (y between 1 and 9 and z > 0),
    u varchar(10), w varchar, d2 code, l varchar[] default array['a', 'b'],
    constraint columns check (x in (u, w) or coalesce(u, w) is null), constraint lists check ('a'::text = any (l) or x not in (w, u)),
    constraint mixed check (d::text in (u, d, d2) or d2 is null), constraint apart check (y not between 20 and 30 or z > 0 or x not in ('q', 'r')), check (f = any (array[1, 2])),
    check ((y, z) in ((1, 2), (3, 4)) or y is not null)
);
create index part on t (y) where x in ('a', 'b') and y between 1 and 5 and z > 1;
create index of_columns on t (y) where x in (u, w);
create index never on t (z);
create view v as select *, x in ('a', 'b') as q, x in (t.u, w) as r from t where x in ('a', 'b') and (y between 1 and 4 and z = 1 or x not in ('c', 'd'));
create view unnamed as select exists (select null from t u where u.id = t.id), (select 'a') as x, array(select 'b') as l,
    t.x in (select 'a' union select 'it''s, b') as q, coalesce((select '-1'::int where t.y > 1), 2) as n from t;
alter table t enable row level security;
create policy p on t using (x in ('a', 'b') or x in (u, w)) with check (y between 1 and 2 and z > 0);
create function touched() returns trigger language plpgsql as 'begin return new; end';
create trigger touch before update on t for each row when (new.x in ('a', 'b') and old.x in (new.u, old.w) and new.y between 1 and 2 and old.z > 1)
    execute function touched();
create rule r as on delete to t where old.x in ('a', 'b') do instead nothing;
create function asked(b bool default 'x'::varchar in ('a', 'b')) returns int language sql as 'select 1';
create table parts (x varchar, y int) partition by list ((x in ('a', 'b')));
create table parts_1 partition of parts for values in (true);
insert into t (id, x, y, z, f, d) select i, 'a', 1 + i % 9, 1, 1, 'a' from generate_series(1, 100) i;
insert into parts values ('a', 1);
create policy of_selects on t using (exists (select 'a' from parts u where u.y = t.y) or x in (select 'a' union select 'b'));
create rule of_selects as on update to parts where exists (select null from t) do instead nothing;
create materialized view stale as select id from t;
insert into t (id, x, y, z, f, d) values (101, 'b', 2, 3, 2, null);
create materialized view named as select i from generate_series(1, 10) i where current_database() = 'app';
create materialized view empty as select 1 as i with no data;
update pg_index set indisvalid = false where indexrelid = 'never'::regclass;
";

/// Since 14.
const BODIED: &str = "create function s.bodied(v varchar, v2 varchar) returns bool language sql \
    return v in ('a', 'b') and v in (v2, v) and length(v) between 1 and 2; \
    create function s.steps() returns bool language sql begin atomic select exists (select 'x' from s.t where id > 0); end";

/// What is done to the restored database, and what is then found.
const DIFFERENCES: [(&str, &str); 13] = [
    (
        "alter policy of_selects on s.t using (exists (select 'a' from s.parts u where u.y = t.y) or x in (select 'a' union select 'c'))",
        "of_selects of s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint listed, add constraint listed check (x in ('a', 'b', 'd'))",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint listed, add constraint listed check (x in ('b', 'a', 'c'))",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint columns, add constraint columns check (x in (w, u) or coalesce(u, w) is null)",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint columns, add constraint columns check (x in (u, u) or coalesce(u, w) is null)",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint columns, add constraint columns check (x in (u, w, w) or coalesce(u, w) is null)",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint ranged, add constraint ranged check (y > 0 and y <= 9 and z > 0)",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint ranged, add constraint ranged check (y between 1 and 9 or z > 0)",
        "s.t: definition differs",
    ),
    (
        "alter table s.t drop constraint ranged, add constraint ranged check (y between 1 and 9 and z >= 0)",
        "s.t: definition differs",
    ),
    (
        "drop index s.part; create index part on s.t (y) where x in ('a', 'c') and y between 1 and 5 and z > 1",
        "s.part: definition differs",
    ),
    (
        "create or replace function s.asked(b bool default 'x'::varchar in ('a', 'c')) returns int language sql as 'select 1'",
        "source differs",
    ),
    ("alter policy p on s.t with check (y between 1 and 3 and z > 0)", "p of s.t: definition differs"),
    ("refresh materialized view s.empty", "populated is not there, was 'no'"),
];

fn check<'d>(report: &'d Value, name: &str) -> &'d Value {
    let all = report["checks"].as_array().unwrap_or_else(|| panic!("no checks in {report}"));
    all.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

fn failures(report: &Value) -> Vec<String> {
    let all = report["checks"].as_array().cloned().unwrap_or_default();
    all.iter().flat_map(|c| strings(&c["details"])).collect()
}

#[test]
fn what_postgresql_prints_computes_or_leaves_out_after_a_load_is_no_difference_and_all_else_is() {
    majors_or_skip!().iter().for_each(right_is_right_and_wrong_is_wrong);
}

fn right_is_right_and_wrong_is_wrong(server: &Server) {
    let site = Site::small(server, "right");
    let cluster = &site.cluster;
    cluster.psql("create database app");
    cluster.psql_db("app", SCHEMA);
    if server.major() >= 14 {
        cluster.psql_db("app", BODIED);
    }
    let dump = || {
        let document = site.pgark.json(["backup", "--kind", "logical", "--database", "app", "--truth", "hashes"]);
        document["id"].as_str().expect("an id").to_owned()
    };
    let restore = |more: &[&str]| {
        let words = ["restore", "--kind", "logical", "--database", "app", "--json", "--no-safety-backup", "--yes"];
        site.pgark.run([&words[..], more].concat())
    };
    let id = dump();
    let document = restore(&["--in-place"]).expect_code(0).json();
    let report = &document["validation"];
    assert_eq!((&report["outcome"], &document["placed"]), (&"ok".into(), &true.into()), "{document}");
    assert_eq!(cluster.psql_db("app", "select count(*) from pg_namespace where nspname = 'public'"), "0");
    for name in ["definitions", "constraints", "row security", "triggers and rules", "rows", "schemas", "indexes"] {
        assert_eq!(check(report, name)["outcome"], "ok", "{name}: {document}");
    }
    // What could not be the same is not called the same.
    let views = check(report, "contents of materialized views");
    assert_eq!((&views["outcome"], &views["not_checked"]), (&"not_checked".into(), &2.into()), "{document}");
    let reasons = strings(&views["reasons"]).join("\n");
    assert!(reasons.contains("s.stale: computed anew when it was restored, with 101 rows, and 100"), "{reasons}");
    assert!(reasons.contains("s.named: computed anew when it was restored, with 0 rows, and 10"), "{reasons}");
    let invalid = check(report, "indexes that were not valid");
    assert_eq!(invalid["outcome"], "not_checked", "{document}");
    assert!(strings(&invalid["reasons"])[0].contains("s.never"), "{document}");

    let storage = check(report, "tables are whole (amcheck)");
    assert!(strings(&storage["reasons"])[0].contains("not after a restore"), "{document}");
    // Nor does the repository's report say more than was compared.
    let listed = site.pgark.json(["report", "list"]);
    let summary = listed["reports"][0]["summary"].as_str().unwrap_or_default();
    let open = "as far as it was compared; not compared: contents of materialized views, generated columns, indexes that were not valid";
    assert!(summary.contains(open), "{listed}");

    let against = |database: &str| {
        let database = format!("--database={database}");
        let words = ["validate", "--against", &id, "--source", "app", "--amcheck", "off", "--json", &database];
        site.pgark.run(words)
    };
    against("app").expect_code(0);
    for (n, (sql, what)) in DIFFERENCES.iter().enumerate() {
        let name = format!("other {n}");
        cluster.psql(&format!("create database {} template app", quote_identifier(&name)));
        cluster.psql_db(&name, sql);
        let document = against(&name).expect_code(21).json();
        let found = failures(&document["databases"][0]);
        assert!(found.len() == 1 && found[0].contains(what), "{sql}: {found:?}");
        cluster.psql(&format!("drop database {}", quote_identifier(&name)));
    }

    // A generated column is computed while the database has another name: it differs, and nothing else of its table does.
    cluster.psql_db(
        "app",
        "create function s.here() returns text immutable language sql as 'select current_database()::text';
         create table s.g (i int, at text generated always as (s.here()) stored); insert into s.g values (1), (2)",
    );
    // pg_dump writes options by their names, in whatever order they were given.
    cluster.psql_db(
        "app",
        "create foreign data wrapper w options (z '1', a '2'); create server fs foreign data wrapper w options (port '1', host 'x');
         create user mapping for current_user server fs options (\"user\" 'u', password 'p');
         create foreign table s.f (i int options (z '1', a '2')) server fs options (z '1', a '2')",
    );
    let id = dump();
    let document = restore(&["--to-database", "computed"]).expect_code(3).json();
    let report = &document["validation"];
    assert_eq!((&report["outcome"], &document["placed"]), (&"not_checked".into(), &true.into()), "{document}");
    let generated = check(report, "generated columns");
    assert_eq!((&generated["outcome"], &generated["checked"]), (&"not_checked".into(), &0.into()), "{document}");
    assert!(strings(&generated["reasons"])[0].contains("table s.g: its generated columns"), "{document}");
    cluster.psql_db("computed", "update s.g set i = 3 where i = 2");
    let words =
        ["validate", "--against", &id, "--source", "app", "--amcheck", "off", "--json", "--database", "computed"];
    let document = site.pgark.run(words).expect_code(21).json();
    assert_eq!(failures(&document["databases"][0]), ["table s.g: other values in as many rows"]);
}
