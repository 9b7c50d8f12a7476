//! Names of objects. A value of `ObjectName` is safe as a relative path on any store: it cannot be absolute,
//! climb, hide, or hold a byte that some store or shell reads differently.

use std::fmt;

use super::StoreError;

/// Longest name as a whole, bytes: object stores stop at 1024.
pub const NAME_BYTES_MAX: usize = 1000;
/// Longest part between two slashes, bytes (NAME_MAX of Linux).
pub const PART_BYTES_MAX: usize = 255;

/// Relative name of an object: parts of `[A-Za-z0-9._=+@-]` separated by `/`, none starting with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    pub fn parse(name: &str) -> Result<Self, StoreError> {
        match name_fault(name) {
            None => Ok(ObjectName(name.to_owned())),
            Some(why) => Err(StoreError::InvalidName { name: printable(name), why }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This name, a slash, and `rest`, which may itself have several parts.
    pub fn join(&self, rest: &str) -> Result<Self, StoreError> {
        ObjectName::parse(&format!("{self}/{rest}"))
    }

    /// The directory-like part before the last slash, `""` at the top.
    pub fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// The part after the last slash.
    pub fn basename(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.as_str(), |(_, base)| base)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ObjectName {
    type Err = StoreError;
    fn from_str(name: &str) -> Result<Self, StoreError> {
        ObjectName::parse(name)
    }
}

/// `""` (everything) or a name without a trailing slash; what `list` and `list_dirs` accept.
pub(super) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.is_empty() { Ok(()) } else { ObjectName::parse(prefix).map(drop) }
}

/// `child` below `prefix`, where `prefix` may be the top.
pub(super) fn below(prefix: &str, child: &str) -> Result<ObjectName, StoreError> {
    if prefix.is_empty() { ObjectName::parse(child) } else { ObjectName::parse(&format!("{prefix}/{child}")) }
}

fn name_fault(name: &str) -> Option<&'static str> {
    if name.len() > NAME_BYTES_MAX {
        return Some("too long");
    }
    name.split('/').find_map(part_fault)
}

fn part_fault(part: &str) -> Option<&'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._=+@-".contains(&b);
    match part {
        "" => Some("an empty part"),
        p if p.len() > PART_BYTES_MAX => Some("a part is too long"),
        p if p.starts_with('.') => Some("a part starts with a dot"),
        p if !p.bytes().all(allowed) => Some("a character outside A-Z a-z 0-9 . _ = + @ -"),
        _ => None,
    }
}

/// For messages: short, on one line, without control characters.
fn printable(name: &str) -> String {
    name.escape_debug().take(200).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_the_store_or_hide_in_it_are_refused() {
        let long_part = "x".repeat(256);
        let long = "abcdefghi/".repeat(100) + "x";
        let bad = [
            "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/.b", ".tmp-1", "a b", "a\\b", "a\0", "a\n", "ä",
            "a:b", "a*", "~", &long_part, &long,
        ];
        for name in bad {
            assert!(matches!(ObjectName::parse(name), Err(StoreError::InvalidName { .. })), "{name:?}");
        }
        for name in ["a", "A/b.c/d_e", "a=1+2@x-y", "-", &"x".repeat(255), &long[..999]] {
            assert_eq!(ObjectName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_come_apart_and_together() {
        let name = ObjectName::parse("a/b").unwrap().join("c/d").unwrap();
        assert_eq!((name.parent(), name.basename()), ("a/b/c", "d"));
        let top = ObjectName::parse("a").unwrap();
        assert_eq!((top.parent(), top.basename()), ("", "a"));
        assert!(top.join("../b").is_err());
        assert!(top.join("").is_err());
    }

    proptest! {
        #[test]
        fn what_parses_is_a_plain_relative_path(name in "[a-z./\\\\=@ ]{0,20}") {
            if let Ok(n) = ObjectName::parse(&name) {
                let path = std::path::Path::new(n.as_str());
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert_eq!(path.components().count(), n.as_str().split('/').count());
            }
        }
    }
}
