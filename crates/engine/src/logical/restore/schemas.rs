//! Schemas that a dump of single tables speaks of and does not make: `pg_dump --table` leaves them out.

use std::collections::BTreeSet;

use pgark_pg::dump_toc::DumpToc;

use crate::logical::select::{Selection, select};

/// There in every new database.
const THERE: [&[u8]; 3] = [b"", b"public", b"pg_catalog"];

/// Of what is restored, in the order of their names. One whose name is not UTF-8 is left to PostgreSQL to miss.
pub(super) fn lacking(toc: &DumpToc, selection: Option<&Selection>) -> Vec<String> {
    let ids: Option<BTreeSet<u32>> = selection.map(|s| select(toc, s).ids.into_iter().collect());
    let restored = || toc.entries.iter().filter(|e| ids.as_ref().is_none_or(|ids| ids.contains(&e.id)));
    let made: BTreeSet<&[u8]> = restored().filter(|e| e.kind == b"SCHEMA").map(|e| e.name.as_slice()).collect();
    let spoken_of: BTreeSet<&[u8]> = restored().map(|e| e.schema.as_slice()).collect();
    let lacking = spoken_of.into_iter().filter(|name| !made.contains(name) && !THERE.contains(name));
    lacking.filter_map(|name| std::str::from_utf8(name).ok().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_pg::dump_toc::TocEntry;

    #[test]
    fn what_is_spoken_of_and_not_made_is_lacking() {
        let entry = |(id, kind, schema, name): (u32, &str, &str, &str)| TocEntry {
            id,
            kind: kind.as_bytes().to_vec(),
            name: name.as_bytes().to_vec(),
            schema: schema.as_bytes().to_vec(),
            owner: vec![],
            has_data: false,
            definition: vec![],
            depends_on: vec![],
        };
        let entries = [
            (1, "ENCODING", "", "ENCODING"),
            (2, "SCHEMA", "", "made"),
            (3, "TABLE", "made", "a"),
            (4, "TABLE", "app", "b"),
            (5, "TABLE", "it's \"odd\"", "c"),
            (6, "TABLE", "public", "d"),
        ];
        let toc = DumpToc {
            version: (1, 14),
            database: vec![],
            entries: entries.map(entry).into_iter().collect(),
            length: 0,
        };
        assert_eq!(lacking(&toc, None), ["app", "it's \"odd\""]);
        let one = Selection { schemas: vec![], tables: vec!["app.b".into()] };
        assert_eq!(lacking(&toc, Some(&one)), ["app"]);
    }
}
