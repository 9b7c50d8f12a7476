//! Whether WAL of one archive belongs beside the WAL of another. After a cluster was set back, or cloned, two archives may
//! hold different WAL of the same system and timeline under the same names; each is whole by itself.
//!
//! What tells them apart are the segments beside the one in question: where both archives have one, both must have the same
//! records, and records must follow each other across the boundary. A segment that is damaged or not there says nothing.

use pgark_pg::value::{SegmentName, SegmentNo, SegmentSize};
use pgark_repo::RepoError;
use pgark_repo::wal::{Ending, SegmentHasher, WalArchive, WalHead, WalIndex};

use super::follows;
use crate::error::{EngineError, Result};

/// Of WAL that is whole and of another history than what lies beside it.
pub(crate) const OTHER_HISTORY: &str = "E-WAL-OTHER-HISTORY";

pub(crate) const WHICH_IS_RIGHT: &str = "the server was set back or cloned, and each repository archived one of both: find out \
     which is right, and name that repository alone with --repo";

/// Segments that are looked at for one that both archives can tell of.
const LOOKS_MAX: usize = 16;

/// An archive with its head.
pub(crate) struct Beside<'a> {
    archive: &'a WalArchive,
    /// None where it is damaged: then what lies in the store is asked.
    head: Option<WalHead>,
    size: SegmentSize,
}

impl<'a> Beside<'a> {
    pub fn of(archive: &'a WalArchive, size: SegmentSize) -> Result<Self> {
        match archive.head() {
            Ok(head) => Ok(Beside { archive, head: Some(head), size }),
            Err(e) if e.is_damage() => Ok(Beside { archive, head: None, size }),
            Err(e) => Err(e.into()),
        }
    }

    /// Of a segment that counts; None when it says nothing.
    fn index(&self, name: &SegmentName) -> Result<Option<WalIndex>> {
        let counts = |head: &WalHead| head.timeline(name.timeline).is_some_and(|t| t.contains(name.segment));
        if !self.head.as_ref().is_none_or(counts) {
            return Ok(None);
        }
        match self.archive.index(name, self.size) {
            Ok(index) => Ok(Some(index)),
            Err(e) if e.is_damage() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The last segment before this one that both heads name.
    fn last_common(&self, other: &Beside<'_>, before: &SegmentName) -> Option<SegmentName> {
        let spans = |b: &Beside<'_>| Some(b.head.as_ref()?.timeline(before.timeline)?.ranges.to_vec());
        let end = before.segment.0.checked_sub(1)?;
        let theirs = spans(other)?;
        let common = |(first, last): (u64, u64)| {
            let meets = theirs.iter().map(move |(f, l)| (first.max(*f), last.min(*l).min(end)));
            meets.filter(|(f, l)| f <= l).map(|(_, l)| l).max()
        };
        let segment = spans(self)?.into_iter().filter_map(common).max().map(SegmentNo)?;
        Some(SegmentName { segment, ..*before })
    }

    /// As `admit` for an unbroken run of segments, also by what both have before a gap.
    pub fn admit_run(&self, from: &Beside<'_>, first: &SegmentName, last: &SegmentName) -> Result<()> {
        if let Some(common) = self.last_common(from, first)
            && self.has_same(from, &common)? == Some(false)
        {
            return Err(self.other_history(first, &common));
        }
        for end in [first, last] {
            if let Some(index) = from.index(end)? {
                self.admit(from, &index)?;
            }
        }
        Ok(())
    }

    fn other_history(&self, name: &SegmentName, than: &SegmentName) -> EngineError {
        EngineError::refused(
            OTHER_HISTORY,
            format!(
                "wal segment {} is of another history than {} in the other repository",
                name.format(self.size),
                than.format(self.size)
            ),
            WHICH_IS_RIGHT,
        )
    }

    /// Whether this archive and `other` have the same records in this segment; None when one of them says nothing.
    pub fn has_same(&self, other: &Beside<'_>, name: &SegmentName) -> Result<Option<bool>> {
        let Some((ours, theirs)) = self.index(name)?.zip(other.index(name)?) else { return Ok(None) };
        same_records(self, &ours, other, &theirs)
    }

    /// The last segment of these that both have, if its records differ.
    pub fn differs_in(&self, other: &Beside<'_>, names: &[SegmentName]) -> Result<Option<SegmentName>> {
        let named = |b: &Beside<'_>, name: &SegmentName| {
            b.head.as_ref().is_none_or(|h| h.timeline(name.timeline).is_some_and(|t| t.contains(name.segment)))
        };
        for name in names.iter().rev().filter(|n| named(self, n) && named(other, n)).take(LOOKS_MAX) {
            if let Some(same) = self.has_same(other, name)? {
                return Ok((!same).then_some(*name));
            }
        }
        Ok(None)
    }

    /// Refuses a segment of `from` that is not of the history of this archive, by what lies beside it here.
    ///
    /// # Errors
    /// `E-WAL-OTHER-HISTORY`; and trouble with either archive.
    pub fn admit(&self, from: &Beside<'_>, index: &WalIndex) -> Result<()> {
        let name = index.segment_name();
        for (number, is_before) in [(name.segment.0.checked_sub(1), true), (name.segment.0.checked_add(1), false)] {
            let Some(number) = number else { continue };
            let neighbour = SegmentName { segment: SegmentNo(number), ..name };
            let Some(here) = self.index(&neighbour)? else { continue };
            let linked = if is_before { links(&here, index) } else { links(index, &here) };
            // Where both have the same neighbour, a break is in the other archive as well: it is no other history.
            let same = self.has_same(from, &neighbour)?;
            if same == Some(false) || (!linked && same.is_none()) {
                return Err(self.other_history(&name, &neighbour));
            }
        }
        Ok(())
    }
}

/// As `follows`, where the one before is not just a beginning.
fn links(before: &WalIndex, after: &WalIndex) -> bool {
    before.ending == Ending::Ended || follows(before, after)
}

/// PostgreSQL may have pushed a segment twice, with the same records and another rest, or its beginning first.
fn same_records(ours: &Beside<'_>, a: &WalIndex, theirs: &Beside<'_>, b: &WalIndex) -> Result<Option<bool>> {
    if a.content == b.content || (a.valid_end == b.valid_end && a.valid_content == b.valid_content) {
        return Ok(Some(true));
    }
    if a.valid_end == b.valid_end {
        return Ok(Some(false));
    }
    let (short, longer, long) = if a.valid_end < b.valid_end { (a, theirs, b) } else { (b, ours, a) };
    // To know it takes reading; a writer cannot.
    if longer.archive.keys().writes_only().is_some() {
        return Ok(None);
    }
    let begins_alike = || -> Result<bool, RepoError> {
        let mut reader = longer.archive.open_segment(&long.segment_name(), longer.size)?;
        let mut hasher = SegmentHasher::new(short.valid_bytes());
        while let Some(bytes) = reader.next()? {
            hasher.update(bytes);
        }
        Ok(hasher.finish().2 == short.valid_content)
    };
    match begins_alike() {
        Ok(same) => Ok(Some(same)),
        Err(e) if e.is_damage() => Ok(None),
        Err(e) => Err(e.into()),
    }
}
