//! Names of users and groups. On another machine the same user may have another number.
//!
//! Read from `/etc/passwd` and `/etc/group`: what a directory service alone knows has a number and no name here.

use std::collections::HashMap;
use std::path::Path;

use pgark_repo::limits::OWNER_NAME_BYTES_MAX;
use pgark_repo::manifest::Attributes;

#[derive(Clone, Debug, Default)]
pub struct Owners {
    users: Table,
    groups: Table,
}

#[derive(Clone, Debug, Default)]
struct Table {
    names: HashMap<u32, Vec<u8>>,
    ids: HashMap<Vec<u8>, u32>,
}

impl Owners {
    pub fn of_this_machine() -> Self {
        let read = |path: &str| Table::parse(&std::fs::read(Path::new(path)).unwrap_or_default());
        Owners { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    /// Empty where it has none.
    pub fn user(&self, uid: u32) -> Vec<u8> {
        self.users.names.get(&uid).cloned().unwrap_or_default()
    }

    pub fn group(&self, gid: u32) -> Vec<u8> {
        self.groups.names.get(&gid).cloned().unwrap_or_default()
    }

    /// Who that is here: by name, where the name is known here, and by number otherwise.
    pub fn here(&self, a: &Attributes) -> (u32, u32) {
        let of = |table: &Table, name: &Vec<u8>, id: u32| table.ids.get(name).copied().unwrap_or(id);
        (of(&self.users, &a.user, a.uid), of(&self.groups, &a.group, a.gid))
    }
}

impl Table {
    /// `name:password:number:…`; the first of several lines counts, as in the C library.
    fn parse(text: &[u8]) -> Self {
        let mut table = Table::default();
        for line in text.split(|b| *b == b'\n') {
            let mut fields = line.split(|b| *b == b':');
            let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
            let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) else { continue };
            if name.is_empty() || name.len() > OWNER_NAME_BYTES_MAX || name.starts_with(b"#") || name.contains(&0) {
                continue;
            }
            table.names.entry(id).or_insert_with(|| name.to_vec());
            table.ids.entry(name.to_vec()).or_insert(id);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_more_than_a_number() {
        let users =
            Table::parse(b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/:\nwww2:x:33:33::/:\nbroken\n:x:5:\na:x:-1:\n");
        let owners = Owners { groups: users.clone(), users };
        assert_eq!((owners.user(33), owners.user(5)), (b"www".to_vec(), vec![]));
        let here = |user: &[u8], uid| owners.here(&Attributes { uid, user: user.to_vec(), ..Attributes::default() }).0;
        assert_eq!((here(b"www", 1000), here(b"www2", 1), here(b"nobody here", 1000), here(b"", 7)), (33, 33, 1000, 7));
    }
}
