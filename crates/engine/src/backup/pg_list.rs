//! PostgreSQL's `backup_manifest` as a reader sees it, and the comparison of a directory with it, as `pg_verifybackup`
//! makes it. Foreign bytes: nothing that it names is opened because it names it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{self, Context};
use pgark_pg::value::{Lsn, SystemId, TimelineId};
use pgark_repo::crypto::{hex, unhex};
use serde::Deserialize;

use super::scan::{join, show};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

pub const FILE: &str = "backup_manifest";
/// Some three million files; far more than that is no list of a cluster.
const LIST_BYTES_MAX: u64 = 512 * 1024 * 1024;
const DEPTH_MAX: usize = 64;
/// What PostgreSQL or people may have changed since, as `pg_verifybackup` sees it.
const NOT_COMPARED: [&[u8]; 4] = [b"backup_manifest", b"postgresql.auto.conf", b"recovery.signal", b"standby.signal"];

#[derive(Debug, Deserialize)]
pub struct PgList {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "System-Identifier")]
    pub system_id: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<ListedFile>,
    #[serde(rename = "WAL-Ranges")]
    pub wal: Vec<ListedWal>,
}

#[derive(Debug, Deserialize)]
struct ListedFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct ListedWal {
    #[serde(rename = "Timeline")]
    pub timeline: u32,
    #[serde(rename = "Start-LSN")]
    pub start: String,
    #[serde(rename = "End-LSN")]
    pub end: String,
}

pub fn not_a_backup(dir: &Path, why: impl std::fmt::Display) -> EngineError {
    EngineError::refused(
        "E-IMPORT-FORM",
        format!("{}: {why}", dir.display()),
        "give the unpacked directory of an export, or a directory that pg_basebackup wrote (plain format, with its manifest and WAL), never started since",
    )
}

impl PgList {
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join(FILE);
        let failed = |e| EngineError::file("reading", &path, e);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(not_a_backup(data, "it has no backup_manifest"));
            }
            other => other.map_err(failed)?,
        };
        let mut bytes = vec![];
        file.take(LIST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LIST_BYTES_MAX {
            return Err(not_a_backup(data, "its backup_manifest is larger than any that PostgreSQL writes"));
        }
        Self::parse(&bytes).map_err(|why| not_a_backup(data, format!("its backup_manifest {why}")))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        // The sum in the last line is over all lines before it.
        let text = bytes.strip_suffix(b"\n").ok_or("is cut short")?;
        let cut = text.iter().rposition(|b| *b == b'\n').ok_or("is cut short")? + 1;
        let (covered, last) = text.split_at(cut);
        #[derive(Deserialize)]
        struct Last {
            #[serde(rename = "Manifest-Checksum")]
            sum: String,
        }
        let last: Last = serde_json::from_slice(&[b"{", last].concat()).map_err(|_| "has no checksum")?;
        if hex(digest::digest(&digest::SHA256, covered).as_ref()) != last.sum {
            return Err("does not match its own checksum".into());
        }
        let list: PgList = serde_json::from_slice(bytes).map_err(|e| format!("does not parse: {e}"))?;
        match list.version {
            1 | 2 => Ok(list),
            n => Err(format!("has version {n}, which is not known")),
        }
    }

    /// Timeline, start and end of the WAL that makes the backup consistent.
    pub fn wal_span(&self) -> Option<(TimelineId, Lsn, Lsn)> {
        let span = |r: &ListedWal| Some((TimelineId::new(r.timeline)?, r.start.parse().ok()?, r.end.parse().ok()?));
        let all: Vec<(TimelineId, Lsn, Lsn)> = self.wal.iter().map(span).collect::<Option<_>>()?;
        let last = all.iter().max_by_key(|(_, _, end)| *end)?;
        let start = all.iter().map(|(_, start, _)| *start).min()?;
        (start < last.2).then_some((last.0, start, last.2))
    }

    pub fn is_of(&self, system_id: SystemId) -> bool {
        self.system_id.is_none_or(|listed| listed.to_string() == system_id.to_string())
    }

    pub fn size_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.size))
    }

    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Reads every file of the directory but WAL: each must be listed and be as it is listed, and all that is listed must
    /// be there.
    pub fn compare(&self, data: &Path, ctx: &Ctx) -> Result<()> {
        let mut listed: BTreeMap<Vec<u8>, &ListedFile> = BTreeMap::new();
        for file in &self.files {
            let path = match (&file.path, &file.encoded) {
                (Some(path), None) => path.clone().into_bytes(),
                (None, Some(encoded)) => unhex(encoded).ok_or_else(|| not_a_backup(data, "a path does not parse"))?,
                _ => return Err(not_a_backup(data, "a file of its list has no path")),
            };
            if listed.insert(path, file).is_some() {
                return Err(not_a_backup(data, "a file is listed twice"));
            }
        }
        let mut walk = Walk { data, listed, ctx, buffer: vec![0; 1024 * 1024] };
        walk.directory(b"", 0)?;
        match walk.listed.keys().find(|path| !NOT_COMPARED.contains(&path.as_slice())) {
            Some(path) => Err(differs(data, path, "is listed and is not there")),
            None => Ok(()),
        }
    }
}

fn differs(data: &Path, path: &[u8], what: &str) -> EngineError {
    EngineError::refused(
        "E-IMPORT-DIFFERS",
        format!("{}: {} {what}", data.display(), show(path)),
        "it is not what was backed up: the copy is damaged, or a server has run on it; nothing was imported",
    )
}

struct Walk<'a> {
    data: &'a Path,
    /// What was not met yet.
    listed: BTreeMap<Vec<u8>, &'a ListedFile>,
    ctx: &'a Ctx,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn full(&self, path: &[u8]) -> PathBuf {
        self.data.join(std::ffi::OsStr::from_bytes(path))
    }

    fn directory(&mut self, path: &[u8], depth: usize) -> Result<()> {
        let full = self.full(path);
        if depth > DEPTH_MAX {
            return Err(not_a_backup(&full, "directories lie too deep"));
        }
        let failed = |e| EngineError::file("listing", &full, e);
        for entry in fs::read_dir(&full).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let below = join(path, &entry.file_name().into_vec());
            let kind = entry.file_type().map_err(failed)?;
            if below == b"pg_wal" || NOT_COMPARED.contains(&below.as_slice()) {
                self.listed.remove(&below);
            } else if kind.is_dir() {
                self.directory(&below, depth + 1)?;
            } else if kind.is_symlink() && path == b"pg_tblspc" {
                // PostgreSQL's links to tablespaces; what they lead to must be listed like everything else.
                self.directory(&below, depth + 1)?;
            } else if kind.is_file() {
                self.file(&below)?;
            } else {
                return Err(not_a_backup(&self.full(&below), "neither a file nor a directory"));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8]) -> Result<()> {
        self.ctx.check_cancelled()?;
        let Some(listed) = self.listed.remove(path) else {
            return Err(differs(self.data, path, "is there and is not listed"));
        };
        let full = self.full(path);
        let failed = |e| EngineError::file("reading", &full, e);
        let mut file = File::open(&full).map_err(failed)?;
        let mut sum = Sum::new(listed.algorithm.as_deref())
            .ok_or_else(|| not_a_backup(self.data, "its list has a checksum of an unknown kind"))?;
        let mut size = 0u64;
        loop {
            let n = file.read(&mut self.buffer).map_err(failed)?;
            if n == 0 {
                break;
            }
            let bytes = self.buffer.get(..n).unwrap_or_default();
            sum.update(bytes);
            size += n as u64;
            self.ctx.progress.advance(n as u64);
            self.ctx.check_cancelled()?;
        }
        let same = sum.finish().is_none_or(|found| Some(found) == listed.checksum);
        match (size == listed.size, same) {
            (true, true) => Ok(()),
            (false, _) => Err(differs(self.data, path, "has another size than listed")),
            (_, false) => Err(differs(self.data, path, "has another checksum than listed")),
        }
    }
}

/// Any of the checksums that pg_basebackup offers.
enum Sum {
    None,
    Crc32c(u32),
    Sha(Context),
}

impl Sum {
    fn new(algorithm: Option<&str>) -> Option<Self> {
        Some(match algorithm {
            None => Sum::None,
            Some("CRC32C") => Sum::Crc32c(0),
            Some("SHA224") => Sum::Sha(Context::new(&digest::SHA224)),
            Some("SHA256") => Sum::Sha(Context::new(&digest::SHA256)),
            Some("SHA384") => Sum::Sha(Context::new(&digest::SHA384)),
            Some("SHA512") => Sum::Sha(Context::new(&digest::SHA512)),
            Some(_) => return None,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Sum::None => {}
            Sum::Crc32c(sum) => *sum = crc32c::crc32c_append(*sum, bytes),
            Sum::Sha(context) => context.update(bytes),
        }
    }

    /// As PostgreSQL writes it; None: nothing to compare with.
    fn finish(self) -> Option<String> {
        match self {
            Sum::None => None,
            // pg_checksum_final copies the sum as it lies in memory.
            Sum::Crc32c(sum) => Some(hex(&sum.to_le_bytes())),
            Sum::Sha(context) => Some(hex(context.finish().as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_sum(body: &str) -> Vec<u8> {
        let sum = hex(digest::digest(&digest::SHA256, body.as_bytes()).as_ref());
        format!("{body}\"Manifest-Checksum\": \"{sum}\"}}\n").into_bytes()
    }

    const BODY: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
        { \"Path\": \"a\", \"Size\": 1, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"0\" },\n\
        { \"Encoded-Path\": \"ff\", \"Size\": 2, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\" }\n],\n\
        \"WAL-Ranges\": [\n{ \"Timeline\": 2, \"Start-LSN\": \"0/3000000\", \"End-LSN\": \"0/4000000\" },\n\
        { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/3000000\" }\n],\n";

    #[test]
    fn a_list_is_read_when_its_own_sum_is_right() {
        let list = PgList::parse(&with_sum(BODY)).unwrap();
        assert_eq!((list.files(), list.size_bytes()), (2, 3));
        let (timeline, start, end) = list.wal_span().unwrap();
        assert_eq!((timeline.get(), start, end), (2, Lsn(0x200_0028), Lsn(0x400_0000)));
        let newer = BODY.replace("Version\": 1", "Version\": 3");
        assert!(PgList::parse(&with_sum(&newer)).unwrap_err().contains("version 3"));
        let mut changed = with_sum(BODY);
        changed[100] ^= 1;
        assert!(PgList::parse(&changed).unwrap_err().contains("checksum"));
    }

    #[test]
    fn checksums_are_written_as_postgresql_writes_them() {
        // The check value of CRC-32C is 0xe3069283; PostgreSQL copies it as it lies in memory.
        let mut sum = Sum::new(Some("CRC32C")).unwrap();
        sum.update(b"1234");
        sum.update(b"56789");
        assert_eq!(sum.finish().unwrap(), "839206e3");
        assert!(Sum::new(Some("MD5")).is_none() && Sum::new(None).unwrap().finish().is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..900, at in 0usize..900, bit in 0u8..8) {
            drop(PgList::parse(&bytes));
            let mut list = with_sum(BODY);
            list.truncate(cut);
            if let Some(byte) = list.get_mut(at) {
                *byte ^= 1 << bit;
            }
            drop(PgList::parse(&list));
        }
    }
}
