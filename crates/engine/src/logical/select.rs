//! Which entries of a dump a selection of schemas or tables needs. Pure.
//!
//! A table comes with what it is made of (types, functions, sequences, its schema) and with what belongs to it: data, defaults,
//! constraints, indexes, triggers, policies, comments, rights, and its partitions. A foreign key comes when both of its tables do: also of
//! a dump of parts, which has keys to tables that it does not hold.

use std::collections::{BTreeSet, HashMap, HashSet};

use pgark_pg::dump_toc::{DumpToc, FOREIGN_KEY, TocEntry};
use pgark_pg::foreign_key::ForeignKey;
use pgark_repo::record::KeyOutside;

/// What was asked for: names as they are, no patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub schemas: Vec<String>,
    /// `table` or `schema.table`.
    pub tables: Vec<String>,
}

impl Selection {
    pub fn is_everything(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// In the order of the dump.
    pub ids: Vec<u32>,
    /// Foreign keys to tables that are not selected, or not even in the dump.
    pub left_out: Vec<LeftKey>,
    /// What was asked for and is not in the dump.
    pub missing: Vec<String>,
}

/// A foreign key whose own table comes, and the other one does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftKey {
    pub name: String,
    /// Its table.
    pub table: String,
    /// As it is written in the dump, and in its encoding.
    pub definition: Vec<u8>,
    /// The other table, where the dump does not hold it.
    pub outside: Option<String>,
}

impl LeftKey {
    pub fn warning(&self) -> String {
        let why = match &self.outside {
            Some(other) => format!("{}, which it refers to, is not in the backup", other.escape_debug()),
            None => "the table that it refers to is not part of the selection".to_owned(),
        };
        format!("not restored: foreign key {} of table {}: {why}", self.name.escape_debug(), self.table.escape_debug())
    }
}

/// What of a dump of parts no load can make. `pg_dump` writes it all the same, and says nothing.
pub fn keys_outside(toc: &DumpToc) -> Vec<KeyOutside> {
    let left_out = select(toc, &Selection::default()).left_out;
    let keys = left_out
        .into_iter()
        .filter_map(|key| Some(KeyOutside { name: key.name, table: key.table, refers_to: key.outside? }));
    keys.collect()
}

/// In words, a few by name; None where there are none.
pub fn told_outside(database: &str, keys: &[KeyOutside]) -> Option<String> {
    let shown = |key: &KeyOutside| {
        let (name, table, other) = (key.name.escape_debug(), key.table.escape_debug(), key.refers_to.escape_debug());
        format!("{name} of {table} to {other}")
    };
    let some: Vec<String> = keys.iter().take(KEYS_SHOWN).map(shown).collect();
    let more = keys.len().saturating_sub(KEYS_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!keys.is_empty()).then(|| {
        format!(
            "'{}': foreign keys to tables that are not in this backup, which a restore leaves out: {}{more}",
            database.escape_debug(),
            some.join(", ")
        )
    })
}

const KEYS_SHOWN: usize = 5;

/// Of these there are rows or definitions of rows.
const RELATIONS: [&[u8]; 5] = [b"TABLE", b"VIEW", b"MATERIALIZED VIEW", b"FOREIGN TABLE", b"SEQUENCE"];
/// What belongs to the object that it depends on.
const BELONGS: [&[u8]; 21] = [
    b"TABLE DATA",
    b"SEQUENCE SET",
    b"SEQUENCE OWNED BY",
    b"SEQUENCE",
    b"MATERIALIZED VIEW DATA",
    b"DEFAULT",
    b"CONSTRAINT",
    b"CHECK CONSTRAINT",
    b"FK CONSTRAINT",
    b"INDEX",
    b"INDEX ATTACH",
    b"TABLE ATTACH",
    b"TRIGGER",
    b"RULE",
    b"POLICY",
    b"ROW SECURITY",
    b"STATISTICS",
    b"STATISTICS DATA",
    b"COMMENT",
    b"SECURITY LABEL",
    b"ACL",
];
/// Said of any object.
const REMARKS: [&[u8]; 3] = [b"COMMENT", b"SECURITY LABEL", b"ACL"];
/// Settings of the session that every restore begins with.
const ALWAYS: [&[u8]; 4] = [b"ENCODING", b"STDSTRINGS", b"SEARCHPATH", b"EXTENSION"];

/// An empty selection is everything that can be loaded.
pub fn select(toc: &DumpToc, selection: &Selection) -> Selected {
    let by_id: HashMap<u32, &TocEntry> = toc.entries.iter().map(|e| (e.id, e)).collect();
    let mut missing = vec![];
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    if selection.is_everything() {
        taken.extend(by_id.keys());
    }
    for schema in &selection.schemas {
        let inside =
            |e: &&TocEntry| e.schema == schema.as_bytes() || (e.kind == b"SCHEMA" && e.name == schema.as_bytes());
        let found: Vec<u32> = toc.entries.iter().filter(inside).map(|e| e.id).collect();
        if found.is_empty() {
            missing.push(format!("schema '{}'", schema.escape_debug()));
        }
        taken.extend(found);
    }
    for table in &selection.tables {
        let found: Vec<u32> = toc.entries.iter().filter(|e| is_table(e, table)).map(|e| e.id).collect();
        if found.is_empty() {
            missing.push(format!("table '{}'", table.escape_debug()));
        }
        taken.extend(found);
    }
    // All extensions come, so the schemas that they are made in do, with what is said of these.
    let extensions = toc.entries.iter().filter(|e| e.kind == b"EXTENSION");
    let made_in = extensions.flat_map(|e| e.depends_on.iter().copied());
    taken.extend(made_in.filter(|id| by_id.get(id).is_some_and(|e| e.kind == b"SCHEMA")));
    // Decided at the end, when it is known which tables come.
    taken.retain(|id| by_id.get(id).is_some_and(|e| e.kind != FOREIGN_KEY));
    let relations = |taken: &BTreeSet<u32>| -> BTreeSet<u32> {
        taken.iter().filter(|id| is_relation(&by_id, **id)).copied().collect()
    };
    loop {
        let before = taken.len();
        let wanted = relations(&taken);
        for e in toc.entries.iter().filter(|e| e.kind != FOREIGN_KEY && belongs(Some(e))) {
            let remark = REMARKS.contains(&e.kind.as_slice());
            let on =
                |id: &u32| wanted.contains(id) || (taken.contains(id) && (remark || belongs(by_id.get(id).copied())));
            if e.depends_on.iter().any(on) {
                taken.insert(e.id);
            }
        }
        // What these are made of; of an attached partition, both tables.
        let needed: Vec<u32> =
            taken.iter().filter_map(|id| by_id.get(id)).flat_map(|e| e.depends_on.iter().copied()).collect();
        taken.extend(needed.into_iter().filter(|id| by_id.get(id).is_some_and(|e| e.kind != FOREIGN_KEY)));
        if taken.len() == before {
            break;
        }
    }
    let wanted = relations(&taken);
    let there: HashSet<(&[u8], &[u8])> =
        toc.entries.iter().filter(|e| e.kind == b"TABLE").map(|e| (e.schema.as_slice(), e.name.as_slice())).collect();
    let mut left_out = vec![];
    for e in toc.entries.iter().filter(|e| e.kind == FOREIGN_KEY) {
        let tables: Vec<&u32> = e.depends_on.iter().filter(|id| is_relation(&by_id, **id)).collect();
        let (inside, all) = (tables.iter().any(|id| wanted.contains(id)), tables.iter().all(|id| wanted.contains(id)));
        let outside = refers_to(e).filter(|(schema, table)| !there.contains(&(schema.as_bytes(), table.as_bytes())));
        if outside.is_none() && (selection.is_everything() || inside && all) {
            taken.insert(e.id);
            taken.extend(e.depends_on.iter().copied().filter(|id| by_id.contains_key(id)));
        } else {
            // That of another table to this one is missed by nobody.
            let own = tables.iter().filter(|id| wanted.contains(id)).filter_map(|id| by_id.get(id));
            let outside = outside.map(|(schema, table)| format!("{schema}.{table}"));
            left_out.extend(own.filter_map(|table| left_key(e, table, outside.clone())));
        }
    }
    taken.extend(toc.entries.iter().filter(|e| ALWAYS.contains(&e.kind.as_slice())).map(|e| e.id));
    let ids = toc.entries.iter().map(|e| e.id).filter(|id| taken.contains(id)).collect();
    Selected { ids, left_out, missing }
}

/// Schema and name of the other table, in the bytes of the dump. None: it is not understood, and `pg_restore` will see.
fn refers_to(constraint: &TocEntry) -> Option<(String, String)> {
    let key = ForeignKey::parse(std::str::from_utf8(&constraint.definition).ok()?)?;
    Some((key.refers_to_schema, key.refers_to_table))
}

/// Constraints are called by their table and their own name. None: it is one of another table.
fn left_key(constraint: &TocEntry, table: &TocEntry, outside: Option<String>) -> Option<LeftKey> {
    let name = constraint.name.strip_prefix(table.name.as_slice())?.strip_prefix(b" ")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (constraint.schema == table.schema).then(|| LeftKey {
        name: text(name),
        table: format!("{}.{}", text(&table.schema), text(&table.name)),
        definition: constraint.definition.clone(),
        outside,
    })
}

fn is_relation(by_id: &HashMap<u32, &TocEntry>, id: u32) -> bool {
    by_id.get(&id).is_some_and(|e| RELATIONS.contains(&e.kind.as_slice()))
}

fn belongs(entry: Option<&TocEntry>) -> bool {
    entry.is_some_and(|e| BELONGS.contains(&e.kind.as_slice()))
}

fn is_table(e: &TocEntry, wanted: &str) -> bool {
    if !RELATIONS.contains(&e.kind.as_slice()) {
        return false;
    }
    // A name with a dot in it is found by either reading.
    let qualified = [e.schema.as_slice(), b".", &e.name].concat();
    e.name == wanted.as_bytes() || qualified == wanted.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toc(entries: &[(u32, &str, &str, &str, &[u32])]) -> DumpToc {
        let entry = |(id, kind, schema, name, depends_on): &(u32, &str, &str, &str, &[u32])| TocEntry {
            id: *id,
            kind: kind.as_bytes().to_vec(),
            name: name.as_bytes().to_vec(),
            schema: schema.as_bytes().to_vec(),
            owner: vec![],
            has_data: false,
            definition: vec![],
            depends_on: depends_on.to_vec(),
        };
        DumpToc { version: (1, 14), database: vec![], entries: entries.iter().map(entry).collect(), length: 0 }
    }

    fn sample() -> DumpToc {
        toc(&[
            (1, "ENCODING", "", "ENCODING", &[]),
            (2, "SCHEMA", "", "shop", &[]),
            (3, "TYPE", "public", "mood", &[]),
            (4, "SEQUENCE", "public", "orders_id_seq", &[]),
            (5, "TABLE", "public", "orders", &[3]),
            (6, "TABLE", "shop", "items", &[2]),
            (7, "TABLE", "public", "other", &[]),
            (8, "SEQUENCE OWNED BY", "public", "orders_id_seq", &[4, 5]),
            (9, "DEFAULT", "public", "orders id", &[4, 5]),
            (10, "TABLE DATA", "public", "orders", &[5]),
            (11, "TABLE DATA", "shop", "items", &[6]),
            (12, "TABLE DATA", "public", "other", &[7]),
            (13, "SEQUENCE SET", "public", "orders_id_seq", &[4]),
            (14, "CONSTRAINT", "public", "orders orders_pkey", &[5]),
            (15, "CONSTRAINT", "shop", "items items_pkey", &[6]),
            (16, "INDEX", "public", "orders_at", &[5]),
            (17, "FK CONSTRAINT", "shop", "items items_order_fkey", &[5, 6, 14]),
            (18, "COMMENT", "public", "INDEX orders_at", &[16]),
            (19, "COMMENT", "public", "TYPE mood", &[3]),
            (20, "ACL", "public", "TABLE other", &[7]),
        ])
    }

    fn of(schemas: &[&str], tables: &[&str]) -> Selected {
        let text = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        select(&sample(), &Selection { schemas: text(schemas), tables: text(tables) })
    }

    #[test]
    fn a_table_comes_with_all_that_belongs_to_it_and_nothing_else() {
        let found = of(&[], &["public.orders"]);
        assert_eq!(found.ids, [1, 3, 4, 5, 8, 9, 10, 13, 14, 16, 18, 19]);
        // It belongs to another one.
        assert!(found.left_out.is_empty() && found.missing.is_empty());
    }

    #[test]
    fn a_foreign_key_comes_with_both_of_its_tables() {
        let found = of(&["shop"], &["orders"]);
        assert!(found.ids.contains(&17) && found.left_out.is_empty() && !found.ids.contains(&7));
        let alone = of(&["shop"], &[]);
        assert_eq!(alone.ids, [1, 2, 6, 11, 15]);
        let left: Vec<_> = alone.left_out.iter().map(|k| (k.name.as_str(), k.table.as_str())).collect();
        assert_eq!(left, [("items_order_fkey", "shop.items")]);
    }

    #[test]
    fn of_a_dump_of_parts_a_key_to_a_table_that_it_does_not_hold_is_left_out() {
        let mut toc = toc(&[
            (1, "ENCODING", "", "ENCODING", &[]),
            (2, "TABLE", "public", "orders", &[]),
            (3, "TABLE", "public", "items", &[]),
            (4, "CONSTRAINT", "public", "orders orders_pkey", &[2]),
            (5, "FK CONSTRAINT", "public", "items inside", &[2, 3, 4]),
            (6, "FK CONSTRAINT", "public", "items outside", &[3]),
            (7, "FK CONSTRAINT", "public", "orders itself", &[2, 4]),
            (8, "FK CONSTRAINT", "public", "orders unreadable", &[2]),
        ]);
        let statement = |table: &str, name: &str, other: &str| {
            let text = format!(
                "ALTER TABLE ONLY {table}\n    ADD CONSTRAINT {name} FOREIGN KEY (a) REFERENCES {other}(id) NOT VALID;\n"
            );
            text.into_bytes()
        };
        for (at, table, name, other) in [
            (4, "public.items", "inside", "public.orders"),
            (5, "public.items", "outside", "shop.\"Customers\""),
            (6, "public.orders", "itself", "public.orders"),
        ] {
            toc.entries[at].definition = statement(table, name, other);
        }
        let everything = select(&toc, &Selection::default());
        assert_eq!(everything.ids, [1, 2, 3, 4, 5, 7, 8]);
        let outside = keys_outside(&toc);
        let key =
            KeyOutside { name: "outside".into(), table: "public.items".into(), refers_to: "shop.Customers".into() };
        assert_eq!(outside, [key]);
        assert_eq!(
            told_outside("app", &outside).as_deref(),
            Some(
                "'app': foreign keys to tables that are not in this backup, which a restore leaves out: \
                 outside of public.items to shop.Customers"
            )
        );
        let items = select(&toc, &Selection { schemas: vec![], tables: vec!["items".into()] });
        assert_eq!(items.ids, [1, 3]);
        let left: Vec<_> = items.left_out.iter().map(|k| (k.name.as_str(), k.outside.as_deref())).collect();
        assert_eq!(left, [("inside", None), ("outside", Some("shop.Customers"))]);
        assert!(items.left_out[1].warning().contains("shop.Customers, which it refers to, is not in the backup"));
        // Of a whole dump nothing is outside.
        assert!(keys_outside(&sample()).is_empty() && select(&sample(), &Selection::default()).ids.len() == 20);
    }

    #[test]
    fn extensions_come_with_their_schema_and_without_what_is_said_of_them() {
        let text: &[(u32, &str, &str, &str, &[u32])] = &[
            (1, "SCHEMA", "", "ext", &[]),
            (2, "COMMENT", "", "SCHEMA ext", &[1]),
            (3, "EXTENSION", "", "hstore", &[1]),
            (4, "COMMENT", "", "EXTENSION hstore", &[3]),
            (5, "EXTENSION", "", "citext", &[]),
            (6, "COMMENT", "", "EXTENSION citext", &[5]),
            (7, "TABLE", "public", "a", &[5]),
            (8, "TABLE", "ext", "b", &[1]),
        ];
        let selection = Selection { schemas: vec![], tables: vec!["a".into()] };
        assert_eq!(select(&toc(text), &selection).ids, [1, 2, 3, 5, 6, 7]);
    }

    #[test]
    fn what_is_not_there_is_told() {
        assert_eq!(of(&["nope"], &["orders; drop"]).missing, ["schema 'nope'", "table 'orders; drop'"]);
    }
}
