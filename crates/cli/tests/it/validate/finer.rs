//! What hangs on objects and is easily lost: rights, options, comments, what things are made of.

use super::{Source, check};
use crate::site::strings;

/// All of them in one database: the check that is to name each, and its words.
const FINER: [(&str, &str, &str); 56] = [
    ("grant usage on foreign server far to public", "privileges", "server far: what is granted"),
    (
        "grant usage on foreign data wrapper wrapper to public",
        "privileges",
        "foreign-data wrapper wrapper: what is granted",
    ),
    (
        "grant usage on language plpgsql to public",
        "privileges",
        "objects of PostgreSQL and of extensions: what is granted",
    ),
    ("alter server far owner to \"app owner\"", "owners", "server far: owner"),
    (
        "alter text search dictionary app.dictionary owner to \"app owner\"",
        "owners",
        "dictionary app.dictionary: owner",
    ),
    ("alter publication news add table app.empty", "other objects", "publication news: the list of what is published"),
    (
        "alter publication news set (publish_via_partition_root = true)",
        "other objects",
        "publication news: what it is made of",
    ),
    ("alter table app.parent replica identity nothing", "definitions", "app.parent: replica identity"),
    ("alter table app.tuned replica identity default", "definitions", "app.tuned: replica identity"),
    (
        "alter server far options (set host 'near.example.org')",
        "other objects",
        "server far: what it is made of or its options",
    ),
    (
        "alter user mapping for current_user server far options (set password 'other')",
        "other objects",
        "mapping options differs",
    ),
    (
        "alter foreign table app.distant options (set table_name 'y')",
        "definitions",
        "app.distant: its server or options",
    ),
    (
        "alter foreign data wrapper wrapper options (set debug 'false')",
        "other objects",
        "wrapper wrapper: what it is made of",
    ),
    ("alter sequence app.tuned_by owned by none", "definitions", "app.tuned_by: the column that it belongs to"),
    (
        "alter text search configuration app.words alter mapping for word with app.dictionary",
        "other objects",
        "app.words: what it is made of",
    ),
    (
        "alter text search dictionary app.dictionary (accept = false)",
        "other objects",
        "app.dictionary: what it is made of",
    ),
    (
        "alter table app.tuned alter a set statistics 78",
        "definitions",
        "app.tuned: storage, compression, statistics target",
    ),
    ("alter table app.orders alter amount set (n_distinct = 3)", "definitions", "app.orders: storage"),
    ("alter table app.customers alter name set storage external", "definitions", "app.customers: storage"),
    ("alter table app.tuned set without cluster", "definitions", "app.tuned: clustered on"),
    ("alter function app.scored(int) cost 8 rows 10", "definitions", "app.scored(integer): cost, rows"),
    ("alter statistics app.stats set statistics 5", "other objects", "app.stats: what it is made of"),
    ("comment on table app.customers is 'another'", "comments", "app.customers: its comment"),
    ("comment on column app.tuned.a is null", "comments", "app.tuned: the comment of a column"),
    ("comment on schema app is 'another'", "comments", "schema app: its comment"),
    ("comment on server far is 'another'; comment on extension hstore is 'x'", "comments", "server far: its comment"),
    (
        "comment on constraint \"no \"\"bad\"\" names\" on app.customers is null",
        "comments",
        "app.customers: its comment",
    ),
    ("comment on large object 70000 is null", "comments", "large objects: what comments say"),
    ("comment on database finer is 'x'", "comments", "the database: its comment"),
    ("alter database finer is_template true", "database settings", "the database: template"),
    (
        "drop type app.letters; create type app.letters as range (subtype = text)",
        "definitions",
        "app.letters: what it is made of",
    ),
    (
        "drop collation app.german; create collation app.german (provider = icu, locale = 'sv-SE')",
        "other objects",
        "collation app.german: locale is 'sv-se', was 'de'",
    ),
    (
        "drop collation app.loose; create collation app.loose (provider = icu, locale = 'de-u-ks-level2')",
        "other objects",
        "collation app.loose: what it is made of",
    ),
    (
        "drop collation app.plain; create collation app.plain (provider = libc, lc_collate = 'C', lc_ctype = 'POSIX')",
        "other objects",
        "collation app.plain: locale",
    ),
    (
        "drop operator app.@+@ (int, int); create operator app.@+@ (leftarg = int, rightarg = int, function = int4mi)",
        "other objects",
        "operator app.@+@(integer,integer): what it is made of",
    ),
    (
        "alter operator app.@<@ (int, int) set (restrict = none)",
        "other objects",
        "operator app.@<@(integer,integer): what it is made of",
    ),
    (
        "drop cast (int as app.mood); create cast (int as app.mood) with function app.to_mood(int) as implicit",
        "other objects",
        "cast (integer AS app.mood): what it is made of",
    ),
    (
        "drop operator family app.backwards using btree cascade; create operator class app.backwards for type int using btree as \
         operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 btint4cmp(int, int)",
        "other objects",
        "operator class app.backwards USING btree: what it is made of",
    ),
    (
        "alter operator family app.family using btree drop operator 1 (int8, int4)",
        "other objects",
        "operator family app.family USING btree: what it is made of",
    ),
    (
        "drop conversion app.latin; create default conversion app.latin for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
        "other objects",
        "conversion app.latin: what it is made of",
    ),
    (
        "drop statistics app.kinds; create statistics app.kinds (ndistinct) on n, a from app.tuned; \
         alter statistics app.kinds set statistics 0",
        "other objects",
        "app.kinds: what it is made of",
    ),
    (
        "drop statistics app.phrases; create statistics app.phrases on (lower(a)), (upper(b)) from app.tuned",
        "other objects",
        "app.phrases: definition differs",
    ),
    (
        "alter table app.tuned reset (toast.autovacuum_enabled)",
        "definitions",
        "app.tuned: the list of options of its TOAST table is '{autovacuum_vacuum_threshold=7}'",
    ),
    (
        "drop aggregate app.sum_of(int); create aggregate app.sum_of(int) (sfunc = int4pl, stype = int)",
        "definitions",
        "app.sum_of(integer): what it is made of",
    ),
    (
        "drop text search parser app.parser; create text search parser app.parser (start = prsd_start, gettoken = prsd_nexttoken, \
         end = prsd_end, lextypes = prsd_lextype, headline = prsd_headline)",
        "other objects",
        "parser app.parser: what it is made of",
    ),
    (
        "drop text search template app.template; create text search template app.template (lexize = dsimple_lexize)",
        "other objects",
        "template app.template: what it is made of",
    ),
    (
        "drop transform for int language plpgsql; \
         create transform for int language plpgsql (to sql with function int4recv(internal))",
        "other objects",
        "transform for integer on language plpgsql: what it is made of",
    ),
    ("update pg_language set lanvalidator = 0 where lanname = 'spoken'", "other objects", "language spoken: what it"),
    (
        "drop access method heap_too; create access method heap_too type index handler bthandler",
        "other objects",
        "access method heap_too: what it is made of",
    ),
    ("alter type app.label set (storage = external)", "definitions", "type app.label: what it is made of"),
    (
        "alter default privileges in schema app revoke select on tables from \"app owner\"",
        "privileges",
        "default acl for role postgres in schema app on tables: what is granted",
    ),
    (
        "alter default privileges for role \"app owner\" grant execute on functions to public",
        "other objects",
        "default acl for role \"app owner\" on functions is missing",
    ),
    (
        "alter subscription follower connection 'host=/elsewhere dbname=far user=u password=hunter2'",
        "other objects",
        "subscription follower: where it connects to differs",
    ),
    (
        "alter subscription follower set (slot_name = another)",
        "other objects",
        "subscription follower: what it is made of",
    ),
    ("comment on subscription follower is 'another'", "comments", "subscription follower: its comment"),
    (
        "alter subscription follower enable",
        "subscriptions are switched on",
        "subscription follower: it is switched on, and was off",
    ),
];

#[test]
fn what_hangs_on_objects_is_compared_without_their_secrets() {
    let server = installed_or_skip!();
    let source = Source::filled(&server, "finer");
    // Statistics of expressions came with 14.
    source
        .cluster
        .psql_db("src", "create statistics app.phrases on (lower(a)), (b::varchar(3) in ('x', 'y')) from app.tuned");
    // A database that is copied leaves its subscriptions behind, so this is not part of the schema.
    let subscription = "create subscription follower connection 'host=/nowhere dbname=far user=u password=hunter2' publication b, a \
                        with (connect = false, slot_name = slot, binary = true)";
    source.cluster.psql_db("src", subscription);
    source.cluster.psql_db("src", "comment on subscription follower is 'ours'");
    let truth = source.truth("src", &["--hash"]);
    assert!(!std::fs::read_to_string(&truth).expect("text").contains("hunter2"));
    source.dump_and_restore("src", "finer");
    source.validate("finer", Some(&truth), &["--amcheck", "off"]).expect_code(0);
    // The same rights in another order, and the same connection with another password.
    source.cluster.psql_db(
        "finer",
        "alter default privileges in schema app revoke select on tables from \"app owner\", \"it's \"\"reader\"\"; drop role postgres\"; \
         alter default privileges in schema app grant select on tables to \"app owner\", \"it's \"\"reader\"\"; drop role postgres\"; \
         alter subscription follower connection 'password=other user=u dbname=far host=/nowhere'",
    );
    source.validate("finer", Some(&truth), &["--amcheck", "off"]).expect_code(0);
    FINER.iter().for_each(|(sql, ..)| drop(source.cluster.psql_db("finer", sql)));
    let document = source.validate("finer", Some(&truth), &["--amcheck", "off"]).expect_code(21).json();
    for (sql, name, words) in FINER {
        let told = strings(&check(&document, name)["details"]);
        assert!(told.iter().any(|detail| detail.contains(words)), "{sql}: {name}: {told:?}\n{document}");
    }
    for name in ["rows", "contents", "tables", "constraints", "row security"] {
        assert_eq!(check(&document, name)["outcome"], "ok", "{name}: {document}");
    }
}
