//! `backup_label` and `tablespace_map`: what PostgreSQL hands out when a backup stops.
//!
//! Invariant: both files are stored and restored byte for byte; what is parsed here only informs our decisions. A label
//! that PostgreSQL would refuse to start from is an error here too (xlogrecovery.c, `read_backup_label`).

use crate::bytes::decimal_u32;
use crate::names::RawSegment;
use crate::value::{Lsn, TimelineId};

/// Far above any real label; PostgreSQL limits the label text to 1 KiB.
pub const BACKUP_LABEL_BYTES_MAX: usize = 64 << 10;
pub const TABLESPACE_MAP_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupLabelError {
    #[error("{file} has {bytes} bytes, more than is plausible")]
    TooLarge { file: &'static str, bytes: usize },
    #[error("backup_label has no line '{0}'")]
    Missing(&'static str),
    #[error("backup_label has a bad value in its line '{0}'")]
    Value(&'static str),
    #[error("backup_label contains a carriage return: it was written in text mode")]
    CarriageReturn,
    #[error("backup_label names timeline {line}, but its start segment is on timeline {segment}")]
    Timeline { line: TimelineId, segment: TimelineId },
    #[error("entry {entry} of tablespace_map is not 'oid path'")]
    TablespaceMap { entry: usize },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BackupFrom {
    Primary,
    Standby,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where recovery begins: the redo position of the starting checkpoint.
    pub start: Lsn,
    pub start_segment: RawSegment,
    pub checkpoint: Lsn,
    /// `streamed`; before 15 also `pg_start_backup`.
    pub method: Vec<u8>,
    pub from: BackupFrom,
    /// In the server's time zone and format; for people.
    pub start_time: Vec<u8>,
    pub label: Vec<u8>,
    pub start_timeline: TimelineId,
    /// 17 and later, for a native incremental backup. PostgreSQL refuses to start from such a label.
    pub incremental_from: Option<Lsn>,
}

impl BackupLabel {
    pub fn parse(content: &[u8]) -> Result<Self, BackupLabelError> {
        if content.len() > BACKUP_LABEL_BYTES_MAX {
            return Err(BackupLabelError::TooLarge { file: "backup_label", bytes: content.len() });
        }
        if content.contains(&b'\r') {
            return Err(BackupLabelError::CarriageReturn);
        }
        let (start, start_segment) = parse_start(field(content, START)?).ok_or(BackupLabelError::Value(START))?;
        let start_timeline = decimal_u32(field(content, START_TIMELINE)?)
            .and_then(TimelineId::new)
            .ok_or(BackupLabelError::Value(START_TIMELINE))?;
        if start_timeline != start_segment.timeline {
            return Err(BackupLabelError::Timeline { line: start_timeline, segment: start_segment.timeline });
        }
        let incremental_from = match field(content, INCREMENTAL) {
            Ok(text) => Some(parse_lsn(text).ok_or(BackupLabelError::Value(INCREMENTAL))?),
            Err(_) => None,
        };
        Ok(Self {
            start,
            start_segment,
            checkpoint: parse_lsn(field(content, CHECKPOINT)?).ok_or(BackupLabelError::Value(CHECKPOINT))?,
            method: field(content, METHOD)?.to_vec(),
            from: parse_from(field(content, FROM)?).ok_or(BackupLabelError::Value(FROM))?,
            start_time: field(content, START_TIME)?.to_vec(),
            label: field(content, LABEL)?.to_vec(),
            start_timeline,
            incremental_from,
        })
    }
}

const START: &str = "START WAL LOCATION";
const CHECKPOINT: &str = "CHECKPOINT LOCATION";
const METHOD: &str = "BACKUP METHOD";
const FROM: &str = "BACKUP FROM";
const START_TIME: &str = "START TIME";
const LABEL: &str = "LABEL";
const START_TIMELINE: &str = "START TIMELINE";
const INCREMENTAL: &str = "INCREMENTAL FROM LSN";

/// The rest of the first line that begins with `name: `. A line counts only if a line feed ends it: a file cut in the
/// middle of a line must not pass.
fn field<'a>(content: &'a [u8], name: &'static str) -> Result<&'a [u8], BackupLabelError> {
    content
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n"))
        .find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b": "))
        .ok_or(BackupLabelError::Missing(name))
}

fn parse_lsn(text: &[u8]) -> Option<Lsn> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `0/2000028 (file 000000010000000000000002)`
fn parse_start(text: &[u8]) -> Option<(Lsn, RawSegment)> {
    let at = text.iter().position(|byte| *byte == b' ')?;
    let (lsn, rest) = text.split_at_checked(at)?;
    let name = rest.strip_prefix(b" (file ")?.strip_suffix(b")")?;
    Some((parse_lsn(lsn)?, RawSegment::parse(name)?))
}

/// 13 says `master` where later versions say `primary`.
fn parse_from(text: &[u8]) -> Option<BackupFrom> {
    match text {
        b"primary" | b"master" => Some(BackupFrom::Primary),
        b"standby" => Some(BackupFrom::Standby),
        _ => None,
    }
}

/// (tablespace, path) of each line. A backslash takes the next byte literally, so that a path may hold line breaks
/// (`read_tablespace_map`, 14 and later; 13 differs only for a path that contains a backslash).
pub fn parse_tablespace_map(content: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, BackupLabelError> {
    if content.len() > TABLESPACE_MAP_BYTES_MAX {
        return Err(BackupLabelError::TooLarge { file: "tablespace_map", bytes: content.len() });
    }
    let mut map = Vec::new();
    let mut line = Vec::new();
    let mut escaped = false;
    for byte in content {
        match byte {
            b'\n' | b'\r' if !escaped => {
                if line.is_empty() {
                    continue;
                }
                let bad = BackupLabelError::TablespaceMap { entry: map.len() + 1 };
                map.push(tablespace_line(&line).ok_or(bad)?);
                line.clear();
            }
            b'\\' if !escaped => escaped = true,
            _ => {
                line.push(*byte);
                escaped = false;
            }
        }
    }
    if escaped || !line.is_empty() {
        return Err(BackupLabelError::TablespaceMap { entry: map.len() + 1 });
    }
    Ok(map)
}

fn tablespace_line(line: &[u8]) -> Option<(u32, Vec<u8>)> {
    let at = line.iter().position(|byte| *byte == b' ')?;
    let (oid, path) = line.split_at_checked(at)?;
    let oid = decimal_u32(oid).filter(|oid| *oid != 0)?;
    let path = path.strip_prefix(b" ").filter(|path| !path.is_empty())?;
    Some((oid, path.to_vec()))
}

/// The inverse of `parse_tablespace_map`, for a restore that moves tablespaces.
pub fn format_tablespace_map(map: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (oid, path) in map {
        content.extend_from_slice(oid.to_string().as_bytes());
        content.push(b' ');
        for byte in path {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                content.push(b'\\');
            }
            content.push(*byte);
        }
        content.push(b'\n');
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REAL: &[u8] = b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-03-01 12:00:00 UTC\n\
        LABEL: START TIMELINE: 7\n\
        START TIMELINE: 1\n";

    #[test]
    fn a_real_label_parses() {
        let label = BackupLabel::parse(REAL).unwrap();
        assert_eq!(label.start, Lsn(0x2000028));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!(label.checkpoint, Lsn(0x2000060));
        assert_eq!((label.method.as_slice(), label.from), (&b"streamed"[..], BackupFrom::Primary));
        assert_eq!(label.start_timeline, TimelineId::FIRST);
        assert_eq!(label.label, b"START TIMELINE: 7");
        assert_eq!(label.incremental_from, None);
    }

    #[test]
    fn version_13_says_master() {
        let text = String::from_utf8_lossy(REAL).replace("primary", "master");
        assert_eq!(BackupLabel::parse(text.as_bytes()).unwrap().from, BackupFrom::Primary);
    }

    #[test]
    fn damaged_labels_are_refused() {
        let text = String::from_utf8_lossy(REAL);
        assert_eq!(BackupLabel::parse(text.replace('\n', "\r\n").as_bytes()), Err(BackupLabelError::CarriageReturn));
        assert!(matches!(
            BackupLabel::parse(text.replace("TIMELINE: 1", "TIMELINE: 2").as_bytes()),
            Err(BackupLabelError::Timeline { .. })
        ));
        for length in 0..REAL.len() {
            assert!(BackupLabel::parse(&REAL[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn tablespace_paths_may_hold_line_breaks_and_backslashes() {
        let map = vec![(16384, b"/mnt/a b".to_vec()), (16385, b"/x\ny\\z\r".to_vec())];
        let content = format_tablespace_map(&map);
        assert_eq!(content, b"16384 /mnt/a b\n16385 /x\\\ny\\\\z\\\r\n");
        assert_eq!(parse_tablespace_map(&content).unwrap(), map);
        for bad in [&b"16384 /a"[..], b"16384\n", b"16384 \n", b"x /a\n", b"0 /a\n", b"16384 /a\\"] {
            assert!(parse_tablespace_map(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_tablespace_map(b"").unwrap(), []);
    }

    proptest! {
        #[test]
        fn any_map_round_trips(map in proptest::collection::vec((1u32.., proptest::collection::vec(any::<u8>(), 1..20)), 0..5)) {
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&map)).unwrap(), map);
        }

        #[test]
        fn any_bytes_are_safe(content in proptest::collection::vec(any::<u8>(), 0..300), at in 0..REAL.len(), byte: u8) {
            let _ = BackupLabel::parse(&content);
            let _ = parse_tablespace_map(&content);
            let mut label = REAL.to_vec();
            label[at] = byte;
            let _ = BackupLabel::parse(&label);
        }
    }
}
