-- A database with a little of everything, with names that try to be something else.
create role "app owner" nologin;
create role "it's ""reader""; drop role postgres" nologin;
create schema app authorization "app owner";
create schema "Odd ""schema"" $$;--";
create extension hstore;
create extension citext schema app;
create extension btree_gist;
create extension pg_trgm;
create type app.mood as enum ('sad', 'it''s ok', 'happy', 'naïve 🐘');
create type app.pair as (a int, "b b" text);
create domain app.positive as int check (value > 0);
create function app.twice(int) returns int language sql immutable as 'select $1 * 2';
create function app.note() returns trigger language plpgsql as 'begin new.note := coalesce(new.note, ''-''); return new; end';
create type app.label;
create function app.label_in(cstring) returns app.label language internal immutable strict as 'textin';
create function app.label_out(app.label) returns cstring language internal immutable strict as 'textout';
create type app.label (input = app.label_in, output = app.label_out, like = text, category = 'S', delimiter = ';', default = 'none');
create table app.labelled (l app.label, ls app.label[]);
insert into app.labelled values ('x', '{a;b}');
create aggregate app.total(int) (sfunc = int4pl, stype = int, initcond = '0');
create procedure app.nothing() language sql as 'select 1';
create table app.customers (
    id bigint generated always as identity primary key,
    name text not null collate "C",
    email app.citext unique,
    mood app.mood default 'happy',
    tags hstore,
    pairs app.pair[],
    age app.positive,
    price money,
    born interval,
    at timestamptz default '2026-01-02 03:04:05.678+02',
    ratio float8, small real,
    raw bytea,
    doc jsonb, plain json,
    span int4range,
    doubled int generated always as (app.twice(4)) stored,
    note text,
    constraint "no ""bad"" names" check (name <> 'bad'),
    exclude using gist (span with &&)
);
create trigger "note it" before insert on app.customers for each row execute function app.note();
insert into app.customers (name, email, mood, tags, pairs, age, price, born, ratio, small, raw, doc, plain, span)
select 'name ' || i || E'\n"\\', 'e' || i || '@x', (array['sad', 'it''s ok', null]::app.mood[])[i % 3 + 1], hstore('k', i::text),
       array[row(i, 'x,"y"')::app.pair], i + 1, (i * 1.1)::numeric::money, make_interval(days => i, secs => 1.5),
       case i % 4 when 0 then 'NaN'::float8 when 1 then '-Infinity' else i / 3.0 end, i / 7.0, decode(md5(i::text), 'hex'),
       jsonb_build_object('b', i, 'a', null), '{"b": 1,  "a": 2}', int4range(i * 10, i * 10 + 5)
from generate_series(1, 500) as i;
create table app.orders (
    id serial, customer bigint references app.customers, placed date not null, amount numeric(12, 3), primary key (id, placed)
) partition by range (placed);
create table app.orders_2025 partition of app.orders for values from ('2025-01-01') to ('2026-01-01');
create table app.orders_2026 partition of app.orders for values from ('2026-01-01') to ('2027-01-01') partition by hash (id);
create table app.orders_2026_a partition of app.orders_2026 for values with (modulus 2, remainder 0);
create table app.orders_2026_b partition of app.orders_2026 for values with (modulus 2, remainder 1);
create index on app.orders (amount desc nulls last) where amount > 5;
insert into app.orders (customer, placed, amount)
select i % 500 + 1, date '2025-06-01' + i % 400, i / 8.0 from generate_series(1, 3000) as i;
create table app.parent (a int, t text);
create table app.child (b int) inherits (app.parent);
insert into app.parent select i, 'p' from generate_series(1, 10) i;
insert into app.child select i, 'c', i from generate_series(1, 20) i;
create table "Odd ""schema"" $$;--"."it's; drop table app.orders; --" ("t" text, "r" int, "select" int, "%I %s" text, line text);
insert into "Odd ""schema"" $$;--"."it's; drop table app.orders; --" select E'a\tb', i, null, '%', '' from generate_series(1, 33) as i;
create index "odd ""index""; --" on "Odd ""schema"" $$;--"."it's; drop table app.orders; --" (lower("%I %s"));
create table public."sixty-three bytes long, which is the most that a name may have." (x int);
create table public."🐘
next" as select 7 as seven;
create unlogged table app.cache as select i from generate_series(1, 40) i;
create table app.empty (like app.customers);
create table app.nothing_at_all ();
insert into app.nothing_at_all default values;
insert into app.nothing_at_all default values;
create view app.names as select id, name from app.customers where age > 3;
create view app.more as select n.name, c.mood from app.names n join app.customers c using (id);
create materialized view app.per_mood as select mood, count(*) from app.customers group by mood;
create unique index on app.per_mood (mood);
create materialized view app.unread as select 1 as one with no data;
create rule "no deletes" as on delete to app.empty do instead nothing;
create sequence app.down increment -2 start 100 minvalue -1000 maxvalue 100;
select nextval('app.down'), nextval('app.down');
create sequence app.shared;
create table app.uses_shared (n bigint default nextval('app.shared'), v text);
insert into app.uses_shared (v) select 'x' from generate_series(1, 12);
create statistics app.stats on placed, amount from app.orders;
create index "trigrams" on app.customers using gin (name gin_trgm_ops);
create collation app.german (provider = icu, locale = 'de');
create collation app.loose (provider = icu, locale = 'de-u-ks-level2', deterministic = false);
create collation app.plain (provider = libc, locale = 'C');
create text search configuration app.words (copy = simple);
create operator app.@+@ (leftarg = int, rightarg = int, function = int4pl);
create operator app.@<@ (leftarg = int, rightarg = int, function = int4lt, commutator = operator(app.@>@), restrict = scalarltsel, join = scalarltjoinsel);
create operator app.@>@ (leftarg = int, rightarg = int, function = int4gt, commutator = operator(app.@<@));
create function app.to_mood(int) returns app.mood language sql immutable as $f$ select 'sad'::app.mood $f$;
create cast (int as app.mood) with function app.to_mood(int) as assignment;
create operator class app.backwards for type int using btree as
    operator 1 >, operator 2 >=, operator 3 =, operator 4 <=, operator 5 <, function 1 btint4cmp(int, int);
create operator family app.family using btree;
create operator class app.of_family for type int8 using btree family app.family as
    operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 btint8cmp(int8, int8);
alter operator family app.family using btree add
    operator 1 < (int8, int4), operator 3 = (int8, int4), function 1 (int8, int4) btint84cmp(int8, int4);
create conversion app.latin for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
create type app.letters as range (subtype = text, collation = app.german);
create aggregate app.sum_of(int) (sfunc = int4pl, stype = int, combinefunc = int4pl, msfunc = int4pl, minvfunc = int4mi, mstype = int);
create text search parser app.parser (start = prsd_start, gettoken = prsd_nexttoken, end = prsd_end, lextypes = prsd_lextype);
create text search template app.template (init = dsimple_init, lexize = dsimple_lexize);
create function app.handler() returns language_handler language c as '$libdir/plpgsql', 'plpgsql_call_handler';
create function app.validator(oid) returns void language c as '$libdir/plpgsql', 'plpgsql_validator';
create trusted language spoken handler app.handler validator app.validator;
create transform for int language plpgsql (from sql with function prsd_lextype(internal));
create access method heap_too type table handler heap_tableam_handler;
alter table app.customers enable row level security;
create policy "only ""mine""" on app.customers for select to "it's ""reader""; drop role postgres" using (id > 3);
grant usage on schema app to public;
grant select on app.customers to "it's ""reader""; drop role postgres" with grant option;
grant update (name, note) on app.customers to "it's ""reader""; drop role postgres";
alter table app.customers owner to "app owner";
alter table app.orders owner to "app owner";
alter default privileges in schema app grant select on tables to "it's ""reader""; drop role postgres";
alter default privileges in schema app grant select on tables to "app owner";
alter default privileges for role "app owner" revoke execute on functions from public;
alter default privileges for role "app owner" grant usage on sequences to "it's ""reader""; drop role postgres";
create publication news for table app.parent;
create foreign data wrapper wrapper options (debug 'true');
create server far foreign data wrapper wrapper options (host 'far.example.org');
create user mapping for current_user server far options (password 'hunter2');
create foreign table app.distant (i int options (column_name 'j')) server far options (table_name 'hunter2');
create text search dictionary app.dictionary (template = simple);
create function app.scored(int) returns setof int language sql cost 7 rows 9 as 'select 1';
create table app.tuned (a text, b text, n int);
alter table app.tuned alter a set statistics 77, alter a set storage external, alter n set (n_distinct = 5);
create unique index tuned_n on app.tuned (n);
alter table app.tuned cluster on tuned_n;
alter table app.tuned replica identity full;
alter table app.tuned set (toast.autovacuum_vacuum_threshold = 7, toast.autovacuum_enabled = false);
create statistics app.kinds (mcv, ndistinct) on n, a from app.tuned; alter statistics app.kinds set statistics 0;
create table app.was_wide (i int, t text) with (toast.autovacuum_enabled = false); alter table app.was_wide drop t;
create sequence app.tuned_by owned by app.tuned.n;
revoke usage on language plpgsql from public;
grant usage on language plpgsql to "app owner";
comment on column app.tuned.a is 'a column';
comment on schema app is 'a schema';
comment on function app.twice(int) is 'a function';
comment on server far is 'a server';
comment on constraint "no ""bad"" names" on app.customers is 'a constraint';
comment on extension hstore is 'ours';
select lo_from_bytea(70000, decode(repeat('ab', 5000), 'hex')), lo_from_bytea(70001, ''), lo_create(70002);
do $$ begin perform lo_put(70002, 100000, 'far away'); end $$;
grant select on large object 70000 to public;
comment on table app.customers is 'it''s';
comment on large object 70000 is 'large';
