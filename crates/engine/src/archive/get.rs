//! `restore_command`: one WAL file out of the repository. PostgreSQL takes nearly every failure for the end of
//! the archive and opens the database there, so "absent" is an answer that has to be proven.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pgark_pg::names::WalFileName;
use pgark_pg::value::{Lsn, SegmentName, SegmentNo, SegmentSize};
use pgark_repo::wal::WalArchive;

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
    /// None: this segment and no other.
    pub prefetch: Option<Prefetch>,
}

pub fn get(archive: &WalArchive, name: &str, dest: &Path, options: &GetOptions) -> Result<Fetched> {
    match super::parse_name(name)? {
        WalFileName::Segment(raw) => {
            let segment = raw.number(options.segment_size).map_err(|e| {
                EngineError::failed(
                    "E-WAL-NAME",
                    format!("{name}: {e}"),
                    "is the wal segment size of the cluster right?",
                )
            })?;
            self::segment(archive, &SegmentName { timeline: raw.timeline, segment }, dest, options)
        }
        file @ WalFileName::History(timeline) => match archive.side_file(&file) {
            Ok(bytes) => deliver(dest, |out| Ok(out.write_all(&bytes)?)),
            Err(e) if e.is_not_found() => {
                if archive.head()?.timeline(timeline).is_some_and(|t| t.history) {
                    return Err(e.into());
                }
                Ok(Fetched::Absent)
            }
            Err(e) => Err(e.into()),
        },
        // PostgreSQL does not ask for these during recovery; whoever does gets the truth.
        file @ WalFileName::BackupHistory { .. } => match archive.side_file(&file) {
            Ok(bytes) => deliver(dest, |out| Ok(out.write_all(&bytes)?)),
            Err(e) => Err(e.into()),
        },
        WalFileName::Partial(_) => Err(EngineError::failed(
            "E-WAL-NAME",
            format!("{name}: a partial segment never stands in for a whole one"),
            "",
        )),
    }
}

fn segment(archive: &WalArchive, name: &SegmentName, dest: &Path, options: &GetOptions) -> Result<Fetched> {
    let (size, end) = (options.segment_size, options.planned_end);
    if end.is_some_and(|end| name.segment.start(size) >= end) {
        options.prefetch.iter().for_each(Prefetch::clear);
        return Ok(Fetched::Absent);
    }
    let mut reader = match archive.open_segment(name, size) {
        Ok(r) => r,
        Err(e) if e.is_not_found() => {
            options.prefetch.iter().for_each(Prefetch::clear);
            return absent(archive, name, size, e.into());
        }
        Err(e) => return Err(e.into()),
    };
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
        Some(prefetch) => prefetch.beside_delivery(archive, name, size, end, deliver),
        None => deliver(),
    }
}

/// The segment is not there. That is the end of the archive only if the archive says so.
fn absent(archive: &WalArchive, name: &SegmentName, size: SegmentSize, missing: EngineError) -> Result<Fetched> {
    let head = archive.head()?;
    let Some(span) = head.timeline(name.timeline) else { return Ok(Fetched::Absent) };
    if span.contains(name.segment) {
        return Err(missing);
    }
    if span.is_expired(name.segment) {
        return Err(EngineError::failed(
            "E-WAL-EXPIRED",
            format!("wal segment {} has expired: retention has removed it", name.format(size)),
            "'pgark info' shows what can still be recovered",
        ));
    }
    match span.end() {
        Some(last) if name.segment < last => Err(EngineError::failed(
            "E-WAL-GAP",
            format!(
                "wal segment {} was never archived, later ones were (up to {})",
                name.format(size),
                SegmentNo(last.0).start(size)
            ),
            "recovery across this gap is impossible: choose a target before it, or a backup after it",
        )),
        _ => Ok(Fetched::Absent),
    }
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
