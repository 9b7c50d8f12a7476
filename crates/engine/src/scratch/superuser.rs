//! Who owns a cluster that lies there as files: the role that `initdb` made, by the name it has in `pg_authid`.
//!
//! Invariant: nothing but a name comes out of it, and a wrong one opens nothing.

use std::path::Path;

use crate::error::{EngineError, Result};

/// `pg_authid`, and the role that `initdb` made (`src/include/catalog/pg_authid.dat`).
const AUTHID: u32 = 1260;
const BOOTSTRAP: u32 = 10;
const PAGE: usize = 8192;
const MAP_MAGIC: u32 = 0x0059_2717;
/// `PageHeaderData` and `HeapTupleHeaderData` up to the bits.
const PAGE_HEADER: usize = 24;
const XMAX_INVALID: u16 = 0x0800;
const NAME: usize = 64;

/// The name of the role that owns the cluster in `data`.
///
/// # Errors
/// When there is none that is understood: its files are not what they should be.
pub fn bootstrap_superuser(data: &Path) -> Result<String> {
    let read = |name: &str| {
        let path = data.join("global").join(name);
        std::fs::read(&path).map_err(|e| EngineError::file("reading", path, e))
    };
    let unknown = |why: &str| {
        EngineError::failed("E-SUPERUSER", format!("the name of the cluster's superuser is not known: {why}"), "")
    };
    let map = read("pg_filenode.map")?;
    let file = filenode(&map).ok_or_else(|| unknown("global/pg_filenode.map is not understood"))?;
    let table = read(&file.to_string())?;
    name_in(&table).ok_or_else(|| unknown(&format!("global/{file} does not hold it")))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_le_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number(bytes, at).map(|b| usize::from(u16::from_le_bytes(b)))
}

/// `RelMapFile` in `relmapper.c`.
fn filenode(map: &[u8]) -> Option<u32> {
    if u32_at(map, 0)? != MAP_MAGIC {
        return None;
    }
    let count = usize::try_from(u32_at(map, 4)?).ok()?;
    let entries = map.get(8..)?.chunks_exact(8).take(count);
    entries.filter(|e| u32_at(e, 0) == Some(AUTHID)).find_map(|e| u32_at(e, 4))
}

/// Of several versions of its row, the last one that nobody replaced.
fn name_in(table: &[u8]) -> Option<String> {
    let rows = table.chunks_exact(PAGE).flat_map(rows_of);
    let mut found: Option<(bool, String)> = None;
    for (live, name) in rows {
        if live || found.as_ref().is_none_or(|(live, _)| !live) {
            found = Some((live, name));
        }
    }
    found.map(|(_, name)| name)
}

fn rows_of(page: &[u8]) -> Vec<(bool, String)> {
    let lower = u16_at(page, 12).unwrap_or(0).min(PAGE);
    let pointers = page.get(PAGE_HEADER..lower).unwrap_or_default().chunks_exact(4);
    pointers.filter_map(|p| row(page, u32_at(p, 0)?)).collect()
}

/// The row behind a line pointer, if it is of that role: whether nobody replaced it, and its name.
fn row(page: &[u8], pointer: u32) -> Option<(bool, String)> {
    let (offset, flags, length) = (pointer & 0x7fff, (pointer >> 15) & 3, pointer >> 17);
    if flags != 1 {
        return None;
    }
    let offset = usize::try_from(offset).ok()?;
    let tuple = page.get(offset..offset.checked_add(usize::try_from(length).ok()?)?)?;
    let replaced = u32_at(tuple, 4)? != 0 && u16::from_le_bytes(number(tuple, 20)?) & XMAX_INVALID == 0;
    let data = tuple.get(usize::from(*tuple.get(22)?)..)?;
    if u32_at(data, 0)? != BOOTSTRAP {
        return None;
    }
    let name = data.get(4..4 + NAME)?;
    let end = name.iter().position(|b| *b == 0)?;
    let name = std::str::from_utf8(name.get(..end)?).ok()?;
    (!name.is_empty()).then(|| (!replaced, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &[(u32, &str, u32)]) -> Vec<u8> {
        let mut page = vec![0u8; PAGE];
        let mut at = PAGE;
        for (n, (oid, name, xmax)) in rows.iter().enumerate() {
            at -= 128;
            page[at + 4..at + 8].copy_from_slice(&xmax.to_le_bytes());
            page[at + 22] = 24;
            page[at + 24..at + 28].copy_from_slice(&oid.to_le_bytes());
            page[at + 28..at + 28 + name.len()].copy_from_slice(name.as_bytes());
            let pointer = u32::try_from(at).unwrap() | 1 << 15 | 128 << 17;
            page[PAGE_HEADER + 4 * n..PAGE_HEADER + 4 * n + 4].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = u16::try_from(PAGE_HEADER + 4 * rows.len()).unwrap();
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page
    }

    #[test]
    fn the_row_that_nobody_replaced_has_the_name() {
        assert_eq!(name_in(&page(&[(16384, "app", 0), (10, "postgres", 0)])).as_deref(), Some("postgres"));
        let renamed = page(&[(10, "postgres", 700), (16384, "app", 0), (10, "the owner", 0)]);
        assert_eq!(name_in(&renamed).as_deref(), Some("the owner"));
        assert_eq!(
            name_in(&page(&[(10, "postgres", 700)])).as_deref(),
            Some("postgres"),
            "who replaced it may not have committed"
        );
        assert_eq!(name_in(&page(&[(16384, "app", 0)])), None);
    }

    #[test]
    fn what_is_no_catalog_gives_no_name() {
        for garbage in [vec![], vec![0xff; PAGE], vec![0x7f; 3 * PAGE], vec![0; PAGE - 1]] {
            assert_eq!(name_in(&garbage), None);
            assert_eq!(filenode(&garbage), None);
        }
        let map = [MAP_MAGIC, 2, 1262, 1, AUTHID, 99].map(u32::to_le_bytes).concat();
        assert_eq!(filenode(&map), Some(99));
        assert_eq!(filenode(&map[..20]), None);
    }
}
