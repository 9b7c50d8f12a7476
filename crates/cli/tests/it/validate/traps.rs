//! Functions that an unprivileged owner has put where the planner evaluates them do not run with our rights.

use std::path::Path;

use serde_json::Value;

use super::{Source, check};

/// Each of them runs `e.im()` in a session that plans a statement over the table.
const TRAPS: &str = "
    create table e.expression as select i as id from generate_series(1, 5) as i;
    create index on e.expression ((id + e.im()));
    create table e.predicate as select i as id from generate_series(1, 6) as i;
    create index on e.predicate (id) where id > e.im();
    create table e.statistics as select i as id, 'a'::text as v from generate_series(1, 7) as i;
    create table e.late as select i as id from generate_series(1, 8) as i;
    create table e.parted (id bigserial, x int) partition by range ((x + e.im()));
    create table e.part partition of e.parted for values from (0) to (100);
    insert into e.parted (x) values (3), (4);
    create materialized view e.view as select 1 as a;
    create index on e.view ((a + e.im()));
    create sequence e.unused;
    create table e.plain as select i, case when i % 7 = 0 then null else repeat(chr(32 + i % 95), i % 50) || chr(9) || chr(8) || '\\é,(' end as v,
        case when i % 3 = 0 then '' else 'a\\\"b' || chr(10) || chr(13) || chr(11) || chr(12) end as w, array[i, null] as r,
        decode(md5(i::text), 'hex') as b, i * 1.5 as f, row(i, 'x y')::text as z from generate_series(1, 300) as i;";

/// From 14 on.
const STATISTICS: &str = "create statistics e.trap on (id + e.im()), v from e.statistics; analyze e.statistics;";

/// What the server itself hashes, as a truth writes it.
const HASH: &str = "select concat_ws(':', sum(hashtextextended(r.line collate \"C\", 0)), \
     sum(hashtextextended(r.line collate \"C\", 8117)), sum(octet_length(r.line))) \
     from (select textin(record_out(t.*)) as line from only e.plain as t offset 0) as r";

/// Holds the table until somebody waits for it, and then sets a trap that his snapshot does not show.
const TOO_LATE: &str = "set session authorization mallory; begin; lock table e.late in access exclusive mode;
    do $$ begin
        for i in 1..1000 loop
            if exists (select from pg_locks where relation = 'e.late'::regclass and not granted) then return; end if;
            perform pg_sleep(0.05);
        end loop;
        raise exception 'nobody came';
    end $$;
    create index on e.late ((id + e.im())); commit;";
const HELD: &str = "do $$ begin
        for i in 1..1000 loop
            if exists (select from pg_locks where relation = 'e.late'::regclass and granted and mode = 'AccessExclusiveLock')
                then return; end if;
            perform pg_sleep(0.05);
        end loop;
        raise exception 'nobody holds it';
    end $$;";

fn facts(truth: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(truth).expect("a truth");
    let object = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .find(|object| object["kind"] == "relation" && object["name"] == serde_json::json!(["e", name]));
    object.unwrap_or_else(|| panic!("no {name} in {text}"))["facts"].clone()
}

fn plant(source: &Source, fired: &Path) {
    source.cluster.psql("create role mallory login");
    source
        .cluster
        .psql("create database evil owner mallory template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'");
    let functions = format!(
        "set session authorization mallory; create schema e;
         create function e.g() returns int language plpgsql volatile as $$ begin
             begin copy (select 1) to '{}'; exception when others then null; end; return 1; end $$;
         create function e.im() returns int language plpgsql immutable as $$ begin return (select e.g()); end $$;",
        fired.display()
    );
    source.cluster.psql_db("evil", &format!("{functions} {TRAPS} {STATISTICS}"));
}

#[test]
fn functions_of_an_owner_do_not_run_when_his_tables_are_counted() {
    let server = installed_or_skip!();
    let source = Source::new(&server, "traps");
    let fired = source.cluster.data_dir().join("fired");
    plant(&source, &fired);
    let truth = source.truth("evil", &["--hash"]);
    for (table, rows) in [("expression", "5"), ("predicate", "6"), ("statistics", "7"), ("part", "2"), ("plain", "300")]
    {
        let facts = facts(&truth, table);
        assert_eq!(facts["rows"], rows, "{table}: {facts}");
        assert!(facts["hash"].is_string(), "{table}: {facts}");
    }
    // What cannot be read without running them is said not to have been read.
    for left in ["view", "unused"] {
        let facts = facts(&truth, left);
        assert_eq!(facts["unread_because"], "left", "{left}: {facts}");
        assert!(facts.get("rows").is_none() && facts.get("last_value").is_none(), "{left}: {facts}");
    }
    let document = source.validate("evil", Some(&truth), &["--amcheck", "borrowed"]).expect_code(0).json();
    assert_eq!(check(&document, "contents")["outcome"], "ok", "{document}");
    assert_eq!(check(&document, "sequences are ahead of their columns")["outcome"], "ok", "{document}");
    assert_eq!(check(&document, "indexes lead to as many rows as tables have")["outcome"], "not_checked", "{document}");
    assert!(!fired.exists(), "a function ran with the rights of the superuser");
    // Hashes made here are those of the server.
    assert_eq!(facts(&truth, "plain")["hash"], source.cluster.psql_db("evil", HASH));

    let later = source.scratch.join("later");
    std::thread::scope(|scope| {
        let trapper = scope.spawn(|| source.cluster.psql_db("evil", TOO_LATE));
        source.cluster.psql_db("evil", HELD);
        source.pgark.run(["truth", "--database", "evil", "--to", &later.display().to_string()]).expect_code(0);
        trapper.join().expect("the trap was set");
    });
    assert_eq!(facts(&later, "late")["rows"], "8");
    assert!(!fired.exists(), "a function ran that was put there after the snapshot");

    // The traps are none without the precaution.
    for table in ["expression", "predicate", "statistics", "parted", "late"] {
        source.cluster.psql_db("evil", &format!("select count(*) from e.{table}"));
        assert!(fired.exists(), "{table} is no trap");
        std::fs::remove_file(&fired).expect("removed");
    }
}
