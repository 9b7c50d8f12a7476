//! `restore_command`: one WAL file out of the repository. PostgreSQL takes nearly every failure for the end of
//! the archive and opens the database there, so "absent" is an answer that has to be proven.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pgark_pg::names::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, TimelineId};

use super::archives::Archives;
use super::prefetch::Prefetch;
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    Delivered,
    /// Provably beyond the end of the archive, or beyond the planned end of the recovery.
    Absent,
}

pub struct GetOptions {
    pub segment_size: SegmentSize,
    /// What lies wholly beyond it is not needed, whatever its state.
    pub planned_end: Option<Lsn>,
    /// As far as the plan of the recovery knew.
    pub newest_timeline: Option<TimelineId>,
    /// None: this segment and no other.
    pub prefetch: Option<Prefetch>,
}

pub fn get(archives: &Archives, name: &str, dest: &Path, options: &GetOptions) -> Result<Fetched> {
    match super::parse_name(name)? {
        WalFileName::Segment(raw) => {
            let segment = raw.number(options.segment_size).map_err(|e| {
                EngineError::failed(
                    "E-WAL-NAME",
                    format!("{name}: {e}"),
                    "is the wal segment size of the cluster right?",
                )
            })?;
            self::segment(archives, &SegmentName { timeline: raw.timeline, segment }, dest, options)
        }
        file @ WalFileName::History(timeline) => {
            // The first timeline has none, and one that began after the plan was made is none of this recovery's. At its end
            // PostgreSQL asks for both, and a repository that is away must not keep it from being promoted.
            let nobody_has_it = timeline.get() == 1 || options.newest_timeline.is_some_and(|newest| timeline > newest);
            let asked = if nobody_has_it { archives.clone().ignoring_silence() } else { archives.clone() };
            match asked.side_file(&file)? {
                Some(bytes) => deliver(dest, |out| Ok(out.write_all(&bytes)?)),
                None => Ok(Fetched::Absent),
            }
        }
        // PostgreSQL does not ask for these during recovery; whoever does gets the truth.
        file @ WalFileName::BackupHistory { .. } => match archives.side_file(&file)? {
            Some(bytes) => deliver(dest, |out| Ok(out.write_all(&bytes)?)),
            None => Err(EngineError::failed("E-REPO-MISSING", format!("{name} is not in the archive"), "")),
        },
        WalFileName::Partial(_) => Err(EngineError::failed(
            "E-WAL-NAME",
            format!("{name}: a partial segment never stands in for a whole one"),
            "",
        )),
    }
}

fn segment(archives: &Archives, name: &SegmentName, dest: &Path, options: &GetOptions) -> Result<Fetched> {
    let (size, end) = (options.segment_size, options.planned_end);
    if end.is_some_and(|end| name.segment.start(size) >= end) {
        options.prefetch.iter().for_each(Prefetch::clear);
        return Ok(Fetched::Absent);
    }
    let fetched = archives.with_segment(name, size, &mut |reader| {
        if let Some(prefetch) = &options.prefetch
            && prefetch.take(&reader.index, dest).map_err(|e| EngineError::file("delivering", dest, e))?
        {
            return Ok(Fetched::Delivered);
        }
        let mut deliver = || {
            deliver(dest, |out| {
                while let Some(bytes) = reader.next().map_err(CopyError::Repo)? {
                    out.write_all(bytes)?;
                }
                Ok(())
            })
        };
        match &options.prefetch {
            Some(prefetch) => prefetch.beside_delivery(archives, name, size, end, deliver),
            None => deliver(),
        }
    });
    match fetched? {
        Some(fetched) => Ok(fetched),
        None => {
            options.prefetch.iter().for_each(Prefetch::clear);
            Ok(Fetched::Absent)
        }
    }
}

/// Whether the file is for a standby server: `dest` lies in `pg_wal` of its data directory.
pub fn is_standby(dest: &Path) -> bool {
    let pg_wal = dest.parent().unwrap_or(Path::new(""));
    let data = pg_wal.parent().filter(|_| !pg_wal.as_os_str().is_empty());
    data.is_some_and(|data| data.join("standby.signal").exists())
}

enum CopyError {
    Repo(pgark_repo::RepoError),
    Io(std::io::Error),
}

impl From<std::io::Error> for CopyError {
    fn from(e: std::io::Error) -> Self {
        CopyError::Io(e)
    }
}

/// PostgreSQL sees the file under its name only when it is whole, checked and durable.
fn deliver(dest: &Path, fill: impl FnOnce(&mut File) -> std::result::Result<(), CopyError>) -> Result<Fetched> {
    let temp = temporary(dest);
    let failed = |what| move |e: std::io::Error| EngineError::file(what, dest, e);
    match std::fs::remove_file(&temp) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("preparing")(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(failed("creating"))?;
    let written = fill(&mut file).and_then(|()| Ok(file.sync_all()?)).and_then(|()| Ok(std::fs::rename(&temp, dest)?));
    match written {
        Ok(()) => Ok(Fetched::Delivered),
        Err(e) => {
            if let Err(cleanup) = std::fs::remove_file(&temp) {
                tracing::debug!(%cleanup, "a temporary file stays");
            }
            match e {
                CopyError::Repo(e) => Err(e.into()),
                CopyError::Io(e) => Err(failed("writing")(e)),
            }
        }
    }
}

fn temporary(dest: &Path) -> PathBuf {
    let mut name = dest.file_name().unwrap_or_default().to_owned();
    name.push(".pgark-tmp");
    dest.with_file_name(name)
}
