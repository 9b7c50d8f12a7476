//! Backups that consist of named parts: streams such as dumps, cut where their content says so and kept in packs like everything
//! else. What the backup before has already is not stored again.
//!
//! Invariant: what a chunk says is what was handed in: after compression the bytes are decoded again and compared, and a
//! chunk is taken over by its content id alone. Memory does not grow with the length of a part.
//! It does not know what a part means.

mod before;
mod chunker;
mod read;
pub(crate) mod spool;
mod tree;
mod write;

pub use before::{Parent, choose_parent};
pub use read::{PartReader, Source};
pub(crate) use spool::nameless;
pub(crate) use tree::TreeSink;
pub use write::{Finished, ManifestOf, PartList, PartSink, Writer, WriterOptions};

/// Of the content of parts: databases are for their owner, so are their dumps.
pub const PART_MODE: u32 = 0o600;
pub const PART_DIR_MODE: u32 = 0o700;

/// A name as one component of a path in a manifest: letters, digits, `_` and `-` as they are, every other byte as `%` and two
/// hex digits. No two names have the same path.
pub fn component(name: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    name.iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgark_repo::manifest::check_path;

    #[test]
    fn a_name_becomes_one_component_whatever_it_is() {
        assert_eq!(component(b"app_1"), "app_1");
        assert_eq!(component(b".."), "%2E%2E");
        assert_eq!(component("a/b\n=%\u{1F418}".as_bytes()), "a%2Fb%0A%3D%25%F0%9F%90%98");
        let every: Vec<u8> = (1..=255).collect();
        for name in every.windows(63).chain([&b"."[..], b"--file=/tmp/x"]) {
            let path = format!("database/{}/dump", component(name));
            assert!(check_path(path.as_bytes()) && path.matches('/').count() == 2, "{path}");
        }
    }
}
