//! Changes of the head: which segments count.

use pgark_pg::value::{SegmentName, TimelineId};

use super::WalArchive;
use super::head::{SegmentRange, WalHead};
use crate::error::{RepoError, Result};
use crate::limits::REGISTER_RETRIES;
use crate::register::Staged;

/// A head with one segment more, which lies ready.
pub struct StagedHead {
    segment: (SegmentName, u32),
    version: Staged,
}

impl WalArchive {
    /// Records durably stored segments in the head, each with its copy. Only after this may PostgreSQL forget them.
    /// `Expired` when one of these copies is being removed by now: it has to be pushed again.
    pub fn acknowledge(&self, segments: &[(SegmentName, u32)]) -> Result<()> {
        let mut late = None;
        self.change_head(|head| {
            let changed = segments.iter().fold(false, |changed, (s, copy)| head.add_segment(s, *copy) | changed);
            let expired = |s: &SegmentName| head.timeline(s.timeline).is_some_and(|t| t.is_expired(s.segment));
            late = segments.iter().map(|(s, _)| *s).find(expired);
            changed
        })?;
        match late {
            Some(name) => Err(RepoError::Expired { what: format!("wal segment {name:?}") }),
            None => Ok(()),
        }
    }

    /// What `acknowledge` will do for a segment and its copy, prepared while it is still being stored. None where the head
    /// knows them, or they are being removed.
    pub fn stage(&self, segment: SegmentName, copy: u32) -> Result<Option<StagedHead>> {
        let staged = self.head.stage(|version| {
            let mut head = self.head_of(version)?;
            let expired = head.timeline(segment.timeline).is_some_and(|t| t.is_expired(segment.segment));
            Ok((!expired && head.add_segment(&segment, copy)).then(|| head.to_bytes()))
        })?;
        Ok(staged.map(|version| StagedHead { segment: (segment, copy), version }))
    }

    /// As `acknowledge`, with what was prepared for these segments, if it was and still holds.
    pub fn acknowledge_staged(&self, staged: Option<StagedHead>, segments: &[(SegmentName, u32)]) -> Result<()> {
        match staged.filter(|staged| segments == [staged.segment]).map(|staged| staged.version.put()) {
            Some(Ok(true)) => Ok(()),
            None | Some(Ok(false) | Err(RepoError::Fenced { .. })) => self.acknowledge(segments),
            Some(Err(e)) => Err(e),
        }
    }

    /// Applies a decision of the catalog to expire WAL; one that was applied before, or one that a later one followed,
    /// changes nothing.
    pub fn expire(&self, number: u64, ranges: &[SegmentRange]) -> Result<()> {
        WalArchive { head: self.head.clone().thrifty(), ..self.clone() }.change_head(|head| head.expire(number, ranges))
    }

    /// Takes back what had expired; `number` is above that of every decision so far.
    pub fn revive(&self, number: u64, ranges: &[SegmentRange]) -> Result<()> {
        self.change_head(|head| head.revive(number, ranges))
    }

    pub fn acknowledge_history(&self, timeline: TimelineId) -> Result<()> {
        self.change_head(|head| head.add_history(timeline))
    }

    /// A change that is made twice is the same change, so one of unknown outcome is made again.
    fn change_head(&self, mut change: impl FnMut(&mut WalHead) -> bool) -> Result<()> {
        let mut tries = 0..REGISTER_RETRIES;
        loop {
            let changed = self.head.update(|version| {
                let mut head = self.head_of(version)?;
                Ok(change(&mut head).then(|| head.to_bytes()))
            });
            match changed {
                Err(RepoError::Fenced { .. }) if tries.next().is_some() => {}
                other => return other.map(drop),
            }
        }
    }
}
