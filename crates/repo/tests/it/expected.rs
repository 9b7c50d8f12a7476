//! How the contents of the stored samples are written down beside them.

use std::fmt::Write as _;

use pgark_repo::Repository;
use pgark_repo::catalog::{Catalog, CatalogStore};
use pgark_repo::error::Result;
use pgark_repo::manifest::{Chunk, Item};
use pgark_repo::record::{BackupRecord, manifest_reader};

use crate::sample::{Node, Tree, cluster};

pub const PASSPHRASE: &[u8] = b"golden";
pub const WRITER_PASSPHRASE: &[u8] = b"golden writer";
/// The synthetic ones of the sample repository.
pub const GOLDEN_SEGMENTS: [u64; 3] = [2, 3, 4];

pub fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// Fingerprints of sealed objects differ between the samples, their content does not.
fn without_fingerprints(mut value: serde_json::Value, keys: &[&str]) -> String {
    for key in keys {
        let place = value.pointer_mut(key).unwrap_or_else(|| panic!("no {key}"));
        *place = "differs".into();
    }
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

pub fn catalog(catalog: &Catalog) -> String {
    let value = serde_json::to_value(catalog).unwrap();
    without_fingerprints(value, &["/backups/0/record", "/backups/0/stored_bytes"])
}

pub fn record(record: &BackupRecord) -> String {
    without_fingerprints(serde_json::to_value(record).unwrap(), &["/manifest", "/totals/stored_bytes"])
}

pub fn tree(tree: &Tree) -> String {
    let mut out = String::new();
    for (path, node) in &tree.nodes {
        let path = String::from_utf8_lossy(path);
        let line = match node {
            Node::Directory { mode } => format!("directory {mode:o} '{path}'"),
            Node::Link { target } => format!("link '{path}' to '{}'", String::from_utf8_lossy(target)),
            Node::File { mode, modified_ns, content } => {
                format!(
                    "file {mode:o} '{path}' modified {modified_ns} bytes {} {}",
                    content.len(),
                    blake3::hash(content)
                )
            }
            Node::Vanished => format!("vanished '{path}'"),
        };
        writeln!(out, "{line}").unwrap();
    }
    for (file, block) in &tree.bad_blocks {
        writeln!(out, "bad block {block} of '{}'", String::from_utf8_lossy(file)).unwrap();
    }
    out
}

pub const VARIETY: &str = "bad block, chunk of 3 parts, codec Lz4, codec None, codec Zstd, data chunk, directory, \
    file, pack, pack done, patched chunk of 3 parts, symlink, vanished, zero chunk";

/// What kinds of things the manifest of the first backup holds, sorted.
pub fn variety(repo: &Repository) -> Result<String> {
    let catalog = CatalogStore::new(repo, &cluster()).read()?;
    let mut reader = manifest_reader(repo, &cluster(), &catalog.backups[0].id)?;
    let mut seen = std::collections::BTreeSet::new();
    while let Some(item) = reader.next_item()? {
        seen.insert(match &item {
            Item::Directory(_) => "directory".to_owned(),
            Item::Symlink(_) => "symlink".into(),
            Item::FileStart(_) | Item::FileEnd(_) => "file".into(),
            Item::Vanished(_) => "vanished".into(),
            Item::BadBlock(_) => "bad block".into(),
            Item::Pack(..) => "pack".into(),
            Item::PackDone(..) => "pack done".into(),
            Item::Chunks(_) => "data chunk".into(),
            Item::Attributes(_) => "attributes".into(),
            Item::HardLink(_) => "hard link".into(),
        });
        let Item::Chunks(chunks) = item else { continue };
        for chunk in chunks {
            match &chunk {
                Chunk::Zero(_) => drop(seen.insert("zero chunk".into())),
                Chunk::Data { parts, .. } if parts.len() > 1 => {
                    seen.insert(format!("chunk of {} parts", parts.len()));
                }
                Chunk::Data { .. } => {}
                Chunk::Patched { parts, .. } => drop(seen.insert(format!("patched chunk of {} parts", parts.len()))),
            }
            seen.extend(chunk.parts().iter().map(|p| format!("codec {:?}", p.frame.codec)));
        }
    }
    Ok(seen.into_iter().collect::<Vec<_>>().join(", "))
}
