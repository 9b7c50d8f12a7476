//! What a file system keeps of a file besides its content: owner, times, extended attributes. Access lists and capabilities
//! are extended attributes too.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use pgark_repo::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_MAX};
use pgark_repo::manifest::Attributes;
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::owners::Owners;

/// Bits that let a program run as somebody else.
const SET_ID: u32 = 0o6000;
const NANOSECONDS: i64 = 1_000_000_000;

pub fn modified_ns(meta: &Metadata) -> i64 {
    meta.mtime().saturating_mul(NANOSECONDS).saturating_add(meta.mtime_nsec())
}

/// Of an open file or directory; and why its extended attributes are not among them, where they could not be read.
pub fn of_open(file: &File, meta: &Metadata, owners: &Owners) -> (Attributes, Option<String>) {
    let (xattrs, why) = match xattrs(file.as_fd()) {
        Ok(xattrs) => (xattrs, None),
        Err(why) => (vec![], Some(why)),
    };
    let found = Attributes {
        uid: meta.uid(),
        gid: meta.gid(),
        user: owners.user(meta.uid()),
        group: owners.group(meta.gid()),
        modified_ns: modified_ns(meta),
        changed: false,
        xattrs,
    };
    (found, why)
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Sorted by name.
fn xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, String> {
    let failed = |what: &str, e: Errno| format!("{what}: {}", std::io::Error::from(e));
    let mut names = vec![0u8; 64 * 1024];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(n) => n,
        // The file system has none.
        Err(Errno::NOTSUP) => return Ok(vec![]),
        Err(e) => return Err(failed("listing them", e)),
    };
    names.truncate(length);
    let mut found = vec![];
    let mut value = vec![];
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        value.resize(XATTR_VALUE_BYTES_MAX, 0);
        let length = match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(n) => n,
            // Removed meanwhile, or one that only the kernel may show.
            Err(Errno::NODATA) => continue,
            Err(e) => return Err(failed(&String::from_utf8_lossy(name), e)),
        };
        if name.len() > XATTR_NAME_BYTES_MAX || found.len() >= XATTRS_MAX {
            return Err("there are more than a backup holds".into());
        }
        found.push((name.to_vec(), value.get(..length).unwrap_or_default().to_vec()));
    }
    found.sort_unstable();
    found.dedup_by(|a, b| a.0 == b.0);
    Ok(found)
}

/// What could not be restored of attributes, counted by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotApplied {
    pub owners: u64,
    pub set_id: u64,
    pub xattrs: u64,
}

impl NotApplied {
    pub fn warnings(&self) -> Vec<String> {
        let mut out = vec![];
        let mut tell = |n: u64, what: &str| {
            if n > 0 {
                out.push(format!("{n} {what}"));
            }
        };
        tell(
            self.owners,
            "files and directories have another owner or group than in the backup: only root can give files away",
        );
        tell(self.set_id, "programs lost the right to run as their owner or group, which is another one here");
        tell(
            self.xattrs,
            "files and directories lack extended attributes: this file system, or this user, cannot set them",
        );
        out
    }
}

/// Owner first: changing it takes set-id bits and capabilities away.
pub fn apply_to_open(
    file: &File,
    mode: u32,
    a: &Attributes,
    owners: &Owners,
    not: &mut NotApplied,
) -> std::io::Result<()> {
    let mut mode = mode & 0o7777;
    let (uid, gid) = owners.here(a);
    if !chown(file, uid, gid)? {
        not.owners += 1;
        if mode & SET_ID != 0 {
            not.set_id += 1;
            mode &= !SET_ID;
        }
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    let mut all = true;
    for (name, value) in &a.xattrs {
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => all = false,
            Err(e) => return Err(e.into()),
        }
    }
    not.xattrs += u64::from(!all);
    rustix::fs::futimens(file, &times(a.modified_ns))?;
    Ok(())
}

/// Whether it is now theirs.
fn chown(file: &File, uid: u32, gid: u32) -> std::io::Result<bool> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (uid, gid) {
        return Ok(true);
    }
    match rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        Ok(()) => Ok(true),
        // A number that means nobody in this user namespace, or not root.
        Err(Errno::PERM | Errno::INVAL) => {
            // The group alone may be one of ours.
            match rustix::fs::fchown(file, None, Some(Gid::from_raw(gid))) {
                Ok(()) | Err(Errno::PERM | Errno::INVAL) => Ok(false),
                Err(e) => Err(e.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// The time of access is that of now.
pub fn times(modified_ns: i64) -> Timestamps {
    let modified =
        Timespec { tv_sec: modified_ns.div_euclid(NANOSECONDS), tv_nsec: modified_ns.rem_euclid(NANOSECONDS) };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW }, last_modification: modified }
}
