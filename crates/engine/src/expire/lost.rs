//! What cannot be recovered any more once a backup is gone.

use jiff::Timestamp;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentNo};
use pgark_repo::catalog::PhysicalBackup;
use pgark_repo::wal::WalHead;

use super::wal::{Archive, LOOKS_FOR_TIME, Timeline};
use crate::archive::WalPath;
use crate::restore::resolve::to_timestamp;
use crate::verify::LostWindow;

/// The moments that this backup alone serves, beside those of `others`, which stay. `after`: the archive as it will be.
pub fn lost(
    archive: &Archive,
    after: &WalHead,
    backup: &PhysicalBackup,
    others: &[&PhysicalBackup],
) -> Vec<LostWindow> {
    let mut out: Vec<LostWindow> = vec![];
    for t in &archive.timelines {
        let Some(path) = t.path.as_ref().filter(|p| p.contains(backup.timeline, backup.lsn_stop)) else { continue };
        let on: Vec<&&PhysicalBackup> = others
            .iter()
            .filter(|b| b.id != backup.id && b.system_id == backup.system_id && path.contains(b.timeline, b.lsn_stop))
            .collect();
        let covers = |b: &&&PhysicalBackup| {
            b.lsn_stop <= backup.lsn_stop && reach(path, after, b).is_some_and(|end| end >= backup.lsn_stop)
        };
        if on.iter().any(covers) {
            continue;
        }
        let Some(end) = reach(path, &archive.head, backup) else { continue };
        let next = on.iter().filter(|b| b.lsn_stop > backup.lsn_stop).min_by_key(|b| b.lsn_stop);
        let (to_lsn, to_time): (Lsn, Option<Timestamp>) = match next {
            Some(next) if next.lsn_stop <= end => (next.lsn_stop, Some(next.stopped)),
            _ => (end, last_before(archive, path, t, backup, end).filter(|t| *t > backup.stopped)),
        };
        // Only as far as this backup's own timeline, or the one that left it, goes.
        let timeline = path.timeline_at(Lsn(to_lsn.0.saturating_sub(1)));
        let window =
            LostWindow { timeline, from_lsn: backup.lsn_stop, to_lsn, from_time: Some(backup.stopped), to_time };
        if !out.contains(&window) {
            out.push(window);
        }
    }
    // On several timelines the common stretch is said once.
    let longest =
        |w: &LostWindow, all: &[LostWindow]| !all.iter().any(|o| o.timeline == w.timeline && o.to_lsn > w.to_lsn);
    let all = out.clone();
    out.retain(|w| longest(w, &all));
    out
}

/// The last transaction before `end`: where WAL is missing from there on, that of the whole timeline is far too late. None
/// when nobody can tell.
fn last_before(
    archive: &Archive,
    path: &WalPath,
    t: &Timeline,
    backup: &PhysicalBackup,
    end: Lsn,
) -> Option<Timestamp> {
    let newest = archive.head.timeline(t.timeline).and_then(|span| span.last());
    if newest.is_none_or(|last| last.end(path.size()) <= end) {
        return t.branch.last_time;
    }
    let first = SegmentNo::containing(backup.lsn_start, path.size());
    let last = SegmentNo::containing(Lsn(end.0.saturating_sub(1)), path.size());
    let back = (first.0..=last.0).rev().take(LOOKS_FOR_TIME);
    let time = |n| archive.wal.index(&path.name(SegmentNo(n)), path.size()).ok()?.last_time;
    back.filter_map(time).next().map(|micros| to_timestamp(PgTimestamp(micros)))
}

/// The end of the unbroken WAL from a backup on.
fn reach(path: &WalPath, head: &WalHead, backup: &PhysicalBackup) -> Option<Lsn> {
    let last = path.unbroken_to(head, SegmentNo::containing(backup.lsn_start, path.size()))?;
    let end = last.end(path.size());
    (end >= backup.lsn_stop).then_some(end)
}
