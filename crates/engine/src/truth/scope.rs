//! Which objects of a database are in a dump, or in the part of a dump that was restored: by the dump's table of contents. Pure.
//!
//! Invariant: an object of which that cannot be told for certain is not said to be inside, so that nothing is missed that was
//! never to come.

use std::collections::{HashMap, HashSet};

use pgark_pg::dump_toc::{DumpToc, TocEntry};

use super::{Object, Text};
use crate::cluster::ObjectKind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Inside,
    Outside,
    /// Its name is written in another encoding in the dump.
    Unknown,
}

type Qualified = (Vec<u8>, Vec<u8>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    relations: HashSet<Qualified>,
    /// The same, as `'schema'.'name'`.
    quoted: HashSet<Vec<u8>>,
    schemas: HashSet<Vec<u8>>,
    extensions: HashSet<Vec<u8>>,
    /// Of those, the ones that came with a part of which nothing needs them.
    spare_extensions: HashSet<Vec<u8>>,
    types: HashSet<Qualified>,
    /// Of which every one of that name is inside.
    functions: HashSet<Qualified>,
    /// Schema, and table and name as one.
    foreign_keys: HashSet<Qualified>,
    /// Names can be compared as bytes.
    same_encoding: bool,
}

const RELATIONS: [&[u8]; 5] = [b"TABLE", b"VIEW", b"MATERIALIZED VIEW", b"FOREIGN TABLE", b"SEQUENCE"];
const EXTENSION: &[u8] = b"EXTENSION";
const FUNCTIONS: [&[u8]; 3] = [b"FUNCTION", b"PROCEDURE", b"AGGREGATE"];

impl Scope {
    /// `ids`: the entries that were restored; None: all. `encoding`: of the database that was dumped.
    pub fn of(toc: &DumpToc, ids: Option<&[u32]>, encoding: &str) -> Self {
        let ids: Option<HashSet<u32>> = ids.map(|ids| ids.iter().copied().collect());
        let mut scope = Scope { same_encoding: matches!(encoding, "UTF8" | "SQL_ASCII"), ..Scope::default() };
        let mut functions: HashMap<Qualified, bool> = HashMap::new();
        for entry in &toc.entries {
            let inside = ids.as_ref().is_none_or(|ids| ids.contains(&entry.id));
            if FUNCTIONS.contains(&entry.kind.as_slice()) {
                let name = entry.name.split(|b| *b == b'(').next().unwrap_or_default();
                *functions.entry((entry.schema.clone(), name.to_vec())).or_insert(true) &= inside;
            } else if inside {
                scope.add(entry);
            }
        }
        scope.spare_extensions = spare(toc, ids.as_ref());
        scope.functions = functions.into_iter().filter(|(_, all)| *all).map(|(name, _)| name).collect();
        scope
    }

    fn add(&mut self, entry: &TocEntry) {
        let qualified = || (entry.schema.clone(), entry.name.clone());
        match entry.kind.as_slice() {
            kind if RELATIONS.contains(&kind) => {
                self.quoted.insert([literal(&entry.schema), b".".to_vec(), literal(&entry.name)].concat());
                self.relations.insert(qualified());
            }
            b"SCHEMA" => drop(self.schemas.insert(entry.name.clone())),
            EXTENSION => drop(self.extensions.insert(entry.name.clone())),
            b"TYPE" | b"DOMAIN" => drop(self.types.insert(qualified())),
            b"FK CONSTRAINT" => drop(self.foreign_keys.insert(qualified())),
            _ => {}
        }
    }

    pub fn has_relation(&self, schema: &[u8], name: &[u8]) -> bool {
        self.relations.contains(&(schema.to_vec(), name.to_vec()))
    }

    /// Whether it was restored only because every extension is: what it was like is no part of the selection.
    pub fn is_spare(&self, object: &Object) -> bool {
        match (object.kind, object.name.as_slice()) {
            (ObjectKind::Extension, [Text(name)]) => self.spare_extensions.contains(name),
            _ => false,
        }
    }

    pub fn place(&self, object: &Object) -> Place {
        if !self.same_encoding && object.name.iter().any(|part| !part.0.is_ascii()) {
            return Place::Unknown;
        }
        if self.has(object) { Place::Inside } else { Place::Outside }
    }

    fn has(&self, object: &Object) -> bool {
        let parts: Vec<&[u8]> = object.name.iter().map(|Text(bytes)| bytes.as_slice()).collect();
        let qualified = |schema: &[u8], name: &[u8]| (schema.to_vec(), name.to_vec());
        match (object.kind, parts.as_slice()) {
            // Made anew with its settings, whatever is loaded into it.
            (ObjectKind::Database, _) => true,
            (ObjectKind::Schema, [name]) => self.schemas.contains(*name),
            (ObjectKind::Extension, [name]) => self.extensions.contains(*name),
            (ObjectKind::Type, [schema, name]) => self.types.contains(&qualified(schema, name)),
            (ObjectKind::Function, [schema, name, ..]) => self.functions.contains(&qualified(schema, name)),
            (ObjectKind::Relation, [schema, name]) => self.has_relation(schema, name),
            (ObjectKind::Index, _) => object.fact("on_table").is_some_and(|table| self.quoted.contains(&table.0)),
            (ObjectKind::Constraint, [schema, table, name]) if object.says("contype", "f") => {
                let tag = [table, b" ".as_slice(), name].concat();
                self.foreign_keys.contains(&(schema.to_vec(), tag))
            }
            (ObjectKind::Constraint, [schema, on, _]) => {
                self.has_relation(schema, on) || self.types.contains(&qualified(schema, on))
            }
            (ObjectKind::Trigger | ObjectKind::Rule | ObjectKind::Policy, [schema, table, _]) => {
                self.has_relation(schema, table)
            }
            (ObjectKind::SequenceUse, [sequence, table, _]) => {
                self.quoted.contains(*sequence) && self.quoted.contains(*table)
            }
            // Of large objects and the rest, an entry does not tell which it is.
            _ => false,
        }
    }
}

/// Extensions come with every selection; what is said of them comes with what needs them. That one of these needs another is no
/// reason: a needed one brings what is said of those that it needs.
fn spare(toc: &DumpToc, ids: Option<&HashSet<u32>>) -> HashSet<Vec<u8>> {
    let Some(ids) = ids else { return HashSet::new() };
    let restored = || toc.entries.iter().filter(|e| ids.contains(&e.id));
    let needed: HashSet<u32> =
        restored().filter(|e| e.kind != EXTENSION).flat_map(|e| e.depends_on.iter().copied()).collect();
    restored().filter(|e| e.kind == EXTENSION && !needed.contains(&e.id)).map(|e| e.name.clone()).collect()
}

/// As PostgreSQL's `quote_literal` writes it.
fn literal(name: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    if name.contains(&b'\\') {
        out.push(b'E');
    }
    out.push(b'\'');
    for byte in name {
        if matches!(byte, b'\'' | b'\\') {
            out.push(*byte);
        }
        out.push(*byte);
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_that_nothing_restored_needs_is_spare() {
        let mut toc = sample();
        let comment = TocEntry { id: 11, kind: b"COMMENT".to_vec(), depends_on: vec![10], ..toc.entries[0].clone() };
        toc.entries.push(comment);
        let extension = object(ObjectKind::Extension, &["pg_trgm"], &[]);
        for (ids, spare) in [(Some([1, 10].as_slice()), true), (Some([1, 10, 11].as_slice()), false), (None, false)] {
            let scope = Scope::of(&toc, ids, "UTF8");
            assert_eq!(scope.place(&extension), Place::Inside);
            assert_eq!(scope.is_spare(&extension), spare, "{ids:?}");
        }
    }

    fn toc(entries: &[(u32, &str, &str, &str)]) -> DumpToc {
        let entry = |(id, kind, schema, name): &(u32, &str, &str, &str)| TocEntry {
            id: *id,
            kind: kind.as_bytes().to_vec(),
            name: name.as_bytes().to_vec(),
            schema: schema.as_bytes().to_vec(),
            owner: vec![],
            has_data: false,
            definition: vec![],
            depends_on: vec![],
        };
        DumpToc { version: (1, 14), database: vec![], entries: entries.iter().map(entry).collect(), length: 0 }
    }

    fn object(kind: ObjectKind, name: &[&str], facts: &[(&str, &str)]) -> Object {
        let facts = facts.iter().map(|(k, v)| ((*k).to_owned(), Text::from(*v))).collect();
        Object { kind, name: name.iter().map(|part| Text::from(*part)).collect(), facts }
    }

    fn sample() -> DumpToc {
        toc(&[
            (1, "SCHEMA", "", "app"),
            (2, "TABLE", "app", "it's \\ odd"),
            (3, "TABLE", "app", "other"),
            (4, "FUNCTION", "app", "twice(integer)"),
            (5, "FUNCTION", "app", "twice(text)"),
            (6, "FK CONSTRAINT", "app", "other to_odd"),
            (7, "SEQUENCE", "app", "s"),
            (8, "DOMAIN", "app", "positive"),
            (9, "TABLE DATA", "app", "other"),
            (10, "EXTENSION", "", "pg_trgm"),
        ])
    }

    #[test]
    fn what_belongs_to_a_restored_table_is_inside_and_nothing_else() {
        use ObjectKind::*;
        let scope = Scope::of(&sample(), Some(&[1, 2, 4, 7]), "UTF8");
        let inside = [
            object(Database, &[], &[]),
            object(Schema, &["app"], &[]),
            object(Relation, &["app", "it's \\ odd"], &[]),
            object(Index, &["app", "any"], &[("on_table", "'app'.E'it''s \\\\ odd'")]),
            object(Constraint, &["app", "it's \\ odd", "odd_pkey"], &[("contype", "p")]),
            object(SequenceUse, &["'app'.'s'", "'app'.E'it''s \\\\ odd'", "id"], &[]),
            object(Trigger, &["app", "it's \\ odd", "t"], &[]),
        ];
        for object in inside {
            assert_eq!(scope.place(&object), Place::Inside, "{object:?}");
        }
        let outside = [
            object(Schema, &["public"], &[]),
            object(Relation, &["app", "other"], &[]),
            object(Relation, &["public", "it's \\ odd"], &[]),
            object(Index, &["app", "any"], &[("on_table", "'app'.'other'")]),
            object(Constraint, &["app", "other", "to_odd"], &[("contype", "f")]),
            // One of two of that name was restored: which one is not told.
            object(Function, &["app", "twice", "integer"], &[]),
            object(Type, &["app", "positive"], &[]),
            object(Extension, &["pg_trgm"], &[]),
            object(LargeObjects, &[], &[]),
            object(Other, &["publication", "p"], &[]),
        ];
        for object in outside {
            assert_eq!(scope.place(&object), Place::Outside, "{object:?}");
        }
    }

    #[test]
    fn of_a_whole_dump_everything_in_it_is_inside() {
        use ObjectKind::*;
        let scope = Scope::of(&sample(), None, "LATIN1");
        for object in [
            object(Function, &["app", "twice", "integer"], &[]),
            object(Constraint, &["app", "other", "to_odd"], &[("contype", "f")]),
            object(Constraint, &["app", "positive", "positive_check"], &[("contype", "c")]),
            object(Extension, &["pg_trgm"], &[]),
        ] {
            assert_eq!(scope.place(&object), Place::Inside, "{object:?}");
        }
        assert!(scope.has_relation(b"app", b"other") && !scope.has_relation(b"app", b"third"));
        assert_eq!(scope.place(&object(Relation, &["app", "caf\u{e9}"], &[])), Place::Unknown);
    }
}
