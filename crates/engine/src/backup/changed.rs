//! What changed between the start of an earlier backup and the start of this one, by the WAL: from the archive, and from
//! the server's own `pg_wal` for what has not been archived yet.
//!
//! Invariant: changes are returned only for an unbroken, wholly understood stretch of WAL along the history of this
//! backup's timeline. Anything else is a reason to read everything.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pgark_pg::ControlFile;
use pgark_pg::value::{Lsn, SegmentName, SegmentSize, TimelineId};
use pgark_pg::wal::{Assembly, Changes, SegmentExpect, Tail, assemble, join_crossing, scan_segment};
use pgark_repo::record::BackupRecord;
use pgark_repo::wal::{Ending, SegmentData, WalArchive, WalIndex};

use crate::archive::segment::{Indexer, index_segment};
use crate::archive::{self, Continuity, WalPath};
use crate::ctx::Ctx;
use crate::error::{EngineError, Result};

/// How often a segment is looked for again: PostgreSQL may archive and remove it between two looks.
const LOOKS: u32 = 5;
/// Segments looked at together; bounds memory.
const BATCH: usize = 64;
const WAL_LEVEL_MINIMAL: i32 = 0;

/// The stretch of WAL between two backups of one cluster.
pub struct Stretch<'a> {
    pub ctx: &'a Ctx,
    pub wal: &'a WalArchive,
    pub pgdata: &'a Path,
    pub control: &'a ControlFile,
    pub from: &'a BackupRecord,
    /// Where this backup starts, and on which timeline.
    pub to: Lsn,
    pub timeline: TimelineId,
    pub jobs: usize,
}

/// A segment, and where it was found.
struct Found {
    index: WalIndex,
    changes: Changes,
    archived: bool,
}

/// What is known of a record that began in an earlier segment.
enum Open {
    Nothing,
    /// The segment before ends within a record.
    Crossing(Box<WalIndex>),
    /// The record is too large for what the indexes keep of it: the bytes so far, from the start of a segment.
    Large {
        base: Lsn,
        start: Lsn,
        bytes: Vec<u8>,
    },
}

/// The changes, or why they cannot be known.
pub type Known = std::result::Result<Changes, String>;

/// Stops the gathering with a reason; other errors go on as they are.
enum Stop {
    Because(String),
    Error(EngineError),
}

impl From<EngineError> for Stop {
    fn from(e: EngineError) -> Self {
        Stop::Error(e)
    }
}

impl Stretch<'_> {
    pub fn changes(&self) -> Result<Known> {
        match self.gather() {
            Ok(changes) => Ok(Ok(changes)),
            Err(Stop::Because(reason)) => Ok(Err(reason)),
            // The archive may be damaged or have holes: what it cannot tell is read from the files.
            Err(Stop::Error(EngineError::Cancelled)) => Err(EngineError::Cancelled),
            Err(Stop::Error(e)) => Ok(Err(e.to_string())),
        }
    }

    fn size(&self) -> SegmentSize {
        self.control.segment_size
    }

    fn check_same_kind(&self) -> std::result::Result<(), Stop> {
        let (then, now) = (self.from, self.control);
        let before = ControlFile::parse(&then.pg_control).map_err(|e| Stop::Because(e.to_string()))?;
        let because = |what: &str| Err(Stop::Because(what.to_owned()));
        if before.data_checksum_version != now.data_checksum_version {
            return because("page checksums were switched on or off, which changes pages without WAL");
        }
        if before.relation_segment_blocks != now.relation_segment_blocks || then.segment_size != now.segment_size {
            return because("relation files or WAL segments have another size than in the earlier backup");
        }
        Ok(())
    }

    fn gather(&self) -> std::result::Result<Changes, Stop> {
        self.check_same_kind()?;
        let history = archive::history(self.wal, self.timeline)?;
        let path = WalPath::new(&history, self.size());
        if !path.contains(self.from.timeline, self.from.lsn_stop) {
            return Err(Stop::Because(format!(
                "the earlier backup is on timeline {}, which is not part of the history of timeline {}",
                self.from.timeline, self.timeline
            )));
        }
        if self.from.lsn_stop > self.to {
            return Err(Stop::Because(
                "this backup starts before the earlier one ended, as on a standby without a new restartpoint".into(),
            ));
        }
        let names = path.segments(self.from.lsn_start, self.to);
        let mut all = Changes::default();
        let mut continuity = Continuity::default();
        let mut open = Open::Nothing;
        let found = names.chunks(BATCH).flat_map(|batch| self.find_all(batch));
        for (n, (name, found)) in names.iter().zip(found).enumerate() {
            self.ctx.check_cancelled()?;
            let found = found?;
            self.check_usable(&found, name, n + 1 == names.len())?;
            continuity.push(&found.index)?;
            open = self.close(open, name, &found, &mut all)?;
            all.merge(&found.changes);
            if let Some(reason) = &all.unusable {
                return Err(Stop::Because(format!("WAL segment {}: {reason}", name.format(self.size()))));
            }
            if found.index.crossing.is_some() && matches!(open, Open::Nothing) {
                open = Open::Crossing(Box::new(found.index));
            }
        }
        match open {
            Open::Large { start, .. } if start < self.to => {
                Err(Stop::Because(format!("the WAL record at {start} is not there as a whole")))
            }
            _ => Ok(all),
        }
    }

    fn check_usable(&self, found: &Found, name: &SegmentName, last: bool) -> std::result::Result<(), Stop> {
        let because = |what: &str| Err(Stop::Because(format!("WAL segment {}: {what}", name.format(self.size()))));
        let index = &found.index;
        if index.undecodable > 0 {
            return because("it has records that cannot be decoded");
        }
        if index.min_wal_level == Some(WAL_LEVEL_MINIMAL) {
            return because("wal_level was minimal, when changes are not logged");
        }
        match index.ending {
            Ending::Ended if !last => because("it was never finished"),
            _ if last && index.valid_end < self.to => because("it ends before this backup starts"),
            _ => Ok(()),
        }
    }

    /// Finishes the record that the segments before left open.
    fn close(
        &self,
        open: Open,
        name: &SegmentName,
        found: &Found,
        all: &mut Changes,
    ) -> std::result::Result<Open, Stop> {
        let broken = |what: String| Stop::Because(format!("WAL segment {}: {what}", name.format(self.size())));
        if found.index.overwrites_crossing {
            return Ok(Open::Nothing);
        }
        let (base, start, mut bytes) = match open {
            Open::Nothing => return Ok(Open::Nothing),
            Open::Crossing(before) => {
                let (tail, _) = before.tail_and_leading();
                let (_, leading) = found.index.tail_and_leading();
                let (Some(tail), Some(leading)) = (tail, leading) else {
                    return Err(broken("it does not continue the record before it".into()));
                };
                let joined = join_crossing(&tail, &leading, self.control.major).map_err(|e| broken(e.to_string()))?;
                if let Some(record) = joined {
                    all.add(&record.as_record().map_err(|e| broken(e.to_string()))?);
                    return Ok(Open::Nothing);
                }
                let Tail::Crossing { start, .. } = tail else { return Ok(Open::Nothing) };
                (before.start(), start, self.bytes(&before.segment_name())?)
            }
            Open::Large { base, start, bytes } => (base, start, bytes),
        };
        bytes.extend_from_slice(&self.bytes(name)?);
        match assemble(&bytes, base, start, self.control.major) {
            Assembly::Whole(record) => {
                all.add(&record.as_record().map_err(|e| broken(e.to_string()))?);
                Ok(Open::Nothing)
            }
            Assembly::Unfinished => Ok(Open::Large { base, start, bytes }),
            Assembly::Broken(why) => Err(broken(format!("the record at {start}: {why}"))),
        }
    }

    /// Several segments at once: each is a look at the head, and one or two reads.
    fn find_all(&self, names: &[SegmentName]) -> Vec<std::result::Result<Found, Stop>> {
        let next = AtomicUsize::new(0);
        let found = Mutex::new(Vec::with_capacity(names.len()));
        let work = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(name) = names.get(n) else { return };
                let one = self.find(name);
                found.lock().expect("no thread panics with the lock").push((n, one));
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.jobs.min(names.len()) {
                scope.spawn(work);
            }
            work();
        });
        let mut found = found.into_inner().expect("the threads are gone");
        found.sort_unstable_by_key(|(n, _)| *n);
        found.into_iter().map(|(_, one)| one).collect()
    }

    /// The archive's copy, else the server's.
    fn find(&self, name: &SegmentName) -> std::result::Result<Found, Stop> {
        for _ in 0..LOOKS {
            let head = self.wal.head().map_err(EngineError::from)?;
            if head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)) {
                return Ok(self.archived(name)?);
            }
            let path = self.path_of(name);
            match File::open(&path) {
                Ok(mut file) => {
                    let system = self.control.system_id;
                    let mut data = SegmentData::File(&mut file);
                    let (index, changes) = index_segment(&mut data, Indexer::new(&path, *name, self.size(), system))?;
                    return Ok(Found { index, changes, archived: false });
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(EngineError::file("opening", path, e).into()),
            }
        }
        let name = name.format(self.size());
        Err(Stop::Because(format!("WAL segment {name} is neither archived nor in the server's pg_wal")))
    }

    fn path_of(&self, name: &SegmentName) -> std::path::PathBuf {
        self.pgdata.join("pg_wal").join(name.format(self.size()))
    }

    fn archived(&self, name: &SegmentName) -> Result<Found> {
        let reader = self.wal.open_segment(name, self.size())?;
        if let Some(changes) = reader.changes()? {
            return Ok(Found { index: reader.index, changes, archived: true });
        }
        // Archived without them: they come from the WAL itself.
        let index = reader.index.clone();
        let bytes = read_through(reader, self.size())?;
        let expect = SegmentExpect {
            timeline: name.timeline,
            segment: name.segment,
            size: self.size(),
            system_id: Some(self.control.system_id),
        };
        let mut changes = Changes::default();
        scan_segment(&bytes, expect, &mut changes).map_err(|e| {
            EngineError::failed("E-WAL-INVALID", format!("archived WAL segment {}: {e}", name.format(self.size())), "")
        })?;
        Ok(Found { index, changes, archived: true })
    }

    /// All bytes of a segment, for a record that is larger than what the indexes keep of it.
    fn bytes(&self, name: &SegmentName) -> std::result::Result<Vec<u8>, Stop> {
        let found = self.find(name)?;
        if found.archived {
            return Ok(read_through(
                self.wal.open_segment(name, self.size()).map_err(EngineError::from)?,
                self.size(),
            )?);
        }
        let path = self.path_of(name);
        let failed = |e| EngineError::file("reading", &path, e);
        let mut bytes = vec![];
        File::open(&path).map_err(failed)?.take(self.size().bytes()).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

fn read_through(mut reader: pgark_repo::wal::SegmentReader, size: SegmentSize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(size.bytes()).unwrap_or(0));
    while let Some(block) = reader.next()? {
        bytes.extend_from_slice(block);
    }
    Ok(bytes)
}
