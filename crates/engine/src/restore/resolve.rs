//! From what a person asks for (a time, a transaction, a name) to the record at which replay stops.

use jiff::Timestamp;
use pgark_pg::value::{Lsn, PgTimestamp, SegmentNo};
use pgark_repo::catalog::PhysicalBackup;

use super::walk::{FoundRecord, Seen, WalView};
use super::{Bound, Target};
use crate::error::{EngineError, Result};

/// Where replay stops, in PostgreSQL's terms, and where it then stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopAt {
    pub how: StopHow,
    /// What `pg_last_wal_replay_lsn()` says then.
    pub end: Lsn,
    /// WAL is read up to here to know that this is the place to stop.
    pub read_to: Lsn,
    /// Commit time of the record, where it has one.
    pub time: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopHow {
    /// `recovery_target_lsn` is the start of a record.
    Record { start: Lsn, bound: Bound },
    /// `recovery_target = 'immediate'`
    Consistent,
}

/// The answer for one backup.
pub enum Resolved {
    At(StopAt),
    /// The target lies before this backup is consistent: an older one is needed.
    BackupTooNew,
}

impl StopAt {
    fn after(found: &FoundRecord) -> Self {
        let how = StopHow::Record { start: found.start, bound: Bound::Inclusive };
        StopAt { how, end: found.end, read_to: found.end, time: found.time.map(to_timestamp) }
    }

    fn before(found: &FoundRecord) -> Self {
        let how = StopHow::Record { start: found.start, bound: Bound::Exclusive };
        StopAt { how, end: found.before_end, read_to: found.end, time: None }
    }
}

pub fn to_timestamp(t: PgTimestamp) -> Timestamp {
    Timestamp::from_microsecond(t.unix_micros()).unwrap_or(Timestamp::MAX)
}

pub fn from_timestamp(t: Timestamp) -> PgTimestamp {
    PgTimestamp::from_unix_micros(t.as_microsecond())
}

/// `view` is along the path to the target timeline, on which `backup` lies.
pub fn resolve(view: &mut WalView<'_>, backup: &PhysicalBackup, target: &Target) -> Result<Resolved> {
    let size = view.path.size();
    let reachable = view.last_segment(backup.lsn_start);
    let stop_segment = SegmentNo::containing(Lsn(backup.lsn_stop.0.saturating_sub(1)), size);
    let Some(last) = reachable.filter(|s| *s >= stop_segment) else {
        return Err(missing_wal(view, backup, reachable));
    };
    let stop = match target {
        Target::Immediate => immediate(view, backup, last)?,
        Target::Latest => latest(view, backup, last)?,
        // What ended before the backup stopped is in it, whatever its WAL says.
        Target::Time { at, .. } if *at < backup.stopped => return Ok(Resolved::BackupTooNew),
        Target::Time { at, bound } => time(view, backup, last, *at, *bound)?,
        Target::Lsn { lsn, bound } => {
            if *lsn < backup.lsn_stop {
                return Ok(Resolved::BackupTooNew);
            }
            lsn_target(view, backup, last, *lsn, *bound)?
        }
        Target::Xid { xid, bound } => xid_target(view, backup, last, *xid, *bound)?,
        Target::Name(name) => name_target(view, backup, last, name)?,
    };
    // Stopping exactly where the backup becomes consistent is as early as it gets.
    if stop.end < backup.lsn_stop { Ok(Resolved::BackupTooNew) } else { Ok(Resolved::At(stop)) }
}

fn end_of_archive(view: &mut WalView<'_>, backup: &PhysicalBackup, last: SegmentNo) -> Result<FoundRecord> {
    view.last_record(backup.lsn_start, last)?.ok_or_else(|| missing_wal(view, backup, Some(last)))
}

/// PostgreSQL finds out that it is consistent when it comes to the next record, so that one is read too. Where the
/// archive ends with the backup (one of a standby may), replay stops at the last record instead.
fn immediate(view: &mut WalView<'_>, backup: &PhysicalBackup, last: SegmentNo) -> Result<StopAt> {
    let end = backup.lsn_stop;
    let before = Lsn(end.0.saturating_sub(1)).max(backup.lsn_start);
    match view.find(before, last, &|_| true, &mut |seen| seen.start >= end)? {
        Some(next) => Ok(StopAt { how: StopHow::Consistent, end, read_to: next.end, time: None }),
        None => Ok(StopAt::after(&end_of_archive(view, backup, last)?)),
    }
}

fn latest(view: &mut WalView<'_>, backup: &PhysicalBackup, last: SegmentNo) -> Result<StopAt> {
    let target = view.path.target();
    let target_begins = view.path.ranges().last().map_or(Lsn(0), |r| r.begin);
    // Also what has expired was archived: without it this is not the latest.
    let beyond = view.head.timeline(target).and_then(|t| t.end()).filter(|l| *l > last);
    let found = end_of_archive(view, backup, last)?;
    if beyond.is_some() {
        refuse_expired(view, backup, last, &found)?;
    }
    if beyond.is_some() || view.segment_of(target_begins) > last {
        let gap = view.path.name(last.next()).format(view.path.size());
        return Err(EngineError::refused(
            "E-WAL-GAP",
            format!(
                "wal segment {gap} is missing: from backup {} recovery reaches {} and not the end of the archive",
                backup.id, found.end
            ),
            format!("to stop before the gap give --target-lsn {}; 'pgark verify' lists gaps", found.start),
        ));
    }
    Ok(StopAt::after(&found))
}

fn time(
    view: &mut WalView<'_>,
    backup: &PhysicalBackup,
    last: SegmentNo,
    at: Timestamp,
    bound: Bound,
) -> Result<StopAt> {
    let limit = from_timestamp(at);
    let later = move |t: PgTimestamp| if bound == Bound::Inclusive { t > limit } else { t >= limit };
    let found = view.find(
        backup.lsn_start,
        last,
        &|index| index.max_time.is_some_and(|t| later(PgTimestamp(t))),
        &mut |seen: &Seen| seen.transaction.as_ref().is_some_and(|t| later(t.time)),
    )?;
    if let Some(found) = found {
        return Ok(StopAt::before(&found));
    }
    // Nothing happened after the target. That is an answer only if the WAL reaches beyond the target.
    let mut proof = None;
    let mut last_commit = None;
    for n in (view.segment_of(backup.lsn_start).0..=last.0).rev() {
        let index = view.index(SegmentNo(n))?;
        proof = proof.max(index.checkpoint_time);
        last_commit = last_commit.max(index.max_time);
        if last_commit.is_some() {
            break;
        }
    }
    let end = end_of_archive(view, backup, last)?;
    // A transaction of that very moment, or the end of the backup: all that was asked for is there.
    let reaches = at <= backup.stopped || last_commit.is_some_and(|t| PgTimestamp(t) >= limit);
    if reaches || proof.is_some_and(|seconds| seconds > at.as_second()) {
        return Ok(StopAt::after(&end));
    }
    refuse_expired(view, backup, last, &end)?;
    let known = last_commit.map_or_else(
        || "no transaction is in it".to_owned(),
        |t| format!("the last transaction in it ended at {}", to_timestamp(PgTimestamp(t))),
    );
    Err(EngineError::refused(
        "E-TARGET-BEYOND",
        format!("the archive does not reach {at}: it ends at {}, {known}", end.end),
        "for everything that is archived leave the target out; or wait until later WAL has been archived",
    ))
}

fn lsn_target(
    view: &mut WalView<'_>,
    backup: &PhysicalBackup,
    last: SegmentNo,
    lsn: Lsn,
    bound: Bound,
) -> Result<StopAt> {
    let end = end_of_archive(view, backup, last)?;
    if lsn > end.end {
        refuse_expired(view, backup, last, &end)?;
        return Err(EngineError::refused(
            "E-TARGET-BEYOND",
            format!("the archive ends at {}, before the target {lsn}", end.end),
            "for everything that is archived leave the target out",
        ));
    }
    // The record before the target may begin in the segment before.
    let from = Lsn(lsn.0.saturating_sub(1)).max(backup.lsn_start);
    let found = view.find(from, last, &|_| true, &mut |seen| seen.start >= lsn)?;
    Ok(match (found, bound) {
        (Some(found), Bound::Inclusive) => StopAt::after(&found),
        (Some(found), Bound::Exclusive) => StopAt::before(&found),
        // Exactly the end: everything before it is there.
        (None, _) => StopAt::after(&end),
    })
}

fn xid_target(
    view: &mut WalView<'_>,
    backup: &PhysicalBackup,
    last: SegmentNo,
    xid: u32,
    bound: Bound,
) -> Result<StopAt> {
    let found = view.find(
        backup.lsn_start,
        last,
        &|index| index.min_xid.zip(index.max_xid).is_some_and(|(a, b)| (a..=b).contains(&xid)),
        &mut |seen| seen.transaction.as_ref().is_some_and(|t| t.xid == xid),
    )?;
    match (found, bound) {
        (Some(f), Bound::Inclusive) => Ok(StopAt::after(&f)),
        (Some(f), Bound::Exclusive) => Ok(StopAt::before(&f)),
        (None, _) => Err(EngineError::refused(
            "E-TARGET-UNKNOWN",
            format!("transaction {xid} did not end in the archived WAL after backup {}", backup.id),
            "check the transaction id; an older backup may reach it: name one as 'pgark restore ID'",
        )),
    }
}

fn name_target(view: &mut WalView<'_>, backup: &PhysicalBackup, last: SegmentNo, name: &str) -> Result<StopAt> {
    let holds = |index: &pgark_repo::wal::WalIndex| {
        index.restore_points_overflow || index.restore_points.iter().any(|p| p.name == name.as_bytes())
    };
    let is_it = |seen: &Seen| seen.restore_point.as_deref() == Some(name.as_bytes());
    let first = view.find(backup.lsn_start, last, &holds, &mut |s| is_it(s))?;
    let Some(first) = first else {
        return Err(EngineError::refused(
            "E-TARGET-UNKNOWN",
            format!("no restore point '{}' in the archived WAL after backup {}", name.escape_debug(), backup.id),
            "restore points are made with pg_create_restore_point(); check the spelling",
        ));
    };
    if let Some(second) = view.find(first.end, last, &holds, &mut |s| is_it(s))? {
        return Err(EngineError::refused(
            "E-TARGET-AMBIGUOUS",
            format!(
                "there are several restore points '{}': at {} and {}",
                name.escape_debug(),
                first.start,
                second.start
            ),
            "choose one by --target-lsn",
        ));
    }
    Ok(StopAt::after(&first))
}

/// Says so when the WAL ends here because retention has given up what followed.
fn refuse_expired(view: &WalView<'_>, backup: &PhysicalBackup, last: SegmentNo, end: &FoundRecord) -> Result<()> {
    let next = view.path.name(last.next());
    if !view.head.timeline(next.timeline).is_some_and(|t| t.is_expired(next.segment)) {
        return Ok(());
    }
    Err(EngineError::refused(
        "E-WAL-EXPIRED",
        format!(
            "the WAL from segment {} on has expired: from backup {} recovery reaches {} and no further",
            next.format(view.path.size()),
            backup.id,
            end.end
        ),
        "to restore the backup as it was, give its id and --target-immediate; 'pgark info' shows what can be recovered",
    ))
}

fn missing_wal(view: &WalView<'_>, backup: &PhysicalBackup, reachable: Option<SegmentNo>) -> EngineError {
    let next = reachable.map_or(view.segment_of(backup.lsn_start), SegmentNo::next);
    EngineError::refused(
        "E-WAL-GAP",
        format!(
            "wal segment {} is missing: without it backup {} is not consistent",
            view.path.name(next).format(view.path.size()),
            backup.id
        ),
        "'pgark verify' lists what is missing; choose another backup",
    )
}
