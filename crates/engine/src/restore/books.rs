//! The manifest of a backup, read as a stream from one repository, and on from another when that one fails in the middle.
//!
//! Invariant: copies are the same bytes, so the items that were taken from one are those that are passed over in the next.

use std::collections::BTreeSet;

use pgark_repo::manifest::{Item, ManifestReader};
use pgark_repo::names::{BackupId, ClusterName};
use pgark_repo::record::manifest_reader;
use pgark_repo::stream::Fingerprint;

use crate::error::{EngineError, Result};
use crate::sources::Sources;

pub struct Books<'a> {
    sources: &'a Sources,
    cluster: &'a ClusterName,
    backup: &'a BackupId,
    reader: ManifestReader,
    source: usize,
    taken: u64,
    failed: BTreeSet<usize>,
}

impl<'a> Books<'a> {
    pub fn open(sources: &'a Sources, cluster: &'a ClusterName, backup: &'a BackupId) -> Result<Self> {
        let (source, reader) = open(sources, cluster, backup, 0, &mut BTreeSet::new(), None)?;
        Ok(Books { sources, cluster, backup, reader, source, taken: 0, failed: BTreeSet::new() })
    }

    pub fn next_item(&mut self) -> Result<Option<Item>> {
        let mut next = self.reader.next_item().map_err(EngineError::from);
        while let Err(e) = next {
            if !self.sources.passes(self.source, &e) {
                return Err(self.sources.named(self.source, e));
            }
            self.failed.insert(self.source);
            let failure = self.sources.named(self.source, e);
            let opened = open(self.sources, self.cluster, self.backup, self.taken, &mut self.failed, Some(failure))?;
            (self.source, self.reader) = opened;
            next = self.reader.next_item().map_err(EngineError::from);
        }
        self.taken += 1;
        next
    }

    /// Of the whole manifest, when its last item was taken.
    pub fn fingerprint(&self) -> Fingerprint {
        self.reader.fingerprint()
    }
}

/// The first that can be read as far as we are.
fn open(
    sources: &Sources,
    cluster: &ClusterName,
    backup: &BackupId,
    taken: u64,
    failed: &mut BTreeSet<usize>,
    mut failure: Option<EngineError>,
) -> Result<(usize, ManifestReader)> {
    for n in sources.order() {
        if failed.contains(&n) {
            continue;
        }
        let opened = sources.repo(n).and_then(|repo| {
            let mut reader = manifest_reader(&repo, cluster, backup)?;
            for _ in 0..taken {
                reader.next_item()?;
            }
            Ok(reader)
        });
        match opened {
            Ok(reader) => return Ok((n, reader)),
            Err(e) if sources.passes(n, &e) => {
                failed.insert(n);
                failure = failure.or(Some(sources.named(n, e)));
            }
            Err(e) => return Err(sources.named(n, e)),
        }
    }
    Err(failure.unwrap_or(EngineError::Cancelled))
}
